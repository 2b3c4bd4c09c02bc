"""The engine of many workers: one pool of Ray actors per reference, each holding the model, each taking one block at a time.

Only the driver touches the store, so the workers need no shared disk. A worker that dies is started again by Ray and its block
is scored again by whoever is free; the block, and so its batches and its bits, are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from multiref.errors import ArgumentError, ModelError, MultirefError
from multiref.models.audit import Audit
from multiref.references.engines import Results
from multiref.references.plan import Block
from multiref.references.protocol import Item, Reference, Scored


@dataclass(frozen=True)
class RayEngine:
    """Scores on a Ray cluster.

    Args:
        workers: how many copies of the reference work at once; None: as many as the cluster has room for, at least one.
        cpus, gpus: what each worker reserves. With gpus=1 a worker sees one device of its own; more, for `device_map="auto"`.
        threads: torch threads of each worker; None: as many as this process has, which is what makes the bits the same.
        retries: how often a block is tried again after its worker died.
        address: a running cluster ("auto", "ray://head:10001"); None: RAY_ADDRESS if set, else a local Ray is started.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int | None = None
    retries: int = 3
    address: str | None = None

    def run(self, open_reference: Callable[[], Reference], blocks: Sequence[Block]) -> Results:
        ray = self._connected()
        with self._pool(ray, open_reference, self.count(len(blocks))) as pool:
            yield from self._scored(ray, pool, blocks)

    def count(self, blocks: int) -> int:
        """How many workers score so many blocks."""
        return min(self._workers(self._connected()), max(blocks, 1))

    def audit(self, open_reference: Callable[[], Reference], blocks: Sequence[Sequence[Item]], everything: bool) -> Audit:
        """How rows of these blocks are laid out, found on a worker."""
        ray = self._connected()
        with self._pool(ray, open_reference, 1) as (actor,):
            return cast(Audit, self._got(ray, actor.audit.remote(blocks, everything), "the audit"))

    @contextmanager
    def _pool(self, ray: Any, open_reference: Callable[[], Reference], count: int) -> Iterator[list[Any]]:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": -1, "max_task_retries": self.retries}
        worker = ray.remote(**options)(_Worker)
        pool = [worker.remote(open_reference, self.threads or torch.get_num_threads()) for _ in range(count)]
        try:
            yield pool
        finally:
            for actor in pool:
                ray.kill(actor)

    def _scored(self, ray: Any, pool: list[Any], blocks: Sequence[Block]) -> Results:
        """Keep every worker busy with one block; hand a block back when it is done."""
        queue = list(range(len(blocks)))[::-1]
        busy: dict[Any, tuple[int, Any]] = {}
        for actor in pool:
            if queue:
                index = queue.pop()
                busy[actor.score.remote(blocks[index])] = (index, actor)
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            index, actor = busy.pop(done)
            *parts, digests, halved = self._got(ray, done, f"block {index + 1} of {len(blocks)}")
            logps, lengths, truncated = (torch.from_numpy(np.array(part)) for part in parts)
            result = Scored(logps, lengths, truncated, digests, halved)
            if queue:
                following = queue.pop()
                busy[actor.score.remote(blocks[following])] = (following, actor)
            try:
                yield index, result
            except GeneratorExit:  # nobody wants more: what is under way ends by itself where it is short
                if busy:
                    ray.wait(list(busy), num_returns=len(busy), timeout=5)
                raise

    def _got(self, ray: Any, done: Any, what: str) -> Any:
        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MultirefError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:  # a worker that died or could not start, a node that is gone
            last = str(error).strip().splitlines()[-1].strip()
            raise ModelError(
                f"Ray workers died on {what}, {self.retries + 1} times in a row or before they could start: {last} What was "
                "stored is intact. Use fewer workers, or reserve more for each (cpus, gpus), and run the same command again."
            ) from error

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ArgumentError(
                "The engine 'ray' needs Ray, which is not installed. Install it: pip install 'multiref[ray]'."
            ) from None
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False if self.address is None else None)
            except ConnectionError as error:
                raise ArgumentError(
                    f"No Ray cluster answers at {self.address!r}: {error}. Start one (`ray start --head`) or leave the address "
                    f"out."
                ) from None
        return ray

    def _workers(self, ray: Any) -> int:
        if self.workers is not None:
            if self.workers < 1:
                raise ArgumentError(f"workers is {self.workers}; expected at least 1.")
            return self.workers
        room = ray.cluster_resources()
        fits = [room.get("CPU", 0) / self.cpus] if self.cpus else []
        fits += [room.get("GPU", 0) / self.gpus] if self.gpus else []
        return max(1, int(min(fits))) if fits else 1


class _Worker:
    """Lives in a Ray actor: opens the reference at the first block, then scores block after block.
    Arrays travel, models do not."""

    def __init__(self, open_reference: Callable[[], Reference], threads: int):
        torch.set_num_threads(threads)
        self.open_reference = open_reference
        self.reference: Reference | None = None

    def score(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, int]:
        self.reference = self.reference or self.open_reference()
        scored = self.reference.score(block.items)
        logps, lengths, truncated = (each.cpu().numpy() for each in (scored.logps, scored.lengths, scored.truncated))
        return logps, lengths, truncated, scored.digests, scored.halved

    def audit(self, blocks: Sequence[Sequence[Item]], everything: bool) -> Audit:
        reference: Any = self.open_reference()
        return cast(Audit, reference.audit(blocks, everything=everything))
