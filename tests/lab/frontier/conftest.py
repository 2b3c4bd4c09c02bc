"""The smallest sweeps on the tiny world."""

from pathlib import Path

import pytest

from multiref_lab.frontier import FrontierSettings, Generated, Offline, Online
from multiref_lab.frontier.generated import GeneratedBench
from tests.lab.conftest import TINY

TASK = Generated(
    betas=[1.0],
    pairs=[64],
    pairs_per_prompt=2,
    held_out=6,
    offline=Offline(4, 16, 3e-3),
    online=Online(2, 8, 4, 2, 3e-3),
    world=TINY,
)


@pytest.fixture(scope="session")
def bench(cache: Path) -> GeneratedBench:
    return GeneratedBench(TASK, cache)


@pytest.fixture
def settings() -> FrontierSettings:
    return FrontierSettings(weights=[0.5], seeds=2, generated=TASK)


class Told:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def phase(self, sentence: str) -> None:
        pass

    def progress(self, what: str, done: int, of: int) -> None:
        self.steps.append((what, done, of))
