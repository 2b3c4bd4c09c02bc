"""GSM8K: questions with a number as answer, read from a file or the hub; the answer in a solution;
the rewards of the paper's script, repaired."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from multiref.data.sources import open_source
from multiref.data.text import Message, Text, said
from multiref.errors import ArgumentError, DataError

Completions: TypeAlias = Sequence[Text | Sequence[Message]]  # as TRL hands them to a reward

SYSTEM = "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n"
HIGHEST_REWARD = 4.0  # 2 + ½ + ½ + ½ + ½; no reward is below zero

NUMBER = r"[-+−]?\s?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?"
# in this order: the most explicit mark wins, and of several the last
MARKS = (
    r"<answer>(.*?)(?:</answer>|\Z)",
    r"####([^\n]*)",
    r"\\boxed\{([^{}]*)\}",
    r"(?:^|\n)\s*A(?:nswer)?\s*:([^\n]*)",
    r"(?:[Tt]he|[Ff]inal) (?:final )?answer(?: is|:)([^\n]*)",
)


@dataclass(frozen=True)
class Problem:
    """A question, its worked solution, and the number that is its answer. `origin` ("test.jsonl:12") is for messages."""

    question: str
    solution: str
    answer: str
    origin: str = ""


def read_gsm8k(
    source: str | Path, *, name: str | None = None, split: str | None = None, limit: int | None = None
) -> list[Problem]:
    """Problems from rows with `question` and `answer` (which ends in "#### number"): a file, a folder, a URL, or the hub
    ("openai/gsm8k"; by default its configuration main, and of several splits train).

    Errors: DataError naming file and row.
    """
    hub = not os.path.exists(source) and "://" not in str(source)
    with open_source(source, name=name or ("main" if hub else None), split=split or ("train" if hub else None)) as opened:
        problems = [_problem(row, origin) for origin, row in islice(opened(), limit)]
    if not problems and limit != 0:
        raise DataError(f"{source} has no problems; expected rows with question and answer.")
    return problems


def prompts(problems: Sequence[Problem], *, style: str = "chat") -> list[dict[str, Text]]:
    """Rows with `prompt` and `answer` for `OnlineTrainer` and for TRL.

    style: "chat", a system message that asks for <reasoning> and <answer>, then the question;
    "plain", the question and a line break, for models without a chat template.
    """
    if style not in ("chat", "plain"):
        raise ArgumentError(f"style: found {style!r}, expected chat or plain.")

    def ask(question: str) -> Text:
        chat = {"role": "system", "content": SYSTEM}, {"role": "user", "content": question}
        return chat if style == "chat" else f"{question}\n"

    return [{"prompt": ask(problem.question), "answer": problem.answer} for problem in problems]


def extract_answer(text: str) -> str | None:
    """The number that a solution ends in, without signs of currency and thousands: "18", "-3", "2.5", "3/4";
    None where there is none.

    Looks for, in this order, <answer>…</answer>, "#### …", \\boxed{…}, a line "A: …" or "Answer: …", "the answer is …",
    and takes the last of them; otherwise the last number of the text. Within "A: 3 + 4 = 7" the number behind the last "="
    counts. Calculator marks (<<48/2=24>>) are not seen.
    """
    text = re.sub(r"<<[^<>]*>>", "", text)
    for mark in MARKS:
        found = re.findall(mark, text, flags=re.DOTALL if "answer>" in mark else 0)
        if found:
            numbers = re.findall(NUMBER, found[-1].rpartition("=")[2])
            if numbers:
                return _plain(numbers[0])
    numbers = re.findall(NUMBER, text)
    return _plain(numbers[-1]) if numbers else None


def same_number(found: str | None, expected: str) -> bool:
    """Whether two extracted answers are one number: "18" and "18.00", "1/2" and "0.5"."""
    if found is None:
        return False
    a, b = _value(found), _value(expected)
    return a == b if a is not None and b is not None else found.strip() == expected.strip()


# ---- rewards: each takes completions (strings or messages) and, as a column, the answers; each is bounded ----


def correctness(completions: Completions, answer: Sequence[str], **_: object) -> list[float]:
    """2 where the completion's number is the answer, else 0."""
    return [2.0 * same_number(extract_answer(_text(c)), a) for c, a in zip(completions, answer, strict=True)]


