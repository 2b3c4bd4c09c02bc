"""What the room shows to other rooms."""

import multiref as mr
from multiref.demo import world


def test_public_names_resolve_to_their_homes() -> None:
    assert set(mr.demo.__all__) == {"DemoSettings", "PairLaw", "World", "WorldSettings", "Yardstick", "draw_pairs", "make"}
    assert all(getattr(mr.demo, name).__module__.startswith("multiref.demo.") for name in mr.demo.__all__)
    assert mr.demo.make is world.make
