"""The clock that several servers agree on is the database's; each has its own, and they may differ.

Times in the database are the database's. This turns them into this server's and back, by how far the
two were apart when somebody looked last. Less than a second counts as nothing. Knows no database.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from server.jobs.rows import TIMES
from server.logs import get_logger

NOTHING_S = 1.0
MUCH_S = 5.0  # the ages of files are measured with this server's clock

log = get_logger("clock")


class DatabaseClock:
    def __init__(self) -> None:
        self._ahead_s = 0.0  # this server's, of the database's
        self._is_told = False

    def heard(self, database_now: float) -> None:
        """The database has just said what time it is, in Unix seconds."""
        ahead_s = time.time() - database_now
        self._ahead_s = ahead_s if abs(ahead_s) >= NOTHING_S else 0.0
        if (is_much := abs(ahead_s) >= MUCH_S) and not self._is_told:
            log.warning("this machine's clock differs from the database's", ahead_s=round(ahead_s, 1))
        self._is_told = is_much

    def there(self, seconds: float) -> float:
        """A time of this server, as the database has it."""
        return seconds - self._ahead_s

    def row_there(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return _moved(row, -self._ahead_s)

    def row_here(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return _moved(row, self._ahead_s)


def _moved(row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    times = {column: row[column] + seconds for column in TIMES if row[column] is not None}
    return {**row, **(times if seconds else {})}
