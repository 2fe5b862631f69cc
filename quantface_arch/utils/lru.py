"""Cache values that are costly to make for each shape of a network's inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

__all__ = ["LRUCache"]

Made = TypeVar("Made")


class LRUCache(OrderedDict[Hashable, Made]):
    """A mapping of at most ``capacity`` values, the least recently used first.

    Args:
        capacity: the number of values kept. The values are large, so the oldest is dropped before
            another one is made.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def get_or_make(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the value of a key, making it first if it is missing."""
        if key not in self:
            while len(self) >= self.capacity:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]
