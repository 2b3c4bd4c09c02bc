"""Adapters: loaded whole, alone or beside others, without a trace on the base, with their own tokenizer."""

import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref.errors import ModelError, MultirefWarning
from multiref.models import ModelSpec, encode, load
from multiref.models.shared_base import SharedBase
from multiref.references import LocalReference, References, token_scores
from multiref.references.protocol import Item
from tests.conftest import CHAT_TEMPLATE, make_llama, make_tokenizer

ROW = [("the dog", " sat on the log")]
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_llama(len(tiny_tokenizer), attention_bias=True).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(base, tiny_tokenizer, tmp_path_factory):
    """made(seed, kind, **its options) → (folder of an adapter with random weights, log-probability of ROW under PEFT)."""
    import peft
    from transformers import AutoModelForCausalLM

    def make(seed, on=base, kind="LoraConfig", **options):
        torch.manual_seed(seed)
        options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
        config = getattr(peft, kind)(**{name: value for name, value in options.items() if value is not None})
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(on), config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        return str(folder), plain(model, tiny_tokenizer), model

    return make


def plain(model, tokenizer):
    item = encode(tokenizer, ROW[0][0], [ROW[0][1]])
    context, answer = item.context(0), item.completions[0]
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([[*context, *answer]])).logits[0].log_softmax(-1)
    return sum(logps[len(context) - 1 + i, token].item() for i, token in enumerate(answer))


def go(**references):
    """By token: those have no store, and K adapters share one base."""
    return token_scores(References(references), ROW).summed().flatten().tolist()


