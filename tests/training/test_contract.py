"""The average is over pairs: micro-batches, passes, lengths and restarts change nothing but the rounding."""

import copy
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import TypeAdapter
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import multiref as mr
from multiref.data import Pair
from multiref.errors import ArgumentError, DataError, ModelError, MultirefWarning, StoreError, WeightsError
from multiref.models import LanguageModel, Tokenisation, completion_logps, encode
from multiref.references.scores import SequenceScores, content_keys
from multiref.runs.objectives import WeightingSetting, weigh
from multiref.training import (
    LengthNormalised,
    MultiDPO,
    Preference,
    PreferenceData,
    PreferenceTrainer,
    SlidingWindow,
    ThompsonSampling,
)
from tests.training.letters import letter_tokenizer
from tests.training.world import arguments

BETA = 0.3
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


@pytest.fixture(scope="module")
def policy(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).double()


@pytest.fixture(scope="module")
def pairs():
    """23 pairs (a prime: no batch size divides it) of lengths 1 to 20."""
    generator = torch.Generator().manual_seed(1)

    def word(low, high):
        size = int(torch.randint(low, high, (1,), generator=generator))
        return "".join("abcdefgh"[int(i)] for i in torch.randint(0, 8, (size,), generator=generator))

    return [Pair(word(1, 12), f"{word(1, 20)}a", f"{word(1, 20)}b", f"pairs:{n}") for n in range(1, 24)]


@pytest.fixture(scope="module")
def scores(pairs):
    prompts = [p.prompt for p in pairs for _ in range(2)]
    sides = [side for p in pairs for side in (p.chosen, p.rejected)]
    generator = torch.Generator().manual_seed(2)
    logps = -20 * torch.rand(3, len(sides), generator=generator, dtype=torch.float64)
    lengths = torch.tensor([[len(side) + 1 for side in sides]] * 3)
    keys = content_keys(prompts, sides)
    return SequenceScores(("a", "b", "c"), keys, logps, lengths, torch.zeros_like(lengths, dtype=torch.bool))


