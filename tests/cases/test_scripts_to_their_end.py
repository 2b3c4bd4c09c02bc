"""Three scripts that stop at a right refusal, run to their last line: what is refused is mended as a user would mend it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref.errors import DataError, ModelError
from multiref.models import LanguageModel, Tokenisation, encode
from multiref.references import References, token_scores
from tests.cases.test_scoring_causal import DATA, bert
from tests.conftest import make_llama
from tests.models.templates import CHATML, DEEPSEEK, QWEN, byte_tokenizer

ROW = [("hello", " world")]
USER = ({"role": "user", "content": "hi"},)
FILES = "model.safetensors", "adapter_model.safetensors"


def says(content):
    return ({"role": "assistant", "content": content},)


def folder_of(place, tokenizer, **options):
    make_llama(len(tokenizer), context=512, **options).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def wrapped(source, target, file, prefix="_orig_mod."):
    """The same folder with a wrapper's prefix before its keys; without a prefix: taken off again."""
    shutil.copytree(source, target)
    held = load_file(target / file)
    held = {prefix + key: value for key, value in held.items()} if prefix else {k[10:]: v for k, v in held.items()}
    save_file(held, target / file, metadata={"format": "pt"})
    return str(target)


@pytest.mark.slow
def test_scoring_missing_keys(tmp_path):
    """One number at two seeds; refused twice; the keys mended, the first number again."""
    folder = folder_of(tmp_path / "whole", byte_tokenizer())
    right = [References({"r": folder}).score(ROW).logps.item() for _ in map(torch.manual_seed, (0, 1))]
    assert right[0] == right[1]
    shutil.copytree(folder, tmp_path / "headless")
    held = {key: value for key, value in load_file(f"{folder}/{FILES[0]}").items() if key != "lm_head.weight"}
    save_file(held, tmp_path / "headless" / FILES[0], metadata={"format": "pt"})
    for bad in (str(tmp_path / "headless"), wrapped(folder, tmp_path / "wrapped", FILES[0])):
        for _ in map(torch.manual_seed, (0, 1)):
            with pytest.raises(ModelError, match="lm_head"):
                References({"r": bad}).score(ROW)
    mended = wrapped(tmp_path / "wrapped", tmp_path / "mended", FILES[0], prefix="")
    assert References({"r": mended}).score(ROW).logps.item() == right[0]


@pytest.mark.slow
def test_scoring_adapters(tmp_path):
    """The base before and after an adapter with biases; prefixed keys, second in line; the folder's own template."""
    import peft
    from transformers import AutoModelForCausalLM

    lines = byte_tokenizer("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    base = folder_of(tmp_path / "base", lines, attention_bias=True)

    def adapter(name, **options):
        config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], **options)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 if parameter.requires_grad else 0
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    def go(**adapters):
        named = {name: {"model": base, **({"adapter": folder} if folder else {})} for name, folder in adapters.items()}
        return token_scores(References(named), ROW).summed().flatten().tolist()

    (alone,) = go(base=None)
    assert go(biased=adapter("biased", bias="all"), base=None)[1] == alone
    one = adapter("one")
    (right,) = go(one=one)
    bad = wrapped(one, tmp_path / "bad", FILES[1])
    with pytest.raises(ModelError, match="_orig_mod"):
        go(one=one, bad=bad)
    assert go(one=one, mended=wrapped(bad, tmp_path / "mended", FILES[1], prefix="")) == [right, right] != [alone, alone]
    byte_tokenizer(CHATML).save_pretrained(one)
    shutil.copytree(base, tmp_path / "other")
    byte_tokenizer(CHATML).save_pretrained(tmp_path / "other")
    chat = [(USER, says("yes"))]
    both = [one, {"model": str(tmp_path / "other"), "adapter": one}]
    with pytest.warns(match="was trained on"):
        scores = [References({"r": what}).score(chat).logps.item() for what in both]
    assert scores[0] == scores[1]


def test_scoring_end_cut_reasoning_causal():
    """Three answers whole; reasoning that is deleted, under a template that keeps it; an encoder, loaded as a decoder."""
    tokenizer = byte_tokenizer(CHATML)
    for content in ("end", "i", "yes"):
        assert tokenizer.decode(encode(tokenizer, USER, [says(content)], Tokenisation(end=False)).completions[0]) == content
    rows = [(USER, says(f"<think>{thought}</think>yes")) for thought in ("good", "no no no")]
    deletes, keeps = (byte_tokenizer(template) for template in (DEEPSEEK, QWEN))
    model = make_llama(len(keeps), context=512)
    with pytest.raises(DataError, match="written the same"):
        References({"r": LanguageModel(model, deletes, "r")}).score(rows)
    assert len(set(References({"r": LanguageModel(model, keeps, "r")}).score(rows).logps[0].tolist())) == 2
    with pytest.raises(ModelError, match="no causal language model"):
        token_scores(bert(), DATA)
    scores = token_scores(bert(is_decoder=True), DATA)
    first = [scores.token_logps[0, scores.offsets[i]].item() for i in (0, 1)]
    assert first[0] == pytest.approx(first[1], abs=1e-5)
