"""What runs say by name: judges and win rates, clip rules, f-divergences without a pool, private labels."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import multiref as mr
from multiref.data import privatise
from multiref.errors import ConfigError, DataError
from multiref.runs.rewards import JudgeSetting, read_rewards
from multiref.training.iterative import PrivateOracle
from multiref.training.online import ClipObjective, OnlineTrainer, WinRate
from tests.runs.doing import do, settings

pytestmark = pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
JUDGE = """def shorter(prompts, first, second):
    return [0.5 if len(a) == len(b) else float(len(a) < len(b)) for a, b in zip(first, second)]
"""


@pytest.fixture
def config(folders, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the cat sat {n}"}) + "\n" for n in range(3)))
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "words.txt").write_text("dog\t2\ncat\t-1\nthe\t1\n")
    return {
        "model": folders["policy"], "beta": 0.2, "output": str(tmp_path / "run"), "check_saved": False,
        "references": [{"name": "policy", "model": folders["policy"]}, {"name": "other", "model": folders["other"]}],
    }  # fmt: skip


@pytest.fixture
def online(config, tmp_path):
    judge = {"kind": "python", "path": str(tmp_path / "judge.py"), "name": "shorter"}
    return config | {
        "task": "online", "prompts": [{"path": str(tmp_path / "prompts.jsonl")}],
        "rewards": [{"kind": "win_rate", "judge": judge, "both_orders": True}], "method": {"name": "rloo", "group": 4},
        "training": {"steps": 1, "prompts_per_step": 2, "max_new_tokens": 4},
    }  # fmt: skip


def test_a_win_rate_by_a_judge_of_ones_own_is_the_reward(online, tmp_path, monkeypatch):
    """Half the group's share on average, whatever the policy; the judge's file is part of what the run is."""
    seen = []
    begin = OnlineTrainer.__init__

    def watched(self, *args, **given):
        begin(self, *args, **given)
        seen.append(self.rewards[0].function)

    monkeypatch.setattr(OnlineTrainer, "__init__", watched)
    folder = do({**online, "regularizer": "JensenShannon"})
    (reward,) = seen
    assert isinstance(reward, WinRate) and (reward.group, reward.both_orders) == (4, True)
    assert reward(["p"] * 4, ["a", "bb", "bb", "ccc"]) == [3.5 / 4, 0.5, 0.5, 0.5 / 4]
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["rewards/win_rate/mean"] == pytest.approx(0.5, abs=1e-12)
    assert "JS(π, π_k)" in (folder / "model" / "README.md").read_text()
    (tmp_path / "judge.py").write_text(JUDGE + "# another\n")
    with pytest.raises(ConfigError, match="sha256"):
        do({**online, "regularizer": "JensenShannon"})


def test_judges_of_a_reward_are_bradley_terry(tmp_path):
    (tmp_path / "words.txt").write_text("dog\t2\ncat\t-1\n")
    from multiref.runs.document import Document

    given = {"kind": "lexicon", "path": str(tmp_path / "words.txt"), "temperature": 0.5}
    judged = Document(given, "run.yaml").validate(JudgeSetting).make()
    assert judged.judge(["p"], ["dog"], ["cat"]) == pytest.approx([1 / (1 + math.exp(-6))], abs=1e-15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rewards": [{"kind": "win_rate"}]}, r"rewards\[0\].judge: missing"),
        ({"rewards": [{"kind": "win_rate", "judge": {"kind": "coin"}}]}, r"judge.kind: found 'coin', expected one of"),
        ({"method": "reinforce"}, r"method.*leave-one-out"),
        ({"method": {"name": "grpo", "standardise": True}}, r"method.*leave-one-out"),
        ({"evaluation": {"prompts": [{"path": "x"}]}}, "wins against itself half of the time"),
        ({"clip": {"rule": "hard", "tau": 1}}, "clip.rule: found 'hard', expected one of reward, objective"),
        ({"clip": {"rule": "reward", "tau": 0}}, "clip.tau: expected a positive"),
        ({"clip": {"rule": "reward", "tau": 5}}, "clip.tau: ClipReward: whether"),
        ({"clip": {"rule": "objective", "tau": 5, "reward_range": 1, "disagreement": 1}}, r"safe from 7 on"),
        ({"clip": {"rule": "reward", "tau": 5, "biased": True}, "penalty": "k3"}, "clip: .*keep one"),
        ({"clip": {"rule": "reward", "tau": 9, "reward_range": 1, "disagreement": 1}, "adaptive_beta": {"target": 1}}, "β"),
        ({"clip": {"rule": "reward", "tau": 5, "biased": True}, "regularizer": "Jeffreys"}, "expected ReverseKL or PooledKL"),
    ],
    ids=["no judge", "coin", "reinforce", "standardise", "evaluation", "rule", "tau", "unknown", "unsafe", "both", "adaptive",
         "regularizer"],
)  # fmt: skip
def test_what_plays_another_game_or_moves_the_optimum_is_refused_when_it_is_read(online, change, words):
    with pytest.raises(ConfigError, match=words):
        settings({**online, **change})


def test_a_win_rate_elsewhere_is_refused(tmp_path):
    (tmp_path / "rewards.yaml").write_text("rewards: [{kind: win_rate, judge: {kind: lexicon, path: x}}]\n")
    from multiref.runs.rewards import make_rewards

    with pytest.raises(ConfigError, match="half of the time"):
        make_rewards(read_rewards([str(tmp_path / "rewards.yaml")], answers=False))


def test_a_clip_of_the_file_is_the_trainers_penalty(online):
    run = settings({**online, "clip": {"rule": "objective", "tau": 9, "reward_range": 1, "disagreement": [1, 0.5]}})
    assert run.estimator() == ClipObjective(9.0, 1.0, [1.0, 0.5]) and run.estimator().exact
    folder = do({**online, "clip": {"rule": "reward", "tau": 1e-6, "biased": True}})
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["clipped"] > 0


@pytest.mark.parametrize("name", ["JensenShannon", "Jeffreys"])
def test_divergences_without_a_pool_have_names_and_words(config, name):
    stated = (run := settings({**config, "data": "pairs.jsonl", "regularizer": name})).objective.of(run)
    assert stated.objective.regularizer == getattr(mr.FDivergence, {"Jeffreys": "jeffreys"}.get(name, "jensen_shannon"))()
    assert f"f of {name}" in stated.formula and "pool" not in stated.formula and name in stated.words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["JensenShannon", "Jeffreys"])
def test_preference_training_under_a_divergence_without_a_pool(config, tmp_path, name):
    """At the start π = π_1, so that the margin is β w_2 Δ f'(π/π_2), by hand."""
    rows = [{"prompt": "the cat", "chosen": f" {w} sat", "rejected": f" sat the {w}"} for w in ("dog", "log", "mat", "Max")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 1, "logging_steps": 1, "use_cpu": True, "per_device_train_batch_size": 4}
    run = config | {"data": str(tmp_path / "pairs.jsonl"), "regularizer": name, "training": training}
    folder = do(run)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    scores = mr.References({each["name"]: {"model": each["model"]} for each in run["references"]}).score(
        mr.data.read_pairs(rows), store=folder / "scores"
    )
    columns = [torch.from_numpy(scores.columns([r["prompt"] for r in rows], [r[side] for r in rows])) for side in
               ("chosen", "rejected")]  # fmt: skip
    rule = getattr(mr.FDivergence, {"JensenShannon": "jensen_shannon"}.get(name, "jeffreys"))([0.5, 0.5])
    rewards = [rule.implicit_reward(scores.logps[0, at], scores.logps[:, at], beta=0.2) for at in columns]
    expected = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean()
    assert line["loss"] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("task", ["preference", "reward"])
