"""The per-token pool as a stream of text: each piece as soon as it is drawn."""

from collections.abc import Iterator
from typing import Any

import torch

from multiref.decoding.bench import opened
from multiref.decoding.request import Budget, Request
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.sampling import decode_behind, encode_prompts
from multiref.models.spec import Generation
from multiref.regularizers import Regularizer


def stream_tokens(
    prompt: Any, refs: Any, regularizer: Regularizer, max_new_tokens: int, *, min_new_tokens: int = 0, seed: int = 0
) -> Iterator[str]:
    """One completion of the per-token pool, piece by piece; a piece that is half a character waits for the rest.

    A reader that stops ends it within one token. Approximate: not a draw of the escort (docs/decoding.md).
    """
    generation = Generation(max_new_tokens, min_new_tokens=min_new_tokens)
    request = Request(regularizer, None, 1.0, "token", "pool", 1, 1, generation, False, None, Budget(), seed)
    with opened(refs, request, True) as bench:
        (context,) = encode_prompts(bench.tokenizer, [prompt])
        bench.scorer.check_context([context], max_new_tokens)
        request.check_ends(bench.ends)
        generator, ids, shown = bench.generator(seed), [], ""
        with at_rest(bench.models):
            step = Lockstep(bench.models, context, 1, max_new_tokens)
        for t in range(max_new_tokens):
            with at_rest(bench.models):
                pool = regularizer.pool(step.logps())
                if t < min_new_tokens:
                    pool[:, list(bench.ends)] = -torch.inf
                token = torch.multinomial(pool.softmax(-1), 1, generator=generator)[:, 0]
                ids.append(int(token))
                if ids[-1] in bench.ends:
                    break
                if t < max_new_tokens - 1:
                    step.read(token)
            (text,) = decode_behind(bench.tokenizer, [context], [tuple(ids)], 1)
            if text.startswith(shown) and not text.endswith("�") and text != shown:
                yield text[len(shown) :]
                shown = text
        (text,) = decode_behind(bench.tokenizer, [context], [tuple(ids)], 1)
        if text[len(shown) :]:
            yield text[len(shown) :]
