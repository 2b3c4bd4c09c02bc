"""`multiref score`, `multiref store`, `multiref inspect`: from a file of pairs to a verdict, and one message for what cannot
work."""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from multiref.cli import app
from multiref.references import Store
from multiref.references.store import Rows
from tests.references.doubles import Companion, pairs


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}) + "\n" for p in pairs(40))
    )
    return path


@pytest.fixture
def doubles(monkeypatch):
    """`name=./path` opens a double: what the command line does with models is another test's business."""
    from multiref.references.resolve import Opener

    opened = []

    def open_double(opener):
        opened.append(Companion(opener.what))
        return opened[-1]

    monkeypatch.setattr(Opener, "_open", open_double)
    return opened


def test_help_answers_without_loading_what_is_heavy():
    """Neither torch nor transformers is imported to print the help."""
    code = (
        "import sys; from multiref.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    for arguments in (["--help"], ["score", "--help"], ["store", "ls", "--help"], ["inspect", "--help"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert result.stdout.splitlines()[-1] == "[]", result.stdout[-500:] + result.stderr[-500:]
        assert "Usage" in result.stdout


def test_scored_once_then_read(tmp_path, data, doubles):
    command = ("score", data, "-r", "base=./base", "--reference", "math=./math", "--store", tmp_path / "scores")
    first = run(*command)
    assert first.exit_code == 0, first.output
    assert "80 scored, 0 already there" in first.output and "40 pairs, 80 different completions, 2 references" in first.output
    second = run(*command)
    assert "0 scored, 80 already there" in second.output
    assert sum(double.scored() for double in doubles[2:]) == 0


def test_a_dry_run_counts_and_stores_nothing(tmp_path, data, doubles):
    result = run("score", data, "-r", "base=./base", "--store", tmp_path / "scores", "--dry-run", "--limit", 30)
    assert result.exit_code == 0 and "60" in result.output and "Nothing is stored" in result.output
    assert not (tmp_path / "scores").exists()


def test_the_store_is_listed_verified_pruned_and_exported(tmp_path, data, doubles):
    scores = tmp_path / "scores"
    run("score", data, "-r", "base=./base", "-r", "math=./math", "--store", scores)
    listed = run("store", "ls", scores).output
    told = json.loads(run("store", "ls", scores, "--json").stdout)["references"][0]
    assert all(isinstance(told[key], int | float) for key in ("completions", "shards", "MB")), told
    assert "base" in listed and "math" in listed and listed.count("80") >= 2 and "another version" not in listed
    assert run("store", "verify", scores).exit_code == 0
    assert "Nothing to remove" in run("store", "prune", scores).output

    exported = tmp_path / "long.parquet"
    assert run("store", "export", scores, exported).exit_code == 0
    refused = run("store", "export", scores, tmp_path / "long.csv")
    assert refused.exit_code == 2 and "ends in .parquet" in refused.output and not (tmp_path / "long.csv").exists()
    table = pq.read_table(exported)
    assert table.num_rows == 160 and set(table["reference"].to_pylist()) == {"base", "math"}
    wide = tmp_path / "wide.parquet"
    assert run("store", "export", scores, wide, "--data", data, "--reference", "math").exit_code == 0
    row = pq.read_table(wide).to_pylist()[7]
    expected = Companion("./math").score([type("Item", (), {"prompt": row["prompt"], "completions": (row["chosen"],)})()])
    assert row["math/chosen_logps"] == pytest.approx(float(expected.logps[0]), abs=1e-8) and row["chosen"] == "chosen 7"

    asked = run("store", "prune", scores, "--reference", "math")
    assert "would be removed" in asked.output and len(Store(scores).references()) == 2
    assert run("store", "prune", scores, "--reference", "math", "--yes").exit_code == 0
    assert len(Store(scores).references()) == 1

    shard = next((scores / "shards").rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = run("store", "verify", scores)
    assert broken.exit_code == 1 and shard.name in broken.output

    old = Store(scores).register({"kind": "local", "scoring_version": 0}, name="old", location="./old")
    count = np.arange(3)
    Store(scores).append(old, Rows(np.frombuffer(bytes(48), "V16"), -count * 1.0, count, count > 1))
    assert f"3 of these completions ({old[:8]}) were scored by another version" in run("store", "ls", scores).output
    assert json.loads(run("store", "ls", scores, "--json").stdout)["outdated"] == {old[:8]: 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-r", "base=./a", "-r", "base=./b"), "'base=./b': expected name=PATH, each name once"),
        (("-r", "./a"), "expected name=PATH"),
        (("-r", "base="), "expected name=PATH"),
        (("-r", "base=./nowhere"), "nowhere"),
        (("-r", "base=./a", "--workers", "2"), "--engine ray"),
        (("-r", "base=./a", "--engine", "spark"), "There is no engine 'spark'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_two(tmp_path, data, arguments, words):
    result = run("score", data, "--store", tmp_path / "scores", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output and "Traceback" not in result.output
    assert not (tmp_path / "scores" / "shards").exists() or not list((tmp_path / "scores" / "shards").rglob("*"))


def saved(folder, **tokenizer):
    from tests.conftest import make_llama, make_tokenizer

    made = make_tokenizer(**tokenizer)
    make_llama(len(made), context=32).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def test_a_conversation_under_a_tokenizer_without_a_template_is_one_message(tmp_path):
    data = tmp_path / "chat.jsonl"
    user, assistant = {"role": "user", "content": "hi"}, [{"role": "assistant", "content": "hello"}]
    other = [{"role": "assistant", "content": "go away"}]
    data.write_text(json.dumps({"prompt": [user], "chosen": assistant, "rejected": other}))
    result = run("score", data, "-r", f"base={saved(tmp_path / 'model')}", "--store", tmp_path / "scores")
    assert (
        result.exit_code == 2
        and "chat template" in result.output
        and str(tmp_path / "model") in result.output.replace("\n", "")
    )
    assert not list(tmp_path.rglob("*.parquet"))
    chatty = run("score", data, "-r", f"base={saved(tmp_path / 'chatty', chat=True)}", "--store", tmp_path / "scores")
    assert chatty.exit_code == 0, chatty.output


def test_a_completion_longer_than_the_context_is_marked_and_said(tmp_path):
    from multiref.references import read_scores

    data = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "the cat", "chosen": " sat on the mat" * 40, "rejected": " sat"},
        {"prompt": "a", "chosen": " b", "rejected": " c"},
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    result = run("score", data, "-r", f"base={saved(tmp_path / 'model')}", "--store", tmp_path / "scores")
    assert result.exit_code == 0 and "1 of 4 texts did not fit 'base'" in " ".join(result.output.split())
    assert int(read_scores(tmp_path / "scores").truncated.sum()) == 1


def test_a_model_folder_cut_short_is_one_message(tmp_path, data):
    folder = saved(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = run("score", data, "-r", f"base={folder}", "--store", tmp_path / "scores")
    assert result.exit_code == 2 and "model.safetensors" in result.output.replace("\n", ""), result.output
    assert not list(tmp_path.rglob("*.parquet"))


def test_folders_that_are_no_store(tmp_path):
    for verb in ("ls", "verify", "prune"):
        result = run("store", verb, tmp_path)
        assert result.exit_code == 2 and "no store of scores" in result.output
    assert "does not exist" in run("store", "ls", tmp_path / "nowhere").output
    assert "is no folder" in run("store", "ls", __file__).output


def test_inspect_prints_a_verdict_a_page_and_json(tmp_path, data, doubles):
    scores = tmp_path / "scores"
    run("score", data, "-r", "base=./base", "-r", "math=./math", "--store", scores)
    page = tmp_path / "page.html"
    result = run("inspect", data, "--store", scores, "--html", page)
    assert result.exit_code == 0, result.output
    assert "Verdict" in result.output and "No reference predicts these preferences better than a coin" in " ".join(
        result.output.split()
    )
    text = page.read_text()
    assert text.count("<svg") >= 2 and not re.search(r'(src|href)="http|url\(.?http', text)
    found = json.loads(run("inspect", data, "--store", scores, "--json").stdout)
    assert found["verdict"]["answer"] == "none" and [q["name"] for q in found["references"]] == ["base", "math"]
    assert "--reference name=PATH" in found["not_measured"]
    few = run("inspect", data, "--store", scores, "--limit", "3", "--plan")
    assert "Too few to tell" in few.output and "Pairs that would show" not in few.output
    strange = run("inspect", data, "--store", scores, "--reference", "maths=./math")
    assert strange.exit_code == 2 and "--reference maths: the scores are of base, math" in strange.output
    part = run("inspect", data, "--store", scores, "--split", "train", "--limit", "9").output.splitlines()[-1]
    assert part.startswith("Next: multiref init") and f"--data {data} --split train --store" in part
    missing = run("inspect", data, "--store", scores, "--name", "nobody")
    assert missing.exit_code == 2 and "no reference is called 'nobody'" in missing.output


@pytest.mark.filterwarnings("ignore:.*writes no end token")  # <|im_end|> is text to this small tokenizer
def test_attention_and_the_template_s_arguments_of_all_and_of_one(tmp_path, tiny_folder):
    """`VALUE` is for every model, `name=VALUE` for one; each is part of who the reference is, and the numbers agree to rounding
    (attention) or follow the template (its arguments)."""
    from transformers import AutoTokenizer

    from multiref.references import read_scores
    from tests.models.templates import CHATML

    for name in ("plain", "thinking"):
        (tmp_path / name).mkdir()
        for file in tiny_folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.chat_template = "{{ 'hm' if think }}" + CHATML
        tokenizer.save_pretrained(tmp_path / name)
    user, data = [{"role": "user", "content": "the dog"}], tmp_path / "chat.jsonl"
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    data.write_text(json.dumps({"prompt": user, **sides}) + "\n")
    models = [
        part for name in ("a", "b", "c") for part in ("-r", f"{name}={tmp_path / ('thinking' if name == 'c' else 'plain')}")
    ]
    options = ["--attention", "eager", "--attention", "b=sdpa", "--chat-template-kwargs", 'c={"think": true}']
    result = run("score", data, *models, *options, "--store", tmp_path / "scores")
    assert result.exit_code == 0, (result.output, result.exception)
    a, b, c = read_scores(tmp_path / "scores", ["a", "b", "c"]).logps
    assert (a - b).abs().max() < 1e-4 and (a != b).any() and (a - c).abs().max() > 1e-2
    identities = [note["identity"] for note in Store(tmp_path / "scores").references().values()]
    assert sorted(identity["attention"] for identity in identities) == ["eager", "eager", "sdpa"]
    for wrong in (["--attention", "d=eager"], ["--chat-template-kwargs", "[1]"], ["--chat-template-kwargs", "{"]):
        assert run("score", data, *models, *wrong, "--store", tmp_path / "scores").exit_code == 2
