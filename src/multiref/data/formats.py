"""Which format a data set of preferences has, by its columns, and its rows as TRL's: prompt, chosen, rejected, margin.

Read are: TRL's own (prompt beside the sides, or what they begin with), also under ShareGPT's `from`/`value` and Alpaca's
`instruction` and `input`; two answers and a label; one prompt with several answers and their scores or ranks.
"""

import math
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, TypeAlias

from multiref._json import parse_json
from multiref.data.labels import Side, meaning, plain, sides, stem
from multiref.data.pairs import QUESTIONS
from multiref.data.text import without_nulls
from multiref.errors import DataError

Row: TypeAlias = Mapping[str, Any]
Rankings: TypeAlias = Literal["ends", "all"]
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "label",
    "margin",
    "system",
    "tools",
    "chat_template_kwargs",
    "completions",
    "scores",
)
VALUES = ("first", "second", "tie")  # of the label, where the user says what they mean
PROMPTS = ("conversations", "conversation", *QUESTIONS)
LABELS = ("label", "labels", "winner", "preference", "preferred", "better", "choice", "better_response_id", "vote", "judgement",
          "human_preference", "preferred_response", "overall_preference")  # fmt: skip
ANSWERS = ("completions", "responses", "answers", "outputs", "candidates", "generations")
TEXTS = ("response", "text", "content", "answer", "output", "completion", "generation")
SCORES = ("overall_score", "score", "scores", "rating", "ratings", "reward", "rewards", "fine-grained_score", "rank", "ranks")
_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
          "model": "assistant", "observation": "tool", "function": "tool", "system": "system"}  # fmt: skip
_TALK = re.compile(r"""\s*(\[?)\s*\{\s*(["'])\w+\2\s*:""")  # how a conversation, or a message, begins as JSON text
_NEEDED = "A preference row needs two completions of one prompt and which is better: chosen and rejected (and usually prompt)"
_PUBLISHED = {"human_ref_A": {"first": 1, "second": 0}}  # a first column → its labels, as the data set's card says: SHP
_NOT_SIDES = {"model", "name", "id", "author", "annotator", "score", "rating", "prompt", "question", "source"}
_SIDES = {"response", "output", "answer", "completion", "conversation", "text", "reply", "summary", "candidate", "generation"}


@dataclass(frozen=True)
class Format:
    """name: in words. reads: the columns that it looks at. label: the column whose values have to be known first. asks: whether
    rows have a prompt of their own."""

    name: str
    reads: frozenset[str]
    convert: Callable[[Row, str], Iterator[Row]]
    label: str | None = None
    first: str = ""
    second: str = ""
    values: Mapping[str, object] | None = None
    asks: bool = False

    def knowing(self, labels: Iterator[object], where: str) -> "Format":
        """The format, once every label of the data set is seen."""
        means = meaning(labels, self.first, self.second, self.values or {}, where)
        shown = ", ".join(f"{value!r} {'a tie' if side == 'tie' else f'the {side}'}" for value, side in means.items()
                          if isinstance(value, int) or self.values)  # fmt: skip
        name = f"{self.name} ({shown})" if shown else self.name
        return replace(self, name=name, convert=lambda row, where: _labelled(row, where, self, means))


def renamed(row: Row, columns: Mapping[str, object], where: str) -> Row:
    """The row under our names: columns = {ours: theirs}. DataError for a column that is not there."""
    named = {ours: str(theirs) for ours, theirs in columns.items() if ours in COLUMNS}
    for ours, theirs in named.items():
        if not has_column(row, theirs) and ours != "label":
            raise DataError(
                f"{where}: no column {theirs!r} for {ours}; found {', '.join(map(str, list(row)[:12])) or 'nothing'}."
            )
    taken = {column_of(row, theirs) for theirs in named.values()} - {"label"}
    found = {ours: value_of(row, theirs) for ours, theirs in named.items() if has_column(row, theirs)}
    kept = {key: value for key, value in row.items() if key not in taken} | found
    if "margin" in named and isinstance(kept["margin"], str) and (number := _number(kept["margin"])) is not None:
        kept["margin"] = number  # of a CSV
    return kept


def column_of(row: Collection[str], name: str) -> str:
    """The column that a name is in: a.b is within a, where there is no column a.b."""
    return name if name in row else name.partition(".")[0]


