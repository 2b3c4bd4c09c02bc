"""Does a second reference help? On generated data where the answer is known, and the pieces against independent numbers."""

import json
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import multiref as mr
from multiref._made import Made
from multiref.data import Pair
from multiref.errors import DataError
from multiref.evaluation.inspection import inspect
from multiref.evaluation.inspection.escort import measure_escort
from multiref.evaluation.inspection.evidence import gather
from multiref.evaluation.inspection.faults import doubts, find_faults
from multiref.evaluation.inspection.mixture import folds_of, held_out
from multiref.evaluation.inspection.quality import quality
from multiref.references.keys import side_keys
from multiref.references.scores import SequenceScores, content_keys
from multiref.references.token_level import standard_error
from multiref.weighting import fit_preferences
from tests.decoding.worlds import LENGTH, Truth, W, references, tables
from tests.evaluation.worlds import world


def right(kind, seed):
    pairs, scores, use, broken = world(kind, seed)
    verdict = inspect(pairs, scores, resamples=5).verdict
    return set(verdict.use) == use and set(verdict.broken) == broken


@pytest.mark.parametrize("kind", ["one", "two", "padded", "none"])
def test_the_verdict_is_right_where_the_answer_is_known(kind):
    assert all(right(kind, seed) for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "two", "padded", "none"])
def test_the_verdict_is_right_in_19_of_20_worlds(kind):
    """Seeds that no threshold was chosen on."""
    count = sum(right(kind, seed) for seed in range(100, 120))
    print(f"{kind}: the verdict is right in {count} of 20 worlds")
    assert count >= 19


def made(logps, lengths=None, prompts=None, truncated=None):
    """K × P × 2 sums → pairs and scores."""
    logps = np.asarray(logps, dtype=float)
    count = logps.shape[1]
    pairs = [Pair(f"p{n}" if prompts is None else prompts[n], f"c{n}", f"r{n}") for n in range(count)]
    keys = content_keys([p.prompt for p in pairs for _ in range(2)], [side for p in pairs for side in (p.chosen, p.rejected)])
    flat = torch.from_numpy(logps.reshape(len(logps), -1).copy())
    sizes = torch.full(flat.shape, 10) if lengths is None else torch.from_numpy(np.asarray(lengths).reshape(flat.shape).copy())
    return pairs, SequenceScores(tuple("abcdef"[: len(logps)]), keys, flat, sizes, torch.zeros(flat.shape, dtype=torch.bool))


def test_the_numbers_of_one_reference_on_paper():
    """Margins 2, 1, −1, 0 and lengths 3:1, 2:2, 1:4, 1:1. Right on 2½ of 4. The shorter one is chosen in 1 pair, ties in 2: ½.

    log loss: mean of log(1 + e^−m). Nats per token: 1 + … + 8 less nothing = Σ −logp / Σ tokens.
    """
    logps = [[[-1, -3], [-2, -3], [-5, -4], [-6, -6]]]
    evidence = gather(*made(logps, lengths=[[[3, 1], [2, 2], [1, 4], [1, 1]]]))
    q = quality(evidence, 0, faults=())
    assert q.accuracy == 2.5 / 4
    assert q.shorter_accuracy == 0.5
    assert q.log_loss == pytest.approx(np.mean([math.log1p(math.exp(-m)) for m in (2, 1, -1, 0)]))
    assert q.nats_per_token == pytest.approx(30 / 15)
    longer, margins = np.array([2, 0, -3, 0]), np.array([2, 1, -1, 0])
    assert q.length_correlation == pytest.approx(np.corrcoef(longer, margins)[0, 1])
    assert q.spread == pytest.approx(np.std([1 / 3, 3, 1, 1.5, 5, 1, 6, 6], ddof=1))
    sizes, claims, found, counts = zip(*q.calibration)
    assert sizes == (0, 1, 1, 2) and counts == (1,) * 4 and found[0] == 0.5 and sorted(found[1:]) == [0, 1, 1]
    assert claims == pytest.approx([1 / (1 + math.exp(-size)) for size in sizes])
    assert q.calibration_error == pytest.approx(np.mean([abs(a - b) for a, b in zip(claims, found)]))


