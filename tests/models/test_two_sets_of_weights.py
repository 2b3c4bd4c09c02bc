"""Folders and adapters that would silently be another model: one saved over another; an adapter merged into tied embeddings."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref.errors import ModelError
from multiref.models import load
from multiref.models.adapters import merged
from tests.conftest import make_llama


def test_a_sharded_model_saved_over_a_whole_one(tiny_tokenizer, tmp_path):
    """transformers leaves the older model.safetensors, and reads that."""
    make_llama(len(tiny_tokenizer)).save_pretrained(tmp_path)
    make_llama(len(tiny_tokenizer), seed=1).save_pretrained(tmp_path / "other", max_shard_size="20KB")
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds two sets of weights"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    load(tmp_path)
    one, other = sorted(tmp_path.glob("model-*.safetensors"))[:2]  # transformers takes a key from either
    twice, value = next(iter(load_file(one).items()))
    for factor in (1, 2):
        save_file(load_file(other) | {twice: factor * value}, other, metadata={"format": "pt"})
        if factor == 1:
            load(tmp_path)
    with pytest.raises(ModelError, match="holds two different weights"):
        load(tmp_path)
    other.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"cannot be loaded\. Missing: {other.name}\."):
        load(tmp_path)
    (tmp_path / "elsewhere").rename(other)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"Missing: model\.safetensors\.index\.json"):
        load(tmp_path)
    shutil.copy(tmp_path / "other" / "model.safetensors.index.json", tmp_path)
    shutil.copy(one, tmp_path / "shard-00001-model-00001-of-00001.safetensors")  # of several ranks: needs no index, goes first
    with pytest.raises(ModelError, match=r"holds two sets of weights, with model-00001-of-.* and with shard-00001-model-00001"):
        load(tmp_path)


def test_parts_without_an_index_beside_a_whole_model(tiny_folder, tmp_path):
    """transformers reads the whole one and passes over the parts; which was saved last nobody knows."""
    shutil.copytree(tiny_folder, tmp_path / "m")
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "m" / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"two sets of weights, with model\.safetensors and with model-00002-of-00002"):
        load(tmp_path / "m")


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "q_proj"])
def test_an_adapter_on_one_end_of_tied_embeddings_cannot_be_merged(module, tiny_tokenizer):
    """Merged, its change reaches the other end too: logits are others, and the next adapter would begin elsewhere."""
    import peft

    for tied in (False, True):
        model = make_llama(len(tiny_tokenizer), tie_word_embeddings=tied)
        options = peft.LoraConfig(r=2, target_modules=[module], init_lora_weights=False)
        worn = peft.get_peft_model(model, options).eval()
        ids = torch.tensor([[3, 4, 5]])
        right = worn(ids).logits.detach()
        if tied and module != "q_proj":
            with pytest.raises(ModelError, match="merged into its base is another model"):
                merged(worn, "one")
        else:
            assert torch.allclose(merged(worn, "one")(ids).logits, right, atol=1e-4)
