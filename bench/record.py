"""Result files: one for each part of a bench, rewritten after each case, so that a stopped run goes on.

A file counts for the sources it was measured with: their hash stands in it, beside the commit, which a
machine without git does not know. Knows no figure.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
SOURCES = ("pulid/**/*.py", "bench/*.py")


@cache
def sources() -> str:
    """A hash of all code that decides a figure."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        found.update(str(path.relative_to(ROOT)).encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def git(*arguments: str) -> str:
    """Empty outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": len(git("status", "--porcelain", "pulid", "bench").splitlines()),
        "sources": sources(),
    }


@dataclass
class PartFile:
    """One part's results. `setting` is what else must be equal for an earlier file to count."""

    folder: Path
    stem: str  # for example denoise-headline-h200
    setting: dict[str, Any]
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, stem: str, setting: dict[str, Any]) -> PartFile:
        """What the newest file of these sources and this setting holds; empty if there is none."""
        part = cls(folder, stem, setting)
        for path in sorted(folder.glob(f"{stem}-20*.json"), reverse=True):
            content = json.loads(path.read_text())
            if content.get("sources") == sources() and content.get("setting") == setting:
                part.content = content
                break
        return part

    @property
    def cases(self) -> dict[str, Any]:
        return self.content.setdefault("cases", {})  # type: ignore[no-any-return]

    def write(self, **facts: Any) -> Path:
        """The file as it now stands, under today's name."""
        now = datetime.now(UTC)
        about = {"date": now.isoformat(timespec="seconds"), **commit(), "setting": self.setting, **facts}
        self.content = {**about, "cases": self.cases}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.stem}-{now:%Y-%m-%d}.json"
        half = path.with_suffix(".half")
        half.write_text(json.dumps(self.content, indent=2) + "\n")
        return half.replace(path)  # whole, or as it was: the call may be ended at any time
