"""Layouts are audited on the rows that are scored: what is right is used, what is wrong is found, wherever in a row it hides.

The oracle is `tests.models.naive`: one completion at a time, plain logits of a float64 copy.
"""

import copy
import logging

import pytest
import torch
from transformers import LlamaForCausalLM

from multiref.errors import ModelError
from multiref.models import Encoded, audit_layout, completion_logps, score_completions, score_tokens, token_logps, witness
from multiref.models.audit import Audit
from tests.conftest import make_gpt2, make_llama
from tests.models.naive import naive_logps
from tests.models.test_logps import VOCABULARY, make_cohere, make_gemma2, random_batch


def rows_of(*lengths: int, prompt: int = 4, each: int = 2) -> list[Encoded]:
    """Items of `each` completions whose rows have about these lengths; every token different from item to item."""
    draw = torch.Generator().manual_seed(len(lengths))

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    return [Encoded(ids(prompt), tuple(ids(n - prompt) for _ in range(each)), (False,) * each) for n in lengths]


def close(model, batch, **options) -> bool:
    return torch.allclose(score_completions(model, batch, **options), naive_logps(model, batch), atol=2e-3)


# -- what is right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_right_model_shares_prompts_in_every_dtype(dtype, caplog):
    """In half precision it is judged by a float32 copy, and how much the dtype itself moves a token is told."""
    audit = audit_layout(make_llama(VOCABULARY).to(dtype), random_batch())
    assert audit.layout == "shared" and audit.head and audit.vocabulary == VOCABULARY and not caplog.records
    assert audit.errors["shared"] <= 1e-4
    assert (audit.rounding is None) == (dtype.itemsize > 2)
    if dtype.itemsize == 2:
        assert audit.judged == "float32" and 1e-4 < audit.rounding < 1 and "by rounding" in audit.summary()


def test_without_memory_for_a_copy_padding_is_the_yardstick(monkeypatch):
    """A right bfloat16 model is still accepted; one that ignores the mask differs by more than padding does."""
    monkeypatch.setattr(witness, "free_memory", lambda device: 0)
    audit = audit_layout(make_llama(VOCABULARY).bfloat16(), random_batch())
    assert audit.layout == "shared" and audit.rounding is None and "rounding not measured: no memory" in audit.summary()
    assert audit_layout(of(NoMask).bfloat16(), random_batch()).layout == "batched"
    assert audit_layout(make_llama(VOCABULARY), random_batch()).layout == "shared"  # float32 needs no copy


def test_of_many_short_answers_those_are_compared_that_can_show_that_sharing_is_wrong():
    """Not the first in its row, and not of one token: those are right under any mask."""
    two = ((3, 4, 5), *((3 + i % 5, 3 + i % 7) for i in range(47)))
    one = tuple((3 + i % 6,) for i in range(48))
    rows = [Encoded((1, 2), ids, (False,) * 48) for ids in (two, one)]
    assert audit_layout(make_llama(VOCABULARY), rows).layout == "shared"
    assert audit_layout(of(NoMask), rows).layout == "batched"
    assert close(of(NoMask), rows)


def test_a_copy_whose_passes_do_not_fit_is_done_without(monkeypatch):
    in_batch = witness.Witness.in_batch

    def full(own, *arguments):
        if witness.dtype_of(own.model) == torch.float32:
            raise torch.OutOfMemoryError("full")
        return in_batch(own, *arguments)

    monkeypatch.setattr(witness.Witness, "in_batch", full)
    audit = audit_layout(make_llama(VOCABULARY).bfloat16(), random_batch())
    assert audit.layout == "shared" and audit.unmeasured == "no memory" and audit.judged == "bfloat16"


def test_an_audit_is_not_made_twice_and_leaves_the_model_as_it_was():
    model, calls = make_gpt2(VOCABULARY, resid_pdrop=0.5).train(), []
    model.transformer.h[0].eval()  # a mixture of modes, as training with checkpointing has it
    modes = [each.training for each in model.modules()]
    model.register_forward_hook(lambda *_: calls.append(1))
    audit_layout(model, random_batch())
    tried = len(calls)
    assert audit_layout(model, random_batch()).seconds == 0 and len(calls) == tried > 0
    audit_layout(model, rows_of(40))  # longer than any of those
    assert len(calls) > tried
    assert [each.training for each in model.modules()] == modes and all(p.grad is None for p in model.parameters())


