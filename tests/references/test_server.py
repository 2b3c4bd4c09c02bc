"""A reference behind a server scores as the model itself does, and a server that misbehaves ends in one clear error."""

import json
import math

import pytest
import torch

from multiref.errors import ArgumentError, DataError, ModelError, ReferenceUnavailable
from multiref.models import LanguageModel, Tokenisation
from multiref.references import Connection, ServerReference
from multiref.references.completion_api import check_repeated
from multiref.references.local import LocalReference
from multiref.references.protocol import Item, Reference
from multiref.references.resolve import Opener
from tests.conftest import make_llama, make_tokenizer
from tests.references.completion_server import completion, serving

ITEMS = [
    Item("the dog", (" sat on the log", " and the cat")),
    Item("", ("Once upon a time",)),
    Item("what is two plus three? ", ("five", "two plus")),
]


@pytest.fixture(scope="module")
def tiny():
    tokenizer = make_tokenizer(chat=True)
    return LanguageModel(make_llama(len(tokenizer)), tokenizer, "tiny")


@pytest.mark.parametrize(
    "supports", [("prompt_logprobs",), ("echo",), ("echo", "strict", "openai"), ("prompt_logprobs", "echo")]
)
def test_scores_are_those_of_the_model(tiny, supports):
    expected = LocalReference(tiny).score(ITEMS)
    with serving(tiny.model, tiny.tokenizer, supports=supports) as server:
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer)
        found = reference.score(ITEMS)
        assert isinstance(reference, Reference) and json.dumps(dict(reference.identity()))
        assert reference.mode == supports[0]
    assert torch.allclose(found.logps, expected.logps, atol=1e-4, rtol=0)
    assert torch.equal(found.lengths, expected.lengths) and torch.equal(found.truncated, expected.truncated)


def test_without_a_tokenizer_the_server_splits():
    """Text in, and its own tokens say where the completion begins; a byte-level tokenizer, whose tokens spell the text."""
    tokenizer = make_tokenizer("bytelevel")
    model = LanguageModel(make_llama(len(tokenizer)), tokenizer, "tiny")
    items = [Item("the dog", (" sat on the log", " and the cat")), Item("what is two", (" plus three?",))]
    expected = LocalReference(model, tokenisation=Tokenisation(end=False)).score(items)
    with serving(model.model, tokenizer) as server:
        reference = ServerReference(server.endpoint, tokenisation=Tokenisation(end=False))
        found = reference.score(items)
        with pytest.raises(ReferenceUnavailable, match=r"do not split.*tokenizer="):
            reference.score([Item("the do", ("g",))])
        with pytest.raises(ModelError, match=r"chat template"):
            reference.score([Item(({"role": "user", "content": "?"},), (({"role": "assistant", "content": "!"},),))])
    assert torch.allclose(found.logps, expected.logps, atol=1e-4) and torch.equal(found.lengths, expected.lengths)
    with pytest.raises(ArgumentError, match=r"end token.*tokenizer="):
        ServerReference("http://127.0.0.1:1/v1")


def test_a_generated_token_without_text_is_not_scored(tiny):
    """So vLLM echoes: a token more than was sent, "" if it ends the text or is half a character, and then no longer than the
    completion."""
    tokens, values = ["the", " dog", " and", " the", " cat", ""], [None, -3.5, -5.25, -1.5, -2.0, -6.0]
    answer = {"choices": [{"text": "the dog and the cat", "logprobs": {"tokens": tokens, "token_logprobs": values}}]}
    with serving(tiny.model, tiny.tokenizer, supports=()) as server:
        server.script = [json.dumps(answer)]
        found = ServerReference(server.endpoint, tokenisation=Tokenisation(end=False)).score(
            [Item("the dog", (" and the cat",))]
        )
    assert found.logps.tolist() == [-8.75] and found.lengths.tolist() == [3]


def test_tokens_without_their_spaces_are_refused(tiny):
    """So vLLM spells those of a SentencePiece tokenizer: they do not add up to the text."""
    with (
        serving(tiny.model, tiny.tokenizer) as server,
        pytest.raises(ReferenceUnavailable, match=r"do not split.*tokenizer="),
    ):
        ServerReference(server.endpoint, tokenisation=Tokenisation(end=False)).score([ITEMS[0]])


