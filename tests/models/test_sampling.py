"""The sampler against enumeration, against the model's own log-probabilities, and against generation settings that must not
bend it."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from multiref.errors import ArgumentError, ModelError
from multiref.models import Generation, Tabular, Tokenisation, product_of, sample, score_tokens, tabular_tokenizer
from multiref.models.sampling import Reader, decode_behind, draw
from multiref.serving.token_pool import _spelt
from tests.conftest import make_llama, make_tokenizer

PROMPTS = ["the cat", "a dog sat on the mat and", "Once"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_llama(len(tokenizer), seed=3)


EIGHT = Generation(8)


def drawn(model, tokenizer, generation=EIGHT, *, group=3, seed=0, prompts=PROMPTS, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample(model, tokenizer, prompts, generation, group=group, generator=generator, **options)


def check_logps(model, rollouts, *, atol=2e-5):
    """sampled_logps are the model's, in evaluation mode, at temperature 1."""
    truth = score_tokens(model, [rollout.encoded() for rollout in rollouts])
    found = [torch.tensor(row) for rollout in rollouts for row in rollout.sampled_logps]
    for row, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(row, expected.to(row), rtol=0, atol=atol)


BENT = {
    "min_p": {"min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "suppress_tokens": {"suppress_tokens": list(range(5, 300))},
    "temperature": {"do_sample": True, "temperature": 0.05, "top_k": 1, "top_p": 0.1},
    "bad_words": {"no_repeat_ngram_size": 1, "typical_p": 0.2, "forced_eos_token_id": 7},
}


@pytest.mark.parametrize("name", BENT)
def test_generation_settings_of_the_model_do_not_bend_the_distribution(name, model, tokenizer):
    """The same ids as without them, and the stated log-probabilities are the model's: min_p alone once raised their mean by 0.2
    nats."""
    bent = copy.deepcopy(model)
    bent.generation_config.update(**BENT[name])
    found = drawn(bent, tokenizer)
    assert found == drawn(model, tokenizer)
    check_logps(model, found)


def test_frequencies_are_the_tables():
    """4,000 answers of a table with 9: every frequency within four standard errors, and every log-probability exact."""
    table = Tabular(3, 2, 2).assign(torch.randn(2, 9, generator=torch.Generator().manual_seed(1)))
    rollouts = drawn(table, tabular_tokenizer(table), Generation(2), group=4000, prompts=["x0", "x1"])
    truth = table.sequence_logps().detach()
    for rollout, logps in zip(rollouts, truth):
        answers = torch.tensor([3 * a + b for a, b in rollout.completion_ids])
        p = logps.exp()
        assert bool(((answers.bincount(minlength=9) / 4000 - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all())
        torch.testing.assert_close(torch.tensor(rollout.sampled_logps).double().sum(1), logps[answers], rtol=0, atol=1e-6)


def test_a_prompt_is_read_as_if_it_were_alone(model, tokenizer):
    """Padding on the left changes nothing: the likeliest completion beside longer prompts, and in a batch of one."""
    greedy = Generation(8, temperature=0)
    together = drawn(model, tokenizer, greedy, group=2)
    assert together == [drawn(model, tokenizer, greedy, group=2, prompts=[prompt])[0] for prompt in PROMPTS]
    assert all(rollout.completion_ids[0] == rollout.completion_ids[1] for rollout in together)
    assert together[0].sampled_logps == tuple((0.0,) * len(ids) for ids in together[0].completion_ids)
    check_logps(model, drawn(model, tokenizer))


@pytest.mark.parametrize("options", [{"cache": "static"}, {"batch": 3}, {"batch": 1}])
def test_how_it_is_computed_has_no_effect(options, model, tokenizer):
    """Caches and batches: where they leave the order of the draws as it is, the same completions."""
    plain = drawn(model.double(), tokenizer, prompts=PROMPTS[:1] if "batch" in options else PROMPTS)
    other = drawn(model, tokenizer, replace(Generation(8), **options), prompts=PROMPTS[:1] if "batch" in options else PROMPTS)
    assert [each.completion_ids for each in plain] == [each.completion_ids for each in other]


@pytest.mark.parametrize("tokens", [7, 8, 30])
def test_an_accelerator_that_is_asked_seldom_draws_the_same(tokens, tokenizer, monkeypatch):
    """Rows that end early and rows that are cut; and the generator goes on from where it would be."""
    model, found = make_llama(len(tokenizer), seed=3, std=0.3), []
    for patience in (1, 8):
        monkeypatch.setattr(Reader, "patience", property(lambda self, n=patience: n, lambda self, value: None), raising=False)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            rows = draw(model, [(3, 4), (5,)], Generation(tokens), group=2, ends=range(200), generator=generator)
            found.append((patience, rows, float(torch.rand((), generator=generator))))
    assert [each[1:] for each in found[:4]] == [each[1:] for each in found[4:]]
    assert min(max(map(len, (ids for ids, _ in rows))) for _, rows, _ in found) < 7


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_said(temperature, tokenizer):
    broken = make_llama(len(tokenizer))
    with torch.no_grad():
        broken.lm_head.weight[7] = float("nan")
    with pytest.raises(ModelError, match="logits are NaN"):
        drawn(broken, tokenizer, Generation(3, temperature=temperature))


@pytest.mark.parametrize("kind", ["llama", "product", "peft", "table"])
def test_with_and_without_a_cache(kind, tokenizer):
    """The same ids, and log-probabilities that are the model's own."""
    made = make_llama(len(tokenizer), seed=3).double()
    if kind == "product":
        made = product_of([made, make_llama(len(tokenizer), seed=4).double()], (0.3, 0.7))
    if kind == "peft":
        import peft

        options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        made = peft.get_peft_model(made, options)
    if kind == "table":
        made = Tabular(3, 4, 2).assign(torch.randn(2, 81))
        tokenizer = tabular_tokenizer(made)
    prompts = ["x0", "x1"] if kind == "table" else PROMPTS
    both = []
    for cached in (True, False):
        made.config.use_cache = cached
        both.append(drawn(made, tokenizer, Generation(4), prompts=prompts))
        check_logps(made, both[-1], atol=1e-6)
    assert [each.completion_ids for each in both[0]] == [each.completion_ids for each in both[1]]


@pytest.mark.parametrize(
    "cut", [{"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.5}, {"temperature": 1.7, "top_k": 9, "top_p": 0.8}]
)
def test_what_is_cut_and_what_the_log_probabilities_are_then(cut, model, tokenizer):
    """q worked out naively from plain logits, one completion at a time: its support holds every token, its log is what is
    stated."""
    generation = Generation(6, **cut)
    for rollout in drawn(model.float(), tokenizer, generation):
        for ids, logps in zip(rollout.completion_ids, rollout.sampled_logps):
            with torch.no_grad():
                logits = model(torch.tensor([[*rollout.prompt_ids, *ids]])).logits[0].double()
            for t, (token, logp) in enumerate(zip(ids, logps)):
                q = (logits[len(rollout.prompt_ids) - 1 + t] / generation.temperature).softmax(-1)
                order = q.argsort(descending=True).tolist()
                kept = order[: generation.top_k or None]
                mass = q[kept] / q[kept].sum()
                kept = kept[: 1 + int((mass.cumsum(0) < generation.top_p - 1e-9).sum())] if generation.top_p < 1 else kept
                assert token in kept
                assert logp == pytest.approx(float((q[token] / q[kept].sum()).log()), abs=1e-4)


def test_where_a_completion_ends(model, tokenizer):
    """At the tokenizer's end token, at those of the generation settings, not before `min_new_tokens`; the end token is kept."""
    rollouts = drawn(model, tokenizer, Generation(60), group=40, prompts=["the"])
    ids, ended = rollouts[0].completion_ids, rollouts[0].ended
    assert any(ended) and all(len(row) == 60 or end for row, end in zip(ids, ended))
    assert all(
        (row[-1] == tokenizer.eos_token_id) == end and tokenizer.eos_token_id not in row[:-1] for row, end in zip(ids, ended)
    )
    other = copy.deepcopy(model)
    other.generation_config.eos_token_id = [ids[0][0]]
    (again,) = drawn(other, tokenizer, Generation(60), group=40, prompts=["the"])
    assert again.completion_ids[0] == ids[0][:1] and again.ended[0]
    (late,) = drawn(model, tokenizer, Generation(60, min_new_tokens=59), group=40, prompts=["the"])
    assert min(map(len, late.completion_ids)) >= 59
    with pytest.raises(ArgumentError, match="nothing ends a completion"):
        draw(model, [(1,)], Generation(3, min_new_tokens=2), ends=(), generator=torch.Generator())


def test_only_the_generator_is_used_and_the_mode_is_restored(model, tokenizer):
    torch.manual_seed(5)
    before, training = torch.get_rng_state(), model.training
    model.train()
    first = drawn(model, tokenizer)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.train(training)
    assert first == drawn(model, tokenizer) and first != drawn(model, tokenizer, seed=1)
    torch.manual_seed(0)
    assert first == sample(model, tokenizer, PROMPTS, Generation(8), group=3, generator=torch.default_generator)


def test_conversations_and_templates(model):
    """Prompts of messages give answers of messages; what the template is told reaches it."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template += "{{ extra }}"
    told = Tokenisation(chat_template_kwargs={"extra": "the cat"})
    prompt = ({"role": "user", "content": "what is two?"},)
    (plain,), (other,) = (drawn(model, tokenizer, prompts=[prompt], tokenisation=each) for each in (Tokenisation(), told))
    assert plain.completions[0][0]["role"] == "assistant"
    assert other.prompt_ids[: len(plain.prompt_ids)] == plain.prompt_ids and len(other.prompt_ids) > len(plain.prompt_ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1}, "temperature -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"cache": "paged"}, "cache is 'paged'"),
        ({"min_new_tokens": 9}, "more than max_new_tokens 8"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_what_cannot_be_sampled(options, words):
    with pytest.raises(ArgumentError, match=words):
        Generation(**{"max_new_tokens": 8, **options})


def test_the_text_of_a_draw_is_what_was_drawn():
    """A tokenizer that tidies spaces up when it decodes: the tidy text has other tokens, and another score."""
    backend = Tokenizer(WordLevel({"<unk>": 0, "yes": 1, " .": 2, " no": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(" ", "merged_with_next")
    backend.decoder = Fuse()
    for tidy in (False, True):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=tidy)
        assert decode_behind(tokenizer, [(1,)], [(3, 2)], 1) == [" no ."] == decode_behind(tokenizer, [()], [(3, 2)], 1)
        assert _spelt(tokenizer, [3, 2], 1) == " ."
