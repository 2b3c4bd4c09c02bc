"""lm-evaluation-harness on a local task file, against numbers of this library, and against the harness's own HFLM."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import multiref as mr
from multiref.errors import ArgumentError, DataError
from multiref.models import LanguageModel, Tokenisation, product_of, score_completions
from multiref.models.encoding import encode_many
from tests.conftest import make_llama, make_tokenizer

pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager

from multiref.integrations import lm_eval as lm_eval_module
from multiref.integrations.lm_eval import OptimumLM, PoolLM, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")
W, BETA = (0.3, 0.7), 0.5
ROWS = [
    {"q": "is it raining?", "choices": [" yes, it is", " no", " the cat sat"], "gold": 0},
    {"q": "what is two plus three?", "choices": [" five.", " three", " two plus two"], "gold": 2},
    {"q": "the dog sat on", "choices": [" the log", " the mat and the dog"], "gold": 1},
]
CHOICES = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{gold}}'\n"
KINDS = {
    "acc": CHOICES + "target_delimiter: ''\nmetric_list: [{metric: acc}]\n",
    "norm": CHOICES + "target_delimiter: ''\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}'\n"
    "metric_list: [{metric: word_perplexity}]\n",
    "said": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: 'x'\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {until: [' the', 'q'], max_gen_toks: 9}\n",
}


def reward(prompts, completions):
    return [text.count("t") / 4 for text in completions]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(chat=True)


@pytest.fixture(scope="module")
def models(tokenizer):
    return [make_llama(len(tokenizer), seed=seed, std=0.2) for seed in (0, 1)]


@pytest.fixture(scope="module")
def refs(models, tokenizer):
    return {name: LanguageModel(model, tokenizer, name) for name, model in zip("ab", models)}


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for kind, text in KINDS.items():
        head = f"task: local_{kind}\ndataset_path: json\ntest_split: test\ndataset_kwargs:\n  data_files:\n"
        (folder / f"{kind}.yaml").write_text(f"{head}    test: {folder / 'rows.jsonl'}\n{text}")
    return TaskManager(include_path=str(folder), include_defaults=False)


def ask(lm, kind, manager):
    """What the harness kept of each request, in order, and the task's metrics."""
    found = evaluate(lm, [f"local_{kind}"], task_manager=manager, bootstrap_iters=0)
    samples = sorted(found["samples"][f"local_{kind}"], key=lambda each: each["doc_id"])
    return [each["resps"] for each in samples], found["results"][f"local_{kind}"]


def exact(model, tokenizer, end):
    """[rows][choices]: scored by this library, row by row."""
    texts = [(row["q"], row["choices"]) for row in ROWS]
    encoded = encode_many(tokenizer, texts, Tokenisation(end=end))
    return score_completions(model, encoded).split([len(row["choices"]) for row in ROWS])


@pytest.mark.parametrize("kind", ["policy", "pool"])
def test_choices_are_scored_as_by_this_library(kind, models, tokenizer, refs, manager):
    """Bare continuations, as the harness asks, and complete answers; the best choice is the metric's."""
    given, rule = ({"a": refs["a"]}, None) if kind == "policy" else (refs, mr.ReverseKL(W))
    model = models[0] if kind == "policy" else product_of(models, W)
    for complete in (False, True):
        told, metrics = ask(PoolLM(given, rule, complete=complete), "acc", manager)
        expected = exact(model, tokenizer, complete)
        for row, each in zip(told, expected):
            assert [answer[0][0] for answer in row] == pytest.approx(each.tolist(), abs=1e-3)
        right = [int(each.argmax()) == row["gold"] for row, each in zip(ROWS, expected)]
        assert metrics["acc,none"] == pytest.approx(sum(right) / 3)


def test_the_optimum_s_choices_are_of_its_own_measure(models, tokenizer, refs, manager):
    """log P_0(y) + r(y)/β, by scores of whole completions; then acc is its argmax."""
    told, metrics = ask(OptimumLM(refs, mr.ReverseKL(W), reward, BETA), "acc", manager)
    each = [exact(model, tokenizer, True) for model in models]
    right = 0
    for i, row in enumerate(ROWS):
        value = W[0] * each[0][i] + W[1] * each[1][i] + torch.tensor(reward([], row["choices"])) / BETA
        assert [answer[0][0] for answer in told[i]] == pytest.approx(value.tolist(), abs=1e-3)
        right += int(value.argmax()) == row["gold"]
    assert metrics["acc,none"] == pytest.approx(right / 3)


