"""A policy and two references over three completions, as log-probabilities."""

import torch

import multiref as mr

policy = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64).log()
refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()

# %% kl, reverse_kl, forward_kl
mr.divergences.kl(policy, refs[0])  # = tensor(0.5472, dtype=torch.float64)
mr.divergences.reverse_kl(policy, refs, [0.5, 0.5])  # = tensor(0.5472, dtype=torch.float64)
mr.divergences.forward_kl(policy, refs, [0.5, 0.5])  # = tensor(0.5879, dtype=torch.float64)

# %% alpha_divergence, weighted_alpha_divergence
mr.divergences.alpha_divergence(policy, refs[0], 0.5)  # = tensor(0.5520, dtype=torch.float64)
mr.divergences.weighted_alpha_divergence(policy, refs, [0.5, 0.5], alpha=0.5)  # = tensor(0.5520, dtype=torch.float64)

# %% disagreement
mr.divergences.disagreement(refs, [0.5, 0.5])  # = tensor(0.3159, dtype=torch.float64)

# %% expectation
mr.divergences.expectation(policy, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))  # = tensor(0.6000, dtype=torch.float64)

# %% f_prime
mr.divergences.f_prime((policy - refs[0]), alpha=1.0)  # = tensor([-1.2528, 1.0986, 0.6931], dtype=torch.float64)

# %% k1, k2, k3
drawn = policy[[1, 1, 0]], refs[:, [1, 1, 0]]  # log-probabilities of three sampled completions, under each model
mr.divergences.k1(*drawn, [0.5, 0.5])  # = tensor([ 1.0986, 1.0986, -0.2798], dtype=torch.float64)
mr.divergences.k2(*drawn, [0.5, 0.5])  # = tensor([0.6035, 0.6035, 0.5125], dtype=torch.float64)
mr.divergences.k3(*drawn, [0.5, 0.5])  # = tensor([0.4319, 0.4319, 0.7202], dtype=torch.float64)