def test_the_accuracy_interval_is_wilson_where_pairs_are_independent():
    """62 right of 100: Wilson's 95 % interval is [0.522, 0.709] (Brown, Cai, DasGupta 2001, formula 4)."""
    margins = np.where(np.arange(100) < 62, 1.0, -1.0)
    q = quality(gather(*made([np.stack([margins, 0 * margins], axis=1) - 5])), 0, faults=())
    assert q.accuracy_interval == pytest.approx((0.522, 0.709), abs=2e-3)


def test_a_perfectly_calibrated_margin_has_temperature_one_and_no_calibration_error():
    random = np.random.default_rng(0)
    margins = random.normal(0, 2, 10_000)
    margins = np.where(random.random(10_000) < 1 / (1 + np.exp(-margins)), margins, -margins)
    q = quality(gather(*made([np.stack([margins, 0 * margins], axis=1) - 30])), 0, faults=())
    assert q.temperature == pytest.approx(1, abs=0.06) and q.calibration_error < 0.03
    double = quality(gather(*made([np.stack([2 * margins, 0 * margins], axis=1) - 60])), 0, faults=())
    assert double.temperature == pytest.approx(0.5, abs=0.03) and double.calibration_error > 0.05


def test_the_clustered_error_is_that_of_the_cluster_means():
    """Each prompt three times with equal values: the error is that of the distinct prompts, not of thrice as many pairs."""
    values = torch.tensor([1.0, 2.0, 4.0, 7.0]).double()
    alone = standard_error(values, torch.arange(4))
    assert alone == pytest.approx(float(values.std()) / 2)
    assert standard_error(values.repeat_interleave(3), torch.arange(4).repeat_interleave(3)) == pytest.approx(alone)


def test_pairs_of_one_prompt_are_never_split_between_fitting_and_testing():
    groups = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7] * 5)
    folds = folds_of(groups, 4, seed=3)
    assert all(len(folds[groups == g].unique()) == 1 for g in range(8)) and len(folds.unique()) == 4


def test_held_out_means_held_out():
    """Each pair is predicted once, from a fit that saw no pair of its prompt. Columns are told apart by their values."""
    groups = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5])
    margins = torch.arange(8).double()[None]
    predicted = []

    def watching(training, testing):
        seen, asked = training[0].long().tolist(), testing[0].long().tolist()
        assert sorted(seen + asked) == list(range(8)), "nothing is wasted"
        assert not {int(groups[n]) for n in seen} & {int(groups[n]) for n in asked}
        predicted.extend(asked)
        return testing[0]

    likelihood, logits = held_out(watching, margins, folds_of(groups, 3, seed=0))
    assert sorted(predicted) == list(range(8)) and torch.equal(logits, margins[0])
    assert torch.allclose(likelihood, -torch.log1p(torch.exp(-logits)))


def test_intervals_of_weights_are_the_95_percent_of_resampled_prompts(monkeypatch):
    """A fit that is the mean of the margins: its bootstrap interval is mean ± 1.96 sd/√G, prompts being what is resampled."""
    from multiref.evaluation.inspection import mixture

    values = torch.from_numpy(np.random.default_rng(2).normal(3, 1, 60)).repeat_interleave(2)
    groups = torch.arange(60).repeat_interleave(2)

    def mean(margins, counts=None):
        n = torch.ones(len(values)).double() if counts is None else counts
        return SimpleNamespace(weights=torch.ones(1).double(), scale=float(margins[0] @ n / n.sum()))

    monkeypatch.setattr(mixture, "fit_preferences", mean)
    seen = SimpleNamespace(margins=values[None], groups=groups, names=("a",))
    low, high = mixture.weigh(seen, [0], resamples=2000, seed=0).scale_interval
    reach = 1.96 * float(values[::2].std()) / 60**0.5
    assert (high - low) / 2 == pytest.approx(reach, rel=0.08) and (high + low) / 2 == pytest.approx(
        float(values.mean()), abs=0.03
    )


