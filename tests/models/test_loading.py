"""Loading a model: what a folder must hold, adapters, quantisation, and one clear error for everything else."""

import json
import shutil
import sys
import warnings

import pytest
import torch
import transformers

from multiref.errors import ArgumentError, ModelError, MultirefWarning
from multiref.models import ModelSpec, Tabular, completion_logps, encode, load, tabular_tokenizer
from multiref.models.loading import load_tokenizer
from multiref.models.quantization import quantization_options, quantize
from multiref.models.shared_base import SharedBase
from multiref.references.identity import file_identity
from tests.conftest import make_gpt2, make_llama, make_tokenizer


@pytest.fixture(scope="module")
def adapter_folders(tiny_folder, tmp_path_factory):
    """Two LoRA adapters on the tiny model, that name it as their base."""
    import peft
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        folders.append(tmp_path_factory.mktemp(f"adapter{seed}"))
        peft.get_peft_model(base, config).save_pretrained(folders[-1])
    return folders


def scores(model, tokenizer):
    with torch.inference_mode():
        return completion_logps(model, [encode(tokenizer, "the dog", [" sat", " on the log"])])


def test_a_folder(tiny_folder, tiny_llama, tiny_tokenizer):
    loaded = load(tiny_folder)
    assert not loaded.model.training and loaded.name == str(tiny_folder)
    assert torch.allclose(scores(loaded.model, loaded.tokenizer), scores(tiny_llama, tiny_tokenizer), atol=1e-5)
    assert load(ModelSpec(tiny_folder, dtype="bfloat16")).model.dtype == torch.bfloat16
    assert load(ModelSpec(tiny_folder, dtype="float64")).model.dtype == torch.float64


def test_an_adapter_folder_brings_its_base(tiny_folder, adapter_folders):
    given, found = load(ModelSpec(tiny_folder, adapter=adapter_folders[0])), load(adapter_folders[0])
    plain = load(tiny_folder)
    assert torch.allclose(scores(given.model, given.tokenizer), scores(found.model, found.tokenizer))
    assert (scores(given.model, given.tokenizer) - scores(plain.model, plain.tokenizer)).abs().min() > 0.01


def test_adapters_share_one_base(tiny_folder, adapter_folders):
    """The same object under both adapters and bare, each scoring as when loaded alone, in any order;
    freed with the last user."""
    base = SharedBase.of(ModelSpec(tiny_folder), "cpu")
    assert SharedBase.of(ModelSpec(tiny_folder), "cpu") is base
    assert SharedBase.of(ModelSpec(tiny_folder, dtype="float64"), "cpu") is not base
    tokenizer = base.language_model().tokenizer
    first, second = object.__new__(type("User", (), {})), object.__new__(type("User", (), {}))
    base.claim(first)
    base.claim(second)
    bodies = set()
    for adapter in (None, *adapter_folders, None, adapter_folders[0]):
        alone = load(ModelSpec(tiny_folder, adapter=adapter))
        with base.with_adapter(adapter and str(adapter)) as model:
            assert torch.allclose(scores(model, tokenizer), scores(alone.model, alone.tokenizer), atol=1e-5)
            bodies.add(id(base.language_model().model))
    assert len(bodies) == 1
    base.release(first)
    assert base._loaded is not None
    base.release(second)
    assert base._loaded is None and base._peft is None


def test_a_table_in_a_folder(tmp_path):
    model = Tabular(2, 2).assign(torch.randn(4))
    model.save_pretrained(tmp_path)
    tabular_tokenizer(model).save_pretrained(tmp_path)
    assert torch.equal(load(ModelSpec(tmp_path, dtype="float64")).model.table, model.table)


def test_dynamic_int8_is_near(tiny_folder):
    exact, rounded = load(tiny_folder), load(ModelSpec(tiny_folder, quantization="int8"), device="cpu")
    kinds = {type(module).__module__ for module in rounded.model.modules()}
    difference = (scores(exact.model, exact.tokenizer) - scores(rounded.model, rounded.tokenizer)).abs()
    assert any("quantized.dynamic" in kind for kind in kinds) and type(rounded.model.get_output_embeddings()) is torch.nn.Linear
    assert 0 < difference.max() < 1.5


