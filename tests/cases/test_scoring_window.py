"""Attention windows in a nested configuration (Gemma 3 with its vision tower) are found on the rows that are scored."""

import copy

import torch

from multiref.models import Encoded, score_completions


def ids(count, seed):
    return tuple(torch.randint(3, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def truth(model, context, completion):
    """float64, one sequence, plain logits."""
    logps = copy.deepcopy(model).double()(torch.tensor([[*context, *completion]])).logits[0].log_softmax(-1)
    return sum(logps[len(context) - 1 + i, token].item() for i, token in enumerate(completion))


def test_gemma3_is_scored_as_it_runs():
    import transformers as tf

    text = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "initializer_range": 0.3,
                "max_position_embeddings": 512, "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
                  "patch_size": 14, "vision_use_head": False}  # fmt: skip
    torch.manual_seed(0)
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=255,
                             boi_token_index=256, eoi_token_index=257)  # fmt: skip
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    context, one, two = ids(30, 1), ids(12, 2), ids(25, 3)
    expected = torch.tensor([truth(model, context, each) for each in (one, two)], dtype=torch.float64)
    found = score_completions(model, [Encoded(context, (one, two), (False, False))])
    assert torch.allclose(found, expected, atol=1e-3)
