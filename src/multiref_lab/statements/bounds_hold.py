"""Every bound against the gap that it bounds, on random instances: does it hold, and how loose is it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from multiref import bounds, exact
from multiref.divergences import disagreement, kl
from multiref.pools import power_pool
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref_lab.claim import Check, Claim, Curve, Effort, Figure, Measurement, all_hold, exactly
from multiref_lab.estimators import finite_class_mle
from multiref_lab.preferences import sample_pairs
from multiref_lab.problems import Bandits, random_bandits, random_class, refined_class

__all__ = ["FORWARD_KL_BOUNDS", "REVERSE_KL_BOUNDS"]

_WEIGHTS, _CLASS_SIZE, _LAWS = (0.6, 0.4), 200, ("escort", "mixture", "uniform", "reference 0")


@dataclass(frozen=True)
class _Batch:
    """Instances that share β, the sampling law and n: what was measured on each [S], and what the bounds need."""

    problem: Bandits
    estimate: Tensor
    law_name: str
    beta: float
    samples: int

    @property
    def law(self) -> Tensor:
        return self.problem.law(self.law_name)

    @property
    def error(self) -> Tensor:
        return self.estimate - self.problem.reward


def _batches(instances: int, per_batch: int, seed: int) -> Iterator[_Batch]:
    """Random problems (one prompt, 8 completions, R = 1), classes and estimates, until `instances` are made."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(-(-instances // per_batch)):
        problem = random_bandits(per_batch, completions=8, weights=_WEIGHTS, spread=0.5 + 0.5 * (i % 3), generator=generator)
        samples = round(10 ** (2 + 3 * float(torch.rand((), generator=generator))))
        beta = 10 ** (-0.7 + float(torch.rand((), generator=generator)))
        if i % 2:
            candidates = random_class(problem.reward, _CLASS_SIZE, generator=generator)
        else:
            candidates = refined_class(problem.reward, _CLASS_SIZE, 8 / samples**0.5, generator=generator)
        law = _LAWS[i % len(_LAWS)]
        counts = sample_pairs(problem.reward, problem.law(law), samples, generator=generator)
        chosen = finite_class_mle(candidates, counts)
        yield _Batch(problem, candidates[torch.arange(per_batch), chosen], law, beta, samples)


def _given(batch: _Batch, **more: float) -> dict[str, float]:
    return {"samples": batch.samples, "reward_max": 1.0, "class_size": _CLASS_SIZE, **more}


def _reverse_pairs(batch: _Batch) -> dict[str, tuple[Tensor, list[float]]]:
    """Statement → gaps [S] and bounds, for reverse KL."""
    problem, beta, law, g = batch.problem, batch.beta, batch.law, batch.error
    pool = power_pool(problem.ref_logps, _WEIGHTS, order=0.0)
    best = exact.solve(problem.reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=beta)
    used = exact.solve(batch.estimate, problem.ref_logps, ReverseKL(_WEIGHTS), beta=beta)
    regularised = beta * kl(used.log_policy, best.log_policy)[:, 0]
    plain = ((best.policy - used.policy) * problem.reward).sum(-1)[:, 0].abs()
    cover = bounds.path_coverage(problem.reward, batch.estimate, pool, law, beta=beta)[:, 0].clamp_min(1).tolist()
    greedy = problem.reward.argmax(-1, keepdim=True)
    versus = (problem.reward.amax(-1) - (used.policy * problem.reward).sum(-1))[:, 0]
    escort_at = -(problem.law("escort").gather(-1, greedy))[:, 0, 0]
    variance = (law.exp() * g**2).sum(-1)[:, 0] - ((law.exp() * g).sum(-1)[:, 0]) ** 2
    found = {
        "Lemma M": (variance, [bounds.maximum_likelihood(**_given(batch)).value] * len(g)),
        "Theorem 5.2": (regularised, [bounds.reverse_kl_5_2(**_given(batch, beta=beta, coverage=c)).value for c in cover]),
        "R1": (regularised, [bounds.reverse_kl_suboptimality(**_given(batch, beta=beta, coverage=c)).value for c in cover]),
        "R2": (plain, [bounds.reverse_kl_plain_reward(**_given(batch, beta=beta, coverage=c)).value for c in cover]),
        "R3, greedy comparator": (
            versus,
            [
                bounds.reverse_kl_versus_comparator(**_given(batch, beta=beta, coverage=c, log_comparator=q)).value
                for c, q in zip(cover, escort_at.clamp_min(0).tolist())
            ],
        ),
    }
    if batch.law_name == "mixture":
        price = disagreement(problem.ref_logps, _WEIGHTS)[:, 0].tolist()
        found["1/F, pairs from the references"] = (
            regularised,
            [bounds.reverse_kl_from_references(**_given(batch, beta=beta, disagreement=d)).value for d in price],
        )
    return found


