"""The evidence in words: which references, which weights, and whether more than one is supported at all."""

import math
from dataclasses import dataclass

from multiref.evaluation.inspection.mixture import Contender, Step, Weighting, fewest
from multiref.evaluation.inspection.quality import Quality
from multiref.evaluation.inspection.score_test import ScoreTest

OPPOSITE = 0.05  # a hint, not a finding: shared among the references


@dataclass(frozen=True)
class Verdict:
    """`answer`: "none", "one" or "several" references are supported by the data, or "too few to tell". `use`: their names;
    `weights` in their order; `broken`: names.
    """

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
    qualities: list[Quality],
    steps: list[Step],
    additions: list[ScoreTest],
    weighting: Weighting | None,
    table: list[Contender],
    doubts: list[str],
    *,
    prompts: int,
) -> Verdict:
    """Selection steps, tests, weights and faults → a verdict: the answer first, then what is to be known of it."""
    broken = [quality for quality in qualities if quality.faults]
    warned = [f"{each.name} looks broken ({'; '.join(each.faults)}). It gets no weight." for each in broken] + doubts

    def verdict(answer: str, said: list[str], use: tuple[str, ...] = (), weights: tuple[float, ...] = ()) -> Verdict:
        return Verdict(answer, use, weights, tuple(quality.name for quality in broken), (*said, *warned))

    if len(broken) == len(qualities):
        return verdict("none", ["No reference is left to judge: mend what is broken, score again, and inspect again."])
    if prompts < (least := fewest(len(qualities) - len(broken))):
        few = f"Too few to tell: there are {prompts} different prompts, and fewer than {least} decide nothing at this level. "
        return verdict("too few to tell", [few + "Bring pairs with more different prompts."])
    known = {quality.name: quality for quality in qualities}
    refused = steps[-1] if steps and not steps[-1].accepted else None
    if weighting is None:
        return verdict("none", [*(_none(known[refused.name], refused) if refused else []), *_opposite(additions, known)])
    used = [step for step in steps if step.accepted and step.name in weighting.names]
    if len(used) == 1:
        alone = next(each for each in table if each.name == f"{used[0].name} alone")
        tested = next(test for test in additions if test.name == used[0].name)
        return verdict("one", _one(tested, alone, refused, known[tested.name]), weighting.names, (1.0,))
    return verdict("several", _several(used, refused, weighting, table, additions), weighting.names, weighting.weights)


def _tested(test: ScoreTest) -> str:
    return f"z = {test.z:.1f}, p = {test.p:.2g}; z = {test.z_without_length:.1f} without what the tokens explain"


def _none(best: Quality, refused: Step) -> list[str]:
    low, high = best.accuracy_interval
    if refused.test.p <= refused.level:
        why = f"{best.name} does predict these preferences ({_tested(refused.test)}), but by less than is worth a model: it"
    else:
        why = f"No reference predicts these preferences better than a coin ({_tested(refused.test)}): the best, {best.name},"
    return [
        f"{why} is right on {best.accuracy:.1%} of the pairs (95 % interval {low:.1%} to {high:.1%}), "
        f"a held-out gain of {refused.gain:+.4f} ± {refused.error:.4f} nats per pair.",
        "This data does not say which reference to use, nor at which weight. "
        "Stay with the reference you want the policy to be close to, or bring more pairs.",
    ]


def _opposite(additions: list[ScoreTest], known: dict[str, Quality]) -> list[str]:
    """Margins that predict the other side, where nothing was chosen."""
    turned = [test for test in additions if test.p_opposite <= OPPOSITE / len(additions)]
    return [
        f"The margins of {test.name} predict the other side (right on {known[test.name].accuracy:.0%}; z = {test.z:.1f}, "
        f"{test.z_without_length:.1f} without what the tokens explain): are chosen and rejected swapped, or do the pairs "
        "prefer what is unlikely?"
        for test in turned
    ]


def _one(test: ScoreTest, alone: Contender, refused: Step | None, best: Quality) -> list[str]:
    """Against a coin, whatever stood beside it when it joined and was dropped since."""
    low, high = best.accuracy_interval
    sentences = [
        f"Use {best.name} alone. Its margin is right on {best.accuracy:.1%} of the pairs (95 % interval {low:.1%} to "
        f"{high:.1%}), {alone.log_likelihood + math.log(2):.4f} ± {alone.error:.4f} nats per held-out pair better than a coin "
        f"({_tested(test)})."
    ]
    if refused is not None:
        short = f"p has to reach {refused.level:.2g}" if refused.test.p > refused.level else "less than is worth a model"
        sentences.append(
            f"The evidence does not support more than one: adding {refused.name} changes the held-out log-likelihood by "
            f"{refused.gain:+.4f} ± {refused.error:.4f} nats per pair ({_tested(refused.test)}; {short})."
        )
    return sentences


def _several(
    used: list[Step], refused: Step | None, weighting: Weighting, table: list[Contender], additions: list[ScoreTest]
) -> list[str]:
    """Each beside those that it joined; where one of these was dropped since, by its test beside all that were kept."""
    parts = [
        f"{name} {weight:.2f} [{low:.2f}, {high:.2f}]"
        for name, weight, (low, high) in zip(weighting.names, weighting.weights, weighting.intervals, strict=True)
    ]
    sentences = [f"Use {len(used)} references: {', '.join(parts)} (95 % intervals)."]
    for step in used[1:]:
        test, size = step.test, f"gains {step.gain:.4f} ± {step.error:.4f} nats per held-out pair"
        if not set(test.given) <= set(weighting.names):
            test, size = next(each for each in additions if each.name == step.name), "is supported"
        sentences.append(f"Adding {step.name} to {', '.join(test.given)} {size} ({_tested(test)}).")
    uniform = next((contender for contender in table if contender.name == "uniform"), None)
    if uniform is not None:
        sentences.append(
            f"Uniform weights: {uniform.gain:+.4f} ± {uniform.gain_error:.4f} nats per pair against the best single reference."
        )
    if refused is not None:
        sentences.append(f"Adding {refused.name} as well is not supported ({refused.gain:+.4f} ± {refused.error:.4f}).")
    return [*sentences, NO_PROMISE]
