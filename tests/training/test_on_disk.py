"""Pairs that are held on disk train as those in memory do: the same batches, the same pairs left out, the same split."""

import pytest
import torch

from multiref.data import Pair
from multiref.data.spooled import SpooledPairs, select
from multiref.errors import MultirefWarning
from multiref.models import LanguageModel, Tokenisation
from multiref.references import References
from multiref.runs.pairs import _split
from multiref.training.batching import StepBatches
from multiref.training.dataset import PreferenceData, encode_pairs
from multiref.training.encoded_rows import EncodedRows
from tests.conftest import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "a", "dog", "was", "there", "too"]
PAIRS = [Pair(" ".join(WORDS[: 1 + n % 7]), " " + " ".join(WORDS[n % 5 : 9]), f" {WORDS[n % 11]}", f"f:{n}") for n in range(40)]


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_batches_and_what_is_left_out_are_the_same(truncation, tmp_path):
    tokenisation = Tokenisation(max_length=12, truncation=truncation)
    model = LanguageModel(make_llama(len(TOKENIZER)), TOKENIZER, "m")
    scores = References({"a": model}, tokenisation=Tokenisation()).score(PAIRS)
    made = []
    for pairs in (PAIRS, SpooledPairs.write(PAIRS, tmp_path)):
        with pytest.warns(MultirefWarning, match=r"Left out \d+ of 40 pairs that are cut"):
            made.append(PreferenceData(pairs, scores, TOKENIZER, tokenisation=tokenisation, too_long="drop"))
    here, there = made
    assert isinstance(there.encoded, EncodedRows) and 0 < here.dropped == there.dropped < 40
    assert (
        list(here.encoded) == list(there.encoded) == list(there.encoded[:]) and here.row_lengths == there.row_lengths.tolist()
    )
    batches = [list(StepBatches(data.row_lengths, 3, accumulation=2, seed=5)) for data in made]
    assert batches[0] == batches[1]
    for indices in (*batches[0], [-1, -4]):
        one, other = here.batch(indices), there.batch(indices)
        assert one.encoded == other.encoded and torch.equal(one.references, other.references)
        assert torch.equal(one.shares, other.shares)
    cut = encode_pairs(PAIRS, TOKENIZER, tokenisation)
    held = EncodedRows.write(iter(cut), SpooledPairs.write(PAIRS, tmp_path))
    assert list(held) == cut and held.truncated.tolist() == [list(item.truncated) for item in cut]


def test_a_split_is_by_prompt_and_by_the_order_of_prompts(tmp_path):
    """Against a plain dictionary of groups."""
    groups = {}
    for pair in PAIRS:
        groups.setdefault(pair.prompt, []).append(pair)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(3)).tolist()
    out, expected = set(order[: max(1, round(0.4 * len(order)))]), ([], [])
    for number, group in enumerate(groups.values()):
        expected[number in out].extend(group)
    for pairs in (PAIRS, SpooledPairs.write(PAIRS, tmp_path)):
        assert tuple(map(list, _split(pairs, 0.4, 3))) == expected
    assert select(["a", "b"], torch.tensor([1]).numpy()) == ["b"]
