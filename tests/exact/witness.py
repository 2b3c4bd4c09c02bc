"""What the quiet half must return, at fifty digits, written from the definitions alone.

Nothing here imports the package. The inputs are the same float64 numbers that the package is given, taken as exact; every
operation on them is done by mpmath. The optimum is found from the stationarity condition *per reference*,

    r(y) − β Σ_k w_k f'(π(y)/π_k(y)) = λ,      f'(t) = (t^(α−1) − 1)/(α − 1),

and the value is then the objective's own definition, E_π[r] − β Σ_k w_k D_α(π‖π_k), summed reference by reference: the
collapse of K references into one pool, which the package relies on, is never assumed on this side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mpmath

MP = mpmath.mp.clone()
MP.dps = 50
ZERO, ONE, MINUS_INF = MP.mpf(0), MP.mpf(1), MP.ninf

Number = mpmath.mpf
Row = Sequence[float]


@dataclass(frozen=True)
class Optimum:
    """The optimum at fifty digits: probabilities [Y], the best value, the multiplier λ."""

    policy: list[Number]
    value: Number
    multiplier: Number


def exact(values: Row) -> list[Number]:
    """float64 → mpf, without rounding."""
    return [MP.mpf(float(v)) for v in values]


def simplex(weights: Row) -> list[Number]:
    """Weights that sum to one at fifty digits (float64 weights do so to 1e-16, which order → 0 would magnify)."""
    w = exact(weights)
    total = MP.fsum(w)
    return [v / total for v in w]


# --- pools -------------------------------------------------------------------------------------------------------------


def log_pool(ref_logps: Sequence[Row], weights: Row, order: float) -> list[Number]:
    """[K][Y] → [Y]: log (Σ_k w_k π_k^ρ)^(1/ρ); ρ = 0 is Σ_k w_k log π_k. References of zero weight are absent."""
    present = [(w, exact(row)) for w, row in zip(simplex(weights), ref_logps) if w > 0]
    rho = MP.mpf(float(order))
    return [_log_mean([(w, row[y]) for w, row in present], rho) for y in range(len(ref_logps[0]))]


def _log_mean(terms: list[tuple[Number, Number]], rho: Number) -> Number:
    if rho <= 0 and any(lp == MINUS_INF for _, lp in terms):
        return MINUS_INF
    if rho == 0:
        return MP.fsum(w * lp for w, lp in terms)
    total = MP.fsum(w * MP.exp(rho * lp) for w, lp in terms if lp != MINUS_INF)
    return MP.log(total) / rho if total > 0 else MINUS_INF


# --- divergences -------------------------------------------------------------------------------------------------------


def divergence(p: Sequence[Number], q: Sequence[Number], alpha: float) -> Number:
    """D_α(p‖q) = Σ_y q f(p/q), f(1) = f'(1) = 0: KL(p‖q) at α = 1, KL(q‖p) at α = 0."""
    a = MP.mpf(float(alpha))
    if a == 1:
        return MP.inf if any(x > 0 and y == 0 for x, y in zip(p, q)) else _kl(p, q)
    if a == 0:
        return MP.inf if any(y > 0 and x == 0 for x, y in zip(p, q)) else _kl(q, p)
    if a > 1 and any(x > 0 and y == 0 for x, y in zip(p, q)):
        return MP.inf
    if a < 0 and any(y > 0 and x == 0 for x, y in zip(p, q)):
        return MP.inf
    cross = MP.fsum(y * MP.exp(a * MP.log(x / y)) for x, y in zip(p, q) if x > 0 and y > 0)
    return (cross - a * MP.fsum(p) - (1 - a) * MP.fsum(q)) / (a * (a - 1))


def _kl(p: Sequence[Number], q: Sequence[Number]) -> Number:
    return MP.fsum(x * MP.log(x / y) for x, y in zip(p, q) if x > 0)


def disagreement(ref_logps: Sequence[Row], weights: Row) -> Number:
    """−log Σ_y Π_k π_k^{w_k}."""
    return -MP.log(MP.fsum(MP.exp(lp) for lp in log_pool(ref_logps, weights, 0)))