def test_the_servers_context_is_kept(tiny):
    """Less one: a server generates a token after the prompt, and vLLM refuses a prompt that leaves it no room."""
    with serving(tiny.model, tiny.tokenizer, context=6) as server:
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer)
        found = reference.score([ITEMS[0]])
        assert max(len(request["prompt"]) for request in server.requests) == 5
        expected = LocalReference(tiny, tokenisation=Tokenisation(max_length=5)).score([ITEMS[0]])
        assert torch.equal(found.truncated, expected.truncated) and found.truncated.any()
        assert torch.allclose(found.logps, expected.logps, atol=1e-4)
        with pytest.raises(DataError, match=r"context of 5"):
            reference.score([ITEMS[2]])


@pytest.mark.parametrize("mischief", ["500", "503", "429", "nothing", "slow"])
def test_passing_trouble_is_waited_out(tiny, mischief):
    """Twice in trouble, then well: the score is right, and the pauses have grown."""
    pauses = []
    with serving(tiny.model, tiny.tokenizer) as server:
        server.script = [mischief, mischief]
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer, connection=Connection(timeout=0.4, pause=0.25))
        object.__setattr__(reference._api, "sleep", pauses.append)
        found = reference.score([ITEMS[1]])
    assert torch.allclose(found.logps, LocalReference(tiny).score([ITEMS[1]]).logps, atol=1e-4)
    assert pauses == [0.25, 0.5]


PROMPT_LOGPROBS = '{"choices": [{"prompt_logprobs": %s}]}'
GARBAGE = {
    "no JSON": ("<html>busy</html>", r"answered '<html>busy</html>'.*JSON object"),
    "a list": ("[1]", r"JSON object"),
    "no choices": ("{}", r"without choices"),
    "too few": (PROMPT_LOGPROBS % "[null]", r"1 entries.*one for each"),
    "above zero": (
        PROMPT_LOGPROBS % '[null, {"378": {"logprob": 0.5}}, null, null, null, null]',
        r"0\.5; expected a log-probability",
    ),
    "NaN": (PROMPT_LOGPROBS % '[null, {"378": {"logprob": NaN}}, null, null, null, null]', r"nan; expected"),
    "another token": (
        PROMPT_LOGPROBS % '[null, {"1": {"logprob": -1}}, null, null, null, null]',
        r"no token 378 at place 1, where it was sent, but \['1'\]",
    ),
    "a token before the first": (PROMPT_LOGPROBS % '[{"1": {"logprob": -1}}, null, null, null, null, null]', r"first token"),
    "a clamped zero": (
        PROMPT_LOGPROBS % '[null, {"378": {"logprob": -9999.0}}, null, null, null, null]',
        r"-9999\.0, which stands for a probability that it does not tell",
    ),
    "generated tokens only": (
        '{"choices": [{"logprobs": {"content": [{"id": 5, "token": "a", "logprob": -0.1}]}}]}',
        r"logprobs\.content, which is of generated tokens only.*llama\.cpp",
    ),
    "null": (PROMPT_LOGPROBS % "[null, null, null, null, null, null]", r"null for a token"),
    "numbers without tokens": (PROMPT_LOGPROBS % "[null, -1.5, -2, -1, -3, -1]", r"-1\.5 at place 1, which names no token"),
    "an error beside it": ('{"choices": [{}], "error": {"message": "overloaded"}}', r"with an error: .*overloaded"),
    "another of its models": ('{"choices": [{}], "model": "tiny"}', r"asked for the model 'mine' and answered as 'tiny'"),
    "other tokens": ('{"choices": [{"prompt_token_ids": [1, 1]}]}', r"to other tokens than were sent: \[1, 1\]"),
    "text": (PROMPT_LOGPROBS % '"lots"', r"str; expected one for each"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_no_score(tiny, kind):
    answer, words = GARBAGE[kind]
    assert tiny.tokenizer("Once upon a time")["input_ids"][:2] == [1, 378]
    with serving(tiny.model, tiny.tokenizer) as server:
        server.script, server.names = [answer] * 2, ["mine", "tiny"]
        with pytest.raises(ReferenceUnavailable, match=words):
            ServerReference(server.endpoint, tokenizer=tiny.tokenizer).score([ITEMS[1]])


BASES = {"base 10": lambda x: x / math.log(10), "probabilities below 0": lambda x: -math.exp(x), "an offset": lambda x: x + 0.7}


@pytest.mark.parametrize("supports", [("prompt_logprobs",), ("echo",)], ids=["prompt_logprobs", "echo"])
@pytest.mark.parametrize("base", BASES)
def test_other_numbers_than_natural_logarithms_are_no_score(tiny, supports, base, monkeypatch):
    """The likeliest token of a place stands beside the one that was sent: both together would have more than all."""

    def other(server, body):
        reply, number = completion(server, body), BASES[base]
        for entry in reply["choices"][0].get("prompt_logprobs", ()):
            for each in (entry or {}).values():
                each["logprob"] = min(0.0, number(each["logprob"]))
        if told := reply["choices"][0].get("logprobs"):
            for name, values in told.items():
                if name == "token_logprobs":
                    told[name] = [None if value is None else min(0.0, number(value)) for value in values]
                elif name == "top_logprobs":
                    told[name] = [None if e is None else {k: min(0.0, number(v)) for k, v in e.items()} for e in values]
        return reply

    sharp = make_llama(len(tiny.tokenizer), std=1.0)  # of a flat law nothing shows
    with serving(sharp, tiny.tokenizer, supports=supports) as server:
        assert ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode=supports[0]).score([ITEMS[0]]).logps.numel()
        monkeypatch.setattr("tests.references.completion_server.completion", other)
        with pytest.raises(ReferenceUnavailable, match="together; expected natural logarithms"):
            ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode=supports[0]).score([ITEMS[0]])


