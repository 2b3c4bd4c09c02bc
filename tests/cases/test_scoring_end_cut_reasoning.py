"""Port of cases/scoring_end_cut_reasoning_causal, its first two thirds: end=False takes the end of turn and no letter
of the answer; two answers that a template writes the same are not given one score. (Causality has a test of its own.)"""

import pytest

import multiref as mr
from multiref.errors import DataError
from multiref.models import LanguageModel, Tokenisation, encode
from multiref.training.dataset import encode_pairs
from tests.conftest import make_llama
from tests.models.templates import CHATML, DEEPSEEK, byte_tokenizer

USER = ({"role": "user", "content": "hi"},)


def says(content):
    return ({"role": "assistant", "content": content},)


def test_answers_stay_whole():
    tokenizer = byte_tokenizer(CHATML)
    for content in ("end", "i", "yes", "d", "im_end", "assistant", "<|im_start|>"):
        item = encode(tokenizer, USER, [says(content)], Tokenisation(end=False))
        assert tokenizer.decode(item.completions[0]) == content


@pytest.mark.parametrize("as_pairs", [False, True])
def test_reasoning_that_is_deleted_is_refused_by_the_row(as_pairs):
    tokenizer = byte_tokenizer(DEEPSEEK)
    references = mr.References({"r": LanguageModel(make_llama(len(tokenizer)), tokenizer, "r")})
    sides = [says(f"<think>{thought}</think>yes") for thought in ("good", "no no no")]
    pair = mr.data.Pair(USER, *sides, "rows.jsonl:12")
    with pytest.raises(DataError, match=r"rows.jsonl:12: " if as_pairs else r"row 1, row 2: "):
        references.score([pair] if as_pairs else [(USER, side) for side in sides])
    with pytest.raises(DataError, match=r"rows.jsonl:12: .*written the same"):
        encode_pairs([pair], tokenizer, Tokenisation())


def test_two_sides_that_are_the_same_tokens_are_a_bad_row():
    """The template trims both to one text: for scores that is right, for a preference there is nothing to learn."""
    tokenizer = byte_tokenizer(CHATML.replace("m.content", "m.content | trim"))
    pair = mr.data.Pair(USER, says("yes"), says(" yes"), "rows.jsonl:3")
    with pytest.raises(DataError, match=r"rows.jsonl:3: chosen and rejected .* become the same tokens"):
        encode_pairs([pair], tokenizer, Tokenisation())
    references = mr.References({"r": LanguageModel(make_llama(len(tokenizer)), tokenizer, "r")})
    assert len(set(references.score([(USER, says("yes")), (USER, says(" yes"))]).logps[0].tolist())) == 1