def test_an_adapter_that_is_put_on_is_audited_for_itself():
    import peft

    model = peft.get_peft_model(make_llama(VOCABULARY), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    audit_layout(model, random_batch())
    with model.disable_adapter():
        before = len(calls)
        audit_layout(model, random_batch())
    assert len(calls) > before


def test_a_record_reads_back():
    audit = audit_layout(make_llama(VOCABULARY), random_batch())
    assert Audit.read(audit.record()) == audit


def test_logits_that_are_changed_after_the_head_are_computed_whole():
    assert not audit_layout(make_cohere(), random_batch()).head
    squashed = audit_layout(make_gemma2(), random_batch())
    assert not squashed.head and squashed.layout == "batched"


# -- what is wrong -----------------------------------------------------------------------------------------------------


class NoPositions(LlamaForCausalLM):
    """A model that counts positions by itself."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class NoMask(LlamaForCausalLM):
    """A model that attends to everything before, whatever it is told."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


class Raises(LlamaForCausalLM):
    """A model that accepts two-dimensional masks only."""

    def forward(self, *args, attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask must be [batch, length]")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class Changed(LlamaForCausalLM):
    """Logits are changed by `change(logits, input_ids)`, after the head."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = self.change(output.logits, input_ids)
        return output


class Entered(LlamaForCausalLM):
    """What goes into the layers is changed by `change(embeddings, input_ids)`, so that the head stays apart."""

    def forward(self, input_ids=None, **kwargs):
        return super().forward(inputs_embeds=self.change(self.get_input_embeddings()(input_ids), input_ids), **kwargs)


def of(kind, change=None, context=512):
    model = kind(make_llama(VOCABULARY, context=context).config).eval()
    if change is not None:
        model.change = change
    return model


@pytest.mark.parametrize("kind", [NoPositions, NoMask, Raises])
def test_models_that_cannot_share_a_prompt_are_found_out(kind, caplog):
    model = of(kind)
    with caplog.at_level(logging.WARNING, logger="multiref"):
        audit = audit_layout(model, random_batch())
    assert audit.layout == "batched" and audit.head
    assert (audit.errors["shared"] is None) == (kind is Raises)
    assert "layout batched" in caplog.text and kind.__name__ in caplog.text
    assert close(model, random_batch())


def neighbour(beyond, direction, weight=0.5):
    """A row takes something of the row beside it, at positions beyond `beyond`."""

    def change(states, ids):
        other = torch.cat([states[direction:], states[:direction]]) if len(states) > 1 else states
        mixed = states.clone()
        mixed[:, beyond:] += weight * (other - states)[:, beyond:]
        return mixed

    return change


def one_sided(beyond):
    """Only a row that has one before it takes something of it."""

    def change(states, ids):
        mixed = states.clone()
        mixed[1:, beyond:] += 0.5 * states[:-1, beyond:]
        return mixed

    return change


@pytest.mark.parametrize("change", [neighbour(200, 1), neighbour(200, -1), one_sided(200)])
def test_a_row_that_depends_on_its_neighbour_beyond_position_200(change):
    """Of four short rows and three long ones, the long ones tell."""
    model = of(Entered, change)
    rows = rows_of(20, 24, 28, 22, 230, 250, 240, prompt=10, each=1)
    audit = audit_layout(model, rows)
    assert audit.layout == "alone" and audit.errors["batched"] > 1e-3
    assert close(model, rows)
    assert torch.allclose(completion_logps(model, rows[-3:]), naive_logps(model, rows[-3:]), atol=2e-3)
    assert audit_layout(of(Entered, change), rows[:4]).layout == "shared"  # none is so long: there it is right


def test_logits_that_depend_on_the_row_beside_them_after_the_head():
    """The head alone is asked for scores, so that what mixes rows after it does not enter them."""
    rows = rows_of(20, 24, 230, 240)
    assert close(of(Changed, neighbour(200, 1)), rows)
    model = of(Changed, lambda logits, ids: logits * 0.5 if logits.shape[1] > 200 else logits)  # of long rows
    assert not audit_layout(model, rows).head and close(model, rows)


def test_a_window_that_is_longer_than_short_rows():
    """Sliding layers under a nested or a flat configuration: shared below the window, not above."""
    import transformers as tf

    model = tf.MistralForCausalLM(
        tf.MistralConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, sliding_window=100, initializer_range=0.3)
    ).eval()  # fmt: skip
    short, long = rows_of(60, 80, prompt=40), rows_of(60, 80, 180, prompt=40)
    assert audit_layout(model, short).layout == "shared"
    assert audit_layout(model, long).layout == "batched" and close(model, long)
    assert audit_layout(model, short).layout == "shared"  # what is known of shorter rows still holds


def scaled(kind):
    """A Llama whose rotary frequencies depend on the longest row of the batch beyond 64 positions."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if kind == "longrope" else {}
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64, **factors}
    return make_llama(VOCABULARY, context=64 if kind == "dynamic" else 256, rope_parameters=parameters)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_factors_chosen_by_the_longest_row(kind):
    """One number a text, in any company and in any order. "dynamic" also remembers the longest row it has ever seen, so that
    the second call must not find what the first one left; a float64 copy is made before anything is scored."""
    fresh = scaled(kind)
    rows = rows_of(20, 50, 100, 120)
    expected = naive_logps(fresh, rows)
    model = scaled(kind)
    audit = audit_layout(model, rows)
    assert audit.layout == "alone" and audit.stateful
    for batch, truth in ((rows, expected), (rows[:3], expected[:6]), (rows[2:], expected[4:])):
        assert torch.allclose(score_completions(model, batch), truth, atol=2e-3)
    assert audit_layout(scaled(kind), rows[:2]).layout == "shared"


class Crowded(LlamaForCausalLM):
    """As an expert with room for so many tokens of a batch: what comes later hardly enters it."""

    def forward(self, input_ids=None, **kwargs):
        states = self.get_input_embeddings()(input_ids).flatten(0, 1).clone()
        states[150:] *= 0.1
        return super().forward(inputs_embeds=states.view(*input_ids.shape, -1), **kwargs)


def test_a_router_with_room_for_so_many_tokens_of_a_batch():
    rows = rows_of(20, 24, 28, 32, 36, 40)
    assert audit_layout(of(Crowded), rows).layout == "alone" and close(of(Crowded), rows)


def test_experts_chosen_by_rounding_are_judged_in_float64():
    """A choice that a rounding error tips is no dependence on the batch: such a model is batched."""

    def tipped(states, ids):
        odd = (states.sum(-1, keepdim=True) * 1e6).round() % 2 == 1
        return torch.where(odd & (states.dtype == torch.float32), states + 0.3, states)

    audit = audit_layout(of(Changed, tipped), random_batch())
    assert audit.layout == "shared"


def test_no_causal_language_model():
    import transformers as tf

    t5 = tf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ModelError, match=r"expected a causal \(decoder-only\) language model"):
        score_completions(tf.T5ForConditionalGeneration(t5), random_batch())
    with pytest.raises(ModelError, match=r"logits of shape"):
        score_completions(tf.LlamaForSequenceClassification(make_llama(VOCABULARY).config), random_batch())
    bert = tf.BertConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, initializer_range=0.3)  # fmt: skip
    for score in (score_tokens, token_logps):
        with pytest.raises(ModelError, match=r"no causal language model: a later token changes"):
            score(tf.BertLMHeadModel(bert).eval(), random_batch())
    bert.is_decoder = True
    decoder = tf.BertLMHeadModel(bert).eval()
    assert close(decoder, random_batch())
    with pytest.raises(ModelError, match="no causal"):  # each token's logits see the mean of the row
        score_completions(of(Entered, lambda states, ids: states + states.mean(1, keepdim=True)), random_batch())


