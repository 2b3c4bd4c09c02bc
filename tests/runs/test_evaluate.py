"""`multiref evaluate`: JSON and table of several policies, the same again from its folder, and mistakes by name."""

import json

import pytest
from typer.testing import CliRunner

from multiref.cli import app
from tests.conftest import make_llama, make_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer(chat=True)
    for seed, name in enumerate(("a", "b")):
        make_llama(len(tokenizer), seed=seed, std=0.1).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"question": f"what is {n} plus {n}?", "answer": f"it is\n#### {2 * n}"} for n in range(5)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.txt").write_text("the cat sat on\n\nOnce upon a time\n")
    return folder


def call(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_two_policies_on_problems(world, tmp_path):
    arguments = [
        "-p",
        f"a={world / 'a'}",
        "-p",
        f"b={world / 'b'}",
        "--problems",
        world / "problems.jsonl",
        "--style",
        "plain",
        "--samples",
        3,
        "--k",
        1,
    ]
    arguments += ["--k", 3, "--max-new-tokens", 4, "--batch", 2, "--out", tmp_path / "out"]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(summary["policies"]) == {"a", "b"} and set(summary["differences"]) == {"b − a"}
    assert {"pass@1", "pass@3", "reward/correctness", "reward/total"} <= set(summary["policies"]["a"])
    assert summary["settings"]["temperature"] == 1.0 and summary["settings"]["prompts"] == 5
    assert "5 prompts × 3 samples at temperature 1" in done.output
    before = (tmp_path / "out" / "samples" / "a.jsonl").read_bytes()
    again = call(*arguments)
    assert (
        "prompts\n" not in again.output.replace("of the prompts\n", "")
        and (tmp_path / "out" / "samples" / "a.jsonl").read_bytes() == before
    )
    other = call(*arguments, "--seed", 1)
    assert other.exit_code == 2 and "seed was 0 and is now 1" in other.output


def test_the_greedy_policy_on_prompts(world, tmp_path):
    """Temperature 0: every sample is the same completion, so every prompt's reward has no spread over samples."""
    done = call(
        "-p", f"a={world / 'a'}", "--prompts", world / "prompts.txt", "--reward", "length=3", "--temperature", 0, "--samples",
        3, "--max-new-tokens", 5,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for line in (tmp_path / "out" / "samples" / "a.jsonl").read_text().splitlines():
        assert len(set(json.loads(line)["completions"])) == 1
    assert "pass@1" not in done.output and "reward/length" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "a"], "expected name=PATH"),
        (["-p", "a=x", "--k", "9"], "k: expected from 1 to samples = 8, found 9"),
        (["-p", "a=x", "--reward", "length=long"], "length=WORDS"),
        (["-p", "a=x", "--reward", "charm"], "--reward charm: expected lexicon=FILE"),
        (["-p", "a=x", "--prompts", "y.txt"], "expected one of the two"),
    ],
)
def test_mistakes_are_named(world, tmp_path, arguments, words):
    done = call(*arguments, "--problems", world / "problems.jsonl", "--out", tmp_path / "out")
    assert done.exit_code == 2 and words in done.output
    assert not (tmp_path / "out").exists()
