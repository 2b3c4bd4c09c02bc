"""The one sampler: completions drawn token by token, with the log-probabilities under which they were drawn.

    y_t ~ q(· | x, y_<t),   q = softmax(logits / temperature), cut by top_k and then top_p

Nothing but `Generation` bends q: a model's `generation_config` (min_p, repetition_penalty, suppress_tokens, …) has no effect,
except that its end tokens end a completion too. A model's first draws are checked against its plain logits (`draws`), and
later ones that are longer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import StaticCache

from multiref.errors import ArgumentError, ModelError
from multiref.models.architecture import cache_argument, cache_of, check_rows, evaluating, run, takes, unwrapped, without_extras
from multiref.models.draws import COARSE, ROUNDING, bend, check_draws, check_numbers, draw_one
from multiref.models.encoding import Encoded, Ids, as_tokenizer, context_of, encode_many
from multiref.models.spec import TOKENISATION, Generation, Tokenisation
from multiref.models.witness import largest_gap

__all__ = ["Generation", "Reader", "Rollout", "as_rollouts", "decode_behind", "draw", "encode_prompts", "end_ids", "sample"]

_kept: WeakSet[nn.Module] = WeakSet()  # models whose cache was right behind rows that were re-ordered
_lost: WeakSet[nn.Module] = WeakSet()  # those whose cache goes wrong
_used: WeakSet[nn.Module] = WeakSet()  # those that have gone on from one
_log = logging.getLogger("multiref")
_apart: WeakSet[nn.Module] = WeakSet()  # those that padding on the left changes
_checked: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # those whose draws were looked at → the longest row by then
SELDOM = 8  # on an accelerator every question (has all ended? resample?) waits for it: asked every so many tokens
Logps = tuple[float, ...]


@dataclass(frozen=True)
class Rollout:
    """A prompt and completions of it, as text and as the policy's token ids (end token included where the completion ended).

    sampled_logps: each completion's token log-probabilities under the distribution that it was drawn from; None:
    not known, or that of the policy as it is.
    """

    prompt: Any
    completions: tuple[Any, ...]
    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]
    ended: tuple[bool, ...]
    sampled_logps: tuple[tuple[float, ...], ...] | None = None

    def encoded(self) -> Encoded:
        """The ids, as models score them."""
        return Encoded(self.prompt_ids, self.completion_ids, (False,) * len(self.completion_ids))


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Any],
    generation: Generation,
    *,
    group: int = 1,
    generator: torch.Generator,
    tokenisation: Tokenisation = TOKENISATION,
    ends: Ids | None = None,
) -> list[Rollout]:
    """`group` completions of each prompt, in evaluation mode and without gradients; the same generator's state gives the same
    completions.

    Args:
        prompts: strings or tuples of chat messages, as `encode` has them.
        generator: on the model's device, or on the CPU, from which one for the device is then seeded by one draw.
        ends: token ids that end a completion; None: the tokenizer's and the model's own.

    Errors: ArgumentError where prompt and completion may not fit the model's context.
    """
    tokenizer = as_tokenizer(tokenizer)
    contexts, ends = encode_prompts(tokenizer, prompts, tokenisation), end_ids(model, tokenizer) if ends is None else ends
    check_policy_context(model, contexts, generation.max_new_tokens)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    rows = draw(model, contexts, generation, group=group, ends=ends, pad=pad, generator=generator)
    return as_rollouts(tokenizer, prompts, contexts, rows, ends)


def check_policy_context(model: Any, contexts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """ArgumentError where the policy's context cannot hold the longest prompt (token ids) and completion."""
    limit = context_of(unwrapped(model).config)
    longest = max(map(len, contexts), default=0) + new_tokens
    if limit is not None and limit < longest:
        raise ArgumentError(
            f"max_new_tokens: the policy holds {limit} tokens, the longest prompt and completion may have {longest}. Shorten "
            "one of them."
        )


