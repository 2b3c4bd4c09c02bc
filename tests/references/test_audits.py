"""The layout that an audit found is kept beside a reference's scores and obeyed: by a resumed run, by another process; and a
later audit that finds it wrong sets aside what was scored so."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from multiref._sealed import seal
from multiref.errors import ArgumentError, MultirefWarning, StoreError
from multiref.models import LanguageModel, encode
from multiref.models import audit as audits
from multiref.references import References, Store, read_scores
from multiref.references.local import LocalReference
from multiref.references.progress import Listener
from tests.conftest import make_llama, make_tokenizer
from tests.models.naive import naive_logps
from tests.models.test_audit import Entered, neighbour

ROOT = Path(__file__).parents[2]
TOKENIZER = make_tokenizer("bytelevel")


def pairs_of(words, *, count=12):
    """Pairs whose rows have about so many tokens."""
    return [
        {"prompt": f"question {n}", "chosen": " yes" * (words // 2 + n), "rejected": " no" * (words // 2 + n)}
        for n in range(count)
    ]


def leaky():
    """Its row takes something of the row beside it, beyond position 60."""
    model = Entered(make_llama(len(TOKENIZER), context=512).config).eval()
    model.change = neighbour(60, 1)
    return LanguageModel(model, TOKENIZER, "leaky")


def truth(opened, rows):
    """{(prompt, completion): log-probability in float64}."""
    items = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    encoded = [encode(opened.tokenizer, prompt, (completion,)) for prompt, completion in items]
    return dict(zip(items, naive_logps(opened.model, encoded).tolist()))


def texts(rows):
    """Prompts and completions, for `SequenceScores.of`."""
    return list(zip(*((row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected"))))


def agree(scores, expected):
    found = scores.of([prompt for prompt, _ in expected], [completion for _, completion in expected])
    return torch.allclose(found[0], torch.tensor(list(expected.values()), dtype=torch.float64), atol=2e-3)


def layouts(store):
    return {pq.read_schema(path).metadata[b"multiref.layout"].decode() for path in (store / "shards").rglob("*.parquet")}


def record(store):
    (path,) = (store / "audits").glob("*.json")
    return json.loads(path.read_text())


class Watching(Listener):
    def __init__(self):
        self.audits = []

    def audited(self, name, summary, share):
        self.audits.append((summary, share))


@pytest.fixture
def counted(monkeypatch):
    """How many audits were made."""
    made, run = [], audits._Auditor.run
    monkeypatch.setattr(audits._Auditor, "run", lambda self, scores: (made.append(1), run(self, scores))[1])
    return made


def test_what_was_found_is_kept_with_the_scores(tmp_path, counted):
    opened = LanguageModel(make_llama(len(TOKENIZER), context=512), TOKENIZER, "m")
    watching, rows = Watching(), pairs_of(20)
    scores = References({"a": opened}).score(rows, store=tmp_path, progress=watching)
    kept = record(tmp_path)
    assert layouts(tmp_path) == {"shared"} == {kept["audit"]["layout"]}
    assert kept["refuted"] == [] and max(kept["audit"]["errors"].values()) <= 1e-4
    keys = {bytes(key).hex() for key in scores.keys}
    assert set(kept["keys"]) <= keys and len(kept["keys"]) == len(kept["audit"]["rows"]) >= 3
    ((summary, share),) = watching.audits
    assert "layout shared" in summary and 0 < share < 1
    digests = {encode(TOKENIZER, r["prompt"], (r[side],)).digest(0) for r in rows for side in ("chosen", "rejected")}
    assert set(scores.digests[0].tolist()) == digests == set(read_scores(tmp_path).digests[0].tolist())
    assert len(counted) == 1


def test_a_resumed_run_obeys_without_asking_again(tmp_path, counted):
    rows = pairs_of(90)
    whole = References({"a": leaky()}).score(rows, store=tmp_path / "whole", shard_size=6)
    References({"a": leaky()}).score(rows, store=tmp_path / "part", shard_size=6)
    for path in Store(tmp_path / "part").shards(Store.address(LocalReference(leaky()).identity()))[1:]:
        path.unlink()
    made = len(counted)
    again = References({"a": leaky()}).score(rows, store=tmp_path / "part", shard_size=6)
    assert len(counted) == made and torch.equal(again.logps, whole.logps)
    assert layouts(tmp_path / "part") == {"alone"} and agree(again, truth(leaky(), rows))


def test_longer_rows_that_refute_the_layout_set_its_scores_aside(tmp_path):
    """Rows of 20 tokens allow sharing; a second job's rows of 90 do not: the first job's shards go, and are scored again."""
    short, long = pairs_of(10), pairs_of(90)
    References({"a": leaky()}).score(short, store=tmp_path)
    assert layouts(tmp_path) == {"shared"}
    with pytest.warns(MultirefWarning, match=r"layout 'shared', which a later audit .* set aside"):
        scores = References({"a": leaky()}).score(short + long, store=tmp_path)
    assert layouts(tmp_path) == {"alone"} and len(list((tmp_path / "damaged").iterdir())) == 1
    assert agree(scores, truth(leaky(), short + long))
    assert set(record(tmp_path)["refuted"]) == {"shared", "batched"}
    assert agree(References({"a": leaky()}).score(short, store=tmp_path), truth(leaky(), short))


def test_refuted_scores_are_not_read(tmp_path):
    References({"a": leaky()}).score(pairs_of(10), store=tmp_path)
    (path,) = (tmp_path / "audits").glob("*.json")
    changed = record(tmp_path) | {"refuted": ["shared"]}
    path.write_text(json.dumps(changed))
    with pytest.raises(StoreError, match=r"a reference's audit, has changed since it was written\. Remove it"):
        read_scores(tmp_path)
    path.write_text(json.dumps(seal({key: changed[key] for key in changed if key != "sum"})))
    with pytest.raises(StoreError, match="a later audit on other rows found wrong"):
        read_scores(tmp_path)
    assert len(Store(tmp_path).verify()) == 1


def test_all_rows_are_audited_where_asked(tmp_path):
    rows = pairs_of(20, count=40)
    opened = LanguageModel(make_llama(len(TOKENIZER), context=512), TOKENIZER, "m")
    References({"a": opened}).score(rows, store=tmp_path, audit="all")
    assert len(record(tmp_path)["keys"]) == 80
    with pytest.raises(ArgumentError, match="expected 'some' or 'all'"):
        References({"a": opened}).score(rows, audit="none")


def test_other_token_ids_than_were_scored_set_all_aside(tmp_path, monkeypatch):
    """The identity should have changed and did not; the ids say so."""
    monkeypatch.setattr(LocalReference, "identity", lambda self: {"kind": "local", "always": "the same"})
    opened = LanguageModel(make_llama(len(TOKENIZER), context=512), make_tokenizer("bytelevel"), "m")
    rows = pairs_of(20)
    References({"a": opened}).score(rows, store=tmp_path)
    again = References({"a": opened}).score(rows, store=tmp_path)  # the same ids: nothing to say
    opened.tokenizer.eos_token = TOKENIZER.convert_ids_to_tokens(50)
    with pytest.warns(MultirefWarning, match="other token ids than its tokenizer and template give today"):
        changed = References({"a": opened}).score(rows, store=tmp_path)
    assert not torch.allclose(changed.logps, again.logps, atol=0.1) and (changed.digests != again.digests).all()
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_scores_of_other_versions_are_compared(tmp_path, monkeypatch):
    """A library that computes otherwise than the one that scored: of two halves that would be of two models, one is made
    again. One that computes the same keeps them."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from multiref.references import audits as kept

    rows, plain = pairs_of(20), LlamaRMSNorm.forward
    opened = LanguageModel(make_llama(len(TOKENIZER), context=512), TOKENIZER, "m")
    first = References({"a": opened}).score(rows[:6], store=tmp_path)
    monkeypatch.setattr(kept, "version", lambda name: "9.1")
    same = References({"a": opened}).score(rows[:9], store=tmp_path)  # nothing to say
    assert torch.equal(same.of(*texts(rows[:6])), first.of(*texts(rows[:6]))) and not (tmp_path / "damaged").exists()
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, states: 1.02 * plain(self, states))
    References({"a": opened}).score(rows[:9], store=tmp_path)  # all is stored: no model is read
    monkeypatch.setattr(kept, "version", lambda name: "9.2")
    with pytest.warns(
        MultirefWarning, match=r"'a' was scored with torch 9\.1, transformers 9\.1, and with torch 9\.2.* nats for"
    ):
        again = References({"a": opened}).score(rows, store=tmp_path)
    fresh = References({"a": opened}).score(rows)
    assert torch.allclose(again.of(*texts(rows)), fresh.of(*texts(rows)), atol=1e-4)
    assert not torch.allclose(again.of(*texts(rows[:6])), first.of(*texts(rows[:6])), atol=1e-2)