def test_errors_of_ways_to_weigh_are_clustered():
    """Each of 30 prompts three times: the error of a gain over the best single one is that of the 30 differences."""
    from multiref.evaluation.inspection.mixture import _best_single, _scaled, contenders
    from multiref.weighting import uniform

    margins = np.random.default_rng(4).normal(0.5, 1, (2, 30)).repeat(3, axis=1)
    seen = gather(*made(np.stack([margins, 0 * margins], axis=-1) - 9, prompts=[f"p{n // 3}" for n in range(90)]))
    folds = folds_of(seen.groups, 5, seed=0)
    (found,) = [each for each in contenders(seen, [0, 1], folds) if each.name == "uniform"]
    base, own = (held_out(rule, seen.margins, folds)[0][::3] for rule in (_best_single, _scaled(uniform)))
    assert (found.gain, found.gain_error) == pytest.approx((float((own - base).mean()), float((own - base).std()) / 30**0.5))
    assert found.error == pytest.approx(float(own.std()) / 30**0.5)


def test_an_overfitted_mixture_gains_nothing_on_held_out_pairs():
    """Twelve useless references on forty pairs: fitted on all pairs they look good, held out they are worse than a coin."""
    random = np.random.default_rng(3)
    margins = torch.from_numpy(random.normal(size=(12, 40)))
    groups = torch.arange(40)
    assert fit_preferences(margins).loss < math.log(2) - 0.05
    likelihood, _ = held_out(
        lambda training, testing: fit_preferences(training).coefficients @ testing, margins, folds_of(groups, 5, seed=0)
    )
    assert float(likelihood.mean()) < -math.log(2)


def test_repeating_every_pair_does_not_make_evidence():
    """Ten copies of each pair under new completions but the same prompts: the same verdict steps,
    for prompts are what is independent."""
    pairs, scores, _, _ = world("two", 5, count=60)
    once = inspect(pairs, scores, resamples=2)
    copies = [Pair(p.prompt, f"{p.chosen} {n}", f"{p.rejected} {n}") for n in range(10) for p in pairs]
    chosen, rejected = scores.of_pairs(pairs)
    logps = torch.stack([chosen.repeat(1, 10), rejected.repeat(1, 10)], dim=-1).flatten(1)
    lengths = scores.at("lengths", torch.from_numpy(scores.pair_columns(pairs))).repeat(1, 10, 1).flatten(1)
    keys = content_keys([p.prompt for p in copies for _ in range(2)], [s for p in copies for s in (p.chosen, p.rejected)])
    many = inspect(
        copies, SequenceScores(scores.names, keys, logps, lengths, torch.zeros_like(lengths, dtype=torch.bool)), resamples=2
    )
    assert many.steps[0].error == pytest.approx(once.steps[0].error, rel=0.3)
    assert many.prompts == once.prompts == 60


def test_a_reference_ten_nats_away_is_broken_and_gets_no_weight():
    pairs, scores, _, _ = world("one", 0)
    logps = scores.logps.clone()
    logps[0] -= 10 * scores.lengths[0]  # "good" answers in another template
    found = inspect(pairs, SequenceScores(scores.names, scores.keys, logps, scores.lengths, scores.truncated), resamples=2)
    assert found.verdict.broken == ("good",) and found.verdict.answer == "none"
    assert "check template, tokenizer, padding" in str(found.verdict) and "10.0 above" in str(found.verdict)
    first, last = found.verdict.sentences[0], found.verdict.sentences[-1]
    assert first.startswith("No reference predicts") and last.startswith("good looks broken")  # on the page too


