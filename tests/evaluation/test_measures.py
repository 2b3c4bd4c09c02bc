"""Policies, token pool, best-of-n and π* by samples: against enumeration of all completions, and text measures by hand."""

import math

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, EmptyPoolError, VocabularyMismatch
from multiref.evaluation import BestOf, Comparison, Optimum, PassAtK, TokenPool, compare_samples, measure_texts, sample_rewards
from multiref.models import Generation, LanguageModel
from multiref.models.sampling import Rollout
from multiref.references import References
from multiref.training.online import Reward
from tests.conftest import make_llama, make_tokenizer
from tests.decoding.worlds import BETA, LENGTH, Truth, W, references, reward, tables

RULE = mr.ReverseKL(W)


def rollout(*texts, ended=True):
    ids = tuple(tuple(range(len(text.split()) + 1)) for text in texts)
    return Rollout("x", texts, (0,), ids, (ended,) * len(texts))


def test_measures_of_texts_by_hand():
    """Same texts: BLEU 1, 3 words and 3 pairs of 8 and 6; no common word: BLEU 0; one text: no BLEU. Wins: of the 2 pairs of
    different places one is won and one is tied."""
    drawn = {"same": [rollout("a b c a", "a b c a")], "apart": [rollout("a b c", "d e", ended=False)], "one": [rollout("a b")]}
    rewards = {"same": [[1.0, 2.0]], "apart": [[2.0, 3.0]], "one": [[0.0]]}
    found = measure_texts(drawn, {name: torch.tensor(rows, dtype=torch.float64) for name, rows in rewards.items()})
    each = {metric: values[:, 0].tolist() for metric, values in found.items()}
    assert each["self-BLEU"][:2] == [pytest.approx(1.0), 0.0] and math.isnan(each["self-BLEU"][2])
    assert each["distinct-1"] == pytest.approx([3 / 8, 1, 1]) and each["distinct-2"] == pytest.approx([3 / 6, 1, 1])
    assert each["length"] == [5.0, 3.5, 3.0] and each["unfinished"] == [0.0, 1.0, 0.0]
    assert each["win rate"] == [0.5, 0.75, 0.0]
    assert measure_texts({"one": drawn["one"]}, {"one": torch.zeros(1, 1)})["win rate"].isnan().all()
    parts = ({"role": "assistant", "content": [{"type": "text", "text": "a b"}, {"type": "text", "text": " a"}]},)
    said = measure_texts({"one": [Rollout("x", (parts,), (0,), ((1, 2),), (True,))]}, {"one": torch.zeros(1, 1)})
    assert float(said["distinct-1"]) == pytest.approx(2 / 3), "words of what is said, not of how Python writes it"


def test_two_vetoes_are_a_tie():
    """−∞, −∞, 1 against itself, the pairs of one place aside: two ties of the vetoes, two wins and two losses."""
    veto = torch.tensor([[-math.inf, -math.inf, 1.0]])
    rollout = Rollout("x", ("a", "b", "c"), (1,), ((3,), (4,), (5,)), (True,) * 3)
    assert float(measure_texts({"p": [rollout]}, {"p": veto})["win rate"]) == 0.5


def test_a_prompt_answered_by_single_words_does_not_hide_the_others():
    """It has no pairs of words: distinct-2 is over the other two prompts, (3/6 + 1)/2, here and in `evaluate`; what is known of
    no prompt stays unknown, and so does −∞ − (−∞)."""
    rows = [rollout("a b c a", "a b c a"), rollout("a b c", "d e"), rollout("yes", "no")]
    found = measure_texts({"p": rows, "q": rows}, {name: torch.zeros(3, 2) for name in "pq"})
    lost = torch.tensor([-math.inf, 0.0, 1.0]).expand(2, 3)
    kept = Comparison(("p", "q"), "prompt", found | {"J": lost, "k3": torch.full((2, 3), math.nan)})
    assert kept.mean("distinct-2").tolist() == [0.75, 0.75] and kept.mean("k3").isnan().all()
    assert float(kept.error("distinct-2")[0]) == pytest.approx(0.5 / math.sqrt(2) / math.sqrt(2))
    assert kept.difference("distinct-2", "q", "p")[0] == 0 and math.isnan(kept.difference("J", "q", "p")[0])
    reward = {name: {"total": torch.zeros(3, 2)} for name in "pq"}
    said = PassAtK(reward, {}, {}, kept.values).summary(())
    assert said["policies"]["p"]["distinct-2"][0] == 0.75 and said["policies"]["p"]["k3"] == [None] * 3
    assert said["differences"]["q − p"]["distinct-2"][0] == 0 and said["differences"]["q − p"]["J"] == [None] * 3


