"""A fingerprint changes with every bit that a score depends on, and with nothing else."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref.errors import ModelError
from multiref.models.fingerprint import (
    config_fingerprint,
    file_weights_fingerprint,
    model_weights_fingerprint,
    tokenizer_fingerprint,
)
from tests.conftest import make_llama, make_tokenizer


def test_one_flipped_bit_in_any_tensor_is_seen(tmp_path):
    make_llama(50, hidden=8, layers=1).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # older safetensors map the file itself
    before = file_weights_fingerprint(tmp_path)
    seen = {before}
    for name in tensors:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed[name].flatten().view(torch.uint8)[-1] ^= 1
        save_file(changed, path)
        seen.add(file_weights_fingerprint(tmp_path))
    assert len(seen) == len(tensors) + 1
    save_file(tensors, path)
    assert file_weights_fingerprint(tmp_path) == before


def test_names_shapes_and_dtypes_count(tmp_path):
    def digest(tensors, folder):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
        return file_weights_fingerprint(tmp_path / folder)

    zeros = torch.zeros(4, 2)
    prints = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(2, 4)},
        {"a": zeros.view(torch.int32)},
        {"a": zeros, "b": zeros.clone()},
    ]
    assert len({digest(tensors, str(k)) for k, tensors in enumerate(prints)}) == len(prints)


def test_folder_files_and_metadata_do_not_count(tmp_path):
    tensors = {f"t{k}": torch.randn(5, 3) for k in range(4)}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    save_file({"t2": tensors["t2"], "t0": tensors["t0"]}, tmp_path / "two" / "model-00001-of-00002.safetensors")
    save_file({"t1": tensors["t1"], "t3": tensors["t3"]}, tmp_path / "two" / "model-00002-of-00002.safetensors")
    assert file_weights_fingerprint(tmp_path / "one") == file_weights_fingerprint(tmp_path / "two")


def test_damaged_and_absent_weights(tmp_path):
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        file_weights_fingerprint(tmp_path)
    save_file({"a": torch.zeros(100)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[:-7], whole[:20], b"\xff" * 40, b"abc"):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"no whole safetensors file"):
            file_weights_fingerprint(tmp_path)


def test_a_model_in_memory():
    model, same, other = make_llama(50), make_llama(50), make_llama(50, seed=1)
    assert model_weights_fingerprint(model) == model_weights_fingerprint(same) != model_weights_fingerprint(other)
    with torch.no_grad():
        same.lm_head.weight[3, 3] += 1e-6
    assert model_weights_fingerprint(model) != model_weights_fingerprint(same)
    assert model_weights_fingerprint(make_llama(50).bfloat16()) != model_weights_fingerprint(model)


def test_configuration():
    config = make_llama(50).config.to_dict()
    assert config_fingerprint({**config, "_name_or_path": "/elsewhere", "transformers_version": "9"}) == config_fingerprint(
        config
    )
    assert config_fingerprint({**config, "rms_norm_eps": 1e-4}) != config_fingerprint(config)


def test_tokenizer(tmp_path):
    tokenizer = make_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    again(["a", "a b"], padding=True, truncation=True, max_length=3)  # leaves its settings behind in the backend
    assert tokenizer_fingerprint(again) == before
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) != before
    tokenizer.eos_token = "</s>"
    assert tokenizer_fingerprint(tokenizer) != before
