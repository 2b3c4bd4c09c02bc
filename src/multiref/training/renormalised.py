"""The mixture that other code uses: pooled and renormalised at each token.
Kept to show what it costs; not the optimum of the stated objective."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiref._logspace import check_weights, weighted_sum
from multiref.errors import ArgumentError
from multiref.models.encoding import Encoded, encode_many
from multiref.models.logps import completion_logits
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.references.scores import SequenceScores, content_keys, same_vocabulary

RENORMALISED = "renormalised tokens"


def renormalised_scores(
    models: Sequence[Any], weights: Any, pairs: Sequence[Any], *, tokenisation: Tokenisation = TOKENISATION
) -> SequenceScores:
    r"""Scores of one reference that is the token-level mixture of K: to train against with `ReverseKL()` and K = 1.

        log π_tok(y) = Σ_t [ Σ_k w_k log π_k(y_t | y_<t) − log F_t ],   F_t = Σ_v Π_k π_k(v | y_<t)^{w_k}

    DPO against it ends at π ∝ π_tok e^{r/β} = (the exact optimum) · e^{D(y)}, D = −Σ_t log F_t ≥ 0:
    a bonus for long completions and for contexts where references disagree (docs/theory.md 5).

    Args:
        models: K `LanguageModel`s with one vocabulary (VocabularyMismatch otherwise).
        pairs: `Pair`s; each unique completion is scored once.
    """
    tokenizers = [each.tokenizer for each in models]
    same_vocabulary([each.name for each in models], [tokenizer.get_vocab() for tokenizer in tokenizers])
    if not all(isinstance(pair.prompt, str) for pair in pairs):
        raise ArgumentError("The token-level mixture is a baseline for plain text; found a conversation. Render it first.")
    texts = list({(p.prompt, side): None for p in pairs for side in (p.chosen, p.rejected)})
    if not texts:
        raise ArgumentError("pairs: expected at least one, found none.")
    encoded = encode_many(tokenizers[0], [(prompt, (side,)) for prompt, side in texts], tokenisation)
    logps = torch.stack([renormalised_logps([each.model for each in models], weights, item) for item in encoded])
    return SequenceScores(
        (RENORMALISED,),
        content_keys([prompt for prompt, _ in texts], [side for _, side in texts]),
        logps[None],
        torch.tensor([[len(item.completions[0]) for item in encoded]]),
        torch.tensor([[item.truncated[0] for item in encoded]]),
    )


@torch.inference_mode()
def renormalised_logps(models: Sequence[nn.Module], weights: Any, item: Encoded) -> Tensor:
    """The log-probability (float64, scalar) of an item's first completion under the token mixture, over the columns that all
    have."""
    logits = [completion_logits(model, item).double().cpu() for model in models]
    width = min(each.shape[-1] for each in logits)
    logps = torch.stack([each[:, :width].log_softmax(-1) for each in logits])
    mixed = weighted_sum(logps, check_weights(weights, len(models))[:, None, None])
    return mixed.log_softmax(-1).gather(-1, torch.tensor(item.completions[0])[:, None]).sum()
