"""What a score is filed under, and finding it again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from multiref.references.keys import KeyIndex, content_key, content_keys

LETTERS = 'a",[]{:\\/ \0\n\x7fé\u0301e\u2028\ufffd한🐈'  # what JSON escapes, é as one letter and as two, beyond 16 bits
texts = st.one_of(
    st.text(LETTERS, max_size=8),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(LETTERS, max_size=4)}),
        max_size=3,
    ).map(tuple),
)


@given(texts, texts, texts, texts)
def test_equal_texts_and_only_they_have_equal_keys(a, b, c, d):
    assert (content_key(a, b) == content_key(c, d)) == ((a, b) == (c, d))


def test_the_boundary_between_prompt_and_completion_counts():
    assert content_key("ab", "c") != content_key("a", "bc")
    assert content_key('a","b', "c") != content_key("a", 'b","c')


def test_a_message_is_its_role_and_content_in_any_order():
    one = ({"role": "user", "content": "hi"},)
    other = ({"content": "hi", "role": "user"},)
    assert content_key(one, "x") == content_key(other, "x") != content_key("hi", "x")


def test_the_key_is_fixed_for_good():
    """A store outlives a version of the code: blake2b-128 of `["Once","upon é"]` in UTF-8, from `b2sum -l 128`."""
    import hashlib

    assert content_key("Once", "upon é") == hashlib.blake2b('["Once","upon é"]'.encode(), digest_size=16).digest()


small = st.lists(
    st.sampled_from([bytes([0] * 8 + [n] * 8) for n in range(4)] + [bytes([n] * 16) for n in (0, 1, 255)]), max_size=12
)


@given(small, small)
def test_locate_is_a_dictionary(held, wanted):
    """Against the plain dictionary, on keys that often share their first half and may repeat."""
    oracle = {}
    for position, key in enumerate(held):
        oracle.setdefault(key, position)
    keys, asked = (np.frombuffer(b"".join(some), "V16") for some in (held, wanted))
    assert KeyIndex(keys).locate(asked).tolist() == [oracle.get(key, -1) for key in wanted]
    index = KeyIndex(keys)
    assert keys[index.order[~index.repeated]].tolist() == sorted(oracle)


def test_keys_that_end_in_zero_bytes_survive():
    raw = content_keys(["a"] * 600, [str(n) for n in range(600)])
    assert any(key.endswith(b"\0") for key in raw.tolist())
    assert KeyIndex(raw).locate(raw).tolist() == list(range(600))