def test_what_the_optimum_has_not_is_refused_with_the_reason(refs, manager):
    import lm_eval

    lm = OptimumLM(refs, mr.ReverseKL(W))
    for kind, reason in (("norm", "acc_norm.*factor 1/Z"), ("rolling", "needs probabilities")):
        with pytest.raises(ArgumentError, match=reason):
            ask(lm, kind, manager)
    with pytest.raises(ArgumentError, match="see a task's metrics first"):
        lm_eval.simple_evaluate(model=lm, tasks=["local_acc"], task_manager=manager, bootstrap_iters=0)
    lm._looked_at.add("wino")
    two = [SimpleNamespace(task_name="wino", doc_id=0, args=(context, " sat")) for context in ("the cat", "the dog")]
    with pytest.raises(ArgumentError, match="different contexts"):
        lm.loglikelihood(two)
    with pytest.raises(ArgumentError, match="Perplexity"):
        lm.loglikelihood_rolling(two)
    with pytest.raises(ArgumentError, match="temperature 1"):
        lm.generate_until([SimpleNamespace(args=("the", {"do_sample": True, "temperature": 0.5}))])
    bent = {
        "num_beams": 4,
        "no_repeat_ngram_size": 1,
        "presence_penalty": 1.0,
        "min_p": 1,
        "repetition_penalty": 0.5,
        "top_p": 0,
    }
    for name, value in bent.items():
        with pytest.raises(ArgumentError, match=name):
            PoolLM(refs).generate_until([SimpleNamespace(args=("the", {name: value}))])
    for wrong in ({"temperature": None, "do_sample": True}, {"max_gen_toks": "x"}, {"max_gen_toks": 0}):
        with pytest.raises(ArgumentError, match=r"generation_kwargs|max_new_tokens"):
            PoolLM(refs).generate_until([SimpleNamespace(args=("the", wrong))])
    one = [SimpleNamespace(task_name="wino", doc_id=0, args=("the cat", rest)) for rest in (" sat", " on")]
    for value, reason in ((math.nan, "nan for"), (-math.inf, "no choice of row 0 has mass")):
        with pytest.raises(ArgumentError, match=reason):
            vetoed = OptimumLM(refs, mr.ReverseKL(W), lambda prompts, completions, r=value: [r] * len(completions), 1.0)
            vetoed._looked_at.add("wino")
            vetoed.loglikelihood(one)
    lm._looked_at.add("long")
    with pytest.raises(ArgumentError, match="do not fit the context"):
        lm.loglikelihood([SimpleNamespace(task_name="long", doc_id=0, args=("the cat", " sat on" * 100))])
    with pytest.raises(ArgumentError, match="no optimum that is a product"):
        OptimumLM(refs, mr.ForwardKL(W))


def test_generation_stops_where_the_task_says(models, tokenizer, refs, manager):
    """The pool greedily, as the product generates; the optimum's draw ends before the first stop string too."""
    told, _ = ask(PoolLM(refs, mr.ReverseKL(W)), "said", manager)
    product = product_of(models, W)
    for row, said in zip(ROWS, told):
        inputs = tokenizer(row["q"], return_tensors="pt")
        ids = product.generate(**inputs, max_new_tokens=9, do_sample=False)[0]
        whole = tokenizer.decode(ids, skip_special_tokens=True)[len(row["q"]) :]
        assert said[0][0] == whole[: min((at for at in map(whole.find, (" the", "q")) if at >= 0), default=None)]
    lm = PoolLM(refs, mr.ReverseKL(W))
    hot, cold = {"do_sample": True}, {"do_sample": True, "temperature": 1e-3}
    idle = {"top_k": 3, "num_beams": 1, "use_cache": False, "early_stopping": True, "min_p": 0, "top_p": None}
    asked = [SimpleNamespace(args=("the", {"max_gen_toks": 12, **kind})) for kind in (hot, hot, cold, {}, idle)]
    one, other, cold, greedy, again = lm.generate_until(asked)
    assert len({one, other, greedy}) == 3 and cold == greedy == again
    drawn, _ = ask(OptimumLM(refs, mr.ReverseKL(W), reward, BETA, n=8, islands=1), "said", manager)
    assert all(" the" not in said[0][0] and "q" not in said[0][0] for said in drawn)


def test_nothing_has_probability_one(models, tokenizer, refs):
    """Behind nothing too; as a complete answer it is the end token's."""
    asked = [SimpleNamespace(args=pair, task_name=None) for pair in (("", ""), ("the cat", ""), ("", " "), ("", "the cat"))]
    *empty, said = PoolLM(refs, mr.ReverseKL(W)).loglikelihood(asked)
    assert empty == [(0.0, True)] * 3 and said[0] < 0
    ids = torch.tensor([tokenizer("the cat")["input_ids"]])
    end = product_of(models, W)(ids).logits[0, -1].log_softmax(-1)[tokenizer.eos_token_id]
    found = PoolLM(refs, mr.ReverseKL(W), complete=True).loglikelihood(asked[1:2])
    assert found[0][0] == pytest.approx(float(end), abs=1e-4)


