"""A product of experts as one student: copies of the teachers whose weighted logits are summed, each of them trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto import AutoConfig, AutoModelForCausalLM

from multiref._logspace import check_weights
from multiref.errors import ArgumentError

__all__ = ["Product", "ProductConfig", "product_of"]


class ProductConfig(PreTrainedConfig):
    """experts: the configuration of each, as a mapping with its model_type; weights: [K]."""

    model_type = "multiref_product"

    def __init__(self, experts: Sequence[dict[str, Any]] = (), weights: Sequence[float] = (), **options: Any) -> None:
        self.experts, self.weights = list(experts), list(weights)
        for name in ("vocab_size", "num_hidden_layers", "max_position_embeddings"):
            options.setdefault(name, min((expert[name] for expert in self.experts), default=0))
        super().__init__(**options)


class Product(PreTrainedModel, GenerationMixin):
    r"""π(v|s) ∝ ∏_k π_k(v|s)^{w_k}, every π_k trained. Made from K teachers it is the pool renormalised at each token; what is left to learn is what follows one:

        pool of completions:  π(v|s) = ∏_k π_k(v|s)^{w_k} F(s, v)/F(s),      F the mass of ∏_k π_k^{w_k} over the completions of a prefix

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
        self.post_init()

    @property
    def experts(self) -> list[Any]:
        return [self.get_submodule(f"expert_{k}") for k in range(len(self.config.experts))]

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool | None = None, **given: Any) -> Any:
        """[B, T] → logits [B, T, V]: Σ_k w_k log π_k, not normalised."""
        cache = past_key_values if past_key_values is not None else DynamicCache() if use_cache else None
        pooled: Any = 0.0
        layers: list[Any] = []
        for k, (weight, expert) in enumerate(zip(self.config.weights, self.experts)):
            own = None
            if cache is not None:
                own = DynamicCache()
                depth = len(cache.layers) // len(self.experts)
                own.layers = cache.layers[k * depth : (k + 1) * depth]
            logits = expert(input_ids=input_ids, past_key_values=own, use_cache=own is not None, **given).logits
            pooled = pooled + weight * logits.log_softmax(-1)
            layers += own.layers if own is not None else []
        if cache is not None:
            cache.layers = layers
        return CausalLMOutputWithPast(logits=pooled, past_key_values=cache)


@torch.no_grad()
def product_of(models: Sequence[Any], weights: Any = None) -> Product:
    """The product of copies of `models`, of one vocabulary and depth. weights: [K] on the simplex; None is uniform."""
    configs = [model.config.to_dict() for model in models]
    for name in ("vocab_size", "num_hidden_layers"):
        if len({config.get(name) for config in configs}) > 1:
            raise ArgumentError(f"product_of: expected models of one {name}, found {[config.get(name) for config in configs]}.")
    first = models[0].config
    ids = {name: getattr(first, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    product = Product(ProductConfig(configs, check_weights(weights, len(models)).tolist(), **ids))
    for expert, model in zip(product.experts, models):
        expert.load_state_dict(model.state_dict())
    product.to(next(models[0].parameters()))
    product.generation_config = copy.deepcopy(models[0].generation_config)
    return product.eval()
