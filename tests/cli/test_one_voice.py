"""What every verb has: help that fits a screen, JSON alone on standard output, silence, and what to do next."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from multiref.cli import VERBS, app
from multiref.cli.decode import _read
from multiref.cli.help import GROUPS
from multiref.cli.voice import show_notes, voiced
from multiref.errors import ConfigError
from multiref.runs import read_run
from multiref.runs.folder import RunFolder
from multiref.runs.new import TASKS, new_run

LAB = ("demo", "frontier", "real", "stability", "verify")
BELOW = ("store ls", "store verify", "store prune", "store export")
PROBLEM = '{"reward": [0, 1], "references": {"[red]a": [0.7, 0.3]}, "beta": 1.0}'


def ask(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)


@pytest.mark.parametrize("verb", ["", *VERBS, *LAB, *BELOW])
def test_help_fits_60_lines_of_80_columns_and_its_types_are_words(verb: str) -> None:
    shown = ask(*verb.split(), "--help", env={"COLUMNS": "80"})
    lines = shown.output.split("\n")
    assert shown.exit_code == 0 and len(lines) <= 60 and max(map(len, lines)) <= 80, (len(lines), max(lines, key=len))
    assert not any(mark in shown.output for mark in ("<str>", "list[", "int range", "╭", "\x1b"))
    if verb not in ("", "store"):
        assert all(option in shown.output for option in ("--json", "--quiet", "--verbose"))
        alone = [line for line in lines if line.startswith(" " * 20) and len(line.split()) == 1 and len(line.strip()) < 9]
        assert len(alone) < 6, "a column of one word a line"


def test_verbs_stand_under_headings() -> None:
    text = ask("--help").output
    places = [text.index(f"\n{heading}\n") for heading in GROUPS]
    assert places == sorted(places) and "\nMore\n" not in text
    for heading, below in zip(places, [*places[1:], text.index("\nOptions\n")]):
        for verb in list(GROUPS.values())[places.index(heading)]:
            assert verb not in VERBS or f"\n  {verb} " in text[heading:below]


def test_json_is_alone_on_standard_output_and_quiet_is_quiet(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q [red]x", "chosen": "a", "rejected": "b"}
    (tmp_path / "p.jsonl").write_text((json.dumps(row) + "\n") * 3 + json.dumps({**row, "rejected": "a"}) + "\n")
    told = ask("data", "p.jsonl", "--json")
    found = json.loads(told.stdout)
    assert (found["verb"], found["pairs"], found["bad_rows"], found["repeated_pairs"]) == ("data", 3, 1, 2)
    assert "q [red]x" in told.stderr  # what people are told goes aside
    assert ask("data", "p.jsonl", "--quiet").stdout.startswith("Next: multiref score p.jsonl")
    shown = ask("data", "p.jsonl", "--html", "page.html")
    assert "q [red]x" in shown.stdout and shown.stdout.endswith("--store scores/\n") and "page.html" in shown.stdout
    broken = ask("data", "nothing.jsonl", "--json")
    assert broken.exit_code == 2 and "does not exist" in json.loads(broken.stdout)["error"]
    assert "Traceback" in ask("data", "nothing.jsonl", "--verbose").stderr
    solved = ask("solve", "-", "--json", input=PROBLEM)
    assert json.loads(solved.stdout)["value"] and "optimum" in solved.stderr


@pytest.mark.parametrize("task", TASKS)
def test_init_writes_a_valid_commented_file_that_dry_run_understands(task: str, tmp_path: Any, tiny_folder: Any) -> None:
    (tmp_path / "p.jsonl").write_text((json.dumps({"prompt": "once", "chosen": " a", "rejected": " b"}) + "\n") * 4)
    (tmp_path / "l.txt").write_text("good\t1\n")
    run = str(tmp_path / "run.yaml")
    given = ["--task", task, "--model", str(tiny_folder), "--data", str(tmp_path / "p.jsonl")]
    given += ["-r", f"no={tiny_folder}"] if task != "reward" else []
    reward = ["--reward", f"lexicon={tmp_path / 'l.txt'}"] if task in ("online", "iterative") else []
    made = ask("init", run, *given, *reward, "--output", str(tmp_path / "out"))
    assert made.exit_code == 0 and made.stdout.endswith("--dry-run\n"), made.output
    text = (tmp_path / "run.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=run.schema.json") and text.count("\n# ") > 5
    assert json.loads((tmp_path / "run.schema.json").read_text())["$schema"]
    assert read_run(run).task == task
    again = ask("init", run, *given)
    assert again.exit_code == 2 and "--force" in again.stderr
    lacking = ask("init", str(tmp_path / "x.yaml"), *given[:6], *reward)  # no reference, and nobody to ask
    assert ("References, as name=PATH" in lacking.stderr) == (task != "reward") == (lacking.exit_code == 2)
    stored = ask("init", str(tmp_path / "s.yaml"), *given, *reward, "--store", "scores/")
    assert (stored.exit_code == 0) == (task == "preference") or "store: unknown key" in stored.stderr
    if task == "preference":
        assert read_run(tmp_path / "s.yaml").store == "scores/"
    if reward:
        assert "Reward, such as lexicon=FILE" in ask("init", str(tmp_path / "x.yaml"), *given).stderr
    whole = ["--set", "evaluation=null"] if task in ("preference", "reward") else []
    looked = ask("train", "--config", run, *whole, "--dry-run", "--json")
    assert looked.exit_code == 0, looked.output
    found = json.loads(looked.stdout)
    assert found["task"] == task and found["policy"]["parameters"] > 0 and found["memory"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["init", "decode", "sweep", "evaluate", *LAB])
def test_what_a_verb_makes_has_one_name_and_a_default_of_zero_is_said(verb: str) -> None:
    shown = ask(verb, "--help", env={"COLUMNS": "100"}).output
    assert "  -o, --out, --output PATH" in shown or "  -o, --out, --output TEXT" in shown
    if (seed := shown.partition("--seed NUMBER")[2]) != "":
        assert "[default 0]" in " ".join(seed.partition("--")[0].split())


def test_an_oracle_is_made_of_a_reward_that_can_judge_two_completions() -> None:
    def made(*rewards: dict[str, object]) -> str:
        return new_run("iterative", model="m", references={"a": "b"}, data={"path": "p"}, output="o", reward=rewards)

    assert "oracle: {kind: reward_model, path: r, temperature: 1.0}" in made({"kind": "model", "path": "r"})
    for given in (
        [{"kind": "length", "target": 5}],
        [{"kind": "python", "path": "p.py", "name": "f"}],
        2 * [{"kind": "lexicon"}],
    ):
        with pytest.raises(ConfigError, match="expected lexicon=FILE or model=FOLDER"):
            made(*given)


def test_what_libraries_tell_programmers_is_for_verbose(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        warnings.warn("`old` will be removed in v6", FutureWarning, stacklevel=1)

    voices = {"as_json": False, "quiet": False}
    voiced(command)(**voices, verbose=False)
    with pytest.warns(FutureWarning, match="v6"):
        voiced(command)(**voices, verbose=True)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    show_notes()
    warnings.showwarning("the driver\n  is too old", UserWarning, "/env/site-packages/torch/cuda/__init__.py", 3)
    assert capsys.readouterr().err == "Warning of torch: the driver is too old\n"


def test_a_download_is_seen_and_other_bars_of_libraries_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    from multiref.training.arguments import quiet

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    quiet()
    assert not are_progress_bars_disabled() and not logging.is_progress_bar_enabled()


def test_a_dry_run_knows_how_long_a_row_may_be(tmp_path: Any, tiny_folder: Any) -> None:
    """Half of the pairs are long. Dropped, the other half is left, as in a file of these alone; kept, they are cut."""
    short = [{"prompt": f"once {n}", "chosen": " a", "rejected": " b"} for n in range(8)]
    long = [{**row, "chosen": " a" * 40} for row in short]
    for name, rows in {"short": short, "both": [*short, *long]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def said(data: str, *settings: str) -> tuple[float, float, str]:
        file, given = str(tmp_path / f"{data}.yaml"), ["--model", str(tiny_folder), "-r", f"a={tiny_folder}"]
        ask("init", file, *given, "--data", str(tmp_path / f"{data}.jsonl"), "--output", str(tmp_path / "out"), "--force")
        changes = [word for each in ("evaluation=null", *settings) for word in ("--set", each)]
        found = ask("train", "-c", file, *changes, "--dry-run", "--json")
        line = next(line for line in found.stderr.splitlines() if line.startswith("time "))
        return float(line.split(" tokens a row")[0].rpartition("(")[2]), json.loads(found.stdout)["time"], line

    cut = "tokenisation={max_length: 20}"
    whole, dropped, kept = said("both"), said("both", cut), said("both", cut, "too_long=keep")
    assert dropped[0] == said("short")[0] < kept[0] <= 20 < whole[0] * 2
    assert "about 50% of the pairs are longer than 20 tokens and left out" in dropped[2] and "longer" not in kept[2]
    assert "refused" in said("both", cut, "too_long=error")[2]


def test_init_asks_where_there_is_a_terminal(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiref.cli.init as verb

    answers = iter(["preference", "m", "base=m other=n", "p.jsonl"])
    monkeypatch.setattr(verb, "_ask", lambda question, default=None: next(answers))
    assert ask("init", str(tmp_path / "run.yaml")).exit_code == 0
    assert [each.name for each in read_run(tmp_path / "run.yaml").references] == ["base", "other"]  # type: ignore[attr-defined]


def test_doctor_says_what_is_missing(tmp_path: Any) -> None:
    told = ask("doctor", "--folder", str(tmp_path), "--json")
    assert json.loads(told.stdout)["problems"] == [] and told.exit_code == 0
    bad = ask("doctor", "--folder", str(tmp_path / "absent"), "--server", "http://127.0.0.1:9")
    assert bad.exit_code == 1 and "absent cannot be written" in bad.output and "127.0.0.1:9/models" in bad.output
    bad = ask("doctor", "--folder", str(tmp_path / "absent"), "--json")
    assert bad.exit_code == 1 and len(json.loads(bad.stdout)["problems"]) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("decode -r a=x -r a=y -p hi", "--reference 'a=y': expected name=PATH, each name once"),
        ("decode -r a=x -p hi --beta 1 --reward-max 2", "--beta, --reward-max: expected with --reward only"),
        ("decode -r a=x -p hi --split test", "--split: expected with --prompts only"),
        ("decode -r a=x -p hi --method token --islands 4", "--islands: expected with --reward, --out or another --method only"),
        ("serve -r a=x --particles 9", "--particles: expected with a --method of the optimum only"),
        ("inspect p.txt --store s --sample 9", "--sample: expected with --reference only"),
        ("score p.txt --dry-run --parameters 7B --cluster 1xlocal --dtype auto", "--dtype: expected with --reference only"),
        ("train --config r.yaml --dry-run --take-over", "--take-over: expected with a run that trains only"),
        ("decode -r a=x --prompts p.txt --split test", "--split: expected with rows only"),
        ("init r.yaml --model m -r a=x -r a=y --data d", "each name once"),
        ("init r.yaml --model m -r a=x --data d --reward length=3", "rewards: unknown key"),
        ("init r.yaml --task reward --model m --data d --beta 1", "beta: unknown key"),
        ("init r.yaml --task distill --model m -r a=x --data d --column prompt=q", "columns: unknown key"),
        ("init r.yaml --task reward --model m --data d -r a=x", "references: unknown key"),
        ("init r.yaml --task iterative --model m -r a=x --data d --reward model=r --split test", "prompts: found {"),
        ("decode -r a=x -r b=y -p hi --weight a=0.3 --weight a=0.7 --weight b=0.3", "a stands there twice"),
        ("score p.txt -r a=x --store s --attention eager --attention sdpa", "a value for all stands there twice"),
        ("data p.txt --column prompt=q --column prompt=question", "prompt stands there twice"),
        ("score p.txt -r a=http://x/v1 --store s --dtype bfloat16", "--dtype: expected with a model as --reference only"),
        ("evaluate -p a=x --prompts p.txt --reward length=3 --style chat --out o", "--style: expected with --problems only"),
    ],
)
def test_what_would_be_ignored_is_refused(line: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    done = ask(*line.split())
    assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "r.yaml").exists()


def test_a_strength_is_written_as_it_was_given(tmp_path: Any) -> None:
    run = str(tmp_path / "run.yaml")
    assert ask("init", run, "--model", "m", "-r", "a=x", "--data", "d", "--beta", "0.123456789").exit_code == 0
    assert read_run(run).beta == 0.123456789


def test_an_empty_line_is_no_prompt(tmp_path: Any) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \n  \n")
    assert list(_read(str(tmp_path / "p.txt"), None, None)) == [{"prompt": "one"}, {"prompt": " two "}]


def test_the_home_folder_of_every_path_that_is_an_option(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--store=~/x` is not opened by a shell: nothing may land in a folder called ~, and all of a folder in one place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found: dict[str, Any] = {}

    def command(out: Path, several: list[Path] | None = None, text: str = "") -> None:
        found.update(out=out, several=several, text=text)

    voiced(command)(out=Path("~/a"), several=[Path("~"), Path("b~")], text="~")
    assert found == {"out": tmp_path / "home" / "a", "several": [tmp_path / "home", Path("b~")], "text": "~"}
    with RunFolder("~/run").claimed({"format": 2}):
        assert (tmp_path / "home" / "run" / ".lock").exists() and not (tmp_path / "~").exists()
