"""Every example of the pages is run, in a folder where the models and data that they name exist in miniature."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app
from tests.conftest import make_llama, make_tokenizer

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")] if "```python\n" in page.read_text("utf-8"))
LIGHT = {"bounds.md", "first-exact.md", "nash.md"}  # no model is loaded
ELSEWHERE = "<!-- not run here: "  # the line before a block that needs a server, a hub or a GPU; it says which
FOLDERS = (
    *("models/a", "models/b"),
    *("path-or-hub-id", "models/policy", "models/base", "models/math", "models/stories260K", "models/stories-xs-280K"),
    *("Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2-1.5B-Instruct"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models under the names that the pages use, pairs, prompts, and what a reader already has in hand."""
    folder, tokenizer = tmp_path_factory.mktemp("world"), make_tokenizer(chat=True)
    for seed, name in enumerate(FOLDERS):
        make_llama(len(tokenizer), seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": f"is it {n}?", "chosen": f" yes it is {n}", "rejected": " no"} for n in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def blocks(page):
    """The Python blocks of a page but those that say that they need something else."""
    found = re.findall(r"([^\n]*)\n```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for before, code in found if not before.startswith(ELSEWHERE)]


@pytest.mark.parametrize("page", [pytest.param(p, id=p.name, marks=[] if p.name in LIGHT else pytest.mark.slow) for p in PAGES])
@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_a_page_run(page, request, monkeypatch, tmp_path):
    names = {"mr": mr}
    if page.name not in LIGHT:
        monkeypatch.chdir(request.getfixturevalue("world"))
        from datasets import Dataset

        opened, pairs = mr.models.load("models/policy"), mr.data.read_pairs("pairs.jsonl")
        names |= {"model": opened.model, "tokenizer": opened.tokenizer, "pairs": pairs, "held_out": pairs[:4]}
        names |= {"dataset": Dataset.from_json("pairs.jsonl", cache_dir=str(tmp_path)), "prompts": ["is it 3?", "is it 4?"]}
        names |= {"scores": mr.References({"a": "models/a", "b": "models/b"}).score(pairs)}
        names |= {"reward": lambda prompts, completions: [float(len(text)) for text in completions]}
        names |= {"my_reward": lambda completions, **_: [float(len(text)) for text in completions]}
    for code in blocks(page):
        exec(compile(code, page.name, "exec"), names)


def command_lines():
    """Every `multiref VERB …` of an indented or fenced block, with its continued lines."""
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:    |\$ )?(multiref [a-z].*)$", text, re.MULTILINE):
            yield pytest.param(line, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", command_lines())
def test_the_options_of_a_command_that_a_page_shows_exist(line):
    group = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    command = group.resolve_command(typer.Context(group), words)[1]
    if isinstance(command, TyperGroup):
        command = command.resolve_command(typer.Context(command), words[1:])[1]
    if command.context_settings.get("ignore_unknown_options"):
        return  # `bound` takes its statement's own arguments
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert used <= known, f"{sorted(used - known)} of: {line}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_from_nothing_to_a_policy_in_five_commands(world, monkeypatch):
    """As docs/first-model.md shows them, but for the installation."""
    monkeypatch.chdir(world)
    page = (ROOT / "docs" / "first-model.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (multiref .*)$", page, re.MULTILINE)[:4]  # behind them: other data, and what comes after
    assert [line.split()[1] for line in lines] == ["score", "inspect", "init", "train"]
    for line in lines:
        words = shlex.split(line.replace("MODEL", "models/policy").replace("OTHER", "models/math"))[1:]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (world / "runs" / "run" / "model" / "model.safetensors").is_file()
    assert not (world / "runs" / "run" / "scores").exists(), "what was scored once is read, not scored again"


def test_the_command_line_s_own_help_is_one_screen():
    assert len(CliRunner().invoke(app, ["--help"]).output.splitlines()) <= 60
