"""The loop on tables: it samples, scores, steps, and settles where its rule says; it resumes exactly;
it refuses what cannot work."""

import contextlib
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

import multiref as mr
from multiref.errors import ArgumentError, MultirefNotice, MultirefWarning, VocabularyMismatch
from multiref.models import LanguageModel, Tokenisation, tabular_tokenizer
from multiref.references.local import LocalReference
from multiref.references.rollouts import Rollout
from multiref.training.checkpoint import read_plain
from multiref.training.online import (
    GRPO,
    RLOO,
    AdaptiveBeta,
    K3Loss,
    K3PoolLoss,
    K3RenormalisedLoss,
    OnlineArguments,
    OnlineTrainer,
    PenaltyInReward,
    PerTokenReverseKL,
    RatioK3,
    Reinforce,
    RenormalisedInReward,
    Reward,
    levels_of,
    sequence_logps,
)
from multiref.training.online.rule import normalised
from tests.training.online.language import standardised_fixed_point
from tests.training.online.tables import (
    as_reference,
    kl_to,
    make_trainer,
    random_table,
    reward_function,
    reward_table,
    table_sampler,
)

TABLES = [random_table(1, spread=0.7), random_table(2, spread=0.7)]
W = (0.3, 0.7)


def whole(tables=TABLES):
    return torch.stack([table.sequence_logps().detach() for table in tables])


def levels(tables=TABLES):
    return [torch.stack(level) for level in zip(*(levels_of(table.table.detach(), 3) for table in tables))]


def settled(regularizer, penalty, target, *, steps=150, method=None, lr=0.15, beta=0.5, **options):
    """KL(policy‖target) before and after."""
    policy = random_table(1, spread=0.7)
    method = method or RLOO(group=96)
    trainer = make_trainer(
        policy,
        TABLES,
        regularizer,
        rewards=reward_function(policy, reward_table(policy)),
        steps=steps,
        penalty=penalty,
        beta=beta,
        method=method,
        sampler=table_sampler(method.group),
        args={"learning_rate": lr, "max_grad_norm": None},
        **options,
    )
    before = kl_to(policy, target)
    trainer.train()
    return before, kl_to(policy, target), trainer


def optimum(regularizer, beta=0.5):
    return mr.exact.solve(reward_table(TABLES[0]), whole(), regularizer, beta=beta).log_policy


def test_the_exact_rule_ends_at_the_optimum():
    regularizer = mr.ReverseKL(W)
    before, after, trainer = settled(regularizer, None, optimum(regularizer))
    assert before > 0.3 and after <= 1e-3
    assert trainer.history[-1]["ess"] > 0.99 and trainer.history[-1]["regret"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regularizer", "penalty", "method"),
    [
        (mr.ReverseKL(W), "reward_to_go", None),
        (mr.ReverseKL(W), "full_vocabulary", None),
        (mr.ReverseKL(W), None, GRPO(group=96)),
        (mr.ReverseKL(W), None, RLOO(group=96, updates=2)),
        (mr.ReverseKL(W), None, Reinforce(group=96)),
        (mr.ForwardKL(W), None, None),
        (mr.AlphaDivergence(W, alpha=0.5), None, None),
        (mr.PooledKL(W, order=-1.0), None, None),
    ],
    ids=str,
)
def test_every_exact_rule_ends_at_its_optimum(regularizer, penalty, method):
    """To 1e-3. The noise of the whole completion's penalty vanishes at the optimum, where all returns of a prompt are equal;
    that of the vocabulary's sums and of samples of the references does not, and 200 steps leave 0.002 of it."""
    mark = 3e-3 if penalty == "full_vocabulary" or isinstance(regularizer, mr.ForwardKL) else 1e-3
    before, after, _ = settled(regularizer, penalty, optimum(regularizer), method=method, steps=200, lr=0.15)
    assert before > 0.2 and after <= mark


