"""What is compared is what is named: ends that are the single references, continuity, the exact rule's optimum,
each rival's own."""

import copy

import pytest
import torch

import multiref as mr
from multiref.models import Tokenisation
from multiref.references import References
from multiref.training import PairLogps, PreferenceData
from multiref_lab.demo.preferences import PairLaw, draw_pairs
from multiref_lab.demo.training import train_on_pairs
from multiref_lab.frontier.ends import multi_dpo_optimum, optimum
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.rules import objective
from tests.lab.frontier.conftest import TASK
from tests.training.world import random_world, train_to_the_end

RULES = ("exact", "mrpo", "multi-dpo")


def cell(rule: str, weight: float, training: str = "offline") -> Cell:
    return Cell("generated", training, rule, weight, 1.0, 64 if training == "offline" else 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_every_rules_ends_are_the_single_reference_runs(rule, weight, bench):
    """Trained at α = 1 (0) on scores of both references, a rule reaches, to rounding, the policy of plain DPO (K = 1) on the
    first (second) alone."""
    pairs = draw_pairs(bench.world, PairLaw(prompts=32, pairs_per_prompt=2, scale=TASK.scale), 0)
    folders = bench.world.reference_folders
    scores = References(
        {bench.names[weight == 0]: folders[bench.names[weight == 0]]}, tokenisation=Tokenisation(end=False), device="cpu"
    ).score(pairs)
    alone = copy.deepcopy(bench.world.base)
    data = PreferenceData(pairs, scores, bench.world.tokenizer, tokenisation=Tokenisation(end=False))
    alone_rule = mr.training.Preference(mr.ReverseKL(), 1.0)
    train_on_pairs(alone, alone_rule, data, bench.world.tokenizer, arguments=TASK.offline.arguments(0))
    expected = bench.measure(bench.world.logps(alone, bench.problems))
    found = bench.train(cell(rule, weight))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    other = bench.train(cell("single", 1 - weight))
    assert abs(other["kl/adder"] - expected["kl/adder"]) > 1e-3  # the two ends are different policies


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_curves_are_continuous_at_both_ends(rule, bench):
    """As α → 0 and α → 1 a rule's numbers go to the single reference's: at 1e-7 from an end they are within 1e-4 (the authors'
    script jumps there)."""
    for end, near in ((0.0, 1e-7), (1.0, 1 - 1e-7)):
        at, beside = bench.train(cell("single", end)), bench.train(cell(rule, near))
        assert {k: beside[k] for k in ("reward", "kl/adder", "kl/picker")} == pytest.approx({k: at[k] for k in ("reward",
            "kl/adder", "kl/picker")}, abs=1e-4)  # fmt: skip


def test_online_ends_are_the_single_references_but_for_the_authors_recipe(bench):
    """MRPO's pool with one reference is that reference; k3 as a loss is another objective even then,
    so its run at α = 1 is another one."""
    alone = bench.train(cell("single", 1.0, "online"))
    assert bench.train(cell("mrpo", 1.0, "online")) == pytest.approx(alone, abs=1e-5)
    assert abs(bench.train(cell("authors", 1.0, "online"))["reward"] - alone["reward"]) > 1e-6


@pytest.mark.slow
def test_the_exact_rule_maximises_the_objective_among_the_rules(tmp_path):
    """A table trained to convergence on all comparisons: the exact rule reaches J* = β log Σ Π π_k^{w_k} e^{r/β} to 1e-5;
    the others miss 5e-4 or more of it.
    MRPO's ends at e^{r/β} / Σ_k (w_k / π_k), by hand."""
    world, beta, weights = random_world(2, seed=5, spread=1.5), 0.7, (0.3, 0.7)
    best = beta * float(((0.3 * world.ref_logps[0] + 0.7 * world.ref_logps[1]).exp() * (world.reward / beta).exp()).sum().log())
    reached = {}
    for rule in RULES:
        policy = train_to_the_end(world, objective(rule, weights, beta), tmp_path / rule, steps=600)
        logps = world.logps(policy)
        price = sum(w * (logps.exp() * (logps - ref)).sum() for w, ref in zip(weights, world.ref_logps, strict=True))
        if rule == "mrpo":
            harmonic = -sum(w / ref.exp() for w, ref in zip(weights, world.ref_logps, strict=True)).log()
            assert world.kl_to(policy, (harmonic + world.reward / beta).log_softmax(-1)) < 1e-6
        reached[rule] = float((logps.exp() * world.reward).sum() - beta * price)
    assert reached["exact"] == pytest.approx(best, abs=1e-5)
    assert all(reached[rule] < best - 5e-4 for rule in ("mrpo", "multi-dpo")), reached


def test_multi_dpos_computed_optimum_has_no_slope():
    """`MultiDPO`'s own loss on every ordered pair, weighed by how often it is shown (the second answer drawn without the first,
    both orders alike) and by σ(r_a − r_b), has gradient zero there, and not at the exact rule's optimum."""
    generator, beta, weights = torch.Generator().manual_seed(0), 0.8, (0.3, 0.7)
    refs = (1.5 * torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)).log_softmax(-1)
    reward = 2 * torch.rand(3, 6, generator=generator, dtype=torch.float64)
    mu = refs.exp().mean(0)
    shown = mu[:, :, None] * mu[:, None, :] / (1 - mu[:, :, None])
    a, b = (~torch.eye(6, dtype=torch.bool)).nonzero(as_tuple=True)
    counts = ((shown + shown.mT) / 2 * torch.sigmoid(reward[:, :, None] - reward[:, None, :]))[:, a, b]
    lengths = torch.ones(len(a), 2)

    def slope(log_policy):
        theta = log_policy.clone().requires_grad_()
        sides = (torch.stack((each[..., a], each[..., b]), -1) for each in (theta, refs))
        pairs = zip(*(side.unbind(-3) for side in sides), counts, strict=True)
        each = [
            (
                mass * mr.training.MultiDPO(beta, weights).losses(PairLogps(policy, both, lengths, lengths.expand(2, -1, -1)))
            ).sum()
            for policy, both, mass in pairs
        ]
        return torch.autograd.grad(sum(each), theta)[0].abs().max()

    assert slope(multi_dpo_optimum(reward, refs, weights, beta=beta)) < 1e-10
    assert slope(mr.exact.solve(reward, refs, mr.ReverseKL(weights), beta=beta).log_policy) > 1e-4


