"""What the official client gets, against numbers that were made otherwise."""

import math
import threading
from dataclasses import replace

import lazy_loader
import pytest
import torch
from tokenizers import AddedToken

import multiref as mr
from multiref.decoding.streaming import draw_tokens, open_pool, spell_tokens
from multiref.models import Generation, LanguageModel, Tokenisation, product_of, score_completions
from multiref.models.draws import bend
from multiref.models.encoding import encode_many
from multiref.models.lockstep import Lockstep
from multiref.references import Connection, ServerReference
from multiref.references.completion_api import match_tokens
from multiref.references.protocol import Item
from multiref.serving import Optimum, TokenPool
from multiref.serving.asked import Asked
from multiref.serving.served import Piece
from tests.conftest import make_llama, make_tokenizer
from tests.decoding.worlds import BETA, LENGTH, Truth, references, reward, tables, total_variation
from tests.decoding.worlds import W as TABLES_W
from tests.serving.servers import W, serving, tiny_references

openai = lazy_loader.load("openai")  # a second, of whoever runs these tests
pytestmark = pytest.mark.filterwarnings("ignore:.*has a chat template")
MODEL, SAID = "multiref", [{"role": "user", "content": "is it raining?"}]


@pytest.fixture(scope="module")
def refs():
    return tiny_references()


@pytest.fixture(scope="module")
def client():
    with serving() as (port, _):
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def product(refs):
    opened = [refs.open(name).in_memory for name in refs.names]
    return product_of(opened, W), refs.open("a").tokenizer


def test_greedy_answers_are_those_of_the_product(client, product):
    """Completion, and chat by the references' own template; whole and streamed."""
    model, tokenizer = product
    written = tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    plain = tokenizer(written, add_special_tokens=False, return_tensors="pt")
    for inputs, ask in ((tokenizer("the cat", return_tensors="pt"), None), (plain, SAID)):
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
        before = tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
        expected = tokenizer.decode(ids, skip_special_tokens=True)[len(before) :]
        given = {"model": MODEL, "max_tokens": 8, "temperature": 0}
        if ask is None:
            assert client.completions.create(prompt="the cat", **given).choices[0].text == expected
            continue
        found = client.chat.completions.create(messages=ask, **given)
        assert found.choices[0].message.content == expected and found.usage.prompt_tokens == inputs["input_ids"].shape[1]
        parts = client.chat.completions.create(messages=ask, stream=True, **given)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == expected


def test_echoed_log_probabilities_are_the_pool_s(client, product):
    """Against the product's plain logits; and our own client scores with this server as with the product itself."""
    model, tokenizer = product
    text = "the cat sat on the mat"
    ids = tokenizer(text)["input_ids"]
    exact = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    found = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=2).choices[0]
    assert found.text == text and found.finish_reason == "length" and found.logprobs.token_logprobs[0] is None
    expected = [float(exact[t, token]) for t, token in enumerate(ids[1:])]
    assert found.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    likeliest = [sorted(each.values(), reverse=True)[:2] for each in found.logprobs.top_logprobs[1:]]
    assert likeliest == [pytest.approx(row, abs=1e-4) for row in exact[:-1].topk(2).values.tolist()]
    told = found.logprobs
    assert all(told.top_logprobs[i][token] == told.token_logprobs[i] for i, token in enumerate(told.tokens) if i)
    pieces = [text[a:b] for a, b in zip(found.logprobs.text_offset, [*found.logprobs.text_offset[1:], len(text)])]
    assert "".join(pieces) == text and pieces[1:] == found.logprobs.tokens[1:]
    more = client.completions.create(model=MODEL, prompt=text, max_tokens=5, echo=True, logprobs=0, seed=3)
    said, at = more.choices[0].text, more.choices[0].logprobs.text_offset
    new = more.choices[0].logprobs.tokens[len(ids) :]
    assert at[len(ids)] == len(text) and more.usage.completion_tokens == len(new) and more.usage.prompt_tokens == len(ids)
    parts = [said[a:b] for a, b in zip(at, [*at[1:], len(said)])][len(ids) :]
    unseen = {tokenizer.decode([index]) for index in tokenizer.added_tokens_decoder}  # special ones, bytes among them
    assert all(part == token or (not part and token in unseen) for part, token in zip(parts, new, strict=True))
    item, tokenisation = Item("the cat", (" sat on", " is five.")), Tokenisation(end=False)
    (encoded,) = encode_many(tokenizer, [(item.prompt, item.completions)], tokenisation)
    once = Connection(attempts=1)
    for given in ({"tokenizer": tokenizer, "tokenisation": tokenisation}, {"tokenisation": tokenisation}):
        server = ServerReference(str(client.base_url), connection=once, **given)
        scored = server.score([item])
        assert scored.logps.tolist() == pytest.approx(score_completions(model, [encoded]).tolist(), abs=1e-3)