OTHERS = [
    (RatioK3(), mr.ReverseKL(W), None, 0.5),
    (PerTokenReverseKL(), mr.ReverseKL(W), None, 0.5),
    (K3Loss(), mr.ReverseKL(W), None, 0.5),
    (K3PoolLoss(), mr.ReverseKL(W), None, 0.5),
    (K3RenormalisedLoss(), mr.ReverseKL(W), None, 0.5),
    (RenormalisedInReward(), mr.ReverseKL(W), None, 0.5),
    (PenaltyInReward(), mr.PooledKL(W, order=-1.0), None, 0.5),
    (PenaltyInReward(), mr.ReverseKL((1.0, 0.0)), None, 0.5),
    (RatioK3(), mr.ReverseKL(W), GRPO(group=96, standardise=True), 2.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("penalty", "regularizer", "method", "beta"), OTHERS, ids=[f"{p}-{r}-{m}" for p, r, m, _ in OTHERS])
def test_other_rules_end_at_their_own_fixed_points(penalty, regularizer, method, beta):
    """Computed by backward induction or closed form, prompt by prompt, and not at the optimum,
    which is further away than what sampling leaves."""
    values, refs = reward_table(TABLES[0]), levels()
    if method is None:
        target = sequence_logps(penalty.fixed_point(values, refs, regularizer, beta=beta))
    else:  # dividing by the deviation is another β for every prompt
        each = [
            standardised_fixed_point(penalty, values[x], [level[:, x] for level in refs], regularizer, beta=beta)[0]
            for x in range(2)
        ]
        target = torch.stack([sequence_logps(found) for found in each])
    far = float((target.exp() * (target - optimum(mr.ReverseKL(W), beta))).sum(-1).mean())
    _, after, _ = settled(regularizer, penalty, target, steps=200, lr=0.15, method=method or RLOO(group=96), beta=beta)
    assert after <= 2e-3 < far


@pytest.mark.slow
def test_adaptive_beta_comes_to_rest_at_its_target():
    """β* of which the optimum has Σ_k w_k KL = 0.6 is found by bisection on the exact solution;
    the run ends at it, and at that optimum."""
    tables, target = TABLES, 0.6
    values, refs = reward_table(tables[0]), whole()

    def kl_at(beta):
        logps = mr.exact.solve(values, refs, mr.ReverseKL(W), beta=beta).log_policy
        return float((logps.exp() * (logps - mr.ReverseKL(W).pool(refs))).sum(-1).mean())

    low, high = 0.02, 5.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if kl_at(middle) > target else (low, middle)
    policy = random_table(1, spread=0.7)
    trainer = make_trainer(
        policy,
        tables,
        mr.ReverseKL(W),
        rewards=reward_function(policy, values),
        steps=300,
        method=RLOO(group=96),
        sampler=table_sampler(96),
        adaptive_beta=AdaptiveBeta(target=target),
        args={"learning_rate": 0.1, "max_grad_norm": None, "schedule": "constant"},
    )
    lines = trainer.train()
    assert abs(0.5 - low) > 0.1 * low, "it started there: nothing is tested"
    rest = lines[-40:]
    assert sum(line["beta"] for line in rest) / 40 == pytest.approx(low, rel=0.1)
    assert sum(line["kl"] for line in rest) / 40 == pytest.approx(target, rel=0.05)
    assert kl_to(policy, optimum(mr.ReverseKL(W), low)) < 0.01


def test_weights_per_prompt_route():
    """Prompt 0 to reference 0, prompt 1 to reference 1: with reward zero the policy becomes that teacher."""
    policy = random_table(3)
    rows = [{"prompt": "x0", "weights": [1.0, 0.0]}, {"prompt": "x1", "weights": [0.0, 1.0]}]
    trainer = make_trainer(
        policy,
        TABLES,
        mr.ReverseKL(),
        prompts=rows,
        beta=1.0,
        steps=60,
        penalty="full_vocabulary",
        method=RLOO(group=32),
        args={"learning_rate": 0.2},
    )
    trainer.train()
    target = torch.stack([whole()[0, 0], whole()[1, 1]])
    assert kl_to(policy, target) < 1e-2


def test_a_resumed_run_is_the_same_run(tmp_path):
    def run(steps_now, folder, resume=False):
        policy = random_table(1)
        trainer = make_trainer(
            policy,
            TABLES,
            mr.ReverseKL(W),
            rewards=reward_function(policy, reward_table(policy)),
            steps=8,
            args={"save_every": 3, "log_every": 2, "prompts_per_step": 1},
            adaptive_beta=AdaptiveBeta(target=0.3),
        )
        if steps_now < 8:
            # killed while sampling, at a step
            calls = {"n": 0}
            inner = trainer.sampler

            def dies(*arguments):
                calls["n"] += 1
                if calls["n"] > steps_now:
                    raise KeyboardInterrupt
                return inner(*arguments)

            trainer.sampler = dies
            with pytest.raises(KeyboardInterrupt):
                trainer.train(folder=folder)
            return None
        return trainer.train(folder=folder, resume=resume), policy.table.detach().clone()

    lines, table = run(8, tmp_path / "whole")
    run(5, tmp_path / "cut")
    torch.rand(17)
    resumed, again = run(8, tmp_path / "cut", resume=True)
    assert torch.equal(table, again)
    resumed, lines = ([{k: v for k, v in line.items() if "second" not in k} for line in each] for each in (resumed, lines))
    assert resumed == lines[-len(resumed) :] and resumed[-1]["beta"] != 0.5
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert read_plain(tmp_path / "cut" / "checkpoint-6" / "state.safetensors")["step"] == 6


def test_passes_do_not_change_a_step():
    """A token budget that holds one prompt at a time gives the same step as one that holds all, to rounding."""
    ends = []
    for budget in (1, 10_000):
        policy = random_table(1)
        trainer = make_trainer(
            policy,
            TABLES,
            mr.ReverseKL(W),
            rewards=reward_function(policy, reward_table(policy)),
            steps=2,
            penalty="ratio_k3",
            method=GRPO(group=4, updates=2),
            args={"token_budget": budget},
        )
        trainer.train()
        ends.append(policy.table.detach())
    torch.testing.assert_close(*ends, atol=1e-10, rtol=0)


def test_metrics_and_description():
    policy = random_table(1)
    trainer = make_trainer(
        policy,
        TABLES,
        mr.ReverseKL(W),
        rewards=reward_function(policy, reward_table(policy)),
        steps=1,
        method=GRPO(standardise=True),
        penalty="k3",
    )
    line = trainer.train()[0]
    assert {
        "kl",
        "kl/ref0",
        "kl/ref1",
        "disagreement",
        "ess",
        "regret",
        "clip_fraction",
        "reward",
        "rewards/reward/mean",
        "beta",
    } <= set(line)
    assert line["kl"] == pytest.approx(0.3 * line["kl/ref0"] + 0.7 * line["kl/ref1"])
    said = trainer.describe()
    assert "arithmetic mixture" in said and "standard deviation" in said and "not the optimum" in said
    assert "not the optimum" not in make_trainer(policy, TABLES, mr.ReverseKL(W)).describe()


def test_beta_zero_says_that_the_references_are_ignored():
    with pytest.warns(MultirefWarning, match="references are ignored"):
        trainer = make_trainer(
            random_table(1), TABLES, mr.ReverseKL(W), rewards=lambda completions, **_: [0.0] * len(completions), beta=0.0
        )
    assert not any(name.startswith("kl") for name in trainer.train()[0])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda completions, **_: [float("nan")] * len(completions), r"'<lambda>' is nan for completion 1, 'y"),
        (lambda completions, **_: [0.0], "returned 1 numbers for 8"),
        (lambda completions, **_: [1 / 0], "raised ZeroDivisionError.*'y"),
    ],
)
def test_a_reward_that_misbehaves_is_named_and_the_checkpoint_kept(function, words, tmp_path):
    policy = random_table(1)
    good = reward_function(policy, reward_table(policy))
    make_trainer(policy, TABLES, mr.ReverseKL(W), rewards=good, steps=1, args={"save_every": 1}).train(folder=tmp_path)
    with pytest.raises(ArgumentError, match=words):
        make_trainer(policy, TABLES, mr.ReverseKL(W), rewards=function, steps=2, args={"save_every": 1}).train(
            folder=tmp_path, resume=True
        )
    assert (tmp_path / "checkpoint-1" / "state.safetensors").exists()