def test_a_merely_foreign_reference_is_not_broken():
    """Four nats per token worse, as a story model on arithmetic, but on the same text: bad, not broken."""
    _, scores, _, _ = world("none", 0)
    pairs, _, _, _ = world("none", 0)
    logps = scores.logps.clone()
    logps[0] -= 4 * scores.lengths[0]
    evidence = gather(pairs, SequenceScores(scores.names, scores.keys, logps, scores.lengths, scores.truncated))
    assert find_faults(evidence) == ((), (), ())


def test_a_specialist_among_strangers_is_not_broken():
    """Found on real data: the model trained on this text finds easy what the two others find hard,
    and is by far the best of the three."""
    pairs, scores, _, _ = world("none", 0)
    rates = -scores.logps / scores.lengths
    logps = -(torch.stack([1.5 - 0.2 * (rates[0] - rates[0].mean()), rates[1] + 4, rates[2] + 5])) * scores.lengths
    evidence = gather(pairs, SequenceScores(scores.names, scores.keys, logps, scores.lengths, scores.truncated))
    faults = find_faults(evidence)
    assert faults == ((), (), ()) and doubts(evidence, faults) == []
    stranger = (
        -(torch.stack([rates[0], rates[1], 9 - rates[2]])) * scores.lengths
    )  # sees no worse, but otherwise: a doubt, not a fault
    evidence = gather(pairs, SequenceScores(scores.names, scores.keys, stranger, scores.lengths, scores.truncated))
    faults = find_faults(evidence)
    assert faults == ((), (), ()) and "'third' finds other texts hard" in doubts(evidence, faults)[0]


@pytest.mark.shared
def test_real_left_padding_is_found_and_real_specialists_are_not(shared):
    """The bug of docs/theory.md 8 on a real model: a tokenizer that pads on the left, and a scorer that slices [prompt :
    total]."""
    import itertools

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from multiref.references import References

    lines = itertools.islice((shared / "data/tinystories/stories.jsonl").open(), 120)
    stories = [next(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]
    texts = [" ".join(story.split()) for story in stories]
    texts = [text for text in texts if len(text) > 400]
    cuts = np.random.default_rng(0).integers(40, 250, len(texts))
    pairs = [Pair(a[:cut], a[cut : cut + 90], b[100:200]) for a, b, cut in zip(texts, texts[1:], cuts)]
    folders = {"stories": "stories260K", "small": "stories-xs-280K", "math": "stories260K-gsm8k"}
    good = References({name: str(shared / "models" / folder) for name, folder in folders.items()}).score(pairs)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K", padding_side="left", pad_token="</s>")
    model = AutoModelForCausalLM.from_pretrained(shared / "models/stories260K").eval()
    sums = torch.zeros(len(good), dtype=torch.float64)
    rows = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        inputs = tokenizer([a + b for a, b in batch], return_tensors="pt", padding=True)
        with torch.no_grad():
            logps = torch.log_softmax(
                model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1], -1
            )
        taken = logps.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        for row, (prompt, completion) in enumerate(batch):
            first, total = len(tokenizer(prompt)["input_ids"]), int(inputs["attention_mask"][row].sum())
            sums[good.columns([prompt], [completion])[0]] = taken[row, first - 1 : total - 1].double().sum()
    both = SequenceScores(
        (*good.names, "padded"), good.keys, torch.cat([good.logps, sums[None]]),
        torch.cat([good.lengths, good.lengths[:1]]), torch.cat([good.truncated, good.truncated[:1]]),
    )  # fmt: skip
    assert inspect(pairs, both, resamples=2).verdict.broken == ("padded",)


def test_two_references_that_find_other_texts_hard_raise_a_doubt():
    random = np.random.default_rng(0)
    pairs, scores = made(-20 - 5 * random.random((2, 400, 2)))
    evidence = gather(pairs, scores)
    (doubt,) = doubts(evidence, find_faults(evidence))
    assert "one of them may be broken" in doubt