def test_noise_in_evaluation_mode_is_named():
    noisy = of(Entered, lambda states, ids: torch.nn.functional.dropout(states, 0.5))
    with pytest.raises(ModelError, match=r"draws random numbers in evaluation mode|gives one row two scores"):
        score_completions(noisy, random_batch())


def test_a_token_id_without_an_embedding_is_refused_before_anything_runs():
    model, calls = make_llama(VOCABULARY), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    rows = [*random_batch(), Encoded((1, 2), ((3, VOCABULARY + 4), (5,)), (False, False))]
    said = rf"Token id {VOCABULARY + 4} occurs in a completion of row 8.* has {VOCABULARY} rows"
    for score in (score_completions, completion_logps, audit_layout):
        with pytest.raises(ModelError, match=said):
            score(model, rows)
    assert not calls


def test_numbers_that_are_none_are_refused():
    model = make_llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(ModelError, match="not numbers on a row of"):
        score_completions(model, random_batch())


# -- which rows --------------------------------------------------------------------------------------------------------


def test_a_few_rows_or_all_of_them():
    model = make_llama(VOCABULARY, context=512)
    rows = rows_of(*range(10, 110), each=1)
    some = audit_layout(model, rows)
    every = audit_layout(model, rows, everything=True)
    assert len(some.rows) == 3 and len(every.rows) == 100
    assert {rows[-1].digest(0), rows[0].digest(0)} <= set(some.rows)  # the longest, and the shortest
    assert some.span.longest == 109