def test_parts_of_a_character_begin_where_it_does():
    """Bytes of an echoed prompt: each token's offset is that of the character which its first byte is of."""
    tokenizer, text = make_tokenizer("bytelevel"), "é猫🐈 the Mat\nnaïve 猫"
    refs = mr.References({"a": LanguageModel(make_llama(len(tokenizer), std=0.2), tokenizer, "a")})
    with TokenPool(refs, mr.ReverseKL()) as pool:
        piece, _ = pool.answer(Asked((text,), new_tokens=0, echo=True, top=0), threading.Event())
    sizes = [len(token) for token in tokenizer.tokenize(text)]  # a letter stands for a byte
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    expected = [len(text.encode()[:start].decode(errors="ignore")) for start in starts]
    assert [each.offset for each in piece.tokens] == expected and len(expected) > len(set(expected)) > 8


def marked_pool(marks):
    """(tokenizer, pool) of letters as bytes, with these special tokens beside them, of which the tokenizer's settings say
    nothing (as Llama 3's say nothing of <|eot_id|>)."""
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
    assert not set(marks) & set(tokenizer.all_special_tokens)
    return tokenizer, TokenPool(
        mr.References({"a": LanguageModel(make_llama(len(tokenizer), std=0.2), tokenizer, "a")}), mr.ReverseKL()
    )


def test_a_drawn_token_keeps_its_name_beside_others_of_that_name():
    """Single bytes are all spelt "\ufffd", as every server spells them. What is told under the drawn one's name is its own
    log-probability; its namesakes are told by their ids."""
    _, opened = marked_pool([])
    seen = 0
    with opened as pool:
        for seed in range(4):
            asked = Asked(("the cat",), new_tokens=30, top=20, seed=seed)
            pieces = [each for each in pool.answer(asked, threading.Event()) if isinstance(each, Piece)]
            for told in (token for piece in pieces for token in piece.tokens):
                assert told.top[told.token] == told.logp and len(told.top) in (20, 21)
                seen += told.token == "\ufffd" and sum(name.startswith("token_id:") for name in told.top) > 1
    assert seen > 3


def test_a_special_token_is_called_by_its_name_and_ends_an_answer_where_it_is_asked_to():
    """Echoed, it is the token that was sent, as our own client checks it. As a stop string it ends the answer where the same
    seed draws it, and all before is the same; its text is nowhere."""
    marks = [f"<|mark {i}|>" for i in range(60)]
    tokenizer, opened = marked_pool(marks)
    ids = tuple(tokenizer("the<|mark 7|> cat")["input_ids"])
    with opened as pool:
        piece, _ = pool.answer(Asked((ids,), new_tokens=0, echo=True, top=0), threading.Event())
        said = [each.token for each in piece.tokens]
        assert "<|mark 7|>" in said and piece.text == "the cat"
        match_tokens(said, ids, tokenizer)
        asked = Asked(("the cat",), new_tokens=60, top=0, seed=1)
        whole = [each for each in pool.answer(asked, threading.Event()) if isinstance(each, Piece)]
        tokens = [each.token for piece in whole for each in piece.tokens]
        place, mark = next((i, each) for i, each in enumerate(tokens) if each in marks)
        assert 0 < place < len(tokens) - 1
        *cut, finished = pool.answer(replace(asked, stops=("never", mark)), threading.Event())
    assert [each.token for piece in cut for each in piece.tokens] == tokens[: place + 1] and cut[-1].finish == "stop"
    assert finished.completion_tokens == place + 1 and "mark" not in "".join(piece.text for piece in cut)


@pytest.mark.parametrize("patience", [1, 3])
def test_what_is_drawn_with_temperature_and_cuts_is_what_was_asked_for(patience, monkeypatch):
    """4,000 rows of a table under temperature 0.7, top_p 0.8, no end before one token: the law by enumeration; rows that end
    early do not move the others. So it is where an accelerator is waited for at every third token only."""
    monkeypatch.setattr(Lockstep, "patience", property(lambda self: patience, lambda self, value: None), raising=False)
    made = tables()
    asked, size = Generation(LENGTH, temperature=0.7, top_p=0.8, min_new_tokens=1), 4000
    truth = Truth(made, rewarded=False, shortest=0, weights=TABLES_W)
    log_q = []
    for ids in truth.ids:
        row, total = 0, 0.0
        for t, token in enumerate(ids):
            pool = sum(w * table.table[0, row].detach().log_softmax(-1) for w, table in zip(TABLES_W, made))
            total += float(bend(pool.float(), asked, torch.tensor([0]), t).log_softmax(-1)[token])
            row = 3 * row + 1 + token
        log_q.append(total)
    law = torch.tensor(log_q).exp().double()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    rows = [[] for _ in range(size)]
    with open_pool(references(made), mr.ReverseKL(TABLES_W)) as bench:
        for drawn in draw_tokens(bench, (3,), asked, rows=size, generator=bench.generator(5)):
            for each in drawn:
                rows[each.row].append(each.token)
    place = {ids: i for i, ids in enumerate(truth.ids)}
    counts = torch.zeros(len(law), dtype=torch.float64)
    for row in rows:
        counts[place[tuple(row)]] += 1 / size
    assert total_variation(counts, law) < 0.03