LOWERED = {"base 2": lambda x: x / math.log(2), "half of it": lambda x: x - math.log(2), "as it is": lambda x: x}


@pytest.mark.parametrize("whose", ["the likeliest four", "all"])
@pytest.mark.parametrize("kind", LOWERED)
def test_lowered_numbers_are_found_by_what_is_drawn(tiny, kind, whose, monkeypatch):
    """Likely tokens come more often than such numbers say. A server that sharpens its draws and says what the model says is
    believed: other readings of that would give some place more than 1. By value, then, and by the place of what was drawn."""
    lower, sharp = LOWERED[kind], make_llama(len(tiny.tokenizer), std=0.6)

    def told(server, body):
        reply = completion(server, body)
        for choice in reply["choices"]:
            for entry in choice.get("prompt_logprobs", ()):
                for each in (entry or {}).values():
                    each["logprob"] = lower(each["logprob"])
            block = choice.get("logprobs", {"token_logprobs": [], "top_logprobs": []})
            block["token_logprobs"] = [lower(x) for x in block["token_logprobs"]]
            block["top_logprobs"] = [{k: lower(x) for k, x in e.items()} for e in block["top_logprobs"]]
            if whose != "all":  # SGLang tells of no others
                block["top_logprobs"] = [dict(sorted(e.items(), key=lambda i: -i[1])[:5]) for e in block["top_logprobs"]]
        return reply

    monkeypatch.setattr("tests.references.completion_server.completion", told)
    with serving(sharp, tiny.tokenizer, supports=("prompt_logprobs",)) as server:
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer)
        if kind != "as it is":
            with pytest.raises(ReferenceUnavailable, match=r"draws likely tokens more often.*in base 2"):
                reference.score(ITEMS)
            return
        server.sharpness = 1.4
        reference.score(ITEMS)
        assert [request.get("n") for request in server.requests].count(4) == 1
        reference.score(ITEMS)
        assert [request.get("n") for request in server.requests].count(4) == 1


def test_what_is_said_of_draws_and_of_what_is_sent_is_the_same(tiny, monkeypatch):
    """Only the numbers of a prompt are lowered: the draws, sent as a prompt, are told otherwise than when they were drawn."""
    answering(monkeypatch, lambda value, n, at: value - 0.5)
    with serving(tiny.model, tiny.tokenizer, supports=("prompt_logprobs",)) as server:
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer)
        with pytest.raises(ReferenceUnavailable, match=r"differ by .*of what it draws than of what it is sent"):
            reference.score(ITEMS)


