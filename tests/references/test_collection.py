"""`References`: names, kinds, what a reference may answer, and what the user is told."""

import pickle
import warnings

import pytest
import torch

from multiref._progress import watched_by
from multiref.errors import ArgumentError, DataError, ModelError
from multiref.models import LanguageModel, ModelSpec, Tokenisation
from multiref.references import References, Store, read_scores
from multiref.references.progress import Tally
from multiref.references.protocol import Scored
from multiref.references.resolve import Opener, location
from tests.conftest import make_llama
from tests.references.doubles import Companion, pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*did not fit")


class Answering(Companion):
    """Answers what it is told to."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def score(self, items):
        scored = super().score(items)
        parts = {"logps": scored.logps.clone(), "lengths": scored.lengths, "truncated": scored.truncated}
        self.change(parts)
        return Scored(**parts)


def test_every_reference_gets_its_own_row_in_the_order_given():
    scores = References([("b", Companion("two")), ("a", Companion("one"))]).score(pairs(9))
    assert scores.names == ("b", "a") and len(scores) == 18
    alone = References({"a": Companion("one")}).score(pairs(9))
    assert torch.equal(scores.select(["a"]).logps, alone.logps)


def test_one_reference_is_held_at_a_time():
    """The first is released before the second is asked for its first score."""
    events = []

    class Watched(Companion):
        def score(self, items):
            events.append(("score", self.name))
            return super().score(items)

        def release(self):
            events.append(("release", self.name))

    References({name: Watched(name) for name in ("a", "b")}).score(pairs(3))
    assert events == [("score", "a"), ("release", "a"), ("score", "b"), ("release", "b")]


def test_it_is_released_when_it_fails():
    released = []

    class Failing(Companion):
        def score(self, items):
            raise ModelError("out of memory")

        def release(self):
            released.append(self.name)

    with pytest.raises(ModelError, match="out of memory"):
        References({"a": Failing()}).score(pairs(3))
    assert released == ["companion"]


def test_an_engine_is_told_when_a_run_fails():
    """Found with Ray: workers that were not let go kept the cluster's room, and the next run waited for ever."""
    closed = []

    class Watched:
        def run(self, open_reference, blocks):
            try:
                for index, block in enumerate(blocks):
                    yield index, open_reference().score(block.items)
            finally:
                closed.append(True)

    broken = Answering(lambda parts: parts["logps"].fill_(1.0))
    with pytest.raises(ModelError) as kept:  # holds the traceback, and with it every frame
        References({"a": broken}).score(pairs(60), engine=Watched(), shard_size=20)
    assert closed == [True] and kept


