"""New weights of a run are drawn from its seed, not from what its process did before: a run that was killed and begun anew, or
stands behind another one, ends with the same bits; and another seed is another start."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.doing import do, make_two


@pytest.mark.filterwarnings("ignore:Every completion of the first step was cut")
@pytest.mark.parametrize("task", ["preference", "reward", "online"])
def test_a_run_is_its_seed(task, tmp_path, tmp_path_factory, undrawn):
    folders = make_two(tmp_path_factory, std=0.1)
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"the cat {n}", "chosen": " sat on the mat", "rejected": " is five"} for n in range(2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pooled = {"references": [{"name": "other", "model": folders["other"]}], "beta": 0.1}
    lora = {"r": 2, "target_modules": ["q_proj"]}
    rate = {"learning_rate": 1e-3}
    settings = {
        "preference": {**pooled, "lora": lora, "data": str(data), "training": {**rate, "max_steps": 1, "use_cpu": True}},
        "reward": {"data": str(data), "training": {**rate, "max_steps": 1, "use_cpu": True}},
        "online": {**pooled, "lora": lora, "prompts": [{"path": str(data)}], "rewards": [{"kind": "length", "target": 2}],
                   "method": {"name": "rloo", "group": 2}, "training": {**rate, "steps": 1, "prompts_per_step": 2,
                                                                        "max_new_tokens": 3}},
    }[task]  # fmt: skip
    kind = {"check_saved": False} | ({} if task == "preference" else {"task": task})

    def weights(name, seed, before):
        torch.manual_seed(before)
        torch.rand(before)
        training = {**settings["training"], "seed": seed}
        made = do({**settings, **kind, "model": folders["policy"], "training": training, "output": str(tmp_path / name)})
        (file,) = (made / "model").glob("*.safetensors")
        return load_file(file)

    one, same, other = weights("one", 1, 5), weights("same", 1, 77), weights("other", 2, 5)
    drawn = [name for name in one if "lora_A" in name or name == "score.weight"]
    assert drawn and all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
