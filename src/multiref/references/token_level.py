"""Token by token, where all vocabularies are the same: the scores of each token, and how far references are apart in full
next-token distributions on a sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiref.divergences import disagreement, kl
from multiref.errors import ModelError, VocabularyMismatch
from multiref.models.architecture import evaluating
from multiref.models.audit import audit_layout
from multiref.models.encoding import Encoded
from multiref.models.logps import completion_logits
from multiref.references.collection import References
from multiref.references.keys import content_key
from multiref.references.local import LocalReference, local_reference
from multiref.references.plan import wanted
from multiref.references.protocol import Item
from multiref.references.scores import TokenScores, same_vocabulary
from multiref.regularizers import check_weights

BUDGET = 2**28  # numbers in memory at once, K × tokens × vocabulary: 1 GiB of float32


def token_scores(references: References, data: Iterable[Any]) -> TokenScores:
    """log π_k(y_t | x, y_<t) of every token of every completion of `data`, under every reference.

    The vocabularies are compared before anything is scored, and must be the same mapping from token to id.
    One reference is in memory at a time.

    Args:
        references: models on this machine.
        data: pairs, rows of TRL's preference format, or (prompt, completion) tuples; repeated ones count once, in order of
            first appearance.

    Errors: VocabularyMismatch naming the first token that differs, or a completion that two references cut into different
    tokens; ModelError for a reference that is no model on this machine.
    """
    opened = _open_all(references)
    texts = {content_key(prompt, completion): (prompt, completion) for prompt, completion in wanted(data)}
    items = [Item(prompt, (completion,)) for prompt, completion in texts.values()]
    rows: list[torch.Tensor] = []
    first: tuple[str, list[tuple[int, ...]]] = ("", [])
    for name, reference in opened.items():
        encoded = reference.encode(items)
        ids, logps = [ids for item in encoded for ids in item.completions], reference.token_logps(encoded)
        reference.release()
        first = first if rows else (name, ids)
        for item, one, other in zip(items, first[1], ids):
            if one != other:
                raise VocabularyMismatch(
                    f"References {first[0]!r} and {name!r} have one vocabulary but cut {str(item.completions[0])[:60]!r} into "
                    f"different tokens ({list(one[:8])}… and {list(other[:8])}…): their tokenizers or chat templates differ. "
                    f"Use sequence-level scores."
                )
        rows.append(torch.cat([torch.empty(0), *logps]).float())
    offsets = torch.tensor([0] + [len(ids) for ids in first[1]], dtype=torch.int64).cumsum(0)
    return TokenScores(tuple(opened), np.frombuffer(b"".join(texts), "V16"), offsets, torch.stack(rows))


@dataclass(frozen=True)
class TokenLevel:
    """Means over the tokens of sampled completions, at the contexts that these completions pass through (not contexts that a
    policy visits).

    kl[i, j]: KL(π_i ‖ π_j) in nats per token, over the whole vocabulary; kl_error its standard error (completions are
    clusters).
    disagreement: −log F_t = −log Σ_v Π_k π_k(v)^{w_k} in nats per token, at `weights`.
    """

    names: tuple[str, ...]
    completions: int
    tokens: int
    kl: tuple[tuple[float, ...], ...]
    kl_error: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    disagreement: float
    disagreement_error: float


def measure_token_level(
    references: References, data: Iterable[Any], *, completions: int = 64, weights: Sequence[float] | None = None
) -> TokenLevel:
    """Score a sample's tokens under every reference, one reference in memory after another, keeping their distributions.

    Args:
        references: models on this machine with one vocabulary.
        data: as for `References.score`; the sample is the first so many completions in the order of content keys, whatever the
            row order.
        completions: how many, less where K × tokens × vocabulary would exceed 2^28 numbers.
        weights: of the disagreement; None: uniform.

    Errors: `VocabularyMismatch` naming the first difference; `ModelError` for references that are no model on this machine.
    """
    opened = _open_all(references)
    first = opened[references.names[0]]
    width = max(first.vocabulary.values()) + 1
    encoded = _sample(first, data, completions, BUDGET // (len(opened) * width))
    texts = [item.completions[0] for item in encoded]
    logps = []
    for name, reference in opened.items():
        logps.append(_distributions(reference, encoded, width))
        reference.release()
        if logps[-1].shape != (sum(map(len, texts)), width):
            raise ModelError(
                f"Reference {name!r} gave {tuple(logps[-1].shape)} for {sum(map(len, texts))} tokens × {width} entries."
            )
    lengths = torch.tensor([len(ids) for ids in texts])
    return _measured(references.names, torch.stack(logps), lengths, check_weights(weights, len(opened)))


def _measured(names: tuple[str, ...], logps: Tensor, lengths: Tensor, weights: Tensor) -> TokenLevel:
    """[K, T, V] → means and errors; a block of tokens at a time, in float64."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    blocks = logps.split(max(1, 2**22 // logps.shape[-1]), dim=1)
    apart = torch.cat([disagreement(block.double(), weights) for block in blocks])
    kls = torch.cat([_kl_matrix(block.double()) for block in blocks], dim=-1)
    error = [[standard_error(each, owner) for each in row] for row in kls]
    return TokenLevel(
        names,
        len(lengths),
        int(lengths.sum()),
        tuple(tuple(row) for row in kls.mean(-1).tolist()),
        tuple(tuple(row) for row in error),
        tuple(weights.tolist()),
        float(apart.mean()),
        standard_error(apart, owner),
    )


def _open_all(references: References) -> dict[str, LocalReference]:
    opened = {name: local_reference(name, references.open(name)) for name in references.names}
    same_vocabulary(list(opened), [reference.vocabulary for reference in opened.values()])
    return opened


def _kl_matrix(logps: Tensor) -> Tensor:
    """[K, t, V] → [K, K, t]: KL(π_i ‖ π_j) at each token."""
    return torch.stack([torch.stack([kl(one, other) for other in logps]) for one in logps]).clamp_min(0)


def standard_error(values: Tensor, groups: Tensor) -> float:
    """Of the mean of `values` [N], clusters `groups` [N] being independent: √(Σ_g (Σ_{j∈g} (v_j − v̄))² · G/(G−1)) / N; of one
    cluster, and of values that are infinite, inf."""
    clusters = int(groups.max()) + 1 if len(groups) else 0
    if clusters < 2 or not bool(values.isfinite().all()):
        return float("inf")
    sums = torch.zeros(clusters, dtype=torch.float64).index_add_(0, groups, values.double() - values.double().mean())
    return float((sums.square().sum() * clusters / (clusters - 1)).sqrt()) / len(values)


@torch.inference_mode()
def _distributions(reference: LocalReference, encoded: Sequence[Encoded], width: int) -> Tensor:
    """[T, width] float32 on the CPU: log π(· | prompt, y_<t) over the common vocabulary at each scored position."""
    with reference.loaded() as model, evaluating(model):
        audit_layout(model, encoded)  # rows run alone here; but is it a causal model, and has it all these tokens?
        return torch.cat([completion_logits(model, item)[:, :width].float().log_softmax(-1).cpu() for item in encoded])


def _sample(reference: LocalReference, data: Iterable[Any], completions: int, tokens: int) -> list[Encoded]:
    unique = {content_key(*text): text for text in wanted(data)}
    items = [Item(prompt, (completion,)) for _, (prompt, completion) in sorted(unique.items())[:completions]]
    encoded = reference.encode(items)
    fitting = sum(total <= tokens for total in accumulate(len(item.completions[0]) for item in encoded))
    return encoded[: max(fitting, 1)]
