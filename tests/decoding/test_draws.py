"""`sample` against enumeration: what each method's draws converge to, what it says of Z, and what it refuses."""

import json
import math
import os
import threading
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import multiref as mr
from multiref import exact
from multiref.decoding import Budget, Draws, sample
from multiref.decoding.draws import chooser
from multiref.decoding.streaming import draw_tokens, open_pool, read_tokens
from multiref.errors import ArgumentError, DataError, EmptyPoolError, ModelError, VocabularyMismatch
from multiref.evaluation import contestants
from multiref.models import Generation, LanguageModel, tabular_tokenizer
from multiref.models import sample as sample_one
from multiref.serving import optimum
from multiref.serving.asked import Asked
from multiref_lab.statements.drawing_the_optimum import ways_to_draw
from tests.conftest import make_llama, make_tokenizer
from tests.decoding.worlds import BETA, LENGTH, Truth, W, logps, references, reward, tables, total_variation

RULE = mr.ReverseKL(W)
ALL = [
    ("smc", None),
    ("smc", "pool"),
    ("importance", None),
    ("importance", "pool"),
    ("importance", "mixture"),
    ("importance", "sampled_ends"),
    ("importance", "q"),
    ("rejection", None),
    ("rejection", "mixture"),
]


def drawn(made, method, proposal=None, **options):
    given = {"n": 500, "islands": 8, "max_new_tokens": LENGTH, "reward_max": 1.0, "seed": 1, **options}
    return sample(["x0"], references(made), RULE, reward, BETA, method=method, proposal=proposal, **given)


@pytest.mark.parametrize(("method", "proposal"), ALL, ids=[f"{m}-{p}" for m, p in ALL])
@pytest.mark.parametrize("shortest", [0, 2])
def test_draws_are_of_the_optimum(method, proposal, shortest):
    """4,000 draws: total variation to π* below 0.05, log Ẑ within 4.5 errors of log Z and the error below 0.05."""
    made = tables()
    truth = Truth(made, shortest=shortest)
    (found,) = drawn(made, method, proposal, min_new_tokens=shortest)
    assert total_variation(truth.histogram(found), truth.policy) < 0.05
    assert abs(found.log_partition - truth.log_partition) < 4.5 * found.error < 0.25
    assert float(found.log_weights.logsumexp(0)) == pytest.approx(found.log_partition, abs=1e-9)
    assert ("no bound" in str(Draws((found,), method, proposal or "pool"))) == (proposal == "q")
    if method == "rejection":  # a binomial share a of some hundred more proposals than it took
        a = math.exp(found.log_partition - 1.0 / BETA)
        assert 0.8 * math.sqrt((1 - a) / 4000) < found.error <= math.sqrt((1 - a) / 4000)
    else:  # the islands are independent, and their mean is Ẑ
        islands = found.log_islands.exp()
        assert found.error == pytest.approx(float(islands.std() / islands.mean()) / len(islands) ** 0.5)
    cut = float(truth.policy[[ids[-1] != 0 for ids in truth.ids]].sum())
    assert found.cut == pytest.approx(cut, abs=0.05)


def test_without_a_reward_it_is_the_escort_and_only_ended_ones_where_asked():
    made = tables()
    truth = Truth(made, rewarded=False)
    escort = sample(["x0"], references(made), RULE, n=500, islands=8, max_new_tokens=LENGTH)
    assert total_variation(truth.histogram(escort[0]), truth.policy) < 0.05 and escort.reward_calls == 0
    assert abs(float(escort.log_partition[0]) - truth.log_partition) < 4.5 * float(escort.error[0])
    ended = torch.tensor([ids[-1] == 0 for ids in truth.ids])
    part = float(truth.log_target[ended].logsumexp(0))
    for method in ("smc", "importance", "rejection"):
        (found,) = sample(
            ["x0"], references(made), RULE, method=method, n=500, islands=8, max_new_tokens=LENGTH, require_end=True
        )
        assert found.cut == 0 and abs(found.log_partition - part) < 4.5 * found.error


