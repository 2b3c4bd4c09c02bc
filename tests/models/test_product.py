"""A product of experts: the pool renormalised at each token, with a cache, in groups, and after it was saved."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from multiref.errors import ArgumentError
from multiref.models import Generation, load, product_of, sample
from multiref.models.architecture import cache_of
from tests.conftest import make_gpt2, make_llama, make_tokenizer

W = (0.3, 0.7)
IDS = torch.tensor([[1, 5, 9, 4, 7, 7, 3], [1, 8, 2, 6, 11, 0, 10]])


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_pool_renormalised_at_the_token(tied, tmp_path):
    """Against both teachers' plain logits; opened again it is the same, and its experts have gradients of their own."""
    teachers = [make_llama(20, seed=seed, tie_word_embeddings=tied) for seed in (1, 2)]
    product = product_of(teachers, W)
    with torch.no_grad():
        expected = sum(w * teacher(IDS).logits.log_softmax(-1) for w, teacher in zip(W, teachers)).log_softmax(-1)
        torch.testing.assert_close(product(IDS).logits.log_softmax(-1), expected)
        product.save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        again = load(tmp_path).model
        torch.testing.assert_close(again(IDS).logits.log_softmax(-1), expected)
    product(IDS).logits.log_softmax(-1)[..., 3].sum().backward()
    first, second = (expert.model.layers[0].mlp.up_proj.weight.grad for expert in product.experts)
    assert first.abs().max() > 0 and second.abs().max() > 0 and not torch.equal(first, second)
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


def test_half_precision_is_pooled_in_float32():
    """Of logits in bfloat16, whose logarithms of small probabilities are 0.06 apart."""
    teachers = [make_llama(160, seed=seed, std=0.2).bfloat16() for seed in (1, 2)]
    with torch.no_grad():
        expected = sum(w * teacher(IDS).logits.float().log_softmax(-1) for w, teacher in zip(W, teachers))
        torch.testing.assert_close(product_of(teachers, W)(IDS).logits, expected)


def test_its_cache_is_every_experts():
    """Completions drawn with the cache are those without, id for id, in float64 and with prompts read once for a group."""
    tokenizer = make_tokenizer()
    product = product_of([make_llama(len(tokenizer), seed=seed).double() for seed in (1, 2)], W)
    drawn = []
    for cached in (True, False):
        product.config.use_cache = cached
        same = torch.Generator().manual_seed(0)
        rollouts = sample(product, tokenizer, ["the cat", "a dog sat on the mat and"], Generation(9), group=4, generator=same)
        drawn.append([rollout.completion_ids for rollout in rollouts])
    assert drawn[0] == drawn[1]


def test_a_cache_by_either_name_and_through_generate():
    """Two tokens more after three, with what was read handed over as transformers before and after 5.24 names it;
    and its own `generate`."""
    product = product_of([make_llama(20, seed=seed).double() for seed in (1, 2)], W)
    with torch.no_grad():
        whole = product(IDS).logits
        for name in ("past_key_values", "cache"):
            read = cache_of(product(IDS[:, :3], use_cache=True))
            torch.testing.assert_close(product(IDS[:, 3:], **{name: read}).logits, whole[:, 3:])
        with pytest.raises(ArgumentError, match="found it among cache_params"):
            product(IDS[:, 3:], cache_params=cache_of(product(IDS[:, :3], use_cache=True)))
        generated = []
        for cached in (True, False):
            torch.manual_seed(0)
            options = {"max_new_tokens": 6, "do_sample": True, "pad_token_id": 0, "eos_token_id": None, "use_cache": cached}
            generated.append(product.generate(IDS, attention_mask=torch.ones_like(IDS), **options))
    assert torch.equal(*generated)


def make_mistral(vocab_size, *, seed):
    """A small random model whose attention sees three tokens."""
    config = MistralConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, sliding_window=3, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_mistral])
def test_a_cache_of_fixed_size(make):
    """`generate` with a static cache, also of a window of three tokens, on a row that is padded; and the sampler."""
    tokenizer = make_tokenizer()
    product = product_of([make(len(tokenizer), seed=seed).double() for seed in (1, 2)], W)
    ids, mask = torch.tensor([[1, 5, 9, 4, 7], [2, 2, 1, 8, 6]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    plain = product.generate(ids, use_cache=False, **given)
    assert torch.equal(product.generate(ids, cache_implementation="static", **given), plain)
    assert torch.equal(product.generate(ids[1:, 2:], **{**given, "attention_mask": mask[1:, 2:]})[0], plain[1, 2:])
    drawn = []
    for cache in (None, "static"):
        same = torch.Generator().manual_seed(0)
        rollouts = sample(product, tokenizer, ["the cat", "a dog sat on"], Generation(9, cache=cache), group=2, generator=same)
        drawn.append([rollout.completion_ids for rollout in rollouts])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_experts_of_another_depth(make):
    with pytest.raises(ArgumentError, match="one num_hidden_layers, found"):
        product_of([make(20), make(20, layers=1)])