def test_bad_input():
    policy = random_table(1)
    with pytest.raises(ArgumentError, match="temperature"):
        OnlineArguments(temperature=0.9)
    with pytest.raises(ArgumentError, match="rate: expected above 0 and below 5"):
        AdaptiveBeta(target=1.0, rate=5.0)  # KL = 0 would take β to 0, and a larger rate below
    for options, words in (({}, "expected a reward"), ({"adaptive_beta": AdaptiveBeta(1.0)}, "no adaptive_beta")):
        rewards = [lambda completions, **_: [0.0] * len(completions)] if options else []
        with pytest.warns(MultirefWarning), pytest.raises(ArgumentError, match=f"beta: found 0, .*{words}"):
            make_trainer(policy, TABLES, mr.ReverseKL(W), beta=0.0, rewards=rewards, **options)
    with pytest.raises(ArgumentError, match="reverse KL only"):
        make_trainer(policy, TABLES, mr.ForwardKL(W), penalty=RatioK3())
    with pytest.raises(ArgumentError, match="FromReferences: expected ForwardKL"):
        make_trainer(policy, TABLES, mr.ReverseKL(W), penalty="reference_samples")
    with pytest.raises(ArgumentError, match="group"):
        RLOO(group=1)
    with pytest.raises(ArgumentError, match="penalty: found 'kl'"):
        make_trainer(policy, TABLES, mr.ReverseKL(W), penalty="kl")
    with pytest.raises(ArgumentError, match="no `prompt`"):
        make_trainer(policy, TABLES, mr.ReverseKL(W), prompts=[{"text": "x0"}])
    with pytest.raises(ArgumentError, match="in the regularizer alone"):
        make_trainer(policy, TABLES, mr.ReverseKL(W), prompts=[{"prompt": "x0", "weights": [1.0, 0.0]}])
    rows = [{"prompt": "x0", "weights": [1.0, 0.0]}, {"prompt": "x1", "weights": [0.5, 0.5]}]
    with pytest.raises(ArgumentError, match=r"^weights: found them in rows of prompts"):
        make_trainer(policy, TABLES, mr.ForwardKL(), penalty="reference_samples", prompts=rows)
    other = [random_table(1), random_table(2, vocabulary=4)]
    with pytest.raises(VocabularyMismatch, match="another vocabulary"):
        make_trainer(policy, other, mr.ReverseKL(W), penalty="ratio_k3")
    short = as_reference(random_table(2))
    assert isinstance(short, LocalReference)
    short.tokenisation = Tokenisation(max_length=3)
    with pytest.raises(ArgumentError, match="'ref1' holds 3 tokens, but a rollout may have 4"):
        OnlineTrainer(
            LanguageModel(policy, tabular_tokenizer(policy), "table"),
            mr.ReverseKL(W),
            beta=1.0,
            references={"ref0": as_reference(TABLES[0]), "ref1": short},
            prompts=["x0"],
            args=OnlineArguments(max_new_tokens=3),
        )