def test_private_data_is_known_and_its_loss_asked_for(config, tmp_path, task):
    rows = [{"prompt": f"the {w}", "chosen": " sat", "rejected": " the mat"} for w in ("cat", "dog", "log", "Max")]
    privatise(rows, 1.0).write(tmp_path / "private.jsonl")
    training = {"max_steps": 1, "logging_steps": 1, "use_cpu": True}
    run = config | {"data": str(tmp_path / "private.jsonl"), "training": training}
    if task == "reward":
        run = {key: value for key, value in run.items() if key not in ("references", "beta")} | {"task": "reward"}
    with pytest.raises(DataError, match=r"private.jsonl:1.*privacy: \{epsilon: 1\}"):
        settings(run).read()
    with pytest.raises(DataError, match="the loss is for ε = 2"):
        settings({**run, "privacy": {"epsilon": 2.0}}).read()
    assert len(settings({**run, "privacy": {"epsilon": 1.0}}).read()[0]) == 4
    smoothed = {"label_smoothing": 0.1} if task == "reward" else {"objective": {"kind": "preference", "label_smoothing": 0.1}}
    with pytest.raises(ConfigError, match="does not correct flipped labels"):
        settings({**run, **smoothed, "privacy": {"epsilon": 1.0}})
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        settings({**run, "privacy": {"epsilon": 0.0}})


@pytest.fixture
def bought(config, tmp_path):
    return config | {
        "task": "iterative", "prompts": str(tmp_path / "prompts.jsonl"), "labels": [8, 16],
        "oracle": {"kind": "python", "path": str(tmp_path / "judge.py"), "name": "shorter"}, "privacy": {"epsilon": 1.0},
        "method": {"name": "nash"}, "plan": {"steps": 1, "prompts": 2, "rollouts": 2}, "lora": {"r": 2}, "max_new_tokens": 4,
        "held_out": 4, "regularizer": "Jeffreys",
    }  # fmt: skip


def test_an_oracle_is_a_judge_of_ones_own_and_its_answers_are_private(bought, tmp_path):
    run = settings(bought)
    oracle = run.asked(run.oracle.make(), SimpleNamespace(decode=None))
    assert isinstance(oracle, PrivateOracle) and oracle.epsilon == 1.0
    assert oracle.oracle.function(["p"] * 2, ["a", "bb"], ["aa", "b"]) == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"oracle\.name: missing"):
        settings({**bought, "oracle": {"kind": "python", "path": str(tmp_path / "judge.py")}})


@pytest.mark.slow
def test_a_run_buys_private_labels_from_it_under_a_divergence_without_a_pool(bought):
    lines = [json.loads(line) for line in (do(bought) / "metrics.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [0, 8, 16] and "kl/other" in lines[-1] and "penalty" not in lines[-1]
