"""Where the prompt ends and the completion begins: exact for tokenizers of both families, whatever stands at the boundary."""

from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from multiref.errors import ArgumentError, DataError, ModelError
from multiref.models import Encoded, Tokenisation, encode, encode_many
from multiref.models.fingerprint import tokenizer_fingerprint
from tests.conftest import CHAT_TEMPLATE, make_tokenizer

KINDS = ["sentencepiece", "bytelevel"]
TOKENIZERS = {kind: make_tokenizer(kind) for kind in KINDS}
pieces = st.text(alphabet="the dogcat onup.?\n é", max_size=14)


def plain(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@given(kind=st.sampled_from(KINDS), prompt=pieces, completion=pieces)
@settings(max_examples=300, deadline=None)
def test_context_and_completion_spell_the_joint_text(kind, prompt, completion):
    """decode(context + completion) is what the tokenizer makes of prompt + completion; the context is encode(prompt)."""
    tokenizer = TOKENIZERS[kind]
    item = encode(tokenizer, prompt, [completion], Tokenisation(end=False))
    spelt = tokenizer.decode(item.prompt_ids + item.completions[0], skip_special_tokens=True)
    joint = tokenizer.decode(plain(tokenizer, prompt + completion), skip_special_tokens=True)
    # the tokenizer itself loses edge spaces; only there may the two differ
    assert spelt.replace(" ", "") == joint.replace(" ", "")
    if kind == "bytelevel":
        assert spelt == prompt + completion
    expected = plain(tokenizer, prompt)
    assert item.prompt_ids == (1, *expected) if kind == "sentencepiece" else item.prompt_ids == (expected or (1,))


@given(kind=st.sampled_from(KINDS), prompt=pieces, completions=st.lists(pieces, min_size=2, max_size=3))
@settings(max_examples=100, deadline=None)
def test_ids_of_a_completion_do_not_depend_on_its_company(kind, prompt, completions):
    tokenizer = TOKENIZERS[kind]
    together = encode(tokenizer, prompt, completions)
    alone = [encode(tokenizer, prompt, [completion]) for completion in completions]
    assert together.completions == tuple(item.completions[0] for item in alone)
    assert {item.prompt_ids for item in alone} == {together.prompt_ids}
    assert encode_many(tokenizer, [(prompt, [c]) for c in completions]) == alone


def test_a_continuation_gets_no_space_of_its_own():
    """encode("the") + encode("dog") would read "the dog"; the completion "dog" after "the" must read "thedog", " dog" the
    dog."""
    tokenizer = TOKENIZERS["sentencepiece"]
    for completion, text in (("dog", "thedog"), (" dog", "the dog")):
        item = encode(tokenizer, "the", [completion], Tokenisation(end=False))
        assert tokenizer.decode(item.prompt_ids + item.completions[0], skip_special_tokens=True) == text
    assert encode(tokenizer, "the", ["dog"]).completions != encode(tokenizer, "the", [" dog"]).completions


def test_a_token_across_the_boundary_is_cut_there():
    """ "…do" + "g": "▁dog" is one token, so that the joint ids do not begin with those of the prompt;
    the prompt keeps its ids."""
    for tokenizer in TOKENIZERS.values():
        assert plain(tokenizer, "the dog")[: len(plain(tokenizer, "the do"))] != plain(tokenizer, "the do")
        item = encode(tokenizer, "the do", ["g", "g sat"], Tokenisation(end=False))
        assert item.prompt_ids[-len(plain(tokenizer, "the do")) :] == plain(tokenizer, "the do")
        for ids, text in zip(item.completions, ["the dog", "the dog sat"]):
            assert tokenizer.decode(item.prompt_ids + ids, skip_special_tokens=True) == text


def test_a_special_token_across_the_boundary_is_refused():
    """Two sides whose common beginning ends within an end token: its letters would be scored in its place."""
    for tokenizer in map(make_tokenizer, KINDS):
        with pytest.raises(DataError, match=r"row 3: .*ends in '</', and the answer begins with 's>'"):
            encode_many(tokenizer, [("the dog</", ["s>", " sat"])], origins=["row 3"])


def test_an_end_token_and_a_space_behind_it():
    """Of a tokenizer that puts a space before what follows a special token."""
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    for behind in ("", "\n", " \n", "\u3000"):
        (ids,) = encode(tokenizer, "the", [" dog" + tokenizer.eos_token + behind]).completions
        assert ids.count(tokenizer.eos_token_id) == 1


def test_the_end_token_is_scored_unless_told_otherwise():
    for tokenizer in TOKENIZERS.values():
        with_end, without = (
            encode(tokenizer, "the dog", [" sat"], Tokenisation(end=end)).completions[0] for end in (True, False)
        )
        assert with_end == (*without, tokenizer.eos_token_id)


def test_start_tokens_are_context():
    """Both kinds begin an empty prompt with "<s>"; the byte-level one puts nothing before a prompt that is there."""
    assert encode(TOKENIZERS["sentencepiece"], "", ["a"]).prompt_ids == (1,)
    assert encode(TOKENIZERS["bytelevel"], "", ["a"]).prompt_ids == (1,)
    assert encode(TOKENIZERS["sentencepiece"], "the", ["a"]).prompt_ids[0] == 1
    assert 1 not in encode(TOKENIZERS["bytelevel"], "the", ["a"]).prompt_ids
    tokenizer = make_tokenizer("bytelevel")
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"start token"):
        encode(tokenizer, "", ["a"], Tokenisation(end=False))
    with pytest.raises(ModelError, match=r"end token"):
        encode(tokenizer, "the", ["a"])