@pytest.mark.parametrize("supports", [("prompt_logprobs",), ("echo",)], ids=["prompt_logprobs", "echo"])
def test_a_cache_that_goes_wrong_is_found_by_asking_again(tiny, supports, monkeypatch):
    """What was asked before comes back without the log-probabilities of its beginning, as from a cache of prefixes that holds
    none (vLLM, issue 42019)."""
    seen: list[list[int]] = []

    def cached(server, body):
        reply, ids = completion(server, body), body["prompt"]
        known = max((next((i for i, (a, b) in enumerate(zip(ids, old)) if a != b), len(ids)) for old in seen), default=0)
        seen.append(ids)
        for place in range(1, min(known, len(ids) - 2)):  # the end is always computed
            if "logprobs" in reply["choices"][0]:
                reply["choices"][0]["logprobs"]["token_logprobs"][place] = 0.0
            else:
                reply["choices"][0]["prompt_logprobs"][place][str(ids[place])]["logprob"] = 0.0
        return reply

    with serving(tiny.model, tiny.tokenizer, supports=supports) as server:
        monkeypatch.setattr("tests.references.completion_server.completion", cached)
        with pytest.raises(ReferenceUnavailable, match=r"asked the same twice.*differ by .* nats at a token"):
            ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode=supports[0]).score([ITEMS[0], ITEMS[1]])


LIES = {
    "its own start token in front": (lambda t, v: (["<s>", *t], [None, -2.0, *v[1:]]), r"echoed 10 tokens of 8"),
    "its own start token in place of the generated one": (
        lambda t, v: (["<s>", *t[:-1]], [None, -2.0, *v[1:-1]]),
        r"at place 1, where token \d+ \(.*\) was sent: it adds a start token",
    ),
    "its own start token, not shown": (lambda t, v: (t, [-2.5, *v[1:]]), r"-2\.5 for the first token"),
    "the first left out, the generated one at its place": (lambda t, v: (t[1:], v[1:]), r"at place 0|echoed \d+ tokens"),
    "shifted by one": (lambda t, v: (t, [*v[1:], -1.0]), r"for the first token"),
    "another tokenizer": (lambda t, v: ([*t[:2], t[3], t[2], *t[4:]], v), r"at place 2, where token"),
    "only the completion": (lambda t, v: (t[-1:], v[-1:]), r"echoed 1 tokens of"),
    "cut": (lambda t, v: (t[2:], v[2:]), r"echoed \d+ tokens of"),
    "one null too few": (lambda t, v: (t, v[1:]), r"of one length"),
    "a flood of −100": (lambda t, v: (t, [None, *[-100.0] * (len(v) - 1)]), r"-100\.0, which stands for"),
    "a clamped zero": (lambda t, v: (t, [*v[:3], -9999.0, *v[4:]]), r"-9999\.0, which stands for"),
    "minus infinity": (lambda t, v: (t, [*v[:3], float("-inf"), *v[4:]]), r"-inf, which stands for"),
    "probabilities": (lambda t, v: (t, [None, *[2.0**x for x in v[1:]]]), r"expected a log-probability"),
    "a floor": (
        lambda t, v: (t, [None, *[max(x, sorted(v[1:])[4]) for x in v[1:]]]),
        r"for \d of \d tokens, and nothing below",
    ),
    "whole numbers": (lambda t, v: (t, [None, *map(round, v[1:])]), r"rounds its log-probabilities"),
    "one number": (lambda t, v: (t, [None, *[-1.5] * (len(v) - 1)]), r"-1\.5 for every token"),
    "zeros": (lambda t, v: (t, [None, *[0.0] * (len(v) - 1)]), r"0 for every token"),
    "the word null": (lambda t, v: (t, [*v[:3], "null", *v[4:]]), r"'null'; expected a log-probability"),
    "null inside": (lambda t, v: (t, [*v[:-2], None, v[-1]]), r"null for a token"),
}


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("as_ids", [True, False])
def test_an_echo_that_lies_is_refused(tiny, kind, as_ids, monkeypatch):
    """Tokens spelt as ids (vLLM) or as text; the truth passes, and each lie about the same request does not."""
    lie, words = LIES[kind]

    def spelt(server, body):
        reply = completion(server, body)
        block = reply["choices"][0]["logprobs"]
        if as_ids and "n" not in body:
            assert body["return_tokens_as_token_ids"]
            block["tokens"] = [f"token_id:{i}" for i in [*body["prompt"], 7]]
        return reply

    with serving(tiny.model, tiny.tokenizer, supports=("echo",)) as server:
        monkeypatch.setattr("tests.references.completion_server.completion", spelt)
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode="echo")
        assert torch.allclose(reference.score([ITEMS[0]]).logps, LocalReference(tiny).score([ITEMS[0]]).logps, atol=1e-4)

        def lying(server, body):
            reply = spelt(server, body)
            block = reply["choices"][0]["logprobs"]
            block["tokens"], block["token_logprobs"] = lie(block["tokens"], block["token_logprobs"])
            return reply

        monkeypatch.setattr("tests.references.completion_server.completion", lying)
        with pytest.raises(ReferenceUnavailable, match=words):
            reference.score([ITEMS[0]])