def test_a_tokenisation_of_a_reference_that_scores_sampled_ids_is_said():
    told = as_reference(TABLES[1])
    told.tokenisation = Tokenisation(end=False, max_length=4)
    with pytest.warns(MultirefNotice, match="'other' has the policy's vocabulary"):
        OnlineTrainer(
            LanguageModel(random_table(1), tabular_tokenizer(TABLES[0]), "table"), mr.ReverseKL(W), beta=1.0, prompts=["x0"],
            references={"one": as_reference(TABLES[0]), "other": told}, args=OnlineArguments(max_new_tokens=3),
        )  # fmt: skip


def test_in_reward_is_the_default_and_is_exact():
    trainer = make_trainer(random_table(1), TABLES, mr.AlphaDivergence(W, alpha=0.5))
    assert type(trainer.penalty) is PenaltyInReward and trainer.penalty.exact


def test_a_loss_that_is_scaled_for_half_precision_changes_no_step(monkeypatch):
    """fp16 scales the loss, by powers of two: the gradient that is clipped, logged and taken is the unscaled one. A step whose
    gradient overflows is left out."""

    def trained(steps):
        policy = random_table(1)
        trainer = make_trainer(policy, TABLES, mr.ReverseKL(W), steps=steps, args={"max_grad_norm": 0.1})
        return [line["grad_norm"] for line in trainer.train()], policy.table.detach().clone(), trainer

    norms, table, _ = trained(3)
    first = 2.0**12

    def scaled(**options):
        made = Accelerator(**options)
        made.scaler, made.native_amp = torch.amp.GradScaler("cpu", init_scale=first), True
        made.autocast = contextlib.nullcontext
        return made

    monkeypatch.setattr("multiref.training.online.loop.Accelerator", scaled)
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    half_norms, half, trainer = trained(3)
    assert half_norms == pytest.approx(norms, rel=1e-12) and torch.allclose(half, table, rtol=1e-12, atol=0)
    assert trainer.accelerator.scaler.get_scale() == first
    first = torch.inf
    _, left, trainer = trained(1)
    assert torch.equal(left, random_table(1).table) and trainer.optimizer.step_was_skipped


