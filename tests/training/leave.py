"""How a script of several processes ends."""

import os
import sys

import torch


def leave() -> None:
    """All is written.
    In one run of twenty gloo's threads abort the process while the interpreter is being taken down, so it is not."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
