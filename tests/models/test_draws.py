"""What a sampler drew, against what it says and against the model: honest ones pass, each fault is found."""

import copy
import itertools
import math

import pytest
import torch

from multiref.errors import ModelError
from multiref.models import Generation, Tabular, sample, tabular_tokenizer
from multiref.models.draws import TILTS, _evidence_of_copies, _look, check_draws
from multiref.models.sampling import _checked
from tests.conftest import make_llama, make_tokenizer

PROMPTS = ["the cat", "a dog sat on the mat and", "Once"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def drawn(model, tokenizer, generation, seed=0, group=8):
    rollouts = sample(model, tokenizer, PROMPTS, generation, group=group, generator=torch.Generator().manual_seed(seed))
    contexts = [rollout.prompt_ids for rollout in rollouts]
    return contexts, [row for r in rollouts for row in zip(r.completion_ids, r.sampled_logps)]


def test_a_model_that_was_asked_for_nothing_was_not_looked_at(tokenizer):
    model = make_llama(len(tokenizer))
    assert sample(model, tokenizer, [], Generation(3), generator=torch.Generator()) == [] and model not in _checked


def test_the_evidence_has_mean_one():
    """E[M_λ] = 1 by enumeration of all nine completions of a table, some of which have probability zero."""
    table = Tabular(3, 2, 1).assign(torch.randn(1, 9, generator=torch.Generator().manual_seed(1)).double())
    with torch.no_grad():
        table.table[0, 1, 2] = -torch.inf
    (context,) = tabular_tokenizer(table)("x0", return_tensors="pt")["input_ids"].tolist()
    total = torch.zeros(len(TILTS), dtype=torch.float64)
    for p, ids in zip(table.sequence_logps().detach()[0].exp(), torch.cartesian_prod(torch.arange(3), torch.arange(3))):
        if p > 0:
            total += p * _look(table, tuple(context), tuple(ids.tolist()), 0, Generation(2), ())[1].exp()
    assert total == pytest.approx(torch.ones(len(TILTS)), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6, "temperature": 1.3}, {"min_new_tokens": 3}]
)
def test_honest_draws_pass(options, tokenizer):
    model, generation = make_llama(len(tokenizer), std=0.15), Generation(12, **options)
    ends = (tokenizer.eos_token_id,)
    for seed in range(3):
        check_draws(model, *drawn(model, tokenizer, generation, seed), generation, ends=ends)


@pytest.mark.parametrize("bent", [{"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 8}, {"top_p": 0.5}])
def test_bent_draws_are_found_by_what_was_drawn(bent, tokenizer):
    """Their log-probabilities stated as the model's own."""
    model = make_llama(len(tokenizer), std=0.3)
    contexts, rows = drawn(model, tokenizer, Generation(12, **bent))
    own = [_look(model, contexts[i // 8], ids, 0, Generation(12), ())[0].tolist() for i, (ids, _) in enumerate(rows)]
    with pytest.raises(ModelError, match=r"does not draw from the policy.*with probability at most"):
        check_draws(model, contexts, [(ids, said) for (ids, _), said in zip(rows, own)], Generation(12))


@pytest.mark.parametrize("bent", [{"temperature": 0.9}, {"top_k": 30}])
def test_what_is_stated_of_another_distribution(bent, tokenizer):
    model = make_llama(len(tokenizer), std=0.15)
    with pytest.raises(ModelError, match=r"states other log-probabilities.*another temperature or cut"):
        check_draws(model, *drawn(model, tokenizer, Generation(12, **bent)), Generation(12))


@pytest.mark.parametrize("copied", [(0,) * 8, (0, 1) * 4, (0, 1, 2, 3, 0, 1, 2, 3)], ids=["one", "two", "halves"])
def test_copies_are_no_draws(copied, tokenizer):
    """Each is a draw of the policy, and all of a prompt are the same few."""
    model = make_llama(len(tokenizer), std=0.15)
    contexts, rows = drawn(model, tokenizer, Generation(12))
    twice = [rows[8 * prompt + place] for prompt in range(len(PROMPTS)) for place in copied]
    with pytest.raises(ModelError, match="the same completion of a prompt again and again"):
        check_draws(model, contexts, twice, Generation(12))


def test_the_evidence_of_copies_has_mean_one():
    """By enumeration of all triples of draws from three completions."""
    p = {(0,): 0.7, (1,): 0.2, (2,): 0.1}
    triples = itertools.product(p, repeat=3)
    mean = sum(math.prod(map(p.get, y)) * math.exp(_evidence_of_copies([(i, [math.log(p[i])]) for i in y])) for y in triples)
    assert mean == pytest.approx(1, abs=1e-12)


def test_a_cache_that_goes_wrong_is_found_at_the_first_draw(tokenizer):
    """Positions that a cache counts wrongly: the first batch that is drawn says so, and who did it."""
    model = make_llama(len(tokenizer), std=0.2)
    broken = copy.deepcopy(model)
    real = broken.forward

    def forward(input_ids=None, past_key_values=None, position_ids=None, logits_to_keep=0, **options):
        if past_key_values is not None and past_key_values.get_seq_length() > 4:
            position_ids = torch.zeros_like(input_ids)
        return real(
            input_ids=input_ids,
            past_key_values=past_key_values,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **options,
        )

    broken.forward = forward
    drawn(model, tokenizer, Generation(8))
    with pytest.raises(ModelError, match=r"The sampler states other log-probabilities.*a cache that goes wrong"):
        drawn(broken, tokenizer, Generation(8))
    with pytest.raises(ModelError, match=r"a cache that goes wrong"):  # and again: it is not forgotten
        drawn(broken, tokenizer, Generation(8))


def test_a_model_that_padding_changes_reads_prompts_of_one_length(tokenizer):
    """Positions counted from the first place, padding included: together it would draw from another distribution."""
    model = make_llama(len(tokenizer), std=0.2)
    real = model.forward

    def forward(input_ids=None, past_key_values=None, logits_to_keep=0, use_cache=None, attention_mask=None):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(seen, seen + input_ids.shape[1])[None].expand(input_ids.shape)
        return real(
            input_ids=input_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            use_cache=use_cache,
            position_ids=places,
            attention_mask=None,  # it sees the padding
        )

    model.forward = forward
    contexts, rows = drawn(model, tokenizer, Generation(8))
    assert len({len(context) for context in contexts}) > 1
    check_draws(model, contexts, rows, Generation(8))
    alone = drawn(model, tokenizer, Generation(8), seed=1)
    check_draws(model, *alone, Generation(8))
