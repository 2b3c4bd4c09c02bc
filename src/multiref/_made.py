"""Sequences whose elements are made when they are asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T", covariant=True)


class Made(Sequence[T]):
    """N elements, of which `made` makes one; a stretch of them is a list unless a subclass has something better."""

    @abstractmethod
    def made(self, place: int) -> T:
        """The element at 0 ≤ place < N."""

    def stretch(self, places: range) -> Sequence[T]:
        return [self.made(place) for place in places]

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        places = range(len(self))[index]
        return self.stretch(places) if isinstance(places, range) else self.made(places)
