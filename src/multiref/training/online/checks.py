"""Whether policy, references, prompts, weights and penalty fit together: settled before the first step,
each misfit with one message."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from multiref.data import Conversation, as_prompt
from multiref.errors import ArgumentError, MultirefNotice, MultirefWarning
from multiref.models.spec import TOKENISATION
from multiref.references.rollouts import RolloutScorer, check_apart
from multiref.regularizers import ForwardKL, Regularizer, check_beta, check_weights
from multiref.training.online.penalties import FromReferences, NoPenalty, PenaltyInReward, penalty_named
from multiref.training.online.penalty import Penalty

Row = Mapping[str, Any]


def as_rows(prompts: Sequence[Any]) -> list[Row]:
    """Texts or mappings with `prompt` → mappings. ArgumentError for none, or one without; DataError for what is no prompt.
    A row's `system`, `tools` and `chat_template_kwargs` are its prompt's."""
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts]
    if not rows:
        raise ArgumentError("prompts: expected at least one text or mapping with `prompt`, found none.")
    if any("prompt" not in row for row in rows):
        raise ArgumentError("prompts: a row has no `prompt`. Expected one in every row, a string or chat messages.")
    return [{**row, "prompt": as_prompt(row, origin=f"prompt {number}")} for number, row in enumerate(rows, 1)]


def asked(prompts: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    """The prompts, conversations with these arguments of the template where they have not got their own."""
    return [
        prompt
        if isinstance(prompt, str) or not options
        else Conversation(
            prompt,
            tools=getattr(prompt, "tools", ()),
            chat_template_kwargs={**options, **getattr(prompt, "chat_template_kwargs", {})},
        )
        for prompt in prompts
    ]


def check_options(rows: Sequence[Row], options: Mapping[str, Any]) -> None:
    """ArgumentError for arguments of a template that no prompt goes through."""
    if options and all(isinstance(row["prompt"], str) for row in rows):
        raise ArgumentError(
            f"chat_template_kwargs: found {dict(options)}, but every prompt is a text, which no template writes. Give prompts "
            "as lists of messages, or leave it out."
        )


def references_matter(beta: float, references: Any) -> bool:
    """Whether there is a penalty at all; β = 0 with references given is said."""
    if beta == 0:
        if references:
            warnings.warn(
                "beta is 0: the references are ignored, neither scored nor in the metrics.", MultirefWarning, stacklevel=4
            )
        return False
    check_beta(beta)
    return True


def resolve_weights(rows: Sequence[Row], regularizer: Regularizer, names: Sequence[str]) -> Tensor | None:
    """[K], or [K, prompts] where every row has its own; None without references."""
    if not names:
        return None
    given = [row.get("weights") for row in rows]
    if not any(w is not None for w in given):
        return check_weights(regularizer.weights, len(names))
    if any(w is None for w in given) or regularizer.weights is not None:
        raise ArgumentError(
            "weights: expected them in every row of prompts and not in the regularizer, or in the regularizer alone."
        )
    return torch.stack([check_weights(w, len(names)) for w in given], 1)


def resolve_penalty(
    penalty: Penalty | str | None, regularizer: Regularizer, scorer: RolloutScorer | None, weights: Tensor | None
) -> Penalty:
    """The penalty asked for, or the exact one of the regularizer. ArgumentError for a penalty that is no estimator of the
    regularizer; VocabularyMismatch for one that needs tokens which a reference does not have."""
    if scorer is None or weights is None:
        return NoPenalty()
    if penalty is None:
        own_samples = isinstance(regularizer, ForwardKL) and all(scorer.aligned.values()) and weights.ndim == 1
        return FromReferences() if own_samples else PenaltyInReward()
    chosen = penalty_named(penalty) if isinstance(penalty, str) else penalty
    chosen.check(regularizer)
    if chosen.needs != "completions":
        scorer.require_aligned()
    if chosen.needs == "vocabulary":
        check_apart(scorer.opened)
    if chosen.needs == "references" and weights.ndim > 1:
        raise ArgumentError("weights: found them in rows of prompts; samples of the references have one weight a reference.")
    return chosen


def say_of_tokenisation(scorer: RolloutScorer) -> None:
    """A notice where a reference that scores the sampled token ids has been told how to make ids of texts."""
    for name, reference in scorer.opened.items():
        told = getattr(reference, "tokenisation", TOKENISATION)
        if scorer.aligned[name] and replace(told, max_length=None) != TOKENISATION:
            warnings.warn(
                f"references: {name!r} has the policy's vocabulary and scores the token ids that are sampled: its tokenisation "
                "has no effect.",
                MultirefNotice,
                stacklevel=4,
            )
