"""`multiref evaluate`: JSON and table of several policies, the same again from its folder, and mistakes by name."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from multiref.cli import app
from multiref.runs.evaluation_page import write_evaluation_page
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


def test_a_policy_or_an_answer_that_was_replaced_is_not_answered_from_old_samples(world, tmp_path):
    for name in ("policy", "problems.jsonl"):
        (shutil.copytree if name == "policy" else shutil.copy)(world / {"policy": "a"}.get(name, name), tmp_path / name)
    given = ["-p", f"a={tmp_path / 'policy'}", "--problems", tmp_path / "problems.jsonl", "--style", "plain"]
    given += ["--samples", 2, "--max-new-tokens", 3, "--out", tmp_path / "out"]
    assert call(*given).exit_code == call(*given).exit_code == 0
    rows = (tmp_path / "problems.jsonl").read_text()
    (tmp_path / "problems.jsonl").write_text(rows.replace("#### 4", "#### 5"))
    other = call(*given)
    assert other.exit_code == 2 and "samples of other settings" in " ".join(other.stderr.split())
    (tmp_path / "problems.jsonl").write_text(rows)
    shutil.copy(world / "b" / "model.safetensors", tmp_path / "policy")
    other = call(*given)
    assert other.exit_code == 2 and "other settings: models." in other.stderr and "weights was" in other.stderr


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


def test_a_prompt_that_stands_there_twice_is_one(world, tmp_path):
    """Intervals are over prompts: two copies of each would make them narrower by √2, and everything as long again."""
    (tmp_path / "twice.txt").write_text("the cat sat on\n\nOnce upon a time\n\nthe cat sat on\n")
    given = ["-p", f"a={world / 'a'}", "--reward", "length=3", "--samples", 2, "--max-new-tokens", 3]
    found = []
    for name, path in (("once", world / "prompts.txt"), ("twice", tmp_path / "twice.txt")):
        done = call(*given, "--prompts", path, "--out", tmp_path / name)
        assert done.exit_code == 0 and ("1 of 3 prompts stand there again" in done.output) == (name == "twice"), done.output
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert found[0] == found[1] and found[0]["settings"]["prompts"] == 2


def test_rows_that_a_reward_tells_apart_are_several(world, tmp_path):
    """One prompt with two grades: the mean of the reward that reads them is over both; no other reward counts it twice."""
    (tmp_path / "own.py").write_text("def graded(prompts, completions, grade):\n    return [float(each) for each in grade]\n")
    rows = [{"prompt": "the cat sat on", "grade": grade, "id": n} for n, grade in enumerate((3, 5, 5))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["-p", f"a={world / 'a'}", "--prompts", tmp_path / "rows.jsonl", "--samples", 2, "--max-new-tokens", 3]
    for name, reward, prompts in (("own", f"python={tmp_path / 'own.py'}:graded", 2), ("length", "length=3", 1)):
        done = call(*given, "--reward", reward, "--out", tmp_path / name)
        assert done.exit_code == 0 and f"{3 - prompts} of 3 prompts stand there again" in done.output, done.output
        summary = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert summary["settings"]["prompts"] == prompts
        if name == "own":
            assert summary["policies"]["a"]["reward/graded"][0] == 4.0


def test_prompts_of_which_nobody_says_what_is_right_do_not_count_as_wrong(world, tmp_path):
    """Of two prompts one has no answer: right on all that have one is pass@1 = 1, as the reward itself and training have it."""
    own = "def correctness(prompts, completions, answer):\n    return [1.0 if each else None for each in answer]\n"
    (tmp_path / "own.py").write_text(own + "def zero(prompts, completions):\n    return [0.0] * len(prompts)\n")
    rows = [{"prompt": "the cat sat on", "answer": "yes"}, {"prompt": "Once upon a time", "answer": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["-p", f"a={world / 'a'}", "--prompts", tmp_path / "rows.jsonl", "--samples", 2, "--max-new-tokens", 3]
    given += ["--reward", f"python={tmp_path / 'own.py'}:correctness", "--reward", f"python={tmp_path / 'own.py'}:zero"]
    done = call(*given, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["policies"]["a"]
    assert found["pass@1"][0] == found["reward/correctness"][0] == 1.0


def test_policies_beside_their_references_and_the_optimum(world, tmp_path):
    """One table of everyone: J, KL (k1, k3), win rate, length, diversity; π* draws by particles, best-of-3 has no J; from the
    samples that are kept, and the same again from the folder."""
    given = ["-p", f"a={world / 'a'}", "--reference", f"a={world / 'a'}", "--reference", f"b={world / 'b'}", "--beta", "2"]
    given += [
        "--weight",
        "a=0.25",
        "--weight",
        "b=0.75",
        "--prompts",
        world / "prompts.txt",
        "--reward",
        "length=3",
        "--samples",
    ]
    given += [3, "--max-new-tokens", 4, "--out", tmp_path / "out"]
    for beside in ("references", "token-pool", "best-of-3", "optimum"):
        given += ["--beside", beside]
    done = call(*given)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(summary["policies"]) == ["a", "reference a", "reference b", "token-pool", "best-of-3 of a", "optimum"]
    assert summary["settings"]["weights"] == {"a": 0.25, "b": 0.75} and "not known" in done.output
    first = summary["policies"]["a"]
    assert {"J", "KL(π‖b)", "k3(π‖b)", "win rate", "length", "unfinished", "distinct-2", "self-BLEU"} <= set(first)
    assert first["KL(π‖a)"][0] == pytest.approx(0, abs=1e-4) and summary["policies"]["best-of-3 of a"]["J"][0] is None
    objective = first["reward/total"][0] - 2 * 0.75 * first["KL(π‖b)"][0]
    assert first["J"][0] == pytest.approx(objective, abs=1e-3) and "optimum − a" in summary["differences"]
    assert call(*given).output.splitlines()[-12:] == done.output.splitlines()[-12:]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(f">{name}<" in page for name in summary["policies"]) and "not known" in page


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ([0.2, 0.1, 0.3], "b has 0.2 more J than a (95 % interval 0.1 to 0.3)."),
        ([-0.2, -0.3, -0.1], "b has 0.2 less J than a (95 % interval -0.3 to -0.1)."),
        ([0.05, -0.1, 0.2], "J of b and a cannot be told apart: b has +0.05 (95 % interval -0.1 to 0.2)."),
        ([0.05, None, None], "J of b is +0.05 against a; one prompt, or one value, gives no interval."),
        ([None, None, None], "a: reward/total 3 [2, 4]."),
    ],
    ids=["more", "less", "noise", "one-prompt", "not-known"],
)
def test_the_page_s_first_sentence_says_no_more_than_the_interval(tmp_path, difference, sentence):
    """J answers where it is known of two; the reward where not, and with no difference in it only the first's own figure."""
    known = difference[0] is not None
    j = [[1.0, 0.9, 1.1], [1.2, 1.0, 1.4] if known else [None] * 3]
    policies = {name: {"J": each, "reward/total": [3.0, 2.0, 4.0]} for name, each in zip("ab", j)}
    differences = {"b − a": {"J": difference, "reward/total": difference}}
    settings = {"prompts": 5, "samples": 3}
    write_evaluation_page(tmp_path / "r.html", {"policies": policies, "differences": differences, "settings": settings})
    assert sentence in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "a=x", "--beta", "1", "--beside", "optimum"], "--beta, --beside: expected with --reference only"),
        (["-p", "a=x", "--reference", "b=y"], "expected both or neither"),
        (["-p", "a=x", "--reference", "b=y", "--beta", "1", "--weight", "b=0.5"], "weights: expected a sum of one, found 0.5"),
        (["-p", "a=x", "--words", "3"], "--words: expected with --prompts only"),
        (["-p", "a=x", "-p", "a=y"], "each name once"),
        (["-p", "optimum=x", "--reference", "b=y", "--beta", "1", "--beside", "optimum"], "choose another"),
        (["-p", "a=x", "--reference", "b=y", "--beta", "1", "--beside", "best"], "best-of-N"),
        (["-p", "a=x", "--reference", "b=y", "--weight", "b=much", "--beta", "1"], "name=NUMBER"),
        (["-p", "a"], "expected name=PATH"),
        (["-p", "a=x", "--k", "9"], "k: expected from 1 to samples = 8, found 9"),
        (["-p", "a=x", "--reward", "length=5", "--k", "1"], "no reward here says what is right"),
        (["-p", "a=x", "--reward", "length=long"], "length=WORDS"),
        (["-p", "a=x", "--reward", "charm"], "--reward charm: expected lexicon=FILE"),
        (["-p", "a=x", "--prompts", "y.txt"], "expected one of the two"),
    ],
)
def test_mistakes_are_named(world, tmp_path, arguments, words):
    done = call(*arguments, "--problems", world / "problems.jsonl", "--out", tmp_path / "out")
    assert done.exit_code == 2 and words in done.output
    assert not (tmp_path / "out").exists()
