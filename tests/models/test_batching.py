"""Plans: every completion once, the same batches for what was audited, and nothing beside what was not tried beside it."""

import random

import pytest

from multiref.models.batching import LAYOUTS, Span, plan_batches, sequence_length
from multiref.models.encoding import Encoded
from multiref.models.rows import row_length


def items(seed, count=60):
    draw = random.Random(seed)

    def ids(most):
        return tuple(draw.randrange(90) for _ in range(draw.randint(1, most)))

    return [Encoded(ids(80), tuple(ids(60) for _ in range(draw.randint(1, 3))), (False,) * 3) for _ in range(count)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_within_its_own_span_is_the_same_plan(layout, seed):
    """What an audit computed in its batches is what scoring finds there."""
    rows = items(seed)
    batches = plan_batches(rows, layout, 256)
    places = sorted(place for batch in batches for one in batch.places for place in one)
    assert places == list(range(sum(len(item.completions) for item in rows)))
    within = plan_batches(rows, layout, 256, within=Span.of(batches))
    assert set(within) == set(batches) and Span.of(within) in Span.of(batches)


def test_rows_outside_of_a_span_keep_to_themselves():
    rows, span = items(5), Span(longest=90, widest=2, company=60, shortest=20)
    for batch in plan_batches(rows, "shared", 10_000, within=span):
        lengths = [sequence_length(item, i) for item in batch.items for i in range(len(item.completions))]
        assert batch.rows == 1 or (min(lengths) >= 20 and max(lengths) <= 60)
        assert not batch.shared or (max(len(item.completions) for item in batch.items) <= 2 and max(lengths) <= 90)


def test_a_long_row_has_a_pass_of_its_own_but_in_training():
    """Fewer than four to a pass save nothing; a training step is one pass whatever its rows are."""
    rows = items(7)
    for layout in ("shared", "batched"):
        for batch in plan_batches(rows, layout, 256):
            lengths = [row_length(item, shared=batch.shared) for item in batch.items]
            assert batch.rows == 1 or 4 * max(lengths) <= 256
            assert len(lengths) * max(lengths) <= 256 or len(lengths) == 1
    assert len(plan_batches(rows, "shared", 10**9, always=True)) == 1
    (kept,) = plan_batches(rows[:3], "shared", 3 * max(row_length(item, shared=True) for item in rows[:3]), always=True)
    assert len(kept.items) == 3