@pytest.mark.parametrize("proposal", ["pool", "mixture", "sampled_ends"])
def test_weights_have_the_second_moment_of_the_exact_law(proposal):
    """E[w²; y] of every completion, which decides how fast soft best-of-n converges: 31 z-scores over 8,000 draws of
    `importance`, against all ways in which a completion is drawn; counted ends are kept one of a path, for the sum of it."""
    made = tables()
    levels, start = [], 0
    for t in range(LENGTH):  # rows of a table whose prefixes have no end, in the order of their tokens
        rows = [start + sum(3 ** (len(p) - 1 - i) * v for i, v in enumerate(p)) for p in product((1, 2), repeat=t)]
        levels.append(torch.stack([each.table[0, rows].detach().log_softmax(-1) for each in made]))
        start += 3**t
    truth = Truth(made, weights=(0.5, 0.5))
    names = {"pool": "ends counted", "mixture": "mixture", "sampled_ends": "ends drawn"}
    log_q, log_w, where = ways_to_draw(levels)[names[proposal]]
    tilted = log_w + (truth.rewards / BETA)[where]
    second = torch.zeros(len(truth.ids), dtype=torch.float64).index_add_(0, where, (log_q + 2 * tilted).exp())
    (found,) = sample(
        ["x0"], references(made), mr.ReverseKL((0.5, 0.5)), reward, BETA, method="importance", proposal=proposal, n=8000,
        islands=1, max_new_tokens=LENGTH,
    )  # fmt: skip
    place = {ids: i for i, ids in enumerate(truth.ids)}
    square = (found.log_weights + math.log(8000)).exp().square()
    one = torch.zeros(8000, len(place), dtype=torch.float64)
    one[range(8000), [place[ids] for ids in found.ids]] = square
    z = (one.mean(0) - second) / (one.std(0) / 8000**0.5).clamp_min(1e-12)
    assert float(z.abs().max()) < 5


def test_rejection_is_exact():
    """χ² of 4,000 draws over 31 completions (30 degrees of freedom: 99.99 % below 67), and the acceptance Z e^{−r_max/β}."""
    made = tables()
    truth = Truth(made)
    for proposal in ("pool", "mixture"):
        (found,) = drawn(made, "rejection", proposal)
        counts, expected = 4000 * truth.histogram(found), 4000 * truth.policy
        assert float(((counts - expected).square() / expected).sum()) < 67
        assert bool((found.log_weights == found.log_weights[0]).all())


def test_the_per_token_pool_is_said_to_be_approximate():
    """Its draws are of pi_tok, which here is 0.1 and more from the escort in total variation."""
    made = tables(spread=2.0)
    truth = Truth(made, rewarded=False)
    found = sample(["x0"], references(made), RULE, method="token", n=500, islands=8, max_new_tokens=LENGTH)
    assert "another distribution" in found.approximate and "approximate" in str(found) and math.isnan(found[0].log_partition)
    assert total_variation(truth.histogram(found[0]), truth.policy) > 0.1


@pytest.mark.parametrize("rule", [mr.ForwardKL(W), mr.AlphaDivergence(W, alpha=2.0), mr.PooledKL(W, order=-1.0)], ids=repr)
def test_other_pools_by_scores_of_whole_completions(rule):
    """The exact solver's optimum over all completions, from 4,000 draws of the mixture; token by token it is refused."""
    made = tables()
    truth = Truth(made)
    optimum = exact.solve(truth.rewards, truth.each, rule, beta=BETA).policy
    (found,) = sample(
        ["x0"], references(made), rule, reward, BETA, method="importance", n=500, islands=8, max_new_tokens=LENGTH
    )
    assert total_variation(truth.histogram(found), optimum) < 0.06
    for method, proposal in (("smc", None), ("importance", "pool"), ("rejection", None)):
        with pytest.raises(ArgumentError, match=f"{rule.name}.*proposal='mixture'"):
            sample(["x0"], references(made), rule, reward, BETA, method=method, proposal=proposal, reward_max=1.0)