def test_one_token_for_start_and_end():
    """As GPT-2 has it: of an empty answer to an empty prompt the end is scored, not taken for the start written once more."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    item = encode(tokenizer, "", ["", tokenizer.eos_token, "the", f"{tokenizer.eos_token}the"])
    assert item.prompt_ids == (end,) and item.completions[:2] == ((end,), (end,))
    assert item.completions[2] == item.completions[3] == (*tokenizer("the", add_special_tokens=False)["input_ids"], end)


def test_a_start_token_of_a_vocabulary_without_an_a():
    """Letters of DNA alone, and tokens that no probe of ours spells: the start token is found all the same."""
    for word in ("GATTACA", "QQQQQQQ"):
        backend = Tokenizer(BPE({"<s>": 0, "</s>": 1} | {letter: n for n, letter in enumerate(dict.fromkeys(word), 2)}, []))
        backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
        item, ids = encode(tokenizer, word[:4], [word[4:]]), plain(tokenizer, word)
        assert (item.prompt_ids, item.completions) == ((0, *ids[:4]), ((*ids[4:], 1),))


def test_truncation_is_marked_and_cuts_the_side_that_was_named():
    tokenizer = TOKENIZERS["sentencepiece"]
    texts = "the dog sat on the log", [" and the cat sat on the mat", " and"]
    whole = encode(tokenizer, *texts)
    room = len(whole.prompt_ids) + 3
    start = encode(tokenizer, *texts, Tokenisation(max_length=room))
    assert start.truncated == (True, False) and start.prompt_ids == whole.prompt_ids
    assert start.completions == (whole.completions[0][:3], whole.completions[1])

    end = encode(tokenizer, *texts, Tokenisation(max_length=room, truncation="keep_end"))
    assert end.completions == whole.completions and end.truncated == (True, False)
    kept = room - len(whole.completions[0])
    assert end.context(0) == whole.prompt_ids[:1] + whole.prompt_ids[-(kept - 1) :] and len(end.context(0)) == kept
    assert end.context(1) == whole.prompt_ids  # the other completion needed no cut: a score does not depend on its company
    assert encode(tokenizer, *texts, Tokenisation(max_length=1000)) == whole and whole.truncated == (False, False)


def test_nothing_left_to_score_is_an_error():
    tokenizer = TOKENIZERS["sentencepiece"]
    prompt, completion = "the dog sat on the log", " and the cat sat on the mat"
    with pytest.raises(DataError, match=r"nothing of the completion is left.*keep_end"):
        encode(tokenizer, prompt, [completion], Tokenisation(max_length=4))
    with pytest.raises(DataError, match=r"longer|more than the context"):
        encode(tokenizer, prompt, [completion], Tokenisation(max_length=4, truncation="keep_end"))
    with pytest.raises(DataError, match=r"truncation is 'error'"):
        encode(tokenizer, prompt, [completion], Tokenisation(max_length=9, truncation="error"))
    with pytest.raises(ArgumentError, match=r"keep_start"):
        encode(tokenizer, prompt, [completion], Tokenisation(truncation="left"))


USER, ANSWER = {"role": "user", "content": "the dog?"}, {"role": "assistant", "content": "on the log"}


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_go_through_the_template(kind):
    tokenizer = make_tokenizer(kind, chat=True)
    item = encode(tokenizer, (USER,), [(ANSWER,)])
    assert item.prompt_ids == plain(tokenizer, "<|user|>the dog?<s>\n<|assistant|>")
    assert item.prompt_ids + item.completions[0] == plain(tokenizer, "<|user|>the dog?<s>\n<|assistant|>on the log<s>\n")
    assert 1 in item.completions[0]  # the template's end of turn is scored …
    assert (
        encode(tokenizer, (USER,), [(ANSWER,)], Tokenisation(end=False)).completions[0]
        == item.completions[0][: item.completions[0].index(1)]
    )


def test_an_answer_that_was_begun_is_resumed():
    tokenizer = make_tokenizer("bytelevel", chat=True)
    begun, rest = {"role": "assistant", "content": "on the"}, {"role": "assistant", "content": " log"}
    item = encode(tokenizer, (USER, begun), [(rest,)])
    assert tokenizer.decode(item.prompt_ids).endswith("<|assistant|>on the")
    assert tokenizer.decode(item.completions[0]) == " log<s>\n"


def test_conversations_that_cannot_be_written():
    tokenizer = make_tokenizer()
    with pytest.raises(ModelError, match=r"no chat template.*chat_template"):
        encode(tokenizer, (USER,), [(ANSWER,)])
    with pytest.raises(DataError, match=r"not of one kind"):
        encode(make_tokenizer(chat=True), (USER,), ["on the log"])
    tokenizer.chat_template = "{{ raise_exception('only one system message') }}"
    with pytest.raises(ModelError, match=r"only one system message"):
        encode(tokenizer, (USER,), [(ANSWER,)])
    tokenizer.chat_template = "{{ messages|length }}" + CHAT_TEMPLATE
    with pytest.raises(ModelError, match=r"differently once an answer follows"):
        encode(tokenizer, (USER,), [(ANSWER,)])


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["stories260K", "babyllama-105", "babyllama-361", "names-a"])
def test_real_tokenizers(shared, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / folder)
    for prompt, completion in (("Once upon a ti", "me, Max"), ("Once upon ", "a time"), ("Once upon", " a time"), ("Once", "")):
        item = encode(tokenizer, prompt, [completion], Tokenisation(end=False))
        spelt = tokenizer.decode(item.prompt_ids + item.completions[0], skip_special_tokens=True)
        assert spelt == tokenizer.decode(plain(tokenizer, prompt + completion)), (prompt, completion)


def test_without_a_start_token_and_encoded_apart():
    """start=False: the same context less the start token, which an empty prompt cannot do without. join="tokens":
    each text by itself."""
    tokenizer = TOKENIZERS["sentencepiece"]
    with_start, without = (encode(tokenizer, "the do", ["g sat"], Tokenisation(start=start)) for start in (True, False))
    assert with_start.prompt_ids == (1, *without.prompt_ids) and with_start.completions == without.completions
    with pytest.raises(DataError, match="nothing predicts the first token"):
        encode(tokenizer, "", ["a"], Tokenisation(start=False))
    apart = encode(tokenizer, "the do", ["g sat"], Tokenisation(join="tokens", end=False))
    assert apart.completions[0] == tuple(tokenizer("g sat", add_special_tokens=False)["input_ids"])
    assert apart.prompt_ids == with_start.prompt_ids and apart.completions[0] != with_start.completions[0][:-1]


def test_a_digest_names_ids_boundary_and_cut():
    """blake2b-64 over (boundary, context, completion) as little-endian int64; one id, the boundary or the cut changes it."""
    item = Encoded((1, 2), ((3,), (2, 3)), (False, True), ((1, 2), (1,)))
    raw = b"".join(number.to_bytes(8, "little") for number in (2, 1, 2, 3))
    assert item.digest(0) == int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")
    assert item.digest(0) != item.digest(1)  # the same ids, divided elsewhere
    assert item.digest(1) == Encoded((1,), ((2, 3),), (False,)).digest(0)
    rows = [Encoded((a,), ((b, c),), (False,)).digest(0) for a in range(4) for b in range(4) for c in range(300)]
    assert len(set(rows)) == len(rows) and min(rows) > 0 and max(rows) < 2**64


def test_a_text_without_a_token_is_named_by_its_row():
    """A vocabulary of words without an unknown one; `tokenizers` raises a bare Exception."""
    rules = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))
    rules.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="b")
    texts = [("a", ("b",)), ("a", ("other",))]
    with pytest.raises(DataError, match=r"^row 2: the tokenizer refuses it: .*Missing \[UNK\]"):
        encode_many(tokenizer, texts, Tokenisation(end=False), origins=["row 1", "row 2"])
    assert tokenizer_fingerprint(tokenizer)  # its fixed texts have no tokens either