@pytest.mark.slow
def test_multi_dpos_computed_optimum_is_where_its_training_ends(tmp_path):
    """The same loss, on a table, by Adam on the law of the pairs: m_ab σ(r_a − r_b) as counts."""
    world, beta, weights = random_world(2, seed=1, spread=1.0), 0.8, (0.4, 0.6)
    answers, mu = world.answers, world.ref_logps.exp().mean(0)
    a, b = (i.flatten() for i in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    a, b = a[a != b], b[a != b]
    mass = mu[a] * mu[b] * (1 / (1 - mu[a]) + 1 / (1 - mu[b])) / 2
    assert float(mass.sum()) == pytest.approx(1.0)  # two different answers, the second drawn without the first
    data = world.population()
    pairs = [mr.data.Pair("x0", answers[i], answers[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    from multiref.models import tabular_tokenizer

    counts = mass * torch.sigmoid(world.reward[a] - world.reward[b])
    data = PreferenceData(
        pairs, world.scores(), tabular_tokenizer(world.policy()), tokenisation=Tokenisation(end=False), counts=counts
    )
    policy = train_to_the_end(world, objective("multi-dpo", weights, beta), tmp_path, steps=800, data=data)
    computed = multi_dpo_optimum(world.reward[None], world.ref_logps[:, None], weights, beta=beta)[0]
    assert world.kl_to(policy, computed) < 1e-7
    exact = mr.exact.solve(world.reward, world.ref_logps, mr.ReverseKL(weights), beta=beta).log_policy
    assert world.kl_to(policy, exact) > 1e-3


def test_computed_ends_know_the_single_references(bench):
    """At α = 1 every offline rule, and online all but the authors', comes to rest at π_1 e^{r/β} / Z, computed here by hand."""
    by_hand = (bench.answers.ref_logps[0] + bench.answers.reward / 2.0).log_softmax(-1)
    size = len(bench.world.vocabulary)
    for training, rules in (("offline", ("exact", "mrpo", "multi-dpo")), ("online", ("exact", "mrpo"))):
        for rule in rules:
            found = optimum(training, rule, 1.0, bench.answers.reward, bench.answers.ref_logps, beta=2.0, vocabulary=size)
            torch.testing.assert_close(found, by_hand, atol=1e-8, rtol=0)
    other = optimum("online", "authors", 1.0, bench.answers.reward, bench.answers.ref_logps, beta=2.0, vocabulary=size)
    assert float((other - by_hand).abs().max()) > 1e-2
