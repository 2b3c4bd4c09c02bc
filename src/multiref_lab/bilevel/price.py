"""What a label is worth at best: the gap that maximum likelihood on n pairs of the optimum leaves, times n."""

from __future__ import annotations

import torch
from torch import Tensor

from multiref_lab.bilevel.language import EnumerableWorld

__all__ = ["price_of_labels"]


def price_of_labels(world: EnumerableWorld) -> Tensor:
    r"""[W]: lim n · E[J* − J(π_r̂)] for reverse KL and a reward linear in features, fitted to n Bradley–Terry pairs of π* (DERIVED, docs/theory.md 9).

        tr(V H⁻¹)/(2β),   V = E_x Cov_{π*}(f),   H = E_x E_{y, y' ~ π*} p (1 − p) Δf Δfᵀ

    p (1 − p) ≤ ¼ and E Δf Δfᵀ = 2V, so it is at least d/β: a parameter of the reward costs 1/(βn) or more.
    """
    features, law = world.task.reward_model.table.double(), world.best.exp()  # type: ignore[union-attr]
    dimension = features.shape[-1]
    spread = torch.zeros(len(law), dimension, dimension, dtype=torch.float64)
    information = torch.zeros_like(spread)
    for x in range(law.shape[1]):  # a prompt at a time: pairs are many
        f, p, r = features[:, x], law[:, x], world.reward[:, x].double()
        f = f - torch.einsum("wy,wyd->wd", p, f)[:, None]
        spread += torch.einsum("wy,wyd,wye->wde", p, f, f)
        won = torch.sigmoid(r[:, :, None] - r[:, None, :])
        weight = won * (1 - won) * p[:, :, None] * p[:, None, :]
        information += 2 * (torch.einsum("wy,wyd,wye->wde", weight.sum(-1), f, f) - f.mT @ weight @ f)
    return torch.linalg.solve(information, spread).diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * world.task.beta)
