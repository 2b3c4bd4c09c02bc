"""Which part of a PPO-style update costs stability? One cell, one reference, the parts exchanged one at a time.

python -m multiref_lab.stability.controls
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from multiref_lab.stability.gradient import PPO, RLOO, Ascent
from multiref_lab.stability.log_linear import climb, gibbs, reward_model
from multiref_lab.stability.measures import distances
from multiref_lab.stability.sample import LinearSettings, draw
from multiref_lab.stats import Measure

VARIANTS: dict[str, Ascent] = {
    "PPO: clipped, 4 updates a batch, whitened": PPO,
    "… with leave-one-out advantages instead": replace(PPO, whiten=False),
    "… with four times the prompts a batch": replace(PPO, batch=4 * PPO.batch),
    "RLOO: 1 update a batch, leave-one-out": RLOO,
    "… whitened": replace(RLOO, whiten=True),
}


def controls(
    settings: LinearSettings | None = None, variants: Mapping[str, Ascent] = MappingProxyType(VARIANTS)
) -> dict[str, dict[str, Measure]]:
    """{variant: {measure: mean and standard error over seeds}}: `replace/tv`, `rerun/tv`, `regret`;
    the Gibbs policy of the same rewards
    first."""
    settings = settings or LinearSettings(samples=2048, left_out=0)
    sample = draw(settings)
    theta = reward_model(sample, ridge=settings.ridge)
    policies = {"Gibbs, exact": gibbs(theta, 1, beta=settings.beta)} | {
        name: climb(sample, theta, 1, ascent, beta=settings.beta, seed=settings.seed) for name, ascent in variants.items()
    }
    found = {}
    for name, policy in policies.items():
        measured = distances(policy.log_policy(sample.fresh), policy.parameter, sample, 1, beta=settings.beta)
        found[name] = {key: Measure.of(measured[key]) for key in ("replace/tv", "rerun/tv", "regret")}
    return found


if __name__ == "__main__":
    print("| method | one pair replaced, TV | rerun, TV | β KL to the optimum |\n|---|---|---|---|")
    for label, measures in controls().items():
        print(f"| {label} | " + " | ".join(f"{m.mean:.2g} ± {m.error or 0:.1g}" for m in measures.values()) + " |")
