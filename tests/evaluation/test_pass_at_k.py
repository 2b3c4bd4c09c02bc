"""pass@k against its enumeration, intervals against the normal law, evaluations that are resumed against those that were
not."""

import json
import math

import pytest
import torch

from multiref.errors import OutputError
from multiref.evaluation import PassAtK, read_rollouts, sample_rewards
from multiref.evaluation.pass_at_k import bootstrap_interval
from multiref.models import Generation, LanguageModel, tabular_tokenizer
from multiref.training.online import Reward
from tests.training.online.tables import random_table


def evaluation(right, extra=0.0):
    values = {name: {"correctness": 2.0 * each.double(), "total": 2.0 * each.double() + extra} for name, each in right.items()}
    return PassAtK(values, right, {"samples": 4, "temperature": 1.0})


def test_the_estimate_is_unbiased_by_enumeration():
    """Σ_c Binomial(n, p)(c) · pass@k(c) over every count c is 1 − (1 − p)^k, for every k ≤ n:
    the average over all samples that could have been drawn."""
    n, p = 6, 0.3
    rows = torch.tensor([[i < c for i in range(n)] for c in range(n + 1)])
    law = torch.tensor([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)], dtype=torch.float64)
    values = evaluation({"a": rows}).values(range(1, n + 1))
    for k in range(1, n + 1):
        assert float(law @ values[f"pass@{k}"][0]) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_a_policy_whose_answers_can_be_enumerated():
    """ "Right" is a completion that begins with y0: pass@k of prompt x is 1 − (1 − π(y0|x))^k, from the table itself."""
    table = random_table(3, vocabulary=3, length=2, prompts=2)
    starts = Reward(
        lambda prompts, completions, **_: [float(text.replace(" ", "").startswith("y0")) for text in completions], "correctness"
    )
    rows = [{"prompt": "x0"}, {"prompt": "x1"}]
    policy = LanguageModel(table, tabular_tokenizer(table), "table")
    found = sample_rewards(policy, rows, [starts], Generation(2), samples=800)
    p = table.sequence_logps().detach().exp().reshape(2, 3, 3)[:, 0].sum(-1)
    error = (p * (1 - p) / 800).sqrt()
    assert bool(((found["correctness"].mean(1) - p).abs() < 4 * error).all())
    values = PassAtK({"table": found}, {"table": found["correctness"] > 0}, {}).values([1, 3])
    truth = 1 - (1 - p) ** 3
    assert bool(
        ((values["pass@3"][0] - truth).abs() < 4 * 3 * (1 - p) ** 2 * error).all()
    )  # the derivative of 1 − (1 − p)³ is 3 (1 − p)²
    torch.testing.assert_close(values["pass@1"][0], values["reward/correctness"][0], rtol=1e-12, atol=0)


def test_intervals_are_those_of_the_mean_over_prompts():
    """Of 400 prompts: mean ± 1.96 standard errors, to the accuracy of the bootstrap; of differences, paired:
    what prompts share cancels."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=generator, dtype=torch.float64)
    mean, low, high = bootstrap_interval(values, resamples=4000)
    error = float(values.std()) / 20
    assert mean == pytest.approx(float(values.mean())) and low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    base = torch.rand(400, 4, generator=generator) < torch.linspace(0, 1, 400)[:, None]
    summary = PassAtK({"a": {"r": base.double()}, "b": {"r": base.double() + 0.25}}, {}, {"samples": 4}).summary([1])
    assert summary["differences"] == {"b − a": {"reward/r": [pytest.approx(0.25), None, None]}}
    assert summary["policies"]["a"]["reward/r"][2] - summary["policies"]["a"]["reward/r"][1] > 0.05
    assert math.isnan(bootstrap_interval(values[:1])[1])


def test_a_prompt_of_minus_infinity_leaves_an_interval():
    """One veto among four prompts: a resample misses it with probability (3/4)⁴ = 0.32, so that the upper end is a number and
    the lower one −∞. Between the two there is nothing, and quantiles in between were NaN."""
    mean, low, high = bootstrap_interval(torch.tensor([1.0, 2.0, 3.0, -math.inf]))
    assert mean == low == -math.inf and 2.0 < high <= 3.0
    mean, low, high = bootstrap_interval(torch.tensor([1.0, -math.inf, -math.inf, -math.inf]))
    assert mean == low == high == -math.inf  # (1/4)⁴ is below 2.5 %


def test_a_reward_that_does_not_apply_to_every_completion():
    """None (NaN) of one of two: the prompt has the other's, and stays; of both: it is left out."""
    rows = torch.tensor([[1.0, math.nan], [2.0, 4.0], [math.nan, math.nan]])
    said = PassAtK({"p": {"r": rows}}, {}, {}).summary(())["policies"]["p"]["reward/r"]
    assert said[0] == 2.0 and said[1] is not None