KINDS = {
    "every bias": {"bias": "all"},
    "LoRA's biases": {"bias": "lora_only"},
    "DoRA": {"use_dora": True},
    "another head": {"modules_to_save": ["lm_head"]},
    "other embeddings": {"modules_to_save": ["embed_tokens"]},
    "two tokens": {"trainable_token_indices": [3, 4]},
    "ranks": {"rank_pattern": {"q_proj": 4}},
    "a base of its own": {"init_lora_weights": "olora"},
    "layers twice": {"layer_replication": [[0, 2], [1, 2]]},
    "IA3": {"kind": "IA3Config", "r": None, "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "VeRA": {"kind": "VeraConfig", "save_projection": False},
    "AdaLoRA": {"kind": "AdaLoraConfig", "r": None, "init_r": 4, "target_r": 2, "total_step": 10},
    "OFT": {"kind": "OFTConfig", "r": 0, "oft_block_size": 4},
    "places in the file": {"kind": "ShiraConfig"},
    "the largest ones": {"kind": "VBLoRAConfig", "num_vectors": 8, "vector_length": 4, "save_only_topk_weights": True},
    "one that PEFT does not switch": {"kind": "AdaptionPromptConfig", "adapter_len": 3, "adapter_layers": 1}
    | dict.fromkeys(("r", "target_modules")),
}


def some(names, quick):
    """Those that every run of the tests takes, and the others as slow."""
    return [each if each in quick else pytest.param(each, marks=pytest.mark.slow) for each in names]


@pytest.mark.parametrize("kind", some(KINDS, ("every bias", "places in the file", "one that PEFT does not switch")))
def test_every_kind_beside_others_and_the_base_untouched(base, made, tiny_tokenizer, kind):
    (first, right, _), (other, right_other, _) = made(1), made(2, **KINDS[kind])
    untouched = plain(load(base).model, tiny_tokenizer)
    on = {"adapter": first, "model": base}, {"adapter": other, "model": base}
    got = go(base=base, first=on[0], other=on[1], again=base)
    assert got == pytest.approx([untouched, right, right_other, untouched], abs=1e-4)
    got = go(other=on[1], base=base, first=on[0], alone=other)
    assert got == pytest.approx([right_other, untouched, right, right_other], abs=1e-4)
    assert abs(right_other - untouched) > 1e-3


BANK = {"kind": "VBLoRAConfig", "num_vectors": 8, "vector_length": 4}
PAIRS = {
    "a bank of vectors": (BANK, BANK),
    "another function": ({"kind": "MissConfig", "r": 4}, {"kind": "MissConfig", "r": 4, "mini_r": 2, "init_weights": "mini"}),
    "another draw": ({"kind": "RandLoraConfig"}, {"kind": "RandLoraConfig", "sparse": True}),
    "other layers": tuple(
        {"kind": "LNTuningConfig", "r": None, "target_modules": [name]}
        for name in ("input_layernorm", "post_attention_layernorm")
    ),
}


@pytest.mark.parametrize("kind", some(PAIRS, ("a bank of vectors", "another function")))
def test_two_of_a_kind_that_peft_keeps_together(base, made, tiny_tokenizer, kind):
    """PEFT's layers hold one bank, one function or one draw for all adapters of a kind; the first or the second one's."""
    (first, right, _), (second, other, _) = (made(seed, **options) for seed, options in enumerate(PAIRS[kind], 1))
    untouched = plain(load(base).model, tiny_tokenizer)
    on = {"adapter": first, "model": base}, {"adapter": second, "model": base}
    got = go(first=on[0], base=base, second=on[1], again=on[0])
    assert got == pytest.approx([right, untouched, other, right], abs=1e-3)
    assert min(abs(right - untouched), abs(other - untouched), abs(right - other)) > 3e-3


def test_tables_that_are_the_second_file_s_own(base, made, tiny_tokenizer, tmp_path):
    """VeRA's two random matrices are one for all adapters of a model, and a file may bring others."""
    (first, right, _), (second, _, model) = made(1, kind="VeraConfig"), made(2, kind="VeraConfig")
    torch.manual_seed(0)
    tables = {f"base_model.vera_{end}": torch.randn(model.base_model.state_dict()[f"vera_{end}.default"].shape) for end in "AB"}
    second = damaged(second, tmp_path / "second", lambda w: w | tables)
    other = plain(load(second).model, tiny_tokenizer)
    on = {"adapter": first, "model": base}, {"adapter": second, "model": base}
    assert go(first=on[0], second=on[1], again=on[0]) == pytest.approx([right, other, right], abs=1e-4)
    assert abs(right - other) > 1e-2


def damaged(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path)
    weights = change(load_file(tmp_path / FILE))
    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / FILE)
    return str(tmp_path)


FAULTS = {
    "prefixed": (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"4 of its weights have no place.*_orig_mod"),
    "partly": (lambda w: dict(list(w.items())[1:]), r"0 .* have no place and 1 that it should have"),
    "a seventh layer": (lambda w: w | {k.replace("rs.1.", "rs.7."): v for k, v in w.items()}, r"2 .* have no place.*layers\.7"),
    "other names": (lambda w: {k.replace("q_proj", "query"): v for k, v in w.items()}, r"4 .* no place and 4 "),
    "other shapes": (lambda w: {k: v[:1] if "_A" in k else v[:, :1] for k, v in w.items()}, r"size mismatch"),
    "whole numbers": (lambda w: {k: (v * 99).to(torch.int8) for k, v in w.items()}, r"holds whole numbers as weights.*lora_A"),
    "no number": (lambda w: {k: v * torch.nan for k, v in w.items()}, r"NaN"),
}


@pytest.mark.parametrize("fault", some(FAULTS, ("prefixed", "partly")))
def test_one_that_does_not_fit_is_refused_first_or_second(base, made, tmp_path, fault):
    folder, right, _ = made(1)
    change, words = FAULTS[fault]
    bad = {"model": base, "adapter": damaged(folder, tmp_path / "bad", change)}
    for before in ({}, {"good": {"model": base, "adapter": folder}}):
        with pytest.raises(ModelError, match=words):
            go(**before, bad=bad)
    assert go(good={"model": base, "adapter": folder}) == pytest.approx([right], abs=1e-4)