def test_one_reference_and_a_veto():
    """K = 1 works; a pair with a score of −inf is left out and counted."""
    pairs, scores, _, _ = world("one", 1)
    alone = inspect(pairs, scores.select(["good"]), resamples=2)
    assert alone.verdict.use == ("good",) and alone.verdict.answer == "one"
    logps = scores.logps.clone()
    logps[0, 0] = -math.inf
    vetoed = inspect(pairs, SequenceScores(scores.names, scores.keys, logps, scores.lengths, scores.truncated), resamples=2)
    assert vetoed.left_out == 1 and vetoed.pairs == len(pairs) - 1
    with pytest.raises(DataError, match="None of the 800 pairs"):
        gather(
            pairs,
            SequenceScores(scores.names, scores.keys, torch.full_like(logps, -math.inf), scores.lengths, scores.truncated),
        )


@pytest.mark.parametrize("prompts, answer", [(3, "too few to tell"), (8, "too few to tell"), (9, "one")])
def test_below_nine_prompts_it_is_too_few_to_tell(prompts, answer):
    """Every margin is right: of the 2^G sign flips none gives more, p = 2^−G, and 2^−9 is the first below 1 %."""
    found = inspect(*made(np.stack([np.linspace(1, 2, prompts), np.zeros(prompts)], axis=1)[None] - 5), resamples=2)
    assert found.verdict.answer == answer and (answer != "one" or found.additions[0].p == 2**-9)
    assert answer == "one" or f"there are {prompts} different prompts" in str(found.verdict)


def test_what_the_escort_says_against_enumeration():
    """Two tables that disagree: −log F, its forced value and the median lengths by enumeration, and the words name them all."""
    made = tables(spread=2.0)
    with torch.no_grad():
        for table in made:
            table.table[..., 0] -= 1.0  # ends are rarer
    truth, forced = Truth(made, rewarded=False), Truth(made, rewarded=False, shortest=LENGTH)
    found = measure_escort(mr.References(references(made)), ["x0"], W, new_tokens=LENGTH)
    assert abs(found.disagreement + truth.log_partition) < 5 * found.error < 0.3
    assert abs(found.forced + forced.log_partition) < 5 * found.forced_error < 0.6
    lengths = torch.tensor([len(ids) for ids in truth.ids])
    for log_mass, median in ((truth.log_target, found.median_length), *zip(truth.each, found.lengths)):
        share = log_mass.softmax(0)
        assert float(share[lengths <= median].sum()) > 0.45 and float(share[lengths < median].sum()) < 0.55
    token, row = [], 0  # KL(π_tok‖escort) of the pool renormalised at each token
    for ids in truth.ids:
        row, total = 0, 0.0
        for v in ids:
            total += float(sum(w * t.table[0, row].detach().log_softmax(-1) for w, t in zip(W, made)).log_softmax(-1)[v])
            row = 3 * row + 1 + v
        token.append(total)
    law = torch.tensor(token, dtype=torch.float64)
    assert found.token_kl == pytest.approx(float(law.exp() @ (law - truth.log_target.log_softmax(0))), abs=0.3)
    more = found.forced - found.disagreement
    said = " ".join(found.sentences)
    assert f"about {more / max(LENGTH - found.median_length, 1):.3f} β a token" in said and f"these {more:.1f} nats" in said
    assert all(word in said for word in ("min_new_tokens", "A reward that grows", "per-token pool", "median length", "p 0.40"))


def test_the_verdict_never_promises_a_gain_in_the_regularised_value():
    pairs, scores, _, _ = world("two", 0)
    found = inspect(pairs, scores, resamples=20)
    assert "no promise of a higher regularised value" in str(found.verdict)
    assert sum(found.verdict.weights) == pytest.approx(1)
    for weight, (low, high) in zip(found.weighting.weights, found.weighting.intervals, strict=True):
        assert 0 <= low <= weight <= high <= 1
    json.dumps(found.as_dict())


