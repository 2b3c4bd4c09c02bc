"""Margins of two references on three held-out pairs [K, N]: log-probability of the chosen side minus the rejected one's."""

import torch

from multiref import weighting

margins = torch.tensor([[1.0, 0.5, -0.2], [0.1, -0.3, 0.2]], dtype=torch.float64)

# %% uniform, vdw, vaw, arwc
weighting.uniform(margins)  # = tensor([0.5000, 0.5000], dtype=torch.float64)
weighting.vdw(margins)  # = tensor([0.7391, 0.2609], dtype=torch.float64)
weighting.vaw(margins)  # = tensor([0.5000, 0.5000], dtype=torch.float64)
weighting.arwc(margins)  # = tensor([[0.9091, 0.6250, 0.5000], [0.0909, 0.3750, 0.5000]], dtype=torch.float64)

# %% fit_preferences, PreferenceFit
fit = weighting.fit_preferences(margins)
fit.weights.sum()  # = tensor(1., dtype=torch.float64)

# %% log_importance_weights, importance_weights
logps = torch.tensor([[-1.0, -2.0], [-2.0, -1.5]], dtype=torch.float64)  # two references, two completions of their mixture
weighting.log_importance_weights(logps, torch.tensor([0.5, 0.5]))  # = tensor([-0.1201, -0.0309], dtype=torch.float64)
weights, log_mean = weighting.importance_weights(logps, torch.tensor([0.5, 0.5]))

# %% best_of_law
proposal = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
weighting.best_of_law(
    proposal, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), n=4
).exp()  # = tensor([0.2616, 0.3379, 0.4006], dtype=torch.float64)

# %% log_mean_bounds
values = torch.tensor([0.2, 0.5, 0.4, 0.3], dtype=torch.float64).log()[:, None]  # of four prompts, one sample each
low, high = weighting.log_mean_bounds(values, 0.0, delta=0.05)
