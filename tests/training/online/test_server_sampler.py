"""Completions from a server: the ids and log-probabilities that it drew, weighted by π/μ where its weights are old,
and refusals of what cannot be weighted."""

import copy

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, ModelError, ReferenceUnavailable
from multiref.models import encode_many
from multiref.models.logps import score_tokens
from multiref.references.completion_api import CompletionApi, Connection
from multiref.training.online import RLOO, AdapterPush, ServerSampler
from tests.conftest import make_llama, make_tokenizer
from tests.training.online.sampling_server import sampling
from tests.training.online.tables import kl_to, make_trainer, random_table, reward_function, reward_table
from tests.training.online.test_loop import TABLES, W, optimum


@pytest.mark.parametrize("forget", ["", "ids"])
def test_what_the_server_drew_is_what_the_loop_sees(forget):
    """With token_ids, or with tokens spelt as token_id:…; log-probabilities are the model's own, so that π/μ is one."""
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.1)
    torch.manual_seed(0)
    with sampling(model, forget=forget) as server:
        rollouts = ServerSampler(server.endpoint, group=3, max_new_tokens=4)(
            model, tokenizer, ["the cat", ({"role": "user", "content": "hi"},)]
        )
        (_, body), *_ = server.requests
    assert body["temperature"] == 1.0 and body["n"] == 3 and body["max_tokens"] == 4
    assert rollouts[0].prompt_ids == encode_many(tokenizer, [("the cat", ())])[0].prompt_ids
    assert rollouts[1].completions[0][0]["role"] == "assistant"
    for rollout in rollouts:
        assert [len(row) for row in rollout.sampled_logps] == [len(row) for row in rollout.completion_ids]
        for ids, logps, truth in zip(rollout.completion_ids, rollout.sampled_logps, score_tokens(model, [rollout.encoded()])):
            assert len(ids) == len(logps) and torch.tensor(logps) == pytest.approx(truth.double(), abs=1e-4)


@pytest.mark.slow
def test_an_old_server_is_weighted_by_the_ratio():
    """The server's policy is not ours and never will be. The mean update over many completions is that of the enumerated
    objective, which it is not without the ratio."""
    policy, behaviour = random_table(1, prompts=1, spread=0.7), random_table(5, prompts=1, spread=0.7)
    tables = [random_table(seed, prompts=1, spread=0.7) for seed in (1, 2)]
    values = reward_table(policy)
    other = copy.deepcopy(policy)
    refs = torch.stack([table.sequence_logps().detach() for table in tables])
    objective = mr.exact.value(other.sequence_logps(), values, refs, mr.ReverseKL(W), beta=0.5).sum()
    (truth,) = torch.autograd.grad(objective, other.table)

    def update(weighted):
        trained = copy.deepcopy(policy)
        with sampling(behaviour) as server:
            sampler = ServerSampler(server.endpoint, group=3000, max_new_tokens=3, on_policy=False)

            def drawn(*arguments):
                (rollout,) = sampler(*arguments)
                return [
                    rollout
                    if weighted
                    else type(rollout)(
                        *[getattr(rollout, n) for n in ("prompt", "completions", "prompt_ids", "completion_ids", "ended")]
                    )
                ]

            trainer = make_trainer(
                trained,
                tables,
                mr.ReverseKL(W),
                rewards=reward_function(policy, values),
                steps=1,
                method=RLOO(group=3000),
                sampler=drawn,
                args={"prompts_per_step": 1, "max_grad_norm": None, "learning_rate": 0.0},
            )
            line = trainer.train()[0]
        return -trained.table.grad, line

    gradient, line = update(weighted=True)
    assert line["sampling_ratio"] == pytest.approx(1, abs=0.1)
    size = float(truth.norm())
    assert float((gradient - truth).norm()) < 0.2 * size
    assert float((update(weighted=False)[0] - truth).norm()) > 0.4 * size


def test_pushing_every_few_steps_ends_at_the_optimum():
    policy = random_table(1, spread=0.7)
    regularizer = mr.ReverseKL(W)
    with sampling(copy.deepcopy(policy)) as server:

        def push(model, api):
            server.model = copy.deepcopy(model)

        sampler = ServerSampler(server.endpoint, group=24, max_new_tokens=3, push=push, every=2)
        trainer = make_trainer(
            policy,
            TABLES,
            regularizer,
            rewards=reward_function(policy, reward_table(policy)),
            steps=40,
            method=RLOO(group=24),
            sampler=sampler,
            args={"learning_rate": 0.15, "max_grad_norm": None},
        )
        lines = trainer.train()
    before, after = kl_to(random_table(1, spread=0.7), optimum(regularizer)), kl_to(policy, optimum(regularizer))
    assert after < 0.1 * before
    assert (
        lines[0]["sampling_ratio"] == pytest.approx(1.0, abs=1e-9) and abs(lines[1]["sampling_ratio"] - 1) > 1e-6
    )  # fresh, then one step old


