"""Word problems of two skills, and how well or badly they are answered in a corpus.

    ann has 4 1 pens , bob 3 6 : total ?   →   7 7      (add digit by digit: no carry occurs)
    ann has 4 1 pens , bob 3 6 : top ?     →   4 6      (the larger digit of each place)

Every prompt has twelve words and every answer two, so that all answers to a prompt can be enumerated.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = ("ann", "bob", "eve")
THINGS = ("pens", "cups", "nuts")
SKILLS = ("total", "top")
WORDS = (*"0123456789", *NAMES, *THINGS, "has", ",", ":", *SKILLS, "?")
ANSWER_WORDS = 2

# Ordered pairs of two-digit numbers (leading zeros count) whose digits add without carry.
NUMBERS = tuple((a, b) for a in range(100) for b in range(100) if a // 10 + b // 10 < 10 and a % 10 + b % 10 < 10)


@dataclass(frozen=True)
class Problem:
    """One question: who has how many of what, and which skill answers it."""

    skill: str
    first: int
    second: int
    names: tuple[str, str]
    thing: str

    @property
    def prompt(self) -> str:
        """The twelve words."""
        first, second = spell(self.first), spell(self.second)
        return f"{self.names[0]} has {first} {self.thing} , {self.names[1]} {second} : {self.skill} ?"

    @property
    def answer(self) -> str:
        """The two digits that are right."""
        return answer(self.skill, self.first, self.second)

    @property
    def confused(self) -> str:
        """What the other skill would have said."""
        return answer(SKILLS[1 - SKILLS.index(self.skill)], self.first, self.second)


@dataclass(frozen=True)
class Habit:
    """How an author answers one skill's problems.

    confusion: probability of answering with the other skill. slip: probability, digit by digit,
    of writing a random word of `WORDS` instead (which may be the right one).
    A slip above zero keeps every answer possible: no reference vetoes one.
    """

    confusion: float
    slip: float


def spell(number: int) -> str:
    """7 → "0 7"."""
    return f"{number // 10} {number % 10}"


def answer(skill: str, first: int, second: int) -> str:
    """The right answer: both digits, separated by a space."""
    if skill == "total":
        return spell(first + second)
    return f"{max(first // 10, second // 10)} {max(first % 10, second % 10)}"


def points(prompt: str, completion: str) -> int:
    """The reward: how many of the two answer digits are right, 0, 1 or 2, read off the two texts alone."""
    words = prompt.split()
    first, second = int(words[2] + words[3]), int(words[7] + words[8])
    right = answer(words[10], first, second).split()
    given = completion.split()
    return sum(a == b for a, b in zip(right, given, strict=True)) if len(given) == ANSWER_WORDS else 0


def split_numbers(seed: int = 0, *, held_out: float = 0.2) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """(training, held-out) number pairs: no held-out pair of numbers occurs in training, in either order,
    under any skill or name."""
    unordered = sorted({(min(pair), max(pair)) for pair in NUMBERS})
    random.Random(seed).shuffle(unordered)
    kept = set(unordered[: round(held_out * len(unordered))])
    held = tuple(pair for pair in NUMBERS if (min(pair), max(pair)) in kept)
    return tuple(pair for pair in NUMBERS if (min(pair), max(pair)) not in kept), held


def draw_problems(
    numbers: tuple[tuple[int, int], ...], chance: random.Random, *, share_of_first: float = 0.5
) -> Iterator[Problem]:
    """Problems without end: numbers, names and thing uniform; the first skill with probability `share_of_first`."""
    while True:
        skill = SKILLS[0] if chance.random() < share_of_first else SKILLS[1]
        first, second = chance.choice(numbers)
        one, two = chance.sample(NAMES, 2)
        yield Problem(skill, first, second, (one, two), chance.choice(THINGS))


def write(problem: Problem, habit: Habit, chance: random.Random) -> str:
    """An answer to the problem by an author of this habit."""
    meant = problem.confused if chance.random() < habit.confusion else problem.answer
    return " ".join(chance.choice(WORDS) if chance.random() < habit.slip else digit for digit in meant.split())
