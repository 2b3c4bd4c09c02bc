"""An evaluation is over every pair, whatever the batch size and what training drops; raw pairs are evaluated as ready ones."""

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError
from multiref.models import LanguageModel, Tokenisation
from multiref.models.small import small_llama, word_tokenizer
from tests.training.world import arguments

WORDS = [f"w{k}" for k in range(8)]
END = Tokenisation(end=False)
PAIRS = [{"prompt": "w0", "chosen": " w1" * (i + 1), "rejected": " w2" * (i % 4 + 1)} for i in range(13)]


def make(folder, *, eval_dataset=None, size=5, drop=False, scored=True, **options):
    tokenizer, model = word_tokenizer(WORDS), small_llama(9, spread=0.3)
    other = LanguageModel(small_llama(9, spread=0.3, seed=1), tokenizer, "other")
    scores = mr.References({"other": other}, tokenisation=END).score(PAIRS)
    data = PAIRS if scored else mr.training.PreferenceData(PAIRS, scores, tokenizer, tokenisation=END)
    return mr.training.PreferenceTrainer(
        model,
        regularizer=mr.ReverseKL(),
        beta=0.3,
        scores=scores if scored else None,
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        tokenisation=END,
        args=arguments(
            folder,
            per_device_eval_batch_size=size,
            per_device_train_batch_size=4,
            dataloader_drop_last=drop,
            **options,
        ),
    )


def test_three_equal_lines(tmp_path):
    lines = [make(tmp_path, eval_dataset=PAIRS, size=n, drop=d).evaluate() for n, d in ((5, False), (5, True), (16, True))]
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_kl/other"):
        assert [line[name] for line in lines] == pytest.approx([lines[0][name]] * 3, rel=1e-6), name
    trainer = make(tmp_path, eval_dataset=PAIRS, drop=True)
    assert trainer.args.dataloader_drop_last and len(trainer.get_train_dataloader()) == 3
    assert len(trainer.predict(PAIRS).predictions) == 13


def test_raw_pairs_are_evaluated_as_ready_ones(tmp_path):
    """By themselves, under names, and beside other data with workers that persist."""
    trainer = make(tmp_path, eval_dataset=PAIRS[:3], dataloader_num_workers=1, dataloader_persistent_workers=True)
    few, all_of_them = trainer.evaluate(), trainer.evaluate(PAIRS)
    whole = make(tmp_path, eval_dataset=PAIRS).evaluate()
    assert all_of_them["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    assert abs(few["eval_loss"] - whole["eval_loss"]) > 1e-3
    named = trainer.evaluate({"a": PAIRS[:3], "b": PAIRS})
    assert named["eval_a_loss"] == pytest.approx(few["eval_loss"], rel=1e-6)
    assert named["eval_b_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    with pytest.raises(ArgumentError, match="expected SequenceScores that cover the pairs, found None"):
        make(tmp_path, scored=False).evaluate(PAIRS)
    assert torch.is_grad_enabled()
