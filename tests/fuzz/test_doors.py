"""Every door for what comes from outside, knocked on with inputs that are nearly right.

What may happen: it is accepted, or one of our errors says what is wrong. Any other exception, more than `SECONDS` for one
input, or memory beyond `MIB` is a failure. `make fuzz` tries FUZZ=10000 of them at each door within FUZZ_SECONDS.
Inputs that once failed stand in `corpus.py` and are always tried.
"""

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import resource
import shutil
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from random import Random

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from multiref._sealed import seal
from multiref.cli import app
from multiref.data import read_pairs
from multiref.data.gsm8k import read_gsm8k
from multiref.data.privacy import check_marks, privatise
from multiref.decoding import Draws
from multiref.decoding.draws import PromptDraws
from multiref.errors import MultirefError, MultirefWarning
from multiref.evaluation import read_rollouts
from multiref.models import Rollout
from multiref.runs import read_run
from multiref.runs.prompts import Prompts
from multiref.training.checkpoint import read_plain, save_state
from multiref.training.iterative.oracles import read_labels
from multiref.training.online.rewards import lexicon_reward
from multiref.training.sums import newest_whole
from tests.fuzz import folders, servers
from tests.fuzz.corpus import FAILED
from tests.fuzz.mutations import change, damage, dump

TRIES, TOTAL = int(os.environ.get("FUZZ", "100")), float(os.environ.get("FUZZ_SECONDS", "3"))
SECONDS, MIB = 20.0, 1024

PROBLEM = {"reward": [0.0, 1.0, 0.5], "references": {"a": [0.7, 0.2, 0.1], "b": [0.1, 0.2, 0.7]}, "weights": [0.5, 0.5],
           "beta": 1.0, "regularizer": "AlphaDivergence", "alpha": 0.5, "order": -1.0}  # fmt: skip
TALK = [{"role": "user", "content": "q"}]
PAIRS = [{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.5}, {"prompt": TALK, "chosen": [{**TALK[0]}], "rejected":
         [{"role": "assistant", "content": "no"}]}]  # fmt: skip
CSV = b'prompt,chosen,rejected,margin\n"q, ""x""",a,b,1.5\nq,"[{""role"": ""user""}]",b,\n'
RANKED = [{"instruction": "q", "completions": [{"response": "a", "overall_score": 1.5}, {"response": "b", "overall_score": 3}]}]
SHAREGPT = [{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected":
             [{"from": "gpt", "value": "b"}], "system": "s", "chat_template_kwargs": {"x": 1}, "label": 1}]  # fmt: skip
PRIVATE = [{"prompt": "q", "chosen": TALK, "rejected": "b", "privacy_epsilon": 1.5}]
LABELLED = [
    {"input": "q", "output_1": "a", "output_2": TALK, "label": 2},
    {"input": "q", "output_1": "a", "output_2": "b", "label": 1},
]
REFERENCES = [{"name": "a", "model": "first", "weight": 0.5}, {"name": "b", "model": {"path": "second"}, "weight": 0.5}]
POOLED = {"model": "policy", "references": REFERENCES, "beta": 0.1, "output": "run"}
RUNS = [
    {**POOLED, "data": {"path": "p.jsonl", "limit": 5}, "evaluation": {"fraction": 0.5}, "tokenisation": {"max_length": 9},
     "training": {"learning_rate": 5e-7, "num_train_epochs": 1, "lr_scheduler_type": "cosine"}, "lora": {"r": 4}},
    {"task": "reward", "model": "m", "data": "p.jsonl", "output": "r", "training": {"max_steps": 3}},
    {**POOLED, "task": "online", "prompts": [{"path": "p.jsonl", "words": 3}], "rewards": [{"kind": "lexicon", "path": "x"}],
     "method": {"name": "grpo", "group": 4}, "adaptive_beta": {"target": 1.0}, "training": {"steps": 3, "max_new_tokens": 4}},
    {**POOLED, "task": "distill", "prompts": ["p.jsonl"], "training": {"steps": 3}},
    {**POOLED, "task": "iterative", "prompts": "p.jsonl", "oracle": {"kind": "lexicon", "path": "l", "temperature": 1.0},
     "method": {"name": "bilevel"}, "labels": {"each": 8, "rounds": 2}, "plan": {"steps": 3}},
]  # fmt: skip


def lines(rows):
    return b"".join(dump(row) + b"\n" for row in rows)


def parquet(rows):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def maybe_damage(content, random):
    return damage(content, random) if random.random() < 0.3 else content


# door → (an input from a random source, what opens it). An input is bytes, written to a file, or a list of arguments.


def solve(content, path):
    found = CliRunner().invoke(app, ["solve", "-", "--json"], input=content)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    if found.exit_code == 0:
        logps = json.loads(found.stdout)["log_policy"]  # null: −∞, which JSON does not have
        assert abs(sum(math.exp(logp) for logp in logps if logp is not None) - 1) < 1e-6


