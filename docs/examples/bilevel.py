"""A finite problem: two completions' worth of preferences, two references, an upper objective."""

import torch

from multiref import ReverseKL, bilevel

refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
truth = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
reward = torch.tensor([0.2, 0.6, 0.1], dtype=torch.float64)

# %% Problem, preference_table
problem = bilevel.Problem(bilevel.preference_table(truth), refs, ReverseKL(), beta=0.5)
problem.lower(reward).exp()  # = tensor([0.2856, 0.4805, 0.2339], dtype=torch.float64)

# %% hypergradient, StopGradient, Likelihood, Debiased, WinRate, Upper
bilevel.hypergradient(problem, reward, bilevel.StopGradient())  # = tensor([ 0.0560, -0.0363, -0.0197], dtype=torch.float64)
[float(upper.value(problem, problem.lower(reward), reward)) for upper in (bilevel.Likelihood(), bilevel.Debiased())]
bilevel.hypergradient(problem, reward, bilevel.WinRate())  # = tensor([ 0.0565, -0.0357, -0.0209], dtype=torch.float64)

# %% penalised_value, penalised_gradient, perturbed_policy
upper = bilevel.Likelihood()
bilevel.penalised_gradient(problem, reward, upper, sigma=0.01)  # = tensor([ 0.0483, -0.0419, -0.0064], dtype=torch.float64)
bilevel.penalised_value(problem, reward, upper, sigma=0.01)  # = tensor(0.6682, dtype=torch.float64)
bilevel.perturbed_policy(problem, reward, upper, sigma=0.01).exp()  # = tensor([0.2857, 0.4806, 0.2337], dtype=torch.float64)

# %% policy_response
bilevel.policy_response(problem, problem.lower(reward), truth)  # = tensor([-0.3413, 0.3869, -0.0456], dtype=torch.float64)

# %% covariance
bilevel.covariance(truth[:, None].T, reward[:, None].T, beta=0.5)

# %% shared_weights, shared, independent
weights = bilevel.shared_weights(truth, truth.mean(), sigma=0.01, beta=0.5)
bilevel.shared(reward, weights, sigma=0.01)
bilevel.independent(reward, reward + 0.01, sigma=0.01)

# %% implicit_hypergradient, ImplicitGradient
phi, theta = torch.zeros(1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
found = bilevel.implicit_hypergradient(
    lambda phi, theta: theta.sum() * phi.sum(), lambda phi, theta: ((theta - phi) ** 2).sum(), phi, theta
)
found.gradient  # = tensor([2.], dtype=torch.float64)

# %% conjugate_gradients
solved, residual, steps = bilevel.conjugate_gradients(lambda v: 2 * v, torch.ones(2, dtype=torch.float64), steps=5)
solved  # = tensor([0.5000, 0.5000], dtype=torch.float64)

# %% check_sigma
bilevel.check_sigma(0.1)  # = 0.1
