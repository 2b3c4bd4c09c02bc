"""Model folders that are nearly right: one file of a whole one changed. What is done with each is all that reads a model."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from multiref.models.bounded_templates import bound_templates
from multiref.models.encoding import context_of, encode
from multiref.models.loading import load
from multiref.models.logps import completion_logps
from multiref.models.sampling import end_ids
from multiref.models.small import small_llama, word_tokenizer
from multiref.models.spec import ModelSpec
from multiref.references.identity import file_identity, text_identity
from multiref.references.local import LocalReference
from tests.fuzz.mutations import change, damage, dump

WORDS = ("a", "b", "c", "user", "assistant", "<end>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TALK = ({"role": "user", "content": "a"},)
INDEX = "model.safetensors.index.json"
FILES: dict[str, bytes] = {}


def make(folder: Path) -> None:
    """The files of a small model and of an adapter on it, once."""
    folder.mkdir(exist_ok=True)
    if not FILES:
        import peft

        model, tokenizer = small_llama(len(WORDS) + 1, hidden=8, intermediate=8, layers=1, heads=2), word_tokenizer(WORDS)
        tokenizer.eos_token, tokenizer.chat_template = "<end>", TEMPLATE
        model.save_pretrained(folder), tokenizer.save_pretrained(folder)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(model, lora).save_pretrained(folder)
        FILES.update({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
        held = [key for key in _header(FILES["model.safetensors"]) if key != "__metadata__"]
        FILES[INDEX] = dump({"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(held, "part.safetensors")})
        for file in folder.iterdir():
            file.unlink()


def _header(content: bytes) -> dict[str, Any]:
    return dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))


def _with_another_header(content, random):
    changed = dump(change(_header(content), random))
    length = len(changed) if random.random() < 0.9 else random.choice([0, 2**63, len(content)])
    return length.to_bytes(8, "little") + changed + content[8 + int.from_bytes(content[:8], "little") :]


def mutate(random):
    """(file, content): what stands where a file of the folder stood."""
    name = random.choice([*sorted(FILES), "config.json", "config.json", "adapter_config.json", "tokenizer_config.json"])
    content = FILES[name]
    if name.endswith(".safetensors"):
        return name, _with_another_header(content, random) if random.random() < 0.7 else damage(content, random)
    if name.endswith(".json") and random.random() < 0.8:
        return name, dump(change(json.loads(content), random))
    return name, random.choice(TEMPLATES) if name.endswith(".jinja") and random.random() < 0.5 else damage(content, random)


TEMPLATES = [
    b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    b"{% for a in range(99999) %}{% for b in range(99999) %}" + b"x" * 999 + b"{% endfor %}{% endfor %}",
    b"{{ 'a' * 10**10 }}", b"{{ 10**(10**10) }}", b"{{ ().__class__.__mro__[1].__subclasses__() }}",
    b"{% set n = namespace(x='aaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    b"{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(9) }}", b"{{ 'a'.ljust(10**10) }}", b"{{ '%9999999999d' % 1 }}",
    b"{{ messages.append(1) }}", b"{% for %}", b"\xff", b"", b"{{ messages[9].content }}", b"{{ raise_exception('no') }}",
    b"{{ strftime_now('%Y' * 10**6) }}", b"{{ cycler.__init__.__globals__ }}", b"{% include 'x' %}", b"{{ [[1]] * 10**9 }}",
]  # fmt: skip


def put(folder: Path, name: str, content: bytes) -> Path:
    """The model's folder with this file; the adapter's, which names it, where the file is an adapter's."""
    shutil.rmtree(folder / "f", ignore_errors=True)
    for part in ("base", "adapter"):
        (folder / "f" / part).mkdir(parents=True)
    sharded = "index" in name
    for each, whole in FILES.items():
        part = "adapter" if each.startswith(("adapter", "README")) else "base"
        here = "part.safetensors" if sharded and each == "model.safetensors" else each
        if sharded or "index" not in each:
            (folder / "f" / part / here).write_bytes(content if each == name else whole)
    config = folder / "f" / "adapter" / "adapter_config.json"
    if name != config.name:
        config.write_bytes(dump({**json.loads(FILES[config.name]), "base_model_name_or_path": str(folder / "f" / "base")}))
    return folder / "f"


def use(folder: Path, adapter: bool) -> None:
    """Loaded, described, scored with, sampled from: as text and as a conversation."""
    bound_templates()
    spec = ModelSpec(str(folder / "base"), adapter=str(folder / "adapter") if adapter else None)
    loaded = load(spec)
    file_identity(spec), text_identity("local", loaded.tokenizer, LocalReference(spec).tokenisation)
    context_of(loaded.model.config), end_ids(loaded.model, loaded.tokenizer)
    with torch.inference_mode():
        completion_logps(loaded.model, [encode(loaded.tokenizer, "a b", ["c"])])
        completion_logps(loaded.model, [encode(loaded.tokenizer, TALK, [({"role": "assistant", "content": "b"},)])])


def knock(changed: tuple[str, bytes], folder: Path) -> None:
    name, content = changed
    use(put(folder, name, content), name.startswith("adapter"))
