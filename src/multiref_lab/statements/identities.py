"""Identities of the reverse-KL problem: merging, convexity in the weights, regret, disagreement, the escort,
the order of the pools.
"""

import itertools
import math
from functools import partial

import torch
from torch import Tensor

from multiref import exact
from multiref.divergences import disagreement, kl, reverse_kl
from multiref.pools import power_pool
from multiref.regularizers import ReverseKL
from multiref.training.online import sequence_logps
from multiref_lab.claim import Effort, Findings, all_within, at_most, claim, exactly
from multiref_lab.problems import accumulate, bandits_of_seed, random_language, random_logps

_BETA, _WEIGHTS = 0.3, (0.6, 0.3, 0.1)
_identity = partial(claim, group="exact", rule="verified if every error is of rounding size")


@_identity(
    "merge-identity",
    statement="The reverse-KL optimum for any weights is the normalised geometric mean of the K single-reference optima.",
    source="DERIVED, docs/theory.md 1 (c)",
    predicts="error 0",
)
def merge(effort: Effort) -> Findings:
    problem, _ = bandits_of_seed(11, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    each = [exact.solve(problem.reward, problem.ref_logps[k : k + 1], ReverseKL(), beta=_BETA).log_policy for k in range(3)]
    together = exact.solve(problem.reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=_BETA).policy
    mean = (torch.stack(each) * torch.tensor(_WEIGHTS, dtype=torch.float64)[:, None, None, None]).sum(0).exp()
    yield all_within("largest |merged − solved|", 1e-12, mean / mean.sum(-1, keepdim=True) - together)


@_identity(
    "convexity-in-weights",
    statement="The best attainable regularised value is convex in the weights: "
    "it never favours mixing over the best single reference.",
    source="DERIVED, docs/theory.md 1 (d)",
    predicts="no excess",
    rule="verified if no excess is above rounding",
)
def convexity(effort: Effort) -> Findings:
    problem, generator = bandits_of_seed(12, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    weights = torch.rand(20, 3, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)

    def value(w: Tensor) -> Tensor:
        return exact.solve(problem.reward, problem.ref_logps, ReverseKL(tuple(w.tolist())), beta=_BETA).value

    vertices = torch.stack([value(v) for v in torch.eye(3, dtype=torch.float64)])
    excess = max(float((value(w) - torch.einsum("k,ksx->sx", w, vertices)).max()) for w in weights)
    over_best = max(float((value(w) - vertices.amax(0)).max()) for w in weights)
    midpoints = zip(weights[::2], weights[1::2])
    bent = max(float((value((a + b) / 2) - 0.5 * (value(a) + value(b))).max()) for a, b in midpoints)
    yield at_most("largest J*(midpoint) − mean of the ends", 1e-12, bent)
    yield at_most("largest J*(w) − Σ w_k J*(reference k)", 1e-12, excess)
    yield at_most("largest J*(w) − best single reference", 1e-12, over_best)
    yield (
        "On the regularised value mixing never beats the best single reference; what it can gain is coverage, statistics or "
        "another reward."
    )


@_identity(
    "equal-kl-favours-its-own-reference",
    statement="Of all policies as far from one reference, in KL(π‖π₁), none has more reward than that reference's own tilt "
    "π₁ e^{γr}: at the optimum, rules that are compared at equal KL to the base cannot gain by further references.",
    source="DERIVED, docs/theory.md 1 (g)",
    predicts="no excess",
    rule="verified if no excess is above rounding",
)
def equal_kl(effort: Effort) -> Findings:
    problem, _ = bandits_of_seed(15, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    base, reward = problem.ref_logps[0], problem.reward
    pooled = exact.solve(reward, problem.ref_logps, ReverseKL(_WEIGHTS), beta=_BETA)
    price = kl(pooled.log_policy, base)
    low = torch.full_like(price, -20.0)  # of log γ
    high = torch.full_like(price, 20.0)
    for _ in range(80):
        middle = (low + high) / 2
        tilted = (base + middle.exp()[..., None] * reward).log_softmax(-1)
        nearer = kl(tilted, base) < price
        low, high = torch.where(nearer, middle, low), torch.where(nearer, high, middle)
    less = (tilted.exp() * reward).sum(-1) - (pooled.policy * reward).sum(-1)
    yield at_most("largest reward of the pool's optimum − that of the base's tilt at its KL", 1e-9, float(-less.min()))
    yield f"In the mean of these problems the pool's optimum has {float(less.mean()):.2f} of reward less."


@_identity(
    "regret-identity",
    statement="J* − J(π) = β KL(π‖π*) for every policy, under reverse KL.",
    source="DERIVED, docs/theory.md 1 (a)",
    predicts="error 0",
)
def regret(effort: Effort) -> Findings:
    problem, generator = bandits_of_seed(13, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    regularizer = ReverseKL(_WEIGHTS)
    best = exact.solve(problem.reward, problem.ref_logps, regularizer, beta=_BETA)
    other = random_logps(*problem.reward.shape, generator=generator, spread=2.0)
    lost = best.value - exact.value(other, problem.reward, problem.ref_logps, regularizer, beta=_BETA)
    yield all_within("largest |J* − J(π) − β KL(π‖π*)|", 1e-11, lost - _BETA * kl(other, best.log_policy))


@_identity(
    "disagreement-identity",
    statement="−log F = min_q Σ w_k KL(q‖π_k), reached by the escort; Rényi for K = 2; F = E[e^{−D}] under the tokenwise pool.",
    source="DERIVED, docs/theory.md 1 (b) and 5",
    predicts="error 0, no q below",
)
def disagreement_identity(effort: Effort) -> Findings:
    problem, generator = bandits_of_seed(14, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    price = disagreement(problem.ref_logps, _WEIGHTS)
    at_escort = reverse_kl(problem.law("escort"), problem.ref_logps, _WEIGHTS)
    others = random_logps(20, *problem.reward.shape, generator=generator)
    lower = min(float((reverse_kl(q, problem.ref_logps, _WEIGHTS) - price).min()) for q in others)
    pair = problem.ref_logps[:2]
    renyi = torch.logsumexp(0.6 * pair[0] + 0.4 * pair[1], -1) / (0.6 - 1)  # D_0.6(π_1‖π_2)
    two = disagreement(pair, (0.6, 0.4))
    levels = random_language(3, 4, 2, 50, generator=generator)
    step_price = [disagreement(level, (0.6, 0.4)) for level in levels]
    tokens = [power_pool(level, (0.6, 0.4), order=0.0) + f.unsqueeze(-1) for level, f in zip(levels, step_price)]
    along = accumulate(step_price, 3)
    whole = disagreement(sequence_logps(levels), (0.6, 0.4))
    mean = (sequence_logps(tokens) - along).exp().sum(-1)
    yield all_within("largest |−log F − Σ w_k KL(escort‖π_k)|", 1e-12, price - at_escort)
    yield at_most("largest −log F − Σ w_k KL(q‖π_k) over other q", 0.0, -lower)
    yield all_within("K = 2: largest |−log F − (1 − w_1) D_{w_1}(π_1‖π_2)|", 1e-12, two - 0.4 * renyi)
    yield all_within("largest |E_tokenwise[e^{−D}] − F| on language models", 1e-12, mean - (-whole).exp())


@_identity(
    "escort-as-k1-optimum",
    statement="With reward zero, k1 on the weighted log-ratio in the reward ends at the generalised escort.",
    source="DERIVED, docs/theory.md 6",
    predicts="KL 0, value −log F",
)
def escort(effort: Effort) -> Findings:
    """Follow the exact expected k1-in-reward gradient, by natural steps, from a random policy: where does it end?

    Natural gradient of −E_π[k1]: the score of each completion moves by its centred advantage −(log π − Σ w_k log π_k).
    """
    problem, generator = bandits_of_seed(15, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    log_policy = random_logps(*problem.reward.shape, generator=generator)
    pool = power_pool(problem.ref_logps, _WEIGHTS, order=0.0)
    for _ in range(60):
        log_policy = (log_policy - 0.5 * (log_policy - pool)).log_softmax(-1)
    left = reverse_kl(log_policy, problem.ref_logps, _WEIGHTS) - disagreement(problem.ref_logps, _WEIGHTS)
    yield all_within("largest KL(end‖escort)", 1e-12, kl(log_policy, problem.law("escort")))
    yield all_within("largest |Σ w_k KL(end‖π_k) − (−log F)|", 1e-12, left)
    yield "Reward zero: multi-teacher on-policy distillation. Its optimum is the escort and its floor −log F."


@_identity(
    "pool-order",
    statement="harmonic ≤ geometric ≤ arithmetic; at whole-completion log-probabilities the outer two are nearly the minimum "
    "and the maximum.",
    source="DERIVED, docs/theory.md 3",
    predicts="no entry out of order",
    rule="verified if nothing is out of order and the distance to minimum and maximum is at most −log min w",
)
def pool_order(effort: Effort) -> Findings:
    problem, generator = bandits_of_seed(16, effort.choose(200, 3000), weights=_WEIGHTS, completions=7)
    pools = [power_pool(problem.ref_logps, _WEIGHTS, order=order) for order in (-4.0, -1.0, -0.5, 0.0, 0.5, 1.0, 4.0)]
    wrong = sum(int((a > b + 1e-12).sum()) for a, b in itertools.pairwise(pools))
    sequence = 10 * torch.randn(3, 5000, generator=generator, dtype=torch.float64) - 200
    harmonic = power_pool(sequence, _WEIGHTS, order=-1.0) - sequence.amin(0)
    arithmetic = sequence.amax(0) - power_pool(sequence, _WEIGHTS, order=1.0)
    limit = -math.log(min(_WEIGHTS)) + 1e-9
    yield exactly("entries out of order, ρ = −4 … 4", 0, wrong)
    yield all_within("largest harmonic − min over references, nats", limit, harmonic)
    yield all_within("largest max over references − arithmetic, nats", limit, arithmetic)
    yield (
        "At whole-completion log-probabilities (sd 10 nats) the harmonic pool is the minimum and the arithmetic one the "
        "maximum, up to −log min w."
    )
