"""The three values: what they refuse, and that a file's JSON makes the same values as Python."""

import json

import pydantic
import pytest

from multiref.errors import ArgumentError
from multiref.models import Generation, ModelSpec, Tokenisation


@pytest.mark.parametrize(
    "value",
    [
        ModelSpec("some/model", dtype="bfloat16", quantization="int4", attention="eager"),
        Tokenisation(end=False, max_length=9, chat_template_kwargs={"thinking": False}),
        Generation(5, temperature=0.5, cache="static"),
    ],
)
def test_from_a_file_and_from_python(value):
    adapter = pydantic.TypeAdapter(type(value))
    assert adapter.validate_json(adapter.dump_json(value)) == value
    with pytest.raises(pydantic.ValidationError, match="nonsense"):
        adapter.validate_json(json.dumps({**adapter.dump_python(value), "nonsense": 1}))


def test_truth_is_no_number():
    with pytest.raises(pydantic.ValidationError, match="valid integer"):
        pydantic.TypeAdapter(Generation).validate_json('{"max_new_tokens": true}')


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModelSpec(""), "path: found ''"),
        (lambda: ModelSpec("m", dtype="int7"), "dtype is 'int7'; expected one of None, auto, float32"),
        (lambda: ModelSpec("m", quantization="fp3"), "quantization is 'fp3'"),
        (lambda: Tokenisation(truncation="left"), "truncation is 'left'"),
        (lambda: Tokenisation(join="bytes"), "join is 'bytes'"),
        (lambda: Tokenisation(max_length=1), "max_length is 1"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_paths_limits_and_identities(tmp_path):
    assert ModelSpec(tmp_path) == ModelSpec(str(tmp_path)) == ModelSpec.of(ModelSpec.of(tmp_path))
    assert [Tokenisation(max_length=9).within(context).max_length for context in (None, 5, 20)] == [9, 5, 9]
    assert Tokenisation().within(None).max_length is None
    assert Tokenisation(start=False).identity() == Tokenisation().identity() | {"start": False}
    assert len(Tokenisation().identity()) == 6  # all of it
