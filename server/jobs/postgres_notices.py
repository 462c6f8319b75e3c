"""What other servers say of jobs: LISTEN on a connection of its own, on the event loop.

A notice is a hint: one may be missed while the connection is made anew, so whoever waits also looks
by himself now and then. Steps are told here alone (`progress.py`). Knows no records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from server.jobs.postgres_schema import with_defaults
from server.jobs.postgres_store import CHANNEL, STEPS
from server.logs import get_logger

AGAIN_S = 2.0  # until a broken connection is made anew

log = get_logger("notices")


class Notices:
    def __init__(self, url: str, *, name: str) -> None:
        """`name`: of this server, whose own notices are not told."""
        self._address = with_defaults(url)
        self._name = name

    async def listen_for_ever(self, hear: Callable[[str], None], hear_steps: Callable[[str], None]) -> None:
        """Call `hear` with the id of each job that another server has changed; with "" where one waits."""
        is_broken = False
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._address, autocommit=True
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    is_broken = False
                    async for notice in connection.notifies():
                        server, _, said = notice.payload.partition(" ")
                        if server == self._name:
                            continue
                        if said.startswith(STEPS):
                            hear_steps(said.removeprefix(STEPS))
                        else:
                            hear(said)
            except psycopg.Error:
                if not is_broken:
                    log.warning("notices of other servers are not heard")
                is_broken = True
            await asyncio.sleep(AGAIN_S)
