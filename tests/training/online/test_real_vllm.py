"""What the doubles claim of vLLM, asked of a running one: sampling, adapters, training with it, and scores as a reference.
Skipped unless two variables name it.

Write a model (or take any small Llama whose head size is 32 or more: vLLM's CPU attention takes no smaller one), serve it,
and run this on the same machine:

    python -m tests.training.online.test_real_vllm MODEL
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
    DO_NOT_TRACK=1 \
        vllm serve MODEL --host 127.0.0.1 --port 8000 --dtype float32 --enforce-eager --max-model-len 128 --enable-lora \
        --override-generation-config '{"top_k": 2, "repetition_penalty": 1.5}'
    MULTIREF_VLLM=http://127.0.0.1:8000/v1 MULTIREF_VLLM_MODEL=MODEL pytest tests/training/online/test_real_vllm.py -n0

The overriding defaults are there to be overridden by what we ask for.
vllm-cpu 0.32.0, whose command does not find its own version: python -m vllm.entrypoints.openai.api_server --model MODEL in
place of vllm serve MODEL. Tolerances are of float32.
"""

import os
import sys

import pytest
import torch

import multiref as mr
from multiref.models import LanguageModel, Tokenisation, load
from multiref.models.logps import score_tokens
from multiref.references.local import LocalReference
from multiref.references.protocol import Item
from multiref.references.server import ServerReference
from multiref.training.online import RLOO, AdapterPush, OnlineArguments, OnlineTrainer, Rule, ServerSampler
from tests.conftest import make_llama, make_tokenizer

ENDPOINT, FOLDER = os.environ.get("MULTIREF_VLLM"), os.environ.get("MULTIREF_VLLM_MODEL")
needs_vllm = pytest.mark.skipif(
    not (ENDPOINT and FOLDER), reason="MULTIREF_VLLM and MULTIREF_VLLM_MODEL name no server and model"
)
PROMPTS = ["the cat", "Once upon a time", ""]


def write_model(folder):
    """A random Llama with head size 32 that ends about one completion in two within 16 tokens."""
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), hidden=64, std=0.1, head_dim=32)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def policy():
    return load(FOLDER)


def adapted(model, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], **options))


def largest_error(model, rollouts):
    """Over all tokens: |log μ as the server gave it − log π as we compute it|."""
    return max(
        float((torch.tensor(logps) - truth).abs().max())
        for rollout in rollouts
        for logps, truth in zip(rollout.sampled_logps, score_tokens(model, [rollout.encoded()]))
    )


@needs_vllm
def test_sampled_logps_are_the_policys(policy):
    sampler = ServerSampler(ENDPOINT, group=16, max_new_tokens=16)
    torch.manual_seed(0)
    rollouts = sampler(policy.model, policy.tokenizer, PROMPTS)
    torch.manual_seed(0)
    again = sampler(policy.model, policy.tokenizer, PROMPTS)
    assert largest_error(policy.model, rollouts) < 1e-4
    assert [r.completion_ids for r in rollouts] == [r.completion_ids for r in again], "the seed is torch's"
    end = policy.tokenizer.eos_token_id
    for rollout in rollouts:
        assert len(set(rollout.completion_ids)) > 1
        for ids, ended in zip(rollout.completion_ids, rollout.ended):
            assert (ids[-1] == end) == ended and end not in ids[:-1] and (ended or len(ids) == 16)


@needs_vllm
def test_first_tokens_follow_the_law(policy):
    """χ² over the tokens expected at least 5 times, the others together: within five standard deviations, √(2 df),
    of its mean df. top_k = 2 would give thousands."""
    n = 4000
    torch.manual_seed(0)
    (rollout,) = ServerSampler(ENDPOINT, group=n, max_new_tokens=1)(policy.model, policy.tokenizer, ["the cat"])
    with torch.no_grad():
        law = policy.model(torch.tensor([rollout.prompt_ids])).logits[0, -1].double().softmax(-1) * n
    counts = torch.bincount(torch.tensor(rollout.completion_ids)[:, 0], minlength=len(law)).double()
    rare = law < 5
    found, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, law))
    freedom = len(expected) - 1
    assert ((found - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


@needs_vllm
def test_pushed_adapters_are_sampled_from(policy, tmp_path):
    model = adapted(policy.model, init_lora_weights=False)
    push = AdapterPush(tmp_path)
    sampler = ServerSampler(ENDPOINT, group=4, max_new_tokens=16, push=push)
    for _ in range(3):  # the second and third differ: nothing cached under the older weights is used
        rollouts = sampler(model, policy.tokenizer, PROMPTS)
        assert largest_error(model, rollouts) < 1e-4
        with model.disable_adapter():
            assert largest_error(model, rollouts) > 0.01
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.add_(0.05 * torch.randn_like(weight))
    assert len([entry for entry in sampler.api.models() if entry["id"].startswith(push.name)]) == 1


@needs_vllm
def test_training_is_on_policy(policy, tmp_path):
    trainer = OnlineTrainer(
        LanguageModel(adapted(policy.model), policy.tokenizer, "policy"),
        mr.ReverseKL([1.0]),
        beta=0.1,
        references={"base": FOLDER},
        prompts=PROMPTS[:2],
        rewards=lambda prompts, completions: [float(text.count("a")) for text in completions],
        args=OnlineArguments(steps=5, prompts_per_step=2, learning_rate=3e-3, max_new_tokens=16),
        rule=Rule(
            RLOO(group=8), sampler=ServerSampler(ENDPOINT, group=8, max_new_tokens=16, push=AdapterPush(tmp_path / "served"))
        ),
    )
    lines = trainer.train()
    assert [line["sampling_ratio"] for line in lines] == pytest.approx([1.0] * 5, abs=1e-4)
    assert lines[-1]["kl"] > 1e-3, "the policy moved"


@needs_vllm
@pytest.mark.parametrize("mode", ["prompt_logprobs", "echo"])
def test_scores_are_those_of_the_folder(policy, mode):
    """Also of a text longer than the context: vLLM keeps one place of it.
    One request at a time, for with --enable-lora vllm-cpu 0.32.0 dies of prompt_logprobs beside others."""
    items = [
        Item("the dog", (" sat on the log", " and the cat")),
        Item("", ("Once upon a time",)),
        Item("what is", (" and the cat" * 80,)),
    ]
    reference = ServerReference(ENDPOINT, tokenizer=policy.tokenizer, mode=mode, concurrency=1)
    found, expected = (
        reference.score(items),
        LocalReference(policy, tokenisation=Tokenisation(max_length=reference.max_length)).score(items),
    )
    assert found.logps == pytest.approx(expected.logps, abs=1e-3)
    assert torch.equal(found.lengths, expected.lengths) and torch.equal(found.truncated, expected.truncated)
    assert found.truncated.any()


if __name__ == "__main__":
    write_model(sys.argv[1])
