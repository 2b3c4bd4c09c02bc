"""What statements there are."""

from collections.abc import Mapping

from multiref.bounds import preferences, stability
from multiref.bounds.statement import Statement


def statements() -> Mapping[str, Statement]:
    """Every statement, by the name that the command line uses, in the order of the files."""
    values = (*vars(preferences).values(), *vars(stability).values())
    return {each.name: each for each in values if isinstance(each, Statement)}
