"""A key that is repeated is refused, and `~` is the home folder, from the command line too."""

import json

import pytest
from typer.testing import CliRunner

from multiref.cli import app
from tests.conftest import make_llama, make_tokenizer

PAIRS = [{"prompt": f"is it {i}", "chosen": " yes", "rejected": " no"} for i in range(8)]
FILE = """\
model: {model}
references: [{{name: a, model: {model}}}]
beta: 0.1
data: {data}
output: run
training: {{learning_rate: 1e-3, per_device_train_batch_size: 4, max_steps: 1.0, use_cpu: true, save_strategy: no}}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "work" / "run.yaml"
    path.write_text(FILE.format(model="~/model", data="~/pairs.jsonl"), encoding="utf-8")
    return path


def test_a_repeated_key_is_refused(file):
    file.write_text(file.read_text() + "training: {max_steps: 1}\nbeta: 5.0\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["train", "-c", str(file)])
    assert result.exit_code == 2 and not (file.parent / "run").exists()
    assert "run.yaml:7: training: a second time, first in line 6; keep one of the two." in " ".join(result.output.split())


def test_the_home_folder(file, tmp_path, undrawn):
    """The policy is its reference: the first loss is log 2. What is needed is said before anything is loaded."""
    result = CliRunner().invoke(app, ["train", "-c", str(file), "--set", "output=~/o"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "o" / "model" / "config.json").exists() and not list(file.parent.glob("~*"))
    assert "weights in float32, with gradients and Adam's two moments" in " ".join(result.output.split())
    assert not list((tmp_path / "o").glob("checkpoints/checkpoint-*"))