def written(name, read):
    def door(content, folder):
        (folder / name).write_bytes(content)
        return read(folder / name)

    return door


def checkpoint(content, folder):
    (folder / "c" / "checkpoint-7").mkdir(parents=True, exist_ok=True)
    (folder / "c" / "checkpoint-7" / "state.safetensors").write_bytes(content)
    with contextlib.suppress(ValueError, OSError):  # as it says
        read_plain(folder / "c" / "checkpoint-7" / "state.safetensors")
    newest_whole(folder / "c")


def arguments(content, folder):
    found = CliRunner().invoke(app, content)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception


def as_saved(read):
    """What opens is what was written, or is refused: a changed byte is no other number."""

    def door(content, folder):
        whole, changed = content
        for name, part in zip(("whole", "changed"), content):
            (folder / name).write_bytes(part)
        found = read(folder / "changed")
        assert changed == whole or repr(found) == repr(read(folder / "whole")), "another value without a word"

    return door


@cache
def kept_files():
    """Draws, and rollouts of an evaluation, as they are kept."""
    ids, ended = ((1, 2), (1, 3)), (True, False)
    some = torch.tensor([0.5, -1.25], dtype=torch.float64)
    drawn = PromptDraws("q", ("a", "b"), ids, ended, some, some, 0.25, 0.125, 0.5, 2, log_islands=some)
    with tempfile.TemporaryDirectory() as folder:
        Draws((drawn, drawn), "smc", "pool", "", 7, 3).save(Path(folder) / "draws")
        line = seal(Rollout("q", ("a", "b"), (1, 2), ids, ended, ((-0.5, -0.25), (-1.0, -2.0))).__dict__)
        return {"draws": (Path(folder) / "draws").read_bytes(), "rollouts": dump(line) + b"\n"}


def kept(name):
    return lambda random: (kept_files()[name], damage(kept_files()[name], random))


def private(path):
    pairs = read_pairs(path)
    for opened in (lambda: check_marks(pairs, 1.5, "p"), lambda: privatise(pairs, 1.0)):
        with contextlib.suppress(MultirefError):
            opened()


def state(random):
    with tempfile.TemporaryDirectory() as folder:
        made = save_state(Path(folder), 1, {"step": 1, "list": [1, (2.5, "x")], "none": None}, keep=1)
        return (made / "state.safetensors").read_bytes()


VERBS = [
    ["score", "p.jsonl", "--reference", "base=m", "--store", "s", "--device", "cpu", "--limit", "2", "--max-length", "50"],
    ["store", "ls", "s"], ["store", "verify", "s"], ["store", "prune", "s", "--reference", "x"], ["store", "export", "s", "o"],
    ["inspect", "p.jsonl", "--store", "s", "--name", "base", "--limit", "3", "--seed", "1", "--html", "i.html"],
    ["train", "--config", "c.yaml", "--set", "beta=1", "--set", "references.0.weight=2"],
    ["sweep", "d", "d", "--prompts", "p.jsonl", "--out", "w", "--samples", "1", "--seed", "1", "--reward", "length=3"],
    ["evaluate", "--policy", "a=m", "--out", "e", "--prompts", "p.jsonl", "--reward", "length=3", "--seed", "1"],
    ["bound", "reverse-kl-suboptimality", "--samples", "1e5", "--beta", "0.1"], ["bound", "--from-scores", "s"],
    ["solve", "p.json", "--json"], ["data", "p.jsonl", "--split", "train", "--column", "prompt=prompt", "--limit", "2"],
    ["data", "q.jsonl", "--column", "prompt=q", "--column", "chosen=good", "--column", "rejected=bad", "--column", "margin=m",
     "--rankings", "all", "--split", "[:50%]", "--against", "[50%:]"],
    ["init", "x.yaml", "--task", "reward", "--model", "m", "--data", "p.jsonl", "--name", "a"],
    ["init", "x.yaml", "--task", "preference", "--model", "d", "--reference", "a=d", "--data", "p.jsonl", "--store", "s"],
    ["train", "--config", "x.yaml", "--dry-run", "--set", "beta=1"], ["doctor", "--server", "http://127.0.0.1:9", "--json"],
    ["decode", "d", "--reference", "a=d", "--prompt", "a b", "--max-new-tokens", "2", "--beta", "1"], ["real", "--model", "no"],
]  # fmt: skip
WORDS = ["", "x", "[/b]", "[red]x", "\ud800", "a" * 300, "a" * 5000, "0", "-1", "1e308", "nan", "9" * 5000, "cuda:99",
         "meta", "a=b", "=", "a=", "[/b]=m", "a\0b", "..", "/dev/zero", "http://127.0.0.1:9", "😀", "%s", "{}", "--", "²",
         "lexicon=x", "length=[/b]", "length=²", "beta={", "a.b.c=1", "references.²=1", "references.0.model=[/b]",
         "a=" + "[" * 999]  # fmt: skip


