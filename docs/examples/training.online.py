"""A policy, two references, prompts, and a reward of one's own."""

import torch

import multiref as mr
from multiref.models import Tabular, load
from multiref.training import online


def reward(prompts, completions):
    return [float(len(text) > 5) for text in completions]


policy, rows = load("models/policy"), ["is it 3?", "is it 4?"]
refs = mr.References({"a": "models/a", "b": "models/b"})
args = online.OnlineArguments(steps=1, prompts_per_step=2, max_new_tokens=6)

# %% OnlineTrainer, OnlineArguments, Rule, RLOO
trainer = online.OnlineTrainer(
    policy, mr.ReverseKL([0.5, 0.5]), beta=0.1, references=refs, prompts=rows, rewards=reward, args=args,
    rule=online.Rule(online.RLOO(group=2)),
)  # fmt: skip
print(trainer.describe())  # what the rule's expected update is the gradient of
trainer.train()

# %% Method, GRPO, Reinforce
online.Rule(online.GRPO(group=8, updates=2), penalty="ratio_k3")
online.Rule(online.Reinforce())

# %% penalty_named, Penalty, PenaltyInReward, RewardToGo, FullVocabulary, FromReferences
online.penalty_named("reward")  # = PenaltyInReward()
exact = [online.PenaltyInReward(), online.RewardToGo(), online.FullVocabulary(), online.FromReferences()]  # end at π*

# %% K2Loss, K3Loss, K3PoolLoss, K3RenormalisedLoss, RatioK3, PerTokenForwardKL, PerTokenReverseKL, RenormalisedInReward
online.Rule(online.RLOO(group=4), penalty=online.K3Loss())  # by name: sorted(online.PENALTIES); where each ends: the guide
state_by_state = [online.K2Loss(), online.RatioK3(), online.PerTokenReverseKL()]
elsewhere = [online.K3PoolLoss(), online.K3RenormalisedLoss(), online.PerTokenForwardKL(), online.RenormalisedInReward()]

# %% ClipReward, ClipObjective
online.Rule(penalty=online.ClipReward(tau=30, reward_range=1, disagreement=1))
online.Rule(penalty=online.ClipObjective(tau=30, reward_range=1, disagreement=1))

# %% clipped_objective
law, pool = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=torch.float64).log()
online.clipped_objective(
    law, torch.tensor([0.0, 1.0], dtype=torch.float64), pool, beta=0.5, tau=10.0
)  # = tensor(0.6589, dtype=torch.float64)

# %% AdaptiveBeta
online.AdaptiveBeta(target=5.0).next(0.1, 10.0)  # β after a step with 10 nats, where 5 are wanted

# %% describe
online.describe(online.RLOO(group=4), online.PenaltyInReward(), mr.ReverseKL(), 0.1)  # one line, as a run's log has it

# %% sample
rollouts = online.sample(policy.model, policy.tokenizer, rows, mr.models.Generation(6), group=2)
len(rollouts), len(rollouts[0].completions)  # = (2, 2)

# %% Reward, as_rewards, reward_rollouts, total_reward
rewards = online.as_rewards([online.Reward(reward, "long", weight=0.5)])
online.total_reward(rewards, ["q", "q"], ["short", "long enough"], {})[0]  # = tensor([0.0000, 0.5000], dtype=torch.float64)
values, parts = online.reward_rollouts(rewards, [{"prompt": row} for row in rows], rollouts, 2)

# %% WinRate, judge_by_reward
judge = online.judge_by_reward(reward)
judge(["q"], ["long enough"], ["short"])  # = [0.731059]
online.WinRate(judge, group=2)

# %% lexicon_reward
from pathlib import Path

_ = Path("words.txt").write_text("good\t3\nbad\t-3\n", encoding="utf-8")
online.lexicon_reward("words.txt")(["q"], ["a good day"])

# %% RewardModel
mr.training.open_reward_model("models/a").model.save_pretrained("judge")
load("models/a").tokenizer.save_pretrained("judge")
online.RewardModel("judge")(prompts=["is it 3?"], completions=[" yes"])

# %% Samples, compute_surrogate, Surrogate
token_logps = torch.full((2, 3), -1.0, requires_grad=True)  # two completions of one prompt, three tokens each
samples = online.Samples(token_logps, torch.ones(2, 3, dtype=torch.bool), torch.tensor([[-3.5, -2.5], [-4.0, -3.0]]))
found = online.compute_surrogate(
    samples, torch.tensor([0.0, 1.0]), mr.ReverseKL(), method=online.RLOO(group=2), penalty=online.PenaltyInReward(), beta=0.1
)
found.losses.mean().backward()

# %% levels_of, conditionals, sequence_logps, disagreements, path_tokens
tables = torch.stack([Tabular(2, length=2).sequence_logps()[0], torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()]).detach()
levels = online.conditionals(tables, 2)  # a model of two tokens, two steps, as a tree of prefixes
torch.allclose(online.sequence_logps(levels), tables)  # = True
costs = online.disagreements(levels, [0.5, 0.5])  # −log F at every prefix
rows_of_table = torch.zeros(3, 2)  # logits at the three prefixes of a tree of two tokens
[level.shape[0] for level in online.levels_of(rows_of_table, 2)]  # = [1, 2]
online.path_tokens(levels)

# %% estimate_disagreement
models = [load("models/a").model, load("models/b").model]
mean, error = online.estimate_disagreement(models, policy.tokenizer, "is it 3?", new_tokens=4, particles=4)

# %% evaluate_online
figures = online.evaluate_online(trainer, rows, samples=2)  # name → (mean, error, prompts)

# %% floors, floor_figures, text_losses
asked = [{"prompt": row, "text": " yes"} for row in rows]
least = online.floors(trainer, asked, particles=4)  # −log F of each prompt: what no student can undercut
online.floor_figures(trainer, asked, least, samples=2)
online.text_losses(trainer, asked)

# %% TextStates, WarmUp
texts = online.TextStates({"is it 3?": " yes it is 3"}, share=1.0, max_new_tokens=6)
online.Rule(online.Reinforce(), penalty="per_token_reverse_kl", warm_up=online.WarmUp(0.5, texts))

# %% ServerSampler, AdapterPush
sampler = online.ServerSampler(
    "http://127.0.0.1:8000/v1", model="policy", group=4, max_new_tokens=64, push=online.AdapterPush("adapters/"), every=1
)
online.Rule(online.RLOO(group=4), sampler=sampler)  # nothing is asked before the first step
