"""A tiny model of every type that transformers has for causal language modelling, by shrinking its default configuration."""

import copy
import re
from typing import Any

import torch

VOCABULARY = 97

# How a configuration's whole numbers shrink, by name: the first pattern that matches. What matches none stays.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?|entity_vocab_size|n_vocab|n_words", VOCABULARY),
    (r"(swiglu|logit|embedding|residual).*(limit|multiplier|scale)", -1),
    (r"sliding_window|attention_window_size|window_size|local_attention|attention_chunk_size|block_size|index_block_size", 8),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_sequence_length|max_target_positions", 128),
    (r"head_dim|attention_head_dim|global_head_dim|mamba_d_head|mamba_head_dim|v_head_dim|.*_head_dim|d_kv|kv_channels", 8),
    (r"(q|kv|o)_lora_rank|.*_lora_rank|.*lora_rank.*", 8),
    (r".*(num|n)_?.*(key_value|kv)_heads?.*|num_key_value_heads|n_head_kv|multi_query_group_num|attention_groups", 2),
    (r".*heads?|n_heads?|.*num_heads|mamba_n_heads", 4),
    (r"num_experts_per_tok|moe_topk|moe_top_k|top_k|num_experts_per_token|moe_k|experts_per_token|num_experts_per_.*", 2),
    (r"n_group|topk_group|n_groups|mamba_n_groups|num_expert_group.*", 1),
    (r".*(num|n)_(routed_|local_|real_)?experts|num_local_experts|moe_num_experts|n_routed_experts|ffn_num_experts", 4),
    (r".*shared_experts?|zero_expert_num", 1),
    (
        r"first_k_dense_replace|num_dense_layers|n_dense_layers|num_kv_shared_layers|.*nextn.*|.*mtp.*layers.*|first_.*_dense.*",
        1,
    ),
    (r"rotary_dim|rope_dim", 4),
    (r".*intermediate.*|.*ffn_(hidden_)?(size|dim)|d_ff|n_inner|ffn_dim|.*mlp_dim.*|.*ffn_dim|dim_ff|inner_dim", 32),
    (r"hidden_size_per_layer_input|.*per_layer.*", 8),
    (
        r".*hidden_size|d_model|n_embd|.*embed(ding)?_dim|.*embedding_size|dim_model|emb_dim|.*_proj_dim|hidden_dim|lru_width|dim",
        32,
    ),
    (r".*state_size|.*d_state|time_step_rank|dt_rank|.*ssm_.*state.*|mamba_dt_rank", 8),
    (r"chunk_size|mamba_chunk_size", 4),
)
# What no rule knows: a number that must fit another, or kinds of layers that two layers do not show.
KV = next(index for index, (pattern, _) in enumerate(SIZES) if "key_value" in pattern)
LAYERS = r".*num_(hidden_)?layers|n_layers?|(en|de)coder_layers|num_blocks|n_block|num_h_layers|num_l_layers|.*_num_layers"
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
        "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config.head_dim": 16},
    "dots3_note_text": {"head_dim": 16},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "intermediate_size": [32] * 4, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 64,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 2, "num_hidden_layers": 3,
              "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"n_mamba_heads": 8, "mamba_headdim": 8, "attention_hidden_size": 64, "attention_head_dim": 16,
               "hybrid_layer_ids": [1], "layers_block_type": ["linear_attention", "hybrid"]},
}  # fmt: skip
IDS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "sep_token_id": 2,
    "cls_token_id": 1,
}


def names() -> dict[str, str]:
    """Model type → class, of those whose class is `…ForCausalLM` and the few that are called otherwise."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def build(kind: str) -> Any:
    """The model in float32 and evaluation mode, with random weights that make tokens, positions and context matter."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny(CONFIG_MAPPING[kind](), kind)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    shake(model)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model


def tiny(config: Any, kind: str) -> Any:
    special = SPECIAL.get(kind, {})
    values = shrink(config.to_dict())
    for name, value in special.items():
        place, leaf = values, name.split(".")
        for part in leaf[:-1]:
            place = place[part]
        place[leaf[-1]] = value
    values.pop("model_type", None)
    made = type(config)(**values)
    made.is_decoder, made.is_encoder_decoder = True, False
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if hasattr(config, name):
            setattr(made, name, getattr(config, name))
    return made


def shrink(values: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with few layers, narrow; lists with an entry a layer keep one of each kind."""
    values = copy.deepcopy(values)
    layers = {each for name, each in values.items() if re.fullmatch(LAYERS, name) and isinstance(each, int)}
    lists = {
        name: each for name, each in values.items() if isinstance(each, list | tuple) and len(each) > 2 and len(each) in layers
    }
    kinds = {name: list(dict.fromkeys(each)) for name, each in lists.items() if isinstance(each[0], str)}
    deep = max([2, *(len(each) for each in kinds.values())])
    heads = [values.get(name) for name in ("num_attention_heads", "n_head", "n_heads")]
    few = any(each in heads for name, each in values.items() if re.fullmatch(SIZES[KV][0], name))
    for name, value in values.items():
        if isinstance(value, dict) and ("model_type" in value or name.endswith("config")):
            values[name] = shrink(value) if not name.startswith("per_layer") else {}
        elif name in kinds:
            values[name] = (kinds[name] * deep)[:deep]
        elif name in lists:
            values[name] = [_small(name, each) for each in value[:deep]]
        elif name in IDS and isinstance(value, int | list):
            values[name] = IDS[name]
        elif re.fullmatch(LAYERS, name) and isinstance(value, int):
            values[name] = deep
        elif re.fullmatch(SIZES[KV][0], name):
            values[name] = 4 if few or value is None else 2 if type(value) is int and value > 1 else value
        elif name == "head_dim":
            values[name] = 8
        else:
            values[name] = _small(name, value)
    return values


def _small(name: str, value: Any) -> Any:
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), -1)
    return min(size, value) if type(value) is int and size > 0 else value


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Matrices of unit gain; what is a vector keeps its meaning (a norm's one, a decay's range) and moves by a tenth."""
    for _, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = weight[0].numel() if weight.ndim == 2 else weight.shape[-1]
            weight.normal_(0, 1.2 * fan_in**-0.5)
        elif weight.is_floating_point():
            weight += 0.1 * torch.randn_like(weight)