def test_adapters_are_pushed_as_vllm_takes_them(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    tokenizer = make_tokenizer(chat=True)
    base = make_llama(len(tokenizer), std=0.1)
    policy = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with sampling(base, opener=lambda path: PeftModel.from_pretrained(copy.deepcopy(base), path)) as server:
        sampler = ServerSampler(server.endpoint, group=2, max_new_tokens=3, push=AdapterPush(tmp_path))
        for _ in range(2):
            rollout = sampler(policy, tokenizer, ["the cat"])[0]
        assert len(server.adapters) == 1 and len(list(tmp_path.iterdir())) == 1, "the older one is taken back"
        assert [path for path, _ in server.requests].count("load_lora_adapter") == 2
        assert server.requests[-1][1]["model"] == next(iter(server.adapters))
        truth = score_tokens(policy, [rollout.encoded()])
        assert torch.tensor(rollout.sampled_logps[0]) == pytest.approx(truth[0].double(), abs=1e-4)
        with pytest.raises(ArgumentError, match="LoRA adapter"):
            AdapterPush(tmp_path)(base, sampler.api)


def test_a_server_that_keeps_its_first_weights_is_found_out_once_the_policy_has_moved(tmp_path):
    """It takes every adapter and samples from its base: right at the first call, where the adapter changes nothing yet."""
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer(chat=True)
    base = make_llama(len(tokenizer), std=0.1)
    policy = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with sampling(base, opener=lambda path: base) as server:
        sampler = ServerSampler(server.endpoint, group=4, max_new_tokens=8, push=AdapterPush(tmp_path))
        sampler(policy, tokenizer, ["the cat"])
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(0))
        with pytest.raises(ModelError, match="has other weights"):
            sampler(policy, tokenizer, ["the cat"])


def test_defaults_of_the_servers_model_cut_nothing():
    """vLLM samples by the model's generation_config.json where a request is silent, and its log-probabilities do not show it.
    All are drawn from: with top_k = 1 one."""
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.01)
    torch.manual_seed(0)
    with sampling(model, defaults={"top_k": 1, "temperature": 0.1}) as server:
        (rollout,) = ServerSampler(server.endpoint, group=16, max_new_tokens=1)(model, tokenizer, ["the cat"])
        (_, body), *_ = server.requests
    assert len(set(rollout.completion_ids)) > 8
    neutral = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert neutral.items() <= body.items()


@pytest.mark.parametrize("options", [{"defaults": {"max_new_tokens": 2}}, {"context": 5}])
def test_a_completion_that_the_server_cut_is_refused(options):
    """vLLM lowers max_tokens, and says so only by finish_reason; a longer completion has another probability.
    A prompt without any room it refuses."""
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.1)
    torch.manual_seed(0)
    with sampling(model, **options) as server:
        sampler = ServerSampler(server.endpoint, group=2, max_new_tokens=4)
        with pytest.raises(ReferenceUnavailable, match=r"cut a completion at 2 tokens, max_new_tokens is 4"):
            sampler(model, tokenizer, ["the cat"])
        if "context" in options:
            with pytest.raises(ReferenceUnavailable, match=r"max_tokens must be at least 1"):
                sampler(model, tokenizer, ["the cat sat on the mat and the dog sat on the log"])


def test_an_adapter_that_the_server_cannot_use_is_said(tmp_path):
    """vLLM answers 500 to it, as to trouble that passes."""
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(make_llama(60), LoraConfig(r=32, target_modules=["q_proj"]))

    def opener(path):
        raise ValueError("LoRA rank 32 is greater than max_lora_rank 16.")

    with (
        sampling(make_llama(60), opener=opener) as server,
        pytest.raises(
            ReferenceUnavailable, match=r"rank 32 is greater than max_lora_rank 16.*needs --enable-lora, --max-lora-rank"
        ),
    ):
        AdapterPush(tmp_path)(policy, CompletionApi(server.endpoint, Connection(attempts=2, pause=0.001)))


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        ({"min_p": 0.1}, "does not draw from the policy.*min_p"),
        ({"temperature": 0.6}, "does not draw from the policy"),
        ({"temperature": 1.6}, "does not draw from the policy"),
    ],
)
def test_a_server_that_bends_what_it_draws_is_found_out(hidden, words):
    """It states the policy's own log-probabilities (vLLM's raw_logprobs); what it drew gives it away."""
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.3)
    torch.manual_seed(0)
    with sampling(model, hidden=hidden) as server, pytest.raises(ModelError, match=words):
        ServerSampler(server.endpoint, group=16, max_new_tokens=16)(model, tokenizer, ["the cat"])


def test_a_server_with_other_weights_is_found_out():
    tokenizer = make_tokenizer(chat=True)
    with sampling(make_llama(len(tokenizer), seed=1)) as server, pytest.raises(ModelError, match=r"has other weights"):
        ServerSampler(server.endpoint, group=4, max_new_tokens=8)(make_llama(len(tokenizer)), tokenizer, ["the cat"])


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ("logprobs", "token_logprobs"),
        ("end", "without an end token"),
        ("prompt", "answered to other tokens than were sent"),
        ("limit", "has 9 tokens, 8 were asked for"),
        ("ends", "goes on behind an end token"),
        ("vocabulary", "Token id 1000000 occurs in a completion of the prompt 'the cat'"),
        ("null", "null for a token that it sampled"),
        ("clamp", "stands for a probability"),
    ],
)
def test_answers_that_cannot_be_weighted_are_refused(forget, words):
    tokenizer = make_tokenizer(chat=True)
    model = make_llama(len(tokenizer), std=0.1)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    torch.manual_seed(0)
    with sampling(model, forget=forget) as server, pytest.raises((ReferenceUnavailable, ModelError), match=words):
        ServerSampler(server.endpoint, group=12, max_new_tokens=8)(model, tokenizer, ["the cat"])  # some end, some are cut


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="every"):
        ServerSampler("http://127.0.0.1:1/v1", group=1, max_new_tokens=1, every=0)