def test_steps_that_are_waited_for_together_say_what_single_ones_say(refs, monkeypatch):
    """Greedily, up to a stop string in the middle of eight tokens: the same pieces of text and the same tokens."""
    found = []
    for patience in (1, 8):
        monkeypatch.setattr(Lockstep, "patience", property(lambda self, n=patience: n, lambda self, value: None), raising=False)
        for stops in ((), ("e",)):
            with open_pool(refs, mr.ReverseKL(W)) as bench:
                given = {"generator": bench.generator(0), "rows": 2, "top": 2, "stops": stops}
                spelt = list(spell_tokens(bench, (1, 5), Generation(13, 0.0, min_new_tokens=13), **given))
            found.append([(each.row, each.piece, [d.token for d in each.drawn], each.finish) for each in spelt])
    assert found[:2] == found[2:] and len(found[1]) < len(found[0])


def test_stop_strings_cut_what_the_same_seed_says_without_them(client):
    """Streamed or not, at every place; what may begin a stop string is not shown before it is known to be none."""
    for seed in range(2):
        given = {"model": MODEL, "prompt": "the cat", "max_tokens": 40, "seed": seed}
        uncut = client.completions.create(**given).choices[0]
        whole = uncut.text
        assert len(whole) > 12
        for stop in ([whole[3:5]], [whole[8:9], whole[10:13]], ["never to be found"]):
            expected = whole[: min((at for at in map(whole.find, stop) if at >= 0), default=None)]
            cut = client.completions.create(stop=stop, logprobs=0, **given).choices[0]
            assert cut.text == expected and max(cut.logprobs.text_offset) <= len(expected)
            parts = [part.choices[0] for part in client.completions.create(stop=stop, stream=True, **given)]
            assert "".join(part.text for part in parts) == expected
            assert parts[-1].finish_reason == cut.finish_reason == (uncut.finish_reason if expected == whole else "stop")


