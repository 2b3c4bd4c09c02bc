"""A policy, pairs, and the stored scores of two references."""

import torch
from transformers import TrainingArguments

import multiref as mr
from multiref import training
from multiref.models import load

policy = load("models/policy")
pairs = mr.data.read_pairs("pairs.jsonl")
scores = mr.References({"a": "models/a", "b": "models/b"}).score(pairs)
args = TrainingArguments("out", max_steps=1, per_device_train_batch_size=4, report_to=[], save_strategy="no")

# %% PreferenceTrainer, quiet
training.quiet()  # no progress bars of other libraries
trainer = training.PreferenceTrainer(
    policy.model, regularizer=mr.ReverseKL([0.5, 0.5]), beta=0.1, scores=scores,
    args=args, train_dataset=pairs, processing_class=policy.tokenizer,
)  # fmt: skip
trainer.train()

# %% Preference, MultiDPO, mrpo, Objective
exact = training.Preference(mr.ReverseKL([0.5, 0.5]), beta=0.1, loss=mr.losses.hinge)
rivals = [training.MultiDPO(0.1, [0.5, 0.5]), training.mrpo(0.1, trust_region=0.1, adaptive=True)]

# %% LengthNormalised, AdaptiveWeights, TrustRegion
training.LengthNormalised(exact)  # variants of an objective: what it sees is changed, not what it does
training.TrustRegion(training.AdaptiveWeights(exact), rate=0.1)

# %% PairLogps
logps = training.PairLogps(
    policy=torch.tensor([[-3.0, -4.0]]), references=torch.tensor([[[-3.5, -3.0]], [[-4.0, -5.0]]]),
    lengths=torch.tensor([[4, 5]]), ref_lengths=torch.tensor([[[4, 5]], [[4, 5]]]),
)  # fmt: skip
training.Preference(mr.ReverseKL([0.5, 0.5]), beta=0.1).losses(logps)  # = tensor([0.6564])

# %% PreferenceData
data = training.PreferenceData(pairs, scores, policy.tokenizer)
len(data)  # = 16

# %% SlidingWindow, ThompsonSampling, WeightStrategy
trainer = training.PreferenceTrainer(
    policy.model, exact, scores=scores, args=args, train_dataset=pairs, processing_class=policy.tokenizer,
    strategy=training.SlidingWindow(window=4),
)  # fmt: skip
training.ThompsonSampling(hold=2, seed=1)  # or one reference at a time, by a bandit

# %% RewardTrainer, RewardData, open_reward_model
opened = training.open_reward_model("models/a")
rows = training.RewardData(pairs, opened.tokenizer)
rewards = training.RewardTrainer(opened.model, args=args, train_dataset=rows, processing_class=opened.tokenizer)

# %% training_arguments, LogLines, silence
args = training.training_arguments("out", {"max_steps": 1, "learning_rate": 1e-4, "report_to": []})
trainer.add_callback(training.LogLines(lambda step, steps, metrics: print(f"{step}/{steps}", sorted(metrics)[:1])))
training.silence(trainer)  # our lines in place of transformers'
