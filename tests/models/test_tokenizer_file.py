"""A tokenizer is its file: a class of transformers that builds rules of its own around the vocabulary is told."""

import json
import warnings

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

from multiref.errors import MultirefWarning
from multiref.models import word_tokenizer
from multiref.models.loading import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """Bytes, and every digit a token of its own, in a folder whose model type has a class that splits at spaces alone."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer, backend.decoder = Sequence([Digits(individual_digits=True), ByteLevel(False)]), Bytes()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=ByteLevel.alphabet())
    backend.train_from_iterator(["in 2023 the cat sat, in 2023 it did"] * 20, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    return tmp_path, backend


def read(folder, kind):
    settings = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def test_other_rules_than_the_file_has(folder):
    place, backend = folder
    with pytest.warns(MultirefWarning, match=r"GemmaTokenizer gives other token ids than tokenizer\.json.*TokenizersBackend"):
        found = read(place, "GemmaTokenizer")
    text = "in 2023 the cat"
    assert found(text, add_special_tokens=False)["input_ids"] != backend.encode(text, add_special_tokens=False).ids


def test_a_folder_that_says_so_has_its_tokenizer_as_it_stands(tmp_path):
    """Of some types, such as qwen2, transformers takes its own class whatever the folder names."""
    made = word_tokenizer(["the", "dog"])
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        assert load_tokenizer(tmp_path)("the dog")["input_ids"] == made("the dog")["input_ids"] == [1, 2]


def test_the_class_that_the_warning_names(folder):
    place, backend = folder
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        found = read(place, "TokenizersBackend")
    text = "in 2023 the cat"
    assert found(text, add_special_tokens=False)["input_ids"] == backend.encode(text, add_special_tokens=False).ids