def test_self_bleu_is_bleu():
    """The text a b c d e against a b c x: precisions 3/5, (2 + 1)/(4 + 1), (1 + 1)/(3 + 1), (0 + 1)/(2 + 1), no brevity
    penalty; the other way 3/4, 3/4, 2/3, 1/2 with exp(1 − 5/4)."""
    found = measure_texts({"a": [rollout("a b c d e", "a b c x")]}, {"a": torch.zeros(1, 2)})["self-BLEU"]
    one = (3 / 5 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    other = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 5 / 4)
    assert float(found) == pytest.approx((one + other) / 2)


@pytest.fixture(scope="module")
def compared():
    """Reference p, the token pool, best of 4 of p, and π*: 6 times the same prompt, 140 completions each."""
    made = tables()
    refs = references(made)
    policies = {
        "p": refs["p"],
        "token pool": TokenPool(list(refs.values()), W),
        "best": BestOf(refs["p"], 4),
        "optimum": Optimum(References(dict(refs)), RULE, BETA, n=60, islands=4),
    }
    judges = {"reward": lambda prompt, text: reward([], [text])[0]}
    found = compare_samples(policies, refs, ["x0"] * 6, judges, Generation(LENGTH), weights=W, beta=BETA, samples=140, seed=1)
    return Truth(made), found


def near(found, metric, place, exact):
    error = float(found.error(metric)[place])
    assert abs(float(found.mean(metric)[place]) - exact) < 4.5 * error + 1e-4 and error < 0.1, metric


def test_everyone_against_enumeration(compared):
    """Reward, KL to both references (k1 and k3 alike) and J of the exact laws; J(π*) = β log Z; best of 4 by E max."""
    truth, found = compared
    pool = sum(w * row for w, row in zip(W, truth.each))
    token = token_law(truth)
    laws = {0: truth.each[0], 1: token, 3: truth.log_target.log_softmax(0)}
    for place, law in laws.items():
        p = law.exp()
        near(found, "reward", place, float(p @ truth.rewards))
        near(found, "J", place, float(p @ (truth.rewards - BETA * (law - pool))))
        for name, row in zip("pq", truth.each):
            near(found, f"KL(π‖{name})", place, float(p @ (law - row)))
            if place < 3:
                near(found, f"k3(π‖{name})", place, float(p @ (law - row)))
    assert float(found.mean("J")[3]) == pytest.approx(BETA * truth.log_partition, abs=0.05)
    order = truth.rewards.unique()
    below = [float(truth.each[0].exp()[truth.rewards <= value].sum()) ** 4 for value in order]
    steps = torch.tensor(below, dtype=torch.float64).diff(prepend=torch.zeros(1, dtype=torch.float64))
    near(found, "reward", 2, float(steps @ order))
    assert bool(found.values["J"][2].isnan().all()) and bool(found.values["k3(π‖p)"][3].isnan().all())
    assert float(found.mean("win rate")[0]) == pytest.approx(0.5) and float(found.mean("win rate")[2]) > 0.5
    assert math.isnan(float(found.mean("J")[2]))


