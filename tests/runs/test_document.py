"""A run's file is read strictly; every mistake is one sentence of ours that names file and line of the key, or the `--set`."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import multiref as mr
from multiref import runs
from multiref.cli import app
from multiref.errors import ConfigError
from multiref.runs import BaseRun, read_run
from multiref.runs.document import Document
from multiref.runs.dry_run import dry_run
from multiref.runs.folder import RunFolder
from multiref.runs.new import new_run
from multiref.runs.yaml_values import parse

FILE = """\
model: policy
references:
  - {name: a, model: first, weight: 0.5}
  - name: b
    model:
      path: second
      dtype: bfloat16
    weight: 0.5
beta: 1e-1
data: pairs.jsonl
output: run
training:
  learning_rate: 5e-7
  num_train_epochs: 1
"""
BARE = "model: m\nreferences: [{name: a, model: m}]\nbeta: 0.1\noutput: o\n"
ONLINE = ["task=online", "prompts=[p.jsonl]", "rewards=[{kind: length}]"]
BOUGHT = ["task=iterative", "prompts=p", "oracle={kind: human_labels, folder: f}", "method={name: nash}", "labels=[4]"]


def read(tmp_path, text=FILE, changes=()):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_run(path, changes)


def test_shorthands_and_defaults_are_written_out_and_read_back(tmp_path):
    run = read(tmp_path, changes=["output=elsewhere", "references.1.model.revision=v1", "lora.r=4"])
    assert isinstance(run, BaseRun) and run.task == "preference" and run.beta == 0.1 and run.output == "elsewhere"
    assert run.model == mr.models.ModelSpec("policy")
    assert run.references[1].model == mr.models.ModelSpec("second", dtype="bfloat16", revision="v1")
    plain = run.plain()
    assert plain["objective"]["kind"] == "preference" and plain["training"] == {"learning_rate": 5e-7, "num_train_epochs": 1.0}
    assert read(tmp_path, yaml.safe_dump(plain)) == run


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("beta: 1e-1", "betta: 1e-1", "run.yaml:9: betta: unknown key; did you mean `beta`?"),
        ("beta: 1e-1", "beta: true", "run.yaml:9: beta: found true (true or false), expected a number."),
        ("beta: 1e-1", "beta: '1'", "run.yaml:9: beta: found '1' (text), expected a number."),
        ("beta: 1e-1", "beta: 0", "run.yaml:9: beta: found 0 (number), expected a number above 0."),
        ("dtype: bfloat16", "dtipe: bfloat16", "run.yaml:7: references[1].model.dtipe: unknown key; did you mean `dtype`?"),
        ("dtype: bfloat16", "dtype: half", "run.yaml:7: references[1].model.dtype: dtype is 'half'; expected one of"),
        ("weight: 0.5\nbeta", "wait: 0.5\nbeta", "run.yaml:8: references[1].wait: unknown key; did you mean `weight`?"),
        ("num_train_epochs", "num-train-epochs", "run.yaml:14: training.num-train-epochs: unknown key; did you mean"),
        ("num_train_epochs", "num_train_epoch", "run.yaml:14: training.num_train_epoch: unknown key; did you mean"),
        ("5e-7", "fast", "run.yaml:13: training.learning_rate: found 'fast' (text), expected a number."),
        ("output: run", "output: run\noutput: b", "run.yaml:12: output: a second time, first in line 11"),
        ("output: run\n", "", "run.yaml: output: missing"),
        ("output: run", "output: run\nscores: s", "run.yaml:12: scores: it is called store now"),
        ("output: run", "output: run\nend: false", "run.yaml:12: end: it is a part of tokenisation"),
        ("output: run", "output: run\ntask: labels", "run.yaml:12: task: labels is called iterative now."),
        ("output: run", "output: run\nregularizer: ReversKL", "run.yaml:12: regularizer.kind: found 'ReversKL', expected"),
        ("{name: a, model: first,", "{name: a, model: first, adapter: x,", "run.yaml:3: references[0].adapter: it is a"),
        ("output: run", "output: *there", "run.yaml:11: found the alias *there"),
        ("output: run", "output: !!python/name:os.system run", "run.yaml:11: found tag:yaml.org,2002:python/name:os.system"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_line_of_its_key(old, new, said, tmp_path):
    assert old in FILE
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FILE.replace(old, new))
    text = str(caught.value)
    assert text.replace(f"{tmp_path}/", "").startswith(said)
    assert "\n" not in text and "pydantic" not in text and "Input should" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("beta=much", "--set beta=…: beta: found 'much' (text), expected a number."),
        ("training.learning_rate=true", "--set training.learning_rate=…: training.learning_rate: found true"),
        ("references.0.wight=1", "--set references.0.wight=…: references[0].wight: unknown key; did you mean `weight`?"),
        ("references.5.weight=1", "--set references.5.weight=1: '5' is no place in a list of 2"),
        ("references[0].weight=1", "--set references[0].weight=…: references[0]: unknown key; did you mean `references`?"),
        ("beta.x=1", "--set beta.x=1: beta is 0.1 there, which has no keys"),
        ("model.dtipe=bfloat16", "--set model.dtipe=…: model.dtipe: unknown key; did you mean `dtype`?"),
        ("output.x=1", "--set output.x=…: output.x: output is 'run' there, which has no keys."),
        ("lora={lora_dropout: 0.1}", "--set lora=…: lora.lora_dropout: found 0.1, expected 0: dropout is noise in log π"),
        ("beta", "--set beta: expected key=value"),
        ("title=Run #3", "--set title=Run #3: a # begins a comment; put quotes around the text"),
        ("title=#3", "--set title=#3: a # begins a comment"),
        ("beta={a: 1, a: 2}", "--set beta=…:1: a: a second time"),
    ],
)
def test_a_mistake_in_a_change_names_the_change(change, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, changes=[change])
    assert str(caught.value).startswith(said)


def test_a_mark_in_quotes_or_within_a_word_is_text(tmp_path):
    assert read(tmp_path, changes=["title='Run #3'"]).title == "Run #3" and read(tmp_path, changes=["title=a#b"]).title == "a#b"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("title: *m", "run.yaml:12: found the alias *m; write out what it stands for"),
        ("lora: &x {r: *x}", "run.yaml:12: found the alias *x"),
        ("lora: " + "[" * 5000, "run.yaml:12: found lists and keys more than 32 deep"),
        ("lora: !!omap [r: 1]", "run.yaml:12: found tag:yaml.org,2002:omap"),
        ("lora: {r: " + "9" * 5000 + "}", "run.yaml:12: found 9999"),
        ("lora: {lora_dropout: .nan}", "run.yaml:12: found .nan, expected a finite number."),
        ("title: a\0", "run.yaml: special characters are not allowed"),
        ("--- \ntitle: b", "run.yaml:12: but found another document"),
        ("title: " + "x" * 2**17, "run.yaml has 131,"),
    ],
)
def test_yaml_that_could_be_a_bomb_or_is_none_of_ours(added, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FILE.replace("output: run", f"output: run\n{added}").replace("model: policy", "model: &m policy"))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(said)


def test_dates_are_text_and_windows_line_ends_are_line_ends(tmp_path):
    assert read(tmp_path, FILE.replace("output: run", "output: 2024-05-01")).output == "2024-05-01"
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode())
    assert read_run(tmp_path / "run.yaml") == read(tmp_path)


def test_the_schema_completes_a_recipe():
    """Every task with its keys, transformers' arguments for pairs and ours online."""
    printed = CliRunner().invoke(app, ["train", "--schema"])
    assert printed.exit_code == 0
    schema = json.loads(printed.stdout)
    assert {arm["$ref"].rpartition("/")[2] for arm in schema["oneOf"]} == {
        "PreferenceRun", "RewardRun", "OnlineRun", "DistillRun", "IterativeRun"
    }  # fmt: skip
    models = schema["$defs"]
    assert {"gradient_accumulation_steps", "lr_scheduler_type"} <= set(models["TrainingArguments"]["properties"])
    assert models["TrainingArguments"]["properties"]["learning_rate"]["default"] == 1e-6
    assert {"prompts_per_step", "max_new_tokens"} <= set(models["OnlineArguments"]["properties"])
    assert "learning_rate" in models["Plan"]["properties"] and "labels" not in models["Plan"]["properties"]
    assert {"path", "adapter", "quantization"} <= set(models["ModelSpec"]["properties"])


