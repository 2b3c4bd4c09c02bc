"""The lexicon reward against sums by hand, and its refusals."""

import pytest

from multiref.errors import DataError
from multiref.training.online import lexicon_reward


def test_values_add_up_over_the_square_root_of_the_words(tmp_path):
    """good +3, bad −2: "Good, good day!" is (3 + 3 + 0)/√3; "bad" is −2/√1; no words is 0."""
    file = tmp_path / "words.txt"
    file.write_text("good\t3\nbad\t-2\n\n")
    reward = lexicon_reward(file)
    assert reward(["", "", ""], ["Good, good day!", "bad", "…"]) == pytest.approx([6 / 3**0.5, -2.0, 0.0])


@pytest.mark.parametrize("text, says", [("good\n", ":1"), ("good\t3\nbad\tx\n", ":2")])
def test_a_line_without_a_number_is_named(tmp_path, text, says):
    file = tmp_path / "words.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        lexicon_reward(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        lexicon_reward(tmp_path / "nowhere.txt")


def test_answers_of_a_conversation_are_read(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("good\t3\n")
    assert lexicon_reward(file)([], [({"role": "assistant", "content": "good dog"},), "good"]) == pytest.approx([3 / 2**0.5, 3])