def as_rollouts(
    tokenizer: Any, prompts: Sequence[Any], contexts: Sequence[Ids], rows: Sequence[tuple[Ids, Logps]], ends: Ids
) -> list[Rollout]:
    """What `draw` gave as rollouts: the completions' texts, those of a conversation as messages of the assistant."""
    group = len(rows) // max(len(prompts), 1)
    texts = decode_behind(tokenizer, contexts, [ids for ids, _ in rows], group)
    rollouts = []
    for i, (prompt, context) in enumerate(zip(prompts, contexts)):
        part = slice(i * group, (i + 1) * group)
        said = tuple(text if isinstance(prompt, str) else ({"role": "assistant", "content": text},) for text in texts[part])
        ids, logps = zip(*rows[part])
        rollouts.append(Rollout(prompt, said, context, ids, tuple(row[-1] in ends for row in ids), logps))
    return rollouts


def encode_prompts(tokenizer: Any, prompts: Sequence[Any], tokenisation: Tokenisation = TOKENISATION) -> list[Ids]:
    """The context of each prompt: start token first, conversations through the template with the turn of the assistant
    opened."""
    encoded = encode_many(tokenizer, [(prompt, ()) for prompt in prompts], replace(tokenisation, end=False))
    return [each.prompt_ids for each in encoded]