# --- the objective and its optimum ---------------------------------------------------------------------------------------


def objective(
    policy: Sequence[Number], reward: Row, ref_logps: Sequence[Row], weights: Row, alpha: float, beta: float
) -> Number:
    """J(π) = E_π[r] − β Σ_k w_k D_α(π‖π_k), one reference at a time."""
    penalty = ZERO
    for w, row in zip(simplex(weights), ref_logps):
        if w > 0:
            penalty += w * divergence(policy, [MP.exp(lp) for lp in exact(row)], alpha)
    return _expected(policy, exact(reward)) - MP.mpf(beta) * penalty


def pooled_objective(
    policy: Sequence[Number], reward: Row, ref_logps: Sequence[Row], weights: Row, order: float, beta: float
) -> Number:
    """E_π[r] − β E_π[log π/P_ρ], P_ρ not normalised: MRPO's surrogate at ρ = −1."""
    pool = log_pool(ref_logps, weights, order)
    return _expected(policy, exact(reward)) - MP.mpf(beta) * MP.fsum(
        p * (MP.log(p) - lp) for p, lp in zip(policy, pool) if p > 0
    )


def _expected(policy: Sequence[Number], reward: Sequence[Number]) -> Number:
    return MP.fsum(p * r for p, r in zip(policy, reward) if p > 0)


def optimum(reward: Row, ref_logps: Sequence[Row], weights: Row, alpha: float, beta: float) -> Optimum:
    """The maximiser of `objective` over the simplex."""
    a, b, r = MP.mpf(float(alpha)), MP.mpf(beta), exact(reward)
    weight = log_pool(ref_logps, weights, 0) if a == 1 else _stationary_weight(ref_logps, weights, a)
    if a == 1:
        policy, multiplier = _tilt(r, weight, b)
    else:
        policy, multiplier = _stationary(r, weight, a, b)
    return Optimum(policy, objective(policy, reward, ref_logps, weights, alpha, beta), multiplier)


def pooled_optimum(reward: Row, ref_logps: Sequence[Row], weights: Row, order: float, beta: float) -> Optimum:
    """The maximiser of `pooled_objective`."""
    policy, multiplier = _tilt(exact(reward), log_pool(ref_logps, weights, order), MP.mpf(beta))
    return Optimum(policy, pooled_objective(policy, reward, ref_logps, weights, order, beta), multiplier)


def _tilt(r: list[Number], log_base: list[Number], beta: Number) -> tuple[list[Number], Number]:
    """π ∝ exp(log_base + r/β) and β log of its mass."""
    mass = [MP.exp(lp + x / beta) if lp != MINUS_INF and x != MINUS_INF else ZERO for lp, x in zip(log_base, r)]
    total = MP.fsum(mass)
    return [m / total for m in mass], beta * MP.log(total)


def _stationary_weight(ref_logps: Sequence[Row], weights: Row, a: Number) -> list[Number]:
    """[Y]: log of c^{1/(1−α)}, c = Σ_k w_k π_k^{1−α}, so that stationarity reads π^{α−1} c = 1 + (α − 1)(r − λ)/β."""
    present = [(w, exact(row)) for w, row in zip(simplex(weights), ref_logps) if w > 0]
    out = []
    for y in range(len(ref_logps[0])):
        column = [(w, row[y]) for w, row in present]
        if a > 1 and any(lp == MINUS_INF for _, lp in column):
            out.append(MINUS_INF)
            continue
        c = MP.fsum(w * MP.exp((1 - a) * lp) for w, lp in column if lp != MINUS_INF)
        out.append(MP.log(c) / (1 - a) if c > 0 else MINUS_INF)
    return out


