"""A reward of one's own: run only where it is named, and part of what the run is."""

from typing import Any

import pytest

from multiref.errors import ConfigError
from multiref.runs.document import Document
from multiref.runs.rewards import JudgeSetting, RewardSetting, make_rewards, read_rewards

TEXT = "def correct(prompts, completions, **columns):\n    return [float('4' in text) for text in completions]\nother = 3\n"


def setting(path: Any, **more: object) -> Any:
    return Document({"kind": "python", "path": str(path), "name": "correct", **more}, "run.yaml").validate(RewardSetting)


def test_the_function_scores_and_its_hash_is_a_part_of_the_settings(tmp_path: Any) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(TEXT)
    (reward,) = make_rewards([setting(path, weight=2.0)])
    assert (reward.name, reward.weight) == ("correct", 2.0) and reward.function(["q"] * 2, ["4", "5"]) == [1.0, 0.0]
    before = setting(path).model_dump()
    path.write_text(TEXT + "# changed\n")
    after = setting(path).model_dump()
    assert len(before["sha256"]) == 64 and before["sha256"] != after["sha256"]
    with pytest.raises(ConfigError, match=r"has changed"):
        setting(path, sha256=before["sha256"])
    words, hashes = tmp_path / "words.txt", set()
    for values in ("good\t1\n", "good\t-1\n"):  # a lexicon's too
        words.write_text(values)
        for kind in (RewardSetting, JudgeSetting):
            hashes.add(Document({"kind": "lexicon", "path": str(words)}, "run.yaml").validate(kind).model_dump()["sha256"])
    assert len(hashes) == 2
    made = setting(path)
    path.write_text(TEXT)
    with pytest.raises(ConfigError, match=r"has changed"):  # between the reading of the settings and the run
        make_rewards([made])
    assert make_rewards(read_rewards([f"python={path}:correct"], answers=False))[0].name == "correct"


@pytest.mark.parametrize(("text", "name", "words"), [
    ("def", "correct", "cannot be run: SyntaxError"),
    ("1 / 0", "correct", "cannot be run: ZeroDivisionError"),
    (TEXT, "wrong", "no function 'wrong'; found correct"),
    (TEXT, "other", "no function 'other'"),
], ids=range(4))  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Any, text: str, name: str, words: str) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"rewards.py.*{words}"):
        make_rewards([setting(path, name=name)])


def test_nothing_is_imported_by_a_dotted_path(tmp_path: Any) -> None:
    for path in ("os.path", str(tmp_path), str(tmp_path / "absent.py")):
        with pytest.raises(ConfigError, match=r"run.yaml.*(does not exist|is a folder)"):
            setting(path)
