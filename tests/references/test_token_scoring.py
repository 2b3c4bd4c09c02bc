"""Token-level scores: terms of the sequence scores, and a refusal where references do not speak of the same tokens."""

import json
import shutil

import pytest
import torch

from multiref.errors import ModelError, VocabularyMismatch
from multiref.references import References
from multiref.references.token_level import token_scores
from tests.conftest import make_llama, make_tokenizer

TEXTS = [("the dog", " sat on the log"), ("the dog", " and the cat"), ("", "Once upon a time"), ("the dog", " and the cat")]


def folder_of(path, tokenizer, *, seed=0, width=None):
    make_llama(width or len(tokenizer), seed=seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_they_sum_to_the_sequence_scores(tiny_folder, tiny_tokenizer, tmp_path):
    """The second model's embedding has 14 rows more than the vocabulary, as Qwen2.5 7B has against 3B: no matter."""
    padded = folder_of(tmp_path / "padded", tiny_tokenizer, seed=1, width=len(tiny_tokenizer) + 14)
    references = References({"a": tiny_folder, "b": padded})
    tokens, sums = token_scores(references, TEXTS), references.score(TEXTS)
    assert tokens.names == ("a", "b") and len(tokens.keys) == 3
    order = sums.locate(tokens.keys)
    assert torch.allclose(tokens.summed(), sums.logps[:, order], atol=1e-4)
    assert torch.equal(tokens.offsets.diff(), sums.lengths[0, order])


def test_other_vocabularies_are_refused_by_name(tiny_folder, tiny_tokenizer, tmp_path):
    """Two vocabularies of one size that swap two tokens; and one that lacks some."""
    swapped = folder_of(tmp_path / "swapped", tiny_tokenizer)
    rules = (swapped / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = tiny_tokenizer.get_vocab()
    a, b = vocabulary["▁dog"], vocabulary["▁cat"]
    rules = rules.replace(f'"▁dog": {a}', f'"▁dog": {b}').replace(f'"▁cat": {b}', f'"▁cat": {a}')
    (swapped / "tokenizer.json").write_text(rules, encoding="utf-8")
    small = folder_of(tmp_path / "small", make_tokenizer(vocab_size=100))
    for other in (swapped, small):
        with pytest.raises(VocabularyMismatch, match=r"'a' and 'b'.*id \d+ is '"):
            token_scores(References({"a": tiny_folder, "b": other}), TEXTS)


def test_one_vocabulary_cut_in_two_ways_is_refused(tiny_folder, tmp_path):
    """The same mapping, but one normalizer reads every "o" as an "a": the ids of a completion differ."""
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    rules = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    rules["normalizer"]["normalizers"].insert(0, {"type": "Replace", "pattern": {"String": "o"}, "content": "a"})
    (other / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(VocabularyMismatch, match=r"into different tokens"):
        token_scores(References({"a": tiny_folder, "b": other}), TEXTS)


def test_what_is_not_local_is_refused(tiny_folder):
    class Elsewhere:
        def identity(self):
            return {}

        def score(self, items):
            raise AssertionError

    with pytest.raises(ModelError, match=r"'b' is a Elsewhere"):
        token_scores(References({"a": tiny_folder, "b": Elsewhere()}), TEXTS)
