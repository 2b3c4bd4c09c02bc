"""Arguments of the policy's template for a whole run: every prompt is asked with them, whoever samples, a row's own come first,
and what scores texts elsewhere does not get them."""

import pytest
import torch

from multiref.data import Conversation
from multiref.errors import ArgumentError
from multiref.models import LanguageModel
from multiref.models.sampling import sample
from multiref.regularizers import ReverseKL
from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer, Rule
from multiref.training.online.evaluate import sample_few
from tests.conftest import make_llama
from tests.models.templates import QWEN, byte_tokenizer

ASK = ({"role": "user", "content": "a"},)
pytestmark = pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
OWN = Conversation(ASK, chat_template_kwargs={"enable_thinking": True})
EMPTY = "<think>\n\n</think>\n\n"  # what the template writes where nothing is to be thought
TOKENIZER = byte_tokenizer(QWEN)


def trainer(prompts=(ASK, OWN), sampler=None, seen=None, **options):
    def reward(prompts, completions, **_):
        seen is not None and seen.extend(prompts)
        return [float(len(c[0]["content"])) for c in completions]

    model = LanguageModel(make_llama(len(TOKENIZER), context=128), TOKENIZER, "policy")
    other = LanguageModel(make_llama(len(TOKENIZER), context=128, seed=1), TOKENIZER, "other")
    args = OnlineArguments(steps=1, prompts_per_step=2, max_new_tokens=3, **options)
    return OnlineTrainer(model, ReverseKL(), beta=0.1, references={"other": other}, prompts=list(prompts), args=args,
                         rewards=reward, rule=Rule(RLOO(group=2), sampler=sampler))  # fmt: skip


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own sampler", "another"])
def test_every_prompt_is_asked_with_them(elsewhere):
    seen, drawn = [], []

    def sampler(model, tokenizer, prompts):
        return sample(model, tokenizer, prompts, made.args.generation, group=2, generator=torch.default_generator)

    made = trainer(sampler=sampler if elsewhere else None, seen=seen, chat_template_kwargs={"enable_thinking": False})
    batch = made._batch([0, 1], made.sampler, warming=False)
    drawn = [TOKENIZER.decode(rollout.prompt_ids) for rollout in batch.rollouts]
    assert drawn[0].endswith(EMPTY) and not drawn[1].endswith(EMPTY)
    assert seen == [ASK, ASK, OWN, OWN] and [rollout.prompt for rollout in batch.rollouts] == [ASK, OWN]
    assert [TOKENIZER.decode(r.prompt_ids).endswith(EMPTY) for r in sample_few(made, made.rows)] == [True, False]
    plain = trainer()
    assert not TOKENIZER.decode(plain._batch([0, 1], plain.sampler, warming=False).rollouts[0].prompt_ids).endswith(EMPTY)


def test_the_longest_prompt_is_as_it_is_asked():
    trainer([ASK * 11])
    with pytest.raises(ArgumentError, match="the longest prompt"):
        trainer([ASK * 11], chat_template_kwargs={"enable_thinking": False})


def test_arguments_that_no_prompt_goes_through_are_refused():
    with pytest.raises(ArgumentError, match="every prompt is a text, which no template writes"):
        trainer(["a", "b"], chat_template_kwargs={"enable_thinking": False})