def _stationary(r: list[Number], log_base: list[Number], a: Number, beta: Number) -> tuple[list[Number], Number]:
    """The root for α ≠ 1, in t = the distance of λ from the edge at which the best supported reward decides alone.

    α < 1:  π = P ((1 − α)(m − r + t)/β)^{−1/(1−α)},   λ = m − β/(1−α) + t      (m: the best reward on the support)
    α > 1:  π = P ((α − 1)(t − (m − r))_+/β)^{1/(α−1)}, λ = m + β/(α−1) − t
    Both are monotone in t, and bracketed by "all rewards equal m" and "the best completion alone".
    """
    s = abs(a - 1)
    inside = [y for y in range(len(r)) if log_base[y] != MINUS_INF and r[y] != MINUS_INF]
    best = max(r[y] for y in inside)
    gaps = [best - r[y] for y in inside]
    base = [log_base[y] for y in inside]
    total, alone = MP.log(MP.fsum(MP.exp(lp) for lp in base)), max(lp for lp, g in zip(base, gaps) if g == 0)
    low, high = sorted((MP.log(beta / s) + (1 - a) * total, MP.log(beta / s) + (1 - a) * alone))
    t, masses = _root(gaps, base, low, high, below=a < 1, power=1 / s, scale=MP.log(s / beta))
    multiplier = best - beta / s + t if a < 1 else best + beta / s - t
    policy = [ZERO] * len(r)
    for y, m in zip(inside, masses):
        policy[y] = m
    return _with_leftover(policy, r, log_base, multiplier, a, beta, best) if a < 1 else (policy, multiplier)


def _masses(
    t: Number, gaps: list[Number], base: list[Number], below: bool, power: Number, scale: Number
) -> tuple[list[Number], Number]:
    """The masses at distance t, and d log Σ masses / d log t."""
    masses, slope = [], ZERO
    for gap, lp in zip(gaps, base):
        x = t + gap if below else t - gap
        if x <= 0:
            masses.append(ZERO)
            continue
        tilt = power * (MP.log(x) + scale)
        m = MP.exp(lp - tilt if below else lp + tilt)
        masses.append(m)
        slope += m * t / x
    return masses, (-power if below else power) * slope / MP.fsum(masses)


def _root(
    gaps: list[Number], base: list[Number], low: Number, high: Number, *, below: bool, power: Number, scale: Number
) -> tuple[Number, list[Number]]:
    """Newton in u = log t on log Σ masses = 0, in a bracket that every evaluation shrinks;
    bisection when it strays or stalls."""
    u, last = (low + high) / 2, MP.inf
    tiny = MP.mpf(10) ** (5 - MP.dps)
    for _ in range(600):
        masses, slope = _masses(MP.exp(u), gaps, base, below, power, scale)
        error = MP.log(MP.fsum(masses))
        if (error > 0) == below:
            low = u
        else:
            high = u
        step = error / slope
        if abs(step) <= tiny * max(ONE, abs(u)) or abs(error) < tiny:
            break
        ahead = u - step
        if not low <= ahead <= high or 2 * abs(step) > last:
            ahead, step = (low + high) / 2, MP.inf
        u, last = ahead, abs(step)
    total = MP.fsum(masses)
    assert abs(total - 1) < MP.mpf(10) ** -30, f"the witness did not converge: mass {MP.nstr(total, 20)}"
    return MP.exp(u), masses


def _with_leftover(
    policy: list[Number], r: list[Number], log_base: list[Number], multiplier: Number, a: Number, beta: Number, best: Number
) -> tuple[list[Number], Number]:
    """α < 1: outside every reference's support a unit of mass costs β/(1−α), so λ ≥ r − β/(1−α) there as well."""
    outside = [y for y in range(len(r)) if log_base[y] == MINUS_INF and r[y] != MINUS_INF]
    if not outside:
        return policy, multiplier
    top = max(outside, key=lambda y: r[y])
    floor = r[top] - beta / (1 - a)
    if floor <= multiplier:
        return policy, multiplier
    inside = [y for y in range(len(r)) if policy[y] > 0]
    power, scale = 1 / (1 - a), MP.log((1 - a) / beta)
    masses, _ = _masses(r[top] - best, [best - r[y] for y in inside], [log_base[y] for y in inside], True, power, scale)
    corner = [ZERO] * len(r)
    for y, m in zip(inside, masses):
        corner[y] = m
    corner[top] = 1 - MP.fsum(masses)
    return corner, floor
