"""The same quantities throughout: rewards in [0, 1], two thousand candidate rewards, a hundred thousand pairs."""

import torch

from multiref import bounds

rewards = {"samples": 1e5, "reward_max": 1, "class_size": 2000}
geometry = {"radius": 2.5, "feature_norm": 1.3, "sigma_max": 0.6, "sigma_min": 0.2, "sigma_min_other": 0.15, "residual": 0.004}
refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
policy = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64).log()
pool = refs.mean(0).log_softmax(-1)

# %% reverse_kl_suboptimality, Bound, Statement
bound = bounds.reverse_kl_suboptimality(**rewards, beta=0.1, coverage=4)
print(bound)  # the number, its terms, what it assumes, where it comes from
bound.solve_for("samples", target=0.01)  # = 2505573.0
bound.at(beta=0.5).vacuous  # = False

# %% maximum_likelihood, reverse_kl_5_2, reverse_kl_plain_reward, forward_kl_6_2, forward_kl_slow
bounds.maximum_likelihood(**rewards).value  # = 0.0125279
bounds.reverse_kl_5_2(**rewards, beta=0.1, coverage=4).value  # = 29.6221
bounds.reverse_kl_plain_reward(**rewards, beta=0.1, coverage=4).value  # = 1.11928
bounds.forward_kl_6_2(**rewards, coverage=4).value  # = 4.86803
bounds.forward_kl_slow(**rewards, coverage=4).value  # = 0.447712

# %% reverse_kl_versus_comparator, forward_kl_versus_comparator
bounds.reverse_kl_versus_comparator(**rewards, beta=0.1, coverage=4, log_comparator=1.9).value  # = 0.440557
bounds.forward_kl_versus_comparator(**rewards, beta=0.1, coverage=4, comparator_kl=0.45).value  # = 0.492712

# %% reverse_kl_from_references, forward_kl_fast
bounds.reverse_kl_from_references(**rewards, beta=0.5, disagreement=0.9).value  # = 0.227683
bounds.forward_kl_fast(**rewards, beta=0.5, coverage=4, sampling_coverage=2.3).value  # = 45.1805

# %% subgaussian_suboptimality, own_pairs_suboptimality, two_stage
bounds.subgaussian_suboptimality(deviation=0.45, beta=0.7).value  # = 0.144643
bounds.own_pairs_suboptimality(samples=5000, beta=0.7, dimension=6, reward_max=1.7).value  # = 0.00328141
bounds.two_stage(beta=0.7, coverage=3, reward_max=1.7, class_size=2000, target=0.02).value  # = 4521.61

# %% two_stage_least, pessimism_suboptimality, pessimism
bounds.two_stage_least(small_beta=0.1, class_size=2000, small_target=0.002).value  # = 38004.5
bounds.pessimism_suboptimality(beta=0.5, squared_width=0.01).value  # = 0.04
eye = torch.eye(3)
bounds.pessimism(eye, pool, eye, width=0.5)  # = tensor([0.3914, 0.4444, 0.3914], dtype=torch.float64)

# %% label_privacy_inflation, label_privacy_printed
bounds.label_privacy_inflation(epsilon=0.6, reward_max=1.7).value  # = 22.5558
bounds.label_privacy_printed(small_epsilon=0.6).value  # = 1.47955

# %% reward_shift
shift = {"tau": 3, "chi_squared": 2.2, "squared_error": 0.05, "clip_bias": 0.3}
bounds.reward_shift(samples=900, rollouts=4, beta=0.2, **shift).value  # = 0.622823
bounds.reward_shift_average(samples=900, rollouts=4, beta=0.2, **shift, posterior_kl=3).value  # = 0.718112

# %% reward_shift_average, sgd_posterior_kl
settled = {"learning_rate": 0.1, "batch": 8, "deviation": 1}
bounds.sgd_posterior_kl(torch.tensor([0.3, -0.2]), torch.eye(2), torch.eye(2), **settled)  # = 4.14642

# %% stability_lemma_1, stability_theorem_1
bounds.stability_lemma_1(samples=800, radius=2.5, feature_norm=1.3).value  # = 0.936315
bounds.stability_theorem_1(samples=1e6, radius=2.5, feature_norm=1.3, dimension=7, curvature=0.2).value  # = 3.08504e-13

# %% stability_theorem_2, stability_theorem_2_gap, stability_theorem_3, stability_corollary_1
bounds.stability_theorem_2(samples=5e5, **geometry).value  # = 1.37001
bounds.stability_theorem_2_gap(samples=5e5, **geometry).value  # = 53.9044
bounds.stability_theorem_3(samples=5e5, **geometry).vacuous  # = True
bounds.stability_corollary_1(gradient_norm=0.02, **geometry).value  # = 7.835

