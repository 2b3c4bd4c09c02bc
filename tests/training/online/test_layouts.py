"""Online training lays rows out as an audit of them finds right: the policy's tokens, and sums over the vocabulary."""

import pytest
import torch

import multiref as mr
from multiref.models import LanguageModel, audit
from multiref.models.sampling import Rollout
from multiref.references.rollouts import RolloutScorer
from multiref.training.online import GRPO, OnlineArguments, OnlineTrainer, Rule
from multiref.training.online.batch import policy_tokens, rows_to_come
from multiref.training.online.vocabulary import vocabulary_terms
from tests.conftest import make_llama, make_tokenizer
from tests.models.naive import naive_token_logps
from tests.models.test_audit import Entered, NoMask, neighbour, of, rows_of
from tests.models.test_logps import VOCABULARY


@pytest.mark.parametrize("model", [of(NoMask), of(Entered, neighbour(30, 1))], ids=["ignores masks", "sees its neighbour"])
def test_a_model_that_cannot_share_or_batch_still_says_what_it_says_alone(model):
    batch = rows_of(40, 50, prompt=20)
    exact = torch.cat([naive_token_logps(model, item.prompt_ids, ids) for item in batch for ids in item.completions])
    rollouts = [Rollout("", ("",) * 2, item.prompt_ids, item.completions, (True,) * 2) for item in batch]
    tokens, mask = policy_tokens(model, rollouts)
    assert torch.allclose(tokens[mask].double(), exact, atol=1e-4)
    other = make_llama(VOCABULARY, seed=1)
    logps, divergence, apart = vocabulary_terms(model, [other, model], batch, [0.0, 1.0], logits_budget=500)
    assert torch.allclose(logps.double(), exact, atol=1e-4)
    assert divergence.abs().max() < 1e-5 and apart.abs().max() < 1e-5  # the only reference with weight is the policy


@pytest.mark.filterwarnings("ignore:Every completion of the first step")
def test_policy_and_references_are_audited_once_for_all_prompts(monkeypatch):
    """On rows as long and as short as the job can have, before its first update: later batches cost nothing more."""
    made = []
    run = audit._Auditor.run
    monkeypatch.setattr(audit._Auditor, "run", lambda self, scores: made.append(self.model) or run(self, scores))
    tokenizer = make_tokenizer()
    policy, other = (make_llama(len(tokenizer), seed=seed, std=0.1) for seed in (0, 1))
    trainer = OnlineTrainer(
        LanguageModel(policy, tokenizer, "policy"),
        mr.ReverseKL(),
        beta=0.1,
        references={"other": LanguageModel(other, tokenizer, "other")},
        prompts=["the cat", "a dog sat on", "Once upon a time there was a little dog", "two"],
        rewards=lambda prompts, completions: [float(len(text)) for text in completions],
        rule=Rule(GRPO(group=3)),
        args=OnlineArguments(steps=4, prompts_per_step=1, max_new_tokens=6, learning_rate=1e-3),
    )
    trainer.train()
    assert made == [other, trainer.model]


def test_long_rows_do_not_hide_that_shorter_ones_stand_side_by_side(monkeypatch):
    """A group at its longest has a pass of its own, so that nothing was tried beside another: every first batch of shorter
    completions, and each with a longer one beside another, was an audit more."""
    made = []
    run = audit._Auditor.run
    monkeypatch.setattr(audit._Auditor, "run", lambda self, scores: made.append(self.model) or run(self, scores))
    tokenizer = make_tokenizer()
    scorer = RolloutScorer({"other": LanguageModel(make_llama(len(tokenizer)), tokenizer, "other")}, tokenizer)
    scorer.opened["other"]._token_budget = 64

    def drawn(context, *lengths):
        texts, ids = ("",) * len(lengths), tuple(tuple(range(5, 5 + n)) for n in lengths)
        return Rollout("", texts, context, ids, (True,) * len(lengths))

    contexts = [(1, 2, 3, 4), (5, 6)]
    scorer.audit(rows_to_come(contexts, [drawn(contexts[0], 7, 2, 24)], 24))
    for lengths in ((3, 5, 2), (24, 24, 24), (1, 1, 9), (12, 11, 14), (14, 2, 10)):
        scorer.tokens([drawn(context, *lengths) for context in contexts])
    assert len(made) == 1
