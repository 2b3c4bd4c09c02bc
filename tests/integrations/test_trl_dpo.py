"""TRL's DPO on our columns and our trainer follow one loss curve."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import multiref as mr
from multiref.data import Pair
from multiref.errors import ArgumentError, StoreError
from multiref.integrations.trl import with_reference_columns
from multiref.references.scores import SequenceScores, content_keys
from multiref.training import PreferenceTrainer
from tests.training.letters import letter_tokenizer
from tests.training.world import arguments

WEIGHTS = (0.6, 0.4)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def rows():
    words = ["abc", "bcda", "efg", "ghab", "cc", "hello", "of", "stone", "xyz", "w", "qrst", "am"]
    return [{"prompt": f"ask {w}", "chosen": f" yes {w}", "rejected": f" no {w}{w}"} for w in words]


@pytest.fixture
def scores(rows):
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    sides = [row[side] for row in rows for side in ("chosen", "rejected")]
    logps = -30 * torch.rand(2, len(sides), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.tensor([[len(side) for side in sides]] * 2)
    return SequenceScores(("a", "b"), content_keys(prompts, sides), logps, lengths, torch.zeros_like(lengths, dtype=torch.bool))


def test_the_columns_are_the_pool(rows, scores):
    filled = with_reference_columns(Dataset.from_list(rows), scores, mr.ReverseKL(WEIGHTS))
    for at, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            each = scores.of([row["prompt"]], [row[side]])[:, 0]
            assert filled[at][f"ref_{side}_logps"] == pytest.approx(float(0.6 * each[0] + 0.4 * each[1]), rel=1e-12)


def test_bad_input_is_refused(rows, scores):
    with pytest.raises(StoreError, match="no score"):
        with_reference_columns(Dataset.from_list([{**rows[0], "chosen": "other"}]), scores, mr.ReverseKL(WEIGHTS))
    filled = with_reference_columns(Dataset.from_list(rows), scores, mr.ReverseKL(WEIGHTS))
    with pytest.raises(ArgumentError, match="already has"):
        with_reference_columns(filled, scores, mr.ReverseKL(WEIGHTS))


@pytest.mark.parametrize(
    ("rule", "given", "word"),
    [
        (mr.ReverseKL, {"ld_alpha": 0.5}, "^ld_alpha"),
        (mr.ReverseKL, {"loss_type": ["sigmoid", "ipo"]}, "^loss_type: found 'ipo'"),
        (mr.ReverseKL, {"loss_type": "nca_pair"}, "^loss_type"),
        (mr.ReverseKL, {"f_divergence_type": "js_divergence"}, "^f_divergence_type"),
        (mr.ReverseKL, {"f_divergence_type": "alpha_divergence"}, "^f_divergence_type.* of 0.5.*expected 'reverse_kl'"),
        (mr.ForwardKL, {}, "^f_divergence_type: found 'reverse_kl'.*expected 'forward_kl'"),
        (mr.PooledKL, {"f_divergence_type": "forward_kl"}, "^f_divergence_type"),
        (mr.AlphaDivergence, {}, "^f_divergence_type.*f_alpha_divergence_coef=0.5"),
    ],
)
def test_settings_for_which_the_columns_are_no_reference_are_refused(rows, scores, tmp_path, rule, given, word):
    """Adding one number to both sides of a pair must change nothing, and the score must be f' of the pool's divergence."""
    trl = pytest.importorskip("trl")
    from multiref.integrations.trl import ReferenceColumnsDPOTrainer

    def train(rule, scores, given):
        size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(letter_tokenizer()), max_position_embeddings=64, **size))
        settings = {"precompute_ref_log_probs": True, "report_to": "none", "use_cpu": True, "bf16": False}
        args = trl.DPOConfig(str(tmp_path), **settings, **given)
        filled = with_reference_columns(Dataset.from_list(rows), scores, rule)
        return ReferenceColumnsDPOTrainer(model, args=args, train_dataset=filled, processing_class=letter_tokenizer())

    with pytest.raises(ArgumentError, match=word):
        train(rule(WEIGHTS), scores, given)
    alone = SequenceScores(("a",), scores.keys, scores.logps[:1], scores.lengths[:1], scores.truncated[:1])
    if "ld_alpha" not in given:  # the pool of one is that reference, whatever the loss
        train(rule([1.0]), alone, given)


def test_new_data_are_evaluated_after_training_by_their_columns(rows, scores, tmp_path):
    """TRL would ask for a reference model, which nobody has: the same figures as of data that were there from the start."""
    trl = pytest.importorskip("trl")
    from multiref.integrations.trl import ReferenceColumnsDPOTrainer

    tokenizer = letter_tokenizer()
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size))
    settings = {"precompute_ref_log_probs": True, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    args = trl.DPOConfig(str(tmp_path), max_steps=1, learning_rate=0.01, disable_tqdm=True, **settings)
    filled, few = (with_reference_columns(Dataset.from_list(each), scores, mr.ReverseKL(WEIGHTS)) for each in (rows, rows[:5]))
    trainer = ReferenceColumnsDPOTrainer(model, args=args, train_dataset=filled, eval_dataset=few, processing_class=tokenizer)
    trainer.train()
    known, new = trainer.evaluate(), trainer.evaluate(few)
    assert new["eval_loss"] == pytest.approx(known["eval_loss"]) and trainer.ref_model is None
    with pytest.raises(ArgumentError, match="has no column 'ref_chosen_logps'"):
        trainer.evaluate(Dataset.from_list(rows[:5]))


@pytest.mark.slow
def test_same_loss_curve_as_trl(rows, scores, tmp_path):
    """Logistic loss, float32, the same batches in the same order, AdamW: every step's loss equal to 1e-4,
    at a rate that moves it by tenths."""
    pytest.importorskip("trl")
    from trl import DPOConfig

    from multiref.integrations.trl import ReferenceColumnsDPOTrainer

    tokenizer = letter_tokenizer()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size))
    common = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 3e-3,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
    }
    ours = PreferenceTrainer(
        copy.deepcopy(model),
        regularizer=mr.ReverseKL(WEIGHTS),
        beta=0.2,
        scores=scores,
        args=arguments(tmp_path / "ours", **common),
        train_dataset=[Pair(**row) for row in rows],
        processing_class=tokenizer,
    )
    settings = {
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    config = DPOConfig(str(tmp_path / "trl"), beta=0.2, precompute_ref_log_probs=True, max_length=64, **settings, **common)
    filled = with_reference_columns(Dataset.from_list(rows), scores, mr.ReverseKL(WEIGHTS))
    theirs = ReferenceColumnsDPOTrainer(copy.deepcopy(model), args=config, train_dataset=filled, processing_class=tokenizer)
    assert theirs.ref_model is None
    curves = []
    for trainer in (ours, theirs):
        trainer.train()
        curves.append([(line["loss"], line["rewards/margins"]) for line in trainer.state.log_history if "loss" in line])
    losses = torch.tensor(curves)
    assert losses.shape == (2, 9, 2)
    assert float(losses[0, :, 0].max() - losses[0, :, 0].min()) > 0.1
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=0)
