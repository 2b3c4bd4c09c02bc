"""How far apart two policies are, and how good one is: exact, on completions that can be counted."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import kl
from multiref.regularizers import ReverseKL
from multiref_lab.stability.sample import Prompts, Sample

Law = Callable[[Tensor, Prompts], Tensor]  # parameters [S, M, P], prompts → [S, M, F, Y]
Measured = dict[str, dict[str, list[float]]]  # {method/K: {measure: one number a seed}}


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[*B, Y], [*B, Y] → [*B]: ½ Σ_y |p − q|."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def close_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[*B, Y], [*B, Y] → [*B]: KL(p‖q) = Σ p (e^{−ℓ} − 1 + ℓ), ℓ = log p/q: every term positive,
    so that it keeps its digits where p ≈ q."""
    ratio = log_p - log_q
    return (log_p.exp() * (torch.expm1(-ratio) + ratio)).sum(-1)


def regret(log_policy: Tensor, prompts: Prompts, references: int, *, beta: float) -> Tensor:
    """[S, F, Y] → [S]: β KL(π‖π*), averaged over prompts."""
    return (beta * kl(log_policy, prompts.optimum(references, beta))).mean(-1)


def distances(log_policy: Tensor, parameter: Tensor, sample: Sample, references: int, *, beta: float) -> dict[str, list[float]]:
    """What exchanging one example does, averaged over the exchanged ones, one number a seed;
    and `regret` on fresh prompts, of the run on all data.

    Args:
        log_policy: [S, M, F, Y] of every run on the fresh prompts. parameter: [S, M, P].

    Returns:
        for each of `replace`, `leave_out` and `rerun`: parameter (Euclidean), value (mean over prompts of |f − f'|),
        worst_value (largest), tv, kl (KL(π‖π') to the run on all data).
    """
    refs, runs = sample.fresh.ref_logps[:references].unsqueeze(2), sample.runs
    each = sample.fresh.reward.unsqueeze(1).expand_as(log_policy)
    value = exact.value(log_policy, each, refs.expand(-1, -1, log_policy.shape[1], -1, -1), ReverseKL(), beta=beta)
    found: dict[str, list[float]] = {}
    pieces = zip(("replace", "leave_out", "rerun"), *(runs.split(x) for x in (log_policy, parameter, value)), strict=True)
    for name, policies, parameters, values in pieces:
        if not policies.shape[1]:
            continue
        moved = (values - value[:, :1]).abs()
        columns = {
            "parameter": (parameters - parameter[:, :1]).norm(dim=-1).mean(1),
            "value": moved.mean((1, 2)),
            "worst_value": moved.amax(2).mean(1),
            "tv": total_variation(log_policy[:, :1], policies).mean((1, 2)),
            "kl": close_kl(log_policy[:, :1], policies).mean((1, 2)),
        }
        found |= {f"{name}/{key}": column.tolist() for key, column in columns.items()}
    return found | {"regret": regret(log_policy[:, 0], sample.fresh, references, beta=beta).tolist()}


def measure_policies(
    policies: Mapping[str, tuple[Tensor, Law]], sample: Sample, references: int, *, beta: float, most: int
) -> Measured:
    """{method/K: `distances`, and how much more the regret is on fresh prompts than on the first `most` training prompts}.

    Args:
        policies: by method, the parameters [S, M, P] of every run and the law that they have: (parameters, prompts) → log π.
    """
    found, seen = {}, sample.seen(most)
    for name, (parameters, law) in policies.items():
        measured = distances(law(parameters, sample.fresh), parameters, sample, references, beta=beta)
        on_seen = regret(law(parameters[:, :1], seen)[:, 0], seen, references, beta=beta).tolist()
        gap = [fresh - here for fresh, here in zip(measured["regret"], on_seen, strict=True)]
        found[f"{name}/{references}"] = measured | {"regret_gap": gap}
    return found
