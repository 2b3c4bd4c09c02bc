"""Which layout a model allows, tried on the rows that are to be scored: against one plain sequence at a time.

Rows chosen from the plan (the longest, the longest that has another beside it, the widest spread of lengths, the widest group,
some by their digest) are scored in the batches in which they will run, and again alone. The fastest layout that says the same
stands, for rows of the lengths that were tried.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multiref.errors import ModelError
from multiref.models.architecture import as_its_weights_are, check_rows, evaluating, unwrapped
from multiref.models.batching import LAYOUTS, Batch, Layout, Span, plan_batches
from multiref.models.buffers import check_buffers
from multiref.models.encoding import Encoded
from multiref.models.forward import LOGITS_BUDGET, device_of
from multiref.models.noise import plain_rows, refuse_noise, refusing_noise
from multiref.models.rows import row_length
from multiref.models.witness import (
    NoCopy,
    Scores,
    Witness,
    changeable,
    dtype_of,
    is_large,
    is_sharded,
    largest_gap,
    length_of,
    picked,
    rms_gap,
    singles_of,
)

TOLERANCE = 1e-4  # nats a token, in float32 or wider
_MOST = 64  # tokens of a long completion that are compared in a large job
_log = logging.getLogger("multiref")
_known: "WeakKeyDictionary[nn.Module, list[tuple[Any, Audit]]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Audit:
    """What stands, and what it was tried on.

    layout: how rows may be laid out. head: logits are the output embedding of the last hidden state and nothing more, so that
    it may be applied to some positions only. vocabulary: width of the logits.
    stateful: a pass changes the model (frequencies that grow with the longest row seen); it is put back after each.
    span: the rows for which this holds. rows: digests of the completions that were compared.
    errors: layout → largest difference of a token's log-probability from the plain pass; None: the model refuses the layout.
    judged: the dtype in which they were compared. rounding: the largest difference that the model's dtype makes beside
        float32 on these rows; None: not measured, `unmeasured` says why (empty: the dtype is no narrower).
    seconds: what the audit took beside the batches that are scored anyway.
    """

    layout: Layout
    head: bool
    vocabulary: int
    stateful: bool
    span: Span
    rows: tuple[int, ...]
    errors: Mapping[str, float | None]
    judged: str
    rounding: float | None = None
    unmeasured: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Audit":
        """What `record` wrote, read back."""
        return cls(**{**record, "span": Span(**record["span"]), "rows": tuple(record["rows"])})

    def summary(self) -> str:
        """One line for people."""
        worst = ", ".join(f"{name} {'refused' if e is None else f'{e:.1e}'}" for name, e in self.errors.items())
        rounding = f"; {self.rounding:.1e} by rounding" if self.rounding is not None else ""
        rounding = f"; rounding not measured: {self.unmeasured}" if self.unmeasured else rounding
        return (
            f"layout {self.layout}, audited on {len(self.rows)} completions of up to {self.span.longest} tokens (nats a token "
            f"beside a plain pass, in {self.judged}: {worst or 'nothing to compare'}{rounding}), {self.seconds:.1f} s"
        )


def audit_layout(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    token_budget: int | None = None,
    logits_budget: int = LOGITS_BUDGET,
    cuts: Sequence[int] = (),
    everything: bool = False,
    always: bool = False,
    scores: Scores | None = None,
) -> Audit:
    """The layout that stands for these rows. A model is audited again only for rows that what is known of it does not cover.

    Before a training run, call it with all rows of its data: a batch whose rows it covers costs nothing more.
    Of a sharded model every rank calls it at once, with any rows: those of all ranks are audited together.

    Args:
        token_budget: tokens of one pass, as the rows will be run; None: what suits the device.
        cuts: where, among the rows, those end that are batched together; none: all of them are.
        everything: every completion is compared, not a few, and whatever is known already.
        always: plan as training does, where each prompt is shared.
        scores: filled with what was computed on the way: batch → token log-probabilities of its completions, as they stand.

    Errors: ModelError for what is no causal language model: an earlier log-probability that a later token changes, noise,
    logits that are no numbers, token ids that the embedding does not have.
    """
    inner = unwrapped(model)
    rows = _of_all_ranks(encoded) if is_sharded(inner) else list(encoded)
    check_rows(inner, rows)
    budget = token_budget or token_budget_of(inner)
    blocks = [rows[start:end] for start, end in pairwise(sorted({0, *cuts, len(rows)}))]

    def plan(layout: Layout) -> list[Batch]:
        return [batch for block in blocks for batch in plan_batches(block, layout, budget, always=always)]

    state = _state(inner)
    past = _known.setdefault(inner, [])
    for layout in LAYOUTS if not everything else ():
        for key, audit in past:
            if (key, audit.layout) == (state, layout) and (layout == "alone" or Span.of(plan(layout)) in audit.span):
                return replace(audit, seconds=0.0)
    if not any(ids for item in rows for ids in item.completions):
        return Audit("alone", False, 0, False, Span(), (), {}, "")
    check_buffers(inner)
    audit = _Auditor(inner, plan, logits_budget, everything).run(scores)
    alike = [entry for entry in past if entry[0] == state and entry[1].layout == audit.layout]
    for _, other in alike:
        audit = replace(audit, span=audit.span.joined(other.span))
    past[:] = [*(entry for entry in past if entry not in alike), (state, audit)]
    if audit.layout != "shared":
        _log.warning("%s: %s", type(inner).__name__, audit.summary())
    return audit


def token_budget_of(model: Any) -> int:
    """On a CPU as many as keep a layer's activations in its cache (measured: 1,024 at width 256);
    elsewhere as many as fill it."""
    if device_of(model).type != "cpu":
        return 32768
    width = getattr(getattr(model, "config", None), "hidden_size", None) or 64
    return min(8192, max(1024, 2**18 // int(width)))


class _Auditor:
    """One audit: the witnesses, and the rows that they are asked about."""

    def __init__(self, model: Any, plan: Callable[[Layout], list[Batch]], logits_budget: int, everything: bool) -> None:
        self.model, self.plan, self.logits_budget, self.everything = model, plan, logits_budget, everything
        self.own = Witness(model, logits_budget)
        self.unit = torch.finfo(dtype_of(model)).eps
        self.narrow = dtype_of(model).itemsize <= 2
        self.wide: Witness | None = None  # in float32, of a model whose dtype is narrower
        self.unmeasured = ""
        self._float64: Witness | None = None

    def run(self, scores: Scores | None) -> Audit:
        start = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model), as_its_weights_are(self.model):
            audit, batches = self._found()
        kept = {(batch, audit.head) for batch in batches} & self.own.planned.keys()
        if scores is not None:
            scores.update({each: self.own.planned[each] for each in kept})
        return replace(audit, seconds=time.perf_counter() - start - sum(self.own.took[each] for each in kept))

    def _found(self) -> tuple[Audit, list[Batch]]:
        batches = self.plan("shared")
        self.own.most = _MOST if is_large(batches) and not self.everything else None
        picks = sorted(picked(batches, everything=self.everything), key=length_of)
        with refusing_noise(self.model, picks[-1]):
            plain = [self.own.plain(each) for each in picks]  # ascending: what grows with the longest row has not grown yet
        if self.narrow:
            self.wide = self._widened(picks)
        self._check_causal(changeable(picks, many=is_large(batches)))
        errors: dict[str, float | None] = {}
        for head in (True, False) if all(each.of_head for each in plain) else (False,):
            before: list[Batch] = []
            for layout in LAYOUTS:
                batches = self.plan(layout)
                if batches == before:
                    continue  # nothing was shared
                before, picks = batches, picked(batches, everything=self.everything)
                error, stands = self._tried(layout, batches, picks, head)
                tried = "batched" if layout == "shared" and not any(batch.shared for batch in batches) else layout
                errors[tried] = error if error is not None and isfinite(error) else None
                if stands:
                    return self._audit(layout, head, batches, picks, errors), batches
        return self._audit("alone", False, batches, picks, errors), batches

    def _audit(
        self, layout: Layout, head: bool, batches: Sequence[Batch], picks: Sequence[Encoded], errors: dict[str, float | None]
    ) -> Audit:
        rounding = None
        if self.wide is not None:
            rounding = max(largest_gap(self.own.plain(each).logps, self.wide.plain(each).logps) for each in picks)
        return Audit(
            layout,
            head,
            self.own.plain(picks[0]).vocabulary,
            self.own.stateful,
            Span.of(batches),
            tuple(sorted(each.digest(0) for each in picks)),
            errors,
            str(dtype_of((self.wide or self.own).model)).removeprefix("torch."),
            rounding,
            self.unmeasured,
        )

    # -- judging ---------------------------------------------------------------------------------------------------

    def _tried(
        self, layout: Layout, batches: Sequence[Batch], picks: Sequence[Encoded], head: bool
    ) -> tuple[float | None, bool]:
        """Largest difference of a token from the plain pass (None: it does not run), and whether the layout stands."""
        try:
            return self._judged(layout, batches, picks, head)
        except (torch.OutOfMemoryError, ModelError):
            raise
        except Exception as refusal:  # a model may raise anything at a mask or positions that it does not take
            _log.debug("%s refuses the layout %s: %r", type(self.model).__name__, layout, refusal)
            return None, False

    def _judged(self, layout: Layout, batches: Sequence[Batch], picks: Sequence[Encoded], head: bool) -> tuple[float, bool]:
        def compared(witness: Witness) -> tuple[Tensor, Tensor]:
            return self._compared(layout, batches, picks, head, witness)

        own = compared(self.own)
        try:
            judged = own if self.wide is None else compared(self.wide)
        except torch.OutOfMemoryError:  # the copy fitted, and what it computes does not
            self.wide, self.unmeasured = None, "no memory"
        if self.narrow and self.wide is None:
            return largest_gap(*own), self._within_rounding(*own, picks)
        error = largest_gap(*judged)
        if not error <= TOLERANCE:
            again = self._in_float64(lambda witness: largest_gap(*compared(witness)))
            error = error if again is None else again
        if self.wide is None or not error <= TOLERANCE:
            return error, error <= TOLERANCE
        # what is right in float32 may still overflow in the model's dtype, or take another kernel there
        noise = rms_gap(own[1], judged[1]) + self.unit
        return error, rms_gap(own[0], judged[1]) <= 4 * noise

    def _compared(
        self, layout: Layout, batches: Sequence[Batch], picks: Sequence[Encoded], head: bool, witness: "Witness"
    ) -> tuple[Tensor, Tensor]:
        """Tokens of the picks (in their batches, plainly); and of the shortest as if it lay beside the longest."""
        pairs, width, wanted = [], 0, set(picks)
        vocabulary = self.own.plain(picks[0]).vocabulary
        for batch in batches:
            if batch.rows > 1:
                width = max(width, *(row_length(item, shared=batch.shared) for item in batch.items))
            singles = [each for item in batch.items for each in singles_of(item)]
            if not wanted.isdisjoint(singles):
                values = witness.in_batch(batch, head, vocabulary)
                pairs += [witness.plain(each).beside(value) for each, value in zip(singles, values) if each in wanted]
        shortest = min(picks, key=length_of)
        if layout != "alone" and width > length_of(shortest):
            pairs.append(witness.plain(shortest).beside(witness.padded(shortest, width, head, vocabulary)))
        return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])

    def _within_rounding(self, laid_out: Tensor, plain: Tensor, picks: Sequence[Encoded]) -> bool:
        """Whether rows differ by no more than padding makes them differ, or a unit in the last place of the largest logit."""
        spread = torch.cat([self.own.spread(each) for each in sorted(picks, key=length_of)[:3]])
        unit = self.unit * max(self.own.plain(each).largest for each in picks)
        usual = max(float(spread.square().mean().sqrt()), unit / 4)
        return rms_gap(laid_out, plain) <= 2 * usual and largest_gap(laid_out, plain) <= 4 * max(float(spread.max()), unit)

    def _check_causal(self, item: Encoded) -> None:
        """ModelError where a later token changes an earlier log-probability."""

        def changed(witness: Witness) -> float:
            return largest_gap(*witness.plain(item).beside(witness.with_other_end(item)))

        judge = self.wide or self.own
        error = changed(judge)
        if error <= TOLERANCE:
            return
        again = None if self.narrow and self.wide is None else self._in_float64(changed)
        if again is None:  # no wider copy, or quantised: activations quantised over a row move it as padding does
            limit = 4 * max(float(self.own.spread(item).max()), self.unit * self.own.plain(item).largest)
        else:
            error, limit = again, TOLERANCE
        if error <= limit:
            return
        if (noise := largest_gap(judge.fresh(item).logps, judge.plain(item).logps)) > TOLERANCE:
            refuse_noise(judge.model, plain_rows(judge.model, [item]))  # by the module's name
            raise ModelError(
                f"{type(self.model).__name__} gives one row two scores (a token differs by {noise:.2g} nats): something in it "
                "draws random numbers in evaluation mode. Expected a likelihood; take the noise out of the model."
            )
        raise ModelError(
            f"{type(self.model).__name__} is no causal language model: a later token changes the log-probability of an earlier "
            f"one by {error:.2g} nats. Expected a decoder (of an encoder's class, one loaded with is_decoder=True)."
        )

    # -- copies ----------------------------------------------------------------------------------------------------

    def _widened(self, picks: Sequence[Encoded]) -> Witness | None:
        """A copy in float32 that runs, or None and why."""
        try:
            made = self.own.widened(torch.float32)
            made.plain(picks[0])
        except NoCopy as reason:
            self.unmeasured = str(reason)
        except (torch.OutOfMemoryError, ModelError):
            self.unmeasured = "the copy in float32 does not run"
        else:
            return made
        return None

    def _in_float64(self, ask: Callable[[Witness], float]) -> float | None:
        """The same, asked of a copy in float64. Rounding may tip a choice (of experts, say), and one choice tips all after
        it; where that is all, the copy does not see it."""
        try:
            self._float64 = self._float64 or self.own.widened(torch.float64)
            return ask(self._float64)
        except Exception as error:  # it need not run in another dtype
            _log.debug("%s in float64: %r", type(self.model).__name__, error)
            return None


def _state(model: Any) -> Any:
    """What decides how a model computes beside its weights: dtype, device, attention, adapters that are on, its hooks."""
    layer = next((each for each in model.modules() if isinstance(getattr(each, "disable_adapters", None), bool)), None)
    worn = None if layer is None else (layer.disable_adapters, tuple(layer.active_adapters))
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    hooks = tuple(model._forward_hooks), tuple(model._forward_pre_hooks)
    return dtype_of(model), device_of(model), attention, worn, hooks


def _of_all_ranks(encoded: Sequence[Encoded]) -> list[Encoded]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, list(encoded))
    return [item for rows in gathered for item in rows]