class Losses(TrainerCallback):
    """Every logged line with a loss."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.lines.append({"step": state.global_step, **logs})


def train(policy, tokenizer, pairs, scores, folder, objective=None, **options):
    passed = {key: options.pop(key) for key in ("token_budget", "strategy", "eval_dataset") if key in options}
    resume = options.pop("resume", None)
    settings = {"logging_strategy": "steps", "logging_steps": 1, "learning_rate": 0.02, "num_train_epochs": 2, "seed": 7}
    losses = Losses()
    trainer = PreferenceTrainer(
        copy.deepcopy(policy),
        objective or mr.training.Preference.of(mr.ReverseKL((0.5, 0.25, 0.25)), BETA),
        scores=scores,
        args=arguments(folder, **(settings | options)),
        train_dataset=pairs,
        processing_class=tokenizer,
        callbacks=[losses],
        **passed,
    )
    trainer.train(resume_from_checkpoint=resume)
    return losses.lines, trainer


def test_the_first_loss_is_the_textbook_formula_averaged_over_pairs(policy, tokenizer, pairs, scores, tmp_path):
    """−log σ(β [Δ log π − Σ_k w_k Δ log π_k]) by hand, from one forward pass a completion."""
    lines, _ = train(policy, tokenizer, pairs, scores, tmp_path, per_device_train_batch_size=23, max_steps=1)
    total = 0.0
    for pair in pairs:
        logps = [
            completion_logps(policy, [encode(tokenizer, pair.prompt, (side,))])[0] for side in (pair.chosen, pair.rejected)
        ]
        chosen, rejected = scores.of([pair.prompt] * 2, [pair.chosen, pair.rejected]).T
        reference = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64) @ (chosen - rejected)
        total += -torch.nn.functional.logsigmoid(BETA * (logps[0] - logps[1] - reference)).item()
    assert lines[0]["loss"] == pytest.approx(total / len(pairs), rel=1e-6)


@pytest.mark.parametrize(
    ("per_device", "accumulation", "token_budget"),
    [
        (2, 4, None),
        (4, 2, 25),
        pytest.param(1, 8, None, marks=SLOW),
        pytest.param(8, 1, 60, marks=SLOW),
        pytest.param(3, 3, 40, marks=SLOW),
    ],
)
def test_micro_batches_and_passes_do_not_change_the_curve(
    per_device, accumulation, token_budget, policy, tokenizer, pairs, scores, tmp_path
):
    """Steps of 8 (or 9) pairs out of 23, whatever they are cut into; the last step of an epoch has fewer,
    and averages over those."""
    together = per_device * accumulation
    plain, _ = train(policy, tokenizer, pairs, scores, tmp_path, per_device_train_batch_size=together)
    cut, _ = train(
        policy,
        tokenizer,
        pairs,
        scores,
        tmp_path,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        token_budget=token_budget,
    )
    assert len(plain) == 6
    assert [line["loss"] for line in cut] == pytest.approx([line["loss"] for line in plain], rel=1e-6)
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "kl/b", "weights/a"):
        assert [line[name] for line in cut] == pytest.approx([line[name] for line in plain], rel=1e-6), name


def test_a_killed_run_resumes_with_the_same_losses(policy, tokenizer, pairs, scores, tmp_path):
    """Checkpoint in the middle of an epoch; what comes after is what an uninterrupted run shows, to 1e-6."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole, _ = train(policy, tokenizer, pairs, scores, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    resumed, _ = train(
        policy, tokenizer, pairs, scores, tmp_path / "killed", resume=str(tmp_path / "killed/checkpoint-4"), **options
    )
    after = [line for line in whole if line["step"] > 4]
    assert [line["step"] for line in resumed] == [line["step"] for line in after]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in after], rel=1e-6)
    assert not list((tmp_path / "killed").rglob("training_args.bin"))
    split = options | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}  # steps of the same four pairs
    train(policy, tokenizer, pairs, scores, tmp_path / "killed", resume=str(tmp_path / "killed/checkpoint-4"), **split)
    with pytest.warns(MultirefWarning, match=r"per_step: .* under 4, found 6\..* pairs come twice or not at all"):
        train(
            policy, tokenizer, pairs, scores, tmp_path / "killed", resume=str(tmp_path / "killed/checkpoint-4"),
            **options | {"per_device_train_batch_size": 3, "max_steps": 5},
        )  # fmt: skip


def test_evaluation_averages_over_pairs_and_reports_the_gap(policy, tokenizer, pairs, scores, tmp_path):
    held_out = pairs[:7]
    lines, trainer = train(
        policy,
        tokenizer,
        pairs,
        scores,
        tmp_path,
        eval_dataset=held_out,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=3,
    )
    metrics = trainer.evaluate()
    data = PreferenceData(held_out, scores, tokenizer)
    batch = data.batch(range(7))
    policy_logps = completion_logps(trainer.model, batch.encoded).reshape(-1, 2)
    rewards = mr.ReverseKL((0.5, 0.25, 0.25)).implicit_reward(policy_logps, batch.references, beta=BETA)
    losses = mr.losses.bradley_terry(rewards[:, 0], rewards[:, 1])
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["eval_rewards/margins"] == pytest.approx(float((rewards[:, 0] - rewards[:, 1]).mean()), rel=1e-5)
    assert metrics["eval_reward_gap"] == pytest.approx(lines[-1]["rewards/margins"] - metrics["eval_rewards/margins"], rel=1e-6)


