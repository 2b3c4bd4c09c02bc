"""Answers of a completion server that are nearly right, on a socket: a changed body, a changed head, or a rude way."""

from pathlib import Path

from multiref.errors import MultirefError
from multiref.models.small import word_tokenizer
from multiref.models.spec import Tokenisation
from multiref.references.completion_api import CompletionApi, Connection
from multiref.references.protocol import Item
from multiref.references.server import ServerReference
from multiref.training.online.server_sampler import ServerSampler
from tests.fuzz.mutations import change, damage, dump
from tests.references.rude_server import MODELS, rude, says

ECHO = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.5, -2.0]}
BODY = {
    **MODELS,
    "choices": [
        {"text": "b", "logprobs": ECHO, "token_ids": [3, 4, 0], "prompt_token_ids": [1, 2], "finish_reason": "stop",
         "prompt_logprobs": [None, {"2": {"logprob": -1.0, "rank": 1}}]}
    ],
    "usage": {"prompt_tokens": 2},
}  # fmt: skip

KINDS = {"tokenisation": Tokenisation(end=False)}, {"tokenizer": word_tokenizer("ab"), "tokenisation": Tokenisation(end=False)}


def mutate(random):
    """Bytes of an answer."""
    body = dump(change(BODY, random)) if random.random() < 0.8 else damage(dump(BODY), random)
    whole = says(body)
    return damage(whole, random) if random.random() < 0.3 else whole


def knock(content: bytes, folder: Path) -> None:
    """Asked for its models, for the log-probabilities of a text, of tokens, and for samples."""
    with rude(content) as endpoint:
        api = CompletionApi(endpoint, Connection(timeout=1.0, attempts=1, largest=10**6))
        text, ids = (ServerReference(endpoint, model="m", connection=api.connection, **each) for each in KINDS)
        asked = [
            api.models,
            lambda: text.score([Item("a", ("b",))]),
            lambda: ids.score([Item("a", ("b",))]),
            lambda: ServerSampler(api, group=1, max_new_tokens=3, model="m")._drawn((1, 2), 0, (0,)),
        ]
        refused = []
        for ask in asked:
            try:
                ask()
            except MultirefError as error:
                refused.append(error)
        if len(refused) == len(asked):
            raise refused[0]
