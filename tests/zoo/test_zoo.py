"""No wrong row in any causal language model that transformers has: scored, saved, loaded and scored again, drawn from."""

import pytest

from tests.zoo.build import names
from tests.zoo.measure import Finding, measure

# windows, chunks, latent attention, experts, states, alibi, learned positions: one each
HANDFUL = ("bloom", "deepseek_v3", "gemma3_text", "gpt2", "llama4_text", "mamba", "mixtral", "opt")


def faults(finding: Finding) -> list[str]:
    """What is wrong with one: a row, a refusal of what is fine, a folder that does not come back."""
    errors = finding.errors or {}
    if not finding.causal:
        return ["scored, though a later token changes an earlier one's score"] if "chosen" in errors else []
    return [
        *finding.wrong,
        *(["two answers in evaluation mode"] if finding.noisy else []),
        *(["not scored: " + finding.layout] if "chosen" not in errors else []),
        *(["not batched: " + finding.layout] if finding.independent and "batched" not in errors else []),
        *(["not loaded: " + finding.loaded] if "loaded" not in errors else []),
    ]


@pytest.mark.parametrize("kind", HANDFUL)
def test_a_handful(kind):
    finding = measure(kind, names()[kind])
    assert not finding.built and not faults(finding) and finding.drawn == "cache", finding


@pytest.mark.slow
def test_the_whole_zoo():
    found = [measure(kind, name) for kind, name in names().items()]
    built = [each for each in found if not each.built]
    wrong = {each.kind: faults(each) for each in built if faults(each)}
    scored = [each for each in built if "chosen" in (each.errors or {})]
    batched = [each for each in scored if "batched" in (each.errors or {})]
    drawn = [each for each in built if "drawn" in (each.errors or {})]
    assert len(drawn) >= 0.95 * len(built)
    assert len(built) >= 170 and not wrong, wrong
    assert len(scored) >= 0.95 * len(built) and len(batched) >= 0.9 * len(built)
