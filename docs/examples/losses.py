"""Rewards of two preferred and two rejected completions."""

import torch

import multiref as mr

chosen, rejected = torch.tensor([1.0, 0.2]), torch.tensor([0.0, 0.5])

# %% bradley_terry, robust
mr.losses.bradley_terry(chosen, rejected)  # = tensor([0.3133, 0.8544])
mr.losses.bradley_terry(chosen, rejected, label_smoothing=0.1)  # = tensor([0.4133, 0.8244])
mr.losses.robust(chosen, rejected, label_smoothing=0.1)  # = tensor([0.1883, 0.8919])

# %% ipo, hinge
mr.losses.ipo(chosen, rejected)  # = tensor([0.2500, 0.6400])
mr.losses.hinge(chosen, rejected)  # = tensor([0.0000, 1.3000])

# %% randomised_response, check_epsilon
mr.losses.randomised_response(chosen, rejected, epsilon=2.0)  # = tensor([0.3916, 0.8135])
mr.losses.check_epsilon(2.0)  # = 2.0