@pytest.mark.parametrize("normalisation", ["token_mean", "completion_mean", "dr_grpo", "sum"])
def test_passes_change_no_step(normalisation):
    """Completions of one and of three tokens, two of each prompt: one pass of all, or one of each prompt; also where the mean
    is over the tokens of the batch."""

    def lengths(model, tokenizer, prompts):
        made = {"x0": ((0,), (1,)), "x1": ((0, 1, 2), (2, 2, 1))}
        texts = {"x0": ("y0", "y1"), "x1": ("y0y1y2", "y2y2y1")}
        return [Rollout(p, texts[p], (3 + int(p[1]),), made[p], (False, False)) for p in prompts]

    tables = []
    for budget in (1, 4096):
        policy = random_table(1)
        rewards = lambda prompts, completions: [float(len(text) + text.count("2")) for text in completions]  # noqa: E731
        make_trainer(
            policy, TABLES, mr.ReverseKL(W), rewards=rewards, steps=1, sampler=lengths, penalty=K3Loss(),
            method=GRPO(group=2, normalisation=normalisation), args={"token_budget": budget, "max_grad_norm": None},
        ).train()  # fmt: skip
        tables.append(policy.table.detach().clone())
    assert torch.allclose(*tables, rtol=1e-6) and not torch.equal(tables[0], random_table(1).table)


def test_sums_over_tokens_are_averaged_as_their_name_says():
    """6 over one token and 4 over three, at most 5: their mean over completions is 10/2, (6 + 4/3)/2, 10/5/2, or over tokens
    10/4; where the batch has 8 tokens in 4 completions, ¼ (6 + 4) · 4/8 of it."""
    total, own = torch.tensor([6.0, 4.0]), torch.tensor([1, 3])
    expected = {"sum": 5.0, "completion_mean": 11 / 3, "dr_grpo": 1.0, "token_mean": 2.5}
    for name, mean in expected.items():
        method = GRPO(group=2, normalisation=name)
        assert float(normalised(total, own, method, longest=5).mean()) == pytest.approx(mean)
    among = normalised(total, own, GRPO(group=2, normalisation="token_mean"), longest=5, lengths=torch.tensor([1, 3, 2, 2]))
    assert among.tolist() == [3.0, 2.0]


def test_tokens_are_averaged_over_the_completions_of_all_processes(monkeypatch):
    """x0 has completions of one token on this process, x1 of three on another: a token counts ⅛ wherever it is, so that the
    mean over two processes of x0's gradient is that of one process with both prompts. It was ½ · ½ for x0."""

    def sampler(model, tokenizer, prompts):
        ids = {"x0": ((0,), (1,)), "x1": ((0, 1, 2), (2, 2, 1))}
        return [Rollout(p, ("a", "bb"), (3 + int(p[1]),), ids[p], (False, False)) for p in prompts]

    def gradient(prompts, elsewhere):
        policy = random_table(1)
        trainer = make_trainer(
            policy, TABLES, mr.ReverseKL(W), rewards=lambda prompts, completions: list(map(len, completions)), steps=1,
            sampler=sampler, prompts=prompts, method=GRPO(group=2, normalisation="token_mean"),
            args={"prompts_per_step": len(prompts), "max_grad_norm": None},
        )  # fmt: skip
        gather = trainer.accelerator.gather
        monkeypatch.setattr(trainer.accelerator, "gather", lambda found: torch.cat([gather(found), torch.tensor(elsewhere)]))
        trainer.train()
        return policy.table.grad[0]

    torch.testing.assert_close(gradient(["x0"], [3, 3]) / 2, gradient(["x0", "x1"], []))


