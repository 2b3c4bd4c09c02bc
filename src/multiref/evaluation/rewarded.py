"""Completions of a policy on prompts, with their rewards, kept on disk block by block, so that a killed evaluation goes on
where it was."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref._files import read_lines
from multiref._json import parse_json
from multiref._progress import part_of, tell
from multiref._sealed import is_sealed, seal
from multiref.errors import ArgumentError, MultirefError, OutputError
from multiref.evaluation.contestants import Contestant, RewardFunction, draw_each
from multiref.models.loading import LanguageModel
from multiref.models.sampling import Rollout, sample
from multiref.models.spec import Generation
from multiref.training.checks import digest_of, stated
from multiref.training.online.rewards import Reward, columns_of, named_by, reward_rollouts, total_reward


def sample_rewards(
    policy: LanguageModel | Contestant,
    rows: Sequence[Mapping[str, Any]],
    rewards: Sequence[Reward],
    generation: Generation,
    *,
    samples: int,
    seed: int = 0,
    block: int = 8,
    store: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Tensor]:
    """{reward's name: [P, samples] float64, "total": their weighted sum}.

    Args:
        rows: with `prompt` and whatever columns the rewards read; they are also given `ended` (whether a completion is
            whole) and `completion_ids`.
        block: prompts sampled side by side. Each block has its own seed, (seed, its place), so a resumed evaluation is the one
            that was not interrupted.
        store: a file of one JSON line a prompt (completions, rewards; their ids, for `read_rollouts`), appended to; what it
            holds is not sampled again.

    Errors: OutputError for a file of other prompts, columns, rewards or settings; whose draws they are it does not know.
    """
    asked = [digest_of([stated((seed, block, generation, columns_of([row], 1)))]) for row in rows]
    done = _read(store, rows, samples, [reward.name for reward in rewards], asked)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        if len(done) >= start + len(part):
            continue
        tell("sampling", start, len(rows))
        own = seed * 1_000_003 + start
        if isinstance(policy, LanguageModel):
            prompts, generator = [row["prompt"] for row in part], torch.Generator().manual_seed(own)
            rollouts = sample(policy.model, policy.tokenizer, prompts, generation, group=samples, generator=generator)
        else:
            with part_of("sampling", start, len(rows)):
                rollouts = draw_each(
                    policy, [row["prompt"] for row in part], [reward_of_row(row, rewards) for row in part], generation,
                    group=samples, seed=own,
                )  # fmt: skip
        del done[start:]  # a block is whole or not there
        done += [seal(line | {"asked": own}) for line, own in zip(_rewarded(part, rollouts, rewards, samples), asked[start:])]
        _write(store, done[start:], start)
        tell("sampling", min(start + block, len(rows)), len(rows))
        say(f"{min(start + block, len(rows))}/{len(rows)} prompts")
    names = [*(reward.name for reward in rewards), "total"]
    return {name: torch.tensor([line["rewards"][name] for line in done[: len(rows)]], dtype=torch.float64) for name in names}


def reward_of_row(row: Mapping[str, Any], rewards: Sequence[Reward]) -> RewardFunction:
    """The sum of the rewards as a function of completions of this row's prompt: of their texts, by which best-of-n and the
    optimum choose. ArgumentError for a reward that reads `ended` or `completion_ids`."""

    def total(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        if blind := [each.name for each in rewards if {"ended", "completion_ids"} & (named_by(each.function) or {}).keys()]:
            raise ArgumentError(
                f"rewards: {blind[0]!r} reads `ended` or `completion_ids`, and best-of-n and the optimum choose by the text "
                "alone: they would be of another reward than the one that is measured. Leave them out, or judge by the text."
            )
        found: list[float] = total_reward(rewards, prompts, completions, columns_of([row], len(completions)))[0].tolist()
        return found

    return total


def _rewarded(
    rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout], rewards: Sequence[Reward], samples: int
) -> list[dict[str, Any]]:
    total, each = reward_rollouts(rewards, rows, rollouts, samples)
    lines = []
    for i, rollout in enumerate(rollouts):
        here = slice(i * samples, (i + 1) * samples)
        values = {name: found[here].tolist() for name, found in {**each, "total": total}.items()}
        lines.append({**vars(rollout), "rewards": values})
    return lines


def read_rollouts(store: str | Path) -> list[Rollout]:
    """What `sample_rewards` drew and kept in this file, with its token ids and their log-probabilities. OutputError for a line
    that has changed since, or has no ids (of an earlier version)."""
    rollouts = []
    for number, text in read_lines(Path(store), "samples that `sample_rewards` kept", error=OutputError):
        line = parse_json(text, f"{store}:{number}", error=OutputError, constants=True)
        if not is_sealed(line):
            raise OutputError(f"{store}:{number}: expected a sample with its ids and its sum; remove the file, and draw again.")
        rollouts.append(Rollout(*(_frozen(line[each.name]) for each in fields(Rollout))))
    if not rollouts:
        raise OutputError(f"{store} is empty; expected samples that `sample_rewards` kept. Remove the file, and draw again.")
    return rollouts


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _read(
    store: Path | None, rows: Sequence[Mapping[str, Any]], samples: int, names: Sequence[str], asked: Sequence[str]
) -> list[dict[str, Any]]:
    """What is there, up to a line that was cut short or has changed since it was written."""
    if store is None or not store.exists():
        return []
    done: list[dict[str, Any]] = []
    others = OutputError(f"{store} holds samples of other settings; choose another folder, or remove it.")
    lines = read_lines(store, "samples that `multiref evaluate` kept", error=OutputError)
    for (number, text), row, own in zip(lines, rows, asked):
        try:
            found = parse_json(text, f"{store}:{number}", constants=True)
        except MultirefError:
            break
        if not is_sealed(found):
            break
        rewards = found["rewards"]
        ours = isinstance(rewards, dict) and rewards.keys() == {*names, "total"}
        ours = ours and all(len(values) == samples for values in rewards.values()) and found.get("asked") == own
        if not ours or found["prompt"] != json.loads(json.dumps(row["prompt"])):
            raise others
        done.append(found)
    return done


def _write(store: Path | None, lines: Sequence[Mapping[str, Any]], start: int) -> None:
    """A block is appended behind the first `start` lines; whatever a killed call left behind them is cut off first."""
    if store is None:
        return
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.open("r+b" if store.exists() else "w+b") as stream:
            for _ in range(start):
                stream.readline()
            stream.seek(stream.truncate(stream.tell()))
            stream.write(text.encode())
    except OSError as error:
        raise OutputError(
            f"{store}: cannot be written: {error.strerror or error}. Give a folder that can be written, or free some space."
        ) from None
