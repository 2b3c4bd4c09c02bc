"""What a sampler drew, against what it says and against the model: honest ones pass, each fault is found."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from multiref.errors import ModelError
from multiref.models import Generation, Tabular, sample, tabular_tokenizer
from multiref.models.draws import TILTS, _evidence_of_copies, _look, check_draws
from multiref.models.sampling import Reader, _checked, _kept, _lost, _used
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


def test_a_cache_that_goes_wrong_is_found_at_the_first_draw(tokenizer, caplog):
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
    static = Generation(8, cache="static")
    for _ in range(2):  # and again: it is not forgotten
        with pytest.raises(ModelError, match=r"The sampler states other log-probabilities.*a cache that goes wrong"):
            drawn(broken, tokenizer, static)
    assert drawn(broken, tokenizer, Generation(8))[1] == drawn(broken, tokenizer, Generation(8))[1]
    assert "its cache goes wrong; each token is drawn by a pass over the whole row" in caplog.text
    check_draws(broken, *drawn(broken, tokenizer, Generation(8), seed=1), Generation(8))


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


class _ForgetsLate(nn.Module):
    """Hidden states of a pass behind a cache of more than `at` tokens are halved."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, module, args, kwargs, output):
        cache = kwargs.get("past_key_values") or kwargs.get("cache")  # its name since transformers 5.24
        if cache is not None and kwargs["inputs_embeds"].shape[1] == 1 and cache.get_seq_length() > self.at:
            output.last_hidden_state = output.last_hidden_state * 0.5
        return output


def test_draws_that_are_longer_than_those_before_are_looked_at(tokenizer):
    """A window that is wrong from token 14 on: unseen in the first draws, of at most 13 tokens."""
    model = make_llama(len(tokenizer))
    late = _ForgetsLate(14)
    model.model.register_forward_hook(
        lambda module, args, kwargs, output: late(module, args, {**kwargs, "inputs_embeds": output.last_hidden_state}, output),
        with_kwargs=True,
    )
    check_draws(model, *drawn(model, tokenizer, Generation(5)), Generation(5))
    assert model not in _lost
    for seed in (0, 1):
        contexts, rows = drawn(model, tokenizer, Generation(24), seed)
        check_draws(model, contexts, rows, Generation(24))
    assert model in _lost


def hybrid(vocabulary):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
            num_hidden_layers=2, layer_types=["conv", "full_attention"], initializer_range=0.3, pad_token_id=2,
        )
    ).eval()  # fmt: skip


def parallel(vocabulary):
    """Attention and a recurrence in one layer, whose cache holds both."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    torch.manual_seed(0)
    return FalconH1ForCausalLM(
        FalconH1Config(
            vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, num_hidden_layers=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
            mamba_chunk_size=4, initializer_range=0.3, pad_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("build", [hybrid, parallel])
def test_groups_of_a_model_with_recurrent_layers_are_drawn(build, tokenizer):
    """One reading of the prompt serves its group though such layers cannot be repeated, only re-ordered."""
    model = build(len(tokenizer))
    contexts, rows = drawn(model, tokenizer, Generation(12), group=3)
    check_draws(model, contexts, rows, Generation(12))
    assert model not in _lost


def test_a_cache_that_the_model_cannot_use(tokenizer, monkeypatch, caplog):
    """Draws are those of whole rows; what fails without a cache too is not hidden."""
    model = make_llama(len(tokenizer))
    _, rows = drawn(model, tokenizer, Generation(6))
    plain = model.forward

    def forward(*given, cache=None, past_key_values=None, **options):
        if cache is not None or past_key_values is not None:
            raise RuntimeError("sizes must match")
        return plain(*given, **options)

    monkeypatch.setattr(model, "forward", forward)
    _checked.pop(model), _lost.discard(model), _used.discard(model)
    assert [ids for ids, _ in drawn(model, tokenizer, Generation(6))[1]] == [ids for ids, _ in rows]
    assert model in _lost and "cannot use its cache (sizes must match)" in caplog.text
    monkeypatch.setattr(model, "forward", lambda **options: plain(**options | {"input_ids": None}))
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        drawn(model, tokenizer, Generation(6))


@pytest.mark.parametrize("after", [1, 3])
def test_what_ends_a_draw_says_nothing_of_the_cache(after, tokenizer):
    """As a server ends one whose client has gone: the next draws have the cache, from the first pass with it on."""
    model, passes = make_llama(len(tokenizer)), []

    def look(*_):
        passes.append(1)
        if len(passes) > after:
            raise RuntimeError("gone")

    hook = model.register_forward_pre_hook(look)
    with pytest.raises(RuntimeError, match="gone"):
        drawn(model, tokenizer, Generation(6))
    hook.remove()
    assert model not in _lost and len(passes) <= after + 1 + (after == 1)


def test_a_cache_that_loses_its_rows_is_given_up(tokenizer, monkeypatch):
    """`keep` re-orders rows; the first step behind shows whether the cache went with them."""
    from transformers import DynamicCache

    model = make_llama(len(tokenizer))
    contexts = [(3, 4, 5), (6, 7, 8)]

    def stepped():
        reader = Reader(model, contexts, 1, Generation(4), 0)
        reader.read_prompts()
        reader.keep(torch.tensor([1, 0]))
        first = reader.read(torch.tensor([9, 10]))
        reader.keep(torch.tensor([1, 0]))
        return torch.stack([first, reader.read(torch.tensor([11, 12]))])

    right = stepped()
    assert model in _kept
    _kept.discard(model)
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda cache, rows: None)
    torch.testing.assert_close(stepped(), right, rtol=0, atol=1e-4)
    assert model in _lost
