"""The engine of many workers against the engine of one: the same shards to the bit, also when a worker is ended in the
middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from multiref.errors import ArgumentError, DataError, ModelError
from multiref.references import References, Store
from tests.references.doubles import Companion, Dying, Refusing, Traced, pairs

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="the engine 'ray' needs Ray: pip install 'multiref[ray]'")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    doubles = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # Ray's workers give way to everybody else; on a busy machine a test would take for ever
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=doubles)
    yield ray
    ray.shutdown()


def shards_of(folder):
    return {path.name for path in (folder / "shards").rglob("*.parquet")}


def test_two_workers_write_the_shards_of_one(cluster, tmp_path):
    from multiref.references.engines.ray import RayEngine

    one = References({"a": Companion()}).score(pairs(200), store=tmp_path / "local", shard_size=20)
    two = References({"a": Traced(log=str(tmp_path / "log"), pause=0.05)}).score(
        pairs(200), store=tmp_path / "ray", shard_size=20, engine=RayEngine(workers=2)
    )
    assert torch.equal(one.logps, two.logps) and shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")
    assert len(list(tmp_path.glob("log.*"))) == 2, "both workers worked"


def test_a_worker_ended_in_the_middle_changes_nothing(cluster, tmp_path):
    from multiref.references.engines.ray import RayEngine

    log = tmp_path / "log"
    ended = []

    def end_one():
        while True:
            workers = sorted(tmp_path.glob("log.*"))
            if len(workers) == 2 and all(len(worker.read_text().splitlines()) >= 2 for worker in workers):
                ended.append(int(workers[0].suffix[1:]))
                os.kill(ended[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=end_one, daemon=True)
    killer.start()
    whole = References({"a": Companion()}).score(pairs(200), store=tmp_path / "local", shard_size=20)
    scores = References({"a": Traced(log=str(log), pause=0.2)}).score(
        pairs(200), store=tmp_path / "ray", shard_size=20, engine=RayEngine(workers=2)
    )
    killer.join(timeout=5)
    assert ended and len(list(tmp_path.glob("log.*"))) == 3, "one worker was ended and another took its place"
    assert torch.equal(whole.logps, scores.logps) and shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")
    assert Store(tmp_path / "ray").verify() == []


def test_the_driver_ended_in_the_middle_changes_nothing(tmp_path):
    """SIGKILL to the process that stores: its Ray and its workers go with it, and another run ends with the same bits."""
    pytest.importorskip("ray", reason="the engine 'ray' needs Ray: pip install 'multiref[ray]'")
    environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}  # fmt: skip
    whole = References({name: Companion(name) for name in ("a", "b")}).score(pairs(60), store=tmp_path / "local", shard_size=20)

    def start():
        command = [sys.executable, "-m", "tests.references.run_job", str(tmp_path / "ray"), str(tmp_path / "log"),
                   "20", "0.3", "60", "ray"]  # fmt: skip
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    job = start()
    while len(shards_of(tmp_path / "ray")) < 3 and job.poll() is None:
        time.sleep(0.01)
    job.kill()
    job.communicate()
    there = shards_of(tmp_path / "ray")
    assert 3 <= len(there) < len(shards_of(tmp_path / "local")) and there < shards_of(tmp_path / "local")
    again = start()
    assert again.wait(timeout=300) == 0, again.stderr.read()[-2000:]
    assert shards_of(tmp_path / "ray") == shards_of(tmp_path / "local") and Store(tmp_path / "ray").verify() == []
    scores = References({name: Companion(name) for name in ("a", "b")}).score(pairs(60), store=tmp_path / "ray", shard_size=20)
    assert torch.equal(scores.logps, whole.logps)


def test_an_error_of_ours_comes_back_as_itself(cluster, tmp_path):
    from multiref.references.engines.ray import RayEngine

    with pytest.raises(ModelError, match="no such weights"):
        References({"a": Refusing()}).score(pairs(5), store=tmp_path, engine=RayEngine(workers=1))


def test_a_worker_that_always_dies_is_one_clear_error_and_the_store_is_sound(cluster, tmp_path):
    from multiref.references.engines.ray import RayEngine

    with pytest.raises(ModelError, match=r"died on block 1 of 1, 2 times.*intact"):
        References({"a": Dying()}).score(pairs(5), store=tmp_path, engine=RayEngine(workers=1, retries=1))
    assert Store(tmp_path).verify() == []


def test_a_model_folder_on_two_workers_gives_the_bits_of_one(cluster, tmp_path, tiny_folder):
    """A real (tiny) model with float32 rounding: same device, same thread count, same bits."""
    from multiref.references.engines.ray import RayEngine

    one = References({"a": str(tiny_folder)}).score(pairs(40), store=tmp_path / "local", shard_size=16)
    two = References({"a": str(tiny_folder)}).score(
        pairs(40), store=tmp_path / "ray", shard_size=16, engine=RayEngine(workers=2)
    )
    assert torch.equal(one.logps, two.logps) and shards_of(tmp_path / "ray") == shards_of(tmp_path / "local")


def test_workers_obey_the_layout_that_was_audited(cluster, tmp_path, tiny_tokenizer):
    """Sliding windows: prompts must not be shared, by no worker; a second run with workers obeys the first one's audit."""
    import transformers as tf

    from multiref.references.engines.ray import RayEngine
    from tests.references.test_audits import layouts, record

    torch.manual_seed(0)
    config = tf.MistralConfig(vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, sliding_window=4, initializer_range=0.3,
                              bos_token_id=1, eos_token_id=1, pad_token_id=2)  # fmt: skip
    tf.MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    references, engine = References({"a": str(tmp_path / "model")}), RayEngine(workers=2)
    some = references.score(pairs(40)[:20], store=tmp_path / "ray", shard_size=16, engine=engine)
    kept = record(tmp_path / "ray")
    every = references.score(pairs(40), store=tmp_path / "ray", shard_size=16, engine=engine)
    exact = references.score(pairs(40), store=tmp_path / "local", audit="all")
    assert layouts(tmp_path / "ray") == layouts(tmp_path / "local") == {"batched"} and kept["audit"]["errors"]["shared"] > 0.1
    assert len(some) < len(every) and torch.allclose(every.logps, exact.logps, atol=1e-3)