def test_half_a_surrogate_pair_is_named(refs):
    lm = PoolLM(refs, mr.ReverseKL(W))
    for ask, args in ((lm.loglikelihood, ("the", " \ud83d")), (lm.generate_until, ("a \ud83d", {"max_gen_toks": 3}))):
        with pytest.raises(DataError, match="half of a surrogate pair"):
            ask([SimpleNamespace(args=args, task_name=None)])


def test_a_context_without_a_token_is_like_none():
    """Of a tokenizer that puts no start token there: spaces belong to what follows them."""
    tokenizer = make_tokenizer("bytelevel")
    lm = PoolLM({"a": LanguageModel(make_llama(len(tokenizer), std=0.2), tokenizer, "a")})
    pairs = [SimpleNamespace(args=pair, task_name=None) for pair in ((" ", "the cat"), ("", " the cat"))]
    one, other = lm.loglikelihood(pairs)
    assert one == other and one[0] < 0


def test_a_tokenizer_that_puts_an_end_behind_every_text():
    """It is no part of a context, nor of what is scored behind it."""
    from tokenizers.processors import TemplateProcessing

    plain, ending = make_tokenizer("bytelevel"), make_tokenizer("bytelevel")
    ending.backend_tokenizer.post_processor = TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 1)])
    assert ending("the")["input_ids"][-1] == 1 != plain("the")["input_ids"][-1]
    model, found = make_llama(len(plain), std=0.2), []
    for tokenizer in (plain, ending):
        lm = PoolLM({"a": LanguageModel(model, tokenizer, "a")})
        ask = lambda *pair: [SimpleNamespace(args=pair, task_name=None)]  # noqa: E731
        told = lm.loglikelihood(ask("the cat", " sat on")), lm.loglikelihood_rolling(ask("the cat sat"))
        found.append((*told, lm.generate_until(ask("the cat", {"max_gen_toks": 6}))))
    assert found[0] == found[1]


def test_a_context_that_does_not_fit_loses_its_begin(models, tokenizer, refs, monkeypatch):
    """Scored behind the last max_length tokens, and answered behind as many as leave room for what is new."""
    lm, product, text = PoolLM(refs, mr.ReverseKL(W)), product_of(models, W), "the cat sat on the mat. is it raining? " * 60
    whole = tokenizer(text + "the dog")["input_ids"][-(lm.max_length + 1) :]
    new = len(lm._encode_pair(text, "the dog")[1])
    exact = product(torch.tensor([whole[:-1]])).logits[0].detach().log_softmax(-1)
    (found,) = lm.loglikelihood([SimpleNamespace(args=(text, "the dog"), task_name=None)])
    assert found[0] == pytest.approx(sum(float(exact[-i, whole[-i]]) for i in range(1, new + 1)), abs=1e-3)
    contexts, original = [], lm_eval_module.spell_tokens
    spy = lambda bench, ids, *given, **named: contexts.append(ids) or original(bench, ids, *given, **named)  # noqa: E731
    monkeypatch.setattr(lm_eval_module, "spell_tokens", spy)
    lm.generate_until([SimpleNamespace(args=(text, {"max_gen_toks": 9}))])
    assert contexts == [tuple(tokenizer(text)["input_ids"][9 - lm.max_length :])] and len(contexts[0]) == lm.max_length - 9


@pytest.mark.slow
def test_it_agrees_with_the_harness_s_own_model(models, tokenizer, refs, manager):
    """HFLM on one model: choices, greedy answers, whole texts in windows of its context, and the chat template's text."""
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=models[0], tokenizer=tokenizer, batch_size=1)
    ours = PoolLM({"a": refs["a"]})
    for kind in ("acc", "rolling", "said"):
        (a, _), (b, _) = (ask(lm, kind, manager) for lm in (ours, theirs))
        if kind == "said":
            assert [row[0][0].strip() for row in a] == [row[0][0].strip() for row in b]
            continue
        flat = [[answer[0][0] if kind == "acc" else answer[0] for answer in row] for row in (*a, *b)]
        for one, other in zip(flat[:3], flat[3:]):
            assert one == pytest.approx(other, abs=1e-3)
    long = SimpleNamespace(args=(" ".join(ROWS[1]["q"] for _ in range(30)),), task_name=None)
    assert ours.loglikelihood_rolling([long]) == pytest.approx(theirs.loglikelihood_rolling([long]), abs=1e-2)
    pairs = [SimpleNamespace(args=pair, task_name=None) for pair in (("", "the cat"), ("the cat ", "sat"), ("a" * 300, " b"))]
    for mine, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs)):
        assert mine[0] == pytest.approx(other[0], abs=1e-3) and mine[1] == other[1]
    said = [{"role": "user", "content": "is it?"}]
    assert ours.apply_chat_template(said) == theirs.apply_chat_template(said)
