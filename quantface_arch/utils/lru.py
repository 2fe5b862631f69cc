"""What is costly to make for every shape of a network's inputs, kept for the last few."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

__all__ = ["LRUCache"]

Made = TypeVar("Made")


class LRUCache(OrderedDict[Hashable, Made]):
    """Values by key, the longest unused first.

    Args:
        capacity: how many are kept; the oldest goes before one more is made, for they are large.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def get_or_make(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value of a key, made if it is not there; an exception of ``make`` goes through."""
        if key not in self:
            while len(self) >= self.capacity:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]