@pytest.mark.parametrize("at", [0, 120, 229])
def test_of_long_completions_in_a_large_job_some_tokens_are_compared(at):
    """Evenly spread, the first and the last among them: a neighbour that is felt from some position on is found."""
    rows = rows_of(*range(20, 90), 230, 234, 238, 240, prompt=4, each=1)
    audit = audit_layout(of(Entered, neighbour(at, 1)), rows, logits_budget=2**12)
    assert audit.layout == "alone" and audit.errors["batched"] > 1e-3
    asked = []
    model = of(Entered)
    model.change = lambda states, ids: states
    model.lm_head.register_forward_hook(lambda module, inputs, output: asked.append(output.shape[1]))
    assert audit_layout(model, rows, logits_budget=2**12).layout == "shared" and 64 in asked
    every = audit_layout(model, rows, logits_budget=2**12, everything=True)
    assert every.layout == "shared" and 236 in asked


def test_a_fault_in_one_row_is_found_by_an_audit_of_all():
    """A planted fault too rare for a few rows: one token id that adds up over the batch."""

    def rare(states, ids):
        return states + (ids == 96).sum() * (len(ids) > 1)

    rows = rows_of(*range(20, 90), each=1)
    rows = [Encoded(r.prompt_ids, tuple(tuple(t % 96 for t in c) for c in r.completions), r.truncated) for r in rows]
    rows = [Encoded(tuple(t % 96 for t in r.prompt_ids), r.completions, r.truncated) for r in rows]
    rows[37] = Encoded(rows[37].prompt_ids, ((96, *rows[37].completions[0]),), (False,))
    assert audit_layout(of(Entered, rare), rows, everything=True, token_budget=500).layout == "alone"


def test_rows_that_an_audit_does_not_cover_are_scored_alone():
    model = of(NoMask)  # shares wrongly
    short = audit_layout(make_llama(VOCABULARY), rows_of(10, 12))
    batch = [*rows_of(10, 12), *rows_of(30, 50)]
    seen = []
    model.register_forward_pre_hook(lambda m, a, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    score_completions(model, batch, layout=short)
    assert sorted(shape for shape in seen if shape[0] == 1) == [(1, 30), (1, 30), (1, 50), (1, 50)]
    assert copy.copy(short) == short


def test_a_pass_that_changes_weights_once_does_so_once():
    """RWKV divides its weights at the first pass in evaluation mode, and notes it: the note stays with the weights. (It was
    put back, and every pass divided them again.)"""
    model = make_llama(64, hidden=16, layers=1)
    model.divided = False

    def divide(module, inputs):
        if not module.divided:
            with torch.no_grad():
                module.model.layers[0].mlp.down_proj.weight.div_(2)
            module.divided = True

    model.register_forward_pre_hook(divide)
    was = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    rows = [Encoded((3, 4, 5), ((6, 7), (8, 9, 10)), (False, False)), Encoded((11,), ((12,),), (False,))]
    first, again = (score_completions(model, rows) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(model.model.layers[0].mlp.down_proj.weight, was / 2)


@pytest.mark.parametrize("change", ["hook", "attention"])
def test_a_model_that_computes_otherwise_is_audited_again(change):
    """What is known of a model holds for what it was: a hook on its logits is not passed by."""
    model = make_llama(64, hidden=16, layers=1)
    rows = [Encoded((3, 4, 5), ((6, 7), (8, 9, 10)), (False, False))]
    before = audit_layout(model, rows)
    assert before.head and audit_layout(model, rows).seconds == 0
    if change == "attention":
        model.set_attn_implementation("eager")
        assert audit_layout(model, rows).seconds > 0
        return
    model.register_forward_hook(lambda module, inputs, output: type(output)(logits=output.logits * 0.5))
    plain = [model(input_ids=torch.tensor([[3, 4, 5, *ids]])).logits[0, 2:-1].log_softmax(-1) for ids in rows[0].completions]
    expected = [float(each[range(len(ids)), list(ids)].sum()) for each, ids in zip(plain, rows[0].completions)]
    assert not audit_layout(model, rows).head
    assert score_completions(model, rows).tolist() == pytest.approx(expected, abs=1e-4)
