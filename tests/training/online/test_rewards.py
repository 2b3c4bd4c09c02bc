"""Rewards: a reward model against its own forward pass, several with weights, and completions that are odd."""

import asyncio
import copy
from decimal import Decimal

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import multiref as mr
from multiref.errors import ArgumentError, ModelError, MultirefWarning
from multiref.references.rollouts import Rollout
from multiref.training.online import Reward, RewardModel
from multiref.training.online.rewards import as_rewards, total_reward
from tests.conftest import make_tokenizer
from tests.training.online.tables import make_trainer, random_table


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A folder as TRL's RewardTrainer leaves it, its model, its tokenizer."""
    tokenizer, folder = make_tokenizer(chat=True), tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_a_reward_model_is_its_logit_on_prompt_and_completion(judge):
    """Three texts of different length in batches of two, against each alone, without padding;
    a conversation through the template."""
    folder, model, tokenizer = judge
    prompts, completions = (
        ["the cat", "Once upon a time there was", "two"],
        [" sat", " a little dog named Max.", " plus three is five"],
    )
    found = RewardModel(str(folder), batch=2)(prompts, completions)
    with torch.no_grad():
        truth = [float(model(torch.tensor([tokenizer(p + c)["input_ids"]])).logits[0, 0]) for p, c in zip(prompts, completions)]
    assert found == pytest.approx(truth, abs=1e-4) and max(truth) - min(truth) > 0.05
    asked, said = [{"role": "user", "content": "is it raining?"}], [{"role": "assistant", "content": "yes"}]
    with torch.no_grad():
        text = tokenizer.apply_chat_template([*asked, *said], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # a template writes the start token itself
        chat = float(model(torch.tensor([ids])).logits[0, 0])
    assert RewardModel(str(folder))([asked], [said]) == pytest.approx([chat], abs=1e-4)
    both = RewardModel(str(folder))([asked, prompts[0]], [said, completions[0]])
    assert both == pytest.approx([chat, truth[0]], abs=1e-4), "a string beside a conversation keeps its start token"
    with pytest.raises(ModelError, match="There is no model folder"):
        RewardModel(str(folder / "nowhere"))


def test_several_rewards_add_up_with_their_weights():
    """2 · length − ½ · the column's number, by hand; a function that names no columns gets none."""
    rewards = [
        Reward(lambda completions, prompts: [len(c) for c in completions], "length", 2.0),
        Reward(lambda completions, n, **_: n, "n", -0.5),
    ]
    total, each = total_reward(rewards, ["a", "b"], ["xx", "yyy"], {"n": [1.0, 10.0]})
    assert total.tolist() == [2 * 2 - 0.5, 2 * 3 - 5.0] and each["length"].tolist() == [2.0, 3.0]
    trainer = make_trainer(
        random_table(1),
        [random_table(1)],
        mr.ReverseKL(),
        steps=1,
        rewards={
            "one": Reward(lambda completions, prompts: [1.0] * len(completions), weight=3.0),
            "two": lambda completions, **_: [2.0] * len(completions),
        },
    )
    line = trainer.train()[0]
    assert (line["reward"], line["rewards/one/mean"], line["rewards/two/mean"]) == pytest.approx((5.0, 1.0, 2.0))
    with pytest.raises(ArgumentError, match="two are called"):
        as_rewards([Reward(len, "a"), Reward(len, "a")])


def trainer_with(change):
    """A trainer whose sampler's completions are changed on the way."""
    policy = random_table(1)
    trainer = make_trainer(
        policy,
        [random_table(1), random_table(2)],
        mr.ReverseKL(),
        steps=1,
        rewards=lambda completions, **_: [0.0] * len(completions),
    )
    inner, tokenizer = trainer.sampler, copy.copy(trainer.tokenizer)
    tokenizer.eos_token = "y0"
    trainer.tokenizer = tokenizer
    trainer.sampler = lambda *arguments: [change(rollout) for rollout in inner(*arguments)]
    return trainer


def test_completions_of_no_token_are_refused():
    def emptied(r):
        return Rollout(r.prompt, r.completions, r.prompt_ids, ((), *r.completion_ids[1:]), r.ended)

    with pytest.raises(ArgumentError, match="some of no token"):
        trainer_with(emptied).train()


def test_completions_that_are_all_empty_text_are_said():
    """A policy that ends at once: its one token, the end, is a completion; that its text is empty is worth a warning."""

    def ended(r):
        return Rollout(r.prompt, ("",) * 4, r.prompt_ids, ((0,),) * 4, (True,) * 4)

    with pytest.warns(MultirefWarning, match="empty text"):
        trainer_with(ended).train()


def test_completions_that_are_all_truncated_are_said():
    with pytest.warns(MultirefWarning, match="cut at max_new_tokens = 3: none ended"):
        trainer_with(lambda r: Rollout(r.prompt, r.completions, r.prompt_ids, r.completion_ids, (False,) * 4)).train()


def of(function, completions=("xx", "yyy"), **columns):
    """What one function earns."""
    return total_reward(as_rewards({"f": function}), ["a"] * len(completions), list(completions), columns)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2], (1, 2.0), np.array([1.0, 2.0]), np.array([[1.0], [2.0]], dtype=np.float32), torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True), [torch.tensor(1.0), torch.tensor([2.0])],
        [np.float32(1), np.int64(2)], [np.array(1.0), Decimal(2)], (x for x in (True, 2)), range(1, 3),
    ],
)  # fmt: skip
def test_a_reward_is_a_number_whatever_holds_it(values):
    assert of(lambda prompts, completions: values)[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["1", 2], "The reward 'f' is '1' for completion 1, 'xx'; expected a finite number, or None"),
        ([1, np.nan], "The reward 'f' is nan for completion 2, 'yyy'"),
        ([np.float32("inf"), 1], "The reward 'f' is .*inf.* for completion 1"),
        ([1, [2, 3]], r"The reward 'f' is \[2, 3\] for completion 2"),
        ([1, np.str_("2")], "The reward 'f' is .* for completion 2"),
        ([1, torch.tensor([2, 3])], "The reward 'f' is .* for completion 2"),
        ([1], "returned 1 numbers for 2 completions"),
        ("12", "returned '12', expected 2 numbers"),
        (1.0, "returned 1.0, expected 2 numbers"),
        (None, "returned None, expected 2 numbers"),
        ([10**400, 1.0], "completion 1"),
        ([1.0, Decimal("sNaN")], "completion 2"),
        ({"a": 1, "b": 2}, "expected 2 numbers, one for each"),
        (torch.tensor(3.0), "expected 2 numbers, one for each"),
    ],
)
def test_what_is_no_number_is_refused_by_function_and_row(values, said):
    with pytest.raises(ArgumentError, match=said):
        of(lambda prompts, completions: values)


