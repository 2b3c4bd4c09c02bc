"""Chat templates that people load, as TRL ships them: what is scored is what the template writes, split where the model is
asked to answer; a block that the generation prompt opens; answers in parts; templates that write no end."""

import re
import warnings
from pathlib import Path

import pytest

import multiref as mr
from multiref.errors import ArgumentError, DataError, ModelError, MultirefWarning
from multiref.models import LanguageModel, Tokenisation
from multiref.models.chat import Chat
from multiref.models.conversation import write_conversation
from multiref.models.spec import TOKENISATION
from multiref.training import PreferenceData
from multiref.training.dataset import encode_pairs
from tests.conftest import make_llama
from tests.models.templates import CHATML, byte_tokenizer

FOLDER = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
USER = ({"role": "user", "content": "What is 2+2?"},)
THOUGHT = "<think>\nhm\n</think>\n\nIt is 4."
BARE = Tokenisation(end=False)


def says(content="It is 4.", **fields):
    return ({"role": "assistant", "content": content, **fields},)


def tokenizer_of(name):
    """A tokenizer of bytes whose special tokens are those that the template writes."""
    template = (FOLDER / f"{name}.jinja").read_text()
    marks = re.findall(r"<[|｜][\w▁ ]+[|｜]>|<\w*end_of_\w+>|<turn\|>", template)
    tokenizer = byte_tokenizer(template, eos="<the end>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*dict.fromkeys([*marks, "<end_of_turn>"])]})
    return tokenizer


def split(tokenizer, answer, tokenisation=TOKENISATION, prompt=USER):
    """(context, answer), and the warnings."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        _, (both,) = write_conversation(tokenizer, prompt, [answer], tokenisation)
    return both, [str(each.message) for each in found]


SOME = ("qwen3", "gptoss", "llava_next", "nemotron_3_nano")


@pytest.mark.parametrize("name", [
    pytest.param(path.stem, marks=[] if path.stem in SOME else [pytest.mark.slow]) for path in sorted(FOLDER.glob("*.jinja"))
])  # fmt: skip
def test_what_is_scored_is_what_the_template_writes(name):
    """Context and answer are the whole conversation as transformers writes it, the context is what the model is given when it
    answers (or what that begins with), and without the end the answer is its words."""
    tokenizer = tokenizer_of(name)
    if name.startswith(("idefics3", "llava_next", "smolvlm")):  # they read parts alone, so they are asked in parts
        parts = [[{**m, "content": [{"type": "text", "text": m["content"]}]} for m in each] for each in (USER, says())]
    else:
        parts = [list(USER), list(says())]
    asked = tokenizer.apply_chat_template(parts[0], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*parts[0], *parts[1]], tokenize=False)
    (context, answer), said = split(tokenizer, says())
    assert context + answer == whole and asked.startswith(context)
    assert context == asked or "begins a new answer with" in said[0]
    assert split(tokenizer, says(), BARE)[0][1].endswith("It is 4.")
    ended = any(token in answer for token in (tokenizer.eos_token, *tokenizer.added_tokens_encoder))
    assert ended == Chat.of(tokenizer, (), Tokenisation()).closes() == (not any("no end token" in each for each in said))


def test_reasoning_continues_the_block_that_the_prompt_opens():
    """DeepSeek-R1's template deletes reasoning that it is handed, and asks for an answer behind an open <think>."""
    tokenizer = tokenizer_of("deepseek_r1_distill")
    end = "<｜end▁of▁sentence｜>"
    opened = "<｜User｜>What is 2+2?<｜Assistant｜><think>\n"
    for content in (THOUGHT, "hm\n</think>\n\nIt is 4."):  # as a row has it; as a sampler gives it back
        (context, answer), said = split(tokenizer, says(content))
        assert context.endswith(opened) and answer == "hm\n</think>\n\nIt is 4." + end and not said
        assert split(tokenizer, says(content), BARE)[0][1] == "hm\n</think>\n\nIt is 4."
    (context, answer), said = split(tokenizer, says())
    assert context.endswith("<｜Assistant｜>") and answer == "It is 4." + end and len(said) == 1
    nemotron = tokenizer_of("nemotron_3_nano")
    for content in (THOUGHT, "hm\n</think>\n\nIt is 4."):
        assert split(nemotron, says(content))[0][0].endswith("assistant\n<think>\n")
    (context, _), said = split(nemotron, says())
    assert context.endswith("<think>") and "'enable_thinking': False" in said[0]
    closed = Tokenisation(chat_template_kwargs={"enable_thinking": False})
    assert split(nemotron, says(), closed)[0][0].endswith("<think></think>")
    with pytest.raises(ModelError, match="'enable_thinking': True"):
        split(tokenizer_of("qwen3_5_nothink"), says(THOUGHT))


def test_two_sides_that_answer_different_prompts_are_a_bad_row():
    tokenizer = tokenizer_of("deepseek_r1_distill")
    both = mr.data.Pair(USER, says(THOUGHT), says("<think>\nwell\n</think>\n\n5"), "rows.jsonl:1")
    (item,) = encode_pairs([both], tokenizer, Tokenisation())
    assert item.contexts == () and tokenizer.decode(item.prompt_ids).endswith("<think>\n")
    with pytest.warns(MultirefWarning, match="begins a new answer"), pytest.raises(DataError, match=r"rows.jsonl:2: .*neither"):
        encode_pairs([mr.data.Pair(USER, says(THOUGHT), says("5"), "rows.jsonl:2")], tokenizer, Tokenisation())


def test_an_end_that_one_side_lacks():
    """A template that writes no end is said once; beside a policy whose template writes one, the ratio is refused."""
    open_ended = CHATML.replace(
        "<|im_end|>\n{% endfor %}", "{{ '<|im_end|>\n' if m.role == 'user' or not loop.last }}{% endfor %}"
    )
    pair = mr.data.Pair(USER, says(), says("It is 5."))
    tokenizers = [byte_tokenizer(template) for template in (open_ended, CHATML)]
    scores = []
    for tokenizer in tokenizers:
        references = mr.References({"r": LanguageModel(make_llama(len(tokenizer)), tokenizer, "r")})
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            scores.append(references.score([pair]))
        assert sum("writes no end token" in str(each.message) for each in found) == (tokenizer is tokenizers[0])
    for k, tokenizer in enumerate(tokenizers):
        PreferenceData([pair], scores[k], tokenizer)
        with pytest.raises(ArgumentError, match=r"'r'.*end=False"):
            PreferenceData([pair], scores[1 - k], tokenizer)


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"), "system", "`system`"),
        (CHATML.replace("m.content", "m.content.split('</think>')[-1]"), "reasoning", r"of the answer '<think>"),
        (CHATML.replace("m.content", "m.content[:20]"), "plain", "of the answer 'It is 4, as everybody knows.' the chat"),
    ],
    ids=["a role", "reasoning", "a part"],
)  # fmt: skip
def test_what_a_template_leaves_out_is_said(template, row, words):
    tokenizer = byte_tokenizer(template)
    prompt = ({"role": "system", "content": "Be brief."}, *USER) if row == "system" else USER
    _, said = split(tokenizer, says(THOUGHT if row == "reasoning" else "It is 4, as everybody knows."), prompt=prompt)
    assert len(said) == 1 and re.search(words, said[0])
    assert not split(tokenizer, says(THOUGHT if row == "reasoning" else "It is 4, as everybody knows."), prompt=prompt)[1]
