"""A tiny world, and the smallest job of every verb in it: a command that writes into one folder."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import make_llama, make_tokenizer

WORDS = ["the cat", "a dog", "two plus three", "the log", "a little dog", "it is five", "Max", "the mat"]
TRAINING = {
    "learning_rate": 1e-3, "per_device_train_batch_size": 2, "num_train_epochs": 2, "logging_steps": 1, "save_steps": 2,
    "save_total_limit": 1, "use_cpu": True,
}  # fmt: skip
WORLD = {"base_steps": 12, "specialist_steps": 12, "batch": 32, "hidden": 16, "layers": 1}


def make_world(folder: Path) -> None:
    """Three models, pairs, prompts, a lexicon, a sweep's settings; the runs' files."""
    tokenizer = make_tokenizer()
    for seed, name in enumerate(("policy", "first", "second")):
        make_llama(len(tokenizer), seed=seed, std=0.1, hidden=16, layers=1).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    pairs = [{"prompt": f"what is {w}?", "chosen": f" {w} is raining", "rejected": f" the {w} sat"} for w in WORDS]
    _lines(folder / "pairs.jsonl", pairs)
    _lines(folder / "prompts.jsonl", [{"prompt": f"what is {w}"} for w in WORDS[:4]])
    chatty = make_tokenizer(chat=True)
    make_llama(len(chatty), std=0.1, hidden=16, layers=1).save_pretrained(folder / "chatty")
    chatty.save_pretrained(folder / "chatty")
    (folder / "words.txt").write_text("dog\t2\ncat\t-1\nthe\t1\n")
    references = [{"name": name, "model": name, "weight": 0.5} for name in ("first", "second")]
    pooled = {"model": "policy", "references": references, "beta": 0.2, "output": "OUT"}
    online = {"steps": 3, "prompts_per_step": 2, "max_new_tokens": 3, "learning_rate": 1e-3, "save_every": 1}
    prompts, rows = [{"path": "prompts.jsonl", "words": 2}], {"data": "pairs.jsonl", "evaluation": {"fraction": 0.25}}
    rollouts = {**pooled, "prompts": prompts, "training": online}
    buying = {
        **pooled, "task": "iterative", "prompts": "prompts.jsonl", "oracle": {"kind": "lexicon", "path": "words.txt"},
        "labels": [8, 16, 24], "plan": {"steps": 2, "prompts": 3, "rollouts": 2}, "lora": {"r": 2}, "max_new_tokens": 3,
        "held_out": 6,
    }  # fmt: skip
    runs = {
        "preference": {**pooled, **rows, "training": TRAINING},
        "adapter": {**pooled, **rows, "training": TRAINING, "lora": {"r": 2, "target_modules": ["q_proj", "v_proj", "k_proj"]}},
        "reward": {"task": "reward", "model": "policy", **rows, "output": "OUT", "training": TRAINING},
        "online": {**rollouts, "task": "online", "rewards": [{"kind": "length", "target": 2}],
                   "method": {"name": "rloo", "group": 2}, "evaluation": {"prompts": prompts, "samples": 2}},
        "distill": {**rollouts, "task": "distill", "method": {"name": "reinforce", "group": 1}},
        "bilevel": {**buying, "method": {"name": "bilevel", "objective": "stop_gradient"}},
        "iterative": {**buying, "method": "online-dpo"},
        **{f"one-{name}": {**pooled, "references": [{"name": name, "model": name}], "data": "pairs.jsonl",
                           "training": {**TRAINING, "max_steps": 1}} for name in ("first", "second")},
    }  # fmt: skip
    for name, run in runs.items():
        (folder / f"{name}.yaml").write_text(json.dumps(run), encoding="utf-8")
    small = {"training": "offline", "weights": [0.5], "rules": ["exact"], "seeds": 2, "generated": {
        "betas": [1.0], "pairs": [64], "pairs_per_prompt": 2, "held_out": 6, "world": WORLD,
        "offline": {"steps": 4, "pairs_per_step": 16, "learning_rate": 3e-3}}}  # fmt: skip
    (folder / "frontier.yaml").write_text(json.dumps(small), encoding="utf-8")


def shrink_experiments() -> None:
    """`demo`, `real` and `stability --quick` as miniatures; real's pairs are of whatever its random model said."""
    from multiref.data import Pair
    from multiref_lab import stability
    from multiref_lab.demo import WorldSettings, settings
    from multiref_lab.demo.preferences import PairLaw
    from multiref_lab.real import run as real
    from multiref_lab.real import settings as of_real

    def any_two(asked: Any, draws: Any, *, most: int) -> list[Pair]:
        return [Pair(p.prompt, p.said(f"{said[0][0]} 1"), p.said(f"{said[1][0]} 2"), "here") for p, said in zip(asked, draws)]

    axes = stability.axes
    stability.axes = lambda *given, **named: axes(*given, **named)[:1]
    real.pair_up = any_two
    of_real.QUICK = dataclasses.replace(
        of_real.QUICK, rules=(of_real.EXACT, of_real.SINGLE, of_real.ONLINE), warm=2, taught=4, questions=6, draws=2,
        held_out=8, compared=4, few=2, pairs_per_step=4, max_new_tokens=6, steps=1, prompts_per_step=2, group=2,
    )  # fmt: skip
    settings.QUICK = dataclasses.replace(
        settings.QUICK, law=PairLaw(prompts=8, pairs_per_prompt=1), pairs_per_step=8, held_out_prompts=4, curve_points=1,
        world=WorldSettings(**WORLD),
    )  # fmt: skip


