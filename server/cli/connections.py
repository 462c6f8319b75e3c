"""One connection to a client: how large a request's head may be, and how long it may take to come.

uvicorn gives an idle connection its time, but not one on which a request trickles in. Its parser in
pure Python (h11) is used, not the faster one in C: that one takes heads of any size, and drops the
body of a call that offers an upgrade to HTTP/2, as Java's client does by default. The difference is
0.15 ms a call. Knows no route; what reads the answer slowly is a proxy's to end.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 65_536
KEEP_ALIVE_S = 75  # longer than proxies keep a connection they may use again, which is 60 s as a rule
HEAD_S = 20.0
BODY_S = 300.0  # 32 MB at 0.9 Mbit/s

_Awaited = Literal["head", "body"]
_PATIENCE_S: dict[_Awaited, float] = {"head": HEAD_S, "body": BODY_S}


class LimitedConnection(H11Protocol):
    """Closes the connection when a head or a body has not come in its time, from its first byte on."""

    _awaited: _Awaited | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        super().connection_lost(exc)

    def _watch(self) -> None:
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._await("body")
        elif state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._await("head")
        else:
            self._await(None)

    def _await(self, part: _Awaited | None) -> None:
        if part == self._awaited:
            return
        self._awaited = part
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if part is not None:
            self._timer = self.loop.call_later(_PATIENCE_S[part], self.transport.close)

    def _should_upgrade(self) -> bool:
        """Never: there are no WebSockets here, and whoever offers HTTP/2 takes HTTP/1.1 as well."""
        return False

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the form of all other errors, unless an answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        request_id = secrets.token_hex(16)
        body = json.dumps({"error": "This is not a valid HTTP request.", "request_id": request_id}).encode()
        self._send(
            h11.Response(
                status_code=400,
                headers=[
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("x-request-id", request_id),
                    ("connection", "close"),
                ],
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.close()

    def _send(self, *events: Any) -> None:
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