def words(random):
    made = list(random.choice(VERBS))
    for _ in range(random.choice([1, 1, 2])):
        at = random.randrange(1, len(made))
        made[at : at + random.choice([0, 1, 1, 1])] = [random.choice(WORDS)] if random.random() < 0.9 else []
    return made


@cache
def saved_files():
    """A folder of `save_to_disk`: path → content."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.disable_progress_bars()
        datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS[:1] * 9)}).save_to_disk(folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def saved(random):
    files = dict(saved_files())
    name = random.choice(list(files))
    files[name] = random.choice([lambda: damage(files[name], random), lambda: None, lambda: b"", lambda: "pipe"])()
    return files


def open_saved(files, folder):
    shutil.rmtree(folder / "saved", ignore_errors=True)
    for name, content in files.items():
        path = folder / "saved" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "pipe":
            os.mkfifo(path)
        elif content is not None:
            path.write_bytes(content)
    read_pairs(folder / "saved")


def of(base, dump=dump):
    bases = base if isinstance(base, tuple) else (base,)
    return lambda random: maybe_damage(dump(change(random.choice(bases), random)), random)


def rows(changed):
    return lines(changed) if isinstance(changed, list) else dump(changed)


DOORS = {
    "solve": (of(PROBLEM), solve),
    "pairs.jsonl": (of(PAIRS, rows), written("a.jsonl", read_pairs)),
    "pairs.json": (of(PAIRS), written("a.json", read_pairs)),
    "pairs.jsonl.gz": (lambda random: damage(gzip.compress(lines(PAIRS), mtime=0), random), written("a.jsonl.gz", read_pairs)),
    "pairs.csv": (lambda random: damage(CSV, random), written("a.csv", read_pairs)),
    "answers": (of((RANKED, LABELLED, SHAREGPT), rows), written("a.jsonl", read_pairs)),
    "pairs.parquet": (lambda random: damage(parquet(PAIRS[:1] * 9), random), written("a.parquet", read_pairs)),
    "saved": (saved, open_saved),
    "run": (of(tuple(RUNS)), written("run.yaml", read_run)),
    "prompts": (of(({"prompt": "a b"}, {"text": "c"}), lambda row: dump(row) + b"\n"),
                written("p.jsonl", lambda path: Prompts(path=str(path), words=2).rows())),
    "problems": (of({"question": "1+1?", "answer": "2 #### 2"}), written("g.jsonl", read_gsm8k)),
    "labels": (of(({"id": "a-0", "preferred": "first"},), lambda row: dump(row) + b"\n"),
               written("l.jsonl", lambda path: read_labels(path, ["a-0"]))),
    "private": (of(PRIVATE, rows), written("a.jsonl", private)),
    "draws": (kept("draws"), as_saved(Draws.load)),
    "rollouts": (kept("rollouts"), as_saved(read_rollouts)),
    "lexicon": (lambda random: damage(b"good\t1\nbad\t-1.5\n", random), written("l.txt", lexicon_reward)),
    "checkpoint": (lambda random: damage(state(random), random), checkpoint),
    "arguments": (words, arguments),
    "folder": (folders.mutate, folders.knock),
    "server": (servers.mutate, servers.knock),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_bytes(lines(PAIRS[:1] * 3))
    (tmp_path / "q.jsonl").write_bytes(lines([{"q": "x", "good": "a", "bad": "b", "m": "1.5"}] * 4))
    monkeypatch.setattr("multiref.models.bounded_templates.SECONDS", 0.3)
    (tmp_path / "d").mkdir()
    folders.make(tmp_path / "d")
    return tmp_path


def knock(door, content, folder):
    """Open the door once; what happens is one of the two things that may."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MultirefWarning)
        try:
            DOORS[door][1](content, folder)
        except MultirefError as error:
            assert str(error), "an error without a word"
    assert time.monotonic() - began < SECONDS, "too slow"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MIB * 1024, "too much memory"


@pytest.mark.parametrize("door", DOORS)
def test_nothing_that_is_nearly_right_gets_through_or_breaks(door, folder):
    until, tried = time.monotonic() + TOTAL, itertools.count()

    @settings(
        max_examples=TRIES, deadline=None, database=None, derandomize=TRIES == 100, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, 2**63))
    def knocks(seed):
        if time.monotonic() < until:
            knock(door, DOORS[door][0](Random(seed)), folder)
            next(tried)

    try:
        knocks()
    finally:
        print(f"{door}: {next(tried)} inputs")  # `make fuzz` shows it


ENDED = [("pairs.parquet", damage(parquet(PAIRS[:1] * 9), Random(seed))) for seed in (1544, 9999)]  # the process, in pyarrow
FAILED = [*FAILED, *ENDED]


@pytest.mark.parametrize(("door", "content"), FAILED, ids=[f"{door}-{number}" for number, (door, _) in enumerate(FAILED)])
def test_what_once_failed(door, content, folder):
    knock(door, content, folder)
