"""Two references over three completions."""

import torch

import multiref as mr

refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()

# %% power_pool
mr.pools.power_pool(refs, [0.5, 0.5], order=1).exp()  # = tensor([0.4000, 0.2000, 0.4000], dtype=torch.float64)
mr.pools.power_pool(refs, [0.5, 0.5]).exp().sum()  # = tensor(0.7292, dtype=torch.float64)
