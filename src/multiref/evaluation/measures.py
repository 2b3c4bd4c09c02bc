"""What completions of several contestants say of them, one value a prompt: a metric is [contestants, prompts], NaN where it
is not known."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multiref.data.text import words
from multiref.models.sampling import Rollout
from multiref.references.rollouts import RolloutScorer

MEASURED = ("J", "win rate", "length", "unfinished", "distinct-1", "distinct-2", "self-BLEU")  # and divergences, by reference
Drawn = Mapping[str, Sequence[Rollout]]  # contestant → a rollout of each of the same prompts


def measure_texts(drawn: Drawn, rewards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""{metric: [M, P]}; rewards {contestant: [P, S]}.

        win rate     P(r > r') + ½ P(r = r') against the first contestant, over all pairs of completions but those of one place,
            whose random numbers are the same; NaN of one completion
        length       tokens; unfinished: the share that was cut
        distinct-n   different n-grams of words over all of them, of a prompt's completions together; NaN where none has n words
        self-BLEU    mean BLEU-4 of each completion against the others of its prompt (higher: less diverse)

    Reference: distinct-n, Li et al., 2016; self-BLEU, Zhu et al., 2018, with add-one smoothing above words (Lin and Och, 2004).
    """
    first = next(iter(rewards.values()))
    columns: dict[str, list[list[float]]] = {}
    for name, rollouts in drawn.items():
        rows: dict[str, list[float]] = {"win rate": [_wins(*pair) for pair in zip(rewards[name], first)]}
        for rollout in rollouts:
            texts = [words(completion).split() for completion in rollout.completions]
            rows.setdefault("length", []).append(sum(map(len, rollout.completion_ids)) / len(texts))
            rows.setdefault("unfinished", []).append(1 - sum(rollout.ended) / len(texts))
            for n in (1, 2):
                rows.setdefault(f"distinct-{n}", []).append(_distinct(texts, n))
            rows.setdefault("self-BLEU", []).append(_self_bleu(texts))
        for metric, values in rows.items():
            columns.setdefault(metric, []).append(values)
    return {metric: torch.tensor(rows, dtype=torch.float64) for metric, rows in columns.items()}


def measure_divergences(
    drawn: Drawn, rewards: Mapping[str, Tensor], scorer: RolloutScorer, weights: Tensor, beta: float
) -> dict[str, Tensor]:
    r"""{metric: [M, P]} of contestants whose log π is known, NaN of the others.

        KL(π‖π_k)   k1: mean of ℓ_k = log π − log π_k of whole completions
        k3(π‖π_k)   mean of Σ_t e^{−ℓ_kt} − 1 + ℓ_kt over tokens: never negative; NaN where tokens have no log π
        J           mean of r − β Σ_k w_k ℓ_k

    k3 has k1's mean where every token may be drawn. Where top_k, top_p or min_new_tokens take some out it is less, by the mass
    that π_k gives those, token by token: then only k1 estimates the KL.

    Errors: VocabularyMismatch: token ids are scored, not text.
    """
    scorer.require_aligned()
    columns: dict[str, list[Tensor]] = {}
    for name, rollouts in drawn.items():
        earned = rewards[name]
        owns = [logps for rollout in rollouts for logps in rollout.sampled_logps or [()] * len(rollout.completions)]
        ids = [row for rollout in rollouts for row in rollout.completion_ids]
        scores = scorer.tokens(rollouts)  # [K, N, T]
        own = torch.tensor([math.fsum(logps) if logps else math.nan for logps in owns], dtype=torch.float64)
        gap = (own - scores.double().sum(-1)).view(len(scorer.names), *earned.shape)
        seen = torch.where(weights[:, None, None] > 0, gap, 0.0)  # what weighs nothing may forbid anything
        columns.setdefault("J", []).append((earned - beta * (weights[:, None, None] * seen).sum(0)).mean(-1))
        tokenwise = all(len(logps) == len(row) for logps, row in zip(owns, ids)) and bool(ids)
        third = torch.full_like(gap, math.nan)
        if tokenwise:
            padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(logps).double() for logps in owns], batch_first=True)
            ratio = padded - scores.double()  # 0 where both are padded
            third = (torch.expm1(-ratio) + ratio).sum(-1).view_as(gap)
        for k, reference in enumerate(scorer.names):
            columns.setdefault(f"KL(π‖{reference})", []).append(gap[k].mean(-1))
            columns.setdefault(f"k3(π‖{reference})", []).append(third[k].mean(-1))
    return {metric: torch.stack(rows) for metric, rows in columns.items()}


def _wins(mine: Tensor, theirs: Tensor) -> float:
    """[S], [S'] → share of pairs that are won, ties by half."""
    won, even = mine[:, None] > theirs, mine[:, None] == theirs  # no difference, which of two vetoes is NaN
    apart = ~torch.eye(*won.shape, dtype=torch.bool)
    return float((won.double() + even.double() / 2)[apart].mean())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    every = sum((_grams(words, n) for words in texts), Counter[tuple[str, ...]]())
    return len(every) / every.total() if every else math.nan


def _self_bleu(texts: Sequence[Sequence[str]]) -> float:
    if len(texts) < 2:
        return math.nan
    return sum(_bleu(words, [*texts[:i], *texts[i + 1 :]]) for i, words in enumerate(texts)) / len(texts)


def _bleu(words: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    """BLEU-4 against several references; n-grams above words with one added to both counts. 0 without a common word."""
    if not words:
        return float(any(not each for each in others))
    logs = 0.0
    for n in range(1, 5):
        mine, most = _grams(words, n), Counter[tuple[str, ...]]()
        for each in others:
            most |= _grams(each, n)
        hits, total, more = (mine & most).total(), mine.total(), int(n > 1)
        if hits + more == 0:
            return 0.0
        logs += math.log((hits + more) / (total + more)) / 4
    nearest = min((abs(len(each) - len(words)), len(each)) for each in others)[1]
    return math.exp(logs + min(0.0, 1 - nearest / len(words)))