def test_one_reference_among_several_is_that_reference_alone(policy, tokenizer, pairs, scores, tmp_path):
    """Weight one on b: the curve of a run that knows b only; Multi-DPO agrees at a vertex."""
    curves = []
    for objective, chosen in (
        (None, scores.select(["b"])),
        (MultiDPO(BETA, (0.0, 1.0, 0.0)), scores),
    ):
        lines, _ = train(
            policy,
            tokenizer,
            pairs,
            chosen,
            tmp_path,
            objective=objective or mr.training.Preference(mr.ReverseKL(), BETA),
            per_device_train_batch_size=8,
        )
        curves.append([line["loss"] for line in lines])
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


@pytest.mark.filterwarnings("ignore:2 of 4 texts did not fit")
def test_the_policys_context_cuts_as_a_references_does(policy, tokenizer, tmp_path):
    """A pair longer than the context: scored by `References` and trained on, both cut at the context,
    with nothing said about lengths."""
    long = [Pair("a", "b" * 80, "c" * 70, "long"), Pair("a", "b", "c", "short")]
    scores = mr.References({"base": LanguageModel(policy, tokenizer, "base")}).score(long)
    lines, trainer = train(policy, tokenizer, long, scores, tmp_path, mr.training.Preference(mr.ReverseKL(), BETA))
    assert trainer.train_dataset.encoded[0].truncated == (True, True)
    assert [len(ids) for ids in trainer.train_dataset.encoded[0].completions] == [62, 62]
    assert lines[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)  # the policy is its own reference


def test_counts_weigh_pairs(policy, tokenizer, pairs, scores, tmp_path):
    """A pair of count 2 is that pair twice; a pair of count 0 is not there."""
    once = PreferenceData([*pairs[:3], pairs[0]], scores, tokenizer)
    counted = PreferenceData(pairs[:4], scores, tokenizer, counts=[2, 1, 1, 0])
    curves = [
        [line["loss"] for line in train(policy, tokenizer, data, None, tmp_path, per_device_train_batch_size=4)[0]]
        for data in (once, counted)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    for bad in ([2, 1, 1], [2, 1, 1, -1], [0, 0, 0, 0]):
        with pytest.raises(ArgumentError, match="counts: expected 4 finite numbers"):
            PreferenceData(pairs[:4], scores, tokenizer, counts=bad)


def test_what_counts_nothing_is_not_looked_at(policy, tokenizer, pairs, scores, tmp_path):
    """Be it infinite: a reference's veto on a pair of count 0 leaves every figure of training, of an evaluation and of what
    decides the weights as without that pair. Averages were NaN."""
    logps = scores.logps.clone()
    logps[1, torch.from_numpy(scores.columns([pairs[3].prompt], [pairs[3].rejected]))] = -torch.inf
    vetoed = replace(scores, logps=logps)
    data = [PreferenceData(pairs[:3], scores, tokenizer), PreferenceData(pairs[:4], vetoed, tokenizer, counts=[1, 1, 1, 0])]
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "max_steps": 2}
    for strategy in (lambda _: None, lambda _: SlidingWindow(), lambda each: ThompsonSampling(each, hold=1)):
        (plain, one), (beside, two) = (
            train(policy, tokenizer, each, None, tmp_path, strategy=strategy(each), **options) for each in data
        )
        assert len(plain) == 2 and plain[0].keys() == beside[0].keys()
        for line, other in zip([*plain, one.evaluate(data[0])], [*beside, two.evaluate(data[1])]):
            names = [name for name in line if "/" in name or name.endswith("loss")]
            assert [other[name] for name in names] == pytest.approx([line[name] for name in names], rel=1e-5)


def test_a_step_whose_pairs_count_nothing_moves_nothing(policy, tokenizer, pairs, scores, tmp_path):
    """One pair a step: that of count 0 leaves the weights where they are, as if it was not there."""
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "num_train_epochs": 1}
    data = [
        PreferenceData(pairs[:3], scores, tokenizer, counts=[1, 0, 1]),
        PreferenceData([pairs[0], pairs[2]], scores, tokenizer),
    ]
    counted, without = (
        [line["loss"] for line in train(policy, tokenizer, each, None, tmp_path, per_device_train_batch_size=1, **plain)[0]]
        for each in data
    )
    assert counted == pytest.approx([without[0], 0.0, without[1]], rel=1e-6)


