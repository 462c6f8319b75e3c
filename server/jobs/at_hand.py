"""What a device probably has at hand: recordings of the shapes it painted lately, and photos it has read.

A guess from what it was given, so that a job goes where least has to be made anew; never asks an engine,
and is forgotten with the worker. Bounded. Knows photos by marks that mean nothing outside this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeVar

from server.jobs.scheduler import Shape

SHAPES = 16  # as many as an engine keeps recordings of
PHOTOS = 64  # identities that an engine keeps

T = TypeVar("T")


class AtHand:
    def __init__(self) -> None:
        self._shapes: OrderedDict[Shape, None] = OrderedDict()  # by last use
        self._photos: OrderedDict[int, None] = OrderedDict()

    def read(self, photos: Iterable[int]) -> None:
        """The device prepares a job with these photos."""
        _remember(self._photos, photos, PHOTOS)

    def painted(self, shape: Shape) -> None:
        """It begins a job of that shape."""
        _remember(self._shapes, [shape], SHAPES)

    def has_painted(self, shape: Shape) -> bool:
        return shape in self._shapes

    def photos_among(self, photos: Iterable[int]) -> int:
        """How many of them it has read."""
        return sum(mark in self._photos for mark in photos)

    def forget(self) -> None:
        """What it had went with its worker."""
        self._shapes.clear()
        self._photos.clear()


def mark_of(photo: bytes) -> int:
    """Equal for equal files, and for others as good as never. Reads no more than their ends."""
    return hash((len(photo), photo[:65_536], photo[-65_536:]))


def _remember(kept: OrderedDict[T, None], new: Iterable[T], most: int) -> None:
    for each in new:
        kept[each] = None
        kept.move_to_end(each)
    while len(kept) > most:
        kept.popitem(last=False)