def test_an_engine_that_loses_a_block_is_found_out():
    class Lossy:
        def run(self, open_reference, blocks):
            for index, block in list(enumerate(blocks))[1:]:
                yield index, open_reference().score(block.items)

    with pytest.raises(ModelError, match=r"no score for \d+ of 120 completions under 'a'"):
        References({"a": Companion()}).score(pairs(60), engine=Lossy(), shard_size=20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(logps=p["logps"][:-1]), r"\(5,\) scores for 6 completions"),
        (lambda p: p["logps"].__setitem__(2, float("nan")), r"gave nan over .* expected a log-probability"),
        (lambda p: p["logps"].__setitem__(2, 3.0), r"gave 3.0 over"),
        (lambda p: p.update(lengths=p["lengths"] * 0 - 1), r"over -1 tokens"),
    ],
)
def test_an_answer_that_is_no_score_is_refused_and_not_stored(tmp_path, change, words):
    with pytest.raises(ModelError, match=words):
        References({"a": Answering(change)}).score(pairs(3), store=tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_completion_that_a_reference_excludes_is_a_score(tmp_path):
    veto = Answering(lambda parts: parts["logps"].__setitem__(0, -float("inf")))
    scores = References({"a": veto}).score(pairs(3), store=tmp_path)
    assert int(torch.isinf(scores.logps).sum()) == 1
    assert torch.equal(read_scores(tmp_path).logps, scores.logps)


def test_names_and_kinds():
    with pytest.raises(ArgumentError, match="Two references are called 'a'"):
        References([("a", Companion()), ("a", Companion("other"))])
    with pytest.raises(ArgumentError, match="No reference was given"):
        References({})
    with pytest.raises(ArgumentError, match="given as int; expected a model folder"):
        References({"a": 3}).score(pairs(1))
    with pytest.raises(ArgumentError, match="nothing to score"):
        References({"a": Companion()}).score([])
    with pytest.raises(DataError, match="row 1"):
        References({"a": Companion()}).score([7])
    with pytest.raises(ArgumentError, match="no engine 'spark'"):
        References({"a": Companion()}).score(pairs(1), engine="spark")
    with pytest.raises(ModelError):
        References({"a": "./no/such/folder"}).score(pairs(1))


def test_a_model_in_memory_and_the_same_on_disk_agree(tiny_folder, tiny_tokenizer):
    memory = LanguageModel(make_llama(len(tiny_tokenizer)), tiny_tokenizer, "memory")
    scores = References(
        {"disk": str(tiny_folder), "memory": memory, "mapping": {"model": str(tiny_folder)}}, dtype="float32"
    ).score(pairs(4))
    assert torch.allclose(scores.logps[0], scores.logps[1], atol=1e-4) and torch.equal(scores.logps[0], scores.logps[2])


def test_an_opener_travels_as_a_description():
    opener = Opener("./somewhere", here={"dtype": "float32"})
    opener.opened = Companion()  # stands for a large model
    again = pickle.loads(pickle.dumps(opener))
    assert again.opened is None and again == Opener("./somewhere", here={"dtype": "float32"})


def test_locations(tmp_path):
    assert location(tmp_path) == str(tmp_path) and location("org/model") == "org/model"
    assert location({"model": "org/model", "adapter": tmp_path}) == f"org/model + {tmp_path}"
    assert location("http://host:8000/v1") == "http://host:8000/v1" and location(Companion()).startswith("<")
    assert location(ModelSpec("org/model", adapter="tuned")) == "org/model + tuned"
    assert Opener(Companion("x"))().name == "x"


def test_a_mapping_is_a_spec_with_what_concerns_this_machine(tiny_folder):
    """`model` for `path`; device and budgets beside it; what differs of the tokenisation;
    a key that is none of these is named."""
    given = {"model": str(tiny_folder), "dtype": "float64", "device": "cpu", "token_budget": 50, "tokenisation": {"end": False}}
    reference = Opener(given, Tokenisation(max_length=20))()
    assert reference.spec == ModelSpec(tiny_folder, dtype="float64")
    assert reference.tokenisation == Tokenisation(end=False, max_length=20)
    assert Opener({"model": ModelSpec(tiny_folder), "device": "cpu"})().name == str(tiny_folder)
    with pytest.raises(ArgumentError, match="the key 'max_length'; expected for a model on this machine: adapter, allow_keys"):
        Opener({"model": str(tiny_folder), "max_length": 9})()


def test_stored_scores_need_no_model(tmp_path):
    """Names are found, other data sets' completions are in it too, and only what all named references have is returned."""
    both = References({"a": Companion("one"), "b": Companion("two")}).score(pairs(5), store=tmp_path)
    References({"a": Companion("one")}).score(pairs(5, start=5), store=tmp_path)
    scores = read_scores(tmp_path)
    assert scores.names == ("a", "b") and len(scores) == 10
    assert torch.equal(scores.of_pairs(pairs(5))[0], both.of_pairs(pairs(5))[0])
    assert len(read_scores(tmp_path, ["a"])) == 20
    assert read_scores(tmp_path, [Store.address(Companion("two").identity())[:8]]).logps.shape == (1, 10)


def test_the_tally_counts_tokens_and_what_was_there_already(tmp_path):
    """The summary's numbers are those of the scores: tokens of what was scored now, completions now and before."""
    References({"a": Companion()}).score(pairs(5), store=tmp_path)
    tally, told = Tally(say=print), []
    with watched_by(lambda *each: told.append(each)):
        scores = References({"a": Companion()}).score(pairs(12), store=tmp_path, progress=tally)
    new = scores.columns(
        [p.prompt for p in pairs(7, start=5)] * 2,
        [p.chosen for p in pairs(7, start=5)] + [p.rejected for p in pairs(7, start=5)],
    )
    tokens = int(scores.lengths[0, new].sum())
    said = tally.summaries["a"]
    assert said.startswith(f"{tokens:,} completion tokens") and said.endswith("14 scored, 10 already there")
    assert told[-1] == ("scoring under a", 14, 14)


def test_truncated_texts_are_said(recwarn):
    warnings.simplefilter("always")
    scores = References({"a": Companion()}).score(pairs(900))
    cut = int(scores.truncated.sum())
    assert cut > 0 and any(f"{cut} of 1,800 texts did not fit 'a'" in str(w.message) for w in recwarn)


def test_what_a_run_would_cost(tmp_path):
    references = References({"a": Companion()})
    references.score(pairs(30), store=tmp_path)
    (before,) = references.estimate_cost(pairs(100), store=tmp_path, shard_size=20).references
    assert (before.wanted, before.stored, before.missing) == (200, 60, 140) and before.shards > 5
    scores = references.score(pairs(100), store=tmp_path, shard_size=20)
    assert before.tokens == pytest.approx(int(scores.lengths.sum()) * 0.7, rel=0.5)
    size = sum(path.stat().st_size for path in (tmp_path / "shards").rglob("*.parquet"))
    assert before.bytes == pytest.approx(size, rel=0.6)
    (after,) = references.estimate_cost(pairs(100), store=tmp_path).references
    assert (after.missing, after.tokens, after.seconds) == (0, 0, 0.0)
