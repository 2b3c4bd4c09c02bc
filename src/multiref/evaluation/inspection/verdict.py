"""The evidence in words: which references, which weights, and whether more than one is supported at all."""

from dataclasses import dataclass

from multiref.evaluation.inspection.mixture import Contender, Step, Weighting
from multiref.evaluation.inspection.quality import Quality


@dataclass(frozen=True)
class Verdict:
    """`answer`: "none", "one" or "several" references are supported by the data. `use`: their names; `weights` in their order;
    `broken`: names."""

    answer: str
    use: tuple[str, ...]
    weights: tuple[float, ...]
    broken: tuple[str, ...]
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


NO_PROMISE = (
    "What was measured is how well the pooled reference predicts your preferences. It is no promise of a higher regularised "
    "value: that is convex in the weights, so on that number no mixture beats the best single reference."
)


def judge(
    qualities: list[Quality], steps: list[Step], weighting: Weighting | None, table: list[Contender], doubts: list[str]
) -> Verdict:
    """Selection steps, weights and faults → a verdict."""
    broken = [quality for quality in qualities if quality.faults]
    sentences = [
        f"{quality.name} looks broken ({'; '.join(quality.faults)}). It gets no weight." for quality in broken
    ] + doubts
    names = tuple(quality.name for quality in broken)
    accepted = [step for step in steps if step.accepted]
    refused = steps[-1] if steps and not steps[-1].accepted else None
    if not accepted:
        sentences += _none(qualities, refused)
        return Verdict("none", (), (), names, tuple(sentences))
    assert weighting is not None
    if len(accepted) == 1:
        sentences += _one(accepted[0], refused, {quality.name: quality for quality in qualities})
        return Verdict("one", weighting.names, (1.0,), names, tuple(sentences))
    sentences += _several(accepted, refused, weighting, table)
    return Verdict("several", weighting.names, weighting.weights, names, tuple(sentences))


def _none(qualities: list[Quality], refused: Step | None) -> list[str]:
    if refused is None:
        return ["No reference is left to judge: mend what is broken, score again, and inspect again."]
    best = next(quality for quality in qualities if quality.name == refused.name)
    low, high = best.accuracy_interval
    return [
        f"No reference predicts these preferences better than a coin: the best, {best.name}, is right on "
        f"{best.accuracy:.1%} of the pairs (95 % interval {low:.1%} to {high:.1%}), "
        f"a held-out gain of {refused.gain:+.4f} ± {refused.error:.4f} nats per pair.",
        "This data does not say which reference to use, nor at which weight. "
        "Stay with the reference you want the policy to be close to, or bring more pairs.",
    ]


def _one(step: Step, refused: Step | None, qualities: dict[str, Quality]) -> list[str]:
    best = qualities[step.name]
    low, high = best.accuracy_interval
    sentences = [
        f"Use {step.name} alone. Its margin is right on {best.accuracy:.1%} of the pairs "
        f"(95 % interval {low:.1%} to {high:.1%}), "
        f"{step.gain:.4f} ± {step.error:.4f} nats per held-out pair better than a coin."
    ]
    if refused is not None:
        sentences.append(
            f"The evidence does not support more than one: adding {refused.name} changes the held-out log-likelihood by "
            f"{refused.gain:+.4f} ± {refused.error:.4f} nats per pair; "
            f"it would have to gain {refused.needed:.1f} standard errors."
        )
    return sentences


def _several(accepted: list[Step], refused: Step | None, weighting: Weighting, table: list[Contender]) -> list[str]:
    parts = [
        f"{name} {weight:.2f} [{low:.2f}, {high:.2f}]"
        for name, weight, (low, high) in zip(weighting.names, weighting.weights, weighting.intervals, strict=True)
    ]
    sentences = [f"Use {len(accepted)} references: {', '.join(parts)} (95 % intervals)."]
    sentences += [
        f"Adding {step.name} gains {step.gain:.4f} ± {step.error:.4f} nats per held-out pair "
        f"({step.gain / step.error:.1f} standard errors)."
        for step in accepted[1:]
    ]
    uniform = next((contender for contender in table if contender.name == "uniform"), None)
    if uniform is not None:
        sentences.append(
            f"Uniform weights: {uniform.gain:+.4f} ± {uniform.gain_error:.4f} nats per pair against the best single reference."
        )
    if refused is not None:
        sentences.append(f"Adding {refused.name} as well is not supported ({refused.gain:+.4f} ± {refused.error:.4f}).")
    return [*sentences, NO_PROMISE]
