"""A step moves the weights: where the weights' format loses most of the updates, the run says so, with the remedy."""

import copy
import warnings

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, MultirefNotice, MultirefWarning
from multiref.models import LanguageModel
from multiref.models.small import small_llama, word_tokenizer
from multiref.training.lost_updates import LostUpdates
from multiref.training.online import OnlineArguments
from tests.training.world import END, WORDS, word_trainer

PAIRS = [{"prompt": "w0", "chosen": f" w{i}", "rejected": f" w{(i + 3) % 8}"} for i in range(8)]


def moved(dtype, folder, **options):
    """(share of the weights that differ afterwards, lines of the log)."""
    tokenizer, model = word_tokenizer(WORDS), small_llama(9)
    other = LanguageModel(small_llama(9, seed=1), tokenizer, "other")
    scores = mr.References({"other": other}, tokenisation=END).score(PAIRS)
    model = model.to(dtype)
    before = copy.deepcopy(model.state_dict())
    trainer = word_trainer(model, scores, PAIRS, folder, **({"per_device_train_batch_size": 4, "max_steps": 12} | options))
    trainer.train()
    same = sum(int((model.state_dict()[name] == value).sum()) for name, value in before.items())
    return 1 - same / sum(value.numel() for value in before.values()), trainer.state.log_history


@pytest.mark.parametrize("steps", [12, 3])
def test_bfloat16_weights_that_stay_are_said(steps, tmp_path):
    with pytest.warns(MultirefWarning, match=r"did not move in the first steps.*bfloat16.*train float32 weights"):
        share, lines = moved(torch.bfloat16, tmp_path, learning_rate=5e-7, max_steps=steps)
    assert share < 0.05
    told = [line["updates_lost"] for line in lines if "updates_lost" in line]
    assert len(told) == 1 and told[0] > 0.9 and lines[min(steps, 10) - 1]["updates_lost"] == told[0]


@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, {"learning_rate": 5e-7}), (torch.bfloat16, {"learning_rate": 3e-2})]
)
def test_weights_that_move_are_not_warned_of(dtype, options, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        share, lines = moved(dtype, tmp_path, **options)
    assert share > 0.5 and not any("updates_lost" in line for line in lines)


def test_what_is_counted():
    """Of four weights one has no gradient, one is too large for its step; nothing is counted at rate zero. Two of three moved:
    no warning; and where the large ones are two of three, one."""
    model = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1e8, 1.0, 1.0]]))
    optimizer = torch.optim.SGD(model.parameters())
    watch = LostUpdates(model, optimizer)

    def step(rate):
        model.weight.grad = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    step(0.0)
    assert (watch._lost, watch._all) == (0, 0)
    for _ in range(4):
        step(0.5)
    assert (watch._lost, watch._all) == (4, 12) and watch.conclude() is None
    with torch.no_grad():
        model.weight[0, 0] = 1e8
    for _ in range(6):
        step(0.5)
    assert (watch._lost, watch._all) == (16, 30)
    with pytest.warns(MultirefWarning, match="53.3%.*raise the learning rate"):
        assert watch.conclude() == pytest.approx(16 / 30)
    assert watch.conclude(last=True) is None
    step(0.5)
    assert (watch._lost, watch._all) == (16, 30), "what is said costs nothing any more"


def test_steps_without_any_gradient_are_said():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, waiting = LostUpdates(model, optimizer), LostUpdates(model, optimizer, waits=True)
    for _ in range(10):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert waiting.conclude(last=True) is None
    with pytest.warns(MultirefNotice, match="No weight had a gradient in the first 10 steps"):
        assert watch.conclude() is None


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": float("nan")}, {"learning_rate": "1e-5"}, {"max_grad_norm": 0}, {"adam_betas": (0.9, 1.0)},
     {"steps": 1.5}, {"weight_decay": float("inf")}, {"generation_batch": 0}, {"cache": "paged"}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_numbers_of_an_online_run_that_would_move_nothing_or_ruin_it(wrong):
    with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))}: "):
        OnlineArguments(**wrong)


def test_whole_numbers_written_as_floats_are_meant():
    made = OnlineArguments(steps=3.0, save_every=2.0)
    assert type(made.steps) is int and (made.steps, made.save_every) == (3, 2)
