"""GSM8K: the answer in a solution, rewards that are bounded, pass rates with intervals."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiref.data.gsm8k import (
    HIGHEST_REWARD,
    extract_answer,
    pass_at_k,
    pass_rate,
    prompts,
    read_gsm8k,
    rewards,
    same_number,
)
from multiref.errors import ArgumentError, DataError

GOOD = "<reasoning>\n16 - 3 = 13\nso 13 are left\n</reasoning>\n<answer>\n18\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
        ("profit of 70,000\n#### $70,000.00", "70000.00"),
        ("first 3\nA: 3 + 4 = 7", "7"),
        ("A: 5\nno, wait\nA: -6", "-6"),
        ("<answer>\n18\n</answer> see 99", "18"),
        (r"thus \boxed{3/4}", "3/4"),
        ("The answer is 12 apples, not 15.", "12"),
        ("She has 4 and then 5.", "5"),
        ("<<48/2=24>>", None),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_answer_is_found(text, number):
    assert extract_answer(text) == number


def test_numbers_are_compared_as_numbers():
    assert same_number("18.00", "18") and same_number("1/2", "0.5")
    assert not same_number("1/0", "1") and not same_number(None, "1") and not same_number("-3", "3")


@given(st.integers(-(10**9), 10**9), st.booleans())
def test_any_integer_survives_its_writing(value, thousands):
    written = f"{value:,}" if thousands else str(value)
    assert same_number(extract_answer(f"1 + 1 = 2\n#### {written}"), str(value))


def total(text, answer="18"):
    return sum(f([text], [answer])[0] if name == "correctness" else f([text])[0] for name, f in rewards().items())


def test_a_perfect_solution_has_the_highest_reward_also_over_several_lines():
    """The script's patterns lack DOTALL, so reasoning of two lines never matches there (theory M4)."""
    assert total(GOOD) == HIGHEST_REWARD
    message = ({"role": "assistant", "content": GOOD},)
    assert sum(f([message], ["18"])[0] if name == "correctness" else f([message])[0] for name, f in rewards().items()) == 4


@given(
    st.lists(
        st.sampled_from(
            ["<reasoning>\n", "\n</reasoning>\n", "<answer>\n", "\n</answer>", "\n<answer>\n", "18", "x" * 900, "\n"]
        ),
        max_size=9,
    )
)
def test_rewards_are_bounded(parts):
    """The script's count of marks falls without bound behind the last mark."""
    assert 0 <= total("".join(parts)) <= HIGHEST_REWARD


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_subsets(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [i < c for i in range(n)]
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(c, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_rates_have_intervals():
    """Wilson's interval of 8 of 10 at 95 %: (0.4902, 0.9433)."""
    mean, low, high = pass_rate([[True]] * 8 + [[False]] * 2, 1)
    assert (mean, low, high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    mean, low, high = pass_rate([[True, False, False, False], [True, True, False, False]], 2)
    assert mean == pytest.approx((0.5 + 5 / 6) / 2) and low < mean < high
    with pytest.raises(ArgumentError):
        pass_at_k(1, 3, 4)


def test_the_interval_of_a_mean_by_hand():
    """1, 2 and 3 of 4 right, k = 2: pass@2 = 1 − C(3,2)/6, 1 − C(2,2)/6, 1 − 0 = 1/2, 5/6, 1. Mean 7/9; squared deviations
    (5/18)², (1/18)², (4/18)² sum to 42/324; divided by n − 1 = 2 and by n = 3: (7/324), so the standard error is √7/18 =
    0.146986.
    One problem alone says nothing of others: its interval is all of [0, 1]."""
    rows = [[True, False, False, False], [True, True, False, False], [True, True, True, False]]
    mean, low, high = pass_rate(rows, 2, z=1.5)
    assert (mean, low, high) == pytest.approx(
        (7 / 9, 7 / 9 - 1.5 * 7**0.5 / 18, min(1.0, 7 / 9 + 1.5 * 7**0.5 / 18)), rel=1e-12
    )
    assert high < 1 and pass_rate(rows, 2)[2] == 1.0  # 1.96 standard errors above 7/9 is above 1, and cut
    assert pass_rate(rows[:1], 2) == (0.5, 0.0, 1.0)


def test_wilsons_interval_by_hand():
    """p̂ = 1/4, n = 4, z = 2: centre (1/4 + 4/8)/(1 + 1) = 3/8, half 2 √(3/64 + 4/64)/(1 + 1) = √7/8."""
    found = pass_rate([[True], [False], [False], [False]], 1, z=2.0)
    assert found == pytest.approx((0.25, 3 / 8 - 7**0.5 / 8, 3 / 8 + 7**0.5 / 8), rel=1e-12)


def test_files_are_read_and_bad_rows_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}) + "\n\n")
    (problem,) = read_gsm8k(path)
    assert problem.answer == "1002" and problem.origin == "a.jsonl:1"
    assert prompts([problem], style="plain") == [{"prompt": "How many?\n", "answer": "1002"}]
    assert [m["role"] for m in prompts([problem])[0]["prompt"]] == ["system", "user"]
    path.write_text('{"question": "How many?", "answer": "two"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1.*####"):
        read_gsm8k(path)
    path.write_text('{"question": "How many?"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: found question"):
        read_gsm8k(path)
    with pytest.raises(ArgumentError, match="style"):
        prompts([problem], style="fancy")


@pytest.mark.shared
def test_the_extractor_agrees_with_the_labels_of_real_solutions(shared):
    """2,640 solutions of four models, labelled right or wrong by their authors. The mark is 99 %; every one agrees."""
    rows = [json.loads(line) for line in (shared / "data/gsm8k/example_model_solutions.jsonl").read_text().splitlines()]
    wrong, count = [], 0
    for number, row in enumerate(rows, 1):
        truth = extract_answer(row["ground_truth"])
        for name in row.keys() - {"question", "ground_truth"}:
            count += 1
            if same_number(extract_answer(row[name]["solution"]), truth) != row[name]["is_correct"]:
                wrong.append((number, name))
    assert count == 2640 and wrong == []


@pytest.mark.shared
def test_every_real_problem_is_read(shared):
    assert len(read_gsm8k(shared / "data/gsm8k/train.jsonl")) == 7473
    assert len(read_gsm8k(shared / "data/gsm8k/test.jsonl")) == 660


def test_rewards_are_called_as_trl_and_the_loop_call_theirs():
    for function in rewards().values():
        assert len(function(prompts=["q", "q"], completions=[GOOD, ""], answer=["18", "18"], completion_ids=[[1], [2]])) == 2
