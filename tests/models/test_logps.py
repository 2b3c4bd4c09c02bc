"""Log-probabilities against one completion at a time in float64: every model, layout, order, padding and budget gives the
same."""

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiref.errors import ArgumentError, ModelError
from multiref.models import Generation, completion_logps, score_completions, score_tokens, token_logps
from multiref.models.architecture import evaluating, left_as_it_was, run, with_forward
from multiref.models.encoding import Encoded
from multiref.models.sampling import draw
from multiref.models.witness import Witness
from tests.conftest import make_gpt2, make_llama
from tests.models.naive import naive_logps, naive_token_logps

VOCABULARY = 97


def random_batch(seed: int = 0, items: int = 7, longest: int = 12) -> list[Encoded]:
    """Prompts of 1 to 12 tokens with one to four completions of 1 to 12 tokens."""
    rng = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest)))

    batch = []
    for _ in range(items):
        completions = tuple(ids() for _ in range(rng.randint(1, 4)))
        batch.append(Encoded(ids(), completions, (False,) * len(completions)))
    return batch


MODELS = {
    "llama": lambda: make_llama(VOCABULARY),
    "llama, eager attention": lambda: make_llama(VOCABULARY, attn_implementation="eager"),
    "llama, tied": lambda: make_llama(VOCABULARY, tie_word_embeddings=True),
    "gpt2": lambda: make_gpt2(VOCABULARY),
}


def make_qwen(**options):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.3, **options,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def make_gemma2():
    """Logits are squashed by a tanh after the head (final_logit_softcapping), and every second layer's attention slides."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
        max_position_embeddings=128, initializer_range=0.3, final_logit_softcapping=2.0, sliding_window=5,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def make_cohere():
    """Logits are multiplied by logit_scale after the head."""
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.3, logit_scale=0.5, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return CohereForCausalLM(config).eval()


MODELS |= {"qwen2": make_qwen, "gemma2: softcap and sliding window": make_gemma2, "cohere: scaled logits": make_cohere}


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_agrees_with_one_completion_at_a_time(name):
    model, batch = MODELS[name](), random_batch()
    expected = naive_logps(model, batch)
    with torch.inference_mode():
        assert torch.allclose(completion_logps(model, batch), expected, atol=1e-4, rtol=0)
        assert torch.allclose(completion_logps(model, batch, share=False), expected, atol=1e-4, rtol=0)
    assert torch.allclose(score_completions(model, batch), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2: softcap and sliding window"])
def test_token_logps_are_the_terms_of_the_sum(name):
    model, batch = MODELS[name](), random_batch(1)
    expected = [naive_token_logps(model, item.prompt_ids, ids) for item in batch for ids in item.completions]
    for found in (token_logps(model, batch), score_tokens(model, batch, token_budget=30)):
        assert [len(x) for x in found] == [len(x) for x in expected]
        assert torch.allclose(torch.cat([x.double() for x in found]), torch.cat(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 17, 64, 10_000])
def test_scores_do_not_depend_on_batches_or_order(token_budget):
    model, batch = make_llama(VOCABULARY), random_batch(2, items=11)
    expected = naive_logps(model, batch)
    assert torch.allclose(score_completions(model, batch, token_budget=token_budget), expected, atol=1e-4, rtol=0)
    order = list(range(len(batch)))
    random.Random(3).shuffle(order)
    shuffled = score_completions(model, [batch[i] for i in order], token_budget=token_budget)
    place = torch.cumsum(torch.tensor([0] + [len(item.completions) for item in batch]), 0)
    expected_shuffled = torch.cat([expected[place[i] : place[i + 1]] for i in order])
    assert torch.allclose(shuffled, expected_shuffled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_left_padded_rows_of_the_model_itself_give_the_same(name):
    """The scorer pads on the right; a reader who pads on the left, with mask and positions, must find the same numbers."""
    model, batch = MODELS[name](), [item for item in random_batch(4) if len(item.completions) == 1]
    rows = [item.prompt_ids + item.completions[0] for item in batch]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logps = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
        picked = logps[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
        padded = torch.stack([picked[k, -len(item.completions[0]) :].sum() for k, item in enumerate(batch)])
        assert torch.allclose(completion_logps(model, batch), padded, atol=1e-4, rtol=0)


@pytest.mark.parametrize("budget", [13, VOCABULARY, 2**24])
@pytest.mark.parametrize("layout", ["shared", "batched", "alone"])
def test_gradients_are_those_of_plain_logits(budget, layout):
    """Σ_i c_i log π(y_i) with fixed random c, against autograd through full logits (float64, but for Llama's own float32
    norms)."""
    model, batch = make_llama(VOCABULARY).double(), random_batch(5, items=3, longest=8)
    weights = torch.randn(sum(len(item.completions) for item in batch), dtype=torch.float64)
    (completion_logps(model, batch, layout=layout, logits_budget=budget) * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, k = torch.zeros((), dtype=torch.float64), 0
    for item in batch:
        for completion in item.completions:
            logps = model(input_ids=torch.tensor([item.prompt_ids + completion])).logits[0].log_softmax(-1)
            start = len(item.prompt_ids) - 1
            total = total + weights[k] * sum(logps[start + t, token] for t, token in enumerate(completion))
            k += 1
    total.backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-4, rtol=1e-4), name


def test_gradient_checkpointing_changes_nothing():
    model, batch = make_llama(VOCABULARY).double().train(), random_batch(6, items=3)
    completion_logps(model, batch).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    completion_logps(model, batch).sum().backward()
    assert all(torch.allclose(p.grad, expected[name], atol=1e-8) for name, p in model.named_parameters())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_are_scored_and_trained(targets):
    """LoRA on the body, and on the head itself (which then is no plain linear layer)."""
    import peft

    model = peft.get_peft_model(
        make_llama(VOCABULARY), peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    ).eval()
    batch = random_batch(7, items=3)
    merged = copy.deepcopy(model).merge_and_unload()
    with torch.inference_mode():
        assert torch.allclose(completion_logps(model, batch), naive_logps(merged, batch), atol=1e-4, rtol=0)
        assert torch.allclose(completion_logps(model, batch, logits_budget=150), naive_logps(merged, batch), atol=1e-4, rtol=0)
    completion_logps(model, batch, logits_budget=150).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients and all(g is not None and g.abs().sum() > 0 for g in gradients.values())


class LargestArray(TorchDispatchMode):
    """Remembers the most elements of any array made while it is on."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return out