def test_references_of_other_vocabularies_score_the_text():
    """Each text counts once, in its canonical spelling; token by token it is refused by name."""
    tokenizer, foreign = make_tokenizer("bytelevel"), make_tokenizer()
    models = [make_llama(len(each), seed=seed, std=0.05) for seed, each in enumerate((tokenizer, foreign))]
    refs = {"own": LanguageModel(models[0], tokenizer, "own"), "foreign": LanguageModel(models[1], foreign, "foreign")}
    found = sample(["the cat"], refs, RULE, method="importance", n=40, islands=1, max_new_tokens=3)
    each = found[0]
    texts = [text for text, w in zip(each.completions, each.weights.tolist()) if w > 0]
    assert 0 < each.not_canonical < 1 and len(texts) == round(40 * (1 - each.not_canonical)) and found.proposal == "own"
    for method in ("smc", "token", "rejection"):
        with pytest.raises(VocabularyMismatch, match=r"'own'.*'foreign'.*importance"):
            sample(["the cat"], refs, RULE, method=method, max_new_tokens=3)


@pytest.mark.parametrize("method", ["smc", "importance", "rejection", "token"])
def test_who_has_no_weight_is_absent(method):
    """Of another vocabulary too: the draws are those without it."""
    refs, foreign = references(tables()), make_tokenizer()
    more = {"foreign": LanguageModel(make_llama(len(foreign)), foreign, "foreign"), **refs}
    one, other = (
        sample(["x0"], given, mr.ReverseKL(w), reward, BETA, method=method, reward_max=1.0, max_new_tokens=LENGTH, n=8)
        for given, w in ((refs, W), (more, (0.0, *W)))
    )
    assert one[0].completions == other[0].completions and torch.equal(one[0].log_weights, other[0].log_weights)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple], ids=["numpy", "torch", "tuple"])
def test_a_reward_may_be_awaited_and_give_any_numbers(kind):
    """The same draws as of a plain list."""

    async def later(prompts, completions):
        return kind(reward(prompts, completions))

    plain, awaited = (sample(["x0"], references(tables()), RULE, r, BETA, max_new_tokens=LENGTH) for r in (reward, later))
    assert awaited.log_partition == pytest.approx(plain.log_partition, abs=1e-6) and awaited.pick(3) == plain.pick(3)


@pytest.mark.parametrize("names", ["pq", "qp"])
@pytest.mark.parametrize("method", ["smc", "importance", "rejection"])
def test_what_ends_any_reference_ends_a_completion(names, method):
    """One tokenizer names y0 as its end, the other y1: log F is that of completions that end with either, in both orders; a
    certificate of a policy that ends otherwise is refused."""
    made = tables()
    refs = references(made)
    refs["q"].tokenizer.eos_token = "y1"
    ids = [(*p, end) for t in range(LENGTH) for p in product((2,), repeat=t) for end in (0, 1)] + [(2,) * LENGTH]
    each = torch.tensor([[logps(table, row) for row in ids] for table in made], dtype=torch.float64)
    log_f = float((W[0] * each[0] + W[1] * each[1]).logsumexp(0))
    rule = mr.ReverseKL(W if names == "pq" else W[::-1])
    (found,) = sample(["x0"], {name: refs[name] for name in names}, rule, method=method, n=400, max_new_tokens=LENGTH)
    assert abs(found.log_partition - log_f) < 4.5 * found.error + 1e-6 and set(found.ids) <= set(ids)
    with pytest.raises(ArgumentError, match="ends completions with"):
        mr.evaluation.certificate(refs["p"], refs, RULE, reward, BETA, ["x0"], generation=mr.models.Generation(LENGTH))


def test_rejection_stays_within_its_budget():
    found = drawn(tables(), "rejection", n=20, budget=Budget(tokens=60_000, rewards=5_000))
    assert found.tokens <= 60_000 and found.reward_calls <= 5_000


