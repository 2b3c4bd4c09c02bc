"""Generated scores where the right answer is known: token-level log-probabilities of references that read the same texts.

A text has a difficulty that every sound reference feels; a pair has a hidden quality difference;
a useful reference's margin follows a part of it. Preferences are drawn from σ of the whole.
"""

import numpy as np
import torch

from multiref.data import Pair
from multiref.references.scores import SequenceScores, content_keys

PROMPT, BATCH = (30, 260), 32


def world(kind, seed, count=800):
    """→ (pairs, scores, names that should be used, names that are broken). Kinds: one, two, padded, none."""
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 90, (count, 1)) + random.integers(0, 4, (count, 2))
    difficulty = random.normal(2.5, 0.4, (count, 1)).clip(1, None) + random.normal(0, 0.05, (count, 2))
    parts = random.normal(0, 1, (2, count))  # two independent things that people may care about
    reward = {"one": 1.5 * parts[0], "two": 1.4 * (parts[0] + parts[1]), "padded": 1.5 * parts[0], "none": 0 * parts[0]}[kind]
    flipped = random.random(count) > 1 / (1 + np.exp(-reward))
    opinions = {
        "one": {"good": parts[0], "plain": None, "other": None},
        "two": {"first": parts[0], "second": parts[1], "other": None},
        "padded": {"good": parts[0], "padded": parts[0], "plain": None},
        "none": {"first": parts[0], "second": parts[1], "third": None},
    }[kind]
    logps = np.stack([_score(name, opinion, lengths, difficulty, random) for name, opinion in opinions.items()])
    pairs, order = [], np.stack([flipped.astype(int), 1 - flipped.astype(int)], axis=1)
    for n in range(count):
        sides = [f"completion {n} {side} " + "x" * int(4 * lengths[n, side]) for side in order[n]]
        pairs.append(Pair(f"prompt {n}", *sides))
    ranked = np.take_along_axis(logps, order[None], axis=2)
    ranked_lengths = np.broadcast_to(np.take_along_axis(lengths, order, axis=1)[None], ranked.shape)
    keys = content_keys([p.prompt for p in pairs for _ in range(2)], [side for p in pairs for side in (p.chosen, p.rejected)])
    flat = (len(opinions), 2 * count)
    scores = SequenceScores(
        tuple(opinions), keys, torch.from_numpy(ranked.reshape(flat).copy()),
            torch.from_numpy(ranked_lengths.reshape(flat).copy()),
        torch.zeros(flat, dtype=torch.bool),
    )  # fmt: skip
    return pairs, scores, *ANSWERS[kind]


ANSWERS = {
    "one": ({"good"}, set()),
    "two": ({"first", "second"}, set()),
    "padded": ({"good"}, {"padded"}),
    "none": (set(), set()),
}


def _score(name, opinion, lengths, difficulty, random):
    """Sums over completions [count, 2]. An opinion moves the first completion's sum up and the second's down."""
    sums = np.zeros(lengths.shape)
    rows = []
    for n in range(len(lengths)):
        prompt = random.gamma(1.0, 2.0, random.integers(*PROMPT))
        for side in range(2):
            tokens = random.gamma(1.0, difficulty[n, side], lengths[n, side]) + random.normal(0, 0.05)
            sums[n, side] = (
                -tokens.sum() / 4 - 0.75 * difficulty[n, side] * lengths[n, side]
            )  # mostly the text's own difficulty
            if opinion is not None:
                sums[n, side] += (5.0 if side == 0 else -5.0) * opinion[n]
            rows.append((prompt, -sums[n, side] * tokens / tokens.sum()))
    return sums if name != "padded" else _left_padded(rows, random).reshape(lengths.shape)


def _left_padded(rows, random):
    """What a scorer for right-padded rows reads when the tokenizer pads on the left: positions [prompt :
    total] of a row that was shifted
    by its padding. It sees padding (which no model expects), the prompt, and what is left of the completion."""
    sums = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(len(prompt) + len(completion) for prompt, completion in batch)
        for prompt, completion in batch:
            total = len(prompt) + len(completion)
            padding = random.gamma(20.0, 0.6, width - total)
            row = np.concatenate([padding, prompt, completion])
            sums.append(-row[len(prompt) : total].sum())
    return np.array(sums)