def test_with_many_references_more_prompts_are_too_few():
    """Six share the level of 1 %, and 2^−9 is above a sixth of it."""
    for prompts, answer in ((9, "too few to tell"), (10, "one")):
        margins = np.stack([np.linspace(1, 2, prompts), np.zeros(prompts)], axis=1) - 5
        found = inspect(*made(np.stack([margins + k / 10 for k in range(6)])), resamples=2)
        assert found.verdict.answer == answer, found.verdict
    assert found.steps[0].test.p == 2**-10


@pytest.mark.parametrize("prompt", ["", "What is {}?"])
def test_copies_are_one_cluster(prompt):
    """Without prompts, the same two completions, turned round too; with them, other capitals, spaces and marks at the end."""
    pairs, _ = made(np.zeros((1, 12, 2)))
    forms = (str, str.upper, lambda text: f" {text.rstrip('?')} ", lambda text: text + "!")
    copies = [
        Pair(form(prompt.format(n)), *((p.chosen, p.rejected) if k % 2 else (p.rejected, p.chosen)))
        for n, p in enumerate(pairs)
        for k, form in enumerate(forms if prompt else forms[:1] * 4)
    ]
    keys = content_keys([p.prompt for p in copies for _ in range(2)], [s for p in copies for s in (p.chosen, p.rejected)])
    keys = np.unique(keys)
    scores = SequenceScores(("r",), keys, torch.zeros(1, len(keys)) - 5, *torch.zeros(2, 1, len(keys)).long())
    assert inspect(copies, scores, resamples=2).prompts == 12


def test_pairs_without_a_prompt_stand_each_for_itself_among_others():
    """Completions without a prompt may begin with the same words by chance, which then are the prompt of a few."""
    pairs, scores = made(np.stack([np.linspace(1, 2, 20), np.zeros(20)], axis=1)[None] - 5)
    some = [Pair("I " if n < 3 else "", p.chosen, p.rejected) for n, p in enumerate(pairs)]
    keys = content_keys([p.prompt for p in some for _ in range(2)], [s for p in some for s in (p.chosen, p.rejected)])
    found = inspect(some, SequenceScores(scores.names, keys, scores.logps, scores.lengths, scores.truncated), resamples=2)
    assert found.prompts == 18 and found.verdict.answer == "one"


class Prompt(str):
    """A text that can be watched."""


class Read(Made[Pair]):
    """Pairs that are made when they are read: a prompt of three, in two spellings; none; one of its own."""

    def __init__(self, count):
        self.count, self.held, self.most = count, 0, 0

    def __len__(self):
        return self.count

    def let_go(self):
        self.held -= 1

    def made(self, place):
        asked = [f"Is it {place // 3 % 2}?", f"is it {place // 3 % 2}", ""][place % 3]
        prompt = Prompt(asked if place % 7 else f"once {place}")
        self.held += 1
        self.most = max(self.most, self.held)
        weakref.finalize(prompt, self.let_go)
        return Pair(prompt, f"a {place % 5}", f"b {place % 5}")


def test_pairs_are_read_one_after_the_other_and_grouped_as_they_come(monkeypatch):
    """However many they are, few are held at a time. By brute force: pairs of one question have one number, those without a
    question the number of their two answers, in the order in which they come."""
    monkeypatch.setattr("multiref.references.scores.PART", 4)
    pairs = Read(60)
    keys = np.unique(side_keys(list(pairs)).reshape(-1).view("V16"))
    shape, pairs.most = (1, len(keys)), 0
    scores = SequenceScores(("a",), keys, torch.randn(shape).double(), torch.ones(shape).long(), torch.zeros(shape).bool())
    found = gather(pairs, scores)
    assert pairs.most < 20
    same = [p.prompt.lower().rstrip("?").replace(" ", "") or (p.chosen, p.rejected) for p in pairs]
    assert found.groups.tolist() == [list(dict.fromkeys(same)).index(each) for each in same]
    assert torch.equal(found.logps[0, 7], scores.of([pairs[7].prompt] * 2, [pairs[7].chosen, pairs[7].rejected])[0])