KINDS = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def fits(value, schema, models):
    """Whether a value is one that a JSON schema allows: as far as ours goes."""
    if "$ref" in schema:
        return fits(value, models[schema["$ref"].rpartition("/")[2]], models)
    for arms in (schema.get("anyOf"), schema.get("oneOf")):
        if arms is not None and not any(fits(value, each, models) for each in arms):
            return False
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if value not in schema.get("enum", [value]) or schema.get("const", value) != value:
        return False
    if isinstance(value, list):
        return all(fits(each, schema.get("items", {}), models) for each in value)
    if not isinstance(value, dict) or kind != "object":
        return True
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    unknown = [value[key] for key in value.keys() - known.keys()]
    return (
        set(schema.get("required", ())) <= value.keys()
        and all(fits(value[key], known[key], models) for key in value.keys() & known.keys())
        and (
            not unknown or (other is not False and all(fits(each, {} if other is True else other, models) for each in unknown))
        )
    )


def test_what_a_file_may_say_an_editor_does_not_underline():
    """Every recipe of a run, with its shorthands, fits the schema; the same with a key too many, or a wrong name, does not."""
    schema = runs.schema()
    recipes = [path for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if "figure" not in path.name]
    for path in recipes:
        values = Document.read(path).values
        assert fits(values, schema, schema["$defs"]), path.name
        assert not fits({**values, "betta": 1}, schema, schema["$defs"])
        assert not fits({**values, "model": {"path": "m", "dtipe": "float32"}}, schema, schema["$defs"])
    assert len(recipes) > 15
    made = parse(new_run("preference", model="m", references={"a": "b"}, data={"path": "p"}, output="o"), "")[0]
    assert fits(made | {"report_to": "wandb", "push_to_hub": "me/it"}, schema, schema["$defs"])
    assert not fits(made | {"regularizer": "ReversKL"}, schema, schema["$defs"])