def _forward_pairs(batch: _Batch) -> dict[str, tuple[Tensor, list[float]]]:
    """The same for forward KL."""
    problem, beta, law = batch.problem, batch.beta, batch.law
    regularizer: Regularizer = ForwardKL(_WEIGHTS)
    best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=beta)
    used = exact.solve(batch.estimate, problem.ref_logps, regularizer, beta=beta)
    regularised = (best.value - exact.value(used.log_policy, problem.reward, problem.ref_logps, regularizer, beta=beta))[:, 0]
    both = torch.maximum(best.log_policy, used.log_policy)
    cover = bounds.coverage(both, law)[:, 0].clamp_min(1).tolist()
    own = bounds.coverage(both, problem.law("mixture"))[:, 0].clamp_min(1).tolist()
    sampling = bounds.coverage(problem.law("mixture"), law)[:, 0].clamp_min(1).tolist()
    top = torch.zeros_like(law).scatter_(-1, problem.reward.argmax(-1, keepdim=True), 1.0)
    q = (0.5 * top + 0.5 * problem.law("mixture").exp()).log()
    versus = ((q.exp() - used.policy) * problem.reward).sum(-1)[:, 0]
    q_cover = bounds.coverage(torch.maximum(q, used.log_policy), law)[:, 0].clamp_min(1).tolist()
    q_price = kl(problem.law("mixture"), q)[:, 0].clamp_min(0).tolist()
    return {
        "Theorem 6.2": (regularised, [bounds.forward_kl_6_2(**_given(batch, coverage=c)).value for c in cover]),
        "F1": (regularised, [bounds.forward_kl_slow(**_given(batch, coverage=c)).value for c in cover]),
        "F1, half-greedy comparator": (
            versus,
            [
                bounds.forward_kl_versus_comparator(**_given(batch, beta=beta, coverage=c, comparator_kl=d)).value
                for c, d in zip(q_cover, q_price)
            ],
        ),
        "F2": (
            regularised,
            [
                bounds.forward_kl_fast(**_given(batch, beta=beta, coverage=c, sampling_coverage=m)).value
                for c, m in zip(own, sampling)
            ],
        ),
    }


def _measure(effort: Effort, pairs: Callable[[_Batch], dict], axis: str) -> Measurement:
    instances, per_batch = effort.choose((300, 25), (10_000, 100))
    ratios: dict[str, list[Tensor]] = {}
    sizes: dict[str, list[Tensor]] = {}
    for batch in _batches(instances, per_batch, seed=31):
        for name, (gap, bound) in pairs(batch).items():
            ratios.setdefault(name, []).append(gap.clamp_min(0) / torch.tensor(bound, dtype=torch.float64))
            sizes.setdefault(name, []).append(torch.full_like(gap, float(batch.samples)))
    checks: list[Check] = []
    curves: list[Curve] = []
    for name, parts in ratios.items():
        tightness, n = torch.cat(parts), torch.cat(sizes[name])
        checks.append(exactly(f"{name}: violations in {len(tightness)}", 0, float((tightness > 1 + 1e-9).sum())))
        positive = tightness > 1e-13
        looseness = float((1 / tightness[positive]).median()) if bool(positive.any()) else float("inf")
        checks.append(Check(f"{name}: median bound / gap where the gap is not 0", "≥ 1, recorded", looseness, looseness >= 1))
        order = n[positive].argsort()[:: max(1, int(positive.sum()) // 300)]
        curves.append(
            Curve(
                f"{name} (median {looseness:.2g}× loose)",
                tuple(n[positive][order].tolist()),
                tuple(tightness[positive][order].tolist()),
                "points",
            )
        )
    trivial = Curve("bound = gap", (100.0, 100_000.0), (1.0, 1.0), "trivial")
    return Measurement(tuple(checks), Figure("preference pairs n", f"{axis}: gap / bound", (*curves, trivial)))


def _claim(name: str, group: str, statement: str, source: str, pairs) -> Claim:
    return Claim(
        name=name,
        group=group,
        statement=statement,
        status="derived",
        source=source,
        predicted="no violation in ≥ 3,000 random instances; printed bounds looser than ours",
        rule="verified if there is no violation",
        measure=lambda effort: _measure(effort, pairs, group),
        decide=all_hold,
    )


REVERSE_KL_BOUNDS = _claim(
    "reverse-kl-bounds-hold",
    "reverse KL",
    "Theorem 5.2, R1, R2, R3, Lemma M and the 1/F price are never below the measured gap, at the instance's own coverage.",
    "arXiv 2502.01203, Theorem 5.2; docs/theory.md 4",
    _reverse_pairs,
)
FORWARD_KL_BOUNDS = _claim(
    "forward-kl-bounds-hold",
    "forward KL",
    "Theorem 6.2, F1 and F2 are never below the measured gap, at the instance's own coverage.",
    "arXiv 2502.01203, Theorem 6.2; docs/theory.md 4",
    _forward_pairs,
)
