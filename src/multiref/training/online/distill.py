"""Distillation from K weighted teachers: where the states come from that the student is corrected at,
and how far it is from the floor.

With reward zero the regularizer is the whole objective: Σ_k w_k KL(π‖π_k), per prompt its own weights.
Its floor is −log F, the teachers' disagreement; a student at the floor is the normalised geometric pool of the teachers,
or the teacher itself where a prompt is routed to one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from multiref.errors import ArgumentError
from multiref.models import Generation, Rollout, Tokenisation, encode_many
from multiref.training.checks import digest_of
from multiref.training.online.batch import sample
from multiref.training.online.penalties import PerTokenForwardKL, PerTokenReverseKL
from multiref.training.online.penalty import Penalty


class TextStates:
    """A sampler for penalties that look at states one by one: for a share of the prompts the states along a given text,
    for the rest those that the student visits.

    At states of a text the student's own mistakes do not compound, so a student far from its teachers learns there first;
    states of its own are what it will be used at (Agarwal et al., 2024, GKD).
    With one fixed share the fixed point, for a class that contains it, is the same: every state's pool.

    Args:
        texts: {prompt: text that follows it, or several, of which one is drawn}; prompts without one are sampled, and
            conversations are.
        share: of the prompts, from 0 (all on-policy) to 1.
        max_new_tokens: where either kind is cut.
        end: whether a text ends in the end token; but for those of the prompts in `unfinished`,
            which are stretches of longer ones.
    """

    def __init__(
        self,
        texts: Mapping[Any, str | Sequence[str]],
        *,
        share: float,
        max_new_tokens: int,
        end: bool = True,
        unfinished: Collection[Any] = (),
    ) -> None:
        if not 0 <= share <= 1:
            raise ArgumentError(f"share: expected a number from 0 to 1, found {share}.")
        self.texts = {prompt: (text,) if isinstance(text, str) else tuple(text) for prompt, text in texts.items()}
        self.share, self.max_new_tokens, self.end, self.unfinished = share, max_new_tokens, end, frozenset(unfinished)
        self._generation = Generation(max_new_tokens)

    def __repr__(self) -> str:
        """By which a resumed run is compared: the texts by their digest."""
        texts = digest_of([*sorted(map(repr, self.texts.items())), *sorted(map(repr, self.unfinished))])
        return f"TextStates({texts}, share={self.share}, max_new_tokens={self.max_new_tokens}, end={self.end})"

    def check(self, penalty: Penalty, rewards: Sequence[Any]) -> None:
        """ArgumentError for a rule that takes these completions for samples of the policy."""
        if self.share and (rewards or not isinstance(penalty, PerTokenReverseKL | PerTokenForwardKL)):
            raise ArgumentError(
                f"sampler: found TextStates with {type(penalty).__name__} and {len(rewards)} rewards; completions that the "
                "policy did not sample are for per_token_reverse_kl or per_token_forward_kl, without a reward. Others would be "
                "biased."
            )

    def __call__(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        given = [isinstance(prompt, str) and prompt in self.texts and float(torch.rand(())) < self.share for prompt in prompts]
        mine = [prompt for prompt, text in zip(prompts, given) if not text]
        sampled = iter(sample(model, tokenizer, mine, self._generation, group=1) if mine else [])
        return [self._of_text(tokenizer, prompt) if text else next(sampled) for prompt, text in zip(prompts, given)]

    def _of_text(self, tokenizer: Any, prompt: Any) -> Rollout:
        texts, end = self.texts[prompt], self.end and prompt not in self.unfinished
        text = texts[int(torch.randint(len(texts), ()))] if len(texts) > 1 else texts[0]
        (encoded,) = encode_many(tokenizer, [(prompt, (text,))], Tokenisation(end=end))
        ids = encoded.completions[0][: self.max_new_tokens]
        return Rollout(prompt, (text,), encoded.prompt_ids, (ids,), (len(ids) == len(encoded.completions[0]) and end,))