def _train(name: str) -> Callable[[Path], list[str]]:
    return lambda out: ["train", "--config", f"{name}.yaml", "--set", f"output={out}"]


POOL = ["-r", "first=first", "-r", "second=second"]
SCORE = ["score", "pairs.jsonl", *POOL, "--shard-size", "4"]
# verb → the command that writes into a folder
JOBS: dict[str, Callable[[Path], list[str]]] = {
    "score": lambda out: [*SCORE, "--store", f"{out}"],
    **{name: _train(name) for name in ("preference", "adapter", "reward", "online", "distill", "iterative", "bilevel")},
    "evaluate": lambda out: ["evaluate", "-p", "a=policy", "-p", "b=first", "--prompts", "prompts.jsonl", "-r", "length=3",
                             "-o", f"{out}", "--samples", "2", "--max-new-tokens", "3", "--batch", "1", "--resamples", "100"],
    "sweep": lambda out: ["sweep", "one-first", "one-second", "--prompts", "pairs.jsonl", "--out", f"{out}", "--samples", "1",
                          "--points", "3", "--max-new-tokens", "3", "--limit", "2"],
    "inspect": lambda out: ["inspect", "pairs.jsonl", "--store", "scores", "--html", f"{out}/inspect.html"],
    "export": lambda out: ["store", "export", "scores", f"{out}/scores.parquet"],
    "frontier": lambda out: ["frontier", "--config", "frontier.yaml", "--output", f"{out}", "--cache", "cache", "--workers",
                             "1"],
    "demo": lambda out: ["demo", "--quick", "--seeds", "1", "--output", f"{out}", "--cache", "cache"],
    "stability": lambda out: ["stability", "--out", f"{out}", "--world", "linear", "--quick", "--seeds", "1", "--workers",
                              "2"],
    "real": lambda out: ["real", "--quick", "--model", "chatty", "--workers", "1", "--output", f"{out}"],
    "decode": lambda out: ["decode", *POOL, "-p", "the cat", "-p", "a dog", "-n", "4", "--islands", "2", "--max-new-tokens",
                           "4", "-o", f"{out}/draws.jsonl"],
    "data": lambda out: ["data", "pairs.jsonl", "--model", "policy", "--html", f"{out}/data.html"],
    "init": lambda out: ["init", f"{out}/run.yaml", "--force", "--model", "policy", *POOL, "--data", "pairs.jsonl"],
    "prune": lambda out: ["store", "prune", f"{out}/scores", "--reference", "first", "--yes"],
    "bound": lambda out: ["bound", "reverse-kl-suboptimality", "--samples", "1e3", "--beta", "0.1", "--coverage", "4",
                          "--reward-max", "1", "--class-size", "20", "--plot", f"{out}/bound.png"],
    "serve": lambda out: ["serve", *POOL, "--port", "0"],
    "verify": lambda out: ["verify", "--out", f"{out}", "alpha-family-and-pool-order", "reverse-kl-optimum"],
}  # fmt: skip
# verb → what has to be there before it
NEEDS: dict[str, list[list[str]]] = {
    "sweep": [_train(f"one-{name}")(Path(f"one-{name}")) for name in ("first", "second")],
    **{verb: [[*SCORE, "--store", "scores"]] for verb in ("inspect", "export", "prune")},
}
AGAIN = {"prune": 2}  # an exit code that is right, too, when it is run again: a reference that is gone has no name
# verb → what lies in its folder before it
BEFORE: dict[str, Callable[[Path], object]] = {"prune": lambda out: shutil.copytree("scores", out / "scores")}


def ask_server(out: Path, stdout: Path) -> None:
    """What goes on beside `serve`: three questions, one after another, each line of an answer kept as it comes; then the server
    is asked to end."""
    while not (found := re.search(r"http://\S+", stdout.read_text())):
        time.sleep(0.05)
    with contextlib.suppress(OSError), open(out / "answers", "w", encoding="utf-8") as answers:  # it may be gone
        for seed in range(3):
            body = {"model": "multiref", "prompt": "the cat", "max_tokens": 4, "seed": seed, "stream": seed > 0}
            asked = urllib.request.Request(f"{found[0]}/completions", json.dumps(body).encode())
            asked.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(asked, timeout=60) as answer:
                for number, line in enumerate(answer):
                    (out / f"{seed}-{number}").touch()  # a moment at which a kill may come
                    answers.write(re.sub(r'"(id|created)": ?("[^"]*"|\d+)', "", line.decode()))
    os.kill(os.getpid(), signal.SIGTERM)


# verb → what another thread of its process does, with its folder and the file of its output; a verb that then ends by SIGTERM
BESIDE: dict[str, Callable[[Path, Path], None]] = {"serve": ask_server}


def _lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
