"""A reference on this machine: a model folder or hub id, with its own tokenizer; an adapter on a base; quantised if asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError, DataError, ModelError
from multiref.models.encoding import TRUNCATIONS, Encoded, context_limit, encode_many
from multiref.models.fingerprint import (
    config_fingerprint,
    file_weights_fingerprint,
    model_weights_fingerprint,
    text_digest,
    tokenizer_fingerprint,
)
from multiref.models.loading import (
    LanguageModel,
    adapter_base,
    as_dtype,
    best_device,
    load_config,
    load_tokenizer,
    local_folder,
)
from multiref.models.logps import LOGITS_BUDGET
from multiref.models.scoring import score_completions, score_tokens
from multiref.models.shared_base import SharedBase
from multiref.references.protocol import SCORING_VERSION, Item, Scored

__all__ = ["LocalReference"]


class LocalReference:
    """A causal language model that scores text with its own tokenizer and chat template.

    Args:
        what: a model folder, an adapter folder (its base is found by its name in adapter_config.json), a hub id, or a `LanguageModel` in memory.
        adapter: a PEFT adapter to score with; references over one base hold that base once.
        dtype: "auto" is bfloat16 on CUDA and float32 elsewhere.
        device: None takes CUDA, MPS or CPU, in this order; "auto" spreads the layers over all devices (for a model too large for one).
        quantization: "int8" (torch dynamic int8 on the CPU, one completion at a time, for its activations are quantised over the
            whole batch; bitsandbytes on CUDA) or "int4" (bitsandbytes on CUDA).
        end, max_length, truncation: what is scored, as in `models.encode`. max_length is at most the model's context.
        token_budget: tokens in one forward pass; logits_budget: elements of one block of logits. Neither moves a score but by rounding.

    The model is loaded by the first `score` and freed by `release`; `identity` reads files only.
    """

    def __init__(
        self,
        what: str | Path | LanguageModel,
        *,
        adapter: str | Path | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        quantization: str | None = None,
        revision: str | None = None,
        end: bool = True,
        max_length: int | None = None,
        truncation: str = "keep_start",
        token_budget: int | None = None,
        logits_budget: int = LOGITS_BUDGET,
        trust_remote_code: bool = False,
    ) -> None:
        if truncation not in TRUNCATIONS:
            raise ArgumentError(f"truncation is {truncation!r}; expected one of {', '.join(TRUNCATIONS)}.")
        if max_length is not None and max_length < 2:
            raise ArgumentError(f"max_length is {max_length}; expected at least 2 tokens, one to see and one to score.")
        self.end, self.truncation, self.quantization = end, truncation, quantization
        self._max_length, self._token_budget, self._logits_budget = max_length, token_budget, logits_budget
        self._identity: dict[str, Any] | None = None
        self._memory: LanguageModel | None = None
        self._base: SharedBase | None = None
        if isinstance(what, LanguageModel):
            if adapter is not None or quantization is not None:
                raise ArgumentError("A model in memory is scored as it is; put the adapter on, or quantise it, before.")
            self._memory, self.name, self.adapter = what, what.name, None
            self.dtype = next(what.model.parameters()).dtype
            return
        if device != "auto":
            device = torch.device(device) if device is not None else best_device()
        on_cuda = device == "auto" or torch.device(device).type == "cuda"
        self.dtype = as_dtype("bfloat16" if dtype == "auto" and on_cuda else "float32" if dtype == "auto" else dtype)
        self.name, self.adapter = adapter_base(what, adapter)
        self._loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self._base = SharedBase.of(self.name, dtype=self.dtype, device=device, quantization=quantization, **self._loading)
        self._base.claim(self)
        self._tokenizer: Any = None
        self._file_config: Any = None

    def __repr__(self) -> str:
        worn = f" + {self.adapter}" if self.adapter else ""
        return f"LocalReference({self.name}{worn}, {str(self.dtype).removeprefix('torch.')})"

    def identity(self) -> Mapping[str, Any]:
        """What the scores depend on beside the text. See `models.fingerprint` for what is hashed, and how."""
        if self._identity is None or self._memory is not None:
            self._identity = {
                "kind": "local",
                "scoring_version": SCORING_VERSION,
                **(self._memory_weights() if self._memory is not None else self._file_weights()),
                "tokenizer": tokenizer_fingerprint(self.tokenizer),
                "chat_template": _template_digest(self.tokenizer),
                "dtype": str(self.dtype).removeprefix("torch."),
                "quantization": self.quantization and f"{self.quantization} {self._quantizer()}",
                "end": self.end,
                "max_length": self.max_length,
                "truncation": self.truncation,
            }
        return dict(self._identity)

    def score(self, items: Sequence[Item]) -> Scored:
        """log π(completion | prompt) of every completion of every item; DataError where truncation would leave nothing to score."""
        encoded = self.encode(items)
        logps = self._with_model(score_completions, encoded, alone=self._alone)
        lengths = [len(ids) for item in encoded for ids in item.completions]
        truncated = [cut for item in encoded for cut in item.truncated]
        return Scored(logps, torch.tensor(lengths, dtype=torch.int64), torch.tensor(truncated, dtype=torch.bool))

    def token_logps(self, items: Sequence[Item]) -> tuple[list[Tensor], list[Tensor]]:
        """(ids, logps) of each completion in order: its tokens [T] and log π(y_t | x, y_<t) [T] (float32 or as the model has it)."""
        encoded = self.encode(items)
        ids = [torch.tensor(ids, dtype=torch.int64) for item in encoded for ids in item.completions]
        return ids, self._with_model(score_tokens, encoded, alone=self._alone)

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """The items as this reference's token ids, as they are scored."""
        texts = [(item.prompt, item.completions) for item in items]
        options: dict[str, Any] = {"end": self.end, "max_length": self.max_length, "truncation": self.truncation}
        try:
            return encode_many(self.tokenizer, texts, **options)
        except (DataError, ModelError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def release(self) -> None:
        """Frees the model, unless another reference still needs the same base; the next `score` loads it again."""
        if self._base is not None:
            self._base.release(self)

    @property
    def tokenizer(self) -> Any:
        if self._memory is not None:
            return self._memory.tokenizer
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name, **self._loading)
        return self._tokenizer

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token → id, for `TokenScores.checked`."""
        return self.tokenizer.get_vocab()

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and completion together: what was asked for, at most the model's context."""
        return context_limit(self._config(), self._max_length)

    @property
    def _alone(self) -> bool:
        return self.quantization == "int8" and self._quantizer() == "torch dynamic"

    def _quantizer(self) -> str:
        device = torch.device(self._base.options["device"]) if self._base and self._base.options["device"] != "auto" else None
        on_cpu = device is not None and device.type == "cpu"
        return "torch dynamic" if on_cpu and self.quantization == "int8" else "bitsandbytes"

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The model as it scores, its adapter on: `with reference.loaded() as model`. In memory until `release`."""
        if self._base is None:
            assert self._memory is not None
            yield self._memory.model
            return
        self._base.claim(self)
        with self._base.with_adapter(self.adapter) as model:
            yield model

    def _with_model(self, compute: Any, encoded: list[Encoded], **options: Any) -> Any:
        with self.loaded() as model:
            return compute(model, encoded, token_budget=self._token_budget, logits_budget=self._logits_budget, **options)

    def _config(self) -> Any:
        if self._memory is not None:
            return self._memory.model.config
        if self._file_config is None:
            self._file_config = load_config(self.name, **self._loading)
        return self._file_config

    def _memory_weights(self) -> dict[str, Any]:
        assert self._memory is not None
        model = self._memory.model
        return {
            "weights": model_weights_fingerprint(model),
            "config": config_fingerprint(model.config.to_dict()),
            "adapter": None,
        }

    def _file_weights(self) -> dict[str, Any]:
        folder = local_folder(self.name, revision=self._loading["revision"])
        adapter = None
        if self.adapter is not None:
            where = local_folder(self.adapter)
            config = json.loads((where / "adapter_config.json").read_text(encoding="utf-8"))
            adapter = [file_weights_fingerprint(where, "adapter_model*.safetensors"), config_fingerprint(config)]
        return {
            "weights": file_weights_fingerprint(folder),
            "config": config_fingerprint(json.loads((folder / "config.json").read_text(encoding="utf-8"))),
            "adapter": adapter,
        }


def _template_digest(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return (
        None if not template else text_digest(template if isinstance(template, str) else json.dumps(template, sort_keys=True))
    )
