"""Three completions, two references that disagree, and a reward that likes the second."""

import torch

import multiref as mr

refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
reward = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
rule = mr.ReverseKL([0.5, 0.5])

# %% solve, Solution
best = mr.exact.solve(reward, refs, rule, beta=1.0)
best.policy  # = tensor([0.2466, 0.5068, 0.2466], dtype=torch.float64)
best.value  # = tensor(0.0703, dtype=torch.float64)

# %% value
regret = best.value - mr.exact.value(refs[0], reward, refs, rule, beta=1.0)
torch.isclose(regret, mr.divergences.kl(refs[0], best.log_policy))  # = tensor(True)

# %% merge
alone = [mr.exact.solve(reward, ref[None], mr.ReverseKL(), beta=1.0).log_policy for ref in refs]
merged = mr.exact.merge(torch.stack(alone), [0.5, 0.5])
torch.allclose(merged, best.log_policy)  # = True

# %% nash, duality_gap
wins = torch.tensor([[0.5, 0.9, 0.4], [0.1, 0.5, 0.8], [0.6, 0.2, 0.5]], dtype=torch.float64)  # P(row beats column)
game = mr.exact.nash(wins, refs, rule, beta=0.5)
bool(mr.exact.duality_gap(game.log_policy, wins, refs, rule, beta=0.5) < 1e-9)  # = True
