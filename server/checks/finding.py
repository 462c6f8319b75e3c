"""What one check found: all right, worth knowing, or in the way; and then what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "fault"]

STATES: tuple[State, ...] = ("ok", "warning", "fault")  # the worst last


@dataclass(frozen=True, slots=True)
class Finding:
    check: str  # one word
    state: State
    text: str  # whole sentences; of warnings and faults also what to do next


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str) -> Finding:
    return Finding(check, "warning", text)


def fault(check: str, text: str) -> Finding:
    return Finding(check, "fault", text)


def worst(findings: Iterable[Finding]) -> State:
    return max((finding.state for finding in findings), key=STATES.index, default="ok")


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def gigabytes(size: float) -> str:
    """Bytes as people buy them: 143800000000 is 143.8 GB."""
    return f"{size / 1e9:.1f} GB"
