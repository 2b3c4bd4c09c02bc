"""Two tables over {end, a, b} whose completions can all be listed: 31 of at most 4 tokens, cut ones included."""

import math
from itertools import product

import torch

from multiref.models import LanguageModel, Tabular, tabular_tokenizer

W, LENGTH = (0.4, 0.6), 4
BETA = 0.5


def tables(spread=1.0, seed=0, length=LENGTH, prompts=1):
    generator = torch.Generator().manual_seed(seed)
    made = [Tabular(3, length, prompts) for _ in range(2)]
    for table in made:
        with torch.no_grad():
            table.table.copy_(spread * torch.randn(table.table.shape, generator=generator, dtype=torch.float64))
    return made


def tokenizer_of(table):
    tokenizer = tabular_tokenizer(table)
    tokenizer.eos_token = "y0"
    return tokenizer


def references(made):
    return {name: LanguageModel(table, tokenizer_of(table), name) for name, table in zip("pq", made)}


def completions(length=LENGTH, shortest=0):
    """Token ids: all that end with 0 after at least `shortest` others, and all that are cut."""
    ended = [(*row, 0) for t in range(shortest, length) for row in product((1, 2), repeat=t)]
    return [*ended, *product((1, 2), repeat=length)]


def logps(table, ids):
    """log π of a completion, row by row of the table."""
    row, total = 0, 0.0
    for token in ids:
        total += float(table.table[0, row].detach().log_softmax(-1)[token])
        row = 3 * row + 1 + token
    return total


def reward(prompts, completions):
    """Of texts: their share of a (y1), 0 of nothing."""
    return [text.count("y1") / max(text.count("y1") + text.count("y2"), 1) for text in completions]


def text_of(ids):
    return "".join(f"y{token}" for token in ids)


class Truth:
    """log γ(y) = log P_0(y) + r(y)/β of every completion, by brute force."""

    def __init__(self, made, *, beta=BETA, rewarded=True, shortest=0, weights=W, length=LENGTH):
        self.ids = completions(length, shortest)
        self.each = torch.tensor([[logps(table, ids) for ids in self.ids] for table in made], dtype=torch.float64)
        self.log_pool = sum(w * row for w, row in zip(weights, self.each))
        self.rewards = torch.tensor(reward([], [text_of(ids) for ids in self.ids]), dtype=torch.float64)
        self.log_target = self.log_pool + (self.rewards / beta if rewarded else 0.0)
        self.log_partition = float(self.log_target.logsumexp(0))
        self.policy = self.log_target.softmax(0)

    def histogram(self, draws):
        """[Y]: the weight of each completion among draws."""
        place = {ids: i for i, ids in enumerate(self.ids)}
        found = torch.zeros(len(self.ids), dtype=torch.float64)
        for ids, weight in zip(draws.ids, draws.weights.tolist()):
            found[place[ids]] += weight
        return found


def total_variation(p, q):
    return float((p - q).abs().sum()) / 2


def log_mean(values):
    return float(values.logsumexp(0)) - math.log(len(values))
