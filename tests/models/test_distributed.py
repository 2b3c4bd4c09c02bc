"""Training on two processes: gradients of completion_logps through DistributedDataParallel and FSDP2 are those of one process
on all data."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from multiref.models import completion_logps
from tests.conftest import make_llama
from tests.models.test_logps import VOCABULARY, random_batch

pytestmark = pytest.mark.slow


def gradients(model):
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def work(rank: int, port: int, kind: str, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = make_llama(VOCABULARY).train()
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        if kind == "fsdp2 with a head of its own":
            fully_shard(model.lm_head)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    completion_logps(model, random_batch(items=8)[rank::2], logits_budget=1000).sum().backward()
    found = gradients(model)
    if rank == 0:
        torch.save(found, os.path.join(folder, "gradients.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2 with a head of its own"])
def test_two_processes_average_their_gradients(kind, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port, kind, str(tmp_path)), nprocs=2)
    model = make_llama(VOCABULARY).train()
    (completion_logps(model, random_batch(items=8)).sum() / 2).backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-3, rtol=1e-3), name