def test_tokens_that_turn_an_adapter_on_belong_into_the_prompt(base, made, tiny_tokenizer):
    """Activated LoRA works from the last place of its tokens on: in an answer they would change what is before them."""
    switch = tiny_tokenizer("the dog", add_special_tokens=False)["input_ids"]
    folder, right, _ = made(1, alora_invocation_tokens=switch)
    assert go(one=folder) == pytest.approx([right], abs=1e-4)
    with pytest.raises(ModelError, match=r"turn the aLoRA adapter on, .* occur in a completion of the prompt 'the dog'"):
        LocalReference(folder).score([Item("the dog", (" sat", " saw that the dog sat"))])
    LocalReference(base).score([Item("the dog", (" saw that the dog sat",))])


def test_a_mixture_of_adapters_elsewhere_is_refused(base, made, tmp_path):
    """X-LoRA names the folders of its experts: another number, should one of them change, under the same name."""
    folder, _, _ = made(1)
    mixture = shutil.copytree(folder, tmp_path / "mixture")
    settings = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "hidden_size": 32}
    (mixture / "adapter_config.json").write_text(json.dumps(settings | {"adapters": {"0": folder, "1": folder}}))
    with pytest.raises(ModelError, match=r"mixes 2 others that are elsewhere"):
        load(mixture)


def test_a_bias_that_the_file_lacks(base, made, tmp_path):
    folder, _, _ = made(1, bias="all")
    short = damaged(
        folder, tmp_path / "short", lambda w: {k: v for k, v in w.items() if "layers.0" not in k or "bias" not in k}
    )
    with pytest.raises(ModelError, match=r"0 .* no place and 4 .*\.bias"):
        load(short)


def test_a_whole_model_in_the_adapters_folder_is_not_what_is_scored(base, made, tmp_path):
    """As where an adapter was merged, and the model saved beside it: said, and the folder stays what it was."""
    folder, right, _ = made(1)
    both = shutil.copytree(folder, tmp_path / "both")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(base, name), both)
    with pytest.warns(MultirefWarning, match=r"an adapter and a whole model besides.*remove adapter_config\.json"):
        assert go(both=str(both)) == pytest.approx([right], abs=1e-4)


