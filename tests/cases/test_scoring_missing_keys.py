"""Checkpoints that are not whole, or hold more than the model has a place for: the same number at every seed, or refused."""

import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from multiref.errors import ModelError, MultirefWarning
from multiref.models import ModelSpec, completion_logps, encode, load
from multiref.models.checkpoint import load_whole
from multiref.training.online.rewards import RewardModel
from multiref.training.reward import open_reward_model
from tests.conftest import make_gpt2, make_llama

ROW = [("the dog", " sat on the log")]


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    """Two layers, no biases, the head not tied; and its weights."""
    make_llama(len(tiny_tokenizer)).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def weights(folder):
    return load_file(folder / "model.safetensors")


def write(folder, weights):
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def score(folder):
    """Of the encoded row; `References` loads as this does, and audits too."""
    loaded = load(folder)
    return completion_logps(loaded.model, [encode(loaded.tokenizer, ROW[0][0], [ROW[0][1]])]).item()


def renamed(weights, old, new):
    return {key.replace(old, new): value for key, value in weights.items() if old in key}


LAYER = "model.layers.0.self_attn."
REFUSED = {
    "no head": (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, r"whole.*1 weights are missing.*lm_head"),
    "compiled": (
        lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
        r"lm_head\.weight, .*, … .*file has _orig_mod\.lm_head",
    ),
    "a norm of another width": (
        lambda w: w | {"model.norm.weight": torch.ones(31)},
        r"model\.norm\.weight \(file \[31\], model",
    ),
    "a third layer": (lambda w: w | renamed(w, "layers.1.", "layers.2."), r"9 weights.*no place: model\.layers\.2\.input_lay"),
    "a bias": (lambda w: w | {LAYER + "q_proj.bias": torch.ones(32)}, r"no place: .*q_proj\.bias"),
    "norms of queries": (lambda w: w | {LAYER + "q_norm.weight": torch.ones(8)}, r"no place: .*q_norm\.weight"),
    "an adapter left in": (lambda w: w | {LAYER + "q_proj.lora_A.default.weight": torch.ones(2, 32)}, r"no place: .*lora_A"),
    "a norm of embeddings": (lambda w: w | {"model.embed_norm.weight": torch.ones(32)}, r"no place: model\.embed_norm"),
    "a bias of the head": (lambda w: w | {"lm_head.bias": torch.ones(9)}, r"no place: lm_head\.bias"),
    "one head wrapped": (lambda w: w | {"module.lm_head.weight": w["lm_head.weight"]}, r"no place: module\.lm_head"),
    "two copies": (lambda w: w | {f"average.{k}": v for k, v in w.items()}, r"no place: average\."),
    "the body alone, a layer more": (
        lambda w: {k.removeprefix("model."): v for k, v in w.items()} | {"layers.2.mlp.up_proj.weight": torch.ones(3)},
        r"no place: layers\.2\.mlp",
    ),
    "a weight twice": (
        lambda w: w | {"layers.0.mlp.up_proj.weight": 2 * w["model.layers.0.mlp.up_proj.weight"]},
        r"1 weights twice, with 'model\.' before their names and without: layers\.0\.mlp\.up_proj",
    ),
    "whole numbers": (
        lambda w: w | {LAYER + "q_proj.weight": (w[LAYER + "q_proj.weight"] * 99).to(torch.int8)},
        r"q_proj\.weight holds whole numbers \(I8\)",
    ),
    "eight bits and no scale": (
        lambda w: w | {LAYER + "q_proj.weight": (w[LAYER + "q_proj.weight"] * 300).to(torch.float8_e4m3fn)},
        r"q_proj\.weight holds scaled numbers \(F8_E4M3\)",
    ),
    "not a number": (lambda w: w | {"model.norm.weight": torch.full((32,), torch.nan)}, r"model\.norm\.weight holds NaN"),
    "infinite": (
        lambda w: w | {"model.norm.weight": torch.full((32,), torch.inf)},
        r"model\.norm\.weight holds NaN or infinity",
    ),
}


def some(names, quick):
    """Those that every run of the tests takes, and the others as slow."""
    return [each if each in quick else pytest.param(each, marks=pytest.mark.slow) for each in names]