def test_choices_seeds_prompts_and_usage(client):
    """The same seed says the same; choices differ; several prompts keep their order; what is used is counted."""
    given = {"model": MODEL, "prompt": ["the cat", [1, 300, 301]], "n": 3, "seed": 7, "max_tokens": 5}
    one, again = (client.completions.create(**given) for _ in range(2))
    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in again.choices] and len(set(texts)) > 3
    assert [choice.index for choice in one.choices] == list(range(6)) and 6 <= one.usage.completion_tokens <= 30
    other = client.completions.create(**{**given, "seed": 8})
    assert texts != [choice.text for choice in other.choices]
    streamed = ["" for _ in texts]
    for part in client.completions.create(stream=True, stream_options={"include_usage": True}, **given):
        assert "usage" in part.model_fields_set and (part.usage is None) == bool(part.choices)
        if part.choices:
            streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == texts and part.usage == one.usage
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
    begun = client.completions.create(**{**given, "prompt": ["the cat", "is it"], "echo": True})
    assert all(choice.text.startswith(("the cat", "is it")[choice.index // 3]) for choice in begun.choices)
    indices = {part.choices[0].index for part in client.completions.create(stream=True, **given)}
    assert indices == set(range(6))
    told = client.chat.completions.create(model=MODEL, messages=SAID, logprobs=True, top_logprobs=3, max_tokens=4, seed=1)
    tokens = told.choices[0].logprobs.content
    assert all(len(each.top_logprobs) == 3 and each.logprob < 0 for each in tokens)
    assert "approximate" in told.model_extra["multiref"]


def test_a_chat_with_the_optimum_says_what_was_drawn():
    """The messages that `sample` draws under the same seed, of which the choices are picks."""
    refs, length = tiny_references(), 6
    given, talk = {"n": 4, "islands": 2}, tuple(SAID)
    with Optimum(refs, mr.ReverseKL(W), most=length, **given) as served:
        *pieces, finished = served.answer(Asked((talk,), chat=True, new_tokens=length, n=3, seed=3), threading.Event())
    (found,) = mr.decoding.sample([talk], refs, mr.ReverseKL(W), max_new_tokens=length, seed=3, **given)
    said = {message["content"] for (message,) in found.completions}
    assert [each.choice for each in pieces] == [0, 1, 2] and {each.text for each in pieces} <= said
    written = refs.open("a").tokenizer.apply_chat_template(SAID, tokenize=False, add_generation_prompt=True)
    plain = refs.open("a").tokenizer(written, add_special_tokens=False)["input_ids"]
    assert finished.prompt_tokens == len(plain) and finished.notes["prompts"][0]["log_partition"] == found.log_partition


def test_draws_of_the_optimum():
    """128 answers are of π*: their mean reward is its own within 4.5 standard errors (the escort's is 5 away); the stream says
    the same, once it is drawn."""
    made = tables()
    refs = mr.References(references(made))
    truth, escort = Truth(made), Truth(made, rewarded=False)
    mean = float(truth.policy @ truth.rewards)
    error = math.sqrt(float(truth.policy @ (truth.rewards - mean) ** 2) / 128)
    assert mean - float(escort.policy @ truth.rewards) > 5 * error
    options = {"method": "rejection", "n": 512, "islands": 1, "reward_max": 1.0}
    served = Optimum(refs, mr.ReverseKL(TABLES_W), reward, BETA, most=LENGTH, **options)
    with serving(served) as (port, _):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        given = {"model": MODEL, "prompt": "x0", "n": 128, "seed": 4, "max_tokens": LENGTH}
        found = client.completions.create(**given)
        texts = [choice.text for choice in found.choices]
        assert abs(sum(reward([], texts)) / 128 - mean) < 4.5 * error
        (note,) = found.model_extra["multiref"]["prompts"]
        assert abs(note["log_partition"] - truth.log_partition) < 4.5 * note["error"]
        streamed = [part.choices[0].text for part in client.completions.create(stream=True, **given)]
        assert streamed == texts
        wrong = {"temperature": 0.5, "top_p": 0.9, "logprobs": 1, "echo": True, "prompt": [3], "max_tokens": 99}
        for field, value in wrong.items():
            with pytest.raises(openai.BadRequestError) as refused:
                client.completions.create(**{**given, field: value})
            assert refused.value.param == field


REFUSED = {
    "penalty": ({"frequency_penalty": 0.5}, "frequency_penalty"),
    "bias": ({"logit_bias": {"5": 3}}, "logit_bias"),
    "best of": ({"best_of": 4}, "best_of"),
    "suffix": ({"suffix": "x"}, "suffix"),
    "unknown": ({"extra_body": {"guided_json": {}}}, "guided_json"),
    "temperature": ({"temperature": -1}, "temperature"),
    "cold": ({"temperature": 1e-300}, "temperature"),
    "text as number": ({"extra_body": {"temperature": "1"}}, "temperature"),
    "true as number": ({"extra_body": {"n": True}}, "n"),
    "top_p": ({"top_p": 0}, "top_p"),
    "stop": ({"stop": [""]}, "stop"),
    "stops": ({"stop": ["a"] * 17}, "stop"),
    "choices": ({"n": 100, "prompt": ["a", "b"]}, "n"),
    "nothing": ({"max_tokens": 0}, "max_tokens"),
    "long": ({"max_tokens": 200}, "prompt"),
    "token": ({"prompt": [10**6]}, "prompt"),
    "no prompt": ({"prompt": []}, "prompt"),
    "usage": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "more at least than at most": ({"extra_body": {"min_tokens": 17}}, "min_tokens"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_done_is_refused_by_name(client, case):
    changed, field = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**{"model": MODEL, "prompt": "the cat", **changed})
    assert refused.value.param == field and field in refused.value.message


def test_what_changes_nothing_is_taken(client):
    """Clients send defaults; messages that this server gave may be sent again."""
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "best_of": 1, "user": "me", "stop": None}
    assert client.completions.create(model=MODEL, prompt="the", max_tokens=2, **neutral).choices
    answered = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=3).choices[0].message
    parts = {"role": "user", "content": [{"type": "text", "text": "and now?"}]}
    again = [*SAID, answered.model_dump(), parts]
    assert client.chat.completions.create(model=MODEL, messages=again, max_completion_tokens=2).choices
    for wrong in ({"tools": [{"type": "function"}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{"model": MODEL, "messages": SAID, **wrong})
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    assert [each.id for each in client.models.list()] == [MODEL] and client.models.retrieve(MODEL).id == MODEL
