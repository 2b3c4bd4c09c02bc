"""A model that is no decoder is refused with one line, whatever asks for its log-probabilities."""

import pytest

from multiref.errors import ModelError
from multiref.models import LanguageModel
from multiref.references import References
from multiref.references.token_level import measure_token_level, token_scores
from tests.conftest import make_tokenizer

DATA = [("hi", " world"), ("hi", " wonder")]


def bert(**options):
    import transformers as tf

    tokenizer = make_tokenizer("bytelevel")
    config = tf.BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=4, initializer_range=0.3, **options)  # fmt: skip
    return References({"b": LanguageModel(tf.BertLMHeadModel(config).eval(), tokenizer, "b")})


@pytest.mark.parametrize("ask", [token_scores, measure_token_level, References.score])
def test_an_encoder_is_refused(ask):
    with pytest.raises(ModelError, match=r"BertLMHeadModel is no causal language model: a later token changes") as found:
        ask(bert(), DATA)
    assert "\n" not in str(found.value)


def test_the_same_class_as_a_decoder_is_scored():
    """The first token of " world" and of " wonder" is one token after one context: one number."""
    scores = token_scores(bert(is_decoder=True), DATA)
    first = [scores.token_logps[0, scores.offsets[i]].item() for i in (0, 1)]
    assert first[0] == pytest.approx(first[1], abs=1e-5)