def test_tokens_added(base, tiny_tokenizer, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(len(tiny_tokenizer) + 6, mean_resizing=False)
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(grown, config).eval()
    with pytest.warns(UserWarning, match="resized"):
        model.save_pretrained(tmp_path / "grown")
    right, untouched = plain(model, tiny_tokenizer), plain(load(base).model, tiny_tokenizer)
    assert go(grown=str(tmp_path / "grown"), base=base) == pytest.approx([right, untouched], abs=1e-4)
    one_end = damaged(tmp_path / "grown", tmp_path / "one", lambda w: {k: v for k, v in w.items() if "lm_head" not in k})
    with pytest.raises(ModelError, match=r"rows of one end only"):
        load(one_end)


def test_an_adapter_on_an_adapter(base, made, tiny_tokenizer, tmp_path):
    """The second was trained on the first merged, and names its folder; its scores and identity are of both."""
    first, _, model = made(1)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    tiny_tokenizer.save_pretrained(tmp_path / "merged")
    second, right, _ = made(2, on=tmp_path / "merged", target_modules=["v_proj"])
    config = json.loads((tmp_path / second / "adapter_config.json").read_text())
    (tmp_path / second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": first}))
    assert plain(load(second).model, tiny_tokenizer) == pytest.approx(right, abs=1e-4)
    assert go(both=second, same={"model": first, "adapter": second}, base=base)[:2] == pytest.approx([right] * 2, abs=1e-4)
    scored = References({"both": second}).score(ROW, store=tmp_path / "store")
    assert scored.logps.item() == pytest.approx(right, abs=1e-4)
    config = json.loads((tmp_path / first / "adapter_config.json").read_text())
    before = LocalReference(second).identity()
    (tmp_path / first / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))
    assert LocalReference(second).identity() != before


def test_a_base_by_a_relative_path(base, made, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "base")
    folder, right, _ = made(1, on="base")
    shutil.copytree(folder, tmp_path / "runs/x")
    for place in (tmp_path, tmp_path / "runs", "/"):
        monkeypatch.chdir(place)
        assert plain(load(tmp_path / "runs/x").model, tiny_tokenizer) == pytest.approx(right, abs=1e-4)
    with pytest.raises(ModelError, match=rf"names its base 'base', which is no folder from / nor from {folder}"):
        LocalReference(folder)
    os.makedirs(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copytree(base, "base")
    with pytest.raises(ModelError, match=r"there are two: .*elsewhere.base .*from the working folder.*Give the base"):
        load(tmp_path / "runs/x")


def test_another_base_than_the_one_it_names(base, made, tmp_path):
    folder, right, _ = made(1)
    shutil.copytree(base, tmp_path / "other")
    with pytest.warns(MultirefWarning, match=r"was trained on .*, and is put on .*other"):
        assert go(a={"model": str(tmp_path / "other"), "adapter": folder}) == pytest.approx([right], abs=1e-4)


def test_its_own_tokenizer_and_template(base, made, tiny_tokenizer, tmp_path):
    """Whole tokenizer or template alone, as `model` or as `adapter`: the scores of the same weights in a folder with them."""
    folder, _, _ = made(1)
    own = make_tokenizer(chat=True)
    own.chat_template = CHAT_TEMPLATE.replace("<|", "<<")
    shutil.copytree(base, tmp_path / "base")
    own.save_pretrained(tmp_path / "base")
    chat = [([{"role": "user", "content": "the dog"}], [{"role": "assistant", "content": "sat"}])]

    def score(what):
        return References({"r": what}).score(chat).logps.item()

    plainly = score(folder)
    with pytest.warns(MultirefWarning, match="was trained on"):
        right = score({"model": str(tmp_path / "base"), "adapter": folder})
    assert abs(plainly - right) > 0.1
    for write in (
        lambda place: own.save_pretrained(place),
        lambda place: (place / "chat_template.jinja").write_text(own.chat_template),
    ):
        place = tmp_path / f"adapter{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, place)
        write(place)
        assert score(str(place)) == pytest.approx(right, abs=1e-5)
        assert score({"model": base, "adapter": str(place)}) == pytest.approx(right, abs=1e-5)
        assert load(place).tokenizer.chat_template == own.chat_template


def test_settings_of_a_newer_peft(base, made, tmp_path):
    folder, right, _ = made(1)
    shutil.copytree(folder, tmp_path / "newer")
    config = json.loads((tmp_path / "newer/adapter_config.json").read_text())
    (tmp_path / "newer/adapter_config.json").write_text(json.dumps(config | {"use_magic": True, "use_none": None}))
    with pytest.warns(MultirefWarning, match=r"does not know \(use_magic\)"):
        assert go(a={"model": base, "adapter": str(tmp_path / "newer")}) == pytest.approx([right], abs=1e-4)


def test_a_base_that_is_drawn_anew_at_each_load_is_refused(base, made):
    """PiSSA takes a part out of the base; by a quick decomposition it is a random one, and PEFT takes another at each load."""
    folder, _, _ = made(3, init_lora_weights="pissa_niter_4")
    with pytest.raises(ModelError, match=r"\(pissa_niter_4\) that is drawn at random.*base_layer"):
        load(folder)
    folder, right, _ = made(3, init_lora_weights="pissa")
    assert go(a=folder, base=base)[0] == pytest.approx(right, abs=1e-4)


def test_experts_that_were_layers_of_their_own(tiny_tokenizer, tmp_path):
    """transformers 5 holds all experts of a layer as one tensor, and PEFT puts there what was trained on single ones. It keeps
    W + (α/r) B A of each, but neither α/√r (rsLoRA) nor another α of one of the two that are now one: 1.7 nats a token off."""
    import peft
    from transformers import AutoModelForCausalLM, MixtralConfig

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MixtralConfig(vocab_size=len(tiny_tokenizer), **sizes, **heads)).eval()
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    experts = model.model.layers[0].mlp.experts
    places = {"w1": experts.gate_up_proj[:, :12], "w3": experts.gate_up_proj[:, 12:], "w2": experts.down_proj}
    places = {f"experts.{e}.{name}": weights[e] for name, weights in places.items() for e in range(2)}
    there = {f"block_sparse_moe.{name}": weight for name, weight in places.items()}
    there["self_attn.q_proj"] = model.model.layers[0].self_attn.q_proj.weight
    file = {}
    for name, weight in there.items():
        a, b = 0.5 * torch.randn(2, weight.shape[1]), 0.5 * torch.randn(weight.shape[0], 2)
        key = f"base_model.model.model.layers.0.{name}"
        file |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        with torch.no_grad():
            weight += 4 * b @ a
    options = {"r": 2, "lora_alpha": 8, "target_modules": ["w1", "w2", "w3", "q_proj"], "task_type": "CAUSAL_LM"}
    for number, more in enumerate(({}, {"use_rslora": True}, {"alpha_pattern": {"w1": 16}})):
        config = peft.LoraConfig(**options, **more)
        config.base_model_name_or_path = str(tmp_path / "base")
        config.save_pretrained(tmp_path / str(number))
        save_file(file, tmp_path / str(number) / FILE)
    assert go(a=str(tmp_path / "0")) == pytest.approx([plain(model, tiny_tokenizer)], abs=1e-4)
    for number in "12":
        with pytest.raises(ModelError, match="experts were layers of their own"):
            load(tmp_path / number)


def test_experts_in_an_order_that_peft_does_not_read(made, tmp_path):
    """Unsloth until its pull request 1269: [out, experts · rank] with the expert first, where PEFT reads the rank first."""
    folder, _, _ = made(1, target_parameters=["mlp.gate_proj.weight"])
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    for mark in (True, False):
        (place := tmp_path / str(mark)).mkdir()
        shutil.copy(f"{folder}/{FILE}", place)
        (place / "adapter_config.json").write_text(json.dumps(settings | {"auto_mapping": {"unsloth_fixed": mark}}))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            load(place)
        assert any("trained by Unsloth" in str(each.message) for each in said) == mark


def test_a_layer_whose_weight_is_read_beside_it(made, tiny_tokenizer, tmp_path):
    """Jamba multiplies by the weight of `dt_proj` itself, whose adapter does nothing until it is merged: 1.4 nats a token."""
    from transformers import JambaConfig, JambaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
    few = {"num_experts": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}
    torch.manual_seed(0)
    config = JambaConfig(vocab_size=len(tiny_tokenizer), **sizes, **few, initializer_range=0.5, use_mamba_kernels=False)
    JambaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    folder, right, _ = made(1, on=str(tmp_path), target_modules=["dt_proj", "q_proj"], init_lora_weights=False)
    assert go(one={"model": str(tmp_path), "adapter": folder}) == pytest.approx([right], abs=1e-3)


def test_ranks_that_a_budget_has_cut(base, tiny_tokenizer, tmp_path):
    """AdaLoRA trained to its end: its file holds fewer ranks than its configuration begins with."""
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.AdaLoraConfig(init_r=4, target_r=1, tfinal=1, total_step=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    ids = torch.arange(3, 20)[None]
    for step in range(4):
        model(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.0 if parameter.grad is None else 0.5 * parameter.grad
        model.base_model.update_and_allocate(step)
        model.zero_grad()
    model.eval().save_pretrained(tmp_path)
    assert len(load_file(tmp_path / FILE)["base_model.model.model.layers.0.self_attn.q_proj.lora_A"]) < 4
    assert go(a={"model": base, "adapter": tmp_path}) == pytest.approx([plain(model, tiny_tokenizer)], abs=1e-4)


def test_prompt_tuning_is_refused(base, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"tokens of its own before the text"):
        load(tmp_path)


def test_two_threads_on_one_base(base, made):
    references = References({name: {"model": base, "adapter": made(seed)[0]} for seed, name in enumerate("ab", 1)})
    encoded = {name: references.open(name).encode([Item(*ROW[0][:1], ROW[0][1:])]) for name in "ab"}
    right = {name: torch.cat(references.open(name).token_logps(encoded[name])) for name in "ab"}
    found = {"a": [], "b": []}

    def work(name):
        for _ in range(15):
            found[name].append(torch.cat(references.open(name).token_logps(encoded[name])))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, right[name]) for name in "ab" for each in found[name]) and len(found["a"]) == 15


def test_a_base_is_itself_after_an_adapter_that_was_refused(base, made, tiny_tokenizer, tmp_path):
    """As where a reference is tried, left out, and the others score on: what was put on the base before the error is off."""
    shared, (folder, right, _) = SharedBase(ModelSpec(base), "cpu"), made(1)
    bad = damaged(folder, tmp_path / "bad", lambda w: dict(list(w.items())[1:]))
    found = []
    for adapter in (None, folder, None):
        with shared.with_adapter(adapter) as model:
            found.append(plain(model, tiny_tokenizer))
        with pytest.raises(ModelError, match="1 that it should have"), shared.with_adapter(bad):
            pass
    assert found == pytest.approx([found[0], right, found[0]], abs=1e-4)


def test_one_base_wears_one_at_a_time(base, made):
    shared = SharedBase(ModelSpec(base), "cpu")
    folder, _, _ = made(1)
    with shared.with_adapter(None), pytest.raises(ModelError, match=r"in use with no adapter"), shared.with_adapter(folder):
        pass
    with shared.with_adapter(folder), shared.with_adapter(folder):
        pass


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear", ["lm_head", "k_proj"]], ids=["two", "all", "head"])
def test_an_adapter_scores_merged_and_leaves_the_base_its_bits(base, made, targets):
    """W + s B A in place of W says what PEFT says of both, to rounding; after it the base has the very bits that it had."""
    folder, right, _ = made(5, target_modules=targets)
    shared = SharedBase(ModelSpec(base), "cpu")
    bare = shared.language_model()
    before = {name: weight.clone() for name, weight in bare.model.state_dict().items()}
    for _ in range(2):
        with shared.with_adapter(folder) as worn, shared.with_adapter(folder) as again:
            layers = [each for each in worn.modules() if hasattr(each, "merged_adapters")]
            assert layers and all(each.merged for each in layers) and again is worn
            assert plain(worn, bare.tokenizer) == pytest.approx(right, abs=1e-4)
        with shared.with_adapter(None) as model:
            weights = model.state_dict().items()
        found = {name.removeprefix("base_model.model.").replace(".base_layer", ""): weight for name, weight in weights}
        assert all(torch.equal(found[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("narrow", [True, False], ids=["bfloat16", "tied"])
def test_an_adapter_is_not_merged_where_that_is_another_model(made, tiny_tokenizer, tmp_path, narrow):
    """bfloat16 weights would round a small change away; of tied ends the other one would change too."""
    make_llama(len(tiny_tokenizer), tie_word_embeddings=not narrow).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    folder, _, _ = made(6, on=str(tmp_path), target_modules=["q_proj"] if narrow else ["q_proj", "lm_head"])
    shared = SharedBase(ModelSpec(str(tmp_path), dtype="bfloat16" if narrow else None), "cpu")
    with shared.with_adapter(folder) as worn:
        assert not any(each.merged for each in worn.modules() if hasattr(each, "merged_adapters"))