def test_none_means_that_a_reward_does_not_apply():
    """As TRL has it: left out of that completion's sum, and of the mean that is reported. Where none applies: an error."""
    rewards = {
        "a": Reward(lambda prompts, completions: [None, 3.0, None], weight=2.0),
        "b": lambda prompts, completions: [5.0, 1.0, 7.0],
    }
    total, each = total_reward(as_rewards(rewards), ["p", "q", "r"], ["x", "y", "z"], {})
    assert total.tolist() == [5.0, 7.0, 7.0] and each["a"].isnan().tolist() == [True, False, True]
    with pytest.raises(ArgumentError, match="f all say None of completion 2, 'yyy', after the prompt 'a'"):
        of(lambda prompts, completions: [1.0, None])

    table, calls = random_table(1), []

    def seldom(prompts, completions):
        calls.append(len(completions))
        return [4.0 if len(calls) == 1 else None] + [None] * (len(completions) - 1)

    rewards = {"zero": lambda completions, **_: [0.0] * len(completions), "seldom": seldom}
    trainer = make_trainer(table, [random_table(2)], mr.ReverseKL(), steps=2, rewards=rewards, args={"log_every": 2})
    (line,) = trainer.train()
    assert line["rewards/seldom/mean"] == 4.0 and line["rewards/zero/mean"] == 0.0


def test_what_a_function_does_to_its_lists_no_other_sees():
    """One that sorts, empties and rewrites in place, beside one that looks."""
    seen = []

    def rude(prompts, completions, answer):
        completions[0][0]["content"] = "x"
        prompts.clear(), completions.reverse(), answer.clear()
        return [0.0, 0.0]

    def look(prompts, completions, answer):
        seen.append((prompts, completions, answer))
        return [1.0, 2.0]

    said = [({"role": "assistant", "content": text},) for text in "ab"]
    total, _ = total_reward(as_rewards([rude, look]), ["p", "q"], said, {"answer": [1, 2]})
    assert total.tolist() == [1, 2] and seen == [(["p", "q"], said, [1, 2])] and said[0][0]["content"] == "a"


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "0.5", True])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(ArgumentError, match="weight: found"):
        Reward(lambda **_: [], "r", weight)


def test_async_functions_are_awaited_together():
    """Each waits until the other has begun: one after the other they would wait for ever."""
    begun = {}

    def asking(name, other):
        async def ask(prompts, completions):
            begun.setdefault(name, asyncio.Event()).set()
            await asyncio.wait_for(begun.setdefault(other, asyncio.Event()).wait(), 10)
            return [1.0] * len(completions)

        return ask

    rewards = as_rewards({"a": asking("a", "b"), "b": asking("b", "a"), "c": lambda completions, prompts: [1, 2]})
    assert total_reward(rewards, ["p", "q"], ["x", "y"], {})[0].tolist() == [3.0, 4.0]

    async def within():
        begun.clear()
        return total_reward(rewards, ["p", "q"], ["x", "y"], {})[0].tolist()

    assert asyncio.run(within()) == [3.0, 4.0]  # where a loop runs already

    async def fails(prompts, completions):
        raise KeyError("answer")

    with pytest.raises(ArgumentError, match="The reward 'f' raised KeyError: 'answer'"):
        of(fails)


def test_a_generator_that_breaks_off_is_named():
    def numbers(prompts, completions):
        yield 1.0
        raise KeyError("gone")

    with pytest.raises(ArgumentError, match="The reward 'f' raised KeyError: 'gone'"):
        of(numbers)