# %% stability_gradient_ascent_norm, stability_gradient_ascent
bounds.stability_gradient_ascent_norm(iterations=60, radius=2.5, feature_norm=1.3, smoothness=3.1).value  # = 2.015
steps = {"samples": 800, "iterations": 60, "radius": 2.5, "feature_norm": 1.3, "condition": 3.4, "residual": 0.004}
bounds.stability_gradient_ascent(**steps).value  # = 1.40509

# %% stability_stochastic_ascent_norm, stability_stochastic_ascent
bounds.stability_stochastic_ascent_norm(
    iterations=60, radius=2.5, feature_norm=1.3, smoothness=3.1, mixing=0.6
).value  # = 199.693
steps = {"samples": 800, "iterations": 60, "radius": 2.5, "feature_norm": 1.3, "condition": 3.4, "residual": 0.004}
bounds.stability_stochastic_ascent(**steps).value  # = 2.22148

# %% interpolation, interpolation_optimum, interpolation_gradient_ascent
where = {"radius": 2.5, "feature_norm": 1.3, "residual": 0.03}
bounds.interpolation(**where, gradient_norm=0.02, sigma_min=0.2, distance=2.2).value  # = 0.019208
bounds.interpolation_optimum(**where).value  # = 0.005
bounds.interpolation_gradient_ascent(**where, iterations=60000, sigma_min=0.2).value  # = 0.296304

# %% learned_reward_parameter, learned_reward_value
learned = {"samples": 900, "feature_norm": 1.4, "radius": 0.8, "pair_curvature": 0.3}
bounds.learned_reward_parameter(**learned).value  # = 0.477028
bounds.learned_reward_value(**learned, distance=0.35).value  # = 0.327241

# %% statements, describe
sorted(bounds.statements())[:2]  # = ['forward-kl-6-2', 'forward-kl-fast']
bounds.describe(
    "coverage"
)  # = 'C: the largest ratio of policy to sampling law at any prompt (forward KL F2: of policy to arithmetic pool)'

# %% Unavailable
bounds.UNAVAILABLE  # the theorems without printed constants, by name
[item.theorem for item in bounds.UNAVAILABLE.values()][:1]  # = ['Theorem 5.3 of arXiv 2502.01203 (reverse KL, plain reward)']

# %% asymptotic_suboptimality
bounds.asymptotic_suboptimality(torch.eye(2).double(), torch.eye(2).double(), beta=0.5, samples=1000)  # = 0.002

# %% coverage, ball_coverage, sampling_coverage, path_coverage
bounds.coverage(policy, refs[0])  # = tensor(3.0000, dtype=torch.float64)
bounds.ball_coverage(pool, 0.1)  # = tensor(1.7690, dtype=torch.float64)
bounds.sampling_coverage(refs, [0.5, 0.5])  # = tensor(1.3715, dtype=torch.float64)
bounds.path_coverage(
    torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor([0.1, 0.8, 0.0]).double(), pool, pool, beta=0.5
)  # = tensor(2.6845, dtype=torch.float64)

# %% coverage_from_scores, CoverageEstimate
bounds.coverage_from_scores(refs[:, [0, 1, 2, 2]], [0.5, 0.5]).completions  # = 4

# %% chi_squared_from_scores, ChiSquared
bounds.chi_squared_from_scores(policy[[0, 1, 2, 2]], refs[:, [0, 1, 2, 2]], [0.5, 0.5]).samples  # = 4

# %% check_reward_range
bounds.check_reward_range(torch.tensor([0.0, 0.4]), reward_max=1.0)  # silent: all rewards lie in [0, 1]

# %% clip_quantile, rollouts_per_prompt, prompts_and_pairs
bounds.clip_quantile(samples=900, rollouts=4)  # = 0.851979
bounds.rollouts_per_prompt(prefill=8.0, decode=1.0)  # = 4
bounds.prompts_and_pairs(1.0, 1.0, prompt_cost=8.0, pair_cost=1.0, budget=300.0)  # = (25.0, 100.0)

# %% convert_exponent, Exponent
bounds.convert_exponent(3.5, stated="squared-norm").norm  # = 7.0

# %% convert_strength, convert_target, strengths
bounds.convert_strength(0.1, source="beta", target="gamma")  # = 10.0
bounds.convert_target(0.1, source="norm", target="squared-norm")  # = 0.01
bounds.strengths(0.1)["gamma"]  # = 10.0
