"""A state written without pickle comes back as it was, types of keys and containers included."""

import pytest
import torch
from safetensors.torch import save_file

from multiref.errors import ArgumentError
from multiref.training.checkpoint import dump_plain, read_plain


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


def test_an_optimizers_state_comes_back_to_the_bit(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.99))
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "shared": [weight.detach()] * 2,
        "numbers": [1, 1.0, True, None, "x", 0.1 + 0.2, 2**60],
        5: (),
        "half": torch.ones(1, 2, dtype=torch.bfloat16).T,
    }
    (tmp_path / "state").write_bytes(dump_plain(state))
    same(read_plain(tmp_path / "state"), state)


def test_no_tensor_at_all(tmp_path):
    (tmp_path / "state").write_bytes(dump_plain({"a": [1]}))
    same(read_plain(tmp_path / "state"), {"a": [1]})


def test_what_is_no_state_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="object"):
        dump_plain({"a": object()})
    whole = dump_plain({"a": torch.zeros(100)})
    (tmp_path / "cut").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="damaged"):
        read_plain(tmp_path / "cut")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="tensors alone"):
        read_plain(tmp_path / "other")
    with pytest.raises(OSError):
        read_plain(tmp_path / "absent")


def test_the_last_checkpoints_stay_and_those_that_are_spared(tmp_path):
    """Of steps 1, 2, 3, 10: the number counts, not the letters; 0 and None keep all."""
    from multiref.training.sums import remove_old

    folders = {step: tmp_path / f"checkpoint-{step}" for step in (1, 2, 3, 10)}
    for keep, spared, left in ((0, (), {1, 2, 3, 10}), (4, (), {1, 2, 3, 10}), (3, (), {2, 3, 10}), (1, (2,), {2, 10})):
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        remove_old(tmp_path, keep, spared=[folders[step] for step in spared])
        assert {step for step, folder in folders.items() if folder.exists()} == left