@pytest.mark.parametrize("asked", ["int4", "int8"])
def test_a_quantisation_that_changed_no_layer_is_refused(asked):
    """By a double of bitsandbytes: what counts is layers of its classes, not what was asked for."""
    kind = type("Linear4bit", (torch.nn.Linear,), {"__module__": "bitsandbytes.nn.modules", "support_avx512bf16_for_cpu": True})
    device = torch.device("cpu" if asked == "int4" else "meta")  # int8 on the CPU is torch's own
    with pytest.raises(ModelError, match=rf"a folder: {asked} quantises linear layers, and this model has none but its head"):
        quantize(make_gpt2(100), asked, device, "a folder")
    model = make_llama(100)
    model.model.layers[0].mlp.up_proj = layer = kind(32, 64, bias=False)
    assert quantize(model, asked, device, "a folder") is model
    assert layer.support_avx512bf16_for_cpu == (asked != "int4")  # on a CPU it must not repack what it has rounded
    with pytest.raises(ModelError, match="int8 quantises linear layers"):
        quantize(make_gpt2(100), "int8", torch.device("cpu"), "a folder")


def test_what_cannot_be_loaded(tiny_folder, tmp_path):
    def copy(name):
        return shutil.copytree(tiny_folder, tmp_path / name)

    (copy("cut") / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes()[:1000])
    (copy("no-config") / "config.json").unlink()
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    variant = copy("variant")
    (variant / "model.safetensors").rename(variant / "model.fp16.safetensors")
    adapter = copy("adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    for folder, words in {
        "cut": r"model.safetensors is no whole safetensors file",
        "no-config": r"Missing: config.json",
        "pickled": r"Missing: \*.safetensors \(pickled weights are not read\)",
        "variant": r"Missing: model\.safetensors\.",
        "adapter": r"does not name its base",
        "absent": r"no model folder .*absent; expected",
    }.items():
        with pytest.raises(ModelError, match=words):
            load(tmp_path / folder)
    with pytest.raises(ModelError, match=r"No model folder owner/absent.*hub"):
        load("owner/absent")
    with pytest.raises(ModelError, match=r"no model folder .*absent"):
        load(ModelSpec(tiny_folder, adapter=tmp_path / "absent"))
    with pytest.raises(ArgumentError, match=r"float32"):
        load(ModelSpec(tiny_folder, dtype="int7"))
    with pytest.raises(ArgumentError, match=r"int8"):
        load(ModelSpec(tiny_folder, quantization="fp3"))
    with pytest.raises(ModelError, match=r"int4.* needs a CUDA device or the CPU, found meta"):
        quantization_options("int4", torch.device("meta"), torch.float32)


def test_custom_code_is_not_run(tmp_path):
    """A folder whose configuration asks for its own code is refused, and the code does not run."""
    make_llama(100).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"brings a program of its own, .* not run without trust_remote_code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


CONFIG = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own"
"""
TIMES = """
from transformers import LlamaConfig, LlamaForCausalLM
from .configuration import OwnConfig

class {name}(LlamaForCausalLM):
    config_class = {config}

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = output.logits * {factor}
        return output
"""


@pytest.fixture
def with_program(tiny_folder, tmp_path, monkeypatch):
    """with_program(name, factor): a folder whose own class has this name and multiplies the logits by this factor."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [each for each in sys.modules if each.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)

    def make(name, factor=2, kind="llama", **auto_map):
        folder = shutil.copytree(tiny_folder, tmp_path / f"{factor}{kind}" / name)
        config = "OwnConfig" if kind == "own" else "LlamaConfig"
        (folder / "own.py").write_text(TIMES.format(name=name, factor=factor, config=config))
        (folder / "configuration.py").write_text(CONFIG)
        change = {"auto_map": {"AutoModelForCausalLM": f"own.{name}"} | auto_map, "model_type": kind}
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
        return folder

    return make


