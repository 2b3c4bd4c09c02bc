"""Language models that can be enumerated, as a tree of prefixes, and fixed points by backward induction on it.

A model is a list of L tensors; level t is [*S, V^t, V] log-probabilities of the next token at each prefix of t tokens,
prefixes in lexicographic order: prefix i of level t followed by token v is prefix i V + v of level t + 1,
so that walking the tree is reshaping.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiref import exact
from multiref._logspace import NEG_INF
from multiref.divergences import disagreement
from multiref.pools import power_pool
from multiref.regularizers import Regularizer, Weights

Levels = Sequence[Tensor]


def sequence_logps(levels: Levels) -> Tensor:
    """Levels [*S, V^t, V] → [*S, V^L]: log-probabilities of whole completions."""
    total = levels[0].flatten(-2)
    for level in levels[1:]:
        total = (total.unsqueeze(-1) + level).flatten(-2)
    return total


def conditionals(sequence_logps: Tensor, vocabulary: int) -> list[Tensor]:
    """[*S, V^L] log-probabilities → levels [*S, V^t, V]: the language model that has them.
    Prefixes without mass become uniform."""
    levels: list[Tensor] = []
    mass = sequence_logps
    while mass.shape[-1] > 1:
        block = mass.unflatten(-1, (-1, vocabulary))
        mass = block.logsumexp(-1)
        empty = (mass == NEG_INF)[..., None]
        levels.insert(0, torch.where(empty, 0.0, block - torch.where(empty, 0.0, mass[..., None])).log_softmax(-1))
    return levels


def levels_of(rows: Tensor, vocabulary: int) -> list[Tensor]:
    """[*S, (V^L − 1)/(V − 1), V] logits, one row per prefix (as in `Tabular.table`) → levels of log-probabilities."""
    sizes: list[int] = []
    size = 1
    while sum(sizes) < rows.shape[-2]:
        sizes.append(size)
        size *= vocabulary
    return [part.log_softmax(-1) for part in rows.split(sizes, dim=-2)]


def path_tokens(levels: Levels) -> Tensor:
    """Levels [*S, V^t, V] → [*S, V^L, L]: along each completion, the log-probability of each of its tokens."""
    length, vocabulary = len(levels), levels[0].shape[-1]
    return torch.stack(
        [level.flatten(-2).repeat_interleave(vocabulary ** (length - 1 - t), -1) for t, level in enumerate(levels)], -1
    )


def disagreements(ref_levels: Levels, weights: Weights = None) -> list[Tensor]:
    """Levels [K, *S, V^t, V] → levels [*S, V^t]: −log F_t at each prefix."""
    return [disagreement(level, weights) for level in ref_levels]


def renormalised(ref_levels: Levels, weights: Weights = None) -> list[Tensor]:
    """Levels [K, *S, V^t, V] → levels [1, *S, V^t, V]: pooled and renormalised at each token.
    Not the pool of whole completions."""
    return [power_pool(level, weights, order=0.0).log_softmax(-1)[None] for level in ref_levels]


def backward(
    reward: Tensor, ref_levels: Levels, regularizer: Regularizer, *, beta: float, scale: Levels | None = None
) -> list[Tensor]:
    r"""The fixed point of a rule whose penalty at a state looks at that state only:
    from the last token backwards, each prefix solves

        max_{π(·|s)}  Σ_v π(v|s) Q(s, v) − β c(s) D(π(·|s)‖π_k(·|s)),      Q(s, v) = E_π[r | s, v] under the policy below it

    Args:
        reward: [*S, V^L].
        ref_levels: [K, *S, V^t, V] per level.
        scale: c(s), levels [*S, V^t]; None is one.

    Returns: levels [*S, V^t, V]. Reference: DERIVED; the update at a prefix is its visiting probability times the gradient of
    this problem.
    """
    levels: list[Tensor] = []
    to_go = reward
    for t in reversed(range(len(ref_levels))):
        q = to_go.unflatten(-1, (-1, ref_levels[t].shape[-1]))
        stretched = q if scale is None else q / scale[t].unsqueeze(-1)
        levels.insert(0, exact.solve(stretched, ref_levels[t], regularizer, beta=beta).log_policy)
        to_go = (levels[0].exp() * q).sum(-1)
    return levels
