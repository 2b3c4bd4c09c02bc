"""The model card: a YAML head that hubs can read, and text that stays text."""

import yaml

from multiref.report import ModelCard


def card(**changes: object) -> str:
    fields: dict[str, object] = {
        "title": "policy",
        "base_model": "base: x",
        "objective": "reverse KL",
        "formula": "E[r] − β Σ w KL",
        "references": {"a|b": ("path/<i>x</i>", "0.25"), "c": ("y", "0.75")},
        "beta": 0.1,
        "data": "pairs.jsonl",
        "metrics": {"rewards/accuracies": 0.75},
        "settings": {"args": {"lr": 1e-3, "path": object}, "seeds": (1, 2)},
        "limits": ["small"],
    }
    return ModelCard(**{**fields, **changes}).markdown()  # type: ignore[arg-type]


def test_the_head_is_yaml_with_the_base_model() -> None:
    text = card()
    _, head, _ = text.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == "base: x"
    assert yaml.safe_load(head)["library_name"] == "transformers"


def test_every_reference_is_listed_with_its_weight_and_marks_are_escaped() -> None:
    text = card()
    assert "| a\\|b | path/\\<i\\>x\\</i\\> | 0.25 |" in text
    assert "| c | y | 0.75 |" in text
    assert "β = 0.1" in text and "| rewards/accuracies | 0.75 |" in text


def test_a_fence_in_the_formula_cannot_close_the_block() -> None:
    text = card(formula="```\n# not a heading")
    assert "````\n```\n# not a heading\n````" in text


def test_settings_come_back_as_yaml() -> None:
    block = card().split("## Settings\n\n```\n")[1].split("```")[0]
    assert yaml.safe_load(block)["args"]["lr"] == 1e-3
    assert yaml.safe_load(block)["seeds"] == [1, 2]
