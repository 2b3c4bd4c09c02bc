"""A multimodal processor stands where a tokenizer does: the same ids, its template too; what is neither is one line."""

import pytest

from multiref.errors import ModelError
from multiref.models import LanguageModel, encode
from multiref.models.encoding import as_tokenizer
from tests.models.templates import CHATML, byte_tokenizer

ASK = ({"role": "user", "content": "a"},)
ANSWER = ({"role": "assistant", "content": "b"},)


class Processor:
    """As transformers' processors: called with texts and pictures, a tokenizer inside, a template of its own."""

    def __init__(self, tokenizer, chat_template=None):
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def __call__(self, images=None, text=None, **options):
        raise AssertionError("asked with a picture")


def test_a_processor_is_its_tokenizer():
    written = byte_tokenizer(CHATML)
    expected = encode(written, ASK, (ANSWER,))
    bare = byte_tokenizer()
    for processor in (Processor(written), Processor(bare, CHATML), Processor(written, "other")):
        assert encode(processor, ASK, (ANSWER,)) == expected
        assert LanguageModel(None, processor, "m").tokenizer.eos_token_id == written.eos_token_id
    assert bare.chat_template is None  # what is given is left as it was
    assert as_tokenizer(written) is written


@pytest.mark.parametrize("given", [None, "gpt2", {"a": 1}, Processor(None)], ids=["nothing", "name", "mapping", "empty"])
def test_what_is_neither_is_refused_in_one_line(given):
    with pytest.raises(ModelError, match=r"Found \w+ where a tokenizer is expected") as found:
        encode(given, "a", ("b",))
    assert "\n" not in str(found.value)
