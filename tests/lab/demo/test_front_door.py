"""What the room shows to other rooms."""

from multiref_lab import demo
from multiref_lab.demo import world


def test_public_names_resolve_to_their_homes() -> None:
    assert set(demo.__all__) == {
        "Answers",
        "DemoSettings",
        "PairLaw",
        "World",
        "WorldSettings",
        "Yardstick",
        "draw_pairs",
        "make",
    }
    assert all(getattr(demo, name).__module__.startswith("multiref_lab.demo.") for name in demo.__all__)
    assert demo.make is world.make