FILLED = {
    "zeros for the last token": (lambda n, at: at == n - 1, 0.0),
    "zeros for the end of the row": (lambda n, at: at > 5, 0.0),
    "one place at zero": (lambda n, at: at == 4, 0.0),
    "one number for every other token": (lambda n, at: at % 2 == 1, -1.53),
    "likely numbers": (lambda n, at: at % 3 == 0, -0.25),
}


def answering(monkeypatch, change):
    """`change(log-probability, tokens of the row, place)` of each but the first, in either form."""

    def changed(server, body):
        reply = completion(server, body)
        if "n" in body:  # what is drawn is told as it is
            return reply
        choice, ids = reply["choices"][0], body["prompt"]
        block = choice.get("logprobs", {}).get("token_logprobs")
        for at in range(1, len(ids)):
            entry = choice["prompt_logprobs"][at][str(ids[at])] if block is None else {"logprob": block[at]}
            entry["logprob"] = change(entry["logprob"], len(ids), at)
            if block is not None:
                block[at] = entry["logprob"]
        return reply

    monkeypatch.setattr("tests.references.completion_server.completion", changed)


@pytest.mark.parametrize("kind", FILLED)
@pytest.mark.parametrize("supports", [("prompt_logprobs",), ("echo",)], ids=["prompt_logprobs", "echo"])
def test_a_filler_in_place_of_some_numbers_is_found_with_another_token(tiny, kind, supports, monkeypatch):
    """A server that writes one number at the same part of every answer; two tokens behind one text cannot both be certain."""
    where, filler = FILLED[kind]
    answering(monkeypatch, lambda value, n, at: filler if where(n, at) else value)
    with serving(tiny.model, tiny.tokenizer, supports=supports) as server:
        reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode=supports[0])
        with pytest.raises(
            ReferenceUnavailable, match=r"another token put in such a place|and nothing below|together; expected"
        ):
            reference.score(ITEMS)


def test_a_model_that_is_nearly_certain_or_rounds_to_half_precision_is_believed(tiny, monkeypatch):
    """Its most likely tokens have the log-probability 0, at many places; and in bfloat16 tokens share values."""
    sure = make_llama(len(tiny.tokenizer))
    with torch.no_grad():
        sure.lm_head.weight *= 300

    def ask(job):
        logps = sure(torch.tensor([[*job[0], *job[1]]])).logits[0].log_softmax(-1)
        return [logps[len(job[0]) - 1 + place, token].item() for place, token in enumerate(job[1])]

    ids = [1, 300]
    for _ in range(12):
        ids.append(int(sure(torch.tensor([ids])).logits[0, -1].argmax()))
    job = (tuple(ids[:2]), tuple(ids[2:]))
    assert ask(job).count(0.0) > 6
    check_repeated([job], [ask(job)], ask)
    with pytest.raises(ReferenceUnavailable, match=r"gave 0 for \d+ tokens"):
        check_repeated([job], [ask(job)], lambda job: [0.0] * len(job[1]))
    answering(monkeypatch, lambda value, n, at: torch.tensor(value).bfloat16().item())
    with serving(tiny.model, tiny.tokenizer) as server:
        found = ServerReference(server.endpoint, tokenizer=tiny.tokenizer).score(ITEMS)
    assert torch.allclose(found.logps, LocalReference(tiny).score(ITEMS).logps, rtol=0.01)


