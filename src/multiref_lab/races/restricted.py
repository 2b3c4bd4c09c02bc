"""Lower levels that cannot hold the Gibbs policy: log-linear policies and small transformers, solved to their own optimum,
many seeds at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multiref.bilevel import (
    Likelihood,
    Problem,
    policy_response,
    preference_table,
    shared_weights,
)
from multiref.errors import ArgumentError
from multiref.regularizers import ReverseKL
from multiref_lab.problems import random_logps
from multiref_lab.races.quasi_newton import minimise, with_gradient
from multiref_lab.races.world import LinearModel
from multiref_lab.toys import BatchedTransformer, Size


@dataclass(frozen=True)
class Restricted(LinearModel):
    """S problems whose lower level is `law`: θ [S, P] → log π_θ [S, X, Y]. `start` [S, P]; phi [S, d]."""

    law: Callable[[Tensor], Tensor]
    start: Tensor
    phi: Tensor
    ridge: float

    def upper(self, phi: Tensor, theta: Tensor) -> Tensor:
        """[S, d], [S, P] → [S]: f, the likelihood of pairs from π_θ."""
        return Likelihood().value(self.problem, self.law(theta), self.reward_of(phi)).mean(-1)

    def lower(self, phi: Tensor, theta: Tensor) -> Tensor:
        """[S, d], [S, P] → [S]: g = −(E r − β Σ w KL) + ½ ridge ‖θ‖².

        Weight decay, as in training; without it a class may have its optimum at infinity.
        """
        decay = 0.5 * self.ridge * theta.square().sum(-1)
        return decay - self.problem.lower_value(self.law(theta), self.reward_of(phi)).mean(-1)


def _problem(seeds: int, prompts: int, completions: int, beta: float, generator: torch.Generator) -> tuple[Problem, Tensor]:
    ref = random_logps(2, seeds, prompts, completions, generator=generator)
    true = torch.randn(seeds, prompts, completions, generator=generator, dtype=torch.float64)
    seen = torch.randn(seeds, prompts, completions, 3, generator=generator, dtype=torch.float64)
    return Problem(preference_table(true), ref, ReverseKL(), beta), seen


def log_linear(seeds: int, *, features: int, ridge: float = 1e-5, generator: torch.Generator) -> Restricted:
    """π_θ ∝ π_1 e^{⟨θ, f⟩} with `features` random features; prompts · completions (20) of them hold any policy."""
    problem, seen = _problem(seeds, 4, 5, 0.5, generator)
    design = torch.randn(seeds, 4, 5, features, generator=generator, dtype=torch.float64)
    first = problem.ref_logps[0]

    def law(theta: Tensor) -> Tensor:
        return (first + torch.einsum("sxyp,sp->sxy", design, theta)).log_softmax(-1)

    phi = 0.7 * torch.randn(seeds, 3, generator=generator, dtype=torch.float64)
    return Restricted(problem, seen, law, torch.zeros(seeds, features, dtype=torch.float64), phi, ridge)


def small_transformer(seeds: int, *, width: int, ridge: float = 1e-2, generator: torch.Generator) -> Restricted:
    """A one-layer causal transformer over the 9 completions of two tokens out of three, after each of 4 prompts,
    from a random start.
    """
    problem, seen = _problem(seeds, 4, 9, 0.5, generator)
    model = BatchedTransformer(seeds, Size(4, 3, 2, width), heads=1, eps=0.1, generator=generator).double()
    named = dict(model.named_parameters())
    shapes = {name: p.shape[1:] for name, p in named.items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def law(theta: Tensor) -> Tensor:
        parts = {name: part.unflatten(-1, shape) for (name, shape), part in zip(shapes.items(), theta.split(sizes, -1))}
        logps: Tensor = torch.func.functional_call(model, parts, ())
        return logps

    start = torch.cat([p.detach().flatten(1) for p in named.values()], -1)
    phi = 0.7 * torch.randn(seeds, 3, generator=generator, dtype=torch.float64)
    return Restricted(problem, seen, law, start, phi, ridge)


def settle(
    case: Restricted, start: Tensor, *, sigma: float = 0.0, warm: int = 0, restarts: int = 4, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """argmin_θ g + σ f from `start`, [S, P], and the gradient norms left, [S].

    `warm` steps of Adam, then quasi-Newton, begun afresh where it sticks.
    """

    @with_gradient
    def evaluate(theta: Tensor) -> Tensor:
        value = case.lower(case.phi, theta)
        return value + sigma * case.upper(case.phi, theta) if sigma else value

    theta = start.clone()
    adam = torch.optim.Adam([theta], lr=0.02)
    for step in range(warm):
        adam.param_groups[0]["lr"] = 0.02 * (1 - step / warm)
        theta.grad = evaluate(theta)[1]
        adam.step()
    for _ in range(restarts):
        theta, _, slope = minimise(evaluate, theta, steps=300, tolerance=tolerance)
        if bool((slope <= tolerance).all()):
            break
    return theta.detach(), slope


def exact_hypergradient(case: Restricted, theta: Tensor) -> Tensor:
    """[S, P] → [S, d]: ∂_φ f − ∇²_{φθ} g (∇²_θ g)⁻¹ ∂_θ f with dense Hessians, one column for all seeds at a time.

    What conjugate gradients converge to.

    Raises:
        ArgumentError: a θ that is no minimum of the lower level.
    """
    gradient, lowest = _implicit(case, theta)
    if not float(lowest.min()) > -1e-9:
        raise ArgumentError(
            f"theta: found a Hessian with eigenvalue {float(lowest.min()):.3g}, expected a minimum of the lower level"
        )
    return gradient


def _implicit(case: Restricted, theta: Tensor) -> tuple[Tensor, Tensor]:
    """[S, P] → the implicit gradient [S, d] and the lowest eigenvalue of the lower level's Hessian [S]."""
    phi, theta = case.phi.detach().requires_grad_(True), theta.detach().requires_grad_(True)
    by_phi, by_theta = torch.autograd.grad(case.upper(phi, theta).sum(), (phi, theta))
    (slope,) = torch.autograd.grad(case.lower(phi, theta).sum(), theta, create_graph=True)
    columns = [torch.autograd.grad(slope[:, p].sum(), theta, retain_graph=True)[0] for p in range(theta.shape[-1])]
    values, vectors = torch.linalg.eigh(torch.stack(columns, -1))
    kept = values > 1e-10 * values.amax(-1, keepdim=True)
    along = torch.einsum("spq,sp->sq", vectors, by_theta) * torch.where(kept, 1 / values.clamp_min(1e-300), 0.0)
    solution = torch.einsum("spq,sq->sp", vectors, along)
    return by_phi - torch.autograd.grad(slope, phi, solution)[0], values[:, 0]


