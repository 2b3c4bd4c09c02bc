"""A reference on this machine: golden values, one network under two tokenizers, the same score in any company, an identity that
is neither too wide nor too narrow."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from multiref.errors import ArgumentError, DataError, ModelError
from multiref.models import LanguageModel, ModelSpec, Tabular, Tokenisation, tabular_tokenizer
from multiref.references.local import LocalReference
from multiref.references.protocol import Item, Reference
from tests.conftest import make_llama, make_tokenizer

MAX = "Once upon a time, there was a little dog named Max."
GOLDEN = {  # tokens, sum of log p in float64, from data-and-models.md
    "stories260K": (16, -5.556820),
    "stories-xs-280K": (16, -8.046444),
    "stories260K-gsm8k": (16, -59.334908),
    "stories260K-shakespeare": (16, -65.964583),
    "babyllama-105": (52, -6.482625),
    "babyllama-361": (52, -6.260022),
    "babyllama-361-as-105": (52, -6.259789),
    "names-a": (8, -9.908857),
    "names-b": (8, -8.626718),
}
ITEMS = [
    Item("the dog", (" sat on the log", " and the cat", " x")),
    Item("", (MAX, "the cat")),
    Item("what is two plus three? ", ("five", "two plus")),
    Item("Question: is it raining? Answer:", (" yes, it is raining hard.", " it is")),
]


@pytest.mark.shared
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(shared, name):
    text = "isabella" if name.startswith("names") else MAX
    for dtype, tolerance in (("float64", 1e-6), ("float32", 2e-5)):
        scored = LocalReference(shared / "models" / name, tokenisation=Tokenisation(end=False), dtype=dtype).score(
            [Item("", (text,))]
        )
        tokens, expected = GOLDEN[name]
        assert scored.lengths.tolist() == [tokens] and not scored.truncated.any()
        assert abs(scored.logps.item() - expected) < tolerance


@pytest.mark.shared
def test_one_network_under_two_tokenizers(shared):
    """log p(as-105) = log p(361) − log(1 − mass of the tokens that were cut), summed over positions, on text of the 102 known
    characters.

    The cut tokens are those of C361 that C105 does not have; the mass is read off the full distribution of babyllama-361, which
    is run here position by position by its own forward, not by the scorer.
    """
    large, small = (
        LocalReference(shared / "models" / name, tokenisation=Tokenisation(end=False))
        for name in ("babyllama-361", "babyllama-361-as-105")
    )
    stories = [json.loads(line) for line in (shared / "data" / "tinystories" / "stories.jsonl").read_text().splitlines()[:40]]
    known = set(small.tokenizer.get_vocab()) | {" "}
    texts = [
        text
        for story in stories
        for text in story[next(iter(story))].split("\n")
        if 20 < len(text) < 200 and set(text) <= known
    ]
    items = [Item(text[:9], (text[9:].rstrip(),)) for text in texts if "  " not in text][:12]
    assert len(items) == 12
    one, other = large.score(items), small.score(items)
    assert torch.equal(one.lengths, other.lengths)
    with large.base.with_adapter(None) as model:
        shares, kept = kept_tokens(large.tokenizer, small.tokenizer), []
        for item in large.encode(items):
            ids = torch.tensor([item.prompt_ids + item.completions[0]])
            with torch.inference_mode():
                logps = model(ids).logits[0].double().log_softmax(-1)
            kept.append(logps[len(item.prompt_ids) - 1 : -1, shares].logsumexp(-1).sum())
    corrections = torch.stack(kept)
    assert corrections.min() < -1e-4  # it does matter
    assert torch.allclose(other.logps, one.logps - corrections, atol=1e-4, rtol=0)


def kept_tokens(large, small):
    """Ids in `large` of the tokens that `small` has. Newline is id 0 in C105 and byte token <0x0A> in C361."""
    ours, theirs = large.get_vocab(), small.get_vocab()
    kept = {ours[token] for token in theirs if token in ours}
    return torch.tensor(
        sorted(kept | {ours["<0x0A>"]} - ({ours["<unk>"]} if "<unk>" in ours and "<unk>" not in theirs else set()))
    )


def test_the_same_score_in_any_company(tiny_folder, tiny_tokenizer):
    """Any order, batch size, split into items, padding side."""
    expected = LocalReference(tiny_folder).score(ITEMS).logps
    single = [Item(item.prompt, (completion,)) for item in ITEMS for completion in item.completions]
    for budget in (1, 40, 100_000):
        reference = LocalReference(tiny_folder, token_budget=budget, logits_budget=500 * budget)
        assert torch.allclose(reference.score(ITEMS).logps, expected, atol=1e-4, rtol=0)
        assert torch.allclose(reference.score(single).logps, expected, atol=1e-4, rtol=0)
        assert torch.allclose(reference.score(single[::-1]).logps.flip(0), expected, atol=1e-4, rtol=0)
        assert torch.allclose(torch.cat([reference.score([item]).logps for item in single]), expected, atol=1e-4, rtol=0)
    for side in ("left", "right"):
        reference = LocalReference(tiny_folder)
        reference.tokenizer.padding_side = side
        assert torch.equal(reference.score(ITEMS).logps, expected)


def test_quantised_scores_do_not_see_each_other(tiny_folder):
    """Activations are quantised over the whole batch, so that each completion must be a batch of its own: then bits agree."""
    reference = LocalReference(ModelSpec(tiny_folder, quantization="int8"), device="cpu")
    together = reference.score(ITEMS).logps
    single = [Item(item.prompt, (completion,)) for item in ITEMS for completion in item.completions]
    assert torch.equal(torch.cat([reference.score([item]).logps for item in single]), together)
    exact = LocalReference(tiny_folder).score(ITEMS).logps
    assert 0 < (together - exact).abs().max() < 2
    assert reference.identity() != LocalReference(tiny_folder).identity()


def test_identity_depends_on_what_scores_depend_on_and_on_nothing_else(tiny_folder, tmp_path):
    moved = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    same = LocalReference(tiny_folder).identity()
    assert LocalReference(moved, token_budget=7, logits_budget=99, device="cpu").identity() == same
    assert (
        LocalReference(tiny_folder, tokenisation=Tokenisation(max_length=10_000)).identity() == same
    )  # the context is smaller
    assert json.loads(json.dumps(same)) == same and isinstance(LocalReference(tiny_folder), Reference)

    others = [
        LocalReference(tiny_folder, **o)
        for o in (
            {"tokenisation": Tokenisation(end=False)},
            {"tokenisation": Tokenisation(max_length=9)},
            {"tokenisation": Tokenisation(truncation="keep_end")},
            {"tokenisation": Tokenisation(start=False)},
            {"tokenisation": Tokenisation(join="tokens")},
            {"tokenisation": Tokenisation(chat_template_kwargs={"thinking": False})},
            {"dtype": "float64"},
        )
    ]
    edits = {
        "weights": lambda f: save_file(
            {k: v + 1e-6 for k, v in load_file(f / "model.safetensors").items()}, f / "model.safetensors", {"format": "pt"}
        ),
        "config": lambda f: replace(f / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'),
        "tokenizer": lambda f: replace(f / "tokenizer.json", '{"String": " "}', '{"String": "q"}', spaces=True),
        "template": lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
    }
    for name, edit in edits.items():
        folder = shutil.copytree(tiny_folder, tmp_path / name)
        edit(folder)
        others.append(LocalReference(folder))
    prints = [json.dumps(dict(reference.identity())) for reference in others]
    assert len({json.dumps(dict(same)), *prints}) == len(others) + 1


def replace(path, old, new, *, spaces=False):
    text = path.read_text(encoding="utf-8")
    text = json.dumps(json.loads(text)) if spaces else text
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_model_in_memory(tiny_folder, tiny_llama, tiny_tokenizer):
    reference = LocalReference(LanguageModel(tiny_llama, tiny_tokenizer, "mine"))
    assert torch.allclose(reference.score(ITEMS).logps, LocalReference(tiny_folder).score(ITEMS).logps, atol=1e-5)
    before = reference.identity()
    with torch.no_grad():
        tiny_llama.lm_head.weight.mul_(1.01)
    assert reference.identity() != before  # it was trained on: other scores, other identity


def test_adapters_over_one_base(tiny_folder, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    for seed in (1, 2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config).save_pretrained(tmp_path / str(seed))
    references = [
        LocalReference(tiny_folder),
        *(LocalReference(ModelSpec(tiny_folder, adapter=tmp_path / str(seed))) for seed in (1, 2)),
    ]
    assert len({id(reference.base) for reference in references}) == 1
    scores = torch.stack([reference.score(ITEMS).logps for reference in references])
    assert (scores[1:] - scores[0]).abs().amax(-1).min() > 0.01 and (scores[1] - scores[2]).abs().max() > 0.01
    assert torch.equal(references[0].score(ITEMS).logps, scores[0])  # bare again, though adapters are on
    assert len({json.dumps(dict(reference.identity())) for reference in references}) == 3
    assert LocalReference(tmp_path / "1").identity() == references[1].identity()
    base = references[0].base
    for reference in references:
        assert base._loaded is not None
        reference.release()
    assert base._loaded is None
    assert torch.allclose(references[1].score(ITEMS).logps, scores[1], atol=1e-6)  # and back


def test_truncation_is_marked(tiny_folder):
    items = [Item("the dog", (" sat on the log and the cat sat on the mat", " sat"))]
    whole, cut = (
        LocalReference(tiny_folder).score(items),
        LocalReference(tiny_folder, tokenisation=Tokenisation(max_length=6)).score(items),
    )
    assert not whole.truncated.any() and cut.truncated.tolist() == [True, False]
    assert cut.lengths[0] == 3 and cut.logps[0] > whole.logps[0] and torch.allclose(cut.logps[1], whole.logps[1], atol=1e-5)
    kept_end = LocalReference(tiny_folder, tokenisation=Tokenisation(max_length=14, truncation="keep_end"))
    long = Item("once upon a time " * 8, (" the dog", " the cat sat on the mat"))
    alone = torch.cat([kept_end.score([Item(long.prompt, (c,))]).logps for c in long.completions])
    assert torch.allclose(kept_end.score([long]).logps, alone, atol=1e-4) and kept_end.score([long]).truncated.all()
    with pytest.raises(DataError, match=r"nothing of the completion is left"):
        LocalReference(tiny_folder).score([Item("the dog " * 200, (" sat",))])
    with pytest.raises(DataError, match=r"more than the context of 128"):
        LocalReference(tiny_folder, tokenisation=Tokenisation(truncation="keep_end")).score([Item("the", (" dog" * 200,))])


def test_tokens_sum_to_the_score(tiny_folder):
    reference = LocalReference(tiny_folder)
    encoded = reference.encode(ITEMS)
    logps = reference.token_logps(encoded)
    scored = reference.score(ITEMS)
    ids = [ids for item in encoded for ids in item.completions]
    assert [len(x) for x in ids] == [len(x) for x in logps] == scored.lengths.tolist()
    assert torch.allclose(torch.stack([x.double().sum() for x in logps]), scored.logps, atol=1e-5)
    assert reference.vocabulary == reference.tokenizer.get_vocab()


def test_it_goes_to_another_process(tiny_folder, tiny_llama, tiny_tokenizer):
    """As its description; one in memory with its model. Ray sends references so."""
    items = [Item("the dog", (" sat", " on the log"))]
    for what in (tiny_folder, LanguageModel(tiny_llama, tiny_tokenizer, "m")):
        one = LocalReference(what)
        logps = one.score(items).logps
        other = pickle.loads(pickle.dumps(one))
        assert torch.equal(other.score(items).logps, logps) and other.identity() == one.identity()
        assert (one.in_memory is None) == (other.in_memory is None) == (what is tiny_folder)


def test_a_table_is_a_reference():
    model = Tabular(2, 2, 2).assign(torch.randn(2, 4))
    reference = LocalReference(LanguageModel(model, tabular_tokenizer(model), "table"), tokenisation=Tokenisation(end=False))
    items = [Item(f"x{x}", tuple(f"y{a}y{b}" for a, b in model.answers().tolist())) for x in (0, 1)]
    assert torch.allclose(reference.score(items).logps, model.sequence_logps().flatten(), atol=1e-12)


def test_what_cannot_be_scored(tiny_folder, tmp_path):
    user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    tokenizer = make_tokenizer()
    mute = LocalReference(LanguageModel(make_llama(len(tokenizer)), tokenizer, "mute"))
    with pytest.raises(ModelError, match=r"mute: .*no chat template"):
        mute.score([Item((user,), ((answer,),))])
    with pytest.raises(ArgumentError, match=r"truncation"):
        LocalReference(tiny_folder, tokenisation=Tokenisation(truncation="left"))
    with pytest.raises(ArgumentError, match=r"max_length"):
        LocalReference(tiny_folder, tokenisation=Tokenisation(max_length=1))
    with pytest.raises(ModelError, match=r"no model folder"):
        LocalReference(tmp_path / "absent").identity()
    empty = LocalReference(tiny_folder).score([])
    assert empty.logps.shape == empty.lengths.shape == empty.truncated.shape == (0,)


def test_layers_spread_over_devices(tiny_folder):
    """device="auto" goes through accelerate's dispatch, hooks on the layers and all (here onto one CPU)."""
    spread = LocalReference(tiny_folder, device="auto", dtype="float32")
    assert torch.allclose(spread.score(ITEMS).logps, LocalReference(tiny_folder).score(ITEMS).logps, atol=1e-5)
