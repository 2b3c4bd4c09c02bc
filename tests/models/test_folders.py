"""A model folder is checked before anything reads it: each wrong file is one error that names it, at once, in little memory."""

import json
import os
import shutil
import time

import pytest

from multiref.errors import ModelError
from multiref.models import ModelSpec, load
from multiref.models.chat import Chat
from multiref.models.folders import reading
from multiref.models.loading import load_config, load_tokenizer
from multiref.training.online import RewardModel
from multiref.training.reward import open_reward_model
from tests.fuzz.folders import FILES, make, put


@pytest.fixture
def whole(tmp_path):
    """(name, content) → the model's folder with this file, and the adapter's beside it."""
    make(tmp_path / "made")
    return lambda name="nothing", content=b"": put(tmp_path, name, content)


READ = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "model.safetensors", "model.safetensors.index.json", "special_tokens_map.json", "vocab.txt"]  # fmt: skip


def to_pipe(path):
    os.mkfifo(path)


def to_loop(path):
    path.symlink_to(path)


def to_folder(path):
    path.mkdir()


def to_zero(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("turn", [to_pipe, to_loop, to_folder, to_zero])
@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_none_is_named_and_never_opened(whole, name, turn):
    path = whole() / "base" / name
    path.unlink(missing_ok=True)
    turn(path)
    for read in (load, load_config, load_tokenizer, RewardModel, open_reward_model) if turn is to_pipe else (load,):
        with pytest.raises(ModelError, match=name):
            read(str(path.parent))


@pytest.mark.parametrize("turn", [to_pipe, to_loop, to_zero])
def test_a_folder_that_is_none(tmp_path, turn):
    turn(tmp_path / "model")
    with pytest.raises(ModelError, match="is no folder"):
        load(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "chat_template.jinja", "tokenizer.json"])
def test_a_huge_file_is_not_read(whole, name):
    folder = whole() / ("adapter" if name.startswith("adapter") else "base")
    os.truncate(folder / name, 2**30)
    with pytest.raises(ModelError, match=rf"{name} has 1,024 MiB; expected .* of at most"):
        load(folder)


def config(**changed):
    return json.dumps({**json.loads(FILES["config.json"]), **changed}).encode()


def adapter(**changed):
    return json.dumps({**json.loads(FILES["adapter_config.json"]), "base_model_name_or_path": "../base", **changed}).encode()


def header(**changed):
    size = int.from_bytes(FILES["model.safetensors"][:8], "little")
    held = json.loads(FILES["model.safetensors"][8 : 8 + size])
    held["model.norm.weight"] |= changed
    made = json.dumps(held).encode()
    return len(made).to_bytes(8, "little") + made + FILES["model.safetensors"][8 + size :]