def integer(completions: Completions, **_: object) -> list[float]:
    """½ where what is between <answer> marks is a whole number (sign and thousands allowed)."""
    inside = [re.search(r"<answer>(.*?)</answer>", _text(c), re.DOTALL) for c in completions]
    return [0.5 * bool(found and re.fullmatch(r"\s*[-+]?\$?\d[\d,]*\s*", found[1])) for found in inside]


def strict_format(completions: Completions, **_: object) -> list[float]:
    """½ for exactly <reasoning>, lines, </reasoning>, <answer>, lines, </answer>, each mark on its own line."""
    pattern = r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?"
    return [0.5 * bool(re.fullmatch(pattern, _text(c), re.DOTALL)) for c in completions]


def soft_format(completions: Completions, **_: object) -> list[float]:
    """½ for <reasoning>…</reasoning> and then <answer>…</answer>, at the start."""
    return [
        0.5 * bool(re.match(r"\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", _text(c), re.DOTALL)) for c in completions
    ]


def marks(completions: Completions, **_: object) -> list[float]:
    """⅛ for each of the four marks that occurs once, less 0.001 for each character behind the last; never below zero."""
    return [_marks(_text(c)) for c in completions]


def rewards() -> dict[str, Callable[..., list[float]]]:
    """The five rewards of the paper's script, which are summed. Repaired: the formats see over line breaks,
    and the count of marks is bounded, so that their sum is in [0, 4]; correctness compares numbers, not strings."""
    return {each.__name__: each for each in (correctness, integer, strict_format, soft_format, marks)}


# ---- pass rates ----


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k completions is right, from `samples` of which `correct` are:
    1 − C(n−c, k)/C(n, k).

    Reference: Chen et al., 2021, arXiv 2107.03374, section 2.1.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ArgumentError(f"pass_at_k: expected 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples, found {correct}, {samples}, {k}.")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson(share: float, trials: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share of so many independent trials."""
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, (centre - spread) / (1 + z * z / trials)), min(1.0, (centre + spread) / (1 + z * z / trials))


def pass_rate(correct: Sequence[Sequence[bool]], k: int, *, z: float = 1.959964) -> tuple[float, float, float]:
    """(pass@k, low, high) over problems, each with its completions right or wrong; a 95 % interval.

    One completion a problem: Wilson's interval. More: mean ± z standard errors over problems, cut at 0 and 1 (both, of one).
    """
    each = [pass_at_k(sum(row), len(row), k) for row in correct]
    if not each:
        raise ArgumentError("pass_rate: expected at least one problem, found none.")
    n, mean = len(each), sum(each) / len(each)
    if all(value in (0.0, 1.0) for value in each):
        return mean, *wilson(mean, n, z)
    error = math.sqrt(sum((value - mean) ** 2 for value in each) / (n - 1) / n) if n > 1 else math.inf
    return mean, max(0.0, mean - z * error), min(1.0, mean + z * error)


def _problem(row: object, origin: str) -> Problem:
    if not isinstance(row, dict) or not all(
        isinstance(row.get(name), str) and row[name].strip() for name in ("question", "answer")
    ):
        known = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{origin}: found {known}; expected text in `question` and `answer`.")
    marked = row["answer"].rpartition("####")
    number = extract_answer("####" + marked[2]) if marked[1] else None
    if number is None:
        raise DataError(
            f"{origin}: the answer does not end in '#### number'. "
            "Expected an answer of GSM8K, a solution whose last line is such as #### 42."
        )
    return Problem(row["question"], row["answer"], number, origin)


def _marks(text: str) -> float:
    total = sum(0.125 for mark in ("<reasoning>\n", "\n</reasoning>\n", "\n<answer>\n", "\n</answer>") if text.count(mark) == 1)
    behind = text.rpartition("</answer>")[2].strip() if "</answer>" in text else ""
    return max(0.0, total - 0.001 * len(behind))


def _text(completion: Text | Sequence[Message]) -> str:
    return completion if isinstance(completion, str) else "".join(map(said, completion))


def _plain(number: str) -> str:
    return re.sub(r"[\s$,+]", "", number).replace("−", "-")


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        return None
