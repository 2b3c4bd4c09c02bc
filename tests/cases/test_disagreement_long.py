"""−log F where it sits on completions that end early: estimates once wrong by 3 to 6 nats, with an error of 0.2."""

import copy
import math

import pytest
import torch

from multiref.models import Tabular, load, tabular_tokenizer
from multiref.training.online import estimate_disagreement
from multiref.training.online.backward_induction import levels_of

LENGTH, W = 8, (0.3, 0.7)


def truth_of(tables):
    """−log F by recursion over the pool's rows, y0 being the end: what is below an end counts as 1."""
    levels = [torch.stack(level).double() for level in zip(*(levels_of(table.table.detach()[0], 3) for table in tables))]
    mass = torch.ones(3**LENGTH, dtype=torch.float64)
    for level in reversed(levels):
        after = mass.view(-1, 3).clone()
        after[:, 0] = 1
        mass = ((W[0] * level[0] + W[1] * level[1]).exp() * after).sum(-1)
    return -math.log(float(mass))


@pytest.fixture(scope="module")
def opposed():
    """Two tables over {end, a, b}: one writes a, the other b, and both end in about one step of 500."""
    vary, tables = torch.Generator().manual_seed(0), []
    for likely in (1, 2):
        row = torch.tensor([0.002, 0.05, 0.05]).index_fill(0, torch.tensor([likely]), 0.948).log()
        tables.append(table := Tabular(3, LENGTH, 1))
        with torch.no_grad():
            table.table.copy_(row + 0.3 * torch.randn(table.table.shape, generator=vary))
    tokenizer = tabular_tokenizer(tables[0])
    tokenizer.eos_token = "y0"
    return tables, tokenizer


def test_rare_ends_against_enumeration(opposed):
    """Over 40 seeds the estimates are right within their errors, and the errors are as large as the scatter."""
    tables, tokenizer = opposed
    truth = truth_of(tables)
    found = torch.tensor(
        [
            estimate_disagreement(tables, tokenizer, "x0", new_tokens=LENGTH, weights=W, particles=64, seed=seed)
            for seed in range(40)
        ],
        dtype=torch.float64,
    )
    off, error = found[:, 0] - truth, found[:, 1]
    assert truth > 2 and float(off.abs().max()) < 0.3 and float(error.mean()) < 0.15
    assert 0.6 < float(off.square().mean().sqrt() / error.square().mean().sqrt()) < 1.5
    assert abs(float(off.mean())) < 3 * float(error.square().mean().sqrt()) / 40**0.5


def test_what_one_reference_forbids(opposed):
    """Probability zero after some prefixes: particles that cannot go on weigh nothing, and nothing is NaN."""
    tables, tokenizer = opposed
    forbidding = copy.deepcopy(tables[0])
    with torch.no_grad():
        forbidding.table[:, 0, 1] = -math.inf  # what begins with a
        forbidding.table[:, 3, 1:] = -math.inf  # what goes on after b but by an end
    value, error = estimate_disagreement([forbidding, tables[1]], tokenizer, "x0", new_tokens=LENGTH, weights=W, particles=64)
    assert value == pytest.approx(truth_of([forbidding, tables[1]]), abs=1e-9) and error < 1e-9  # one end each: all counted
    assert estimate_disagreement(tables, tokenizer, "x0", new_tokens=LENGTH, weights=(0, 1)) == (0.0, 0.0)


@pytest.mark.shared
def test_two_specialists_at_32_tokens(shared):
    """Against another program with other draws (the end branch of docs/theory.md 6): 8 islands of 256, 11.38 ± 0.02."""
    models = [load(shared / "models" / name, device="cpu") for name in ("stories260K-gsm8k", "stories260K-shakespeare")]
    value, error = estimate_disagreement(
        [each.model for each in models],
        models[0].tokenizer,
        "A robe takes 2 bolts of blue",
        new_tokens=32,
        weights=(0.5, 0.5),
        particles=256,
    )
    assert abs(value - 11.38) < 0.3 and error < 0.15