def test_counts_weigh_pairs_of_an_evaluation_and_of_an_arms_judge(policy, tokenizer, pairs, scores, tmp_path):
    """The same, where nothing is trained; it is the average that a count is of."""
    once = PreferenceData([*pairs[:3], pairs[0]], scores, tokenizer)
    counted = PreferenceData(pairs[:4], scores, tokenizer, counts=[2, 1, 1, 0])
    _, trainer = train(policy, tokenizer, once, None, tmp_path, per_device_train_batch_size=4)
    names = ("eval_loss", "eval_rewards/margins", "eval_kl/a", "eval_logps/chosen", "eval_reward_gap")
    ours, same = (trainer.evaluate(data) for data in (counted, once))
    assert [ours[name] for name in names] == pytest.approx([same[name] for name in names], rel=1e-6)
    judged = []
    for data in (counted, once):
        strategy = ThompsonSampling(data)
        strategy.start(once.names)
        strategy._objective = mr.training.Preference(mr.ReverseKL(), BETA)
        judged.append(strategy._loss(trainer.model))
    assert judged[0] == pytest.approx(judged[1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"beta": 0.0}, ArgumentError, "beta"),
        ({"beta": None}, ArgumentError, "both a regularizer and beta"),
        ({"objective": mr.training.Preference.of(mr.ReverseKL(), 0.1)}, ArgumentError, "brings its own"),
        ({"objective": mr.ReverseKL()}, ArgumentError, "a regularizer; write regularizer="),
        ({"regularizer": (0.5, 0.5)}, WeightsError, "3"),
        ({"extra": Pair("zz", "unseen", "seen")}, StoreError, "no score"),
        ({"prompt_tuning": True}, ModelError, "virtual"),
        ({"tokenisation": Tokenisation(max_length=16)}, ArgumentError, "cut differently"),
        ({"sampling": "group_by_length"}, ArgumentError, "sorted by length"),
        ({"endless": True}, ModelError, "end token"),
        ({"drop_last": True}, ArgumentError, "drop_last leaves nothing of 23 pairs at 24"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(options, error, words, policy, tokenizer, pairs, scores, tmp_path):
    model = copy.deepcopy(policy)
    if options.pop("prompt_tuning", False):
        from peft import PromptTuningConfig, get_peft_model

        model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    weights = options.pop("regularizer", (0.5, 0.25, 0.25))
    if options.pop("endless", False):
        tokenizer = letter_tokenizer()
        tokenizer.eos_token = None
    data = [*pairs, options.pop("extra")] if "extra" in options else pairs
    with pytest.raises(error, match=words):
        PreferenceTrainer(
            model,
            regularizer=mr.ReverseKL(weights),
            args=arguments(
                tmp_path,
                train_sampling_strategy=options.pop("sampling", "random"),
                dataloader_drop_last=options.pop("drop_last", False),
                per_device_train_batch_size=24,
            ),
            train_dataset=data,
            scores=scores,
            processing_class=tokenizer,
            **{"beta": 0.1, **options},
        )


def test_the_saved_state_of_a_run_is_plain(policy, tokenizer, pairs, scores, tmp_path):
    train(policy, tokenizer, pairs, scores, tmp_path, per_device_train_batch_size=8, save_strategy="epoch")
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "kl/a",
        "weights/c",
    } <= set(state["log_history"][0])