def test_token_ids_beyond_the_embedding_name_the_prompt(tmp_path):
    from multiref.errors import ModelError

    small = LanguageModel(make_llama(200), TOKENIZER, "small")
    with pytest.raises(ModelError, match=r"Token id \d+ occurs in the prompt 'question \d.* has 200 rows"):
        References({"a": small}).score(pairs_of(10), store=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
def test_killed_and_gone_on_with_by_two_processes(tmp_path):
    """Sliding windows: prompts must not be shared. All processes lay rows out alike; every score is right."""
    import transformers as tf

    tokenizer = make_tokenizer(chat=True)
    config = tf.MistralConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, sliding_window=4, initializer_range=0.3,
                              bos_token_id=1, eos_token_id=1, pad_token_id=2)  # fmt: skip
    torch.manual_seed(0)
    model = tf.MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    store, command = tmp_path / "store", [sys.executable, "-m", "tests.references.run_job", str(tmp_path / "store"), "-"]
    command += ["8", "0", "60", str(tmp_path / "model")]
    first = subprocess.Popen(command, cwd=ROOT)
    while not list(store.rglob("*.parquet")) and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    first.wait()
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert layouts(store) == {"batched"}
    from tests.references.doubles import pairs

    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs(60)]
    assert agree(read_scores(store), truth(LanguageModel(model, tokenizer, "m"), rows))