def test_a_run_folder_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("beta: 0.1\nmodel: {path: m}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is a run folder of multiref 0\.1") as caught:
        RunFolder(tmp_path).claimed({"format": 2, "beta": 0.1}).__enter__()
    assert "\n" not in str(caught.value)


def test_python_runs_what_the_command_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"--set beta=…: beta"):
        read(tmp_path)
        mr.run(tmp_path / "run.yaml", set=["beta=-1"])


def test_a_change_lies_over_what_a_shorthand_stands_for(tmp_path):
    """`model: policy` is `model: {path: policy}`, wherever a text is short for one of a value's keys."""
    text = FILE + "evaluation: held.jsonl\nregularizer: AlphaDivergence\n"
    changes = ["model.dtype=bfloat16", "references.0.model.revision=v2", "evaluation.limit=5", "data.limit=9"]
    run = read(tmp_path, text, [*changes, "regularizer.alpha=0.5"])
    assert run.model == mr.models.ModelSpec("policy", dtype="bfloat16")
    assert run.references[0].model == mr.models.ModelSpec("first", revision="v2")
    assert (run.evaluation.path, run.evaluation.limit, run.data.path, run.data.limit) == ("held.jsonl", 5, "pairs.jsonl", 9)
    assert run.pool().alpha == 0.5


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    text = (
        FILE.replace("model: policy", "model: {path: ~/policy, adapter: ~/adapter}").replace("model: first", "model: ~/first")
        + "store: ~/scores\n"
    )
    run = read(tmp_path, text, ["output=~/o", "data=~/pairs.jsonl", "evaluation.path=~/held.jsonl", "title=a~b"])
    assert run.model == mr.models.ModelSpec("/home/somebody/policy", adapter="/home/somebody/adapter")
    assert run.references[0].model.path == "/home/somebody/first" and run.output == "/home/somebody/o"
    assert run.data.path == "/home/somebody/pairs.jsonl" and run.store == "/home/somebody/scores" and run.title == "a~b"


