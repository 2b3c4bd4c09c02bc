"""Real models: two name models against all 18,279 completions, two pairs of story models at 128 tokens."""

import math

import pytest
import torch

import multiref as mr
from multiref.decoding import sample
from multiref.models import load
from multiref.models.sampling import encode_prompts

pytestmark = pytest.mark.shared
BETA, RULE = 0.5, mr.ReverseKL((0.5, 0.5))


def vowels(prompts, completions):
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


@pytest.fixture(scope="module")
def names(shared):
    return {name: load(shared / "models" / name, device="cpu") for name in ("names-a", "names-b")}


@pytest.fixture(scope="module")
def truth(names):
    """ids → place, and log P_0 e^{r/β} of every completion of at most 3 tokens, token 0 being the end."""
    models = list(names.values())
    (context,) = encode_prompts(models[0].tokenizer, [""])
    prefixes, mass, ids, log_mass = [()], torch.zeros(1, dtype=torch.float64), [], []
    for _ in range(3):
        with torch.no_grad():
            rows = torch.tensor([[*context, *prefix] for prefix in prefixes])
            pool = sum(each.model(rows).logits[:, -1].double().log_softmax(-1) for each in models) / 2
        total = mass[:, None] + pool
        ids += [(*prefix, 0) for prefix in prefixes]
        log_mass.append(total[:, 0])
        prefixes = [(*prefix, token) for prefix in prefixes for token in range(1, 27)]
        mass = total[:, 1:].flatten()
    ids, log_mass = [*ids, *prefixes], torch.cat([*log_mass, mass])
    texts = models[0].tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)
    return {row: i for i, row in enumerate(ids)}, log_mass + torch.tensor(vowels([], texts)) / BETA


def test_names_against_all_completions(names, truth):
    """log Ẑ within 4.5 errors for every kind of method."""
    place, target = truth
    assert len(place) == 18_279
    for method, proposal in (("smc", None), ("importance", "mixture"), ("rejection", "pool")):
        (found,) = sample(
            [""], names, RULE, vowels, BETA, method=method, proposal=proposal, n=50, islands=8, max_new_tokens=3, reward_max=1.0
        )
        assert abs(found.log_partition - float(target.logsumexp(0))) < 4.5 * found.error < 0.5


@pytest.mark.slow
def test_rejection_of_names_is_exact(names, truth):
    """χ² over completions that are expected at least 5 times, the rest together."""
    place, target = truth
    (found,) = sample(
        [""], names, RULE, vowels, BETA, method="rejection", n=5000, islands=4, max_new_tokens=3, reward_max=1.0, seed=3
    )
    counts = torch.zeros(len(place), dtype=torch.float64)
    for ids in found.ids:
        counts[place[ids]] += 1
    expected = len(found.ids) * target.softmax(0)
    often = expected >= 5
    grouped = [torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected)]
    chi, freedom = float(((grouped[0] - grouped[1]).square() / grouped[1]).sum()), len(grouped[0]) - 1
    assert freedom > 300 and chi < freedom + 4.5 * math.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize(("other", "right"), [("stories260K-gsm8k", -13.72), ("stories-xs-280K", -10.22)], ids=["tune", "xs"])
def test_log_f_of_stories_at_128_tokens(shared, other, right):
    """Four seeds of 1,024 particles: the mean within 0.1 of another program's value, each within 0.3."""
    refs = {name: load(shared / "models" / name, device="cpu") for name in ("stories260K", other)}
    options = {"n": 1024, "islands": 1, "max_new_tokens": 128}
    found = torch.cat([sample(["Once upon a time"], refs, RULE, seed=s, **options).log_partition for s in range(4)])
    assert abs(float(found.mean()) - right) < 0.1 and float((found - right).abs().max()) < 0.3


@pytest.mark.slow
def test_resampling_pays_where_generation_is_long(shared):
    """E log Ẑ of islands of 32 at 64 tokens without an early end: smc ahead of importance by two standard errors."""
    refs = {name: load(shared / "models" / name, device="cpu") for name in ("stories260K", "stories260K-gsm8k")}
    options = {"n": 32, "islands": 64, "max_new_tokens": 64, "min_new_tokens": 64}
    smc = sample(["Once upon a time"], refs, RULE, **options)[0].log_islands
    alone = sample(["Once upon a time"], refs, RULE, method="importance", seed=1, **options)[0].log_islands.view(64, 32)
    islands = alone.logsumexp(-1) - math.log(32)
    ahead, error = float(smc.mean() - islands.mean()), float((smc.var() + islands.var()) / 64) ** 0.5
    assert ahead > 2 * error, (ahead, error)
