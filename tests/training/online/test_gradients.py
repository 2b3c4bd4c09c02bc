"""Gradients over processes, where each process used other parameters."""

import os
import socket

import torch
from accelerate import PartialState

from multiref.training.online.loop import average_gradients
from tests.forked import start


def work(rank: int, port: int, out: str) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in address.items()} | {"ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    PartialState(cpu=True)
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for place in ([0, 1], [1, 2])[rank]:  # the last one nobody used
        parameters[place].grad = torch.tensor([4.0, 10.0 ** (rank + place)])
    found = average_gradients(parameters)
    torch.save(([any(each is p for each in found) for p in parameters], [p.grad for p in parameters]), f"{out}/{rank}.pt")
    os._exit(0)


def test_a_parameter_that_one_process_used_is_averaged_with_zeros(tmp_path):
    """Averaged in the order of each process's own gradients, the first of one would meet the second of the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(work, rank, port, str(tmp_path)) for rank in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in range(2):
        used, (first, both, last, nobody) = torch.load(tmp_path / f"{rank}.pt")
        assert used == [True, True, True, False] and nobody is None
        assert first.tolist() == [2, 0.5] and both.tolist() == [4, 55] and last.tolist() == [2, 500]