@pytest.mark.parametrize(
    ("written", "name", "meant"),
    [
        ("save_strategy: no", "save_strategy", "no"),
        ("save_strategy: 'no'", "save_strategy", "no"),
        ("save_strategy: NO", "save_strategy", "no"),
        ("logging_strategy: off", "logging_strategy", "no"),
        ("bf16: 'false'", "bf16", False),
        ("bf16: 'True'", "bf16", True),
        ("bf16: yes", "bf16", True),
        ("gradient_checkpointing: 'false'", "gradient_checkpointing", False),
        ("max_steps: 3.0", "max_steps", 3),
        ("max_steps: 1e3", "max_steps", 1000),
        ("save_total_limit: 2.0", "save_total_limit", 2),
        ("weight_decay: 1e-2", "weight_decay", 0.01),
        ("weight_decay: 1.E-2", "weight_decay", 0.01),
        ("eval_delay: 2", "eval_delay", 2.0),
        ("warmup_steps: 10", "warmup_steps", 10.0),
        ("warmup_steps: 0.1", "warmup_steps", 0.1),
        ("weight_decay: -.5", "weight_decay", -0.5),
    ],
)
def test_a_value_is_what_a_person_means(written, name, meant, tmp_path):
    run = read(tmp_path, FILE + f"  {written}\n")
    found = getattr(run.training, name)
    assert getattr(found, "value", found) == meant and type(getattr(found, "value", found)) is type(meant)
    again = read(tmp_path, yaml.safe_dump(run.plain()))
    assert again == run


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("max_steps: 2.5", "training.max_steps: found 2.5 (number), expected a whole number."),
        ("max_steps: 010", "run.yaml:15: 010, which YAML reads as a number of base 8 or 60; write the number"),
        ("max_steps: 1:30", "run.yaml:15: 1:30, which YAML reads as a number of base 8"),
        ("weight_decay: 1:30.5", "run.yaml:15: 1:30.5, which YAML reads as a number of base 8"),
        ("weight_decay: !!bool x", "run.yaml:15: found x, expected a finite number."),
        ("learning_rate2: 1", "training.learning_rate2: unknown key"),
        ("weight_decay: '1e-2'", "training.weight_decay: found '1e-2' (text), expected a number."),
        ("bf16: maybe", "training.bf16: found 'maybe' (text), expected true or false."),
        ("bf16: 1", "training.bf16: found 1 (number), expected true or false."),
        ("save_strategy: yes", "training.save_strategy: found true"),
        ("warmup: 10", "training.warmup: unknown key; did you mean `warmup_steps`?"),
    ],
)
def test_what_nobody_can_mean_is_one_sentence(written, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FILE + f"  {written}\n")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "name"),
    [("label_smoothing_factor: 0.1", "label_smoothing_factor"), ("neftune_noise_alpha: 5", "neftune_noise_alpha")],
)
def test_an_argument_that_would_be_ignored_is_refused_before_anything_is_read(written, name, tmp_path):
    with pytest.raises(ConfigError, match=rf"^training: {name}: found .*, which would be ignored"):
        read(tmp_path, FILE + f"  {written}\n").ready()


