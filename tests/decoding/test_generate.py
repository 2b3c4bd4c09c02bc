"""The per-token pool inside `generate`, as a stream, and `multiref decode`."""

import copy
import json
import os
import re
from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache
from transformers.convert_slow_tokenizer import bytes_to_unicode
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app
from multiref.decoding import Draws, PoolLogitsProcessor, stream_tokens
from multiref.decoding.streaming import Transcript
from multiref.errors import ArgumentError, MultirefWarning, VocabularyMismatch
from multiref.models import Generation, LanguageModel, product_of
from multiref.models.descent import descend
from tests.conftest import make_llama, make_tokenizer

W = (0.3, 0.7)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def models(tokenizer):
    return [make_llama(len(tokenizer), seed=seed, std=0.2) for seed in (0, 1)]


def padded(tokenizer):
    return tokenizer(["the cat sat", "Once upon a time there was"], padding=True, return_tensors="pt")


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_the_processor_is_generate_of_the_product(models, tokenizer, beams):
    """Greedy and by beams (which reorder rows), on a batch that is padded on the left; the prompt is read once a call, then
    one token a step."""
    inputs, options = padded(tokenizer), {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    expected = product_of(models, W).generate(**inputs, **options)
    pool = PoolLogitsProcessor(models, W, attention_mask=inputs["attention_mask"])
    read = []
    seen = models[1].register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    assert torch.equal(models[0].generate(**inputs, **options, logits_processor=[pool]), expected)
    assert torch.equal(models[0].generate(**inputs, **options, logits_processor=[pool]), expected)  # a second call
    seen.remove()  # and once more where rows were reordered for the first time, to see whether the cache kept them
    assert read[0] == inputs["input_ids"].shape[1] and sum(width > 1 for width in read) == 2 + (beams > 1)


def test_a_cache_that_does_not_follow_reordered_rows_is_given_up(models, tokenizer, monkeypatch):
    """As MiniMax's, whose states of linear attention stay where they are: 0.08 nats off over ten tokens, and other beams."""
    models = [copy.deepcopy(each) for each in models]  # of others it is known that their caches follow
    inputs, options = padded(tokenizer), {"max_new_tokens": 10, "do_sample": False, "num_beams": 3}
    expected = product_of(models, W).generate(**inputs, **options)
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda self, rows: None)
    given = {"logits_processor": [PoolLogitsProcessor(models, W, attention_mask=inputs["attention_mask"])], "use_cache": False}
    assert torch.equal(models[0].generate(**inputs, **options, **given), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"do_sample": True, "temperature": 0.5}, "Temperature", id="temperature"),
        pytest.param({"do_sample": True, "top_k": 5}, "TopK", id="top_k"),
        pytest.param({"do_sample": True, "top_k": 0, "top_p": 0.5}, "TopP", id="top_p"),
        pytest.param({"repetition_penalty": 1.3}, "Repetition", id="penalty"),
        pytest.param({"do_sample": True, "top_k": 0}, None, id="the pool itself"),
        pytest.param({"min_new_tokens": 3, "suppress_tokens": [5]}, None, id="tokens forbidden"),
    ],
)
def test_what_bends_the_pool_is_said(models, tokenizer, options, named):
    """Whatever stands beside it in the list that generate runs, wherever it comes from (every warning is an error here)."""
    inputs = padded(tokenizer)
    pool = PoolLogitsProcessor(models, W, attention_mask=inputs["attention_mask"])
    asked = {**inputs, "max_new_tokens": 3, "logits_processor": [pool], "do_sample": False, **options}
    with pytest.warns(MultirefWarning, match=named) if named else nullcontext():
        models[0].generate(**asked)