def test_folders_are_read_on_the_workers_as_they_are_here(cluster, tmp_path):
    """Partitioned Parquet by path and by URL, labels that all files have to be seen for, and a bad row by file and number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from multiref.data import read

    rows = [{"prompt": p.prompt, "response_a": p.chosen, "response_b": p.rejected, "label": int(n > 70), "more": 1}
            for n, p in enumerate(pairs(90))]  # fmt: skip
    for number in range(3):  # the first two have one label only: alone they would not tell what 0 means
        (tmp_path / "in" / f"day={number}").mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pylist(rows[30 * number : 30 * number + 30]), tmp_path / "in" / f"day={number}" / "0.parquet"
        )
    here = read(tmp_path / "in", spool=tmp_path)
    for where in (tmp_path / "in", f"file://{tmp_path}/in/"):
        there = read(where, spool=tmp_path, on_ray=True)
        assert (list(there.pairs), there.rows, there.format) == (list(here.pairs), 90, here.format)
    bad = [*rows[:4], {**rows[80], "response_a": None}]
    pq.write_table(pa.Table.from_pylist(bad), tmp_path / "in" / "day=2" / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet:5"):
        read(tmp_path / "in", spool=tmp_path, on_ray=True)


def test_settings_that_cannot_work(cluster, tmp_path):
    from multiref.references.engines.ray import RayEngine

    with pytest.raises(ArgumentError, match="workers is 0"):
        References({"a": Companion()}).score(pairs(5), store=tmp_path, engine=RayEngine(workers=0))


def test_the_command_line_on_two_workers(cluster, tmp_path, tiny_folder):
    import json

    from typer.testing import CliRunner

    from multiref.cli import app

    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}) for p in pairs(20)))
    command = ["score", str(data), "-r", f"a={tiny_folder}", "--shard-size", "8"]
    for engine in (["--engine", "ray", "--workers", "2"], []):
        result = CliRunner().invoke(app, [*command, "--store", str(tmp_path / f"store{len(engine)}"), *engine])
        assert result.exit_code == 0, result.output
    assert shards_of(tmp_path / "store4") == shards_of(tmp_path / "store0")
