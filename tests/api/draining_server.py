"""A program for test_stopping.py: the real HttpServer around an app whose work a test can end.

    python draining_server.py DRAIN_S [stuck]

`stuck`: the app's own end never returns. Its address is the first line on standard output.
"""

import asyncio
import socket
import sys
import time
from contextlib import asynccontextmanager

import typer
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from pulid.errors import EngineFailed
from server.cli.failures import clean_exit
from server.cli.http_server import HttpServer
from server.logs import configure_logs


class Work:
    """What runs, as the job service would have it."""

    def __init__(self):
        self.draining = False
        self.done = asyncio.Event()
        self.done.set()

    def begin_drain(self):
        self.draining = True

    async def drained(self):
        await self.done.wait()

    def interrupt(self):
        """Nobody here can be told."""


def app_of(work, *, stuck, lose):
    @asynccontextmanager
    async def lifespan(app):
        yield
        typer.echo("closed")
        if stuck:
            time.sleep(60)  # noqa: ASYNC251  # a loop that is blocked is what is meant

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready(response: Response):
        response.status_code = 503 if work.draining else 200

    @app.get("/paint")
    async def paint():
        work.done.clear()
        typer.echo("painting")
        await work.done.wait()
        return "a picture"

    @app.post("/finish")
    async def finish():
        work.done.set()

    @app.get("/events")
    async def events():
        async def stream():
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.post("/lose")
    async def lose_engine():
        lose()

    return app


def main():
    configure_logs(level="info", form="json")
    work = Work()
    losses = []

    def lose():
        losses.append(EngineFailed("The engine is gone."))
        server.fail()

    app = app_of(work, stuck="stuck" in sys.argv, lose=lose)
    server = HttpServer(
        app, service=work, drain_s=float(sys.argv[1]), reload_keys=lambda: typer.echo("reloaded")
    )
    listener = socket.create_server(("127.0.0.1", 0))
    typer.echo(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with clean_exit():
        server.run(sockets=[listener])
        if losses:
            raise losses[0]
        if server.interrupted:
            raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except Exception as exc:  # typer.Exit, as the command line would turn it into a code
        sys.exit(getattr(exc, "exit_code", 70))
