"""Particles: what they file is unbiased completion by completion, and bounded where it is said to be."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiref.decoding.bench import Bench
from multiref.decoding.request import Budget, Request
from multiref.decoding.streaming import draw_tokens, open_pool
from multiref.errors import ModelError
from multiref.models import sampling
from multiref.models.descent import descend
from multiref.models.draws import draw_one
from multiref.models.lockstep import Lockstep
from multiref.models.particles import walk
from multiref.models.sampling import Reader
from multiref.models.spec import Generation
from multiref.regularizers import AlphaDivergence, ReverseKL
from multiref.weighting.particles import effective_size, resample, thin
from tests.conftest import make_llama
from tests.decoding.worlds import BETA, LENGTH, Truth, W, references, reward, tables, text_of


def walked(made, islands, n, *, flat=0.5, resampling="adaptive", shortest=0, seed=0, twist=None):
    return walk(
        made,
        (3,),
        torch.tensor(W, dtype=torch.float64),
        ends=(0,),
        generation=Generation(LENGTH, min_new_tokens=shortest),
        particles=(islands, n),
        generator=torch.Generator().manual_seed(seed),
        flat=flat,
        resampling=resampling,
        twist=twist,
    )


def partial(rows):
    """A twist of 1 nat for every a (token 1) so far, that is only asked about even numbers of tokens."""
    return None if len(rows[0]) % 2 else torch.tensor([1.0 * row.count(1) for row in rows])


@pytest.mark.parametrize("flat", [0.5, 0.0], ids=["flat", "pool"])
@pytest.mark.parametrize(
    ("resampling", "twist"),
    [("never", None), ("adaptive", None), ("always", None), ("adaptive", partial), ("always", partial)],
    ids=["never", "adaptive", "always", "adaptive-twist", "always-twist"],
)
def test_every_completion_is_filed_without_bias(resampling, twist, flat):
    """Over 1,000 islands of 4 particles each completion's mean mass is γ(y): 31 z-scores, and Ẑ after thinning to 4 with a
    reward, all within 4.5. A completion's z is 0 where its mass is the same in every island. A twist changes none of it."""
    made = tables()
    truth, islands, n = Truth(made), 1000, 4
    filed = walked(made, islands, n, flat=flat, resampling=resampling, twist=twist)
    mass = filed.log_mass.exp().permute(1, 0, 2).reshape(islands, -1) / n
    stages = len(filed.log_mass)
    entries = [(stage, island * n + j) for island in range(islands) for stage in range(stages) for j in range(n)]
    place = {ids: i for i, ids in enumerate(truth.ids)}
    at = torch.tensor([place.get(ids, len(place)) for ids, _, _ in filed.paths(entries)]).view(islands, -1)
    each = torch.zeros(islands, len(place) + 1, dtype=torch.float64).scatter_add_(1, at, mass)
    assert float(each[:, -1].sum()) == 0  # what is no completion has no mass
    z = (each[:, :-1].mean(0) - truth.log_pool.exp()) / (each[:, :-1].std(0) / islands**0.5).clamp_min(1e-12)
    assert float(z.abs().max()) < 4.5 and float(z.std()) < 1.6
    kept = thin(mass.log(), n, torch.Generator().manual_seed(1)).exp()
    tilt = torch.tensor([*reward([], [text_of(ids) for ids in truth.ids]), 0.0], dtype=torch.float64).div(BETA).exp()
    estimates = (kept * tilt[at]).sum(-1)
    assert abs(float(estimates.mean()) - math.exp(truth.log_partition)) < 4 * float(estimates.std()) / islands**0.5


def test_the_pools_islands_never_exceed_one():
    """With the pool as proposal an island's estimate of F is in [0, 1], resampled or not; with the flat one it is not
    (two tables that agree: F = 1, and the pool's island is 1 exactly)."""
    made = tables()[:1] * 2
    for resampling in ("never", "adaptive", "always"):
        assert float(walked(made, 400, 2, flat=0.0, resampling=resampling).log_estimates.max()) <= 1e-12
    assert float(walked(made, 400, 2).log_estimates.max()) > 0.05


