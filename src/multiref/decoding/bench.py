"""The references of a call, opened: the models that are walked on, and what each is asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multiref.decoding.request import METHODS, Request, flat_weights
from multiref.decoding.rewarding import Rewarding
from multiref.errors import ArgumentError, VocabularyMismatch
from multiref.models.sampling import decode_behind, end_ids
from multiref.references.collection import References
from multiref.references.local import LocalReference, local_reference
from multiref.references.rollouts import RolloutScorer

Ids = tuple[int, ...]


@dataclass
class Bench:
    """The references, opened: the models that are walked on, and what they are asked."""

    request: Request
    scorer: RolloutScorer
    tokenizer: Any
    models: list[Any]
    weights: Tensor
    component: Tensor
    ends: Ids
    rewarding: Rewarding
    tokens: int = 0

    @property
    def foreign(self) -> bool:
        """Whether some reference has another vocabulary than the rest, or is no local model."""
        return not all(self.scorer.aligned.values())

    def generator(self, seed: int) -> torch.Generator:
        """On the models' device."""
        return torch.Generator(next(self.models[0].parameters()).device).manual_seed(seed)

    @property
    def proposer(self) -> int:
        """The place among the references of the one that is proposed from, where they have other vocabularies."""
        return self.scorer.names.index(self.request.proposal)

    def texts(self, context: Ids, rows: Sequence[Ids], prompt: Any) -> list[Any]:
        """What the ids say behind the prompt, as it is written: text, or one message of the assistant."""
        once = list(dict.fromkeys(rows))
        found = dict(zip(once, decode_behind(self.tokenizer, [context], once, len(once)) if once else []))
        return [found[row] if isinstance(prompt, str) else ({"role": "assistant", "content": found[row]},) for row in rows]


@contextmanager
def opened(refs: Any, request: Request, free: bool) -> Iterator[Bench]:
    """The references that have weight (and the one that is proposed from). free: no proposal was named."""
    collection = refs if isinstance(refs, References) else References(refs)
    weighed = zip(collection.names, flat_weights(request.regularizer.weights, len(collection.names)).tolist())
    given = {name: w for name, w in weighed if w > 0 or name == request.proposal}  # a weight of zero is an absent reference
    refs = References({name: collection.open(name) for name in given})
    request = replace(request, regularizer=request.regularizer.with_weights(tuple(given.values())))
    tokenizer, weights = refs.local()[0].tokenizer, flat_weights(request.regularizer.weights, len(given))
    probe = RolloutScorer(refs, tokenizer)
    foreign = [name for name in probe.names if not probe.aligned[name]]
    if foreign:
        local = next(name for name in probe.names if isinstance(probe.opened[name], LocalReference))
        if request.method == "importance" and free:
            request = replace(request, proposal=local)
        if request.proposal in METHODS["importance"] or None not in METHODS[request.method]:
            raise VocabularyMismatch(
                f"References {local!r} and {foreign[0]!r} have different vocabularies (or one is no local model), and method "
                f"{request.method!r} with proposal {request.proposal!r} pools them token by token. Use method='importance' "
                f"or 'smc' with proposal={local!r}: its completions are then scored as text."
            )
    elif request.method == "smc" and request.proposal in probe.names and request.proposal not in METHODS["smc"]:
        raise ArgumentError(
            f"proposal: {request.proposal!r} with method 'smc' is for references of other vocabularies; these have one. Leave "
            "it out, or use method='importance'."
        )
    component, rewarding = request.component(probe.names, weights), Rewarding(request.reward, request.reward_max)
    if not foreign:
        with probe.models() as models:
            pooled = [each for each in zip(models, probe.opened.items(), weights.tolist()) if each[-1] > 0]
            ends = [end for model, each, _ in pooled for end in end_ids(model, local_reference(*each).tokenizer)]
            yield Bench(request, probe, tokenizer, models, weights, component, tuple(dict.fromkeys(ends)), rewarding)
        return
    proposer = local_reference(request.proposal, probe.opened[request.proposal])
    scorer = RolloutScorer(refs, proposer.tokenizer)
    with proposer.loaded() as model:
        own = end_ids(model, proposer.tokenizer)
        yield Bench(request, scorer, proposer.tokenizer, [model], weights, torch.ones(1).double(), own, rewarding)
