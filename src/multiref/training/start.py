"""A policy that starts as one of its references: its log-ratio to that reference is 0 at the first step, or one of the two is
not computed as it is stated to be."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from multiref.errors import ArgumentError, ModelError
from multiref.models.fingerprint import (
    config_fingerprint,
    file_weights_fingerprint,
    model_weights_fingerprint,
    tokenizer_fingerprint,
)
from multiref.models.witness import beyond_rounding, dtype_of
from multiref.references.identity import file_identity
from multiref.references.local import LocalReference

if TYPE_CHECKING:
    from multiref.training.dataset import PreferenceData

_log = logging.getLogger("multiref")
_AUTOCAST = {"no": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}  # the first: as the weights are
_TEXT = ("start", "end", "join", "truncation", "chat_template_kwargs")
_HASHED = 2**31  # parameters: a larger model in memory is not hashed to find out what it is
_ROWS = 64  # of each tensor that are compared with its file: a change may be sparse


def starts_as(
    model: nn.Module, tokenizer: Any, identities: Sequence[Mapping[str, Any]], said: Mapping[str, Any] = {}
) -> list[int]:
    """Places of the references that are the policy as it stands, new adapters aside: whole models, not quantised, of its
    tokenizer and weights. What was loaded from the same folder is compared with that, what is in memory by digest.

    Args:
        identities: of `SequenceScores`: each reference's own, with its `location`.
        said: `Tokenisation.identity` of the policy's; a reference with another is none of these.
    """
    adapters = getattr(model, "peft_config", None) or {}
    grown = any(getattr(config, "layer_replication", None) for config in adapters.values())
    if not identities or grown or getattr(model, "quantization_method", None) is not None:
        return []
    tokens, weights = tokenizer_fingerprint(tokenizer), _Whole(model)
    return [
        place
        for place, identity in enumerate(identities)
        if not identity.get("adapter") and not identity.get("quantization") and identity.get("tokenizer") == tokens
        if all(identity.get(name) == said.get(name) for name in _TEXT) and weights.are_those_of(identity)
    ]


def check_ids(data: "PreferenceData", tokenizer: Any, starts_as: Sequence[int]) -> None:
    """Where a reference of the policy's tokenizer scored other token ids: ArgumentError if it is the policy itself, else said,
    for a reference may have a template of its own."""
    for k in data.otherwise:
        if k in starts_as:
            raise ArgumentError(
                f"Reference {data.names[k]!r} has the weights and the tokenizer of the policy, but its scores are of other "
                "token ids than the policy's: it was scored under another chat template. Expected one template on both sides. "
                "Score again with this tokenizer, or give the one that the scores were made with."
            )
        if data.identities and data.identities[k].get("tokenizer") == tokenizer_fingerprint(tokenizer):
            _log.warning(
                "Reference %r has the policy's tokenizer and scored other token ids: by its own chat template or arguments.",
                data.names[k],
            )


def check_start(
    name: str, policy: Tensor, reference: Tensor, lengths: Tensor, *, unit: float, rows: Sequence[str] = ()
) -> float:
    """The largest |log π − log π_k| a token. ModelError where that is more than rounding (`beyond_rounding`).

    Args:
        policy, reference: [N] of whole completions; lengths: [N] tokens. unit: of `rounding_unit`. rows: [N] their names.
    """
    each, at = beyond_rounding(policy, reference, lengths, unit)
    if at is not None:
        where = f" in {rows[at]}" if rows else ""
        raise ModelError(
            f"The policy has the weights of reference {name!r}, but before the first step its log-probabilities differ by "
            f"{float(each[at]):.2g} a token{where}; expected 0 up to rounding. Score again with this tokenisation, "
            "and look for what differs between the two: adapters, dtype, attention, a store of older scores."
        )
    _log.info("The policy starts as reference %r: log-ratio 0, at most %.1g a token.", name, float(each.max()))
    return float(each.max())


def check_first(
    model: Any,
    score: Callable[[], Tensor],
    references: Mapping[str, tuple[Mapping[str, Any], Tensor]],
    lengths: Tensor,
    *,
    autocast: str,
    rows: Sequence[str] = (),
) -> dict[str, float]:
    """`check_start` before the first step, each reference by the formats in which the two are computed; nothing of a policy
    whose adapters were trained before. score: log π of some completions [N], asked again with the adapters off. references:
    name → (identity, log π_k of the same completions [N]), of those that `starts_as` found."""
    own = score() if references else torch.zeros(0)
    if references and hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            if not torch.equal(own, score()):
                return {}
    return {
        name: check_start(name, own, logps, lengths, unit=rounding_unit(model, identity, autocast), rows=rows)
        for name, (identity, logps) in references.items()
    }


def refuse_the_policy(trained: Iterable[Tensor], references: Mapping[str, nn.Module | None]) -> None:
    """ArgumentError where a reference (in memory; else None) shares weights with the policy that train: it would move along."""
    moving = {id(parameter) for parameter in trained}
    for name, model in references.items():
        if model is not None and any(id(parameter) in moving for parameter in model.parameters()):
            raise ArgumentError(
                f"references: {name!r} is the policy itself, and would move with it; expected a model of its own. Give its "
                "folder, or a copy that was loaded apart."
            )


def identity_of(reference: LocalReference) -> dict[str, Any]:
    """Of a reference that scores token ids what `starts_as` compares; of one in files without reading its weights."""
    memory, spec = reference.in_memory, reference.spec
    return {
        "location": reference.name if memory is None else "<memory>",
        "weights": None if memory is None else model_weights_fingerprint(memory),
        "tokenizer": tokenizer_fingerprint(reference.tokenizer),
        **{"dtype": reference.dtype, "adapter": spec.adapter, "quantization": spec.quantization},
    }


def held_elsewhere(model: Any, references: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Digests of what no checkpoint of a model holds: its adapters' settings; the files of its weights that do not train,
    where it was loaded from some; and references on this machine."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    folder = Path(str(getattr(getattr(base, "config", None), "_name_or_path", "") or "/dev/null"))
    adapters = getattr(model, "peft_config", None) or {}
    found: dict[str, Any] = {f"adapter {name}": config_fingerprint(each.to_dict()) for name, each in adapters.items()}
    if any(folder.glob("*.safetensors")) and not all(parameter.requires_grad for parameter in model.parameters()):
        found["weights that do not train"] = file_weights_fingerprint(folder)
    for name, each in references.items():
        if isinstance(each, LocalReference):
            memory = each.in_memory
            found[f"reference {name}"] = file_identity(each.spec) if memory is None else model_weights_fingerprint(memory)
    return found


def rounding_unit(model: nn.Module, identity: Mapping[str, Any], autocast: str) -> float:
    """ε of the coarsest format in which policy (under this autocast) or reference is computed; that of bfloat16 where one is
    not known."""
    theirs = getattr(torch, str(identity.get("dtype")), torch.bfloat16)
    return max(torch.finfo(each).eps for each in (dtype_of(model), theirs, _AUTOCAST.get(autocast, torch.bfloat16)))


class _Whole:
    """The weights of a policy under the names that they have without adapters."""

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        adapters = set(getattr(model, "peft_config", None) or {})
        self._path = str(getattr(getattr(base, "config", None), "_name_or_path", ""))
        self._state: dict[str, Any] = {}
        for name, value in base.state_dict().items():
            parts = name.split(".")
            if not adapters & set(parts):
                self._state[".".join(part for part in parts if part not in ("base_layer", "original_module"))] = value

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def are_those_of(self, identity: Mapping[str, Any]) -> bool:
        where = str(identity.get("location", "<"))
        if where.startswith("<"):
            small = sum(value.numel() for value in self._state.values() if isinstance(value, Tensor)) <= _HASHED
            return small and model_weights_fingerprint(self) == identity.get("weights")  # type: ignore[arg-type]
        folder = Path(self._path)
        return folder.is_dir() and folder.resolve() == Path(where).resolve() and self._are_in(folder)

    def _are_in(self, folder: Path) -> bool:
        """Whether the folder's tensors are these, as far as names agree and some entries tell."""
        known = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a mapping
                    own = self._state.get(name)
                    if isinstance(own, Tensor) and own.ndim:
                        if tuple(tensors.get_slice(name).get_shape()) != tuple(own.shape):
                            return False  # embeddings that were resized: of another softmax
                        known += 1
                        if not torch.equal(tensors.get_slice(name)[:_ROWS].to(own.dtype), own[:_ROWS].cpu()):
                            return False
        return known > len(self._state) / 2
