"""Muon for policies whose seeds lie side by side: hidden matrices move along the orthogonal factor of their momentum,
everything else by Adam."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError

_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS = 0.2


def orthogonal(matrix: Tensor, *, steps: int = 5) -> Tensor:
    r"""[*E, m, n] → about U Vᵀ of each matrix U Σ Vᵀ, singular values between 0.7 and 1.2, without an SVD.

        X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X,   X_0 = M/‖M‖_F,   (a, b, c) = (3.4445, −4.7750, 2.0315)

    Singular values below a thousandth of the norm are left short of that.
    Source: Jordan et al., Muon (2024), a quintic Newton–Schulz iteration.
    """
    a, b, c = _QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    r"""M ← μM + (1 − μ)g,   W ← W − lr · 0.2 √max(m, n) · UVᵀ((1 − μ)g + μM) for every matrix [*S, m, n] in `matrices`;
    Adam at the same lr for `rest`.

    The factor gives an update Adam's usual size, so that a rate means the same for both (Liu et al., arXiv 2502.16982).
    As `torch.optim.Muon` without weight decay, which takes neither a leading axis of seeds nor anything but matrices.
    """

    def __init__(self, matrices: Iterable[Tensor], rest: Iterable[Tensor], *, lr: float, momentum: float = 0.9):
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum})
        self.rest = torch.optim.Adam([{"params": list(rest)}], lr=lr, betas=(0.9, 0.99))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there; `closure` is not supported."""
        if closure is not None:
            raise ArgumentError("Muon: found a closure, expected none; gradients are taken as they are")
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                running = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                running.lerp_(matrix.grad, 1 - group["momentum"])
                along = orthogonal(matrix.grad.lerp(running, group["momentum"]))
                matrix.sub_(along, alpha=group["lr"] * _RMS * max(matrix.shape[-2:]) ** 0.5)
            for other in self.rest.param_groups:
                other["lr"] = group["lr"]
        self.rest.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of both kinds of parameters."""
        super().zero_grad(set_to_none)
        self.rest.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of both kinds of parameters."""
        return {**super().state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Where `state_dict` was taken. KeyError for another optimiser's."""
        mine = dict(state_dict)
        self.rest.load_state_dict(mine.pop("rest"))
        super().load_state_dict(mine)
