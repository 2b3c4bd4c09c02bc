"""The equilibrium of a preference game under K references, and how far a policy is from it."""

import torch
from torch import Tensor

from multiref._logspace import align, broadcast, check_beta, check_logps, expectation, log_ratio
from multiref.errors import ArgumentError
from multiref.exact._interior import find_interior, times
from multiref.exact._problem import check_policy_shape, check_shapes
from multiref.exact._solve import Solution, solve, value
from multiref.regularizers import FDivergence, Regularizer

TOLERANCE = 1e-6  # of P + Pᵀ = 1: probabilities may come in float32; what is off is averaged away
_NEWTON, _SETTLED, _ACCEPTED = 20, 1e-15, 1e-8  # steps; of ρ: the gap is at most twice what is left


def nash(preference: Tensor, ref_logps: Tensor, regularizer: Regularizer, *, beta: float = 0.1) -> Solution:
    r"""[*B, Y, Y], [K, *B, Y] → the symmetric equilibrium of E[P(y ≻ y')] − β Σ_k w_k D(π‖π_k) + β Σ_k w_k D(π'‖π_k).

        π* = argmax_π E_π[Pπ*] − β Σ_k w_k D(π‖π_k);      reverse KL:  π* ∝ P_0 e^{Pπ*/β}

    Under reverse KL −log F, the price of disagreement, is paid by both players and cancels: K references are their pool P_0.
    Merging the K equilibria under single references is *not* the equilibrium (unlike for a reward, `merge`).

    An interior-point method (`_interior`) finds its neighbourhood at every β and for every regularizer; Newton's method on
    ρ = (P − ½) π the last digits. Its Jacobian is I − (P − ½) C/β with C/β the derivative of a best response, diag π − ππᵀ for
    reverse KL: C is symmetric and not negative and P − ½ is skew, so that its eigenvalues are 1 ± iμ, and it is always
    invertible. No derivatives of the result.

    Args:
        preference: P(y ≻ y'), P + Pᵀ = 1. Completions without reference mass are never played (their entries do not matter).
        ref_logps, regularizer, beta: as for `solve`.

    Returns:
        Solution with log_policy π*, and value, multiplier and log_partition of the one-player problem with reward Pπ*:
        value = ½ − β Σ_k w_k D(π*‖π_k).

    Raises:
        ArgumentError: P + Pᵀ ≠ 1, NaN, shapes that do not match, β ≤ 0; a game that does not settle to a gap of 2e-8 (none
            of 15,600 random ones, α from 1 to 4, β from 0.3 down to 1e-5, was above 1e-9 when this limit was set).
        EmptyPoolError: rows in which the pool has no mass.

    Reference: arXiv 2602.23116 for one reference (FOUND); several references, the eigenvalues and Newton's method DERIVED
    (docs/theory.md 11).

    >>> import multiref as mr
    >>> rock_paper_scissors = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]).double()
    >>> refs = torch.tensor([[0.7, 0.2, 0.1]]).double().log()
    >>> mr.exact.nash(rock_paper_scissors, refs, mr.ReverseKL(), beta=0.01).policy
    tensor([0.3392, 0.3342, 0.3266], dtype=torch.float64)
    """
    check_beta(beta)
    shape = check_preference(preference, check_logps(ref_logps, "ref_logps"))
    preference, refs = preference.double().expand(*shape, shape[-1]), align(ref_logps, len(shape)).double()
    with torch.no_grad():
        reward = 0.5 + _equilibrium(preference, refs, regularizer, beta)
        return solve(reward, refs, regularizer, beta=beta)


def duality_gap(
    log_policy: Tensor, preference: Tensor, ref_logps: Tensor, regularizer: Regularizer, *, beta: float = 0.1
) -> Tensor:
    r"""[*B, Y], [*B, Y, Y], [K, *B, Y] → [*B]: what a best response gains against this policy, 0 at the equilibrium alone.

        gap(π) = max_q J(q, π) − J(π, π) = solve(Pπ).value − value(π, Pπ)
               = β KL(π‖solve(Pπ))                                              (reverse KL, exact at any π)

    *Half* of the saddle-point gap max_q J(q, π) − min_q J(π, q) that some papers call the duality gap: the game is symmetric,
    so that both halves are equal. With reverse KL it is computed in the last form, which keeps its digits near zero.

    Raises:
        ArgumentError: as for `nash`.

    Reference: arXiv 2602.23116 (FOUND); the last form DERIVED (docs/theory.md 11).
    """
    check_beta(beta)
    shape = check_preference(preference, check_logps(ref_logps, "ref_logps"))
    check_policy_shape(check_logps(log_policy, "log_policy"), shape)
    log_policy = log_policy.double().expand(shape)
    reward = times(preference.double().expand(*shape, shape[-1]), log_policy.exp())
    best = solve(reward, ref_logps.double(), regularizer, beta=beta)
    if isinstance(regularizer, FDivergence) or regularizer.alpha != 1:
        return (best.value - value(log_policy, reward, ref_logps.double(), regularizer, beta=beta)).clamp_min(0)
    ratio = log_ratio(log_policy, best.log_policy, under=log_policy)
    missing = torch.where(log_policy.exp() == 0, best.policy, 0.0).sum(-1)  # what q has where π has nothing
    return beta * (expectation(log_policy, torch.expm1(-ratio) + ratio) + missing)


