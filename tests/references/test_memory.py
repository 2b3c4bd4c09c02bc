"""Memory that runs out in one block: that block is scored again in smaller passes, and its shard says so."""

import pyarrow.parquet as pq
import pytest
import torch

from multiref.errors import ModelError, MultirefWarning
from multiref.models import LanguageModel
from multiref.references import References, local
from tests.conftest import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
ROWS = [(f"what is {n}?", f" it is {word}") for n in range(4) for word in ("raining", "the cat", "a dog")]


@pytest.fixture
def opened():
    return LanguageModel(make_llama(len(TOKENIZER)), TOKENIZER, "m")


FULL = torch.OutOfMemoryError("CUDA out of memory")


def running_out(monkeypatch, fails, error=FULL):
    """A device on which the calls with these numbers find no memory; returns the budgets that were asked for."""
    real, asked = local.score_completions, []

    def score(*arguments, token_budget=None, **options):
        asked.append(token_budget)
        if len(asked) in fails:
            raise error
        return real(*arguments, token_budget=token_budget, **options)

    monkeypatch.setattr(local, "score_completions", score)
    return asked


def notes(folder):
    found = [pq.read_metadata(path).metadata for path in folder.rglob("*.parquet")]
    return sorted(int(each.get(b"multiref.token_budget_halved_to", 0)) for each in found)


@pytest.mark.parametrize("error", [FULL, RuntimeError("can't allocate memory: 9 GB")], ids=["device", "cpu"])
def test_the_block_is_scored_again_and_the_others_are_as_ever(opened, error, tmp_path, monkeypatch):
    whole = References({"a": opened}, token_budget=512).score(ROWS, store=tmp_path / "whole", shard_size=3)
    asked = running_out(monkeypatch, {2, 3}, error)
    with pytest.warns(MultirefWarning, match=r"'a': memory ran out in 1 of 4 blocks.*\(128 at least\)"):
        scores = References({"a": opened}, token_budget=512).score(ROWS, store=tmp_path / "store", shard_size=3)
    assert asked == [512, 512, 256, 128, 512, 512] and notes(tmp_path / "store") == [0, 0, 0, 128]
    assert torch.allclose(scores.logps, whole.logps, atol=1e-4)
    names = [{path.name for path in (tmp_path / each).rglob("*.parquet")} for each in ("whole", "store")]
    assert len(names[0] & names[1]) == 3  # names are checksums: the same bits


def test_where_no_pass_is_small_enough_it_says_so(opened, monkeypatch):
    asked = running_out(monkeypatch, range(99))
    with pytest.raises(ModelError, match="m: no memory to score with 100 tokens in a pass"):
        References({"a": opened}, token_budget=400).score(ROWS)
    assert asked == [400, 200, 100]
    running_out(monkeypatch, {1}, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        References({"a": opened}).score(ROWS)
