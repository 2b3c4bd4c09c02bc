"""Port of cases/scoring_adapter_switch: a model in memory that computes something else is somebody else."""

import copy

import peft
import pytest
import torch

import multiref as mr
from multiref.models import LanguageModel
from tests.conftest import make_llama
from tests.models.templates import CHATML, byte_tokenizer

TEXT = [("hello", " world")]


def adapted(bias="none"):
    model = peft.get_peft_model(
        make_llama(300), peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], bias=bias)
    ).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.5, generator=torch.Generator().manual_seed(1))
    return model


def test_an_adapter_switched_off_is_not_served_from_the_store(tmp_path):
    model = adapted()
    references = mr.References({"m": LanguageModel(model, byte_tokenizer(), "m")})
    on = float(references.score(TEXT, store=tmp_path).logps)
    with model.disable_adapter():
        off, plain = (float(references.score(TEXT, store=store).logps) for store in (tmp_path, None))
    assert off == plain != on
    assert float(references.score(TEXT, store=tmp_path).logps) == on


def _scale(model):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2


def _second(model):
    model.add_adapter("second", peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["v_proj"]))
    model.set_adapter("second")


CHANGES = {
    "scaling": _scale,
    "another adapter": _second,
    "merged": lambda model: model.merge_adapter(),
    "rotary frequencies": lambda model: model.base_model.model.model.rotary_emb.inv_freq.mul_(2.0),
    "rotary scaling": lambda model: setattr(model.base_model.model.model.rotary_emb, "attention_scaling", 2.0),
    "attention": lambda model: setattr(model.config, "_attn_implementation", "eager"),
    "configuration": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
    "dtype": lambda model: model.bfloat16(),
    "one weight": lambda model: model.base_model.model.lm_head.weight.data[3].mul_(1.001),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_computes_is_in_the_identity(change):
    """Each change is seen; scoring and switching off and on again are none."""
    model = adapted()
    reference = mr.References({"m": LanguageModel(model, byte_tokenizer(), "m")}).open("m")
    before = dict(reference.identity())
    mr.References({"m": reference}).score(TEXT)
    with model.disable_adapter():
        assert dict(reference.identity()) != before
    assert dict(reference.identity()) == before
    CHANGES[change](model)
    assert dict(mr.References({"m": LanguageModel(model, byte_tokenizer(), "m")}).open("m").identity()) != before


def test_what_tokenises_is_in_the_identity():
    """Added tokens, special tokens, what is put in front, the template, every argument of the tokenisation."""
    model = make_llama(300)

    def identity(tokenizer, tokenisation=None):
        options = {} if tokenisation is None else {"tokenisation": tokenisation}
        return dict(mr.References({"m": LanguageModel(model, tokenizer, "m")}, **options).open("m").identity())

    plain = byte_tokenizer(CHATML)
    more, named = copy.deepcopy(plain), byte_tokenizer({"default": CHATML, "tool_use": CHATML + "{{ tools }}"})
    more.add_tokens(["<more>"])
    kinds = [
        identity(tokenizer)
        for tokenizer in (plain, more, named, byte_tokenizer(CHATML, bos=True), byte_tokenizer(CHATML + " "))
    ]
    kinds += [identity(byte_tokenizer(CHATML, eos="<|im_end|>"))]
    for name, value in {"end": False, "start": False, "join": "tokens", "max_length": 9, "truncation": "keep_end"}.items():
        kinds.append(identity(plain, mr.models.Tokenisation(**{name: value})))
    kinds.append(identity(plain, mr.models.Tokenisation(chat_template_kwargs={"a": 1})))
    assert len({str(sorted(kind.items(), key=str)) for kind in kinds}) == len(kinds)
    assert identity(byte_tokenizer(CHATML)) == kinds[0]
