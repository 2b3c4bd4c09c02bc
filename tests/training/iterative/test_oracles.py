"""Oracles: a function, a reward as judge, a person through files; and everything that they can do wrong."""

import json
import math

import numpy as np
import pytest
import torch

from multiref.errors import DataError
from multiref.training.iterative import FunctionOracle, HumanLabels, LabelsLate, RewardOracle
from multiref.training.iterative.labels import Labels, check_answers


def decode(prompts, completions):
    return [f"x{int(x)}" for x in prompts], ["".join(map(str, row)) for row in completions.tolist()]


PROMPTS, FIRST, SECOND = torch.tensor([0, 1, 0]), torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[0, 0], [1, 1], [2, 2]])
GENERATOR = torch.Generator()


def ask(oracle):
    return oracle(PROMPTS, FIRST, SECOND, GENERATOR.manual_seed(0))


def test_function_and_reward_oracles():
    assert ask(FunctionOracle(lambda p, a, b: [1, 0, 1], decode)).tolist() == [1, 0, 1]
    sure = RewardOracle(lambda p, c: [1000.0 * int(text) for text in c], decode)
    assert ask(sure).tolist() == [1, 1, 1]


def test_what_a_judge_of_online_training_says_is_fine_here_too():
    """Numbers of numpy and torch are numbers; a text is none."""
    assert ask(FunctionOracle(lambda p, a, b: np.array([1, 0, 1], dtype=np.float32), decode)).tolist() == [1, 0, 1]
    assert ask(FunctionOracle(lambda p, a, b: torch.tensor([1.0, 0.0, 1.0]), decode)).tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="pair 1 is answered '0'"):
        ask(FunctionOracle(lambda p, a, b: [1, "0", 1], decode))


def test_a_judge_labels_by_bradley_terry():
    """Margin 1 at temperature ½: P = σ(2)."""
    oracle = RewardOracle(lambda p, c: [float(text[0]) for text in c], decode, temperature=0.5)
    n = 20_000
    wins = oracle(torch.zeros(n).long(), torch.full((n, 1), 1), torch.full((n, 1), 0), GENERATOR.manual_seed(0)).mean()
    assert abs(float(wins) - 1 / (1 + math.exp(-2))) < 0.012


@pytest.mark.parametrize("answers", [[1, math.nan, 0], [1, 2, 0], [1, None, 0], [1, 0], [1, -1, 0]])
def test_an_oracle_that_prefers_neither_side_is_refused(answers):
    with pytest.raises(DataError, match="expected"):
        ask(FunctionOracle(lambda p, a, b: answers, decode))


def test_an_oracle_that_is_late_says_so():
    def slow(prompts, first, second):
        raise TimeoutError("60 s")

    with pytest.raises(LabelsLate, match="3 pairs in time"):
        ask(FunctionOracle(slow, decode))


def test_a_judge_that_raises_is_one_message():
    with pytest.raises(DataError, match="the judge raised KeyError: 'x0'"):
        ask(FunctionOracle(lambda p, a, b: {}[p[0]], decode))


def test_a_judge_without_a_number_is_refused():
    with pytest.raises(DataError, match="neither side"):
        ask(RewardOracle(lambda p, c: [math.nan] * len(c), decode))


@pytest.mark.parametrize("bad", [0.5, math.nan, 2.0])
def test_labels_must_be_sides(bad):
    with pytest.raises(DataError, match="neither side"):
        check_answers(torch.tensor([1.0, bad]))


def test_labels_keep_the_winner_first():
    labels = Labels()
    pairs = torch.stack((FIRST, SECOND), 1)
    labels.add(PROMPTS, pairs, torch.tensor([1.0, 0.0, 1.0]))
    _, kept = labels.take(torch.arange(3))
    assert kept[:, 0].tolist() == [[1, 2], [1, 1], [5, 6]]


class TestExchange:
    def asked(self, folder):
        (path,) = folder.glob("pairs-*.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()], folder / path.name.replace("pairs", "labels")

    def test_write_wait_resume(self, tmp_path):
        """Nothing there: late, and the pairs are written. A person labels some: still late.
        All: the labels, by id, whatever their order."""
        oracle = HumanLabels(tmp_path, decode)
        with pytest.raises(LabelsLate, match="0 of 3"):
            ask(oracle)
        rows, answers = self.asked(tmp_path)
        assert [row["prompt"] for row in rows] == ["x0", "x1", "x0"] and rows[1]["first"] == "34"
        lines = [json.dumps({"id": row["id"], "preferred": side}) for row, side in zip(rows, ("first", "second", "first"))]
        answers.write_text(lines[2] + "\n" + lines[0][:10])  # one whole line, one still being written
        with pytest.raises(LabelsLate, match="1 of 3"):
            ask(oracle)
        answers.write_text("\n".join(reversed(lines)) + "\n")
        assert ask(HumanLabels(tmp_path, decode)).tolist() == [1, 0, 1]
        assert len(list(tmp_path.glob("pairs-*"))) == 1

    def test_the_same_pairs_at_another_moment_are_labelled_anew(self, tmp_path):
        oracle, generator = HumanLabels(tmp_path, decode), torch.Generator().manual_seed(0)
        for _ in range(2):
            with pytest.raises(LabelsLate):
                oracle(PROMPTS, FIRST, SECOND, generator)
            torch.rand(1, generator=generator)
        assert len(list(tmp_path.glob("pairs-*"))) == 2

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"id": "other-0", "preferred": "first"}', "none of the 3 pairs"),
            ('{"id": "%s", "preferred": "both"}', "neither side"),
            ('{"id": "%s", "preferred": null}', "neither side"),
            ("not json", "expected"),
            ('["%s"]', "expected"),
        ],
    )
    def test_bad_lines_name_file_and_row(self, tmp_path, line, message):
        with pytest.raises(LabelsLate):
            ask(HumanLabels(tmp_path, decode))
        rows, answers = self.asked(tmp_path)
        answers.write_text((line.replace("%s", rows[0]["id"])) + "\n")
        with pytest.raises(DataError, match=message) as error:
            ask(HumanLabels(tmp_path, decode))
        assert f"{answers}:1" in str(error.value)

    def test_duplicates_are_refused(self, tmp_path):
        with pytest.raises(LabelsLate):
            ask(HumanLabels(tmp_path, decode))
        rows, answers = self.asked(tmp_path)
        answers.write_text((json.dumps({"id": rows[0]["id"], "preferred": "first"}) + "\n") * 2)
        with pytest.raises(DataError, match="a second time"):
            ask(HumanLabels(tmp_path, decode))
