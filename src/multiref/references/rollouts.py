"""K references scoring completions that were sampled a moment ago: held open, no store, in token ids where a reference shares
the policy's vocabulary."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, VocabularyMismatch
from multiref.models.audit import audit_layout
from multiref.models.encoding import Encoded
from multiref.models.logps import completion_logits
from multiref.models.sampling import Rollout
from multiref.references.collection import References
from multiref.references.local import LocalReference, local_reference
from multiref.references.protocol import Item

__all__ = ["Rollout", "RolloutScorer"]


class RolloutScorer:
    """log π_k of sampled completions under K references.

    A local reference whose vocabulary is the policy's mapping scores the very token ids that were sampled. Any other scores the
    text, in its own tokens: with the end token where the completion ended, without where it was cut off.

    Args:
        references: as of `References`, or one.
        tokenizer: the policy's.
        temperature: of the policy that is trained: log-probabilities are of softmax(logits / temperature).
            Other than 1 only with the policy's vocabulary.
    """

    def __init__(self, references: References | Mapping[str, Any], tokenizer: Any, *, temperature: float = 1.0):
        if not temperature > 0:
            raise ArgumentError(f"temperature: expected a positive number, found {temperature}.")
        collection = references if isinstance(references, References) else References(references)
        self.names, self.temperature = collection.names, temperature
        self.opened = {name: collection.open(name) for name in self.names}
        vocabulary = tokenizer.get_vocab()
        self.aligned = {
            name: isinstance(reference, LocalReference) and dict(reference.vocabulary) == vocabulary
            for name, reference in self.opened.items()
        }
        for name in self.names:
            if temperature != 1 and not self.aligned[name]:
                raise ArgumentError(
                    f"temperature: {temperature} with reference {name!r}, which has another vocabulary and is scored as text, "
                    "at temperature 1. Sample at temperature 1, or use references with the policy's vocabulary."
                )

    def check_context(self, prompts: Sequence[tuple[int, ...]], new_tokens: int) -> None:
        """ArgumentError for a reference (of the policy's vocabulary) whose context cannot hold the longest prompt and
        completion."""
        longest = max(map(len, prompts)) + new_tokens
        for name, reference in self.opened.items():
            limit = getattr(reference, "max_length", None)
            if self.aligned[name] and limit is not None and limit < longest:
                raise ArgumentError(
                    f"references: {name!r} holds {limit} tokens, but a rollout may have {longest} (the longest prompt of "
                    f"{longest - new_tokens} and {new_tokens} new ones). Shorten the prompts or max_new_tokens, or use another."
                )

    def completions(self, rollouts: Sequence[Rollout], names: Sequence[str] | None = None) -> Tensor:
        """[K, N] float64: log π_k(y|x) of every completion, in order."""
        return torch.stack(
            [
                torch.stack([logps.double().sum() for logps in self._tokens(name, rollouts)])
                if self.aligned[name]
                else self._of_text(name, rollouts)
                for name in names or self.names
            ]
        )

    def audit(self, rows: Sequence[Encoded]) -> None:
        """In which layout each reference with the policy's vocabulary scores rows like these, once for all that will come."""
        for name in self.names:
            if self.aligned[name] and self.temperature == 1:
                local_reference(name, self.opened[name]).expect(rows)

    def tokens(self, rollouts: Sequence[Rollout]) -> Tensor:
        """[K, N, T]: log-probabilities of the tokens, zero where padded. VocabularyMismatch where a reference has another
        vocabulary."""
        self.require_aligned()
        return torch.stack(
            [torch.nn.utils.rnn.pad_sequence(self._tokens(name, rollouts), batch_first=True) for name in self.names]
        )

    def require_aligned(self) -> None:
        """VocabularyMismatch unless every reference has the policy's vocabulary."""
        for name, aligned in self.aligned.items():
            if not aligned:
                raise VocabularyMismatch(
                    f"Reference {name!r} has another vocabulary than the policy, or is no local model, so it has no score for "
                    "the policy's tokens. Use the penalty `reward` (whole completions), which works across tokenizers."
                )

    @contextmanager
    def models(self) -> Iterator[list[Any]]:
        """The K models, in order, for sums over the vocabulary and for sampling. VocabularyMismatch as `require_aligned`."""
        self.require_aligned()
        check_apart(self.opened)
        opened = [local_reference(name, reference) for name, reference in self.opened.items()]
        with ExitStack() as stack:
            yield [stack.enter_context(reference.loaded()) for reference in opened]

    def weights(self, name: str) -> dict[str, Tensor] | None:
        """The parameters of a local reference, to compare with a model; None for what is not local."""
        reference = self.opened[name]
        if not isinstance(reference, LocalReference):
            return None
        with reference.loaded() as model:
            return dict(model.named_parameters())

    def _tokens(self, name: str, rollouts: Sequence[Rollout]) -> list[Tensor]:
        encoded, reference = [rollout.encoded() for rollout in rollouts], local_reference(name, self.opened[name])
        if self.temperature == 1:
            return reference.token_logps(encoded)
        with reference.loaded() as model:
            return _tempered(model, encoded, self.temperature)

    def _of_text(self, name: str, rollouts: Sequence[Rollout]) -> Tensor:
        """[N] float64: those that ended with the end token (or as a server is told to score), the others without."""
        reference = self.opened[name]
        ends = torch.tensor([ended for rollout in rollouts for ended in rollout.ended])
        total = torch.zeros(len(ends), dtype=torch.float64)
        for end in (True, False):
            parts = [(r.prompt, tuple(c for c, ended in zip(r.completions, r.ended) if ended == end)) for r in rollouts]
            scorer = reference.ending(end) if isinstance(reference, LocalReference) else reference
            scored = scorer.score([Item(prompt, completions) for prompt, completions in parts if completions])
            if cut := int(scored.truncated.sum()):
                raise ArgumentError(
                    f"references: {cut} of {len(ends)} completions do not fit the context of {name!r} with their prompt. "
                    "Shorten the prompts or max_new_tokens, or use another reference."
                )
            total[ends == end] = scored.logps.double()
        return total


def check_apart(opened: Mapping[str, Any]) -> None:
    """ArgumentError where references cannot be on all at once, as sums over the vocabulary need: adapters of one base."""
    local = [reference for reference in opened.values() if isinstance(reference, LocalReference)]
    if any(each.spec.adapter for each in local) and len({id(each.base) for each in local}) < len(local):
        raise ArgumentError(
            "references: adapters that share one base cannot be on at the same time, which sums over the vocabulary need. "
            "Merge them into their base."
        )


@torch.inference_mode()
def _tempered(model: nn.Module, encoded: Sequence[Encoded], temperature: float) -> list[Tensor]:
    """Token log-probabilities of softmax(logits / temperature), from plain logits, one completion at a time."""
    audit_layout(model, encoded)  # a causal model, and token ids that it has
    found = []
    for item in encoded:
        for index, ids in enumerate(item.completions):
            logits = completion_logits(model, item, index).cpu()
            logps = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
            found.append(logps.gather(-1, torch.tensor(ids)[:, None])[:, 0])
    return found
