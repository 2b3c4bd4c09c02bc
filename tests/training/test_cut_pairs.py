"""A pair that is cut is trained on only if policy and references kept the very same tokens: digests decide, not flags."""

import pytest

import multiref as mr
from multiref.data import Pair
from multiref.errors import ArgumentError, MultirefWarning
from multiref.models import LanguageModel, Tokenisation
from multiref.training import PreferenceData
from tests.conftest import make_llama
from tests.models.templates import byte_tokenizer

PAIRS = [Pair("hello " * 4, " world" * 6, " wonder" * 6, "long"), Pair("hi", " a", " b", "short")]
POLICY = Tokenisation(max_length=59)


def scores(limit, tokenizer, **options):
    model = make_llama(len(tokenizer), context=128)
    tokenisation = Tokenisation(max_length=limit, **options)
    return mr.References({"r": LanguageModel(model, tokenizer, "m")}, tokenisation=tokenisation).score(PAIRS)


@pytest.mark.filterwarnings("ignore:.*texts did not fit")
def test_the_same_cut_is_trained_on_another_is_refused_or_dropped():
    tokenizer = byte_tokenizer()
    same = PreferenceData(PAIRS, scores(59, tokenizer), tokenizer, tokenisation=POLICY)
    assert len(same) == 2 and same.dropped == 0
    with pytest.raises(ArgumentError, match="too_long"):  # the same as refuse, if it were taken for a word
        PreferenceData(PAIRS, scores(59, tokenizer), tokenizer, tokenisation=POLICY, too_long="Drop")
    for limit, words in ((43, "cut for reference 'r' and for the policy"), (None, "cut for the policy")):
        other = scores(limit, tokenizer)
        with pytest.raises(ArgumentError, match=rf"1 of 2 pairs are cut differently .* the first is long, {words}"):
            PreferenceData(PAIRS, other, tokenizer, tokenisation=POLICY)
        with pytest.warns(MultirefWarning, match="Left out 1 of 2 pairs"):
            data = PreferenceData(PAIRS, other, tokenizer, tokenisation=POLICY, too_long="drop")
        assert len(data) == len(data.encoded) == data.dropped == 1
        expected = other.of([PAIRS[1].prompt] * 2, [PAIRS[1].chosen, PAIRS[1].rejected])
        assert data.batch([0]).references[:, 0].equal(expected)


@pytest.mark.filterwarnings("ignore:.*texts did not fit")
def test_what_was_kept_of_a_cut_text_must_be_known():
    """Equal flags, and another end kept, another tokenizer, or digests that are not known: refused. All pairs cut: too."""
    tokenizer = byte_tokenizer()
    unknown = scores(59, tokenizer)
    unknown.digests[:] = 0
    cases = [scores(59, tokenizer, truncation="keep_end"), scores(59, byte_tokenizer(bos=True)), unknown]
    for other in cases:
        with pytest.raises(ArgumentError, match="cut differently"):
            PreferenceData(PAIRS, other, tokenizer, tokenisation=POLICY)
    with pytest.raises(ArgumentError, match="cut differently"):
        PreferenceData(PAIRS[:1], unknown, tokenizer, tokenisation=POLICY, too_long="drop")
