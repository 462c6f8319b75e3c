"""A bounded in-memory cache that forgets what was used least recently. Safe to share by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()  # held for the table only, never while a value is made

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made now if it is not there. Nothing is kept if `make` raises.

        Two threads that miss the same key at once both make it; the value of the first is kept
        and both get that one.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = make()
        with self._lock:
            value = self._entries.setdefault(key, made)
            self._entries.move_to_end(key)
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
            return value

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._entries

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)