QUICK = ("no head", "compiled", "a third layer", "a bias", "one head wrapped", "a weight twice")


@pytest.mark.parametrize("what", some(REFUSED, QUICK))
def test_what_is_not_whole_is_refused(folder, weights, what):
    change, words = REFUSED[what]
    write(folder, change(weights))
    with pytest.raises(ModelError, match=words):
        score(folder)


LISTED = {
    "a vision tower": (
        {"vision_tower.blocks.0.weight": torch.ones(4), "multi_modal_projector.linear.weight": torch.ones(3)},
        r"2 weights .*multi_modal_projector.*vision_tower",
    ),
    "one in the body": ({"model.visual.blocks.0.w": torch.ones(4), "model.image_newline": torch.ones(4)}, r"model\.visual"),
    "prediction further ahead": (
        {"mtp.layers.0.fc.weight": torch.ones(4), "model.layers.2.eh_proj.weight": torch.ones(4),
         "model.layers.2.self_attn.q_proj.weight": torch.ones(4)},
        r"mtp",
    ),
    "a head of another task": ({"score.weight": torch.ones(1, 32)}, r"score\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", some(LISTED, ("one in the body", "prediction further ahead")))
def test_what_else_it_holds_is_listed(folder, weights, what):
    right, (more, words) = score(folder), LISTED[what]
    write(folder, weights | more)
    with pytest.warns(MultirefWarning, match=words):
        assert score(folder) == right


def test_a_layer_that_transformers_passes_over_by_its_number_is_listed(folder, weights, monkeypatch):
    """DeepSeek-V3's list says `layers.61`, which there predicts further ahead. In a model of 62 layers it is one of them."""
    right = score(folder)
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"layers\.2\.", r"layers\.0\."], raising=False)
    more = renamed(weights, "layers.1.", "layers.2.")
    for further, words in (({}, r"9 weights .*model\.layers \(9\)"), ({"model.layers.2.eh_proj.weight": torch.ones(4)}, None)):
        write(folder, weights | more | further)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert score(folder) == right
        found = [str(each.message) for each in said if each.category is MultirefWarning and "weights that" in str(each.message)]
        assert bool(found) == bool(words) and (not words or re.search(words, found[0]))


def test_what_is_fine_loads_in_silence(folder, weights, tiny_tokenizer, tmp_path):
    """Whole at two seeds; the body's names without its prefix; tables of older versions; a head tied to the embeddings, in the
    file or not; GPT-2 with its masks. Loading draws nothing."""
    right, tables = score(folder), {f"{LAYER}rotary_emb.inv_freq": 1e4 ** (-torch.arange(4) / 4)}
    for held in (weights, {k.removeprefix("model."): v for k, v in weights.items()}, weights | tables):
        write(folder, held)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        assert score(folder) == right
        assert torch.equal(before, torch.get_rng_state())
    for name, model in {"llama": make_llama(len(tiny_tokenizer), tie_word_embeddings=True), "gpt2": make_gpt2(420)}.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        held, right = load_file(tmp_path / name / "model.safetensors"), score(tmp_path / name)
        assert "lm_head.weight" not in held
        masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9), "transformer.h.0.attn.masked_bias": torch.ones(())}
        write(tmp_path / name, held | {"lm_head.weight": model.lm_head.weight.detach()} | (masks if name == "gpt2" else {}))
        assert score(tmp_path / name) == right


def test_frequencies_of_another_base_than_the_configuration_has(folder, weights):
    """As where an old file's config.json lost `rope_theta`: the version that wrote it took the table, and ours does not."""
    right = score(folder)
    for dtype, theta in ((torch.float16, 1e6), (torch.float32, 5e5)):
        write(folder, weights | {f"{LAYER}rotary_emb.inv_freq": (theta ** (-torch.arange(4) / 4)).to(dtype)})
        with pytest.warns(MultirefWarning, match=r"the bases \[10000\.0\], and the file holds a table of base (999|500),\d{3}"):
            assert score(folder) == right


