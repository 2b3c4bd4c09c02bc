"""`sample`: weighted completions whose law converges to the optimum, without training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from multiref._progress import each_told
from multiref.decoding.bench import Bench, opened
from multiref.decoding.draws import Draws
from multiref.decoding.methods import rejected, walked, weighed
from multiref.decoding.request import METHODS, Budget, Request
from multiref.errors import ArgumentError
from multiref.models.sampling import encode_prompts
from multiref.models.spec import Generation
from multiref.regularizers import Regularizer

APPROXIMATE = (
    "the references pooled and renormalised at each token: another distribution than the optimum, longer where they disagree "
    "(docs/decoding.md)"
)


def sample(
    prompts: Sequence[Any],
    refs: Any,
    regularizer: Regularizer,
    reward: Callable[..., Any] | None = None,
    beta: float | None = None,
    *,
    method: str = "smc",
    proposal: str | None = None,
    n: int = 64,
    islands: int = 8,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    require_end: bool = False,
    reward_max: float | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    twist: Callable[..., Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> Draws:
    r"""Weighted draws of π* ∝ P_0 e^{r/β} over completions of at most `max_new_tokens` tokens (cut ones are outcomes too).

        Ẑ = (1/N) Σ_i w_i,    E Ẑ = Z = Σ_y P_0(y) e^{r(y)/β};      without a reward Z = F, and the draws are the escort's

    Args:
        prompts: strings, or tuples of chat messages. refs: a `References`, or what makes one. seed: of all draws.
        reward: function(prompts=…, completions=…) → N numbers; −∞ vetoes a completion. None: the escort. beta: its strength.
        method: "smc": islands of n particles that file every end (`models.particles.walk`), resampled within an island.
            "importance": n · islands independent draws weighed once (soft best-of-n). "rejection": exactly n · islands draws of
            π*. "token": draws of the pool renormalised at each token, weighed by the reward alone: not the optimum, and said.
        proposal: of smc "flat" (½ pool + ½ its square root), of importance "pool" (its estimates are bounded), or the other
            one, with every end counted. Of importance also "mixture" (Σ_k w_k π_k; bounded), a reference's name (unbounded),
            "sampled_ends" (the pool, its ends drawn). Of rejection "pool" or "mixture". A regularizer that is not reverse KL
            has importance with "mixture" or a name, and "token"; references of other vocabularies have importance and smc with
            a name: the others score its text.
        min_new_tokens, require_end: the optimum among completions with so many tokens before an end; among those that ended.
        reward_max: what no reward exceeds; rejection needs it, and a reward above it is an error.
        budget: what may be spent, checked before the first token.
        twist: of smc: function(prompts=…, completions=…) → a guess, for texts so far, of the reward to come, by which particles
            are resampled. It changes how well the draws fit, and nothing that they converge to.
        say: told before the start what this may take, one step being timed for it (`Draws.foretold`).

    Errors: ArgumentError for what cannot work, EmptyPoolError where no completion has mass, VocabularyMismatch.

    Reference: docs/decoding.md (DERIVED: the end branch, the law of soft best-of-n).
    """
    if not isinstance(regularizer, Regularizer):
        raise ArgumentError(f"regularizer: expected one, as ReverseKL([0.5, 0.5]), found {regularizer!r}.")
    if reward is not None and beta is None:
        raise ArgumentError(
            "beta: a reward needs its strength β > 0, in units of the reward. Found None; expected a number such as 0.1."
        )
    rows = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else []
    if not rows:
        raise ArgumentError(f"prompts: expected a list of at least one prompt, found {prompts!r}.")
    for place, each in enumerate(rows):
        messages = list(each) if isinstance(each, Sequence) and not isinstance(each, str) else [each]
        if not isinstance(each, str) and not (messages and all(isinstance(one, Mapping) for one in messages)):
            raise ArgumentError(f"prompts: row {place} is {each!r}; expected a string, or a tuple of chat messages.")
    default = "mixture" if method == "importance" and not (regularizer.alpha == 1 and regularizer.order == 0) else None
    request = Request(
        regularizer,
        reward,
        1.0 if beta is None else beta,
        method,
        proposal or default or str(next((known[0] for name, known in METHODS.items() if name == method), "")),
        n,
        islands,
        Generation(max_new_tokens, min_new_tokens=min_new_tokens),
        require_end,
        reward_max,
        Budget() if budget is None else budget,
        seed,
        twist,
    )
    with opened(refs, request, proposal is None) as bench:
        return _drawn(bench, rows, say)


def _drawn(bench: Bench, prompts: Sequence[Any], say: Callable[[str], None] | None) -> Draws:
    """Every prompt's draws, after what they cost is known."""
    request, contexts = bench.request, encode_prompts(bench.tokenizer, prompts)
    bench.scorer.check_context(contexts, request.generation.max_new_tokens)
    request.check_ends(bench.ends)
    foretold = request.check_price(bench.models, contexts, say)
    counted = request.method == "smc" or (request.method == "importance" and request.proposal in ("flat", "pool"))
    draw = walked if counted else rejected if request.method == "rejection" else weighed
    each = enumerate(zip(prompts, contexts))
    places = each_told(each, "prompts", len(prompts)) if len(prompts) > 1 else each  # of one prompt the tokens are told
    found = tuple(draw(bench, *one, request.seed + 7_919 * i) for i, one in places)
    approximate = APPROXIMATE if request.method == "token" else ""
    return Draws(found, request.method, request.proposal, approximate, bench.tokens, bench.rewarding.calls, foretold)