@pytest.mark.parametrize("training", [False, True])
def test_no_array_of_logits_exceeds_the_budget(training):
    """A vocabulary of 5,000 on 120 completion tokens is 600,000 logits; with a budget of 2,000 nothing grows past the head's
    weight."""
    model = make_llama(5000, hidden=8, layers=1)
    batch = [Encoded((1, 2, 3), (tuple(range(10)), tuple(range(10))), (False, False))] * 6
    completion_logps(model, batch)  # the rows are audited at the first call
    watch = LargestArray()
    with watch, torch.set_grad_enabled(training):
        sums = completion_logps(model, batch, logits_budget=2000)
        if training:
            sums.sum().backward()
    assert watch.most <= 5000 * 8  # the head's weight, and its gradient


def test_half_precision_accumulates_in_single():
    """bfloat16 weights: the sum is over float32 log-probabilities, near the float64 sum of the same rounded weights."""
    model, batch = make_llama(VOCABULARY, std=0.1).bfloat16(), random_batch(8)
    with torch.inference_mode():
        parts = token_logps(model, batch)
        sums = completion_logps(model, batch)
    assert {part.dtype for part in parts} == {torch.float32} and sums.dtype == torch.float64
    assert torch.equal(sums, torch.stack([part.double().sum() for part in parts]))
    assert torch.allclose(sums, naive_logps(model, batch), atol=0.2)