def test_lines_that_a_checkpoint_keeps_are_of_all_processes(monkeypatch, tmp_path):
    """Another process has 1 of everything, and a number where this one has none: both go on from the same means."""
    monkeypatch.setattr("multiref.training.online.loop.over_ranks", lambda values, how: [value + 1 for value in values])
    rewards = {"a": lambda prompts, completions: [3.0] * len(prompts), "b": lambda prompts, completions: [None] * len(prompts)}
    trainer = make_trainer(
        random_table(1), TABLES, mr.ReverseKL(W), rewards=rewards, steps=2, args={"log_every": 2, "save_every": 1}
    )
    (line,) = trainer.train(folder=tmp_path)
    (kept,) = read_plain(tmp_path / "checkpoint-1" / "state.safetensors")["lines"]
    assert kept["rewards/a/mean"] == line["rewards/a/mean"] == 2 and kept["rewards/b/mean"] == line["rewards/b/mean"] == 1


def test_a_sampler_gives_each_prompt_its_group():
    """Three of one prompt and five of another are not four of each."""
    whole_groups = table_sampler(4)

    def uneven(model, tokenizer, prompts):
        first, second = whole_groups(model, tokenizer, prompts)
        cut = {name: getattr(first, name)[:3] for name in ("completions", "completion_ids", "ended")}
        more = {name: (*getattr(second, name), getattr(second, name)[0]) for name in cut}
        return [replace(first, **cut), replace(second, **more)]

    trainer = make_trainer(random_table(1), TABLES, mr.ReverseKL(W), steps=1, sampler=uneven, method=RLOO(group=4))
    with pytest.raises(ArgumentError, match=r"\[3, 5\] completions"):
        trainer.train()


@pytest.mark.parametrize("normalisation", ["dr_grpo", "completion_mean", "token_mean"])
def test_forward_kl_counts_the_references_samples_as_the_method_counts_tokens(normalisation):
    """Completions of three tokens: each of these means is a third of the sum, of the reward and of β's part alike."""

    def gradient(method):
        policy = random_table(1)
        rewards = reward_function(policy, reward_table(policy))
        args = {"max_grad_norm": None}
        make_trainer(policy, TABLES, mr.ForwardKL(W), rewards=rewards, steps=1, method=method, args=args).train()
        return policy.table.grad

    mean = gradient(GRPO(group=4, normalisation=normalisation))
    torch.testing.assert_close(3 * mean, gradient(RLOO(group=4)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"beta": 0.2}, "beta"),
        ({"method": RLOO(group=8)}, "method"),
        ({"penalty": "k2"}, "penalty"),
        ({"prompts": ["x1", "x0"]}, "prompts"),
        ({"prompts": [{"prompt": "x0", "answer": "1"}, {"prompt": "x1"}]}, "columns"),
        ({"rewards": 2.0}, "rewards"),
        ({"regularizer": mr.ReverseKL((0.5, 0.5))}, "regularizer"),
        ({"args": {"seed": 3}}, "seed"),
        ({"args": {"weight_decay": 0.1}}, "weight_decay"),
        ({"args": {"adam_betas": (0.8, 0.9)}}, "adam_betas"),
        ({"args": {"prompts_per_step": 1}}, "prompts_per_step"),
        ({"args": {"learning_rate": 1e-3, "token_budget": 7, "save_every": 2}}, None),  # these are taken as they are now
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_refused_by_name(changed, name, tmp_path):
    def run(steps, resume=False, **options):
        policy, options = random_table(1), {"regularizer": mr.ReverseKL(W), "rewards": 1.0, "args": {}, **options}
        reward = Reward(reward_function(policy, reward_table(policy)), "r", options.pop("rewards"))
        args = {"save_every": 1} | options.pop("args")
        return make_trainer(policy, TABLES, rewards=reward, steps=steps, args=args, **options).train(
            folder=tmp_path, resume=resume
        )

    run(1)
    refused = pytest.raises(ArgumentError, match=f"^{name}: the checkpoint was written under")
    with refused if name is not None else contextlib.nullcontext():
        run(2, **changed, resume=True)
