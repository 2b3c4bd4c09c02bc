"""What statements there are."""

from collections.abc import Mapping

from multiref.bounds import clipping, preferences, rates, stability
from multiref.bounds.statement import Statement


def statements() -> Mapping[str, Statement]:
    """Every statement, by the name that the command line uses, in the order of the files."""
    values = [value for file in (preferences, stability, rates, clipping) for value in vars(file).values()]
    return {each.name: each for each in values if isinstance(each, Statement)}