def test_prompts_that_all_failed_are_no_certainty():
    """0 of 16: Wilson's interval reaches z²/(n + z²) = 0.1936; a bootstrap of sixteen zeros would say [0, 0]."""
    none = evaluation({"a": torch.zeros(16, 4, dtype=torch.bool), "b": torch.zeros(16, 4, dtype=torch.bool)}).summary([1, 4])
    for k in (1, 4):
        assert none["policies"]["a"][f"pass@{k}"] == pytest.approx([0.0, 0.0, 1.959964**2 / (16 + 1.959964**2)])
    assert none["policies"]["a"]["reward/correctness"] == [0.0, None, None]
    assert none["differences"]["b − a"]["pass@1"] == [0.0, None, None]


def test_a_killed_evaluation_goes_on_to_the_same_end(tmp_path):
    table = random_table(3, prompts=2)
    policy = LanguageModel(table, tabular_tokenizer(table), "table")
    rows = [{"prompt": f"x{i % 2}"} for i in range(6)]
    calls = []

    def long(prompts, completions, **_):
        calls.append(len(completions))
        if len(calls) == 3 and killing:
            raise KeyboardInterrupt
        return [float(len(text)) for text in completions]

    def run(store):
        return sample_rewards(policy, rows, [Reward(long, "long")], Generation(3), samples=3, block=2, store=store, seed=4)

    killing = False
    whole = run(tmp_path / "whole.jsonl")
    killing, calls = True, []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.jsonl")
    with (tmp_path / "cut.jsonl").open("a") as stream:
        stream.write('{"prompt": "x0", "compl')
    killing, calls = False, []
    again = run(tmp_path / "cut.jsonl")
    assert calls == [6], "only the block that was missing is sampled"
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_bytes().splitlines()]
    written = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines[:4])  # another program's spaces
    (tmp_path / "cut.jsonl").write_text(written)
    run(tmp_path / "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_text().startswith(written) and len(read_rollouts(tmp_path / "cut.jsonl")) == 6
    with pytest.raises(OutputError, match="other settings"):
        sample_rewards(policy, rows, [Reward(long, "long")], Generation(3), samples=4, block=2, store=tmp_path / "cut.jsonl")


def test_a_file_of_samples_is_of_its_settings_and_of_what_the_rewards_read(tmp_path):
    """Another seed, cut, block or answer is another evaluation; rewards get the ids that they get in training."""
    table = random_table(3, prompts=2)
    policy, store = LanguageModel(table, tabular_tokenizer(table), "table"), tmp_path / "kept.jsonl"

    def close(prompts, completions, target, completion_ids, **_):
        return [float(len(ids) == wanted) for ids, wanted in zip(completion_ids, target)]

    def ask(target=3, length=3, **options):
        rows = [{"prompt": "x0", "target": target}, {"prompt": "x1", "target": target}]
        given = {"samples": 2, "seed": 4, "block": 2, "store": store} | options
        return sample_rewards(policy, rows, [Reward(close, "close")], Generation(length), **given)["close"]

    first = ask()
    assert torch.equal(ask(), first) and torch.equal(first, torch.ones(2, 2).double())
    for other in ({"target": 2}, {"seed": 5}, {"length": 2}, {"block": 1}):
        with pytest.raises(OutputError, match="other settings"):
            ask(**other)