def has_column(row: Row, name: str) -> bool:
    """Whether a row has a column of this name: a.b of an object a, or of the objects of a list a."""
    if name in row:
        return True
    head, _, rest = name.partition(".")
    within = row.get(head) if rest else None
    each = within if isinstance(within, list | tuple) else [within]
    return bool(each) and all(isinstance(part, Mapping) and has_column(part, rest) for part in each)


def value_of(row: Row, name: str) -> Any:
    """What stands there; in a list, of each of its objects."""
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    within = row[head]
    return [value_of(part, rest) for part in within] if isinstance(within, list | tuple) else value_of(within, rest)


def recognise(row: Row, columns: Mapping[str, object], rankings: Rankings, where: str) -> Format:
    """The format of a data set by a row of it (under our names). DataError for one that has no preferences in it."""
    values = {name: columns[name] for name in VALUES if name in columns}
    has = {name for name, value in row.items() if value is not None}
    label = "label" if "label" in columns else next((name for name in LABELS if name in has), None)
    two = [pair for pair in sides(sorted(has)) if all(isinstance(row[name], Sequence | Mapping) for name in pair)]
    two = [pair for pair in two if stem(pair[0])[0] not in _NOT_SIDES]
    two = [pair for pair in two if stem(pair[0])[0] in _SIDES] or two
    if {"chosen", "rejected"} & has:
        if label is not None and ("label" in columns or values) and {"chosen", "rejected"} <= has:
            return _two_answers("chosen", "rejected", label, values, columns)
        return Format(_kind(row), frozenset({*COLUMNS[:3], *PROMPTS}), _trl, asks=not has.isdisjoint(("prompt", *PROMPTS)))
    if label is not None and two:
        if len(two) > 1:
            raise DataError(
                f"{where}: {' and '.join(map(str, two[:3]))} may be the two answers; say which: columns: "
                f"{{chosen: {two[0][0]}, rejected: {two[0][1]}, label: {label}}}."
            )
        return _two_answers(*two[0], label, values or _PUBLISHED.get(two[0][0], {}), columns)
    answers = next((name for name in ANSWERS if isinstance(row.get(name), Sequence) and not isinstance(row[name], str)), None)
    if answers is not None and _score_of(row, row[answers]) is not None:
        read = frozenset({"prompt", *PROMPTS, answers, *SCORES})
        which = "the best against the worst" if rankings == "ends" else "all pairs"
        return Format(f"rankings with scores, {which}", read, lambda row, where: _ranked(row, where, answers, rankings))
    raise DataError(f"{where}: {_unpaired(row, has, two, answers)}")


def prompt_of(row: Row, where: str) -> Any:
    """The prompt of a row that has no column of this name; None where it has none at all. DataError for two of them."""
    for name in ("conversations", "conversation"):
        if not isinstance(talk := messages(row.get(name), where), str | None):
            return talk
    texts = {name: row[name] for name in QUESTIONS if isinstance(row.get(name), str) and row[name].strip()}
    said = "\n".join(texts[name] for name in ("instruction", "input") if name in texts)
    prompt = said or texts.get("question", texts.get("query"))
    if lost := [name for name, text in texts.items() if text.strip() not in str(prompt)]:
        raise DataError(
            f"{where}: `{lost[0]}` would be lost beside {' and '.join(texts.keys() - {*lost})}; write the whole prompt into a "
            "column `prompt`, or say which column it is: columns: {prompt: …}."
        )
    return prompt


def messages(value: Any, where: str) -> Any:
    """ShareGPT's {from, value} as {role, content}; a message alone as a list of it; a conversation that stands there as JSON
    text, as a CSV has it, as what it says; anything else as it is. DataError for one as Python prints it."""
    if isinstance(value, str):
        value = _talk(value, where)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value
    turns = [without_nulls(each) if isinstance(each, list) else each for each in value]
    shared = [isinstance(each, Mapping) and "from" in each and "role" not in each for each in turns]
    return [_message(each, where) if theirs else each for each, theirs in zip(turns, shared)]


