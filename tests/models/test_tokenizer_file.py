"""A tokenizer is its file: a class of transformers that builds rules of its own around the vocabulary is told."""

import json
import shutil
import sys
import warnings
from importlib import import_module
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

from multiref.errors import ModelError, MultirefWarning
from multiref.models import encode, word_tokenizer
from multiref.models.loading import load_tokenizer
from tests.conftest import make_tokenizer


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


@pytest.fixture
def pieces(tmp_path):
    """A folder whose rules are a SentencePiece model alone."""
    pytest.importorskip("google.protobuf")
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    known = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    for place, (piece, kind) in enumerate([*known, *((each, 1) for each in ("▁t", "he", "▁the", "▁", "t", "h", "e", "a"))]):
        proto.pieces.add(piece=piece, score=-float(place), type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2"}))
    return tmp_path


def test_a_tokenizer_that_transformers_makes_of_sentencepiece(pieces, monkeypatch):
    """5.23 makes "t", "h", "e" of "the" where SentencePiece has "▁the", for InternLM2, Baichuan, MiniCPM and whatever names no
    class."""
    slow = import_module("transformers.convert_slow_tokenizer")  # a function has this name, too
    monkeypatch.setattr(slow, "requires_backends", lambda *needed: None)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # there is none to compare with
    made = read(pieces, "InternLM2Tokenizer")
    for other, words in (
        ([], None),
        (["▁the"], r"no tokenizer\.json.* makes of tokenizer\.model cuts 'In 2023 the'… as .*, SentencePiece as \['▁the'"),
    ):

        def encode(text, out_type=int, other=other):
            own = made(text, add_special_tokens=False)["input_ids"]
            return own if out_type is int else other + made.convert_ids_to_tokens(own)

        library = SimpleNamespace(SentencePieceProcessor=lambda **_: SimpleNamespace(encode=encode, unk_id=lambda: 0))
        monkeypatch.setitem(sys.modules, "sentencepiece", library)
        with warnings.catch_warnings() if words is None else pytest.warns(MultirefWarning, match=words):
            warnings.simplefilter("error" if words is None else "always", MultirefWarning)
            read(pieces, "InternLM2Tokenizer")


def test_flags_of_start_and_end_tokens(tiny_tokenizer, tmp_path):
    """transformers 4 put the start token that `add_bos_token` says, as of DeepSeek's models; 5 goes by tokenizer.json alone."""
    tiny_tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_bos_token": True, "add_eos_token": False}
    for change, words in (
        ({}, None),
        ({"add_bos_token": False}, r"says add_bos_token: False, and the TokenizersBackend does otherwise"),
        ({"add_eos_token": True}, r"says add_eos_token: True, and the TokenizersBackend does otherwise"),
        ({"add_prefix_space": False}, r"says add_prefix_space: False, and the TokenizersBackend does otherwise"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | change))
        with warnings.catch_warnings() if words is None else pytest.warns(MultirefWarning, match=words):
            warnings.simplefilter("error" if words is None else "always", MultirefWarning)
            assert load_tokenizer(tmp_path)("the dog")["input_ids"] == tiny_tokenizer("the dog")["input_ids"]


def change(file, change):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def test_words_cut_at_random(tmp_path):
    """BPE dropout, of training a vocabulary's user: other ids of one text at each call, and nobody says so."""
    made = make_tokenizer("bytelevel")
    made.save_pretrained(tmp_path)
    change(tmp_path / "tokenizer.json", lambda rules: rules["model"].update(dropout=0.5))
    with pytest.raises(ModelError, match=r"cuts words at random.*dropout in tokenizer\.json"):
        load_tokenizer(tmp_path)
    made.backend_tokenizer.model.dropout = 0.5
    assert len({tuple(made("the cat sat on the mat")["input_ids"]) for _ in range(9)}) > 1
    with pytest.raises(ModelError, match="cuts words at random"):
        encode(made, "the cat", [" sat"])


@pytest.mark.parametrize("place", ["added_tokens_decoder", "added_tokens.json"])
def test_a_token_that_has_another_id_than_the_files_say(place, tmp_path):
    """transformers gives a token that tokenizer.json lacks the next free id, or none: the row of another token is read."""
    made = make_tokenizer("bytelevel")
    for far, words in ((0, None), (5, rf"the token '<x>' the id {len(made) + 5}, and the TokenizersBackend gives it \d+")):
        made.save_pretrained(tmp_path)
        if place == "added_tokens.json":
            (tmp_path / place).write_text(json.dumps({"<x>": len(made) + far}))
        else:
            token = {"content": "<x>", "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            listed = {place: {str(len(made) + far): token}}
            change(tmp_path / "tokenizer_config.json", lambda settings, listed=listed: settings.update(listed))
        with warnings.catch_warnings() if words is None else pytest.warns(MultirefWarning, match=words):
            warnings.simplefilter("error" if words is None else "always", MultirefWarning)
            assert load_tokenizer(tmp_path).convert_tokens_to_ids("<x>") == len(made)


def test_padding_in_the_file_is_no_other_rule(tmp_path):
    """As a tokenizer is saved that padded its last batch: transformers pads when it is asked to."""
    made = make_tokenizer("bytelevel")
    made.save_pretrained(tmp_path)
    padding = {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
               "pad_token": "</s>"}  # fmt: skip
    change(tmp_path / "tokenizer.json", lambda rules: rules.update(padding=padding))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        assert load_tokenizer(tmp_path)("the cat")["input_ids"] == made("the cat")["input_ids"]


def test_sentencepiece_that_is_not_installed_is_named(tiny_folder, tmp_path, monkeypatch):
    """transformers names tiktoken, which reads no such file."""
    monkeypatch.setattr("multiref.models.folders.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ModelError, match="for which the package sentencepiece is needed"):
        load_tokenizer(tmp_path)


def test_a_space_behind_special_tokens(tmp_path):
    """The files of Llama's first models put a space in front of each stretch between special tokens, as in a conversation;
    LlamaTokenizer of transformers 5 does so at the beginning alone."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "▁a"]
    backend = Tokenizer(
        BPE({word: place for place, word in enumerate(words)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(words[:3])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.warns(MultirefWarning, match=r"LlamaTokenizer gives other token ids than tokenizer\.json.* for ' a</s> b"):
        found = read(tmp_path, "LlamaTokenizer")
    text = "a</s>a"
    assert found(text, add_special_tokens=False)["input_ids"] != backend.encode(text, add_special_tokens=False).ids
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        found = read(tmp_path, "TokenizersBackend")
    assert found(text, add_special_tokens=False)["input_ids"] == backend.encode(text, add_special_tokens=False).ids
