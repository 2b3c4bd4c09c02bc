"""Draws of the optimum as what is served."""

import math
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch

from multiref.decoding import Budget, sample
from multiref.decoding.draws import chooser
from multiref.decoding.rewarding import Rewarding
from multiref.errors import ArgumentError, MultirefError
from multiref.models.sampling import encode_prompts
from multiref.references.collection import References
from multiref.regularizers import Regularizer
from multiref.serving.asked import Asked, BadRequest
from multiref.serving.served import Answer, Finished, Piece, Stopped, mistakes


class Optimum:
    """Draws of π* ∝ P_0 e^{r/β} by `multiref.decoding.sample`: a request is one call of it, answered once it is drawn.

    One call at a time. `max_tokens` belongs to what is drawn: a completion that has not ended by then is an outcome of its own.
    The n choices of a request are picks by weight from the same draws.

    Args:
        options: of `sample`: method, n, islands, reward_max, … most: tokens that an answer may have.
    """

    def __init__(
        self,
        refs: References,
        regularizer: Regularizer,
        reward: Callable[..., Any] | None = None,
        beta: float | None = None,
        *,
        most: int = 256,
        **options: Any,
    ) -> None:
        self.refs = References({name: refs.open(name) for name in refs.names})
        guarded = None if reward is None else partial(_rewarded, Rewarding(reward, options.get("reward_max")))
        self.asked, self.most, self.options = (regularizer, guarded, beta), most, options
        self._turn = threading.Lock()
        self.about = "draws of the optimum" if reward is not None else "draws of the escort, the optimum without a reward"

    def __enter__(self) -> Self:
        local = self.refs.local()
        self.tokenizer = local[0].tokenizer
        self.models = []
        for each in local:
            with each.loaded() as model:
                self.models.append(model)
        try:  # what cannot work is said now: a draw that may cost nothing is refused for its price alone
            sample(["a"], self.refs, *self.asked, **{**self.options, "max_new_tokens": 1, "budget": Budget(tokens=0)})
        except ArgumentError as error:
            if not str(error).startswith("budget"):
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: the models are free with the references."""

    def answer(self, asked: Asked, stop: threading.Event) -> Answer:
        """Every prompt drawn, then its choices."""
        for name, refused in (("temperature", asked.temperature != 1), ("top_p", asked.top_p != 1), ("top_k", asked.top_k > 0)):
            if refused:
                raise BadRequest(f"{name}: the optimum is drawn as it is, at temperature 1 and uncut. Leave it out.", name)
        if asked.echo or asked.top is not None:
            raise BadRequest(
                "echo, logprobs: the optimum has a probability of whole completions, not of tokens. "
                "Leave them out; a server with --method token has them.",
                "echo" if asked.echo else "logprobs",
            )
        if any(isinstance(prompt, tuple) and isinstance(prompt[0], int) for prompt in asked.prompts):
            raise BadRequest("prompt: the optimum is drawn for text, not for token ids. Send a string.", "prompt")
        new = asked.length(self.most, self.most)
        seed = secrets.randbits(31) if asked.seed is None else asked.seed % 2**31
        pieces: list[Piece] = []
        notes, read, written = [], 0, 0
        for place, prompt in enumerate(asked.prompts):
            with self._turn, stopping(self.models, stop):
                (context,) = encode_prompts(self.tokenizer, [prompt])
                given = {"max_new_tokens": new, "min_new_tokens": asked.min_tokens, "seed": seed + 7_919 * place}
                with mistakes():
                    (found,) = draws = sample([prompt], self.refs, *self.asked, **{**self.options, **given})
            read += len(context)
            chosen = torch.multinomial(found.weights, asked.n, True, generator=chooser(seed + place)).tolist()
            for number, i in enumerate(chosen):
                said = found.completions[i] if isinstance(prompt, str) else found.completions[i][0]["content"]
                cut = min((at for at in map(said.find, asked.stops) if at >= 0), default=None)
                finish = "stop" if found.ended[i] or cut is not None else "length"
                pieces.append(Piece(place * asked.n + number, said if cut is None else said[:cut], (), finish))
                written += len(found.ids[i])
            notes.append(
                {
                    "log_partition": _number(found.log_partition),
                    "error": _number(found.error),
                    "largest_share": found.largest_share,
                    "effective_size": found.effective_size,
                }
            )
        yield from pieces
        yield Finished(read, written, {"method": draws.method, "approximate": draws.approximate or None, "prompts": notes})


def _rewarded(ask: Rewarding, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """What a reward says. Where it raises, or says what is no reward, that is not the fault of who asks."""
    with mistakes(MultirefError):
        found: list[float] = ask(prompts[0], completions).tolist()
    return found


@contextmanager
def stopping(models: list[Any], stop: threading.Event) -> Iterator[None]:
    """Within it the next forward pass of these models raises `Stopped` once `stop` is set, whatever it is a part of."""

    def look(*_: object) -> None:
        if stop.is_set():
            raise Stopped

    with ExitStack() as hooks:
        for model in models:
            hooks.callback(model.register_forward_pre_hook(look).remove)
        yield


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