def token_law(truth):
    """[Y]: log of the product over tokens of the renormalised pool, by the tables themselves."""
    found, made = [], tables()
    for ids in truth.ids:
        row, total = 0, 0.0
        for token in ids:
            pool = sum(w * each.table[0, row].detach().log_softmax(-1) for w, each in zip(W, made))
            total, row = total + float(pool.log_softmax(-1)[token]), 3 * row + 1 + token
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def test_what_weighs_nothing_may_forbid_and_what_nobody_allows_is_said():
    """J of a policy beside a reference of weight zero that forbids half of what it writes is finite, the KL to it is not; a
    token pool whose references exclude each other is one error."""
    made = tables()
    with torch.no_grad():
        made[1].table[0, 0, 1] = -math.inf
    refs, judges = references(made), {"reward": lambda prompt, text: 0.0}
    found = compare_samples(
        {"p": refs["p"]}, refs, ["x0"], judges, Generation(LENGTH), weights=(1.0, 0.0), beta=BETA, samples=40
    )
    assert float(found.values["J"]) == pytest.approx(0.0, abs=1e-6) and float(found.values["KL(π‖q)"]) == math.inf
    with torch.no_grad():
        made[0].table[0, 0, [0, 2]] = -math.inf
    with pytest.raises(EmptyPoolError, match="forbidden"):
        compare_samples({"pool": TokenPool(list(refs.values()), W)}, refs, ["x0"], judges, Generation(LENGTH), beta=BETA)


def test_a_reward_of_more_than_the_text_is_not_chosen_by():
    """Best of n would choose by `ended=None`, and be measured with the real one."""
    asked = ({"prompt": "x0"},), [Reward(lambda prompts, completions, ended=None: [0.0] * len(completions), "whole")]
    policy = references(tables())["p"]
    assert "whole" in sample_rewards(policy, *asked, Generation(LENGTH), samples=2)
    with pytest.raises(ArgumentError, match="'whole' reads `ended`"):
        sample_rewards(BestOf(policy, 2), *asked, Generation(LENGTH), samples=2)


def test_what_cannot_be_compared():
    refs, judges = references(tables()), {"reward": lambda prompt, text: 0.0}
    other = LanguageModel(make_llama(len(make_tokenizer())), make_tokenizer(), "other")
    with pytest.raises(VocabularyMismatch):
        compare_samples({"other": other}, refs, ["x0"], judges, Generation(2), beta=BETA)
    short = LanguageModel(make_llama(len(other.tokenizer), context=8), other.tokenizer, "short")
    with pytest.raises(ArgumentError, match="the policy holds 8 tokens"):  # positions beyond mean nothing
        compare_samples({"short": short}, {"other": other}, ["x0"], judges, Generation(8), beta=BETA)
    with pytest.raises(ArgumentError, match="best of n"):
        BestOf(refs["p"], 0)
    with pytest.raises(ArgumentError, match="best of n"):
        BestOf(refs["p"], 1.5)
    for changed, said in (
        ({"judges": {}}, "judge `reward`"),
        ({"policies": [refs["p"]]}, "by name"),
        ({"policies": {"p": None}}, "'p' is None"),
        ({"prompts": "x0"}, "a list of prompts"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"samples": 1.5}, "samples"),
    ):
        given = {"policies": {"p": refs["p"]}, "prompts": ["x0"], "judges": judges, "beta": BETA, **changed}
        with pytest.raises(ArgumentError, match=said):
            compare_samples(references=refs, generation=Generation(2), **given)
    for bad, said in ((None, "expected . numbers"), (math.nan, "nan for"), ("1", "expected . numbers")):
        with pytest.raises(ArgumentError, match=f"^style: .*({said})"):
            compare_samples(
                {"p": refs["p"]}, refs, ["x0"], judges | {"style": lambda *_, bad=bad: bad}, Generation(2), beta=BETA, samples=2
            )
    with pytest.raises(ArgumentError, match="judges: 'length' is a metric of its own"):
        compare_samples({"p": refs["p"]}, refs, ["x0"], judges | {"length": judges["reward"]}, Generation(2), beta=BETA)