def wanted_columns(names: Sequence[str], columns: Mapping[str, object], others: Sequence[str]) -> list[str]:
    """Of a file's columns those that can matter: all, unless it has TRL's."""
    theirs = {column_of(names, str(value)) for name, value in columns.items() if name in COLUMNS}
    if {"chosen", "rejected"} <= {*names, *columns}:
        known = {*COLUMNS, *PROMPTS, *others, *theirs, *(LABELS if "label" in columns else ())}
        return [name for name in names if name in known]
    return list(names)


def _talk(text: str, where: str) -> Any:
    if (found := _TALK.match(text)) is None or not text.rstrip().endswith("]" if found[1] else "}"):
        return text
    if not all(re.search(f"{found[2]}({keys}){found[2]}", text) for keys in ("role|from", "content|value|tool_calls")):
        return text
    if found[2] == "'":  # as pandas writes a list into a CSV
        raise DataError(f"{where}: {text[:40]!r}… is a conversation as Python prints it; expected JSON (json.dumps).")
    try:
        turns = parse_json(text, f"{where}: the conversation {text[:40]!r}…")
    except DataError:
        if found[1]:
            raise
        return text
    if isinstance(turns, dict):  # an answer may be an object
        return turns if str(turns.get("role", turns.get("from"))).lower() in {*_ROLES, *_ROLES.values()} else text
    told = all(isinstance(turn, dict) and ("role" in turn or {"from", "value"} <= turn.keys()) for turn in turns)
    return turns if told else text


# ---- TRL's format, and what stands in its columns elsewhere ----


def _trl(row: Row, where: str) -> Iterator[Row]:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and {chosen, rejected} <= row.keys():
        raise DataError(f"{where}: chosen and rejected are names of columns, {chosen!r} and {rejected!r}; expected the texts.")
    made = {**row, "chosen": messages(chosen, where), "rejected": messages(rejected, where)}
    if row.get("prompt") is not None:
        made["prompt"] = messages(row["prompt"], where)
    elif (prompt := prompt_of(row, where)) is not None:
        made["prompt"] = prompt
        if not isinstance(prompt, str):
            for side in ("chosen", "rejected"):
                if isinstance(made[side], str):
                    made[side] = [{"role": "assistant", "content": made[side]}]
    for name in PROMPTS:
        made.pop(name, None)
    yield made


def _kind(row: Row) -> str:
    side = row.get("chosen")
    shape = "strings" if isinstance(side, str) else "conversations"
    if shape == "conversations" and "'from'" in repr(side)[:4000]:
        shape = "conversations (ShareGPT)"
    if row.get("prompt") is not None:
        return f"prompt, chosen, rejected; {shape}"
    if (name := next((name for name in PROMPTS if row.get(name)), None)) is not None:
        return f"{name}, chosen, rejected; {shape}"
    return f"chosen, rejected; the prompt is what both begin with; {shape}"


