"""What is known of each file in a weights folder, kept in weights.lock.json beside them.

An entry says which SHA-256 a file has and who vouches for it; a file that has one must stay the
same ever after. Also the lock that lets one command at a time change the folder. Does not know
where files come from, nor what is in them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from weights.errors import FetchFailed, FetchInProgress, WrongFile
from weights.tensor_files import fingerprint

NAME = "weights.lock.json"
_IN_USE = ".fetch.lock"
SYNTHESIZED = "synthesized"  # the source of a file that `weights synthesize` made
_VERSION = 1
_BLOCK = 8 << 20  # bytes read at once

# shipped: the manifest has the hash; pinned: the first fetch recorded it; operator: a person accepted it.
Trust = Literal["shipped", "pinned", "operator"]
State = Literal["missing", "unchecked", "changed", "verified", "pinned", "accepted"]
_STATE_OF: dict[Trust, State] = {"shipped": "verified", "pinned": "pinned", "operator": "accepted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    sha256: str
    size: int  # bytes
    fingerprint: str  # of weights.tensor_files: shows in a millisecond that a file is another one
    source: str  # an address, or words
    trust: Trust


def entry_of(path: Path, *, sha256: str, source: str, trust: Trust) -> LockEntry:
    """For a file whose hash was just made. Raises OSError."""
    return LockEntry(
        sha256=sha256,
        size=path.stat().st_size,
        fingerprint=fingerprint(path),
        source=source,
        trust=trust,
    )


def read(home: Path) -> dict[str, LockEntry]:
    """The entries by path below the folder; none where there is no lock file yet. Raises WrongFile."""
    path = home / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")
        return {name: LockEntry(**entry) for name, entry in content["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise WrongFile(
            f"The lock file {path} cannot be read: {exc.strerror}. Give the user that runs this the right to."
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise WrongFile(
            f"The lock file {path} is damaged ({type(exc).__name__}: {exc}). Restore it from a copy, or "
            "delete it: then `flux-pulid weights fetch` checks every file anew, and files whose hashes were "
            "only pinned there are taken as they are."
        ) from exc


def record(home: Path, entries: Mapping[str, LockEntry]) -> None:
    """Add or replace entries. Whoever calls holds the folder (`fetching`). Raises OSError, WrongFile."""
    known = read(home) | dict(entries)
    files = {name: asdict(known[name]) for name in sorted(known)}
    text = json.dumps({"version": _VERSION, "files": files}, indent=2) + "\n"
    descriptor, name = tempfile.mkstemp(dir=home, prefix=f".{NAME}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        Path(name).replace(home / NAME)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(home)


def state_of(path: Path, entry: LockEntry | None) -> State:
    """In about a millisecond, whatever its size: by its size and fingerprint, not by its hash."""
    try:
        if not path.is_file():
            return "missing"
        if entry is None:
            return "unchecked"
        same = path.stat().st_size == entry.size and fingerprint(path) == entry.fingerprint
    except OSError:  # it cannot be read, so it is not what it was
        return "changed"
    return _STATE_OF[entry.trust] if same else "changed"


def sha256_of(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """The hash of a file; `on_bytes` is told of each block. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


@contextmanager
def fetching(home: Path) -> Iterator[None]:
    """Nobody else changes the folder meanwhile: raises FetchInProgress, or FetchFailed where it cannot write.

    The system lets go of the lock when a process ends, however it ends.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise cannot_write(home, exc) from exc
    try:
        _take(descriptor, home)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, home: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise FetchInProgress(
            f"Another command is changing the weights folder {home}. Wait until it has ended, then run this "
            "one again: what is there by then is not fetched twice."
        ) from exc
    except OSError as exc:
        raise cannot_write(home, exc) from exc


def cannot_write(path: Path, exc: OSError) -> FetchFailed:
    return FetchFailed(
        f"{path} cannot be written: {exc.strerror}. Give the user that runs this the right to write there, "
        "or name another folder with --weights-dir."
    )


def sync_folder(folder: Path) -> None:
    """Make renames in it outlive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