def test_a_server_that_reads_more_tokens_than_were_sent(tiny):
    """It says so in `usage`; and who it is, in the list of its models."""
    answer = {"choices": [{"prompt_logprobs": [None] * 6}], "usage": {"prompt_tokens": 7}}
    with serving(tiny.model, tiny.tokenizer) as server:
        server.script = [json.dumps(answer)]
        with pytest.raises(ReferenceUnavailable, match=r"\(doubles\): .*read 7 tokens, and 6 were sent"):
            ServerReference(server.endpoint, tokenizer=tiny.tokenizer).score([ITEMS[1]])


def test_lasting_trouble_ends_in_one_error(tiny):
    with serving(tiny.model, tiny.tokenizer) as server:
        for mischief, time, words in (
            ("500", 10, r"4 attempts.*HTTP 500"),
            ("nothing", 10, r"4 attempts"),
            ("slow", 0.05, r"longer `timeout`"),
        ):
            reference = ServerReference(server.endpoint, tokenizer=tiny.tokenizer)
            reference.identity()  # in its own time
            server.script = [mischief] * 4
            object.__setattr__(reference._api, "connection", Connection(timeout=time, attempts=4, pause=0.001))
            with pytest.raises(ReferenceUnavailable, match=words):
                reference.score([ITEMS[1]])
        server.script = ["404"]
        with pytest.raises(ReferenceUnavailable, match=r"404"):  # asking again is no use: one request, no pause
            ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode="prompt_logprobs").score([ITEMS[1]])
        assert not server.script
        with pytest.raises(ReferenceUnavailable, match=r"does not serve 'other'; it serves tiny"):
            ServerReference(server.endpoint, model="other", tokenizer=tiny.tokenizer).score([ITEMS[1]])
        endpoint = server.endpoint
    with pytest.raises(ReferenceUnavailable, match=r"2 attempts.*refused"):
        ServerReference(endpoint, tokenizer=tiny.tokenizer, connection=Connection(attempts=2, pause=0.001)).identity()


def test_a_server_that_can_do_neither(tiny):
    with (
        serving(tiny.model, tiny.tokenizer, supports=()) as server,
        pytest.raises(ReferenceUnavailable, match=r"`echo` with `logprobs`"),
    ):
        ServerReference(server.endpoint, tokenizer=tiny.tokenizer).score([ITEMS[1]])


def test_identity_and_options(tiny):
    with serving(tiny.model, tiny.tokenizer) as server:
        make = lambda **options: ServerReference(server.endpoint, tokenizer=tiny.tokenizer, **options).identity()  # noqa: E731
        assert make() == make(connection=Connection(timeout=3, concurrency=2))  # nothing that moves a score
        assert (
            len(
                {
                    json.dumps(dict(x))
                    for x in (
                        make(),
                        make(tokenisation=Tokenisation(end=False)),
                        make(weights="v2"),
                        make(tokenisation=Tokenisation(max_length=9)),
                    )
                }
            )
            == 4
        )
        options = {"revision": None, "timeout": 3, "attempts": 2, "tokenisation": {"max_length": 9}}
        found = Opener({"endpoint": server.endpoint, "tokenizer": tiny.tokenizer, **options})()
        assert found.identity() == make(tokenisation=Tokenisation(max_length=9))
    with pytest.raises(ArgumentError, match=r"the key 'colour'; expected for a server: api_key, attempts"):
        Opener({"endpoint": server.endpoint, "tokenizer": tiny.tokenizer, "colour": "red"})()
    with pytest.raises(ArgumentError, match=r"mode is 'guess'"):
        ServerReference(server.endpoint, tokenizer=tiny.tokenizer, mode="guess")
