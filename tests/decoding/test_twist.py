"""A twist leads particles and changes no expectation; across vocabularies one reference proposes and the others score its
text."""

import math
from itertools import pairwise, product

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import multiref as mr
from multiref.decoding import sample
from multiref.errors import ArgumentError
from multiref.models import LanguageModel, Tabular
from tests.decoding.worlds import LENGTH, Truth, W, logps, references, tables, tokenizer_of

RULE = mr.ReverseKL(W)


def spelled(prompts, completions):
    """1 for each b (y2) at the beginning, 4 at most: what pays is seen before it is whole."""
    return [next((i for i in range(4) if text[2 * i : 2 * i + 2] != "y2"), 4) / 4 for text in completions]


def test_a_good_guess_sharpens_the_estimate_and_moves_no_mean():
    """β = 0.1: Ẑ/Z has mean 1 with and without the twist (4.5 errors over 1,500 islands of 4), and E log Ẑ is nearer to log Z
    with it by ten standard errors."""
    made, beta = tables(), 0.1
    truth = Truth(made)
    log_z = float((truth.log_pool + torch.tensor(spelled([], texts(truth))) / beta).logsumexp(0))
    found = {}
    for twist in (None, spelled):
        (draws,) = sample(
            ["x0"], references(made), RULE, spelled, beta, n=4, islands=1500, max_new_tokens=LENGTH, twist=twist, seed=2
        )
        ratio = (draws.log_islands - log_z).exp()
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 1500**0.5
        found[twist] = draws.log_islands.clamp_min(log_z - 30)
    gain = float(found[spelled].mean() - found[None].mean())
    assert gain > 10 * float((found[spelled].var() + found[None].var()) / 1500) ** 0.5


def texts(truth):
    return ["".join(f"y{token}" for token in ids if token) for ids in truth.ids]


@pytest.mark.parametrize(
    ("twist", "message"),
    [(lambda prompts, completions: [math.nan] * len(completions), "twist: nan"),
     (lambda prompts, completions: [-math.inf] * len(completions), "found −∞"),
     (lambda prompts, completions: [0.0], "twist: returned 1 numbers")],
    ids=["nan", "nothing", "short"],
)  # fmt: skip
def test_guesses_that_are_none(twist, message):
    with pytest.raises(ArgumentError, match=message):
        sample(["x0"], references(tables()), RULE, spelled, 0.5, n=8, islands=2, max_new_tokens=LENGTH, twist=twist)


def test_a_twist_is_of_particles():
    with pytest.raises(ArgumentError, match=r"twist.*'smc'"):
        sample(["x0"], references(tables()), RULE, method="importance", twist=spelled)


def two_spellings(length):
    """A table over {end, a, b, ab}: "ab" can be written with one token or with two; its tokenizer writes one."""
    words = ["y0", "y1", "y2", "y1y2", "x0", "<pad>"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"y1y2|[xy]\d"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="x0", pad_token="<pad>", unk_token="<pad>", eos_token="y0", model_max_length=64
    )
    table = Tabular(4, length, 1)
    with torch.no_grad():
        table.table.copy_(torch.randn(table.table.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
        table.table[..., 0] -= 2.0  # ends are rare: long texts have many spellings
        table.table[..., 1:3] += 1.0
    return LanguageModel(table, tokenizer, "own")


def own_logps(table, ids):
    row, total = 0, 0.0
    for token in ids:
        total += float(table.table[0, row].detach().log_softmax(-1)[token])
        row = 4 * row + 1 + token
    return total


@pytest.mark.parametrize("method", ["smc", "importance"])
def test_across_vocabularies_each_text_counts_once(method, monkeypatch):
    """log Ẑ is that of canonical spellings alone, by enumeration, within 4.5 errors; counted with every spelling it would be
    higher by 0.2 and more. Segments of two tokens, so that the text so far is scored on the way."""
    monkeypatch.setattr("multiref.decoding.methods.SEGMENT", 2)
    length = 3
    own = two_spellings(length)
    (foreign,) = tables(seed=7, length=2 * length)[:1]
    refs = {"own": own, "foreign": LanguageModel(foreign, tokenizer_of(foreign), "foreign")}
    rows = [*[(*p, 0) for t in range(length) for p in product((1, 2, 3), repeat=t)], *product((1, 2, 3), repeat=length)]
    weights, masses = (0.8, 0.2), {True: [], False: []}
    for ids in rows:
        letters = [v for token in ids for v in ((1, 2) if token == 3 else (token,))]
        canonical = not any(pair == (1, 2) for pair in pairwise(ids))
        masses[canonical].append(weights[0] * own_logps(own.model, ids) + weights[1] * logps(foreign, letters))
    right = float(torch.tensor(masses[True]).logsumexp(0))
    assert float(torch.tensor(masses[True] + masses[False]).logsumexp(0)) > right + 0.2
    (found,) = sample(
        ["x0"], refs, mr.ReverseKL(weights), method=method, proposal="own", n=50, islands=10, max_new_tokens=length, seed=3
    )
    assert abs(found.log_partition - right) < 4.5 * found.error < 0.2 and 0 < found.not_canonical < 0.8
    assert all(not any(pair == (1, 2) for pair in pairwise(ids)) for ids, w in zip(found.ids, found.weights) if w > 0)
