"""What is scored of a conversation, under the templates of six families: the template's own words, asked of it and not searched
by letters; start and end once; nothing that a row says lost without a word."""

import threading
import warnings
from datetime import datetime

import pytest

from multiref.data import Conversation
from multiref.errors import DataError, ModelError, MultirefWarning
from multiref.models import Tokenisation, encode, encode_many
from multiref.models.chat import _another_day, dates_of
from multiref.models.spec import TOKENISATION
from multiref.references.identity import text_identity
from tests.models.templates import CHATML, DATED, DEEPSEEK, GEMMA, LLAMA, MISTRAL, PARTS, QWEN, byte_tokenizer

BARE = Tokenisation(end=False)
USER = {"role": "user", "content": "hi"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def says(content, **fields):
    return ({"role": "assistant", "content": content, **fields},)


def written(tokenizer, prompt, answer, tokenisation=TOKENISATION):
    """(context, completion) as text."""
    item = encode(tokenizer, prompt, [answer], tokenisation)
    return tokenizer.decode(item.context(0)), tokenizer.decode(item.completions[0])


# template, prompt's end, what it makes of a content (by hand), its end of turn
FAMILIES = {
    "chatml": (CHATML, "<|im_start|>assistant\n", str, "<|im_end|>\n"),
    "llama": (LLAMA, "<|end_header_id|>\n\n", str.strip, "<|eot_id|>"),
    "mistral": (MISTRAL, " [/INST]", lambda content: " " + content.strip(), "</s>"),
    "qwen": (QWEN, "assistant\n", lambda content: "<think>\n\n</think>\n\n" + content, "<|im_end|>\n"),
    "gemma": (GEMMA, "model\n", str.strip, "<end_of_turn>\n"),
    "deepseek": (DEEPSEEK, "<|Assistant|>", str, "<|end_of_sentence|>"),
}
CONTENTS = (
    "yes",
    "end",
    "i",
    "im_end",
    "user",
    "assistant\n",
    "",
    " two\nlines ",
    "model",
    "s",
    "[/INST]",
    "\n",
    "hi",
    "of_turn>",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_template_s_words_and_its_end_of_turn(family):
    template, before, made, end = FAMILIES[family]
    tokenizer = byte_tokenizer(template)
    for content in CONTENTS:
        context, whole = written(tokenizer, (USER,), says(content))
        assert context.endswith(before) and whole == made(content) + end, content
        assert written(tokenizer, (USER,), says(content), BARE) == (context, made(content)), content
        assert context.count("<s>") <= 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_start_and_end_are_there_once(family, bos):
    """A tokenizer that puts a start token in front beside a template that writes one; an answer that ends in an end token
    of the tokenizer or the template; strings that carry both."""
    template, _, made, end = FAMILIES[family]
    tokenizer = byte_tokenizer(template, bos=bos)
    stop = end.strip()
    for content in ("yes" + stop, "yes</s>", f"yes{stop}\n"):
        context, whole = written(tokenizer, (USER,), says(content))
        assert whole == made("yes") + end and context.count("<s>") == template.count("bos_token"), content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        item = encode(tokenizer, "<s>[INST] hi [/INST]", [" yes", " yes</s>", f" yes{stop}", f" yes{stop}\n"])
        assert [tokenizer.decode(ids) for ids in item.completions] == [" yes</s>", " yes</s>", f" yes{stop}", f" yes{stop}\n"]
        assert item.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert encode(tokenizer, "hi", ["a"]).prompt_ids.count(tokenizer.bos_token_id) == bos
        assert encode(tokenizer, "", ["<s>a"]) == encode(tokenizer, "<s>", ["a"])
        # without the end nothing is taken from a string that has one
        assert written(tokenizer, "hi", f"yes{stop}", BARE)[1] == f"yes{stop}"


def test_a_conversation_without_a_prompt_starts_once():
    tokenizer = byte_tokenizer(LLAMA, bos=True)
    item = encode(tokenizer, (), [(USER, *says("yes"))])
    assert item.prompt_ids == (tokenizer.bos_token_id,) and tokenizer.bos_token_id not in item.completions[0]


def test_turns_that_the_model_does_not_write_are_said_once():
    """A completion of several turns holds the user's words too, and they are scored."""
    tokenizer = byte_tokenizer(LLAMA, bos=True)
    rows = [((USER,), [(*says("yes"), {"role": "user", "content": "sure?"}, *says("no"))])]
    with pytest.warns(MultirefWarning, match=r"row 3: .*does not write \(assistant, user, assistant\): they are scored"):
        (item,) = encode_many(tokenizer, rows, origins=["row 3"])
    assert "sure?" in tokenizer.decode(list(item.completions[0]))


def test_earlier_turns_and_begun_answers():
    tokenizer = byte_tokenizer(QWEN)
    turns = (USER, *says("<think>\nhm\n</think>\n\nyes"), {"role": "user", "content": "sure?"})
    context, answer = written(tokenizer, turns, says("<think>\nwell\n</think>\n\nend"), BARE)
    assert "hm" not in context and answer == "<think>\nwell\n</think>\n\nend"
    tokenizer = byte_tokenizer(CHATML)
    assert written(tokenizer, (USER, *says("the ")), says("end"), BARE) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthe ",
        "end",
    )


def test_reasoning_that_a_template_deletes_is_not_scored_as_if_it_were_there():
    tokenizer = byte_tokenizer(DEEPSEEK)
    sides = [says(f"<think>{thought}</think>yes") for thought in ("good", "no no no")]
    with pytest.raises(DataError, match=r"rows.jsonl:7: Two different completions are written the same"):
        encode_many(tokenizer, [((USER,), sides)], origins=["rows.jsonl:7"])
    assert len(set(encode(byte_tokenizer(QWEN), (USER,), sides).completions)) == 2
    spaces = encode(byte_tokenizer(LLAMA), (USER,), [says("yes"), says(" yes\n")])  # a template that trims: one text
    assert len(set(spaces.completions)) == 1


def test_tools_calls_and_arguments_of_a_row_are_written():
    tokenizer = byte_tokenizer(QWEN)
    plain = written(tokenizer, (USER,), says("yes"))
    tools = written(tokenizer, Conversation((USER,), tools=[TOOL]), says("yes"))
    assert '"look"' in tools[0] and tools[1] == plain[1]
    fast = written(tokenizer, Conversation((USER,), chat_template_kwargs={"enable_thinking": False}), says("yes"))
    assert fast[0] == plain[0] + "<think>\n\n</think>\n\n" and fast[1] == "yes<|im_end|>\n"
    over = Tokenisation(chat_template_kwargs={"enable_thinking": False})
    assert written(tokenizer, (USER,), says("yes"), over) == fast
    kept = Conversation((USER,), chat_template_kwargs={"enable_thinking": True})
    assert written(tokenizer, kept, says("yes"), over) == plain  # the row's arguments before the collection's
    assert written(tokenizer, (USER,), says("", tool_calls=[CALL]), BARE)[1].endswith('"x": 1}}\n</tool_call>')
    answered = (USER, *says("", tool_calls=[CALL]), {"role": "tool", "content": "2"})
    assert written(tokenizer, answered, says("end"), BARE)[1].endswith("end")
    with pytest.raises(ModelError, match="end=False"):  # "]<|eot_id|>" after a call: what of it is the call's, who knows
        encode(byte_tokenizer(LLAMA.replace("<|eot_id|>", "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}")),
               (USER,), [says("", tool_calls=[CALL])], BARE)  # fmt: skip


def test_a_field_that_a_template_ignores_is_said_once_with_the_row():
    tokenizer = byte_tokenizer(CHATML)
    items = [((USER,), [says("yes", reasoning_content="hm")]), (Conversation((USER,), tools=[TOOL]), [says("no")])]
    with pytest.warns(MultirefWarning) as found:
        encode_many(tokenizer, items, origins=["a.jsonl:1", "a.jsonl:2"])
    said = [str(warning.message) for warning in found]
    assert len(said) == 2 and "a.jsonl:1" in said[0] and "reasoning_content" in said[0]
    assert "a.jsonl:2" in said[1] and "`tools`" in said[1]
    encode_many(tokenizer, items)
    encode_many(byte_tokenizer(QWEN), items)  # reads both
    with pytest.warns(MultirefWarning, match="enable_thinking"):
        encode(byte_tokenizer(CHATML), Conversation((USER,), chat_template_kwargs={"enable_thinking": False}), [says("a")])


def test_text_parts_are_read_or_joined():
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    for template in (CHATML, PARTS, LLAMA):
        tokenizer = byte_tokenizer(template)
        as_parts = written(tokenizer, ({"role": "user", "content": parts},), says(parts))
        assert as_parts == written(tokenizer, ({"role": "user", "content": "two parts"},), says("two parts"))
    with pytest.raises(DataError, match="image"):
        encode(byte_tokenizer(CHATML), ({"role": "user", "content": [{"type": "image", "image": "x"}]},), [says("a")])


def test_content_of_each_role_is_given_as_the_template_reads_it():
    """Parts of the user's and a string of the assistant's; parts that it writes with a space behind each stay parts."""
    words = (
        "{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
    )
    mixed, plain = byte_tokenizer(CHATML.replace("{{ m.content }}", words)), byte_tokenizer(CHATML)
    assert written(mixed, (USER,), says("yes")) == written(plain, (USER,), says("yes"))
    spaced = byte_tokenizer(PARTS.replace("{{ part.text }}", "{{ part.text }} "))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert written(spaced, ({"role": "user", "content": parts},), says("yes")) == (
        "<|im_start|>user\na b <|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>\n",
    )


def test_an_answer_that_was_begun_with_nothing():
    """A template that trims it cuts the line ends before it too; the answer stands behind the generation prompt."""
    for template in (LLAMA, CHATML):
        tokenizer = byte_tokenizer(template)
        for begun in ("", " ") if template is LLAMA else ("",):
            assert written(tokenizer, (USER, *says(begun)), says("yes")) == written(tokenizer, (USER,), says("yes"))


def test_what_is_asked_behind_a_finished_answer_is_no_answer():
    """Two conversations that part in the second question: the question would be scored, and the end of the answer before it."""
    turns = ({"role": "user", "content": "more"}, *says("b"))
    for template in (CHATML, MISTRAL):
        with pytest.raises(DataError, match="begins with a message of role 'user'"):
            encode(byte_tokenizer(template), (USER, *says("a")), [turns])


def test_what_a_prompt_and_an_answer_have_in_common_ends_between_tokens():
    """DeepSeek-V3.1 writes <think> or </think>: behind "<" would be half of either."""
    answer = "<|Assistant|></think>{{ m.content.split('</think>')[-1] }}<|end_of_sentence|>"
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}" + answer + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
    )
    tokenizer = byte_tokenizer(template, eos="<|end_of_sentence|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    how = Tokenisation(chat_template_kwargs={"thinking": True})
    with pytest.warns(MultirefWarning, match="begins a new answer"):
        assert written(tokenizer, (USER,), says("4"), how) == ("<|User|>hi<|Assistant|>", "</think>4<|end_of_sentence|>")
    assert written(tokenizer, (USER,), says("hm</think>4"), how) == (
        "<|User|>hi<|Assistant|><think>",
        "hm</think>4<|end_of_sentence|>",
    )


def test_refusals_name_the_row():
    mistral = byte_tokenizer(MISTRAL)
    system = ({"role": "system", "content": "be"}, USER)
    with pytest.raises(ModelError, match=r"rows.jsonl:3: .*Only user and assistant"):
        encode_many(mistral, [((USER,), [says("a")]), (system, [says("a")])], origins=["rows.jsonl:2", "rows.jsonl:3"])
    with pytest.raises(DataError, match=r"rows.jsonl:9: character 3, '\\ud83d'"):
        encode_many(byte_tokenizer(), [("a", ["b"]), ("ab\ud83d", ["c"])], origins=["rows.jsonl:8", "rows.jsonl:9"])
    with pytest.raises(DataError, match=r"no chat message|among chat messages"):
        encode(mistral, ("hi",), [says("a")])


def test_a_string_for_a_chat_model_is_said_once():
    tokenizer = byte_tokenizer(CHATML)
    with pytest.warns(MultirefWarning, match=r"has a chat template, and the prompt 'hi'") as found:
        for _ in range(3):
            encode(tokenizer, "hi", ["yes"])
    assert len(found) == 1
    with pytest.warns(MultirefWarning, match=f"the prompt '{39 * 'a'}…' is a string"):
        encode(byte_tokenizer(CHATML), 41 * "a", ["yes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(byte_tokenizer(), "hi", ["yes"])


def test_a_template_that_writes_the_date(monkeypatch):
    """Another identity on another day, one warning with the argument that fixes it, and none once it is fixed."""
    import datetime

    from transformers.utils import chat_template_utils

    tokenizer, fixed = byte_tokenizer(DATED), Tokenisation(chat_template_kwargs={"date_string": "26 Jul 2024"})
    with pytest.warns(MultirefWarning, match=r"writes today's date.*'date_string'") as found:
        today = text_identity("local", tokenizer, Tokenisation())
        assert text_identity("local", tokenizer, Tokenisation()) == today
    assert len(found) == 1
    still = text_identity("local", tokenizer, fixed)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=1)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert text_identity("local", tokenizer, Tokenisation())["written"] != today["written"]
    assert text_identity("local", tokenizer, fixed) == still
    assert dates_of(byte_tokenizer(CHATML), Tokenisation(), lambda how: 1 / 0) is None
    late = "{% if messages | length > 2 %}{{ strftime_now('%Y') }}{% endif %}" + CHATML  # no argument of it fixes that
    with pytest.warns(MultirefWarning, match="a template that writes no date"):
        text_identity("local", byte_tokenizer(late), Tokenisation())


def test_the_day_that_one_thread_asks_about_is_no_other_s():
    """Two that asked at once left every template of the process at the end of 1999; and who wrote meanwhile got that day."""
    inside, done = threading.Event(), threading.Event()

    def ask():
        with _another_day():
            inside.set()
            done.wait(0.2)

    def year():
        return byte_tokenizer("{{ strftime_now('%Y') }}").apply_chat_template([USER], tokenize=False)

    thread = threading.Thread(target=ask)
    thread.start()
    inside.wait()
    assert year() == str(datetime.now().year)
    with _another_day():  # begins while the other is in it, and ends behind it
        done.set()
        thread.join()
        assert year() == "1999"
    assert year() == str(datetime.now().year)


TURNS = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
OPENING = "{{ '<|im_start|>assistant\\n' }}"  # jinja drops a line break at the end of a template


@pytest.mark.parametrize("asked", ["", "{% if not add_generation_prompt %}", None], ids=["always", "inverted", "by letters"])
def test_a_template_that_opens_an_answer_unasked(asked):
    """Behind every conversation, or when it is not to: what it opens there is no part of the answer before it."""
    if asked is None:  # no token ends a turn, and both openings begin with a bracket
        tokenizer = byte_tokenizer("{% for m in messages %}[{{m.role}}] {{m.content}}\n{% endfor %}[assistant] ")
        with pytest.warns(MultirefWarning, match="no end token"):
            assert written(tokenizer, (USER,), says("yes")) == ("[user] hi\n[assistant] ", "yes\n")
        vicuna = "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}</s>{% endfor %}"
        tokenizer = byte_tokenizer(vicuna + "ASSISTANT:")  # the space is the answer's
        assert written(tokenizer, (USER,), says("yes")) == ("USER: hi</s>ASSISTANT:", " yes</s>")
        return
    tokenizer = byte_tokenizer(TURNS + asked + OPENING + "{% endif %}" * bool(asked))
    right = byte_tokenizer(TURNS + "{% if add_generation_prompt %}" + OPENING + "{% endif %}")
    for prompt in ((USER,), (USER, *says("a"), USER), (USER, *says("yes, "))):
        for how in (TOKENISATION, BARE):
            assert written(tokenizer, prompt, says("it is"), how) == written(right, prompt, says("it is"), how)
    assert "reopens" in text_identity("local", tokenizer, TOKENISATION)
    for template in (CHATML, LLAMA, MISTRAL, QWEN, GEMMA, DEEPSEEK, PARTS):
        assert "reopens" not in text_identity("local", byte_tokenizer(template), TOKENISATION)


def test_content_that_a_template_cuts_is_a_string_still():
    """Given in parts, it would write the list itself."""
    with pytest.warns(MultirefWarning, match=r"of the answer 'yes it is' the chat template writes 'yes"):
        cut = written(byte_tokenizer(CHATML.replace("content", "content[:3]")), (USER,), says("yes it is"))
    assert cut[1] == "yes<|im_end|>\n"


def test_arguments_of_the_call_are_none_of_the_template():
    """They would change what is written without the template's knowing: another template, no end of the last turn, ids."""
    tokenizer = byte_tokenizer(CHATML)
    for name, value in {"chat_template": "x", "continue_final_message": True, "tokenize": True, "messages": []}.items():
        prompt = Conversation((USER,), chat_template_kwargs={name: value})
        with pytest.raises(DataError, match=rf"row 3: chat_template_kwargs: '{name}' is no argument of a chat template"):
            encode_many(tokenizer, [(prompt, [says("yes")])], origins=["row 3"])
        with pytest.raises(DataError, match=rf"'{name}' is no argument"):
            encode(tokenizer, (USER,), [says("yes")], Tokenisation(chat_template_kwargs={name: value}))


def test_arguments_of_a_tool_call_that_are_json_text():
    """As OpenAI has them: written as the same arguments given as an object, and not as a string in quotes; a template that
    writes the text as it is gets it."""

    def calling(how):
        calls = "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function" + how + " }}{% endfor %}"
        return byte_tokenizer(CHATML.replace("{{ m.content }}", calls))

    text = '{"x": 1}'
    given = {kind: {**CALL, "function": {"name": "add", "arguments": value}} for kind, value in
             {"text": text, "object": {"x": 1}}.items()}  # fmt: skip
    quoted = calling("|tojson")
    one, other = (written(quoted, (USER,), says("", tool_calls=[call]))[1] for call in given.values())
    assert one == other and '"arguments": {"x": 1}' in one
    plain = calling(".arguments")
    for call in given.values():
        assert written(plain, (USER,), says("", tool_calls=[call]))[1] == text + "<|im_end|>\n"
    joined = byte_tokenizer(CHATML.replace("{{ m.content }}", "{{ m.content + m.tool_calls[0].function.arguments"
                                           " if m.tool_calls else m.content }}"))  # fmt: skip
    assert written(joined, (USER,), says("", tool_calls=[given["object"]]))[1] == text + "<|im_end|>\n"
    said = {**USER, "content": "{'x': 1}"}  # as Python prints it, in words
    assert written(quoted, (said,), says("", tool_calls=[given["object"]]))[1] == one


@pytest.mark.parametrize("value", ['{"x": "é"}', {"x": "é"}])
def test_arguments_beyond_ascii(value):
    """Templates write é as it is: quoted twice is other text than json.dumps has it by itself."""
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}")
    call = {"type": "function", "function": {"name": "add", "arguments": value}}
    assert '"arguments": {"x": "é"}' in written(byte_tokenizer(template), (USER,), says("", tool_calls=[call]))[1]


def test_an_answer_of_another_role_is_named():
    with pytest.raises(DataError, match=r"begins with a message of role 'Assistant'.*opens one of the assistant's"):
        encode(byte_tokenizer(CHATML), (USER,), [({"role": "Assistant", "content": "yes"},)])
