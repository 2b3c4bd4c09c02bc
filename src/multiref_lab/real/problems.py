"""Word problems of two kinds in plain English, made from nothing, each with a worked answer; and the reward, read off the text.

Ann has 34 pens and Bob has 17. How many together?     34+17=51
Ann has 14 pens and buys 3 bags of 8. How many now?    3*8=24, 14+24=38
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multiref.data import Pair

KINDS = ("sum", "bags")
NAMES = ("Ann", "Bob", "Eve", "Tom", "Mia", "Sam")
THINGS = ("pens", "cups", "nuts", "books", "apples", "cards")
REWARD = {"kind": "python", "path": __file__, "name": "correct"}  # as run files name it
SYSTEM = {"role": "system", "content": ""}  # SmolLM2's template writes a longer one where there is none


@dataclass(frozen=True)
class Problem:
    """A question, its kind, the answer as it should be worked out, and the number that is right.
    chat: the model has a chat template, so prompts and answers are messages; else plain text."""

    kind: str
    question: str
    worked: str
    number: int
    chat: bool = True

    @property
    def prompt(self) -> Any:
        return (SYSTEM, {"role": "user", "content": self.question}) if self.chat else f"{self.question}\n"

    def said(self, text: str) -> Any:
        """A text as the answer to the question."""
        return ({"role": "assistant", "content": text},) if self.chat else text


def draw_problems(counts: Sequence[int], seed: str, *, chat: bool = True, without: Sequence[Problem] = ()) -> list[Problem]:
    """So many problems of each kind, kind after kind (answers of one length are sampled side by side);
    no calculation twice, and none of `without`."""
    chance, taken, found = random.Random(seed), {problem.worked for problem in without}, []
    for make, count in zip((_sum, _bags), counts, strict=True):
        while count:
            problem = make(chance, chat)
            if problem.worked not in taken:
                taken.add(problem.worked)
                found.append(problem)
                count -= 1
    return found


def _sum(chance: random.Random, chat: bool) -> Problem:
    (one, two), thing = chance.sample(NAMES, 2), chance.choice(THINGS)
    first, second = chance.randint(13, 98), chance.randint(13, 98)
    question = f"{one} has {first} {thing} and {two} has {second}. How many together?"
    return Problem(KINDS[0], question, f"{first}+{second}={first + second}", first + second, chat)


def _bags(chance: random.Random, chat: bool) -> Problem:
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    own, bags, each = chance.randint(5, 60), chance.randint(2, 9), chance.randint(2, 9)
    question = f"{name} has {own} {thing} and buys {bags} bags of {each}. How many now?"
    total = own + bags * each
    return Problem(KINDS[1], question, f"{bags}*{each}={bags * each}, {own}+{bags * each}={total}", total, chat)


def text_of(said: Any) -> str:
    """The words of an answer, or of a prompt's question."""
    return said if isinstance(said, str) else str(said[-1]["content"])


def answer_to(question: str) -> int:
    """The right number, from the numbers of the question."""
    own, *others = (int(number) for number in re.findall(r"\d+", question))
    return own + (math.prod(others) if " bags of " in question else sum(others))


def correct(prompts: Sequence[Any], completions: Sequence[Any], ended: Sequence[bool], **_: Any) -> list[float]:
    """1 where the answer is finished and its last number is the right one, else 0: unfinished text earns nothing."""
    found = []
    for prompt, said, end in zip(prompts, completions, ended, strict=True):
        numbers = re.findall(r"\d+", text_of(said))
        found.append(float(end and bool(numbers) and int(numbers[-1]) == answer_to(text_of(prompt))))
    return found


def pair_up(problems: Sequence[Problem], draws: Sequence[Sequence[tuple[str, bool]]], *, most: int) -> list[Pair]:
    """Right against wrong of the same question, at most `most` pairs of each, no text twice in a question's pairs.

    draws: of each problem, (text, whether it is finished); an unfinished one earns nothing, so it is a wrong one, as it was
    cut.
    """
    pairs: list[Pair] = []
    for problem, said in zip(problems, draws, strict=True):
        drawn = {text: any(end for other, end in said if other == text) for text, _ in said if text.strip()}
        earned = correct([problem.prompt] * len(drawn), list(drawn), list(drawn.values()))
        right, wrong = ([text for text, each in zip(drawn, earned) if each == side] for side in (1.0, 0.0))
        for chosen, rejected in list(zip(right, wrong))[:most]:
            origin = f"real pair {len(pairs) + 1}"
            pairs.append(Pair(problem.prompt, problem.said(chosen), problem.said(rejected), origin))
    return pairs
