"""The per-token pool inside `generate`, as a stream, and `multiref decode`."""

import json

import pytest
import torch
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app
from multiref.decoding import Draws, PoolLogitsProcessor, stream_tokens
from multiref.errors import MultirefWarning, VocabularyMismatch
from multiref.models import LanguageModel, product_of
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
    seen.remove()
    assert read[0] == inputs["input_ids"].shape[1] and sum(width > 1 for width in read) == 2


def test_what_bends_the_pool_is_said(models, tokenizer):
    model = make_llama(len(tokenizer), seed=0, std=0.2)
    model.generation_config.top_k = 5
    with pytest.warns(MultirefWarning, match="top_k"):
        pool = PoolLogitsProcessor([model, models[1]], W)
    cut = torch.zeros(1, len(tokenizer)).index_fill(1, torch.tensor([3]), -torch.inf)
    with pytest.warns(MultirefWarning, match="cut before"):
        pool(torch.tensor([[1, 5]]), cut)
    with pytest.raises(VocabularyMismatch):
        PoolLogitsProcessor([models[0], make_llama(len(tokenizer) + 1)])


def test_a_stream_is_the_text_that_is_drawn(models, tokenizer):
    refs = {name: LanguageModel(model, tokenizer, name) for name, model in zip("ab", models)}
    pieces = list(stream_tokens("the cat", refs, mr.ReverseKL(W), 12, min_new_tokens=12, seed=3))
    again = list(stream_tokens("the cat", refs, mr.ReverseKL(W), 12, min_new_tokens=12, seed=3))
    assert pieces == again and len(pieces) > 3
    few = stream_tokens("the cat", refs, mr.ReverseKL(W), 100)
    next(few)
    few.close()  # a reader that leaves


def test_the_verb(models, tokenizer, tmp_path):
    for name, model in zip("ab", models):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    given = ["decode", "-r", f"a={tmp_path / 'a'}", "-r", f"b={tmp_path / 'b'}", "--prompt", "the cat", "--device", "cpu"]
    short = ["--max-new-tokens", "4", "-n", "4", "--islands", "2"]
    out = CliRunner().invoke(app, [*given, *short, "--show", "2", "--out", str(tmp_path / "draws.jsonl")])
    assert out.exit_code == 0 and out.output.count("the cat") >= 2 and "log Z" in out.output
    assert len(Draws.load(tmp_path / "draws.jsonl")) == 1 and json.loads((tmp_path / "draws.jsonl").read_text().split("\n")[1])
    streamed = CliRunner().invoke(app, [*given, *short, "--method", "token"])
    assert streamed.exit_code == 0 and "approximate" in streamed.output
    for method in ("smc", "token"):
        found = json.loads(CliRunner().invoke(app, [*given, *short, "--method", method, "--show", "2", "--json"]).stdout)
        assert len(found["prompts"][0]["completions"]) == 2 and bool(found["approximate"]) == (method == "token")
        assert (found["prompts"][0].get("log_partition", -1) < 0) and found["verb"] == "decode"
    for wrong in (
        ["--weight", "a=1"],
        ["--weight", "a=x", "--weight", "b=1"],
        ["--prompts", str(tmp_path / "none.txt")],
        ["--method", "best"],
        ["--reward", "length=5"],
    ):
        refused = CliRunner().invoke(app, [*given, *short, *wrong])
        assert refused.exit_code == 2 and refused.output.count("Error") == 1
