"""KL and disagreement per token against the definition, one position at a time in float64."""

import math

import pytest
import torch

from multiref.errors import ModelError, VocabularyMismatch, WeightsError
from multiref.models import LanguageModel
from multiref.references import References
from multiref.references.token_level import _measured, measure_token_level
from tests.conftest import make_llama, make_tokenizer
from tests.references.doubles import Companion

TEXTS = [("the cat sat", " on the mat"), ("what is two", " plus three? five."), ("", "Once upon a time"), ("the dog", " sat")]
FORBIDDEN = torch.tensor([7])  # a token of none of them


@pytest.fixture(scope="module")
def models():
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    return {
        "a": LanguageModel(make_llama(size, seed=0), tokenizer, "a"),
        "b": LanguageModel(make_llama(size + 7, seed=1), tokenizer, "b"),  # seven rows that no token uses
    }


def oracle(models, weights):
    """For every scored position of every text: π_k(· | what came before), then sums written out over the vocabulary."""
    kl, apart = [[[], []], [[], []]], []
    tokenizer = models["a"].tokenizer
    size = len(tokenizer)
    for prompt, completion in TEXTS:
        context, whole = tokenizer(prompt)["input_ids"], [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
        for place in range(len(context), len(whole)):
            p = []
            for model in models.values():
                logits = model.model(torch.tensor([whole[:place]])).logits[0, -1, :size].double()
                p.append(torch.softmax(logits, -1).detach())
            for i in range(2):
                for j in range(2):
                    kl[i][j].append(float((p[i] * (p[i] / p[j]).log()).sum()))
            apart.append(-math.log(float((p[0] ** weights[0] * p[1] ** weights[1]).sum())))
    return [[sum(kl[i][j]) / len(apart) for j in range(2)] for i in range(2)], sum(apart) / len(apart), len(apart)


@pytest.mark.parametrize("weights", [None, (0.8, 0.2)])
def test_against_the_definition(models, weights):
    found = measure_token_level(References(models), TEXTS, weights=weights)
    kl, apart, tokens = oracle(models, weights or (0.5, 0.5))
    assert found.tokens == tokens and found.completions == len(TEXTS)
    for i in range(2):
        assert found.kl[i] == pytest.approx(kl[i], abs=1e-5)
    assert found.disagreement == pytest.approx(apart, abs=1e-5)


def test_tokens_that_a_model_forbids_cost_nothing_or_everything():
    """a never says what b forbids: KL(a‖b) = log 2, the other way +∞, and no NaN of 0 · (−∞)."""
    logps = torch.tensor([[[0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5]]]).log()
    found = _measured(("a", "b"), logps, torch.tensor([1]), torch.tensor([0.5, 0.5]).double())
    assert found.kl == ((0.0, pytest.approx(math.log(2))), (math.inf, 0.0))


def test_a_reference_that_forbids_a_token(models):
    """KL from it is a sum over what it allows; KL to it is infinite. Both were NaN, 0 · log 0."""
    masked = LanguageModel(make_llama(len(models["a"].tokenizer), seed=1), models["a"].tokenizer, "masked")
    masked.model.lm_head.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, FORBIDDEN, -torch.inf))
    found = measure_token_level(References({"a": models["a"], "masked": masked}), TEXTS)
    kl = []
    for prompt, completion in TEXTS:
        context, whole = (masked.tokenizer(text)["input_ids"] for text in (prompt, prompt + completion))
        for place in range(len(context), len(whole) + 1):
            row = torch.tensor([whole[:place]])
            p, q = (each.model(row).logits[0, -1].double().log_softmax(-1).detach() for each in (masked, models["a"]))
            kl.append(float(sum(a.exp() * (a - b) for a, b in zip(p, q) if a > -torch.inf)))
    assert found.kl[1][0] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
    assert found.kl[0][1] == found.kl_error[0][1] == math.inf and found.kl[1][1] == 0


def test_a_reference_agrees_with_itself(models):
    found = measure_token_level(References([("x", models["a"]), ("y", models["a"])]), TEXTS)
    assert found.disagreement == pytest.approx(0, abs=1e-6) and found.kl[0][1] == pytest.approx(0, abs=1e-6)


def test_the_sample_does_not_depend_on_the_order_of_rows(models):
    one, other = (measure_token_level(References(models), rows, completions=2) for rows in (TEXTS, TEXTS[::-1]))
    assert one == other and one.completions == 2


def test_weights_are_on_the_simplex_and_one_completion_has_no_error(models):
    """Three times a third is one, in float64; weights of another sum measure nothing that has a name."""
    three = References([(name, models["a"]) for name in "xyz"])
    found = measure_token_level(three, TEXTS, completions=1)
    assert found.weights == (1 / 3, 1 / 3, 1 / 3)
    assert math.isinf(found.disagreement_error) and math.isinf(found.kl_error[0][1])
    with pytest.raises(WeightsError, match="expected a sum of one"):
        measure_token_level(References(models), TEXTS, weights=(2.0, 2.0))


def test_other_vocabularies_and_other_kinds_are_refused(models):
    stranger = make_tokenizer("bytelevel")
    mixed = {"a": models["a"], "c": LanguageModel(make_llama(len(stranger)), stranger, "c")}
    with pytest.raises(VocabularyMismatch, match="'a' and 'c' have different vocabularies"):
        measure_token_level(References(mixed), TEXTS)
    with pytest.raises(ModelError, match="'c' is a Companion"):
        measure_token_level(References({"a": models["a"], "c": Companion()}), TEXTS)
