"""Inputs that once ended in a traceback, a hang or too much memory: (door of test_doors.py, input)."""

import gzip
import json

from tests.references.rude_server import answer, says

_BOMB = (
    b"a: &a ["
    + b"x, " * 9
    + b"x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 112))
)
_RUN = b"model: m\nreferences: [{name: a, model: b}]\nbeta: 0.1\noutput: o\n"
_ITERATIVE = b"task: iterative\nprompts: p\noracle: {kind: lexicon, path: l}\nmethod: bilevel\n" + _RUN
_SOLVE = b'{"reward": [0, 1], "references": [[0.5, 0.5], [0.2, 0.8]], '

_REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
_WORDS = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
_TEN_OF_EACH = json.dumps(
    {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": [_REPLACE] * 12}, "model": _WORDS}
).encode()
_PAIR = b'{"chosen": "a", "rejected": "b"}\n'

FAILED = [
    ("run", _BOMB),
    ("run", b"[" * 10**5),
    ("run", b"a: " + b"9" * 5000),
    ("run", b"# " + b"x" * 5 * 10**7),
    ("run", _ITERATIVE + b"labels: {each: 1, rounds: 1000000000000}\n"),
    ("run", _ITERATIVE + b"labels: {plan: {}}\n"),
    ("run", b"task: reward\nmodel: " + b"a" * 3000 + b"\ndata: p\noutput: r\n"),
    ("run", b"\xff\xfe\x00"),
    ("run", b"? [a]\n: b"),
    ("solve", b"[" * 10**5),
    ("solve", _SOLVE + b'"beta": ' + b"9" * 5000 + b"}"),
    ("solve", _SOLVE + b'"regularizer": "AlphaDivergence", "alpha": 1e308}'),
    ("solve", _SOLVE + b'"beta": 1e-320}'),
    ("solve", _SOLVE + b'"beta": NaN}'),
    ("solve", b'{"reward": [-Infinity, -Infinity], "references": [[0.5, 0.5]]}'),
    ("solve", b'{"reward": [], "references": {}}'),
    ("solve", b'{"reward": [0], "references": {"\\ud800": [1]}}'),
    ("solve", b'\xef\xbb\xbf{"reward": [0], "references": [[1]]}'),
    ("pairs.jsonl", b'{"chosen": ' * 10**5),
    ("pairs.jsonl", b'{"chosen": "a", "rejected": "b", "margin": ' + b"9" * 400 + b"}"),
    ("pairs.jsonl", b'{"chosen": "\\ud800", "rejected": "b"}'),
    ("pairs.jsonl.gz", gzip.compress(b'{"chosen": "a", "rejected": "b"}', mtime=0)[:-9] + b"\x00" * 9),
    ("pairs.jsonl.gz", gzip.compress(b" " * 2**20, 9, mtime=0) * 70),
    ("pairs.jsonl", b"\n" * 10**6),
    ("pairs.jsonl", b"{}\n" * 10**5),
    ("pairs.jsonl.gz", gzip.compress(_PAIR + b"{}\n" * 2**20, 9, mtime=0)),
    ("pairs.parquet", b"PAR1" + b"\xff" * 40 + b"PAR1"),
    ("answers", b'{"instruction": "q", "completions": [{"response": "a", "overall_score": 1.5}, NaN]}\n'),
    ("rollouts", (b"one\n", b"")),
    ("run", b'{"task": "reward", "model": "m", "data": "p", "output": "r", "training": {"max_steps": {"\\u0000": 3}}}'),
    ("prompts", b'{"prompt": ["a"]}\n'),
    ("prompts", b'{"prompt": 3}\n'),
    ("lexicon", b"good\tnan\n"),
    ("arguments", ["score", "p.jsonl", "--reference", "base=m", "--store", "s", "--device", "\U0001f600"]),
    ("arguments", ["inspect", "p.jsonl", "--store", "a" * 5000]),
    ("arguments", ["bound", "--from-scores", "9" * 5000]),
    ("arguments", ["train", "--config", "a" * 5000]),
    ("arguments", ["score", "p.jsonl", "--reference", "[/b]=m", "--store", "s"]),
    ("arguments", ["train", "--config", "c.yaml", "--set", "²=1"]),
    ("arguments", ["data", "p.jsonl", "--split", "[:" + "9" * 5000 + "]"]),
    ("arguments", ["data", "p.jsonl", "--limit", "9" * 20]),
    ("arguments", ["data", "http://[::1"]),
    ("arguments", ["doctor", "--server", "\ud800", "--json"]),
    ("arguments", ["init", "9" * 5000, "--model", "m", "--reference", "a=m", "--data", "p.jsonl"]),
    ("arguments", ["evaluate", "--policy", "a=m", "--out", "e", "--problems", "9" * 5000]),
    ("arguments", ["decode", "--reference", "a=d", "--prompts", "9" * 5000]),
    ("folder", ("config.json", b"[" * 10**5)),
    ("folder", ("config.json", b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}")),
    ("folder", ("config.json", b'{"model_type": "llama", "num_hidden_layers": 1000000000}')),
    ("folder", ("config.json", b'{"model_type": "llama", "quantization_config": {"quant_method": "mine"}}')),
    ("folder", ("tokenizer_config.json", b'{"model_max_length": [], "tokenizer_class": "PreTrainedTokenizerFast"}')),
    ("folder", ("tokenizer.json", b"{}")),
    ("folder", ("tokenizer.json", _TEN_OF_EACH)),
    ("folder", ("model.safetensors", (2**62).to_bytes(8, "little") + b"{}")),
    ("folder", ("adapter_model.safetensors", b"")),
    ("folder", ("adapter_config.json", b'{"peft_type": "LORA", "r": 1000000000, "target_modules": ["q_proj"]}')),
    ("folder", ("adapter_config.json", b'{"peft_type": "LORA", "target_modules": "([a-z_.0-9]+)+!"}')),
    ("folder", ("chat_template.jinja", b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")),
    ("folder", ("adapter_config.json", b'{"peft_type": "LORA", "base_model_name_or_path": "' + b"a" * 3000 + b'"}')),
    ("folder", ("chat_template.jinja", b"{{ 'a' * 10**10 }}")),
    ("server", says(b'{"data": ' + b"[" * 10**5)),
    ("server", says(b'{"data": [{"id": "m", "max_model_len": ' + b"9" * 5000 + b"}]}")),
    ("server", answer(b"", "Location: http://another.example/v1/models", status="302 Found")),
    ("server", says(b'{"choices": [{"logprobs": [], "token_ids": 3, "prompt_token_ids": 3}]}')),
]
