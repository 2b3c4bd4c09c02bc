"""What tests of several rooms share: the folder of real models and data, and tiny random models with their tokenizers."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # who hands out the tests needs no torch, and nobody begins before it does
    import torch

    torch.set_num_threads(1)  # the workers share the cores

CORPUS = (
    "Once upon a time there was a little dog named Max.",
    "the cat sat on the mat and the dog sat on the log",
    "what is two plus three? two plus three is five.",
    "Question: is it raining? Answer: yes, it is raining hard.",
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_known = 0


def pytest_configure() -> None:
    gc.disable()  # everything is imported now, which leaves nothing to collect


def pytest_collection_finish() -> None:
    gc.enable()
    set_aside()


def pytest_runtest_teardown() -> None:
    set_aside()


def set_aside() -> None:
    """What imports and collection left is here to stay: out of the garbage collector's sight once it is many. Trainers and
    references collect after each use, and a walk over a million objects that stay takes a third of a second."""
    global _known
    if len(sys.modules) > _known + 100:
        _known = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data; tests that use it are marked `shared`."""
    folder = os.environ.get("MULTIREF_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MULTIREF_SHARED is unset or no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps the precision of the first trainer of a process for good; a test is to find none."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out, and empty ones are written: to draw those of one report takes a second."""
    canvas = importlib.import_module("multiref.report.figures.canvas")  # the room has a function of this name
    monkeypatch.setattr(canvas, "svg", lambda figure, *, letters="path": b"<svg></svg>")
    monkeypatch.setattr(canvas, "png", lambda figure, *, dots_per_inch=160: b"\x89PNG")


def make_tokenizer(
    kind: str = "sentencepiece", *, vocab_size: int = 160, chat: bool = False, corpus: tuple[str, ...] = CORPUS
) -> Any:
    """A BPE tokenizer trained on a few sentences. Kinds:

    sentencepiece: a space put in front, edge spaces dropped, a start token "<s>" that is also the end, bytes as fallback
    bytelevel: as GPT-2's: spaces belong to the word after them, no start token of its own, end "<s>"
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if kind == "sentencepiece":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(r"\A +"), ""),
                normalizers.Replace(Regex(r" +\z"), ""),
                normalizers.Replace(Regex(r" {2,}"), " "),
                normalizers.Prepend("▁"),
                normalizers.Replace(" ", "▁"),
            ]
        )
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        vocab_size += 256
        # words are cut for training only, so that no token spans two of them
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    elif kind == "bytelevel":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        vocab_size += 256
    else:
        raise ValueError(kind)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytelevel" else []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    if kind == "sentencepiece":
        backend.pre_tokenizer = None
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<s>", pad_token="</s>", unk_token="<unk>", padding_side="left"
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_llama(
    vocab_size: int, *, seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 128, std: float = 0.3, **options: Any
) -> Any:
    """A small random Llama; `std` is large so that tokens, positions and context all matter to its probabilities."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=std, bos_token_id=1, eos_token_id=1,
        pad_token_id=2, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_gpt2(
    vocab_size: int, *, seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 128, std: float = 0.3, **options: Any
) -> Any:
    """A small random GPT-2 (learned positions)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size, n_embd=hidden, n_layer=layers, n_head=4, n_positions=context, initializer_range=std,
        bos_token_id=1, eos_token_id=1, pad_token_id=2, **options,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """SentencePiece-like, with a chat template. Treat as read-only."""
    return make_tokenizer(chat=True)


@pytest.fixture
def tiny_llama(tiny_tokenizer: Any) -> Any:
    """A fresh random Llama for `tiny_tokenizer`."""
    return make_llama(len(tiny_tokenizer))


@pytest.fixture(scope="session")
def tiny_folder(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as `tiny_llama`, saved as a model folder. Treat as read-only."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_llama(len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