@pytest.mark.parametrize("order", [0.0, 1.0], ids=["geometric", "arithmetic"])
def test_what_is_forbidden_before_the_pool_stays_forbidden(tokenizer, order):
    """Though the model that is asked first has no weight, and the other two love the end token."""
    three = [make_llama(len(tokenizer), seed=seed, std=0.2) for seed in (0, 1, 2)]
    pool = PoolLogitsProcessor(three, [0.0, 0.2, 0.8], order=order)
    end = tokenizer.eos_token_id
    scores = torch.zeros(1, len(tokenizer)).index_fill(1, torch.tensor([end]), -torch.inf)
    said = pool(torch.tensor([[1, 5]]), scores)
    each = torch.stack([model(torch.tensor([[1, 5]])).logits[0, -1].detach() for model in three[1:]]).log_softmax(-1)
    expected = mr.pools.power_pool(each, torch.tensor([0.2, 0.8]), order).index_fill(0, torch.tensor([end]), -torch.inf)
    torch.testing.assert_close(said[0], expected.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [0.0, 1.0, -1.0, 0.3])
def test_what_is_left_where_tokens_are_forbidden_has_the_law_of_the_per_token_pool(models, tokenizer, order):
    """Its scores along rows that `sample(method="token")` draws, whose ends are forbidden for four tokens, are log q of each:
    the pool first, then what is forbidden is taken out of it."""
    tables = [make_llama(len(tokenizer), seed=seed, std=0.2) for seed in (0, 1)]
    with torch.no_grad():  # the first model would end at once, so much of what it says is forbidden
        tables[0].lm_head.weight[tokenizer.eos_token_id] = tables[0].lm_head.weight.mean(0) + 1.0
    context, end = (1, 5, 9), tokenizer.eos_token_id
    drawn = descend(
        tables, context, torch.tensor(W), ends=[end], generation=Generation(6, min_new_tokens=4), rows=5,
        generator=torch.Generator().manual_seed(0), pooled=True, order=order,
    )  # fmt: skip
    pool, ids = PoolLogitsProcessor(tables, W, order=order), torch.tensor([context] * 5)
    total, going = torch.zeros(5), torch.ones(5, dtype=torch.bool)
    for t in range(6):
        logits = tables[0](ids).logits[:, -1].detach()
        said = pool(ids, logits.index_fill(1, torch.tensor([end]), -torch.inf) if t < 4 else logits)
        token = torch.tensor([row[t] if t < len(row) else end for row in drawn.ids])
        total += torch.where(going, said.gather(1, token[:, None])[:, 0], 0.0)
        going &= token != end
        ids = torch.cat([ids, token[:, None]], 1)
    torch.testing.assert_close(total.double(), drawn.log_proposal, atol=2e-4, rtol=1e-5)


def test_prompts_that_the_others_would_read_otherwise_are_refused(models, tokenizer):
    """Padding without its mask, a mask of another batch (wider, or of the same shape), embeddings, two vocabularies."""
    inputs, wide = (
        padded(tokenizer),
        tokenizer(["no", "the dog sat on the mat and on the log"], padding=True, return_tensors="pt"),
    )
    once = {"max_new_tokens": 2, "do_sample": False}
    bare, own = PoolLogitsProcessor(models, W), PoolLogitsProcessor(models, W, attention_mask=inputs["attention_mask"])
    models[0].generate(torch.tensor([[1], [1]]), **once, logits_processor=[bare])  # a start token is no padding
    models[0].generate(**inputs, **once, logits_processor=[own])
    turned = {name: value.flip(0) for name, value in inputs.items()}
    for given, processor, reason in (
        (inputs, bare, "rows are padded"),
        (wide, own, "not of these prompts"),
        (turned, own, "not of these prompts"),
        ({"inputs_embeds": torch.zeros(1, 2, models[0].config.hidden_size)}, bare, "embeddings"),
    ):
        with pytest.raises(ArgumentError, match=reason):
            models[0].generate(**given, **once, logits_processor=[processor])
    with pytest.raises(VocabularyMismatch):
        PoolLogitsProcessor([models[0], make_llama(len(tokenizer) + 1)])
    with pytest.raises(ArgumentError, match=r"models: found 'a'; expected .*load\(path\).model"):
        PoolLogitsProcessor([models[0], "a"])
    with pytest.raises(ArgumentError, match="attention_mask: expected a tensor"):
        PoolLogitsProcessor(models, W, attention_mask=inputs["attention_mask"][0])