def end_ids(model: Any, tokenizer: Any) -> Ids:
    """What ends a completion: the tokenizer's end token, and every other that the model's generation settings name."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(dict.fromkeys(own + declared))


def decode_behind(tokenizer: Any, contexts: Sequence[Ids], rows: Sequence[Ids], group: int) -> list[str]:
    """What each completion adds to its prompt's text: decoded behind the prompt, for tokenizers that drop a leading space; and
    as it was drawn, whatever the tokenizer's own settings would tidy up."""
    if not rows:
        return []  # of nothing transformers decodes one empty text
    joined = [[*contexts[i // group], *row] for i, row in enumerate(rows)]
    before, joint, alone = (
        tokenizer.batch_decode([list(ids) for ids in each], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for each in (contexts, joined, rows)
    )
    return [
        text[len(before[i // group]) :] if text.startswith(before[i // group]) else alone[i] for i, text in enumerate(joint)
    ]


@torch.no_grad()
def draw(
    model: nn.Module,
    contexts: Sequence[Ids],
    generation: Generation,
    *,
    group: int = 1,
    ends: Sequence[int],
    pad: int = 0,
    generator: torch.Generator,
) -> list[tuple[Ids, Logps]]:
    """(token ids, their log-probabilities under q) of `group` completions of each context, in the order of the contexts.

    Where the model's draws are not of its plain logits, they are drawn anew: prompts of one length at a time, then without its
    cache. Errors: ModelError where they are not then, either.

    Args:
        ends: token ids that end a completion, which keeps the one that ended it.
        pad: token id that fills rows; it has no effect on what is drawn.
    """
    if generation.min_new_tokens and not ends:
        raise ArgumentError(f"min_new_tokens is {generation.min_new_tokens}, and nothing ends a completion; leave it out.")
    greedy = generation.temperature == 0
    options = (generation, 1 if greedy else group, ends, pad, generator)
    start = generator.get_state()
    rows = _read_all(model, contexts, *options)
    each = max(1, len(rows) // max(1, len(contexts)))
    longest = max((len(contexts[i // each]) + len(ids) for i, (ids, _) in enumerate(rows)), default=0)
    if rows and not greedy and longest > _checked.get(model, 0):
        by_chance = model not in _checked
        tried: list[WeakSet[nn.Module]] = []
        while True:
            try:
                check_draws(model, contexts, rows, generation, ends=ends, by_chance=by_chance)
                break
            except ModelError:  # is it the padding, or the cache?
                several = len({len(context) for context in contexts}) > 1
                ways = [way for way, may in ((_apart, several), (_lost, generation.cache is None)) if may and model not in way]
                if not ways:
                    for way in tried:
                        way.discard(model)
                    raise
                ways[0].add(model)
                tried.append(ways[0])
                generator.set_state(start)
                rows = _read_all(model, contexts, *options)
        if _lost in tried:
            _log.warning("%s: its cache goes wrong; each token is drawn by a pass over the whole row.", type(model).__name__)
        _checked[model] = longest
    return [row for row in rows for _ in range(group)] if greedy else rows


def _read_all(
    model: nn.Module,
    contexts: Sequence[Ids],
    generation: Generation,
    each: int,
    ends: Sequence[int],
    pad: int,
    generator: torch.Generator,
) -> list[tuple[Ids, Logps]]:
    """Side by side, as many as `generation.batch` allows; contexts of one length at a time where padding goes wrong."""
    step = max(1, (generation.batch or each * len(contexts)) // each)
    lengths = sorted({len(context) for context in contexts}) if model in _apart else [None]
    rows: list[list[tuple[Ids, Logps]]] = [[] for _ in contexts]
    with evaluating(model):
        for length in lengths:
            places = [i for i, context in enumerate(contexts) if length in (None, len(context))]
            for start in range(0, len(places), step):
                some = places[start : start + step]
                reader = Reader(model, [contexts[i] for i in some], each, generation, pad)
                drawn = _draw(reader, generation, ends, pad, _on(generator, reader.device))
                for place, first in zip(some, range(0, len(drawn), each)):
                    rows[place] = drawn[first : first + each]
    return [row for group in rows for row in group]


def _draw(
    reader: "Reader", generation: Generation, ends: Sequence[int], pad: int, generator: torch.Generator
) -> list[tuple[Ids, Logps]]:
    """Token by token, until all rows have ended. An accelerator is asked whether they have at every eighth token; the generator
    is then left where it was behind the last one that was needed."""
    logits = reader.read_prompts()
    end = torch.tensor(list(ends), device=logits.device, dtype=torch.long)
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    drawn: list[Tensor] = []
    logps: list[Tensor] = []
    over: list[Tensor] = []  # since it was last asked: whether all had ended
    states: list[Tensor] = []  # and of the generator
    for t in range(generation.max_new_tokens):
        logits = reader.read(drawn[-1]) if t else logits
        probabilities = bend(logits.float(), generation, end, t).softmax(-1)
        token = probabilities.argmax(-1, keepdim=True) if generation.temperature == 0 else draw_one(probabilities, generator)
        logps.append((probabilities.gather(-1, token).log() + 0 * logits.gather(-1, token))[:, 0])  # what is NaN stays it
        drawn.append(token[:, 0].masked_fill(done, pad))
        done = done | torch.isin(drawn[-1], end)
        over.append(done.all())
        states.append(generator.get_state())
        if t % reader.patience == reader.patience - 1 or t == generation.max_new_tokens - 1:
            if any(ended := torch.stack(over).tolist()):
                generator.set_state(states[ended.index(True)])
                break
            over, states = [], []
    said = torch.stack(logps, 1)
    check_numbers(said)
    rows = zip(torch.stack(drawn, 1).tolist(), said.tolist())
    return [(tuple(ids[:stop]), tuple(row[:stop])) for ids, row in rows for stop in [_length(ids, set(ends))]]


class Reader:
    """What was drawn so far, for a model: prompts padded on the left, a cache where the model has one, next-token logits [B,
    V]. ModelError for a token that the model has not, by which an accelerator would be lost for good."""

    def __init__(self, model: nn.Module, contexts: Sequence[Ids], group: int, generation: Generation, pad: int) -> None:
        check_rows(model, [Encoded(context, (), ()) for context in contexts])
        self.model, self.group = model, group
        self.device = next(model.parameters()).device
        self.patience = 1 if self.device.type == "cpu" else SELDOM
        inner: Any = unwrapped(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self.takes = takes(model)
        self.caching = generation.cache is not None or (bool(getattr(inner.config, "use_cache", True)) and model not in _lost)
        width, room = max(map(len, contexts)), generation.max_new_tokens
        padded = [(width - len(context), context) for context in contexts]
        self.ids = torch.tensor([[pad] * left + list(context) for left, context in padded], device=self.device)
        self.mask: Tensor | None = None
        if any(left for left, _ in padded):  # with room for what is drawn, where causal attention does not look yet
            mask = [[0] * left + [1] * (len(context) + room) for left, context in padded]
            self.mask = torch.tensor(mask, device=self.device)
        self.static = generation.cache == "static"
        self.cache: Any = None
        self._doubted = False  # whether rows were re-ordered, for the first time, and nothing was read since
        if self.static:
            self.cache = StaticCache(config=inner.config.get_text_config(), max_cache_len=width + room)

    def read_prompts(self) -> Tensor:
        """A prompt is read once, and its cache repeated for the completions of its group; each copy where that cannot be."""
        if self.static or not self.caching or self.group == 1:
            self._repeat()
            return self._forward(self.ids)
        logits = self._forward(self.ids)
        copies = torch.arange(len(self.ids), device=self.device).repeat_interleave(self.group)
        self._repeat()
        try:
            if "batch_repeat_interleave" in vars(type(self.cache)):  # a cache of the model's own
                self.cache.batch_repeat_interleave(self.group)
            else:  # which beams need too: recurrent and compressed states follow only there
                self.cache.reorder_cache(copies)
        except (AttributeError, IndexError, NotImplementedError):
            self.cache = None
            return self._forward(self.ids)
        return logits[copies]

    def read(self, tokens: Tensor) -> Tensor:
        """The logits after one more token of each row."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        if self.mask is not None and self.mask.shape[1] < self.ids.shape[1]:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        logits = self._forward(self.ids[:, -1:] if self.cache is not None else self.ids)
        if self._doubted and self.cache is not None:
            held, self.cache, self.caching, self._doubted = self.cache, None, False, False
            again = self._forward(self.ids)
            most = (ROUNDING if logits.dtype in (torch.float32, torch.float64) else COARSE)[0]
            if not largest_gap(*(each.detach().float().log_softmax(-1) for each in (logits, again))) <= most:
                _lost.add(self.model)
                return again
            self.cache, self.caching = held, True
            _kept.add(self.model)
        return logits

    def keep(self, rows: Tensor) -> None:
        """These rows go on, in this order; one may go on more than once. A cache that cannot be re-ordered is given up; so is
        one that goes wrong by it, as the first step behind shows."""
        before, self.ids = self.ids, self.ids[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        if self.cache is None:
            return
        if hasattr(self.cache, "reorder_cache"):
            self.cache.reorder_cache(rows)
            self._doubted |= self.model not in _kept and not torch.equal(before, self.ids)
        else:
            self.cache, self.caching = None, False

    def _repeat(self) -> None:
        self.ids = self.ids.repeat_interleave(self.group, 0)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(self.group, 0)

    def _forward(self, ids: Tensor) -> Tensor:
        """The last logits; of whole rows where the model cannot use what its cache holds. Memory that is full says nothing of
        that, nor does what happens once it was used, or happens to whole rows as well."""
        try:
            return self._pass(ids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the model's own code meets there
            if self.static or not self.caching or self.model in _used:
                raise
            self.cache, self.caching = None, False
            logits = self._pass(self.ids)
            _log.warning("%s cannot use its cache (%s); it reads whole rows.", type(self.model).__name__, f"{error!s:.80}")
            _lost.add(self.model)
            return logits

    def _pass(self, ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": self.caching, **cache_argument(self.takes, self.cache)}
        if self.mask is not None:
            seen = self.ids.shape[1]
            inputs["attention_mask"] = self.mask if self.static else self.mask[:, :seen]
            if "position_ids" in self.takes:
                inputs["position_ids"] = (self.mask[:, :seen].cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self.takes:
            inputs["logits_to_keep"] = 1
        inputs |= without_extras(self.takes)
        out = run(self.model, **inputs)
        if self.cache is not None:
            _used.add(self.model)
        self.cache = cache_of(out) if self.caching else None
        for layer in getattr(self.cache, "layers", ()) if self.mask is not None else ():
            if getattr(type(layer), "is_compileable", None) is False:  # else transformers looks at the mask, and waits for it
                layer.is_compileable = True
        logits: Tensor = out.logits[:, -1]
        return logits


def _on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator, or one on this device that is seeded from it."""
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def _length(ids: list[int], ends: set[int]) -> int:
    """Up to the first end token, that included; what stands after it is padding."""
    return next((place + 1 for place, index in enumerate(ids) if index in ends), len(ids))