class Waits(TorchDispatchMode):
    """Counts what a host would wait for on an accelerator: values that are read, and shapes that depend on them. (In inference
    mode `bool` comes as is_nonzero and `float` as item.)"""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.name().partition(".")[0].removeprefix("aten::")
        masks = [each for each in args[1] if each is not None] if name in ("index", "index_put_") else []
        self.count += name in ("_local_scalar_dense", "is_nonzero", "item", "equal", "multinomial", "nonzero", "masked_select")
        self.count += any(each.dtype == torch.bool for each in masks)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "kind",
    ["walk", "pool", "pool of order 1", "pool of order 0.01", "mixture", "stream", "stream of order 1", "sample", "padded"],
)
def test_a_token_waits_for_no_accelerator(kind, monkeypatch):
    """Sixteen more tokens of two models: what has to be asked is asked at every eighth."""
    for one in (Lockstep, Reader):
        monkeypatch.setattr(one, "patience", property(lambda self: 8, lambda self, value: None), raising=False)
    models, w = [make_llama(24, seed=seed, std=0.02) for seed in (0, 1)], torch.tensor(W, dtype=torch.float64)
    found, order = [], float(kind.partition(" of order ")[2] or 0)
    for tokens in (9, 25):
        length, generator = Generation(tokens), torch.Generator().manual_seed(0)
        given = {"ends": (0,), "generation": length, "generator": generator}
        with Waits() as waits:
            if kind == "walk":
                walk(models, (3,), w, particles=(2, 3), **given)
            elif kind in ("sample", "padded"):
                second = (4, 5) if kind == "padded" else (4,)
                sampling._draw(Reader(models[0], [(3,), second], 3, length, 0), length, (0,), 0, generator)
            elif kind.startswith("stream"):
                scorer = SimpleNamespace(check_context=lambda contexts, new: None)
                rule = AlphaDivergence(W, alpha=1 - order)
                request = Request(rule, None, 1.0, "token", "pool", 1, 1, length, False, None, Budget(), 0)
                bench = Bench(request, scorer, None, models, w, w, (0,), None)
                assert len(list(draw_tokens(bench, (3,), replace(length, top_k=5), rows=6, generator=generator, top=2))) > 8
            else:
                descend(models, (3,), w, rows=6, pooled=kind.startswith("pool"), order=order, weighed=w > 0, **given)
        found.append(waits.count)
    assert found[1] - found[0] < 12, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_has_its_probability(dtype, monkeypatch):
    """Counts of 400,000 draws, each within five of its standard deviations; and what has no probability is not drawn, whatever
    the uniform number."""
    p = torch.tensor([0.0, 0.3, 0.0, 1e-3, 0.499, 0.2, 0.0], dtype=dtype)
    n = 400_000
    counts = draw_one(p.expand(n, -1), torch.Generator().manual_seed(2))[:, 0].bincount(minlength=7)
    assert bool(((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()), counts
    for uniform, token in ((0.0, 1), (1 - 2.0**-53, 5)):
        monkeypatch.setattr(torch, "rand", lambda shape, u=uniform, **like: torch.full(shape, u, dtype=torch.float64))
        assert int(draw_one(p, torch.Generator())) == token
    assert draw_one(torch.tensor([[0.0, 0.0], [math.nan, 1.0]], dtype=dtype), torch.Generator()).tolist() == [[0], [0]]


def test_what_has_no_probability_at_the_end_is_never_drawn(monkeypatch):
    """The largest uniform number there is, 1 − 2^-53, under 40,000 totals, powers of two among them: u · total is below the
    total, so that a last entry without a probability is out of reach."""
    mantissas = torch.linspace(1, 2, 20_000, dtype=torch.float64)
    totals = torch.cat([mantissas, mantissas.nextafter(torch.tensor(3.0).double()), 2.0 ** torch.arange(-200.0, 200).double()])
    most = torch.full((len(totals), 1), 1 - 2.0**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **like: most)
    rows = totals[:, None] * torch.tensor([0.0, 0.25, 0.75, 0.0, 0.0]).double()
    assert draw_one(rows, torch.Generator()).unique().tolist() == [2]


def test_logits_that_are_no_numbers_are_said():
    made = tables()
    with torch.no_grad():
        made[0].table[0, 2] = math.nan
    with pytest.raises(ModelError, match="logits are NaN"):
        walked(made, 2, 3)
    for order in (0.0, 1.0):
        with pytest.raises(ModelError, match="logits are NaN"):
            descend(
                made, (3,), torch.tensor(W), ends=(0,), generation=Generation(LENGTH), rows=40,
                generator=torch.Generator().manual_seed(0), pooled=True, order=order,
            )  # fmt: skip
    with open_pool(references(made), ReverseKL(W)) as bench, pytest.raises(ModelError, match="logits are NaN"):
        list(draw_tokens(bench, (3,), Generation(LENGTH), rows=40, generator=bench.generator(0)))


def test_min_new_tokens_files_nothing_before():
    filed = walked(tables(), 2, 3, shortest=2)
    assert bool((filed.log_mass[:2] == -torch.inf).all()) and bool((filed.log_mass[2:] > -torch.inf).all())


def test_resampling_keeps_an_islands_sum_and_every_expectation():
    """Systematic: each particle has ⌊n p⌋ or ⌈n p⌉ offspring, n p on average over 4,000 islands."""
    log_w = torch.tensor([0.5, 0.25, 0.2, 0.05, 0.0], dtype=torch.float64).log().expand(4000, -1)
    parents, new = resample(log_w, torch.ones(4000, dtype=torch.bool), torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(parents, 5).sum(1).double()
    expected = 5 * log_w[0].exp()
    assert bool((counts >= expected.floor()).all()) and bool((counts <= expected.ceil()).all())
    torch.testing.assert_close(counts.mean(0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(new.logsumexp(-1), log_w.logsumexp(-1))
    same, left = resample(log_w, torch.zeros(4000, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert torch.equal(same[0], torch.arange(5)) and torch.equal(left, log_w)
    dead = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    assert torch.equal(resample(dead, torch.ones(1, dtype=torch.bool), torch.Generator())[0][0], torch.arange(3))
    assert float(effective_size(dead)) == 0 and float(effective_size(torch.zeros(7))) == pytest.approx(7)
    assert float(effective_size(torch.full((7,), -1e4))) == pytest.approx(7)  # float32, whose steps there are a thousandth


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_thinning_keeps_sums_and_expectations(keep):
    """E w' = w entry by entry (z < 4.5 over 4,000 islands), at most `keep` survive, the sum stays; few entries all stay."""
    w = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.05, 0.0], dtype=torch.float64)
    kept = thin(w.log().expand(4000, -1), keep, torch.Generator().manual_seed(3)).exp()
    assert int((kept > 0).sum(-1).max()) <= keep and float(kept[:, 5].max()) == 0
    torch.testing.assert_close(kept.sum(-1), torch.ones(4000, dtype=torch.float64))
    spread = kept.std(0).clamp_min(1e-9) / 4000**0.5
    assert float(((kept.mean(0) - w) / spread).abs().max()) < 4.5
    if keep > 1:
        assert bool((kept[:, 0] == w[0]).all())  # what is heavy keeps its weight exactly
    assert torch.equal(thin(w.log()[None], 5, torch.Generator()), w.log()[None])