def test_dropout_and_mode_are_left_as_found():
    model, batch = make_gpt2(VOCABULARY, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train(), random_batch(9)
    scores = score_completions(model, batch)
    assert model.training
    assert torch.allclose(scores, naive_logps(model, batch), atol=1e-4)


def test_empty_batch_and_empty_completion():
    model = make_llama(VOCABULARY)
    assert completion_logps(model, []).shape == (0,) and score_completions(model, []).shape == (0,)
    batch = [Encoded((1, 2), ((), (3,)), (False, False))]
    sums = completion_logps(model, batch)
    assert sums[0] == 0 and torch.allclose(sums[1:], naive_logps(model, [Encoded((1, 2), ((3,),), (False,))]), atol=1e-4)


@pytest.mark.parametrize("layout", ["shared", "batched", "alone"])
def test_completions_with_contexts_of_their_own(layout):
    """Truncation may cut a prompt differently for each completion (here the first and third alike):
    every term finds its place."""
    model = make_llama(VOCABULARY)
    long, short = tuple(range(9)), (0, *range(5, 9))
    item = Encoded(long, ((11, 12), (13,), (14, 15, 16)), (False, True, False), (long, short, long))
    expected = [naive_token_logps(model, item.context(i), ids) for i, ids in enumerate(item.completions)]
    for found in (token_logps(model, [item], layout=layout), score_tokens(model, [item])):
        assert [len(x) for x in found] == [2, 1, 3]
        assert torch.allclose(torch.cat([x.double() for x in found]), torch.cat(expected), atol=1e-4)


def test_a_context_without_tokens_is_refused():
    with pytest.raises(ArgumentError, match=r"at least a start token"):
        completion_logps(make_llama(VOCABULARY), [Encoded((), ((1,),), (False,))])


@pytest.mark.parametrize("beside", ["scores", "draws"])
def test_threads_that_use_one_model_get_their_own_rows(beside):
    """Two were given the second one's scores, up to 16 nats off, and the head was left as the first had replaced it; who drew
    while another scored was given scores for logits."""
    model, batches = make_llama(VOCABULARY), [random_batch(seed, items=2) for seed in (10, 11)]

    def use(batch):
        if batch is batches[0] or beside == "scores":
            return score_completions(model, batch)
        rows = draw(model, [each.prompt_ids for each in batch], Generation(4), ends=(), generator=torch.Generator())
        return torch.tensor([logps for _, logps in rows])

    expected = [use(batch) for batch in batches]
    both = threading.Barrier(2)

    def meet(*_):
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # until the other has replaced the head too, or waits for its turn

    model.model.embed_tokens.register_forward_pre_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(use, batches))
    assert all(map(torch.equal, found, expected)) and "forward" not in vars(model.lm_head)


def test_what_a_pass_has_changed_is_put_back_before_another_thread_s_turn():
    """It would read rows with the frequencies of the longer one before it."""
    model, seen = make_llama(VOCABULARY), []
    model.longest = 0
    model.register_forward_pre_hook(lambda module, given: seen.append(module.longest))
    with ThreadPoolExecutor(1) as pool:
        with left_as_it_was(model) as changed:
            run(model, input_ids=torch.tensor([[1, 2, 3]]))
            model.longest = 3
            other = pool.submit(run, model, input_ids=torch.tensor([[1]]))
            wait([other], 0.1)
        other.result()
    assert seen == [0, 0] and any(changed)


def test_what_a_pass_has_changed_is_put_back_where_it_fails():
    """Out of memory the rows are read again in halves: not with the frequencies of the whole."""
    model = make_llama(VOCABULARY)
    model.longest = 0
    with pytest.raises(torch.OutOfMemoryError), left_as_it_was(model):
        model.longest = 3
        raise torch.OutOfMemoryError("full")
    assert model.longest == 0


def test_a_copy_has_the_models_own_head():
    """An audit copies a model to compute in float32: made while another thread scored, the copy kept that thread's head."""
    model, inside, done = make_llama(VOCABULARY), threading.Event(), threading.Event()

    def score():
        with with_forward(model.lm_head, lambda hidden: hidden):
            inside.set()
            done.wait(0.1)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(score)
        inside.wait()
        copied = Witness(model, 1).widened(torch.float64).model
        done.set()
        other.result()
    assert "forward" not in vars(copied.lm_head)


def test_a_model_trains_again_when_the_last_thread_has_evaluated_it():
    """Who came first put it into training mode while the other still scored: with dropout, from then on."""
    model = make_gpt2(VOCABULARY).train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == before


def test_a_token_that_the_model_reads_and_does_not_predict():
    """An embedding of 97 rows and 90 logits (Mllama has such). The token was scored as one whose logit is zero."""
    model = make_llama(VOCABULARY)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, 90, bias=False)
    batch = [Encoded((95, n % 90), (tuple(range(1, 2 + n % 40)),), (False,)) for n in range(100)]
    assert len(score_completions(model, batch)) == 100
    batch[9] = Encoded((95, 9), ((5, 6, 95, 7, 8),), (False,))
    for score in (score_completions, completion_logps):
        with pytest.raises(ModelError, match="Token id 95 occurs in a completion, and LlamaForCausalLM has logits of 90"):
            score(model, batch)
