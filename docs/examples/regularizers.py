"""Two references over three completions."""

import torch

import multiref as mr

refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
policy = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64).log()

# %% ReverseKL, Regularizer
rule = mr.ReverseKL([0.5, 0.5])
rule.pool(refs).exp()  # = tensor([0.2646, 0.2000, 0.2646], dtype=torch.float64)
rule.penalty(policy, refs)  # = tensor(0.5472, dtype=torch.float64)
rule.implicit_reward(policy, refs, beta=0.5)  # = tensor([-0.1399, 0.5493, -0.1399], dtype=torch.float64)

# %% ForwardKL, AlphaDivergence, PooledKL
mr.ForwardKL([0.5, 0.5]).pool(refs).exp()  # = tensor([0.4000, 0.2000, 0.4000], dtype=torch.float64)
mr.AlphaDivergence([0.5, 0.5], 2.0).order  # = -1.0
mr.PooledKL([0.5, 0.5], order=-1).pool(refs).exp()  # = tensor([0.1750, 0.2000, 0.1750], dtype=torch.float64)

# %% FDivergence
mr.FDivergence.jensen_shannon([0.5, 0.5]).penalty(policy, refs)  # = tensor(0.1344, dtype=torch.float64)

# %% check_weights, check_beta
mr.regularizers.check_weights(None, 2)  # = tensor([0.5000, 0.5000], dtype=torch.float64)
mr.regularizers.check_beta(0.1)  # = 0.1
