"""A checkpoint that changed after it was written is named and passed over, and the run ends with the same bits."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from multiref.errors import OutputError
from multiref.training import sums
from multiref.training.arguments import SumCheckpoints
from multiref.training.checkpoint import read_state, save_state
from multiref.training.iterative import Plan, method_named, train
from multiref.training.sums import SUMS, check_pickled, damage, newest_whole, set_aside, write_sums
from tests.training.iterative.test_methods import QUICK, world


def flip(path, bit=9):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit % 8
    path.write_bytes(content)


def spoil_bit(checkpoint):
    flip(checkpoint / "state.safetensors")


def spoil_end(checkpoint):
    path = checkpoint / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def spoil_folder(checkpoint):
    (checkpoint / "state.safetensors").unlink()
    (checkpoint / "state.safetensors").mkdir()


def spoil_sums(checkpoint):
    flip(checkpoint / SUMS)


def spoil_more(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text("{}")


SPOIL = [spoil_bit, spoil_end, spoil_folder, spoil_sums, spoil_more]


def make(folder):
    for step in (2, 10, 4):
        save_state(folder, step, {"step": step, "weights": torch.arange(500.0)}, keep=0)


@pytest.mark.parametrize("spoil", SPOIL)
def test_the_newest_whole_one_is_found_and_the_bad_one_named(tmp_path, spoil):
    make(tmp_path)
    (tmp_path / "checkpoint-foo").mkdir()  # nobody's
    (tmp_path / "checkpoint-11").write_text("a file")
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-10", {})
    spoil(tmp_path / "checkpoint-10")
    found, bad = newest_whole(tmp_path)
    assert found == tmp_path / "checkpoint-4" and list(bad) == [tmp_path / "checkpoint-10"]
    set_aside(bad)
    assert newest_whole(tmp_path) == (tmp_path / "checkpoint-4", {}) and (tmp_path / "damaged-checkpoint-10").is_dir()


def test_a_file_of_another_size_is_not_read(tmp_path, monkeypatch):
    """One that became 10 GiB of holes would be hashed for seconds, only to find what its size says."""
    make(tmp_path)
    os.truncate(tmp_path / "checkpoint-10" / "state.safetensors", 10 * 2**30)
    taken: list[int] = []
    real = sums.xxhash.xxh3_128

    def counting(*given):
        made = real(*given)
        return SimpleNamespace(update=lambda part: taken.append(len(part)) or made.update(part), hexdigest=made.hexdigest)

    monkeypatch.setattr(sums.xxhash, "xxh3_128", counting)
    found, bad = newest_whole(tmp_path)
    assert found == tmp_path / "checkpoint-4" and "state.safetensors has changed" in bad[tmp_path / "checkpoint-10"]
    assert 0 < sum(taken) < 2**20


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_damaged_one_that_is_asked_for_is_refused(tmp_path, spoil):
    make(tmp_path)
    assert read_state(tmp_path / "checkpoint-10")["step"] == 10
    spoil(tmp_path / "checkpoint-10")
    with pytest.raises(OutputError, match="checkpoint-10 is damaged"):
        read_state(tmp_path / "checkpoint-10")


def test_one_without_sums_was_not_written_to_its_end(tmp_path):
    make(tmp_path)
    (tmp_path / "checkpoint-10" / SUMS).unlink()
    assert newest_whole(tmp_path)[0] == tmp_path / "checkpoint-4"
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / SUMS).unlink()
    assert newest_whole(tmp_path)[0] is None


def test_the_sums_are_of_every_file_under_the_checkpoint(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "part.bin").write_bytes(b"abc")
    (tmp_path / "rng_state.pth").write_bytes(b"")
    write_sums(tmp_path)
    sums = json.loads((tmp_path / SUMS).read_text())
    assert sums["inner/part.bin"] == [3, "06b05ab6733a618578af5f94892f3950"]  # XXH3's own test vector of "abc"
    assert damage(tmp_path) is None
    (tmp_path / "inner" / "part.bin").write_bytes(b"abd")
    assert damage(tmp_path) == "inner/part.bin has changed since it was written"
    shutil.rmtree(tmp_path / "inner")
    assert damage(tmp_path) == "inner/part.bin is missing"


@pytest.mark.parametrize("spoil", [spoil_bit, spoil_folder])
def test_an_iterative_run_goes_on_from_the_one_before_to_the_same_bits(tmp_path, spoil):
    def reward(folder, rounds):
        plan = Plan(labels=[16, 32, 48][:rounds], **QUICK)
        state, history = train(world().task, method_named("bilevel"), plan, folder=folder)
        return torch.cat([p.detach().reshape(-1) for p in state.policy.parameters()]), [
            line["labels"] for line in history.lines
        ]

    whole, labels = reward(tmp_path / "whole", 3)
    reward(tmp_path / "cut", 2)
    spoil(tmp_path / "cut" / "checkpoint-2")
    again, seen = reward(tmp_path / "cut", 3)
    assert torch.equal(whole, again) and seen == labels


def test_old_ones_go_when_the_newer_one_has_sums_and_not_before(tmp_path):
    """The newest stays, and the best; one that is being written is no reason to remove another."""
    args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=1, should_save=True, process_index=0, world_size=1)
    sums, best = SumCheckpoints(), str(tmp_path / "checkpoint-1")
    with sums.in_charge(args):
        assert args.save_total_limit is None
        for step in (1, 2, 3, 4):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "weights").write_bytes(bytes(1000))
            assert step < 2 or damage(tmp_path / f"checkpoint-{step - 1}") is None
            sums.on_save(args, SimpleNamespace(global_step=step, best_model_checkpoint=best), None)
            sums._finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
    assert damage(tmp_path / "checkpoint-4") is None and args.save_total_limit == 1
    with pytest.raises(OutputError), sums.in_charge(args):
        (tmp_path / "checkpoint-9").write_text("no folder")
        sums.on_save(args, SimpleNamespace(global_step=9, best_model_checkpoint=None), None)


def test_what_trainer_pickles_passes_and_what_would_run_does_not(tmp_path):
    """Every file of a real checkpoint is on the list; each in turn with a program in it is refused, and the program not run."""
    import os
    import pickle

    from transformers import Trainer, TrainingArguments

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    model = torch.nn.Linear(2, 1)
    model.forward = lambda x, labels: {"loss": (x @ model.weight.T - labels).square().mean()}
    args = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(model, args, train_dataset=[{"x": torch.ones(2), "labels": torch.ones(1)}] * 8).train()
    checkpoint = tmp_path / "checkpoint-1"
    check_pickled(checkpoint)
    written = {file.name for file in checkpoint.iterdir()} & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert len(written) == 3
    for name in written:
        whole = (checkpoint / name).read_bytes()
        torch.save({"state": Trap()}, checkpoint / name)
        with pytest.raises(OutputError, match=f"{name} would run code .*posix.system"):
            check_pickled(checkpoint)
        for content in (pickle.dumps(Trap()), b"", whole[:-99]):
            (checkpoint / name).write_bytes(content)
            with pytest.raises(OutputError, match=f"{name} is no state"):
                check_pickled(checkpoint)
        (checkpoint / name).write_bytes(whole)
    check_pickled(checkpoint)
    assert not (tmp_path / "ran").exists()
