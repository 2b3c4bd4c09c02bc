"""`multiref train` with `task: online` and `task: distill`: a folder with everything, resumed exactly, mistakes named."""

import copy
import json
from pathlib import Path

import pytest

from multiref._progress import watched_by
from multiref.errors import ArgumentError, ConfigError, DataError, MultirefNotice
from multiref.runs import read_run
from multiref.runs.rewards import make_rewards
from tests.conftest import make_llama, make_tokenizer
from tests.runs.doing import do, make_two, settings

pytestmark = pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_two(tmp_path_factory, std=0.1, chat=True)


@pytest.fixture
def config(folders, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(json.dumps({"question": f"what is {n} plus {n}?", "answer": f"it is\n#### {2 * n}"}) + "\n" for n in range(4))
    )
    return {
        "task": "online", "model": folders["policy"], "beta": 0.1, "output": str(tmp_path / "run"),
        "references": [{"name": "policy", "model": folders["policy"], "weight": 0.5},
        {"name": "other", "model": folders["other"], "weight": 0.5}],
        "prompts": [{"path": str(problems), "kind": "gsm8k", "style": "plain"}],
        "rewards": [{"kind": "gsm8k"}, {"kind": "length", "target": 3}],
        "method": {"name": "rloo", "group": 2}, "evaluation": {"prompts": [{"path": str(problems), "kind": "gsm8k",
        "style": "plain"}], "samples": 2, "k": [1, 2]},
        "training": {"steps": 4, "prompts_per_step": 2, "max_new_tokens": 4, "learning_rate": 1e-3, "save_every": 1},
    }  # fmt: skip


def test_a_run_leaves_a_folder_and_a_killed_one_goes_on_to_the_same_end(config, tmp_path, monkeypatch):
    said, told = [], []
    with watched_by(lambda *each: told.append(each)):
        folder = do(config, say=said.append)
    assert "Optimum of this rule" in "\n".join(said)
    over = [what for what, done, of in told if 0 < of == done]
    assert [over.index("sampling"), over.count("sampling")] == [0, 3]  # before, after, and what is compared once it is saved
    assert {"config.yaml", "metrics.jsonl", "evaluation.json", "model", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and {"kl/policy", "kl/other", "rewards/length/mean"} <= set(
        lines[0]
    )
    figures = json.loads((folder / "evaluation.json").read_text())
    assert set(figures) == {"before", "after"} and {"pass@1", "pass@2", "reward"} <= set(figures["after"])

    from multiref.training.online import OnlineTrainer

    step = OnlineTrainer._one_step

    def dies(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self)

    again = {**config, "output": str(tmp_path / "killed")}
    monkeypatch.setattr(OnlineTrainer, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        do(again, say=said.append)
    monkeypatch.setattr(OnlineTrainer, "_one_step", step)
    said.clear()
    killed = do(again, say=said.append)
    assert "Going on from step 2." in said
    assert (killed / "model" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    again_lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["seconds/sampling"] < 600 and line["tokens_per_second"] > 0 for line in lines)
    plain, resumed = ([{k: v for k, v in line.items() if "second" not in k} for line in each] for each in (lines, again_lines))
    assert resumed == plain
    do(again, say=said.append)
    assert "nothing to do" in said[-1]


def test_adapters_of_one_base_under_sums_over_the_vocabulary_are_refused_before_the_folder_is_claimed(
    config, folders, tmp_path
):
    import peft

    for name in ("first", "second"):
        base = make_llama(len(make_tokenizer(chat=True)), std=0.1)
        worn = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=["q_proj"]))
        worn.save_pretrained(tmp_path / name)
    given = [
        {"name": name, "model": {"path": folders["policy"], "adapter": str(tmp_path / name)}} for name in ("first", "second")
    ]
    with pytest.raises(ArgumentError, match="share one base"):
        do({**config, "references": given, "penalty": "full_vocabulary"}, say=print)
    assert not Path(config["output"]).exists(), "other settings may still take the folder"