def test_a_stream_is_the_text_that_is_drawn(models, tokenizer):
    refs = {name: LanguageModel(model, tokenizer, name) for name, model in zip("ab", models)}
    pieces = list(stream_tokens("the cat", refs, mr.ReverseKL(W), 12, min_new_tokens=12, seed=4))
    again = list(stream_tokens("the cat", refs, mr.ReverseKL(W), 12, min_new_tokens=12, seed=4))
    assert pieces == again and len(pieces) > 3
    few = stream_tokens("the cat", refs, mr.ReverseKL(W), 100)
    next(few)
    few.close()  # a reader that leaves


def test_a_stream_that_is_left_open_ends_with_the_interpreter_in_silence(models, tokenizer, monkeypatch):
    """It takes the names of modules away first; a script ended by "Exception ignored … catching classes …"."""
    refs = {name: LanguageModel(model, tokenizer, name) for name, model in zip("ab", models)}
    open_stream = stream_tokens("the cat", refs, mr.ReverseKL(W), 30, min_new_tokens=30)
    next(open_stream)
    monkeypatch.setattr("multiref.references.local.ModelError", None)
    open_stream.close()


class Tidying:
    """Token ids are code points; spaces before a mark go away once it comes, as some decoders have it."""

    def batch_decode(self, rows, **settings):
        return [re.sub(r" +([.,])", r"\1", "".join(map(chr, row))) for row in rows]


@pytest.mark.parametrize("said", ["so it is .  and on", "no , never", "猫 . b"], ids=["twice", "once", "wide"])
def test_what_a_decoder_rewrites_is_not_lost(said):
    """The whole text is right; a stream, which cannot take back what it said, ends as the text does."""
    text = Transcript(Tidying(), (65, 66))
    pieces = [text.add(ord(letter)) for letter in said] + [text.close()]
    assert text.shown == re.sub(r" +([.,])", r"\1", said) and re.sub(r" +", "", "".join(pieces)).endswith(said[-2:].strip())


def test_half_a_character_waits_for_the_rest():
    """Bytes one at a time, a broken one among them; joined characters; a stop string that is cut by the bytes."""
    tokenizer = make_tokenizer("bytelevel")
    said = "猫🐈 naïve é 👨‍👩‍👧 \ufffdx"
    ids = [index for letter in said.encode() for index in tokenizer.convert_tokens_to_ids([bytes_to_unicode()[letter]])]
    assert len(ids) == len(said.encode()) > len(said)
    for stop, whole in (("zz", said), ("👩", said[:13]), ("\u200d👩", said[:12]), ("\ufffd", said[:-2])):
        text = Transcript(tokenizer, tuple(tokenizer("the cat")["input_ids"]), (stop,))
        pieces = []
        for index in ids:
            pieces.append(text.add(index))
            if text.stopped:
                break
        assert "".join([*pieces, text.close()]) == whole == text.shown
        places = [place for place, letter in enumerate(said) for _ in letter.encode()]
        assert text.lengths[: len(ids) - 1] == places[: len(text.lengths)][: len(ids) - 1]  # the last is behind a \ufffd
        assert not any("\ufffd" in piece for piece in pieces[:-2])