def test_the_held_out_pairs_are_the_same_under_every_seed(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(40)), encoding="utf-8"
    )
    changes = [f"data={tmp_path / 'pairs.jsonl'}", "evaluation.fraction=0.25"]

    def held_out(*more):
        return [pair.prompt for pair in read(tmp_path, FILE, [*changes, *more]).read()[1]]

    assert held_out() == held_out("training.seed=7") != held_out("evaluation.split_seed=7")


def test_warmup_online_is_steps_or_below_one_a_share():
    from multiref.training.online import OnlineArguments

    rates = [OnlineArguments(steps=100, warmup=w, learning_rate=1.0, schedule="constant").rate(4) for w in (10, 0.1, 1, 0)]
    assert rates == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data=d.jsonl", "evaluation={fraction: 0.1, split: test}"], "evaluation.split: a fraction is of the pairs of `data`"),
        (["data=d.jsonl", "evaluation={fraction: 0.1, limit: 5}"], "evaluation.limit: a fraction is of the pairs of `data`"),
        ([*ONLINE, "prompts=[{path: p.txt, split: 'train[:5%]'}]"], "prompts[0].split: a .txt has none"),
        ([*ONLINE, "prompts=[{path: p.jsonl, pieces: 100}]"], "prompts[0].pieces: of a .txt alone"),
        ([*ONLINE, "evaluation={prompts: [p.jsonl], samples: 2, k: [4]}"], "evaluation.k: expected from 1 to samples = 2"),
        ([*BOUGHT, "labels={each: true, rounds: 2}"], "labels: found {'each': True, 'rounds': 2}, expected growing"),
        (
            ["data=d.jsonl", "references=[{name: a, model: m}, {name: a, model: n}]"],
            "references: Two references are called",
        ),
        (["data=d.jsonl", "weighting=vdw"], "weighting: vdw looks at held-out pairs; set `evaluation`."),
    ],
    ids=[
        "split of a fraction",
        "limit of a fraction",
        "split of a text",
        "pieces of rows",
        "k above samples",
        "true is no count",
        "one of two references of a name",  # it trained under the last of them, and said two
        "weights from held-out pairs without any",
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused_at_once(changes, said, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, BARE, changes)
    assert said in str(caught.value)


def test_a_resolved_file_says_its_defaults_and_is_no_mistake(tmp_path):
    run = read(tmp_path, FILE, ["evaluation.fraction=0.1"])
    assert read(tmp_path, yaml.safe_dump(run.plain())) == run


def test_a_dry_run_counts_what_the_run_would_see(tiny_folder, tmp_path, monkeypatch):
    """A step is of gradient_accumulation_steps batches; a quantised model's memory is not that of float32; `limit` prompts."""
    monkeypatch.setattr("multiref.runs.dry_run._speed", lambda: 1e6)
    rows = [{"prompt": f"the cat {i}", "chosen": " sat", "rejected": " on"} for i in range(9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    models = [f"model={tiny_folder}", f"references=[{{name: a, model: {tiny_folder}}}]", f"data={tmp_path / 'pairs.jsonl'}"]
    steps = [*models, "training={max_steps: 1000, per_device_train_batch_size: 4}"]
    one, four = (
        dry_run(read(tmp_path, FILE, [*steps, *more])).facts for more in ([], ["training.gradient_accumulation_steps=4"])
    )
    assert four["time"] == pytest.approx(4 * one["time"], rel=0.02) and one["memory"] == 16 * one["policy"]["parameters"]
    quantised = [*models, f"model={{path: {tiny_folder}, quantization: int8}}", "lora={r: 2}"]
    assert "memory" not in dry_run(read(tmp_path, FILE, quantised)).facts
    bought = [*BOUGHT, *models[:2], f"prompts={tmp_path / 'pairs.jsonl'}", "limit=5"]
    assert dry_run(read(tmp_path, BARE, bought)).facts["data"] == {"prompts": 5}
