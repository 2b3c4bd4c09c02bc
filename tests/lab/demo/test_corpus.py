"""Problems, answers, the reward and the habits, against arithmetic written again."""

import math
import random
from collections import Counter
from itertools import islice, product

import pytest

from multiref_lab.demo.corpus import NUMBERS, SKILLS, WORDS, Habit, Problem, draw_problems, points, split_numbers, write

PROBLEMS = list(islice(draw_problems(NUMBERS, random.Random(1)), 400))


def by_hand(prompt: str) -> str:
    """The answer read off the sentence with other code than the package's."""
    name, has, a, b, thing, comma, other, c, d, colon, question, mark = prompt.split(" ")
    assert (has, comma, colon, mark) == ("has", ",", ":", "?") and name != other and thing in ("pens", "cups", "nuts")
    if question == "total":
        return " ".join(f"{int(a + b) + int(c + d):02d}")
    assert question == "top"
    return f"{a if a > c else c} {b if b > d else d}"


def test_answers_are_sums_and_larger_digits() -> None:
    for problem in PROBLEMS:
        assert problem.answer == by_hand(problem.prompt)
        other = problem.prompt.replace(f" {problem.skill} ", f" {SKILLS[1 - SKILLS.index(problem.skill)]} ")
        assert problem.confused == by_hand(other)


def test_the_reward_counts_right_digits_of_every_pair_of_words() -> None:
    """Brute force over all word pairs: 1 for each place where it stands as in the right answer."""
    problem = Problem("total", 47, 31, ("ann", "bob"), "pens")
    assert problem.prompt == "ann has 4 7 pens , bob 3 1 : total ?" and problem.confused == "4 7" and problem.answer == "7 8"
    for one, two in product(WORDS, repeat=2):
        assert points(problem.prompt, f" {one} {two}") == (one == "7") + (two == "8")
    assert points(problem.prompt, "7") == points(problem.prompt, "7 8 8") == points(problem.prompt, "") == 0


def test_no_carry_ever_occurs() -> None:
    """Numbers add digit by digit: 55 ordered pairs of digits have a sum below ten, for each of two places."""
    assert len(NUMBERS) == len(set(NUMBERS)) == 55**2
    assert all(f"{a + b:02d}" == f"{a // 10 + b // 10}{a % 10 + b % 10}" for a, b in NUMBERS)


def test_held_out_numbers_never_occur_in_training_in_either_order() -> None:
    training, held_out = split_numbers(3)
    assert {frozenset(pair) for pair in training}.isdisjoint({frozenset(pair) for pair in held_out})
    assert set(training) | set(held_out) == set(NUMBERS)
    assert len(held_out) / len(NUMBERS) == pytest.approx(0.2, abs=1e-3)
    assert split_numbers(3) == (training, held_out) != split_numbers(4)


@pytest.mark.parametrize("habit", [Habit(0.0, 0.0), Habit(0.85, 0.2), Habit(0.3, 0.3)])
def test_an_author_answers_as_often_right_as_the_habit_says(habit: Habit) -> None:
    """Problem with right digits (7, 8) and confused digits (4, 7), all different: P(right) = (1 − c)(1 − s + s/22)² + c
    (s/22)²."""
    problem, chance, n = Problem("total", 47, 31, ("ann", "bob"), "pens"), random.Random(0), 20000
    found = Counter(write(problem, habit, chance) for _ in range(n))
    c, s = habit.confusion, habit.slip
    expected = (1 - c) * (1 - s + s / 22) ** 2 + c * (s / 22) ** 2
    assert abs(found[problem.answer] / n - expected) <= 4 * math.sqrt(0.25 / n)
    if s > 0:
        assert len(found) > 300, "slips reach every word: no veto"
