"""The distribution that is sampled from (`bend`): softmax(logits / temperature), cut by top_k, then top_p, and by nothing else;
and whether completions were drawn from the model: what is stated of them, and what was drawn.

    stated:  the log-probability of each token, beside the one from plain logits of the sequence alone
    drawn:   under honest draws  M_λ = Π_t q(y_t)^λ / Σ_v q(v)^{1+λ}  has mean 1 for every λ, so that  P(M ≥ 1/δ) ≤ δ  (Markov)

The second needs no log-probabilities from whoever drew: where rare tokens are cut, or the draws are sharper or flatter than q,
M of some λ > 0 or λ < 0 grows exponentially in the number of tokens.

    apart:   of completions y_1, y_2, … of one prompt,  Π_j (½ + ½ · mean_{i<j} 1[y_j = y_i] / q(y_i))  has mean 1, too

It grows where they are copies of each other (one seed for all of a prompt, a cached answer).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ModelError
from multiref.models.architecture import evaluating, run, takes
from multiref.models.encoding import Ids
from multiref.models.spec import Generation

TILTS = (-0.5, -0.2, -0.1, 0.1, 0.2, 0.5, 1.0)
DELTA = 1e-6  # share of honest runs that would be refused
ROUNDING, COARSE = (5e-3, 1e-3), (1.5, 0.1)  # nats a token, at most and on average: in float32, and in other arithmetic
COMPLETIONS, TOKENS = 16, 256  # that are looked at


def bend(logits: Tensor, generation: Generation, end: Tensor, drawn: int) -> Tensor:
    """[*, V] → logits of q, float32 at least; at temperature 0 all its mass is on the likeliest token.

    Args:
        end: token ids that end a completion; drawn: how many tokens it has, for `min_new_tokens`.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if drawn < generation.min_new_tokens:
        scores = scores.index_fill(-1, end, -torch.inf)
    if generation.temperature == 0:
        return torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    if generation.temperature != 1:
        scores = scores / generation.temperature
    if 0 < generation.top_k < scores.shape[-1]:
        least = scores.topk(generation.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if generation.top_p < 1:
        ordered, places = scores.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= generation.top_p
        scores = scores.masked_fill(torch.empty_like(outside).scatter_(-1, places, outside), -torch.inf)
    return scores


def draw_one(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """[*, V] → [*, 1]: a token of each row, in proportion, by one uniform number and the distribution function in float64.

    Nothing waits for an accelerator, as `torch.multinomial` does at every token; nor are there V random numbers a row to make.
    """
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64  # which that device lacks
    reached = probabilities.to(wide).cumsum(-1)
    total = reached[..., -1:]
    # u < 1, so that u · total rounds to less than the total: what lies at the end without a probability is never reached
    at = torch.rand(total.shape, dtype=wide, device=total.device, generator=generator) * total
    # of a row of zeros or NaN the first: the callers say what is wrong with it
    return torch.searchsorted(reached, at, right=True).remainder_(probabilities.shape[-1])


def check_numbers(found: Tensor) -> None:
    """ModelError for NaN among log-probabilities that models gave. At the end: to look at each step would wait for it."""
    if bool(found.isnan().any()):
        raise ModelError(
            "A model's logits are NaN: it overflows in its dtype, or its weights are damaged. Use dtype='float32', or load it "
            "anew."
        )


def check_draws(
    model: nn.Module,
    contexts: Sequence[Ids],
    rows: Sequence[tuple[Ids, Sequence[float]]],
    generation: Generation,
    *,
    ends: Sequence[int] = (),
    who: str = "The sampler",
    coarse: bool = False,
    by_chance: bool = True,
) -> None:
    """Looks at some completions, one plain forward pass each.

    Args:
        contexts: token ids of the prompts. rows: (token ids, stated log-probabilities) of equally many completions of each.
        generation: how they were to be drawn. ends: the token ids that end one (for `min_new_tokens`).
        coarse: whoever drew computes in another arithmetic, such as a server in bfloat16.
        by_chance: False where what was drawn is why it is looked at (long rows): then only what is stated is judged.

    Errors: ModelError where stated and recomputed log-probabilities differ by more than rounding, or the draws are of another
        distribution.
    """
    if generation.temperature == 0 or not rows:
        return
    group = len(rows) // len(contexts)
    lengths = [len(contexts[i // group]) for i in range(len(rows))]
    spread = range(0, len(rows), max(1, len(rows) // COMPLETIONS))[:COMPLETIONS]
    some = list(dict.fromkeys([lengths.index(max(lengths)), lengths.index(min(lengths)), *spread]))[:COMPLETIONS]
    looks = [(i, 0) for i in some]
    longest = max(range(len(rows)), key=lambda i: lengths[i] + len(rows[i][0]))  # where a cache goes wrong late
    end_of_it = longest, max(0, len(rows[longest][0]) - TOKENS)
    looks += [end_of_it] if end_of_it not in looks else []
    seen = [_look(model, contexts[i // group], rows[i][0], at, generation, ends) for i, at in looks]
    logps, evidence = torch.cat([a for a, _ in seen]), torch.stack([b for _, b in seen[: len(some)]]).sum(0)
    stated = torch.tensor([x for i, at in looks for x in rows[i][1][at : at + TOKENS]], dtype=torch.float64)
    inside = logps > -torch.inf  # a token at the edge of a cut may be on either side of it
    gap = (stated - logps)[inside].abs().nan_to_num(torch.inf)
    coarse = coarse or next(model.parameters()).dtype not in (torch.float32, torch.float64)
    most, mean = COARSE if coarse or generation.top_k or generation.top_p < 1 else ROUNDING
    if int((~inside).sum()) > 1 + 0.02 * len(logps) or (len(gap) and not (gap.max() <= most and gap.mean() <= mean)):
        raise ModelError(
            f"{who} states other log-probabilities of the tokens that it drew than the policy gives them: off by "
            f"{float(gap.max()) if len(gap) else math.inf:.3g} nats at most and {float(gap.mean()):.3g} on average over "
            f"{len(logps)} tokens, where rounding is {most:g} and {mean:g}. It has other weights, another temperature or cut, "
            "or a cache that goes wrong."
        )
    if not by_chance:
        return
    found = float(evidence.logsumexp(0)) - math.log(len(TILTS))
    if found >= -math.log(DELTA):
        raise ModelError(
            f"{who} does not draw from the policy: draws of the policy look like these {len(logps)} tokens, of mean "
            f"log-probability {float(logps.mean()):.3f}, with probability at most {math.exp(-min(found, 600.0)):.1g}. "
            "Something bends the distribution: min_p, top_k, top_p, a temperature, a penalty on repetition."
        )
    copies = sum(_evidence_of_copies(rows[i : i + group]) for i in range(0, len(rows), group))
    if copies >= -math.log(DELTA):
        raise ModelError(
            f"{who} gives the same completion of a prompt again and again, which draws of the policy do with probability at "
            f"most {math.exp(-min(copies, 600.0)):.1g}: it draws once for all of them (one seed, a cached answer)."
        )


def _evidence_of_copies(group: Sequence[tuple[Ids, Sequence[float]]]) -> float:
    """Σ_j log(½ + ½ · mean_{i<j} 1[y_j = y_i] / q(y_i)), from the stated log-probabilities."""
    total, seen = 0.0, dict[Ids, int]()
    for place, (ids, logps) in enumerate(group):
        if place:
            same = math.log(seen[ids] / place) - math.fsum(logps) if ids in seen else -math.inf
            total += math.log(0.5) + (same + math.log1p(math.exp(-same)) if same > 0 else math.log1p(math.exp(same)))
        seen[ids] = seen.get(ids, 0) + 1
    return total


@torch.no_grad()
def _look(model: Any, context: Ids, ids: Ids, at: int, generation: Generation, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """([T] log q of at most `TOKENS` tokens from place `at` on, [tilts] their log M_λ), float64."""
    context, ids = context + ids[:at], ids[at : at + TOKENS]
    device = next(model.parameters()).device
    keep = {"logits_to_keep": len(ids) + 1} if "logits_to_keep" in takes(model) else {}
    with evaluating(model):
        logits = run(model, input_ids=torch.tensor([[*context, *ids]], device=device), use_cache=False, **keep).logits[0]
    end, label = (torch.tensor(list(each), device=device, dtype=torch.long) for each in (ends, ids))
    logits, first, step = logits[-len(ids) - 1 : -1], max(0, generation.min_new_tokens - at), max(1, 2**24 // logits.shape[-1])
    starts = sorted({0, *range(first, len(ids), step), *range(0, min(first, len(ids)), step)})
    logps, evidence = [], torch.zeros(len(TILTS), dtype=torch.float64, device=device)
    for a, b in zip(starts, [*starts[1:], len(ids)]):
        q = bend(logits[a:b], generation, end, at + a).double().log_softmax(-1)
        drawn = q.gather(-1, label[a:b, None])[:, 0]
        sums = torch.stack([((1 + tilt) * q).logsumexp(-1) for tilt in TILTS])
        terms = torch.tensor(TILTS, dtype=q.dtype, device=device)[:, None] * drawn - sums
        evidence += torch.where(drawn > -torch.inf, terms, 0.0).sum(-1)
        logps.append(drawn.cpu())
    return torch.cat(logps), evidence.cpu()
