"""Structured logs on standard error: one event a line, as text on a terminal and JSON elsewhere.

What never gets in: prompts, photos, request bodies, URL queries, keys. So a request is logged by
its route template, and an unexpected exception by its type and the places it passed through; its
text is left out, because a library may have quoted the caller in it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TextIO

import structlog

if TYPE_CHECKING:
    from server.settings import LogFormat, LogLevel

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


def configure_logs(*, level: LogLevel, form: LogFormat | None) -> None:
    """Set up this process. Without `form`: console on a terminal, else json."""
    console = sys.stderr.isatty() if form is None else form == "console"
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=partial(_Lines, sys.stderr),
    )
    logging.basicConfig(handlers=[_Forward()], level=max(_LEVELS[level], logging.WARNING), force=True)


class _Lines:
    """Writes lines. A log that cannot be written, on a full disk or a closed terminal, harms nobody."""

    def __init__(self, stream: TextIO, *_: object) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = error = critical = fatal = exception = msg


class _Forward(logging.Handler):
    """What uvicorn and other libraries log, as events of ours.

    Only the first line: in the next ones asyncio shows objects, and with them what callers sent.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        event = record.getMessage().partition("\n")[0]
        get_logger(record.name).log(record.levelno, event, **(trace_of(error) if error else {}))


def trace_of(exc: BaseException) -> dict[str, object]:
    """An exception as log fields: its type and where it passed, without its text."""
    frames = traceback.extract_tb(exc.__traceback__)
    cause = exc.__cause__ or exc.__context__
    return {
        "exception": type(exc).__qualname__,
        "cause": type(cause).__qualname__ if cause else None,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
