"""`dtype: auto`: three alternated repeats decide, the choice stays with a run, and its price is the measured one."""

import json
from itertools import accumulate, cycle

import pytest
import torch

from multiref.errors import ArgumentError, ConfigError
from multiref.models import ModelSpec, load, score_completions
from multiref.models.encoding import Encoded
from multiref.models.precision import choose_precision
from multiref.runs.base import ReferenceSetting
from multiref.runs.folder import RunFolder
from tests.runs.doing import settings


def clock(*seconds):
    """A clock under which the timed parts last so long in turn, float32 first."""
    ticks = accumulate(each for pair in zip(cycle([0.0]), cycle(seconds)) for each in pair)
    return lambda: next(ticks)


@pytest.mark.parametrize(
    ("seconds", "ratio", "dtype"),
    [((1.1, 1.0), 1.1, "float32"), ((2.0, 1.0, 9.0, 1.0, 1.0, 1.0), 2.0, "bfloat16")],
    ids=["not enough", "median"],
)  # fmt: skip
def test_the_median_of_alternated_repeats_decides(tiny_folder, seconds, ratio, dtype):
    found = choose_precision(ModelSpec(str(tiny_folder), dtype="auto"), clock=clock(*seconds))
    assert found.ratio == pytest.approx(ratio) and found.dtype == dtype


def test_the_price_is_the_difference_of_the_scores(tiny_folder):
    found = choose_precision(ModelSpec(str(tiny_folder), dtype="auto"), clock=clock(1.0, 1.0))
    plain = load(tiny_folder).model
    ids = torch.randint(plain.config.vocab_size, (8, found.tokens + 1), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Encoded(tuple(row[:1]), (tuple(row[1:]),), (False,)) for row in ids]
    rounded = load(ModelSpec(str(tiny_folder), dtype="bfloat16")).model
    apart = score_completions(plain, rows, layout="batched") - score_completions(rounded, rows, layout="batched")
    assert found.nats == pytest.approx(float(apart.abs().max()), rel=1e-6) and found.nats > 0 and "nats" in str(found)


def test_a_run_measures_once_and_goes_on_with_what_it_chose(tiny_folder, tmp_path, monkeypatch):
    asked = []

    def chosen(spec):
        asked.append(spec.path)
        return choose_precision(spec, clock=clock(2.0, 1.0))

    monkeypatch.setattr("multiref.runs.base.choose_precision", chosen)
    references = [{"name": "a", "model": {"path": str(tiny_folder), "dtype": "auto"}}, {"name": "b", "model": "other"}]
    run = {"model": str(tiny_folder), "beta": 0.1, "data": "pairs.jsonl", "output": str(tmp_path), "references": references}
    said: list[str] = []
    for _ in range(2):
        first, second = settings(run).settled(RunFolder(tmp_path), said.append)
        assert isinstance(first, ReferenceSetting) and first.model.dtype == "bfloat16" and second.model.dtype is None
    assert len(asked) == len(said) == 1 and "a: bfloat16: here bfloat16 is 2.00 times as fast" in said[0]
    kept = json.loads((tmp_path / "dtypes.json").read_text())["a"]
    assert kept["dtype"] == "bfloat16" and kept["ratio"] == 2.0 and kept["nats"] > 0
    with pytest.raises(ConfigError, match="auto is for references"):
        settings({**run, "model": {"path": str(tiny_folder), "dtype": "auto"}})
    with pytest.raises(ArgumentError, match="auto is for references"):
        load(ModelSpec(str(tiny_folder), dtype="auto"))
    with pytest.raises(ArgumentError, match="quantization int8 beside it"):
        choose_precision(ModelSpec(str(tiny_folder), dtype="auto", quantization="int8"))