def expected_estimates(case: Restricted, theta: Tensor, *, sigma: float) -> dict[str, Tensor]:
    r"""[S, d] by name: the truth (the class's own Hessian) and what each estimator's mean is, π_θ sampled as it is.

    two policies     ∂_φ f(π_σ) + (π_0 − π_σ)/σ        two optima of the class
    shared by ratio  ∂_φ f(π_0) + E_{π_0}[(1 − π_σ/π_0) r]/σ     the same two, sampled from one
    shared by Gibbs  the same with the weights e^{−σ(c − E c)/β}: no second policy
    covariance       ∂_φ f(π_0) + β⁻¹ Cov_{π_0}(c, r)
    """
    upper, problem, reward = Likelihood(), case.problem, case.reward_of(case.phi)
    with torch.no_grad():
        log_policy = case.law(theta)
    moved, _ = settle(case, theta, sigma=sigma, tolerance=1e-11)
    with torch.no_grad():
        apart = case.law(moved)
    direct, payoff = upper.direct(problem, log_policy, reward), upper.payoff(problem, log_policy, reward)
    policy = log_policy.exp()
    weights = shared_weights(payoff, (policy * payoff).sum(-1), sigma=sigma, beta=problem.beta)
    return {
        "truth": exact_hypergradient(case, theta),
        "two policies": case.chain(upper.direct(problem, apart, reward) + (policy - apart.exp()) / sigma),
        "shared by ratio": case.chain(direct + (policy - apart.exp()) / sigma),
        "shared by Gibbs weights": case.chain(direct + policy * (1 - weights) / sigma),
        "covariance": case.chain(direct + policy_response(problem, log_policy, payoff)),
        "stop-gradient": case.chain(direct),
    }


def outer_path(case: Restricted, theta: Tensor, *, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """`steps` gradient steps on φ with the class's own hyper-gradient, the lower level solved again after each.

    Returns:
        ψ and ‖∇ψ‖ along the way, [steps, S] each.

        NaN from where on the lower level was not at a minimum (a transformer's can be a saddle point,
        at which there is no hyper-gradient).
    """
    values, norms, lost = [], [], torch.zeros(len(theta), dtype=torch.bool)
    for _ in range(steps):
        gradient, lowest = _implicit(case, theta)
        lost = lost | (lowest < -1e-9)
        values.append(torch.where(lost, torch.nan, case.upper(case.phi, theta).detach()))
        norms.append(torch.where(lost, torch.nan, gradient.norm(dim=-1)))
        case = replace(case, phi=case.phi - rate * torch.where(lost[:, None], 0.0, gradient))
        theta, _ = settle(case, theta, restarts=2)
    return torch.stack(values), torch.stack(norms)
