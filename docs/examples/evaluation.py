"""Exact policies on a finite problem, and sampled ones of two models in folders."""

from pathlib import Path

import torch

import multiref as mr
from multiref import evaluation
from multiref.models import Generation, load
from multiref.references import RolloutScorer


def reward(prompts, completions):
    return [float(len(text) > 5) for text in completions]


exact_refs = torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.2, 0.7]]], dtype=torch.float64).log()  # [K, prompts, Y]
utility = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
policy, rule, short = load("models/policy"), mr.ReverseKL([0.5, 0.5]), Generation(max_new_tokens=6)
models = {"a": load("models/a"), "b": load("models/b")}
refs, rows = mr.References({"a": "models/a", "b": "models/b"}), ["is it 3?", "is it 4?"]

# %% compare, Comparison
best = mr.exact.solve(utility, exact_refs, rule, beta=0.5).log_policy
print(evaluation.compare({"optimum": best, "a": exact_refs[0]}, utility, exact_refs, rule, beta=0.5))

# %% compare_samples, Contestant, BestOf, TokenPool, Optimum
contestants = {
    "policy": policy, "best of 2": evaluation.BestOf(policy, 2), "token pool": evaluation.TokenPool(list(models.values())),
    "optimum": evaluation.Optimum(refs, rule, beta=0.5, n=2, islands=1),
}  # fmt: skip
judges = {"reward": lambda prompt, text: float(len(text) > 5)}
print(evaluation.compare_samples({"policy": policy, "a": models["a"]}, models, rows, judges, short, beta=0.5, samples=2))

# %% sample_each, score_samples
drawn = evaluation.sample_each(policy, rows, short, group=2, seed=0)
evaluation.score_samples(models["a"], [rollout.encoded() for rollout in drawn]).shape

# %% measure_texts, measure_divergences
values = {"policy": torch.tensor([[0.0, 1.0], [1.0, 1.0]])}  # [prompts, samples]
texts = evaluation.measure_texts({"policy": drawn}, values)
scorer = RolloutScorer(refs, policy.tokenizer)
divergences = evaluation.measure_divergences({"policy": drawn}, values, scorer, torch.tensor([0.5, 0.5]), beta=0.5)

# %% sample_rewards, read_rollouts
rewards = mr.training.online.as_rewards(reward)
asked = [{"prompt": row} for row in rows]
found = evaluation.sample_rewards(policy, asked, rewards, short, samples=2, store=Path("drawn"))
kept = evaluation.read_rollouts("drawn")

# %% PassAtK
table = evaluation.PassAtK({"policy": {"right": values["policy"]}}, {"policy": values["policy"]}, {"k": [1], "resamples": 100})
table.values([1])["pass@1"]

# %% certificate, Certificate, Effort
effort = evaluation.Effort(islands=4, particles=4, samples=4)
proved = evaluation.certificate(policy, refs, rule, reward, 0.5, rows, reward_max=1.0, generation=short, effort=effort)
print(proved)

# %% clipped_value, ClippedValue
evaluation.clipped_value(values["policy"], torch.zeros(2, 2), beta=0.5, tau=10.0).value

# %% inspect, Inspection
pairs = mr.data.read_pairs("pairs.jsonl")
found = evaluation.inspect(pairs, refs.score(pairs), folds=2, resamples=20)
found.verdict
