"""A product of experts as one student: copies of the teachers whose weighted logits are summed, each of them trained."""

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto import AutoConfig, AutoModelForCausalLM

from multiref.errors import ArgumentError
from multiref.models.architecture import cache_argument, takes
from multiref.regularizers import check_weights

_OUTPUTS = {each.name for each in fields(CausalLMOutputWithPast)}


class ProductConfig(PreTrainedConfig):
    """experts: the configuration of each, as a mapping with its model_type; weights: [K]."""

    model_type = "multiref_product"

    def __init__(self, experts: Sequence[dict[str, Any]] = (), weights: Sequence[float] = (), **options: Any) -> None:
        self.experts, self.weights = list(experts), list(weights)
        made = [AutoConfig.for_model(**expert).get_text_config() for expert in self.experts]
        for name in ("vocab_size", "max_position_embeddings"):
            options.setdefault(name, min((known for each in made if (known := getattr(each, name, None))), default=0))
        options["num_hidden_layers"] = sum(each.num_hidden_layers for each in made)  # of its one cache
        super().__init__(**options)


class Product(PreTrainedModel, GenerationMixin):
    r"""π(v|s) ∝ ∏_k π_k(v|s)^{w_k}, every π_k trained. Made from K teachers it is the pool renormalised at each token;
    what is left to learn is what follows one:

        pool of completions:  π(v|s) = ∏_k π_k(v|s)^{w_k} F(s, v)/F(s),      F the mass of ∏_k π_k^{w_k} over the completions of
            a prefix

    K times as large and as slow as one teacher. It has one cache, in which the experts' layers stand one after the other.

    Reference: Hinton, 2002, for products of experts; as a student that begins as its teachers DERIVED.
    """

    config_class = ProductConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: ProductConfig) -> None:
        super().__init__(config)
        made = [AutoConfig.for_model(**expert) for expert in config.experts]
        for k, each in enumerate(made):  # children of their own: transformers looks for tied weights no deeper
            self.add_module(f"expert_{k}", AutoModelForCausalLM.from_config(each))
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def experts(self) -> list[Any]:
        """The K models, in the order of the weights."""
        return [self.get_submodule(f"expert_{k}") for k in range(len(self.config.experts))]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """[B, T] → logits [B, T, V], float32 at least: Σ_k w_k log π_k, not normalised. The cache goes by either name
        that transformers has for it."""
        if any(isinstance(value, Cache) for value in others.values()):
            raise ArgumentError(
                f"A product has one cache, as `cache` or `past_key_values`; found it among {', '.join(others)}."
            )
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep, **others}
        whole = cache if cache is not None else past_key_values
        whole = DynamicCache() if whole is None and use_cache else whole
        depth = 0 if whole is None else len(whole.layers) // len(self.experts)
        pooled: Any = 0.0
        layers: list[Any] = []
        for k, (weight, expert) in enumerate(zip(self.config.weights, self.experts)):
            own = None
            if whole is not None:
                own = DynamicCache()
                own.layers = whole.layers[k * depth : (k + 1) * depth]
            handed = cache_argument(takes(expert), own)
            logits = expert(input_ids=input_ids, use_cache=own is not None, **handed, **given).logits
            pooled = pooled + weight * logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            layers += own.layers if own is not None else []
        if whole is not None:
            whole.layers = layers
        return CausalLMOutputWithPast(logits=pooled, **cache_argument(_OUTPUTS, whole))

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """The mask as it is, for `generate` with a static cache: each expert makes its own of it."""
        return attention_mask


@torch.no_grad()
def product_of(models: Sequence[Any], weights: Any = None) -> Product:
    """The product of copies of `models`, of one vocabulary and depth. weights: [K] on the simplex; None is uniform."""
    configs = [model.config.to_dict() for model in models]
    for name in ("vocab_size", "num_hidden_layers"):
        found = [getattr(model.config.get_text_config(), name, None) for model in models]
        if len(set(found)) > 1:
            raise ArgumentError(f"product_of: expected models of one {name}, found {found}.")
    first = models[0].config
    ids = {name: getattr(first, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    product = Product(ProductConfig(configs, check_weights(weights, len(models)).tolist(), **ids))
    for expert, model in zip(product.experts, models):
        expert.load_state_dict(model.state_dict())
    product.to(next(models[0].parameters()))
    product.generation_config = copy.deepcopy(models[0].generation_config)
    product.train(False)
    return product