@pytest.mark.parametrize(
    ("loss", "marks", "words"),
    [
        (mr.losses.bradley_terry, [1.0] * 23, "pairs:1: its label is private at ε = 1 .* takes labels as they stand"),
        (partial(mr.losses.randomised_response, epsilon=2.0), [1.0] * 23, "pairs:1: .* is for ε = 2"),
        (partial(mr.losses.randomised_response, epsilon=1.0), [1.0, None] + [1.0] * 21, "pairs:2: .* not marked"),
        (partial(mr.losses.randomised_response, epsilon=1.0), [1.0] * 23, ""),
    ],
    ids=["plain", "another", "some", "right"],
)
def test_labels_that_are_marked_as_private_are_recognised(loss, marks, words, policy, tokenizer, pairs, scores, tmp_path):
    """As a run file does, also under a variant that hands the loss on; of a loss that is not ours a warning is all there is."""
    marked = [replace(pair, epsilon=mark) for pair, mark in zip(pairs, marks)]
    given = {"args": arguments(tmp_path), "train_dataset": marked, "scores": scores, "processing_class": tokenizer}
    for wrap in (lambda one: one, LengthNormalised):
        objective = wrap(mr.training.Preference.of(mr.ReverseKL(), BETA, loss=loss))
        with pytest.raises(DataError, match=words) if words else nullcontext():
            PreferenceTrainer(policy, objective, **given)
    own = mr.training.Preference.of(mr.ReverseKL(), BETA, loss=lambda a, b: loss(a, b))
    with pytest.warns(MultirefWarning, match="not ours"):
        PreferenceTrainer(policy, own, **given)


def test_weights_of_a_run_file_are_those_of_the_margins_that_were_scored(tokenizer, pairs, scores):
    """`convex_fit` on the log-probabilities of the held-out pairs, `vdw` on those per token, each beside its rule by hand."""
    data = PreferenceData(pairs, scores, tokenizer)
    logps = scores.logps.reshape(3, -1, 2)
    each = logps / scores.lengths.reshape(3, -1, 2)
    asked = {"convex_fit": logps, "vdw": each, "vaw": each}
    rules = {"convex_fit": lambda m: mr.weighting.fit_preferences(m).weights, "vdw": mr.weighting.vdw, "vaw": mr.weighting.vaw}
    for kind, values in asked.items():
        setting = TypeAdapter(WeightingSetting).validate_python({"kind": kind})
        found, strategy = weigh(setting, Preference.of(mr.ReverseKL([0.2, 0.3, 0.5]), 0.1), data)
        assert strategy is None
        assert list(found.weights) == pytest.approx(rules[kind](values[..., 0] - values[..., 1]).tolist())


def test_evaluation_data_of_other_references_are_refused(policy, tokenizer, pairs, scores, tmp_path):
    """In another order the weights would be those of other references, and every `kl/…` another's."""
    _, trainer = train(policy, tokenizer, pairs[:4], scores, tmp_path, max_steps=1, per_device_train_batch_size=4)
    for names in (["b", "a", "c"], ["a", "b"]):
        other = PreferenceData(pairs[:4], scores.select(names), tokenizer)
        with pytest.raises(ArgumentError, match=f"{', '.join(names)}, expected .* their order: a, b, c"):
            trainer.evaluate(other)


def test_data_of_another_tokenizer_or_a_longer_context_are_refused(policy, tokenizer, pairs, scores, tmp_path):
    """Ids of an alphabet in another order mean other letters; rows of 160 tokens do not fit a context of 64."""
    turned = letter_tokenizer("hgfedcba")
    with pytest.raises(ArgumentError, match="pairs:1: the data hold other token ids"):
        train(policy, tokenizer, PreferenceData(pairs, scores, turned), None, tmp_path, max_steps=1)
    long = [Pair("a", "b" * 80, "c" * 70, "long"), Pair("a", "b", "c", "short")]
    keys = content_keys(["a"] * 4, [side for pair in long for side in (pair.chosen, pair.rejected)])
    lengths = torch.tensor([[81, 71, 2, 2]])
    whole = SequenceScores(("a",), keys, -lengths.double(), lengths, torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="long: the data hold other token ids than this model's tokenizer and context"):
        train(policy, tokenizer, PreferenceData(long[::-1], whole, tokenizer), None, tmp_path, Preference(mr.ReverseKL(), BETA))
