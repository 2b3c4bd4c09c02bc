"""A small text task: completions of three prompts, labelled by a function that likes long ones."""

import torch

import multiref as mr
from multiref.models import load
from multiref.training import iterative

prompts = ["is it 3?", "is it 4?", "is it 5?"]


def length(prompts, completions):
    return [float(len(text)) for text in completions]


policy = load("models/policy")
task = iterative.text_task(
    policy, {"a": load("models/a"), "b": load("models/b")}, mr.ReverseKL([0.5, 0.5]), beta=0.2, prompts=prompts,
    oracle=lambda world: iterative.RewardOracle(length, world.decode),
    setting=iterative.TextSetting(max_new_tokens=4, held_out=3),
)  # fmt: skip
plan = iterative.Plan(labels=[4], prompts=2, rollouts=2, batch=2, steps=1, reward_steps=2)

# %% text_task, TextSetting, Task, RewardOracle, Plan
task.prompts, plan.labels  # = (3, [4])

# %% train, method_named, Method, History, State
state, history = iterative.train(task, iterative.method_named("iterative"), plan)
state.labels_used, history.method  # = (4, 'iterative RLHF')

# %% Iterative, OnlineDPO, OfflineDPO, TwoStage, XPO, SAIL, GSHF, Nash, Bilevel
methods = [iterative.Iterative(), iterative.OnlineDPO(), iterative.OfflineDPO(), iterative.TwoStage(), iterative.XPO()]
methods += [iterative.SAIL(design="PR"), iterative.GSHF(candidates=2), iterative.Nash(), iterative.Bilevel("stop_gradient")]
sorted(iterative.METHODS)[:3]  # = ['bilevel', 'gshf', 'iterative']

# %% BilevelTrainer
trainer = iterative.BilevelTrainer(task, plan, objective="stop_gradient")
trainer.train().lines[-1]["labels"]  # = 4

# %% begin, improve
state = iterative.begin(task, plan)
iterative.improve(task, state, lambda x, y: (y >= 0).sum(-1).float(), steps=1, prompts=2, rollouts=2)

# %% FunctionOracle, PrivateOracle, Oracle
world = iterative.TextWorld(prompts, policy.tokenizer, max_new_tokens=4)
longer = iterative.FunctionOracle(lambda prompts, first, second: [float(a > b) for a, b in zip(first, second)], world.decode)
noisy = iterative.PrivateOracle(longer, epsilon=2.0, simulate=True)

# %% HumanLabels
people = iterative.HumanLabels("labels/", world.decode)  # writes pairs-<round>.jsonl, reads labels-<round>.jsonl

# %% TextWorld, TextPolicy, Policy
student = iterative.TextPolicy(world, policy.model)
x = torch.tensor([0, 2])
y = student.sample(x, 2, torch.Generator().manual_seed(0))  # [B, n, L] token ids, −1 after the end
student.logps(x, y).shape  # = torch.Size([2, 2])

# %% TextReward, RewardModel, PairwiseRewardModel
reward = iterative.TextReward(world, load("models/a").model, (x, y))
reward(x, y)  # zero before it is fitted
games = iterative.PairwiseRewardModel(reward.features, reward.phi.shape)
games(x, y)[0]  # = tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)

# %% sample_rollouts
len(iterative.sample_rollouts(student, 1))  # = 1

# %% with_adapter, save_policy
adapted = iterative.with_adapter(load("models/a").model, {"r": 2, "target_modules": "all-linear"}, seed=0)
iterative.save_policy(iterative.TextPolicy(world, adapted, adapter="start"), "saved")