@pytest.mark.parametrize("method", ["smc", "importance", "token"])
def test_what_it_takes_is_foretold(method, tmp_path):
    """Where nothing ends early the tokens are those that are read, 2 models · (1 of the prompt + 16 rows · 3); said before the
    reward is first asked, and kept with the draws."""
    heard = []

    def judge(prompts, completions):
        heard.append("reward")
        return [0.0] * len(completions)

    given = {"method": method, "n": 8, "islands": 2, "max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "say": heard.append}
    found = sample(["x0"] * 2, references(tables()), RULE, judge, BETA, **given)
    assert found.tokens == found.foretold["tokens"] == 2 * 2 * (1 + 16 * (LENGTH - 1))
    assert found.reward_calls <= found.foretold["rewards"] == 32 and found.foretold["seconds"] > 0
    assert heard[0].startswith("Up to 196 tokens read and 32 rewards; about ") and set(heard[1:]) == {"reward"}
    found.save(tmp_path / "draws.jsonl")
    assert Draws.load(tmp_path / "draws.jsonl").foretold == found.foretold
    assert "seconds" not in sample(["x0"], references(tables()), RULE, n=1, islands=1, max_new_tokens=1).foretold


def test_whole_numbers_of_numpy_are_whole_numbers():
    made = tables()
    found, again = (
        sample(["x0"], references(made), RULE, n=kind(8), islands=kind(2), max_new_tokens=LENGTH, seed=kind(3))
        for kind in (int, np.int64)
    )
    assert found.log_partition == again.log_partition and found.pick(3) == again.pick(np.int64(3))


def test_a_pick_has_random_numbers_of_its_own(monkeypatch):
    """The seed's own made the draws, perhaps. Picked by them, the first of three draws of the mixture that begins with an end
    was 5 % too rare (9 standard errors over 1,500 seeds). In `pick`, beside other policies, and behind a server."""
    made, seeds = drawn(tables(), "rejection", n=50, islands=1), range(20)
    own = [torch.multinomial(made[0].weights, 1, True, generator=torch.Generator().manual_seed(s)).item() for s in seeds]
    assert sum(made._places(1, s) == [[i]] for s, i in zip(seeds, own)) < 5
    asked = []
    for module in (contestants, optimum):
        monkeypatch.setattr(module, "chooser", lambda seed: asked.append(seed) or chooser(seed))
    refs = mr.References(references(tables()))
    contestants.Optimum(refs, RULE, BETA, n=2, islands=1).draw("x0", reward, Generation(LENGTH), 2, 5)
    with optimum.Optimum(refs, RULE, n=2, islands=1) as served:
        list(served.answer(Asked(("x0",), new_tokens=LENGTH, seed=7), threading.Event()))
    assert asked == [5, 7]


def test_picks_rows_and_files():
    """The same seed picks the same; a saved file gives the same draws back; other files are refused."""
    made = tables()
    found = drawn(made, "smc", n=50)
    assert found.pick(3) == found.pick(3) and len({found.pick(seed)[0] for seed in range(40)}) > 3
    pairs = found.to_pairs(20, seed=1)
    assert pairs and all(reward([], [p.chosen])[0] > reward([], [p.rejected])[0] for p in pairs)
    assert [row["prompt"] for row in found.to_sft(3)] == ["x0"] * 3 and len(found.to_sft()) == len(found)
    for wrong in (lambda: found.pick(1.5), lambda: found.to_sft(2.5), lambda: found.to_pairs(0)):
        with pytest.raises(ArgumentError, match="expected a whole number"):
            wrong()


def test_a_reward_is_not_asked_about_what_weighs_nothing():
    """Among completions that ended, cut ones weigh nothing: no other is as long, so no text is of both."""
    asked = []

    def seen(prompts, completions):
        asked.extend(completions)
        return reward(prompts, completions)

    given = {"method": "importance", "proposal": "sampled_ends", "n": 50, "islands": 2, "max_new_tokens": LENGTH}
    found = sample(["x0"], references(tables()), RULE, seen, BETA, require_end=True, **given)
    told = {end: {text for text, ended in zip(found[0].completions, found[0].ended) if ended == end} for end in (True, False)}
    assert told[False] and set(asked) == told[True] and found.reward_calls == len(asked) == len(told[True])
    assert not found[0].weights[~torch.tensor(found[0].ended)].any()


def test_a_saved_file_gives_the_draws_back(tmp_path):
    found = drawn(tables(), "importance", n=20)
    found.save(tmp_path / "draws.jsonl")
    again = Draws.load(tmp_path / "draws.jsonl")
    assert str(again) == str(found) and again.pick(5) == found.pick(5) and torch.equal(again[0].weights, found[0].weights)
    veto = found[0].log_weights.index_fill(0, torch.tensor([0, 7]), -math.inf)
    replace(found, prompts=(replace(found[0], log_weights=veto),)).save(tmp_path / "vetoed.jsonl")
    assert torch.equal(Draws.load(tmp_path / "vetoed.jsonl")[0].weights, veto.softmax(-1))
    drawn(tables(), "token", n=2).save(tmp_path / "token.jsonl")
    lines = (tmp_path / "token.jsonl").read_text().splitlines()
    row = json.loads(lines[1], parse_constant=pytest.fail)  # what any reader of JSON takes
    assert row["log_partition"] is None and math.isnan(Draws.load(tmp_path / "token.jsonl")[0].log_partition)
    (tmp_path / "short.jsonl").write_text("\n".join([lines[0], json.dumps({**row, "ended": row["ended"][1:]})]))
    content = (tmp_path / "draws.jsonl").read_bytes()
    at = content.index(b'"log_weights": [') + 20
    (tmp_path / "flipped.jsonl").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    (tmp_path / "cut.jsonl").write_bytes(content.partition(b"\n")[0] + b"\n")
    (tmp_path / "other.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 10**5)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("flipped.jsonl", "cut.jsonl", "other.jsonl", "deep.jsonl", "pipe.jsonl", "missing.jsonl", "short.jsonl"):
        with pytest.raises(DataError, match=name):
            Draws.load(tmp_path / name)


def test_one_dominant_weight_withholds_the_error():
    """A reward that is large at one completion: more than a tenth of the sum is one draw."""
    made = tables()
    (found,) = sample(
        ["x0"], references(made), RULE, lambda prompts, completions: [c == "y1y1y1y1" for c in completions], 0.05,
        method="importance", proposal="mixture", n=6, islands=1, max_new_tokens=LENGTH,
    )  # fmt: skip
    assert found.largest_share > 0.1 and math.isnan(found.error)


BAD = {
    "nan": ({"reward": lambda prompts, completions: [math.nan] * len(completions)}, "nan for"),
    "infinite": ({"reward": lambda prompts, completions: [math.inf] * len(completions)}, "inf for"),
    "raises": ({"reward": lambda prompts: [1.0]}, "reward: the function raised TypeError"),
    "short": ({"reward": lambda prompts, completions: [1.0]}, "1 numbers for"),
    "no list": ({"reward": lambda prompts, completions: 1.0}, "expected .* numbers"),
    "words": ({"reward": lambda prompts, completions: ["high"] * len(completions)}, "expected .* numbers"),
    "matrix": ({"reward": lambda prompts, completions: torch.zeros(len(completions), 2)}, "expected .* numbers"),
    "a dictionary": ({"reward": lambda prompts, completions: dict(enumerate(map(len, completions)))}, "expected .* numbers"),
    "a text": ({"reward": lambda prompts, completions: "1" * len(completions)}, "expected .* numbers"),
    "numbers as text": ({"reward": lambda prompts, completions: ["1.5"] * len(completions)}, "expected .* numbers"),
    "none": ({"reward": lambda prompts, completions: [None] * len(completions)}, "expected .* numbers"),
    "overflows": (
        {"beta": 1e-3, "reward_max": None, "reward": lambda prompts, completions: [1e306] * len(completions)},
        "finite",
    ),
    "maximum nan": ({"reward_max": math.nan}, "reward_max: expected a finite"),
    "seed": ({"seed": 0.5}, "seed: expected a whole"),
    "tokens by halves": ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
    "no regularizer": ({"regularizer": W}, "regularizer: expected"),
    "no budget": ({"budget": 100}, "expected a Budget"),
    "hopeless": ({"method": "rejection", "reward_max": 900.0}, "accepts about 0"),
    "too large": ({"reward_max": 0.2}, "reward_max is 0.2"),
    "no beta": ({"beta": None}, "needs its strength"),
    "beta 0": ({"beta": 0.0}, "positive"),
    "several beta": ({"beta": [0.5, 0.6]}, "one positive"),
    "ended, in words": ({"require_end": "no"}, "require_end: expected True or False"),
    "methods": ({"method": ["smc"]}, "expected one of smc"),
    "tokens of rejection's trial": ({"method": "rejection", "budget": Budget(tokens=300)}, "300 are allowed"),
    "rewards of rejection": ({"method": "rejection", "budget": Budget(rewards=300), "n": 200}, "300 are allowed"),
    "beta below 0": ({"beta": -0.5}, "positive"),
    "beta nan": ({"beta": math.nan}, "positive"),
    "name for smc": ({"proposal": "q"}, "other vocabularies"),
    "method": ({"method": "best"}, "expected one of smc"),
    "proposal": ({"method": "importance", "proposal": "r"}, "expected one of pool"),
    "proposal of rejection": ({"method": "rejection", "proposal": "flat"}, "expected one of pool, mixture"),
    "proposal of tokens": ({"method": "token", "proposal": "mixture"}, "expected one of pool"),
    "proposal of smc": ({"proposal": "mixture"}, "'mixture' with method 'smc'; expected one of flat, pool"),
    "far below": ({"reward": lambda completions, **_: [-1e308] * len(completions), "beta": 0.1}, "no finite number"),
    "no islands": ({"islands": 0}, "islands"),
    "no maximum": ({"method": "rejection", "reward_max": None}, "largest reward"),
    "rare": ({"method": "rejection", "reward_max": 30.0}, "1e|accepts about"),
    "text": ({"prompts": "x0"}, "expected a list"),
    "no text": ({"prompts": ["x0", 3]}, "row 1 is 3"),
    "one number": ({"prompts": 3}, "expected a list"),
    "no length": ({"max_new_tokens": None}, "max_new_tokens is None"),
    "true tokens": ({"max_new_tokens": True}, "max_new_tokens is True"),
    "no references": ({"refs": None}, "expected {name"),
    "tokens": ({"budget": Budget(tokens=10)}, "10 are allowed"),
    "rewards": ({"budget": Budget(rewards=10)}, "rewards"),
    "seconds": ({"budget": Budget(seconds=1e-6)}, "seconds"),
    "memory": ({"n": 10**12}, r"need [\d,]+ bytes .* and [\d,]+ are free"),
    "weights": ({"regularizer": mr.ReverseKL((0.2, 0.3, 0.5))}, "weights"),
}


@pytest.mark.parametrize("options", [{"tokens": math.nan}, {"rewards": -1}, {"seconds": "long"}], ids=str)
def test_a_budget_is_a_number(options):
    with pytest.raises(ArgumentError, match=f"budget: {next(iter(options))}"):
        Budget(**options)


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_error(case):
    changed, message = BAD[case]
    options = {"prompts": ["x0"], "refs": references(tables()), "regularizer": RULE, "reward": reward, "beta": BETA}
    options |= {"n": 20, "islands": 2, "max_new_tokens": LENGTH, "reward_max": 1.0, **changed}
    with pytest.raises(ArgumentError, match=message):
        sample(options.pop("prompts"), options.pop("refs"), options.pop("regularizer"), **options)


def test_vetoes():
    """One −∞ takes that completion out; all of them, or references without a common completion, leave no mass."""
    made = tables()
    refs = references(made)
    veto = lambda prompts, completions: [-math.inf if c == "y0" else 0.0 for c in completions]  # noqa: E731
    found = sample(["x0"], refs, RULE, veto, 1.0, max_new_tokens=LENGTH)[0]
    assert "y0" not in [c for c, w in zip(found.completions, found.weights.tolist()) if w > 0]
    with pytest.raises(EmptyPoolError, match="reward is −∞"):
        sample(["x0"], refs, RULE, lambda prompts, completions: [-math.inf] * len(completions), 1.0, max_new_tokens=LENGTH)
    with torch.no_grad():
        made[0].table[..., :2] = -math.inf
        made[1].table[..., 2] = -math.inf
    with pytest.raises(EmptyPoolError, match="forbids"):
        sample(["x0"], refs, RULE, max_new_tokens=LENGTH)
    with pytest.raises(ArgumentError, match="gives no mass"):  # the arithmetic pool has what one reference forbids
        sample(["x0"], refs, mr.ForwardKL(W), reward, BETA, method="importance", proposal="p", max_new_tokens=LENGTH)


@pytest.mark.parametrize(("method", "proposal"), [("smc", None), ("importance", "mixture"), ("rejection", "mixture")])
def test_what_one_reference_forbids_has_no_mass(method, proposal):
    """A veto at the first token, where the proposal goes: no draw with mass has it, and log Ẑ is that of the rest."""
    made = tables()
    with torch.no_grad():
        made[1].table[0, 0, 2] = -math.inf
    truth = Truth(made)
    (found,) = drawn(made, method, proposal)
    assert all(ids[0] != 2 for ids, w in zip(found.ids, found.weights.tolist()) if w > 0)
    assert abs(found.log_partition - truth.log_partition) < 4.5 * found.error < 0.25


@pytest.mark.parametrize(
    ("method", "proposal"), [*ALL[:6], ("token", None)], ids=[f"{m}-{p}" for m, p in [*ALL[:6], ("token", 0)]]
)
def test_references_that_exclude_each_other_on_the_way(method, proposal):
    """After "y1" one goes on with its end alone, the other with y1 alone: nothing with mass begins so, and nothing is NaN."""
    made = tables()
    with torch.no_grad():
        made[0].table[0, 2] = torch.tensor([0.0, -math.inf, -math.inf])
        made[1].table[0, 2] = torch.tensor([-math.inf, 0.0, -math.inf])
    truth = Truth(made)
    (found,) = drawn(made, method, proposal)
    assert all(ids[0] != 1 for ids, w in zip(found.ids, found.weights.tolist()) if w > 0) and found.effective_size > 10
    assert method == "token" or abs(found.log_partition - truth.log_partition) < 4.5 * found.error < 0.25


def test_a_context_that_is_exceeded_is_one_error():
    tokenizer = make_tokenizer()
    model = make_llama(len(tokenizer))
    refs = {name: LanguageModel(model, tokenizer, name) for name in "ab"}
    longest = model.config.max_position_embeddings
    for method in ("smc", "importance", "rejection", "token"):
        with pytest.raises(ArgumentError, match=f"'a' holds {longest} tokens, but a rollout may have"):
            sample(["the cat"], refs, RULE, method=method, max_new_tokens=longest)


def test_a_token_that_the_model_has_not_is_one_error():
    """A tokenizer that got one more: drawn behind, streamed behind, read, and sampled behind by the policy itself."""
    tokenizer = make_tokenizer()
    one = LanguageModel(make_llama(len(tokenizer)), tokenizer, "a")
    tokenizer.add_tokens(["<extra>"])
    asks = [
        lambda method=method: sample(["<extra> is"], {"a": one}, mr.ReverseKL(), method=method) for method in ("smc", "token")
    ]
    asks.append(lambda: sample_one(one.model, tokenizer, ["<extra> is"], Generation(2), generator=torch.Generator()))
    with open_pool({"a": one}, mr.ReverseKL()) as bench:
        asks.append(lambda: read_tokens(bench, (1, len(tokenizer) - 1, 5)))
        asks.append(lambda: next(draw_tokens(bench, (1, len(tokenizer) - 1), Generation(2), generator=torch.Generator())))
        for ask in asks:
            with pytest.raises(ModelError, match=f"Token id {len(tokenizer) - 1} occurs in .* has {len(tokenizer) - 1} rows"):
                ask()


def test_without_an_end_token_everything_is_cut():
    """Then an end cannot be asked for, and what is cut has all the mass: F of the nine completions of two tokens."""
    made = tables()
    refs = {name: LanguageModel(each.model, tabular_tokenizer(each.model), name) for name, each in references(made).items()}
    for options in ({"require_end": True}, {"min_new_tokens": 2}):
        with pytest.raises(ArgumentError, match="nothing ends a completion"):
            sample(["x0"], refs, RULE, max_new_tokens=LENGTH, **options)
    (found,) = sample(["x0"], refs, RULE, n=500, max_new_tokens=2)
    every = list(product(range(3), repeat=2))
    each = torch.tensor([[logps(table, ids) for ids in every] for table in made], dtype=torch.float64)
    log_f = float((W[0] * each[0] + W[1] * each[1]).logsumexp(0))
    assert found.cut == pytest.approx(1) and abs(found.log_partition - log_f) < 4.5 * found.error + 1e-6