def _message(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, said = str(turn["from"]).strip().lower(), turn.get("value")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if role != "function_call":
        return {"role": _ROLES.get(role, role), "content": said, **rest}
    calls = parse_json(said, f"{where}: the function_call {said[:40]!r}…") if isinstance(said, str) else said
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise DataError(f'{where}: a function_call is {said!r:.60}; expected {{"name": …, "arguments": …}}, or a list of them.')
    asked = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": asked, **rest}


# ---- two answers and a label ----


def _two_answers(first: str, second: str, label: str, values: Mapping[str, object], columns: Row) -> Format:
    shown = columns.get("chosen", first), columns.get("rejected", second), columns.get("label", label)
    read = frozenset({"prompt", *PROMPTS, first, second, label})
    one, other = (str(columns.get(name, side)) for name, side in (("chosen", first), ("rejected", second)))
    return Format(f"two answers ({shown[0]}, {shown[1]}) and a label ({shown[2]})", read, _trl, label, one, other, values)


def _labelled(row: Row, where: str, kind: Format, means: Mapping[Hashable, Side]) -> Iterator[Row]:
    label = plain(row.get(str(kind.label)))
    first, second = ((one if one in row else ours) for one, ours in ((kind.first, "chosen"), (kind.second, "rejected")))
    if label is None:
        raise DataError(f"{where}: no label; such a row says nothing about preference, remove it.")
    side = means[label]
    if side == "tie":
        raise DataError(
            f"{where}: a tie (label {row[str(kind.label)]!r}); such a row says nothing about preference, remove it."
        )
    better, worse = (first, second) if side == "first" else (second, first)
    rest = {key: value for key, value in row.items() if key not in (first, second, kind.label)}
    yield from _trl({**rest, "chosen": row.get(better), "rejected": row.get(worse)}, where)


# ---- one prompt, several answers, their scores ----


def _score_of(row: Row, items: Sequence[Any]) -> str | None:
    """The name of the answers' scores, which each of them has if they are objects; else of a column beside them."""
    if items and all(isinstance(item, Mapping) for item in items):
        return next((name for name in SCORES if any(item.get(name) is not None for item in items)), None)
    return next((name for name in SCORES if isinstance(row.get(name), Sequence) and not isinstance(row[name], str)), None)


def _ranked(row: Row, where: str, answers: str, rankings: Rankings) -> Iterator[Row]:
    texts, scores, is_rank = _scored(row, where, answers)
    prompt = row.get("prompt") if row.get("prompt") is not None else prompt_of(row, where)
    if prompt is None:
        raise DataError(f"{where}: `{answers}` without a prompt; expected prompt or instruction beside it.")
    order = sorted(range(len(texts)), key=lambda i: -scores[i])  # of equal scores the first one stands first
    pairs = [(order[0], order[-1])] if rankings == "ends" else list(combinations(order, 2))
    pairs = [(a, b) for a, b in pairs if scores[a] > scores[b]]
    if not pairs:
        raise DataError(f"{where}: a tie: all {len(texts)} answers have the same score; such a row prefers none, remove it.")
    kept = {key: row[key] for key in ("system", "tools", "chat_template_kwargs") if row.get(key) is not None}
    for better, worse in pairs:
        margin = {} if is_rank else {"margin": scores[better] - scores[worse]}
        yield from _trl({**kept, "prompt": prompt, "chosen": texts[better], "rejected": texts[worse], **margin}, where)


def _scored(row: Row, where: str, answers: str) -> tuple[list[Any], list[float], bool]:
    """Answers, numbers of which the higher is better, and whether they are ranks."""
    items = row[answers]
    score = _score_of(row, items)
    if items and all(isinstance(item, Mapping) for item in items):
        text = next((name for name in TEXTS if all(item.get(name) is not None for item in items)), None)
        if text is None:
            raise DataError(f"{where}: `{answers}` has no text; expected one of {', '.join(TEXTS)} in each of them.")
        texts, values = [item[text] for item in items], [item.get(score) for item in items] if score else []
    else:
        texts, values = list(items), list(row[score] if score else ())
    if score is None or len(texts) != len(values) or len(texts) < 2:
        raise DataError(f"{where}: {len(texts)} answers and {len(values)} scores; expected two or more, and a score for each.")
    numbers = [_number(value) for value in values]
    if any(number is None for number in numbers):
        bad = next(value for value, number in zip(values, numbers) if number is None)
        raise DataError(f"{where}: `{score}` is {bad!r}, expected a finite number for each answer.")
    is_rank = score.startswith("rank")
    return texts, [-n if is_rank else n for n in numbers if n is not None], is_rank


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# ---- what has no preferences in it ----


def _unpaired(row: Row, has: set[str], two: Sequence[tuple[str, str]], answers: str | None) -> str:
    found = ", ".join(map(str, list(row)[:12])) or "nothing"
    if two:
        return (
            f"two answers, `{two[0][0]}` and `{two[0][1]}`, and no column that says which is better; found {found}. Say "
            f"where it is: columns: {{chosen: {two[0][0]}, rejected: {two[0][1]}, label: …}}."
        )
    if answers is not None:
        return f"`{answers}` without scores; found {found}. Expected a score or a rank for each answer."
    if ("completion" in has or "messages" in has) and "label" in has:
        return f"unpaired data: one completion and whether it is good; found {found}. {_NEEDED}."
    if has & {"messages", "completion", "output", "response", "answer", "text"}:
        return f"unpaired data: one text a row and nothing that it is better than; found {found}. {_NEEDED}."
    return f"no `chosen` and no `rejected`; found {found}. {_NEEDED}. Foreign names: columns: {{chosen: …, rejected: …}}."
