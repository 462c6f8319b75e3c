"""`flux-pulid bench http`: how long a running server takes for pictures, and how many it makes.

Thin: flags, progress, a table and, as the last line, one JSON document. Defaults are modest, and what is
sent is bounded, because it goes to a real server. The calls themselves are in server/cli/http_load.py.
Exit codes: 0 every call gave a picture, 1 some did not or the server is not ready, 2 the input is wrong,
130 Ctrl-C; then the figures are those of what was done.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import server
from pulid.errors import ImageRejected
from server.api.v1_schemas import FluxPulidRequest
from server.cli.failures import FAILED, INTERRUPTED, clean_exit
from server.cli.http_load import Call, Load, LoadPlan, Size, drive, ready_answer, report
from server.errors import FieldProblem, InvalidParameters
from server.settings import Settings, is_loopback

MAX_REQUESTS, MAX_PARALLEL, MAX_DURATION_S = 10_000, 64, 3600.0
_EVERY_S = 5.0  # between two lines where there is no terminal to draw a bar on

app = typer.Typer(help="Measure speed: of a running server.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed."""


@app.command()
def http(
    photo: Annotated[Path, typer.Option("--photo", help="Photo of a person that every call brings.")],
    url: Annotated[str, typer.Option("--url", help="The server.")] = "http://127.0.0.1:8000",
    requests: Annotated[int, typer.Option("--requests", min=1, max=MAX_REQUESTS, help="Calls in all.")] = 20,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=MAX_PARALLEL, help="Calls at one time.")
    ] = 1,
    sizes: Annotated[
        str, typer.Option("--sizes", help="Asked for in turn, such as 896x1152,512x512.")
    ] = "896x1152",
    num_steps: Annotated[int, typer.Option("--num-steps", help="Denoising steps of each picture.")] = 20,
    duration: Annotated[
        float, typer.Option("--duration", min=1, max=MAX_DURATION_S, help="Seconds; then no call is begun.")
    ] = 600.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds to wait for one answer.")
    ] = 300.0,
    prompt: Annotated[
        str, typer.Option("--prompt", help="What to draw.")
    ] = "portrait, neon color, cinematic",
    api_key: Annotated[str | None, typer.Option("--api-key", help="Where the server wants one.")] = None,
) -> None:
    """Ask a running server for pictures, and tell how long they took."""
    with clean_exit():
        plan = LoadPlan(
            url=checked_url(url),
            api_key=api_key,
            photo=read(photo),
            prompt=prompt,
            sizes=sizes_of(sizes),
            num_steps=num_steps,
            requests=requests,
            parallel=parallel,
            duration_s=duration,
            timeout_s=timeout,
        )
        check_parameters(plan)
        about = ready_answer(plan.url)
        warn(plan, about)
        load, interrupted = run(plan)
        told = report(load)
        show(told)
        typer.echo(json.dumps(document(plan, about, told, interrupted=interrupted)))
        if interrupted:
            raise typer.Exit(INTERRUPTED)
        if told["pictures"] < told["calls"] or not told["pictures"]:
            raise typer.Exit(FAILED)


# ---- what is asked for ----


def checked_url(url: str) -> str:
    """Scheme, host and port. Raises InvalidParameters."""
    try:
        parts = urlsplit(url)
        is_base = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_base = False
    if not is_base or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong("url", "Give --url as http(s)://host:port, without a path or a password.")
    return f"{parts.scheme}://{parts.netloc}"


def sizes_of(text: str) -> tuple[Size, ...]:
    """Raises InvalidParameters."""
    found = []
    for part in text.split(","):
        width, _, height = part.strip().partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise wrong("sizes", "Give --sizes as widths and heights, such as 896x1152,512x512.")
        found.append((int(width), int(height)))
    return tuple(found)


def read(photo: Path) -> bytes:
    """Raises ImageRejected."""
    try:
        return photo.read_bytes()
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "this is no file name"
        raise ImageRejected(f"The photo --photo {photo} cannot be read: {why}.") from exc


def check_parameters(plan: LoadPlan) -> None:
    """As the server will, before anything is sent. Raises InvalidParameters."""
    longest = Settings.model_fields["max_prompt_chars"].default
    for size in plan.sizes:
        FluxPulidRequest.of(plan.body(size, seed=0), max_prompt_chars=longest)


def wrong(field: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldProblem(field, message)])


def warn(plan: LoadPlan, about: Mapping[str, str]) -> None:
    """What a reader of the figures must know."""
    host = urlsplit(plan.url).hostname or ""
    if not is_loopback(host):
        typer.echo(f"Sending {plan.requests} calls, {plan.parallel} at a time, to {host}.", err=True)
    if about["notice"]:
        typer.echo(f"Note: {about['notice']}. The figures say nothing about another profile.", err=True)


# ---- running ----


def run(plan: LoadPlan) -> tuple[Load, bool]:
    """What came back, and whether Ctrl-C ended it."""
    load = Load()
    with shown_calls(plan.requests) as show_call:
        try:
            asyncio.run(drive(plan, load, show_call))
        except KeyboardInterrupt:
            return load, True
    return load, False


@contextmanager
def shown_calls(total: int) -> Iterator[Callable[[Call], None]]:
    """Gives what is to be called after each call."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total).called
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("Calling", total=total)
        yield lambda call: progress.advance(bar)


class _Lines:
    """For logs: a line now and then, and one for the last call."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._said = time.monotonic()

    def called(self, call: Call) -> None:
        self._done += 1
        if time.monotonic() - self._said >= _EVERY_S or self._done == self._total:
            self._said = time.monotonic()
            typer.echo(f"Call {self._done} of {self._total}, {call.seconds:.2f} s.", err=True)


# ---- telling ----


def show(told: Mapping[str, Any]) -> None:
    """A table for people."""
    typer.echo(f"{'seconds':<24}{'p50':>9}{'p95':>9}{'p99':>9}{'pictures':>10}{'per s':>9}")
    rows = [("all calls", told, "call_s"), ("  generation", told, "generation_s")]
    if len(told["sizes"]) > 1:
        rows += [(size, figures, "call_s") for size, figures in told["sizes"].items()]
    for label, figures, kind in rows:
        times = "".join(f"{figures[kind].get(name, float('nan')):>9.3f}" for name in ("p50", "p95", "p99"))
        typer.echo(f"{label:<24}{times}{figures['pictures']:>10}{figures['pictures_per_s']:>9.3f}")
    for label, counts in (
        ("status", told["statuses"]),
        ("told to come back by", told["told_to_come_back"]),
        ("error", told["errors"]),
    ):
        for what, count in counts.items():
            typer.echo(f"{count} x {label} {what}")


def document(
    plan: LoadPlan, about: Mapping[str, str], told: Mapping[str, Any], *, interrupted: bool
) -> dict[str, Any]:
    """Everything but the photo, the prompt and the key."""
    return {
        "bench": "http",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": server.__version__,
        "url": plan.url,
        **about,
        "requests": plan.requests,
        "parallel": plan.parallel,
        "num_steps": plan.num_steps,
        "interrupted": interrupted,
        **told,
    }
