"""A reference on this machine: a model folder or hub id, with its own tokenizer; an adapter on a base; quantised if asked."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from multiref.errors import DataError, ModelError
from multiref.models.adapters import on_base
from multiref.models.architecture import check_rows
from multiref.models.audit import Audit, audit_layout, token_budget_of
from multiref.models.batching import FEWEST, side_by_side
from multiref.models.encoding import Encoded, context_of, encode_many
from multiref.models.forward import LOGITS_BUDGET
from multiref.models.loading import LanguageModel, as_device, as_dtype, load_config, load_tokenizer
from multiref.models.logps import score_completions, score_tokens
from multiref.models.precision import choose_precision
from multiref.models.shared_base import SharedBase
from multiref.models.spec import TOKENISATION, ModelSpec, Tokenisation
from multiref.models.witness import Scores
from multiref.references.identity import file_identity, memory_identity, text_identity
from multiref.references.protocol import Item, Scored

SMALLEST = 64  # tokens of a forward pass, below which fewer do not help


class LocalReference:
    """A causal language model that scores text with its own tokenizer and chat template.

    Args:
        what: a `ModelSpec` or its path alone (a model folder, an adapter folder, a hub id), or a `LanguageModel` in memory.
            References over one base with different adapters hold that base once.
        tokenisation: what is scored. `max_length` is at most the model's context.
        dtype: where the spec names none: "auto" is bfloat16 on CUDA and float32 elsewhere.
        device: None takes CUDA, MPS or CPU, in this order; "auto" spreads the layers over all devices (for a model too large
            for one).
        token_budget: tokens in one forward pass; logits_budget: elements of one block of logits.
            Neither moves a score but by rounding.

    The model is loaded by the first `score` and freed by `release`; `identity` reads files only.
    """

    def __init__(
        self,
        what: str | os.PathLike[str] | ModelSpec | LanguageModel,
        *,
        tokenisation: Tokenisation = TOKENISATION,
        device: str | torch.device | None = None,
        dtype: str = "auto",
        token_budget: int | None = None,
        logits_budget: int = LOGITS_BUDGET,
    ) -> None:
        self._asked, self._token_budget, self._logits_budget = tokenisation, token_budget, logits_budget
        if isinstance(what, LanguageModel):
            self.spec = ModelSpec(what.name or "a model in memory")
            self.dtype = str(next(what.model.parameters()).dtype).removeprefix("torch.")
            self._memory: LanguageModel | None = what
            self.base = SharedBase(self.spec, None, loaded=what)
        else:
            place: str | torch.device = "auto" if device == "auto" else as_device(device or None)
            on_cuda = place == "auto" or torch.device(place).type == "cuda"
            spec = on_base(ModelSpec.of(what))
            if spec.dtype == "auto":
                spec = replace(spec, dtype="bfloat16" if on_cuda else choose_precision(spec).dtype)
            self.dtype = spec.dtype or ("bfloat16" if on_cuda else "float32") if dtype == "auto" else spec.dtype or dtype
            as_dtype(self.dtype)
            self.spec, self._memory = replace(spec, dtype=self.dtype), None
            self.base = SharedBase.of(replace(self.spec, adapter=None), place)
        self.base.claim(self)
        self._obeyed: Audit | None = None
        self._computed: Scores = {}

    @property
    def in_memory(self) -> Any:
        """The model that was given; None where it is loaded from files."""
        return None if self._memory is None else self._memory.model

    @property
    def name(self) -> str:
        """The folder or hub id."""
        return self.spec.path

    def __repr__(self) -> str:
        worn = f" + {self.spec.adapter}" if self.spec.adapter else ""
        return f"LocalReference({self.name}{worn}, {self.dtype})"

    def identity(self) -> Mapping[str, Any]:
        """What the scores depend on beside the text: `references.identity`; `models.fingerprint` for how it is hashed."""
        on_cpu = isinstance(self.base.device, torch.device) and self.base.device.type == "cpu"
        quantizer = "torch dynamic" if on_cpu and self.spec.quantization == "int8" else "bitsandbytes"
        computes = file_identity(self.spec) if self._memory is None else memory_identity(self._memory.model)
        return {
            **text_identity("local", self.tokenizer, self.tokenisation),
            **computes,
            "dtype": self.dtype,
            "quantization": self.spec.quantization and f"{self.spec.quantization} {quantizer}",
        }

    def score(self, items: Sequence[Item]) -> Scored:
        """log π(completion | prompt) of every completion of every item; DataError where truncation would leave nothing to
        score. Where memory runs out, these are scored again with half the tokens in a pass, and with half of those."""
        encoded = self.encode(items)
        with self.loaded() as model:
            check_rows(model, encoded, [item.prompt for item in items])
            budget = 0
            while True:
                try:
                    options = {**self._options, **({"token_budget": budget} if budget else {})}
                    logps = score_completions(model, encoded, layout=self._obeyed, known=self._computed, **options)
                    return Scored.of(logps, encoded, halved=budget)
                except RuntimeError as error:  # on the CPU it is no OutOfMemoryError
                    if not _ran_out(error):
                        raise
                    before = budget or self._token_budget or token_budget_of(model)
                    if (budget := before // 2) < SMALLEST:
                        raise ModelError(
                            f"{self.name}: no memory to score with {before} tokens in a pass. Use a smaller dtype, "
                            "quantization, another device, or a shorter max_length."
                        ) from error
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def audit(self, blocks: Sequence[Sequence[Item]], *, everything: bool = False) -> Audit:
        """The layout that stands for these items, each block of which is scored together (see `models.audit_layout`)."""
        parts = [self.encode(block) for block in blocks]
        encoded = [each for part in parts for each in part]
        self._computed = {}
        with self.loaded() as model:
            check_rows(model, encoded, [item.prompt for block in blocks for item in block])
            cuts = list(accumulate(map(len, parts)))
            return audit_layout(model, encoded, cuts=cuts, everything=everything, scores=self._computed, **self._options)

    def obey(self, audit: Audit | None) -> None:
        """Lay rows out as this audit says, until told otherwise; a row that it does not cover is scored alone. None: rows of
        each call are audited for themselves."""
        self._obeyed = audit

    def ending(self, end: bool) -> "LocalReference":
        """The same reference, with the end token scored or not."""
        other = copy.copy(self)
        other.tokenisation = replace(self.tokenisation, end=end)
        return other

    def token_logps(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """log π(y_t | x, y_<t) of each completion in order: [T] each (float32 or as the model has it)."""
        with self.loaded() as model:
            return score_tokens(model, encoded, **self._options)

    def expect(self, encoded: Sequence[Encoded]) -> None:
        """Audits these rows, as `token_logps` does: it costs nothing more for rows that they cover. Of rows that are too long
        to have others beside them in a pass, the shorter ones to come that have are covered too."""
        with self.loaded() as model:
            room = (self._token_budget or token_budget_of(model)) // FEWEST
            audit_layout(model, [*encoded, *side_by_side(encoded, room)], **self._options)

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """The items as this reference's token ids, as they are scored."""
        try:
            texts = [(item.prompt, item.completions) for item in items]
            return encode_many(self.tokenizer, texts, self.tokenisation, origins=[item.origin for item in items])
        except (DataError, ModelError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def release(self) -> None:
        """Frees the model, unless another reference still needs the same base; the next `score` loads it again."""
        self.base.release(self, self.spec.adapter)

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The model as it scores, its adapter on: `with reference.loaded() as model`. In memory until `release`. Errors inside
        name the reference."""
        self.base.claim(self)
        wrong = ModelError  # by this name where it is left open until the interpreter ends, which takes globals away
        try:
            with self.base.with_adapter(self.spec.adapter) as model:
                yield model
        except wrong as error:
            named = self.spec.adapter or self.name
            raise error if named in str(error) else ModelError(f"{named}: {error}") from error

    @cached_property
    def tokenizer(self) -> Any:
        """The model's, read when it is first asked for."""
        return load_tokenizer(self.spec) if self._memory is None else self._memory.tokenizer

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id, for `same_vocabulary`."""
        vocabulary: Mapping[str, int] = self.tokenizer.get_vocab()
        return vocabulary

    @cached_property
    def tokenisation(self) -> Tokenisation:
        """What was asked for, within the model's context."""
        return self._asked.within(context_of(load_config(self.spec) if self._memory is None else self._memory.model.config))

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and completion together; None: no limit known."""
        return self.tokenisation.max_length

    @property
    def _options(self) -> dict[str, Any]:
        return {"token_budget": self._token_budget, "logits_budget": self._logits_budget}


def _ran_out(error: RuntimeError) -> bool:
    """Whether memory is what lacked, on any device."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


def local_reference(name: str, reference: Any) -> LocalReference:
    """The reference, if it is a model on this machine. ModelError for what has no scores of single tokens."""
    if isinstance(reference, LocalReference):
        return reference
    raise ModelError(
        f"Reference {name!r} is a {type(reference).__name__}; token-level scores and distributions need a model on this "
        "machine (path or hub id). Sequence-level scores are unaffected."
    )
