"""The server's end of the pipe to one worker process: messages out, events in, on the event loop.

The other end is a `multiprocessing.connection.Connection`; what it sends and takes are pickles with
their length in front. Neither direction blocks and neither needs a thread: a call of v1 waits for about
six messages, and each would wait for a thread to wake. Knows no process and no meaning of a message.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import cast

from server.jobs.messages import ToWorker, WorkerEvent

_LENGTH = struct.Struct("!i")  # as Connection writes it for what is shorter than 2 GiB
_AT_ONCE = 2**16  # bytes


class WorkerPipe(asyncio.Protocol):
    """Calls `hear` for each event, in order; `ended` is done after the last of them."""

    def __init__(self, ours: socket.socket, hear: Callable[[WorkerEvent], None]) -> None:
        self._socket = ours.dup()  # the transport's own is closed with it
        self._socket.setblocking(False)
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def over(cls, ours: socket.socket, hear: Callable[[WorkerEvent], None]) -> WorkerPipe:
        """The pipe over one end of `pair`, which it owns from now on."""
        _, pipe = await asyncio.get_running_loop().create_unix_connection(lambda: cls(ours, hear), sock=ours)
        return pipe

    def send(self, message: ToWorker) -> None:
        """Never blocks; into the void once the other end is closed."""
        if self._transport.is_closing():
            return
        data = pickle.dumps(message)
        self._send_at_once(_LENGTH.pack(len(data)) + data)

    def _send_at_once(self, data: bytes) -> None:
        """A loop may keep what it is to write until its turn is over; the worker would wait meanwhile."""
        sent = 0
        if not self._transport.get_write_buffer_size():
            with suppress(OSError):  # no room now, or nobody reads: the transport knows what to do
                sent = self._socket.send(data)
        if sent < len(data):
            self._transport.write(data[sent:])

    def close(self) -> None:
        self._transport.abort()

    # called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (event := self._next_event()) is not None:
            self._loop.call_soon(self._hear, event)  # what goes wrong there does not end the pipe

    def connection_lost(self, exc: Exception | None) -> None:  # perhaps in the middle of an event
        try:
            self._read_rest()
        finally:
            if not self.ended.done():
                self.ended.set_result(None)

    def _read_rest(self) -> None:
        """A write that finds the other end closed ends the transport; what was said before lies unread."""
        with self._socket, suppress(OSError):
            while data := self._socket.recv(_AT_ONCE):
                self.data_received(data)

    def _next_event(self) -> WorkerEvent | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        event: WorkerEvent = pickle.loads(self._received[_LENGTH.size : end])  # noqa: S301  # our own process
        del self._received[:end]
        return event


def pair() -> tuple[socket.socket, Connection]:
    """Our end and the worker's, which travels to it as an argument of its process."""
    ours, theirs = socket.socketpair()
    return ours, Connection(theirs.detach())
