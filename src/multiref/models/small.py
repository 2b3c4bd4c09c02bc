"""Small language models made from nothing: a Llama of random weights and a tokenizer whose tokens are words."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multiref.errors import ArgumentError


def small_llama(
    vocabulary: int,
    *,
    hidden: int = 64,
    intermediate: int = 192,
    layers: int = 2,
    heads: int = 4,
    context: int = 32,
    spread: float = 0.06,
    seed: int = 0,
) -> Any:
    """A random `transformers` Llama with tied embeddings, float32, in evaluation mode; token 0 pads.
    About 0.1 M parameters as it stands.

    The global random state is left as it was.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=spread,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def word_tokenizer(words: Sequence[str], *, context: int = 32) -> Any:
    """A tokenizer with one token per word, words split at white space; token 0 is "<pad>", which also stands for unknown words.

    Token i + 1 is words[i]. There is no start or end token: score and train with `end=False`.
    """
    vocabulary = ["<pad>", *words]
    if len(set(vocabulary)) != len(vocabulary) or any(len(word.split()) != 1 for word in vocabulary):
        raise ArgumentError(f"words: expected different words without white space, none of them <pad>; found {list(words)}")
    backend = Tokenizer(models.WordLevel({word: token for token, word in enumerate(vocabulary)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<pad>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