def test_the_verb(models, tokenizer, tmp_path):
    for name, model in zip("ab", models):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    given = ["decode", "-r", f"a={tmp_path / 'a'}", "-r", f"b={tmp_path / 'b'}", "--prompt", "the cat", "--device", "cpu"]
    given += ["--max-new-tokens", "4"]
    short = ["-n", "4", "--islands", "2"]
    out = CliRunner().invoke(app, [*given, *short, "--show", "2", "--out", str(tmp_path / "draws.jsonl")])
    assert out.exit_code == 0 and out.output.count("the cat") >= 2 and "log Z" in out.output
    assert out.output.index("tokens read and 0 rewards; about") < out.output.index("the cat")
    assert len(Draws.load(tmp_path / "draws.jsonl")) == 1 and json.loads((tmp_path / "draws.jsonl").read_text().split("\n")[1])
    streamed = CliRunner().invoke(app, [*given, "--method", "token"])
    assert streamed.exit_code == 0 and "approximate" in streamed.output
    assert streamed.output.index("tokens read and 0 rewards; about") < streamed.output.index("the cat")
    for method, own in (("smc", short), ("token", [])):
        found = json.loads(CliRunner().invoke(app, [*given, *own, "--method", method, "--show", "2", "--json"]).stdout)
        assert len(found["prompts"][0]["completions"]) == 2 and bool(found["approximate"]) == (method == "token")
        assert (found["prompts"][0].get("log_partition", -1) < 0) and found["verb"] == "decode"
    for wrong in (
        ["--weight", "a=1"],
        ["--weight", "a=x", "--weight", "b=1"],
        ["--prompts", str(tmp_path / "none.txt")],
        ["--method", "best"],
        ["--reward", "length=5"],
        ["--out", str(tmp_path / "a")],
        ["--out", str(tmp_path / "draws.jsonl" / "more.jsonl")],
        ["--out", str(tmp_path / "new" / "folder" / "more.jsonl"), "--method", "best"],
        ["--method", "token", "--proposal", "pool"],
        ["--method", "token", "--particles", "9"],
    ):
        refused = CliRunner().invoke(app, [*given, *(short if "token" not in wrong else []), *wrong])
        assert refused.exit_code == 2 and refused.output.count("Error") == 1 and "the cat" not in refused.output
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "draws.jsonl"]  # nothing is left of looking whether there is room


def test_the_verbs_reward_reads_the_columns_of_each_prompts_row(models, tokenizer, tmp_path):
    """r is the row's own grade for every completion, so log Z is the escort's (β = 1) plus that grade."""
    for name, model in zip("ab", models):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "own.py").write_text("def graded(prompts, completions, grade):\n    return [float(each) for each in grade]\n")
    rows = "".join(json.dumps({"prompt": "the cat", "grade": grade}) + "\n" for grade in (2, 5))
    (tmp_path / "rows.jsonl").write_text(rows)
    given = ["decode", "-r", f"a={tmp_path / 'a'}", "-r", f"b={tmp_path / 'b'}", "--prompts", str(tmp_path / "rows.jsonl")]
    given += ["--device", "cpu", "--max-new-tokens", "3", "-n", "4", "--islands", "2", "--json"]
    own = ["--reward", f"python={tmp_path / 'own.py'}:graded", "--beta", "1"]
    plain, graded = (json.loads(CliRunner().invoke(app, [*given, *more]).stdout)["prompts"] for more in ([], own))
    gained = [one["log_partition"] - other["log_partition"] for one, other in zip(graded, plain)]
    assert gained == pytest.approx([2.0, 5.0], abs=1e-6)


def test_the_verb_proposes_from_one_of_other_vocabularies(models, tokenizer, tmp_path):
    """What the refusal advises is an option of the verb."""
    foreign = make_tokenizer("bytelevel")
    for name, (model, own) in {"a": (models[0], tokenizer), "b": (make_llama(len(foreign)), foreign)}.items():
        model.save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    given = ["decode", "-r", f"a={tmp_path / 'a'}", "-r", f"b={tmp_path / 'b'}", "--prompt", "the cat", "--device", "cpu"]
    given += ["--max-new-tokens", "2", "-n", "16", "--islands", "2"]
    refused = CliRunner().invoke(app, given)
    assert refused.exit_code == 2 and "with proposal='a'" in " ".join(refused.output.split())
    found = CliRunner().invoke(app, [*given, "--proposal", "a"])
    assert found.exit_code == 0 and "Draws by smc from a" in found.output
