"""A reward model in transformers' own format: `AutoModelForSequenceClassification` with one label,
so that everything reads what we write."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, ModelError
from multiref.models import ModelSpec, Tokenisation, encode_many
from multiref.models.adapters import on_base
from multiref.models.checkpoint import load_whole
from multiref.models.encoding import as_tokenizer
from multiref.models.loading import LanguageModel, as_device, as_dtype, load_tokenizer
from multiref.training import arguments
from multiref.training.adapters import MARK
from multiref.training.reward.rows import rewards_of_rows

_KEPT = ("start", "end", "join", "chat_template_kwargs")  # of a `Tokenisation`; a limit of tokens was of the training data


def open_reward_model(what: str | ModelSpec, *, device: Any = None) -> LanguageModel:
    """A reward model from a causal language model's folder, or one that was trained already.

    The reward is a linear head on the last token's last hidden state. On a language model that head is new and zero:
    every reward is 0, the loss log 2, and nothing depends on a draw. The padding token must not be the end token,
    for the last token that is not padding is the one that is scored: where the tokenizer has none of its own,
    the unknown token pads, and else the end token.

    Raises:
        ModelError: a folder that cannot be loaded, an architecture without such a head, a model with several labels, an adapter
            or a quantisation, which a model that is to be trained whole cannot have.
    """
    import transformers

    spec = ModelSpec.of(what)
    path_or_id = spec.path
    if spec.quantization is not None or on_base(spec).adapter is not None:
        raise ModelError(
            f"{path_or_id}: found {spec.quantization or 'an adapter'}; expected whole weights. Merge the adapter into its base "
            "and leave quantization out. (As a reward, `RewardModel` takes an adapter's folder.)"
        )
    tokenizer = load_tokenizer(spec)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = (
            tokenizer.unk_token if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id) else tokenizer.eos_token
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{path_or_id}: the tokenizer has no padding, unknown or end token; set pad_token in its tokenizer_config.json."
        )
    model, created = load_whole(
        transformers.AutoModelForSequenceClassification,
        spec,
        creates=("score.*", "classifier.*"),
        num_labels=1,
        dtype=as_dtype(spec.dtype or "float32"),
        **({} if spec.attention is None else {"attn_implementation": spec.attention}),
    )
    head = head_of(model)[1]
    if created:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
    opened: Any = model
    opened.config.pad_token_id = tokenizer.pad_token_id
    return LanguageModel(opened.to(as_device(device)).eval(), tokenizer, str(path_or_id))


def mark(config: Any, tokenisation: Tokenisation) -> None:
    """Notes in a model's configuration how its texts were encoded."""
    setattr(config, MARK, {name: tokenisation.identity()[name] for name in _KEPT})


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and module of the linear head with one output. ModelError where there is none."""
    outer: Any = model
    inner: Any = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    for name in ("score", "classifier"):
        head: Any = getattr(inner, name, None)
        if head is not None:
            outputs = [m.out_features for m in head.modules() if isinstance(m, nn.Linear)]
            if outputs and outputs[-1] != 1:
                raise ModelError(
                    f"The model's head has {outputs[-1]} outputs, expected one: a reward. Load it with num_labels=1."
                )
            return name, head
    raise ModelError(
        f"{type(inner).__name__} has no classification head; expected AutoModelForSequenceClassification with num_labels=1."
    )


@torch.no_grad()
def rewards_of(
    model: Any, tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], *, batch: int = 16, end: bool | None = None
) -> Tensor:
    """N prompts (texts or messages), N completions → [N] float64 rewards, encoded as the model was trained.
    Does not depend on what is beside a text.

    Args:
        end: close each completion with the end token; None: as the model's config says it was trained, else yes.
    """
    if len(prompts) != len(completions):
        raise ArgumentError(f"completions: found {len(completions)} for {len(prompts)} prompts, expected one each.")
    tokenizer = as_tokenizer(tokenizer)
    said = {name: value for name, value in (getattr(model.config, MARK, None) or {}).items() if name in _KEPT}
    tokenisation = Tokenisation(**said | ({} if end is None else {"end": end}))
    encoded = encode_many(tokenizer, [(p, (c,)) for p, c in zip(prompts, completions, strict=True)], tokenisation)
    rows = [(*item.context(0), *item.completions[0]) for item in encoded]
    return rewards_of_rows(model, rows, int(tokenizer.pad_token_id), batch=batch).double().cpu()


def with_lora(model: Any, options: dict[str, Any]) -> Any:
    """A new LoRA adapter on the body, and the head trained whole. ValueError where it does not fit."""
    return arguments.with_lora(model, {"modules_to_save": [head_of(model)[0]], **options}, task="SEQ_CLS")