def test_distillation_with_routed_prompts(config, folders, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on the mat\n\nOnce upon a time there was\n")
    for reference in config["references"]:
        del reference["weight"]
    run = {key: value for key, value in config.items() if key not in ("rewards", "evaluation")} | {
        "task": "distill", "penalty": "per_token_reverse_kl",
        "prompts": [{"path": str(words), "words": 3, "weights": {"other": 1.0}}],
    }  # fmt: skip
    folder = do(run, say=lambda text: None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    half = {
        "method": {"name": "reinforce"},
        "text_share": 0.5,
        "output": str(tmp_path / "half"),
        "evaluation": {"prompts": run["prompts"]},
    }
    figures = json.loads((do({**run, **half}, say=lambda text: None) / "evaluation.json").read_text())
    assert set(figures["after"]) == {"words/student", "words/policy", "words/other"}
    assert figures["before"]["words/student"] == pytest.approx(figures["before"]["words/policy"])
    assert all(line["kl"] == pytest.approx(line["kl/other"]) for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "offline"}, "task: found 'offline', expected one of preference, reward, online"),
        ({"rewards": []}, "task: distill"),
        ({"task": "distill"}, "distillation has none"),
        ({"text_share": 0.5}, "text_share"),
        ({"rewards": [{"kind": "gsm9k"}]}, r"rewards\[0\].kind: found 'gsm9k', .*did you mean `gsm8k`"),
        ({"method": {"name": "rlo"}}, "did you mean `rloo`"),
        ({"method": {"name": "rloo", "grp": 4}}, "did you mean `group`"),
        ({"training": {"lr": 1e-3}}, "training.lr: unknown key"),
        ({"regularizer": "ReversKL"}, "did you mean `ReverseKL`"),
        ({"rewards": [{"kind": "lexicon"}]}, r"rewards\[0\].path: missing"),
        ({"prompts": [{"path": "x", "weights": {"other": 1.0}}]}, "weights of the references or of the prompts, found both"),
        ({"penalty": "k3_renormalized"}, "penalty: found 'k3_renormalized', .*did you mean `k3_renormalised`"),
        ({"warm_up": {"share": 0.5}}, "warm_up: expected only with task: distill"),
        ({"task": "distill", "rewards": None, "evaluation": None, "warm_up": {"share": 0.5}}, "one completion a prompt"),
        ({"start": "product"}, "for task: distill"),
        ({"task": "distill", "rewards": None, "evaluation": None, "start": "wide"}, "found 'wide'"),
        ({"server": {"endpoint": "http://127.0.0.1:1/v1"}}, "server: expected with lora"),
        ({"server": {"endpoint": "http://127.0.0.1:1/v1", "every": 0}}, "server.every: found 0"),
        ({"beta": 0.0, "clip": {"rule": "reward", "tau": 9.0, "reward_range": 1.0, "disagreement": 1.0}}, "clip: found it"),
        ({"beta": 0.0, "adaptive_beta": {"target": 1.0}}, "adaptive_beta: found it beside beta: 0"),
        ({"adaptive_beta": {"target": 1.0, "rate": 5.0}}, "adaptive_beta.rate: expected above 0 and below 5"),
        ({"prompts": ["x.jsonl"]}, "rewards: gsm8k needs the answer of each problem, which prompts of x.jsonl do not have"),
        ({"evaluation": {"prompts": []}}, "evaluation.prompts: found .*at least 1"),
        (
            {"rewards": [{"kind": "length"}], "evaluation": {"prompts": ["x.jsonl"], "k": [1, 4]}},
            "evaluation.k: pass@k counts right answers, and no reward here says what is right",
        ),
        ({"task": "distill", "rewards": None, "evaluation": None, "beta": 0.0}, "beta: found 0.* above 0"),
        ({"task": "distill", "rewards": None, "evaluation": None, "warm_up": {"share": 1.5}}, "warm_up.share: found 1.5"),
        ({"task": "distill", "rewards": None, "evaluation": None, "warm_up": {"max_new_tokens": -5}}, "warm_up.max_new_tokens"),
    ],
)
def test_mistakes_are_named(config, change, words):
    changed = {key: value for key, value in {**config, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=words):
        do(changed)
    assert not Path(config["output"]).exists()


def test_prompts_that_cannot_be_read_are_named(config, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\nnot json\n')
    run = {**config, "rewards": ["length"], "evaluation": {"prompts": config["prompts"]}}
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        do({**run, "prompts": [{"path": str(bad)}]}, say=lambda text: None)
    with pytest.raises(DataError, match="does not exist"):
        do({**run, "prompts": [{"path": str(tmp_path / "none.jsonl")}]}, say=lambda text: None)


def test_a_warm_up_and_the_floor(config, folders, tmp_path):
    """The lines of the warm-up know no KL, those after it do; evaluation.json has what is reached beside the floor,
    before and after."""
    words = tmp_path / "words.txt"
    words.write_text("the cat sat on\n\nthe mat and the dog sat on the log\n\nOnce upon a time there was a dog\n")
    run = {key: value for key, value in config.items() if key != "rewards"} | {
        "task": "distill", "penalty": "full_vocabulary", "method": {"name": "reinforce"}, "beta": 1.0,
        "warm_up": {"share": 0.5, "max_new_tokens": 6},
        "prompts": [{"path": str(words), "words": 2, "pieces": 10}],
        "evaluation": {"prompts": [{"path": str(words), "words": 2}], "floor": 2, "samples": 4, "particles": 16},
    }  # fmt: skip
    said = []
    folder = do(run, say=said.append)
    assert "Warm-up: 2 of 4 steps under per_token_forward_kl" in "\n".join(said)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ["kl" in line for line in lines] == [False, False, True, True] and all(
        "divergence/per_token" in line for line in lines
    )
    figures = json.loads((folder / "evaluation.json").read_text())
    assert {"words/kl", "words/floor", "words/kl/floor", "words/student"} <= set(figures["before"]) & set(figures["after"])
    no_text = {**run, "prompts": [{"path": str(words)}], "output": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match="need texts that follow"):
        do(no_text, say=said.append)


def test_a_student_that_is_a_product_of_its_teachers(config, folders, tmp_path):
    """Two experts, completions in groups, no texts; the floor is found once, and the model folder opens."""
    from multiref.models import load

    words = tmp_path / "words.txt"
    words.write_text("the cat sat on\n\nthe mat and the dog\n")
    run = {key: value for key, value in config.items() if key != "rewards"} | {
        "task": "distill", "penalty": "full_vocabulary", "beta": 1.0, "start": "product",
        "prompts": [{"path": str(words)}], "evaluation": {"prompts": [{"path": str(words), "words": 2}], "floor": 2,
        "samples": 4, "particles": 16},
    }  # fmt: skip
    folder = do(run, say=lambda text: None)
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["before"]["words/floor"] == figures["after"]["words/floor"]
    assert len(load(folder / "model").model.experts) == 2
    for wrong, said in (({"skip": 9}, "9 that are skipped"), ({}, "no text that follows")):
        with pytest.raises(ConfigError, match=said):  # before anything is loaded or written
            do({**run, "evaluation": {"prompts": [{"path": str(words), **wrong}]}, "output": str(tmp_path / "no")})
        assert not (tmp_path / "no").exists()
    remote = [{"name": "far", "endpoint": "http://127.0.0.1:9/v1", "weight": 1.0}]
    with pytest.raises(ConfigError, match="model folders"):
        do({**run, "references": remote, "output": str(tmp_path / "far")}, say=lambda text: None)


def test_a_product_opens_its_references_as_the_run_names_them(config, monkeypatch):
    """The pinned revision is what is copied; what cannot be copied and trained is refused."""
    from multiref.models import ModelSpec, load
    from multiref.runs import distill

    asked = []

    def watched(spec):
        asked.append(spec)
        return load(spec.path)

    monkeypatch.setattr(distill, "load", watched)
    first, second = config["references"]
    run = {key: value for key, value in config.items() if key not in ("rewards", "evaluation")} | {
        "task": "distill",
        "start": "product",
    }
    pinned = {"path": first["model"], "revision": "v1"}
    settings(run, references=[{**first, "model": pinned}, second]).student(None)
    assert asked == [ModelSpec(first["model"], revision="v1"), ModelSpec(second["model"])]
    quantised = {"path": first["model"], "quantization": "int8"}
    with pytest.raises(ConfigError, match="without adapters or quantization"):
        settings(run, references=[{**first, "model": quantised}, second]).student(None)


def test_a_product_is_its_teachers_on_the_card_and_in_memory_and_a_page_leads_with_what_moved(config, tmp_path):
    """A card names every source, too. (Of distillation the reward is 0 throughout.)"""
    words = [tmp_path / f"{name}.txt" for name in "ab"]
    for path in words:
        path.write_text("the cat sat on\n\nthe mat and the dog\n")
    run = {key: value for key, value in config.items() if key not in ("rewards", "evaluation")} | {
        "task": "distill", "start": "product", "prompts": [{"path": str(path)} for path in words], "penalty": "full_vocabulary",
    }  # fmt: skip
    run["training"] = run["training"] | {"steps": 2}
    one, two = settings({**run, "start": "model"}).memory(), settings(run).memory()
    assert two[0] == 2 * one[0]
    folder = do(run)
    card = (folder / "model" / "README.md").read_text()
    places = [Path(each["model"]).name for each in run["references"]]
    assert f"from `the product of …/{places[0]}, …/{places[1]}` on `…/a.txt, …/b.txt (4 prompts)`" in card
    page = (folder / "report.html").read_text()
    assert "kl: " in page and "reward: 0" not in page


@pytest.mark.parametrize("too_long", ["drop", "error"])
def test_prompts_without_room_are_left_out_or_refused_also_of_the_evaluation(too_long, config, tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": "the cat " * n}) + "\n" for n in (1, 200)))
    run = {**config, "rewards": ["length"], "too_long": too_long}
    run |= {"evaluation": {"prompts": [str(long)], "samples": 2}, "training": {**config["training"], "steps": 1}}
    said = []
    if too_long == "error":
        with pytest.raises(ConfigError, match="1 of 2 prompts leave no room for 4 new tokens in a context of 128"):
            do(run, say=said.append)
    else:
        do(run, say=said.append)
        assert any("Left out 1 of 2 prompts that leave no room" in line for line in said)


def test_two_rewards_of_one_kind_have_names_of_their_own(config, tmp_path):
    for name, line in (("first", "the\t1\n"), ("second", "cat\t2\n")):
        (tmp_path / name).write_text(line)
    given = [{"kind": "lexicon", "path": str(tmp_path / name)} for name in ("first", "second")]
    made = make_rewards(settings(config, rewards=[*given, "length"], evaluation={"prompts": config["prompts"]}).rewards)
    assert [reward.name for reward in made] == ["lexicon", "lexicon-2", "length"]
    assert [reward.function([""], ["the cat"]) for reward in made[:2]] == [[1 / 2**0.5], [2 / 2**0.5]]


def test_evaluation_files_of_one_name_are_all_kept(config, tmp_path):
    """Also where a file is already called as a second one would be."""
    sources = []
    for n, name in enumerate(("a/test-2", "b/test", "c/test")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.txt").write_text(f"prompt {n}\n")
        sources.append({"path": str(tmp_path / f"{name}.txt")})
    run = settings(config, rewards=["length"], evaluation={"prompts": sources})
    found = run.held_out(run.evaluation.prompts, text=False)
    assert {name: rows[0]["prompt"] for name, rows in found.items()} == {
        "test-2": "prompt 0",
        "test": "prompt 1",
        "test-3": "prompt 2",
    }


def test_a_run_whose_completions_a_server_draws(config, folders, tmp_path):
    """A LoRA policy, pushed at every step: what the server draws is on-policy, so that the ratio is one;
    the model folder holds the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.training.online.sampling_server import sampling

    base = AutoModelForCausalLM.from_pretrained(folders["policy"]).eval()
    open_adapter = lambda path: PeftModel.from_pretrained(copy.deepcopy(base), path).eval()  # noqa: E731
    with sampling(base, opener=open_adapter) as server:
        run = {
            **config,
            "lora": {"r": 2, "target_modules": ["q_proj"]},
            "server": {"endpoint": server.endpoint},
            "evaluation": None,
        }
        run["training"] = {**config["training"], "learning_rate": 0.1}
        folder = do(run, say=lambda text: None)
        loads = [body["lora_path"] for path, body in server.requests if path == "load_lora_adapter"]
    assert len(loads) == len(set(loads)) == 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["sampling_ratio"] == pytest.approx(1, abs=1e-4) for line in lines)
    assert (folder / "model" / "adapter_config.json").exists()


def test_prompts_and_the_texts_that_follow_them(config, tmp_path):
    from multiref.runs.prompts import Prompts

    words = tmp_path / "words.txt"
    words.write_text("one two\n\nthree four five\n\nsix\n\nseven eight\n")
    rows = Prompts(path=str(words), words=1, pieces=10).rows()
    assert rows == [
        {"prompt": "one", "text": " two\n\nthree four five", "unfinished": True},
        {"prompt": "six\n\nseven", "text": " eight", "unfinished": True},
    ]
    with pytest.raises(ConfigError, match="none beyond the 4 that are skipped"):
        Prompts(path=str(words), skip=4).rows()
    words.write_text("a prompt\nanother one\n")
    with pytest.warns(MultirefNotice, match="one text of 2 lines; expected an empty line between texts"):
        assert len(Prompts(path=str(words)).rows()) == 1
    (first, *_) = Prompts(path=config["prompts"][0]["path"], kind="gsm8k", words=2, weights={"b": 1.0}).rows(["a", "b"])
    assert first == {"prompt": "what is", "text": " 0 plus 0?\nit is\n#### 0", "unfinished": False, "weights": [0.0, 1.0]}


@pytest.mark.parametrize("name", ["gsm8k-0.5b", "online-stories", "distill", "distill-mixed", "real-gsm8k", "real-distill"])
def test_recipes_are_complete(name):
    run = read_run(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert run.task in ("online", "distill") and run.method.make().group >= 1 and run.training.make().steps >= 20


def test_a_model_that_was_replaced_between_is_named(config, folders, tmp_path, monkeypatch):
    """A LoRA's base, a reference, a reward model, a judge: what training went on with would be another run. Put back, it goes
    on."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from multiref.training.online import OnlineTrainer
    from multiref.training.reward import open_reward_model

    reward = open_reward_model(folders["policy"], device="cpu")
    for name in ("base", "first", "second", "scorer", "judge"):
        shutil.copytree(folders["policy"], tmp_path / name)
        if name in ("scorer", "judge"):
            reward.model.save_pretrained(tmp_path / name)
    del config["evaluation"]
    given = config | {
        "model": str(tmp_path / "base"), "lora": {"r": 1},
        "references": [{"name": name, "model": str(tmp_path / name)} for name in ("first", "second")],
        "rewards": [
            {"kind": "model", "path": str(tmp_path / "scorer")},
            {"kind": "win_rate", "judge": {"kind": "reward_model", "path": str(tmp_path / "judge")}},
        ],
    }  # fmt: skip
    monkeypatch.setattr(OnlineTrainer, "train", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        do(given)
    for name in ("base", "second", "scorer", "judge"):
        file = tmp_path / name / "model.safetensors"
        kept, weights = file.read_bytes(), load_file(file)
        key = next(key for key in sorted(weights) if "mlp" in key)
        save_file(weights | {key: weights[key] + torch.ones(1)}, file, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=rf"began with another .*/{name} \(weights\)"):
            do(given)
        file.write_bytes(kept)
    with pytest.raises(KeyboardInterrupt):
        do(given)