FAST = b'{"model_max_length": [], "tokenizer_class": "PreTrainedTokenizerFast"}'
WRONG = {
    "deep": ("config.json", lambda: b'{"a": ' + b"[" * 10**5, "more than 64 deep"),
    "deep and large": ("tokenizer.json", lambda: b'{"a": ' + b"[" * 2**21, "too deep"),
    "a number of 5000 digits": ("config.json", lambda: b'{"vocab_size": ' + b"9" * 5000 + b"}", "5,000 digits"),
    "a key twice": ("config.json", lambda: b'{"vocab_size": 7, "vocab_size": 8}', "'vocab_size' stands twice"),
    "no UTF-8": ("tokenizer_config.json", lambda: b'{"a": "\xff"}', "not UTF-8"),
    "UTF-16": ("config.json", lambda: '{"a": 1}'.encode("utf-16"), "UTF-16"),
    "a list": ("generation_config.json", lambda: b"[]", "found a list"),
    "a byte order mark": ("config.json", lambda: b"\xef\xbb\xbf" + config(), "config.json begins with a byte order mark"),
    "a marked template": ("chat_template.jinja", lambda: b"\xef\xbb\xbf" + FILES["chat_template.jinja"], "byte order mark"),
    "its own base": ("adapter_config.json", lambda: adapter(base_model_name_or_path="../adapter"), "leads back to it"),
    "a base that is gone": ("adapter_config.json", lambda: adapter(base_model_name_or_path="/gone/x"), "names its base /gone"),
    "architectures": ("config.json", lambda: config(architectures=[3]), r"architectures is \[3\]"),
    "a vocabulary that does not fit": ("config.json", lambda: config(vocab_size=99), "another shape"),
    "a vocabulary without end": ("config.json", lambda: config(vocab_size=10**12), "far larger than its weights"),
    "a width without end": ("config.json", lambda: config(hidden_size=10**9), "far larger than its weights"),
    "layers without end": ("config.json", lambda: config(num_hidden_layers=10**9), "num_hidden_layers is 1e[+]09"),
    "many layers": ("config.json", lambda: config(num_hidden_layers=4000), "far larger than its weights|weights are missing"),
    "labels without end": ("config.json", lambda: config(num_labels=10**9), "num_labels"),
    "a type without sense": ("config.json", lambda: config(rms_norm_eps="x"), "base cannot be loaded"),
    "an unknown quantisation": ("config.json", lambda: config(quantization_config={"quant_method": "x"}), "quantised by 'x'"),
    "a quantisation that is none": ("config.json", lambda: config(quantization_config=[4]), "quantised by None"),
    "weights elsewhere": ("config.json", lambda: config(transformers_weights="../adapter/model.bin"), "are not read"),
    "a header without end": ("model.safetensors", lambda: (2**62).to_bytes(8, "little") + b"{}", "no whole safetensors"),
    "a tensor beyond the file": ("model.safetensors", lambda: header(data_offsets=[0, 10**9]), "no whole safetensors"),
    "tensors that overlap": ("model.safetensors", lambda: header(data_offsets=[0, 32]), "no whole safetensors"),
    "another dtype": ("model.safetensors", lambda: header(dtype="F17"), "no whole safetensors"),
    "a shape that is none": ("model.safetensors", lambda: header(shape=[float("nan")]), "no whole safetensors"),
    "a shape below zero": ("model.safetensors", lambda: header(shape=[-8]), "no whole safetensors"),
    "cut off": ("model.safetensors", lambda: FILES["model.safetensors"][:-9], "no whole safetensors"),
    "an index of pickles": ("model.safetensors.index.json", lambda: b'{"weight_map": {"a": "x.bin"}}', "pickles are not read"),
    "an index outside": ("model.safetensors.index.json", lambda: b'{"weight_map": {"a": "/x.safetensors"}}', "beside it"),
    "an index of nothing": ("model.safetensors.index.json", lambda: b'{"weight_map": 3}', "weight_map is none"),
    "a rank without end": ("adapter_config.json", lambda: adapter(r=10**9), "r is 1e[+]09"),
    "a replication": ("adapter_config.json", lambda: adapter(layer_replication=[[0, 10**9]]), "layer_replication"),
    "a pattern without end": ("adapter_config.json", lambda: adapter(target_modules=r"(\w+\.?)+!"), "repeats a group"),
    "repetition on repetition": ("adapter_config.json", lambda: adapter(target_modules=r"\w?" * 40 + "!"), "repeats a group"),
    "an unknown adapter": ("adapter_config.json", lambda: adapter(peft_type="MINE"), "cannot be put on"),
    "an adapter's base": ("adapter_config.json", lambda: adapter(base_model_name_or_path=["a"]), "base_model_name_or_path is"),
    "a tokenizer's limit": ("tokenizer_config.json", lambda: FAST, "cannot be loaded"),
    "a tokenizer of nothing": ("tokenizer.json", lambda: b"{}", "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_each_wrong_file_is_one_error(whole, kind):
    name, content, words = WRONG[kind]
    folder, began = whole(name, content()), time.monotonic()
    with pytest.raises(ModelError, match=words) as caught:
        load(folder / ("adapter" if name.startswith("adapter") else "base"))
    assert "\n" not in str(caught.value) and time.monotonic() - began < 20


def test_rotary_settings_of_two_versions(whole):
    """`rope_scaling`, as the pages of models say, written into a configuration that transformers 5 saved: it takes that
    alone, and a base of 10,000 instead of the one in `rope_parameters`."""
    from transformers import AutoConfig

    saved = {"rope_type": "default", "rope_theta": 5e5}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    added = {"rope_parameters": saved, "rope_scaling": yarn}
    assert AutoConfig.from_pretrained(whole("config.json", config(**added)) / "base").rope_parameters["rope_theta"] == 1e4
    for wrong in (added, {"rope_parameters": saved, "rope_theta": 1e6}, {**added, "rope_theta": 1e6}):
        with pytest.raises(ModelError, match=r"'rope_theta': 500000\.0.* only a part would be read"):
            load(whole("config.json", config(**wrong)) / "base")
    older = {"rope_parameters": None, "rope_scaling": yarn, "rope_theta": 5e5}
    whole_of_it = {"rope_parameters": {**saved, **yarn, "rope_type": "yarn"}, "rope_scaling": yarn, "rope_theta": 5e5}
    for fine in (older, whole_of_it, {**added, "rope_theta": 5e5}, {"rope_parameters": saved, "rope_theta": 5e5}):
        folder = whole("config.json", config(**fine)) / "base"
        assert load_config(folder).rope_parameters["rope_theta"] == 5e5
        load(folder)


def test_another_configuration_in_its_place(whole):
    """transformers reads the file of the list that suits its version: what is checked, and what names the model in a store,
    would be another."""
    folder = whole("config.json", config(configuration_files=["config.4.0.0.json"])) / "base"
    (folder / "config.4.0.0.json").write_bytes(config(rms_norm_eps=0.5))
    with pytest.raises(ModelError, match=r"config\.json: configuration_files is \['config\.4\.0\.0\.json'\], of which transf"):
        load(folder)
    load(whole("config.json", config(configuration_files=["config.json"])) / "base")


def test_what_is_not_read_may_be_anything(whole):
    """Another program's files in the folder are none of ours."""
    folder = whole() / "base"
    os.mkfifo(folder / "notes.md")
    (folder / "results.json").write_text("[[[")
    (folder / "LICENSE.txt").write_bytes(b"\xff")
    assert load(folder).model.config._name_or_path == str(folder)


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch, whole):
    monkeypatch.setattr("multiref.models.loading._causal_class", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(whole() / "base")
    with pytest.raises(ModelError, match=r"x is bad\. .KeyError: 'no'") as caught, reading("x", says="x is bad."):
        raise KeyError("no")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyboardInterrupt), reading("x"):
        raise KeyboardInterrupt


def test_a_pickle_is_never_opened(whole, tmp_path):
    """Weights, adapters and an index that ask for one: the file, which would make another, does not run."""

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    import pickle

    folder = whole()
    for part, safe in (("base", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        (folder / part / safe).unlink()
        for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "tokenizer.pkl"):
            (folder / part / name).write_bytes(pickle.dumps(Trap()))
    for spec in (ModelSpec(folder / "base"), ModelSpec(folder / "adapter")):
        with pytest.raises(ModelError, match="pickled weights are not read"):
            load(spec)
    shutil.copytree(folder / "base", tmp_path / "again")
    (tmp_path / "again" / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(ModelError, match="pickled weights are not read"):
        load(tmp_path / "again")
    shutil.copytree(folder / "base", tmp_path / "named")
    config = json.loads((tmp_path / "named" / "config.json").read_text()) | {"transformers_weights": "adapter_model.bin"}
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"transformers_weights is 'adapter_model\.bin'; expected safetensors"):
        load(tmp_path / "named")
    assert not (tmp_path / "ran").exists()


# ---- templates ----

TEMPLATES = {
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
    "calls itself": ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "takes more"),
    "writes": ("{% for a in range(99999) %}" + "x" * 2000 + "{% endfor %}", "writes more than"),
    "doubles": ("{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "writes more"),
    "doubles a block": ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
                        "{% set n.x = y %}{% endfor %}", "writes more than"),
    "repeats": ("{{ 'a' * 10**10 }}", "writes more than"),
    "repeats a list": ("{{ ([[0] * 10**5] * 10**5)|string|length }}", "more than"),
    "a power": ("{{ 10 ** (10 ** 10) }}", "writes more than"),
    "pads": ("{{ 'a'.ljust(10**10) }}", "writes more than"),
    "formats": ("{{ '%9999999999d' % 1 }}{{ '{:>9999999999}'.format(1) }}", "writes more than"),
    "formats wide": ("{{ '{:>{w}}'.format(1, w=10**9) }}", "writes more than"),
    "replaces": ("{% set x = 'a' * 10**6 %}{{ x.replace('', x) }}", "writes more than"),
    "joins": ("{% set x = 'a' * 10**6 %}{{ x.join(range(9999)|map('string')) }}", "writes more than|takes more than"),
    "climbs": ("{{ ().__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "calls": ("{{ messages.append(1) }}", "unsafe"),
    "is no template": ("{% for %}", "refuses"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_ends(whole, kind, monkeypatch):
    """By the clock or by its room; and a second try does not take the time again."""
    source, words = TEMPLATES[kind]
    if "takes" in words:  # the others end by their room, on a busy machine too
        monkeypatch.setattr("multiref.models.bounded_templates.SECONDS", 0.2)
    tokenizer = load_tokenizer(whole("chat_template.jinja", source.encode()) / "base")
    chat = Chat(tokenizer, {})
    with pytest.raises(ModelError, match=words):
        chat.write([{"role": "user", "content": "a"}])
    began = time.thread_time()
    assert chat.tried([{"role": "user", "content": "b"}]) is None and time.thread_time() - began < 0.5


# ---- hub ids ----


def test_a_hub_id_without_network_is_one_line_at_once(tmp_path, monkeypatch, capfd):
    """No silent tries: what was asked, the cache, and the variable for working without a network."""
    hub = {"ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path)}
    for name, value in hub.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"^No model folder owner/absent") as said:
        load("owner/absent")
    assert time.monotonic() - began < 5 and "Retrying" not in capfd.readouterr().err
    assert "http://127.0.0.1:9, asked" in str(said.value) and "HF_HUB_OFFLINE=1" in str(said.value)
    assert str(tmp_path) in str(said.value) and "\n" not in str(said.value)


def test_a_hub_id_in_the_cache_needs_no_network(whole, tmp_path, monkeypatch):
    """And goes by its own name."""
    home = tmp_path / "hub" / "models--owner--there"
    shutil.copytree(whole() / "base", home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load("owner/there")
    assert loaded.model.config._name_or_path == loaded.tokenizer.name_or_path == loaded.name == "owner/there"
    (home / "snapshots" / ("a" * 40) / "config.json").write_bytes(b"[")
    with pytest.raises(ModelError, match=r"config.json: not valid JSON"):
        load("owner/there")
