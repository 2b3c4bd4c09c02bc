"""A policy that is its reference starts at log 2, whatever dropout its architecture hides: in modules, attributes, functions,
routers, and under recomputed activations."""

import math

import pytest
import transformers as tf

import multiref as mr
from multiref.models import LanguageModel
from tests.conftest import make_tokenizer
from tests.training.world import arguments

NOISY = {
    "OPT": (tf.OPTConfig, {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"word_embed_proj_dim": 32, "init_std": 0.3, "dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.5}),
    "GPT2": (tf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
        | {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}),
    "Bloom": (tf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
        | {"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "Falcon": (tf.FalconConfig, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}
        | {"initializer_range": 0.3, "hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "Mpt": (tf.MptConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.3}
        | {"emb_pdrop": 0.1, "resid_pdrop": 0.1}),
    "Dbrx": (tf.DbrxConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "resid_pdrop": 0.1}
        | {"attn_config": {"attn_pdrop": 0.1, "kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}
        | {"ffn_config": {"moe_num_experts": 2, "moe_top_k": 1, "moe_jitter_eps": 0.1, "ffn_hidden_size": 32}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("bytelevel")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NOISY)
def test_the_first_loss_is_the_logarithm_of_two(name, checkpointing, tokenizer, tmp_path):
    attention = "eager" if checkpointing or name in ("Bloom", "Mpt", "Dbrx") else "sdpa"
    kind, options = NOISY[name]
    tf.set_seed(0)
    model = tf.AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **options), attn_implementation=attention)
    for module in model.modules():
        if hasattr(module, "attn_dropout_p"):  # Mpt's configuration takes no share here
            module.attn_dropout_p = 0.1
    rows = [{"prompt": f"hello {i}", "chosen": " world", "rejected": " no"} for i in range(4)]
    scores = mr.References({"self": LanguageModel(model.eval(), tokenizer, "m")}).score(rows)
    trainer = mr.training.PreferenceTrainer(
        model.train(),
        regularizer=mr.ReverseKL([1.0]),
        beta=1.0,
        scores=scores,
        train_dataset=rows,
        processing_class=tokenizer,
        args=arguments(
            tmp_path,
            per_device_train_batch_size=4,
            max_steps=2,
            learning_rate=0.0,
            logging_strategy="steps",
            logging_steps=1,
            gradient_checkpointing=checkpointing,
        ),
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-4)
    assert not any(module.training for module in model.modules() if not hasattr(module, "gradient_checkpointing"))
