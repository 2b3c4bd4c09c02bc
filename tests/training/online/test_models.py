"""On transformers: sums over the vocabulary in blocks are the plain ones, rollouts are what they say,
references with other tokenizers score the text."""

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, ModelError
from multiref.models import Generation, LanguageModel, encode_many
from multiref.references.local import LocalReference
from multiref.references.rollouts import RolloutScorer
from multiref.training.online import GRPO, OnlineArguments, OnlineTrainer, Rule, sample
from multiref.training.online.disagreement_smc import estimate_disagreement
from multiref.training.online.distill import TextStates
from multiref.training.online.loop import decay_groups
from multiref.training.online.vocabulary import vocabulary_terms
from tests.conftest import make_gpt2, make_llama, make_tokenizer

PROMPTS = ["the cat sat", "Once upon a time there was"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(chat=True)


@pytest.fixture(scope="module")
def models(tokenizer):
    return [make_llama(len(tokenizer), seed=seed, std=0.1) for seed in range(2)] + [make_gpt2(len(tokenizer), seed=5, std=0.1)]


def reference(model, tokenizer):
    return LocalReference(LanguageModel(model, tokenizer, "memory"))


@pytest.mark.parametrize("budget", [10**8, 2000])
def test_sums_over_the_vocabulary_in_blocks(models, tokenizer, budget):
    """D_t and −log F_t from plain logits of separate rows, and the gradient of their sum in the policy's head;
    with weights per completion."""
    policy, others = models[0], models[1:]
    batch = encode_many(tokenizer, [(PROMPTS[0], (" on the mat", " down")), (PROMPTS[1], (" a dog",))])
    weights = torch.tensor([[0.3, 0.5, 1.0], [0.7, 0.5, 0.0]], dtype=torch.float64)
    logps, divergences, prices = vocabulary_terms(policy, others, batch, weights, logits_budget=budget)
    truth, n = [], 0
    for item in batch:
        for i, ids in enumerate(item.completions):
            row = torch.tensor([list(item.context(i)) + list(ids)])
            at = slice(len(item.context(i)) - 1, -1)
            p = policy(row).logits[0, at].log_softmax(-1)
            pool = sum(w * m(row).logits[0, at].log_softmax(-1).detach() for w, m in zip(weights[:, n].float(), others))
            truth.append(
                torch.stack(
                    [p.gather(-1, torch.tensor(ids)[:, None])[:, 0], (p.exp() * (p - pool)).sum(-1), -pool.logsumexp(-1)], -1
                )
            )
            n += 1
    truth = torch.cat(truth)
    torch.testing.assert_close(torch.stack([logps, divergences, prices], -1), truth, atol=2e-5, rtol=1e-4)
    assert bool((divergences > prices - 1e-5).all())
    ours = torch.autograd.grad(divergences.sum() + logps.sum(), policy.get_input_embeddings().weight)[0]
    plain = torch.autograd.grad(truth[:, 0].sum() + truth[:, 1].sum(), policy.get_input_embeddings().weight)[0]
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)


def test_rollouts_end_where_they_end_and_their_text_is_what_they_add(models, tokenizer):
    torch.manual_seed(0)
    rollouts = sample(models[0], tokenizer, PROMPTS, Generation(12), group=16)
    end = tokenizer.eos_token_id
    for rollout in rollouts:
        for ids, ended in zip(rollout.completion_ids, rollout.ended):
            assert end not in ids[:-1] and (ids[-1] == end) == ended and (ended or len(ids) == 12)
    assert all(rollout.prompt_ids[0] == tokenizer.bos_token_id for rollout in rollouts)
    chats = sample(models[0], tokenizer, [({"role": "user", "content": "hi"},)], Generation(3), group=2)
    assert chats[0].completions[0][0]["role"] == "assistant"


def test_sampling_ignores_the_models_own_sampling_settings(models, tokenizer):
    """A generation_config with top_k = 1 would make every completion the same."""
    model = make_llama(len(tokenizer), seed=0, std=0.1)
    model.generation_config.top_k, model.generation_config.do_sample, model.generation_config.temperature = 1, True, 0.01
    torch.manual_seed(0)
    assert len(set(sample(model, tokenizer, PROMPTS[:1], Generation(6), group=16)[0].completion_ids)) > 12


def test_a_reference_with_another_tokenizer_scores_the_text(models, tokenizer):
    foreign = make_tokenizer("bytelevel")
    other = reference(make_llama(len(foreign), seed=9, std=0.1), foreign)
    scorer = RolloutScorer({"same": reference(models[1], tokenizer), "foreign": other}, tokenizer)
    assert scorer.aligned == {"same": True, "foreign": False}
    torch.manual_seed(1)
    rollouts = sample(models[0], tokenizer, PROMPTS, Generation(5), group=6)
    scores = scorer.completions(rollouts)
    n = 0
    for rollout in rollouts:
        for text, ids, ended in zip(rollout.completions, rollout.completion_ids, rollout.ended):
            context = foreign(rollout.prompt)["input_ids"]
            whole = foreign(rollout.prompt + text)["input_ids"] + [foreign.eos_token_id] * ended
            for k, (model, start, row) in enumerate(
                [(models[1], rollout.prompt_ids, [*rollout.prompt_ids, *ids]), (other._memory.model, context or [1], whole)]
            ):
                if k == 1 and whole[: len(context)] != context:
                    continue  # a token straddles the boundary: encoded as a continuation, tested with `encode`
                logits = model(torch.tensor([row])).logits[0, len(start) - 1 : -1].log_softmax(-1)
                truth = logits.gather(1, torch.tensor(row[len(start) :])[:, None]).sum()
                assert float(scores[k, n]) == pytest.approx(float(truth), abs=2e-4)
            n += 1


@pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
def test_a_transformer_trains_with_references_of_two_tokenizers(models, tokenizer):
    """The reward goes up and the KL stays counted: 12 steps towards completions that end at once."""
    foreign = make_tokenizer("bytelevel")
    references = {
        "same": reference(models[1], tokenizer),
        "foreign": reference(make_llama(len(foreign), seed=9, std=0.1), foreign),
    }
    policy = make_llama(len(tokenizer), seed=0, std=0.1)
    trainer = OnlineTrainer(
        LanguageModel(policy, tokenizer, "policy"),
        mr.ReverseKL((0.6, 0.4)),
        beta=0.001,
        references=references,
        prompts=PROMPTS,
        rule=Rule(GRPO(group=16, updates=2)),
        rewards=lambda completions, **_: [float("e" in text) for text in completions],
        args=OnlineArguments(steps=12, prompts_per_step=2, max_new_tokens=6, learning_rate=5e-3, schedule="constant"),
    )
    lines = trainer.train()
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2
    assert lines[0]["kl"] == pytest.approx(0.6 * lines[0]["kl/same"] + 0.4 * lines[0]["kl/foreign"])


def test_a_rollout_that_a_context_cannot_hold_is_refused(models, tokenizer):
    short = LocalReference(LanguageModel(make_llama(len(tokenizer), context=20), tokenizer, "short"))
    make = {
        "prompts": PROMPTS,
        "rewards": lambda completions, **_: [0.0] * len(completions),
        "beta": 0.1,
    }
    with pytest.raises(ArgumentError, match="'short' holds 20 tokens"):
        OnlineTrainer(
            LanguageModel(make_llama(len(tokenizer)), tokenizer, "policy"),
            mr.ReverseKL(),
            references={"short": short},
            args=OnlineArguments(max_new_tokens=30),
            **make,
        )
    with pytest.raises(ArgumentError, match="the policy holds 20"):
        OnlineTrainer(
            LanguageModel(make_llama(len(tokenizer), context=20), tokenizer, "policy"),
            mr.ReverseKL(),
            references={"a": reference(models[1], tokenizer)},
            args=OnlineArguments(max_new_tokens=30),
            **make,
        )


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_policy_with_tokens_of_its_own_before_the_text_is_refused(kind, models, tokenizer):
    import peft

    policy = peft.get_peft_model(make_llama(len(tokenizer)), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="virtual tokens"):
        OnlineTrainer(
            LanguageModel(policy, tokenizer, "policy"),
            mr.ReverseKL(),
            beta=0.1,
            references={"a": reference(models[1], tokenizer)},
            prompts=PROMPTS,
            args=OnlineArguments(max_new_tokens=3),
        )


def test_states_along_a_text(models, tokenizer):
    states = TextStates({PROMPTS[0]: " on the mat"}, share=1.0, max_new_tokens=4)
    torch.manual_seed(0)
    given, sampled = states(models[0], tokenizer, PROMPTS)
    (encoded,) = encode_many(tokenizer, [(PROMPTS[0], (" on the mat",))])
    assert given.completion_ids == (encoded.completions[0][:4],) and given.prompt_ids == encoded.prompt_ids
    assert sampled.prompt == PROMPTS[1] and len(sampled.completion_ids[0]) <= 4


def test_the_floor_by_sequential_monte_carlo():
    """Against −log F of two enumerable tables: within 4 of its standard errors, which are small."""
    from multiref.models import tabular_tokenizer
    from tests.training.online.tables import random_table

    tables = [random_table(1, prompts=1), random_table(2, prompts=1)]
    truth = float(mr.divergences.disagreement(torch.stack([t.sequence_logps().detach() for t in tables]), (0.3, 0.7))[0])
    estimate, error = estimate_disagreement(
        tables, tabular_tokenizer(tables[0]), "x0", new_tokens=3, weights=(0.3, 0.7), particles=4000
    )
    assert truth > 0.2 and error < 0.02 and abs(estimate - truth) < 4 * error


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_what_decays_is_what_decays_in_transformers_trainers(make):
    from transformers import Trainer

    model = make(30)
    named = dict(model.named_parameters(remove_duplicate=False))
    decayed, others = decay_groups(list(model.parameters()), 0.1)
    assert set(decayed["params"]) == {named[name] for name in Trainer.get_decay_parameter_names(None, model)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