def check_preference(preference: Tensor, ref_logps: Tensor) -> torch.Size:
    """[*B, Y, Y] of probabilities with P + Pᵀ = 1 that matches ref_logps [K, *B, Y]; returns [*B, Y]."""
    if not isinstance(preference, Tensor) or not preference.is_floating_point() or preference.ndim < 2:
        raise ArgumentError(
            f"preference: expected a floating-point tensor [*B, Y, Y], found {getattr(preference, 'shape', preference)!r}."
        )
    if preference.shape[-1] != preference.shape[-2]:
        raise ArgumentError(f"preference: expected P(y ≻ y') for all pairs, [*B, Y, Y], found shape {tuple(preference.shape)}.")
    shape = check_shapes(preference[..., 0], ref_logps)
    values = preference.detach().double()
    if not bool(((values >= -TOLERANCE) & (values <= 1 + TOLERANCE)).all()):
        raise ArgumentError("preference: expected probabilities in [0, 1], found NaN or a number outside.")
    if bool(((off := (values.diagonal(dim1=-2, dim2=-1) - 0.5).abs()) > TOLERANCE).any()):
        raise ArgumentError(
            f"preference: expected ½ on the diagonal (a completion against itself), found ½ ± {float(off.max()):.3g}."
        )
    off = (values + values.mT - 1).abs()
    if bool((off > TOLERANCE).any()):
        *row, i, j = [int(each[0]) for each in torch.nonzero(off == off.max(), as_tuple=True)]
        raise ArgumentError(
            f"preference: expected P + Pᵀ = 1, found {float(values[(*row, i, j)]):.4g} and {float(values[(*row, j, i)]):.4g} "
            f"for completions {i} and {j}{f' of row {row}' if row else ''}. Average both orders, (P + 1 − Pᵀ)/2."
        )
    return broadcast(shape, preference.shape[:-1])


def _equilibrium(preference: Tensor, ref_logps: Tensor, regularizer: Regularizer, beta: float) -> Tensor:
    """[*B, Y, Y], [K, *B, Y] → ρ = (P − ½) π* [*B, Y], the root of ρ − (P − ½) BR(ρ): from inside the simplex to its
    neighbourhood, then by Newton's method to the last digits."""
    skew = 0.5 * (preference - preference.mT)
    reward = find_interior(skew, ref_logps, regularizer, beta)
    eye = torch.eye(skew.shape[-1], dtype=torch.float64)
    policy = solve(reward, ref_logps, regularizer, beta=beta).policy
    residual = reward - times(skew, policy)
    for _ in range(_NEWTON):
        size = residual.abs().amax(-1)
        if not bool((size > _SETTLED).any()):
            break
        slope = skew @ _response(reward, policy, ref_logps, regularizer, beta)
        moved = reward - torch.linalg.solve(eye - slope, residual[..., None])[..., 0]
        answer = solve(moved, ref_logps, regularizer, beta=beta).policy
        new = moved - times(skew, answer)
        better = (new.abs().amax(-1) < size)[..., None]
        if not bool(better.any()):
            break
        reward, policy = torch.where(better, moved, reward), torch.where(better, answer, policy)
        residual = torch.where(better, new, residual)
    if bool(((size := residual.abs().amax(-1)) > _ACCEPTED).any()):
        raise ArgumentError(
            f"nash: {int((size > _ACCEPTED).sum())} of {size.numel()} games did not settle at β = {beta:g} (left: "
            f"{float(size.max()):.2g}); expected a larger beta."
        )
    return reward


def _response(reward: Tensor, policy: Tensor, ref_logps: Tensor, regularizer: Regularizer, beta: float) -> Tensor:
    """[*B, Y, Y]: how a best response moves with its reward, ∂BR/∂ρ; C/β, C = diag π − ππᵀ, for reverse KL."""
    if not isinstance(regularizer, FDivergence) and regularizer.alpha == 1:
        return (torch.diag_embed(policy) - policy[..., None] * policy[..., None, :]) / beta
    with torch.enable_grad():
        at = reward.detach().requires_grad_()
        answer = solve(at, ref_logps, regularizer, beta=beta).policy
        rows = [torch.autograd.grad(each.sum(), at, retain_graph=True)[0] for each in answer.unbind(-1)]
    return torch.stack(rows, -2)