def test_a_program_that_transformers_passes_over(with_program, tiny_llama):
    """transformers has a class for this type, so without the flag it takes that one and says nothing: another model."""
    ids = torch.tensor([[1, 5, 6]])
    plain = tiny_llama(ids).logits
    with pytest.raises(ModelError, match=r"own\.Twice.*not run without trust_remote_code; .* takes its LlamaForCausalLM"):
        load(with_program("Twice"))
    run = load(ModelSpec(with_program("TwiceForCausalLM"), trust_remote_code=True), device="cpu")
    assert torch.equal(run.model(ids).logits, 2 * plain)
    with pytest.warns(MultirefWarning, match=r"own\.LLaMAForCausalLM.*not run"):  # by its name the same
        assert torch.equal(load(with_program("LLaMAForCausalLM"), device="cpu").model(ids).logits, plain)


def test_a_tokenizer_that_transformers_passes_over(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    change = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | change))
    with pytest.warns(MultirefWarning, match=r"program of its own \(own\.OwnTokenizer\), which is not run"):
        load_tokenizer(folder)


def test_each_folder_has_the_program_that_is_in_it(with_program, tiny_llama):
    """Two folders with one name and one configuration class: transformers alone runs the first one's program for both."""
    ids = torch.tensor([[1, 5, 6]])
    folders = {factor: with_program("Own", factor, "own", AutoConfig="configuration.OwnConfig") for factor in (2, 3)}
    for factor in (2, 3, 2):
        loaded = load(ModelSpec(folders[factor], trust_remote_code=True), device="cpu")
        assert torch.equal(loaded.model(ids).logits, factor * tiny_llama(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "own"])
def test_a_program_finds_what_config_json_says(with_program, tiny_llama, kind):
    """transformers 5 moves `rope_theta` into `rope_parameters`; one that asks for it by its name would take its own default."""
    own = {"AutoConfig": "configuration.OwnConfig"} if kind == "own" else {}
    folder = with_program("OwnForCausalLM", "getattr(self.config, 'rope_theta', 7.0)", kind, **own)
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
    ids = torch.tensor([[1, 5, 6]])
    loaded = load(ModelSpec(folder, trust_remote_code=True), device="cpu")
    assert torch.equal(loaded.model(ids).logits, theta * tiny_llama(ids).logits)


def test_a_score_depends_on_the_program_wherever_it_is(with_program, tmp_path):
    """`place--module.Class` in auto_map: the program is in another folder, or of another hub id."""
    folder, place = with_program("Twice"), tmp_path / "elsewhere"
    place.mkdir()
    shutil.move(folder / "own.py", place / "own.py")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": f"{place}--own.Twice"}}
    (folder / "config.json").write_text(json.dumps(config))
    spec = ModelSpec(folder, trust_remote_code=True)
    before = file_identity(spec)
    (place / "own.py").write_text((place / "own.py").read_text().replace("* 2", "* 3"))
    assert {name for name, value in file_identity(spec).items() if value != before[name]} == {"code"}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Qwen2Moe", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, r"for the layers \[0\] of 4"),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, r"for the layers \[2, 3\] of 4"),
        ("Qwen2", {"sliding_window": 8}, r"for the layers \[\] of 4"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 999}, None),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 8}, None),
        ("Qwen3Moe", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, None),
    ],
)
def test_a_window_whose_layers_are_not_said(kind, settings, words, tiny_tokenizer, tmp_path):
    """Version 4 wrote no layer_types: its Qwen2Moe had the window below max_window_layers, or behind, by its version; version 5
    gives it to every other layer. Its own files say which."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 1}
    if "Moe" in kind:
        small |= {"num_experts": 4, "num_experts_per_tok": 2}
        small |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tiny_tokenizer), **small, **settings)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    load(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    old = {name: said[name] for name in said if name not in ("layer_types", "use_sliding_window", "sliding_window")}
    (tmp_path / "config.json").write_text(json.dumps(old | settings))
    with warnings.catch_warnings() if words is None else pytest.warns(MultirefWarning, match=words):
        load(tmp_path)
