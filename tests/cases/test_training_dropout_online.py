"""Online, a policy that is its reference starts at KL 0 with an effective sample size of 1, dropout in its configuration or
not, whole or with a new adapter."""

import pytest

import multiref as mr
from multiref.models import LanguageModel
from multiref.training.arguments import with_lora
from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer, Rule
from tests.conftest import make_gpt2, make_tokenizer


@pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_policy_that_is_its_reference_starts_at_zero(lora, checkpointing, tmp_path):
    tokenizer = make_tokenizer("bytelevel")
    make_gpt2(len(tokenizer), attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = mr.models.load(tmp_path)
    if checkpointing:
        loaded.model.activation_checkpointing_enable()
    policy = with_lora(loaded.model, {"r": 4, "target_modules": ["c_attn", "c_proj"]}) if lora else loaded.model
    trainer = OnlineTrainer(
        LanguageModel(policy.train(), loaded.tokenizer, "policy"),
        mr.ReverseKL([1.0]),
        beta=0.1,
        references={"self": str(tmp_path)},
        prompts=["a", "b", "c"],
        rewards=lambda prompts, completions: [0.0] * len(completions),
        rule=Rule(RLOO(group=8)),
        args=OnlineArguments(steps=2, prompts_per_step=3, max_new_tokens=8, learning_rate=1e-6),
    )
    for line in trainer.train():
        assert line["kl"] == pytest.approx(0.0, abs=1e-4) and line["ess"] == pytest.approx(1.0, abs=1e-4)
    assert not policy.training