def test_frequencies_that_the_configuration_does_not_state(tiny_tokenizer, tmp_path):
    """transformers 5.23 and 5.24 read `rope_theta` of version 4 for the full layers of Olmo 3 alone: 0.6 nats a token."""
    from transformers import Olmo3Config, Olmo3ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds, rope = ["sliding_attention", "full_attention"], {"rope_type": "default", "rope_theta": 1e4}
    config = Olmo3Config(vocab_size=len(tiny_tokenizer), **sizes, layer_types=kinds, rope_parameters=dict.fromkeys(kinds, rope))
    Olmo3ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*rotary", MultirefWarning)
        load_whole(AutoModelForCausalLM, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(settings | {"rope_theta": 1e4}))
    if AutoConfig.from_pretrained(tmp_path).rope_parameters["sliding_attention"]["rope_theta"] == 1e4:
        pytest.skip("this transformers reads it")
    with pytest.warns(
        MultirefWarning, match=r"Olmo3ForCausalLM get the bases \[10000\.0, 500000\.0\], and config\.json states \[10000\.0\]"
    ):
        load_whole(AutoModelForCausalLM, tmp_path)


def test_a_head_of_its_own_beside_a_configuration_that_ties_it(folder, weights):
    """transformers 5 takes the head of the file, 4 the embeddings; of it only a log told, which the command line silences."""
    right = score(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    with pytest.warns(MultirefWarning, match=r"ties model\.embed_tokens\.weight to lm_head\.weight, .* other numbers for each"):
        assert score(folder) == right
    write(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*ties", MultirefWarning)
        score(folder)


def test_allow_keys_is_for_who_means_it(folder, weights):
    right = score(folder)
    write(folder, weights | {"lm_head.bias": torch.ones(9), "vision_tower.blocks.0.weight": torch.ones(4)})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*weights", MultirefWarning)
        spec = ModelSpec(folder, allow_keys=["lm_head.b*", "vision_tower.*"])
        assert score(spec) == right
    assert hash(spec) == hash(ModelSpec(folder, allow_keys=("lm_head.b*", "vision_tower.*")))


def test_a_loader_that_drops_a_key_and_says_nothing(folder):
    """Planted: a class that reports every key as loaded, though one is drawn anew at each load."""
    from transformers import AutoModelForCausalLM

    class Dropping:
        @classmethod
        def from_pretrained(cls, path, output_loading_info=False, **options):
            model = AutoModelForCausalLM.from_pretrained(path)
            torch.nn.init.normal_(model.model.norm.weight)
            report = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
            return (model, report) if output_loading_info else model

    with pytest.raises(ModelError, match=r"1 weights .* drawn anew at each load: model\.norm\.weight"):
        load_whole(Dropping, str(folder))


def test_a_new_head_is_trained_and_never_scores(folder):
    """A reward head is made where it is to be trained; where it gives rewards it must be in the checkpoint."""
    opened = open_reward_model(str(folder))
    assert opened.model.score.weight.count_nonzero() == 0
    with pytest.raises(ModelError, match=r"whole.*score\.weight"):
        RewardModel(str(folder))
    opened.model.save_pretrained(folder)
    RewardModel(str(folder))
    write(folder, {key: value for key, value in load_file(folder / "model.safetensors").items() if "norm" not in key})
    with pytest.raises(ModelError, match=r"whole.*norm"):
        open_reward_model(str(folder))


def test_experts_are_put_together_from_all_of_them(tiny_tokenizer, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert load(ModelSpec(tmp_path, dtype="float64")).model(torch.tensor([[1, 2]])).logits.isfinite().all()
    one = next(key for key in held if "experts.1." in key)
    write(tmp_path, {key: value for key, value in held.items() if key != one})
    with pytest.raises(ModelError, match=r"whole model: model\.layers\.0\.mlp\.experts.* cannot be put together"):
        load(tmp_path)
    write(tmp_path, held | renamed(held, "experts.1.", "experts.3."))
    with pytest.raises(ModelError, match=r"experts\.\w+ \(file \[4, .*model \[3, "):
        load(tmp_path)


def test_an_adapter_brings_its_reward_head(folder, tmp_path):
    """The rewards in memory are those of the adapter's folder; without its head it is refused."""
    from multiref.training.reward.model import with_lora

    torch.manual_seed(3)
    opened = open_reward_model(str(folder))
    model = with_lora(opened.model, {"r": 2, "target_modules": ["q_proj"]}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter) if parameter.requires_grad else 0
    model.save_pretrained(tmp_path / "adapter")
    opened.tokenizer.save_pretrained(tmp_path / "adapter")
    ids = opened.tokenizer(ROW[0][0] + ROW[0][1], return_tensors="pt")
    with torch.no_grad():
        right = model(**ids).logits.item()
    assert RewardModel(str(tmp_path / "adapter"))([ROW[0][0]], [ROW[0][1]]) == pytest.approx([right], abs=1e-5)
    held = load_file(tmp_path / "adapter/adapter_model.safetensors")
    save_file({k: v for k, v in held.items() if "score" not in k}, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ModelError, match="score"):
        RewardModel(str(tmp_path / "adapter"))


def test_what_is_no_causal_model_is_named_in_one_line(tmp_path, tiny_tokenizer):
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForSequenceClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 500}
    made = {
        "t5": (T5ForConditionalGeneration(T5Config(vocab_size=500, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
               r"T5ForConditionalGeneration of type t5, an encoder-decoder; expected a causal"),
        "bert": (BertForMaskedLM(BertConfig(**width)), r"BertForMaskedLM of type bert; expected a causal"),
        "classifier": (LlamaForSequenceClassification(LlamaConfig(**width, tie_word_embeddings=True)),
                       r"LlamaForSequenceClassification of type llama"),
    }  # fmt: skip
    for name, (model, words) in made.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=words) as caught:
            load(tmp_path / name)
        assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_quantisation_that_does_nothing_or_is_not_known(tmp_path, tiny_tokenizer, folder):
    make_gpt2(len(tiny_tokenizer)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"int8 quantises linear layers, and this model has none"):
        load(ModelSpec(tmp_path / "gpt2", quantization="int8"), device="cpu")
    config = json.loads((folder / "config.json").read_text())
    asked_for = ("magic", None, r"quantised by 'magic'"), ("gptq", "int8", r"quantised already \(gptq\)")
    for method, asked, words in (*asked_for, ("compressed-tensors", None, r"needs a package|cannot be loaded")):
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
        with pytest.raises(ModelError, match=words):
            load(ModelSpec(folder, quantization=asked), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they stay of eight bits")
def test_numbers_of_eight_bits_that_lost_their_scales(folder, weights):
    """Under a quantisation that names them; without a GPU transformers multiplies them by their scales as it loads."""
    plain, config = score(folder), json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    small = {key: weight for key, weight in weights.items() if key.endswith("proj.weight")}
    eight = {key: (weight * 16).to(torch.float8_e4m3fn) for key, weight in small.items()}
    write(folder, weights | eight)
    with pytest.raises(ModelError, match=r"eight bits, and their scale is missing"):
        score(folder)
    sizes = {key: [-(-size // 32) for size in weight.shape] for key, weight in small.items()}
    write(folder, weights | eight | {f"{key}_scale_inv": torch.full(size, 1 / 16) for key, size in sizes.items()})
    assert 0 < abs(score(folder) - plain) < 2


def test_a_quantisation_that_is_null_is_none(folder, weights):
    """Whole numbers under `"quantization_config": null`, as some tools write it, are no less without a scale."""
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    score(folder)
    write(folder, REFUSED["whole numbers"][0](weights))
    with pytest.raises(ModelError, match=REFUSED["whole numbers"][1]):
        score(folder)


def test_the_dtype_of_the_file_is_its_own_affair(folder, weights, tmp_path, tiny_tokenizer):
    """Half-precision weights asked for in float32 are those numbers."""
    shutil.copytree(folder, tmp_path / "half")
    write(tmp_path / "half", {key: value.bfloat16() for key, value in weights.items()})
    write(folder, {key: value.bfloat16().float() for key, value in weights.items()})
    item = [encode(tiny_tokenizer, *ROW[0][:1], [ROW[0][1]])]
    with torch.inference_mode():
        assert torch.equal(completion_logps(load(tmp_path / "half").model, item), completion_logps(load(folder).model, item))
