"""Fetch checkpoints: only what is missing, on from where it stopped, and nothing unproven.

Bytes go to `.fetch/` in the weights folder. A file gets its final name when it has the size, the
hash and the tensors that it must have, so what has a final name is whole; the lock file then records
it. Knows nothing of terminals; how servers are asked is in `weights.remote`.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Protocol, TypeVar

from weights import lock
from weights.errors import FetchFailed, NotEnoughRoom, TryLater, WrongFile
from weights.lock import LockEntry
from weights.manifest import Checkpoint, WeightFile
from weights.plan import Item, plan, prove
from weights.remote import Interrupted, Remote, ask, opened

PARALLEL = 4  # files at once
RETRY_AFTER_S = (0.5, 1.0, 2.0, 4.0)  # between tries that bring not a byte
SPARE = 256 << 20  # bytes that a fetch leaves free on the disk
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PARTS = ".fetch"

_A = TypeVar("_A")
_B = TypeVar("_B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file that is to be fetched, as its server offers it."""

    item: Item
    remote: Remote
    size: int  # bytes
    part: Path  # where its bytes gather

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


class Progress(Protocol):
    """Who watches a fetch; called from several threads."""

    def planned(self, downloads: Sequence[Download]) -> None:
        """Before the first byte, also when there is nothing to fetch."""

    def received(self, file: WeightFile, count: int) -> None:
        """Bytes; negative when a server began a file anew."""

    def checking(self, file: WeightFile) -> None:
        """Its hash is being made."""

    def done(self, file: WeightFile, entry: LockEntry) -> None:
        """It has its name."""


def look_up(items: Iterable[Item], home: Path) -> list[Download]:
    """What would be fetched, asked of the servers; the largest first. Raises as `weights.remote.ask` does."""
    missing = [item for item in items if item.state == "missing"]
    offers = _at_once(lambda item: _offered(item, home), missing, threading.Event())
    return sorted(offers, key=lambda offer: (-offer.size, offer.item.file.path))


def fetch(
    checkpoints: Sequence[Checkpoint], home: Path, progress: Progress, *, trust_first: Collection[str] = ()
) -> None:
    """Bring what is missing, and check what is there but was never checked.

    Raises WeightsError. What is done by then stays, parts of files too: the next call goes on there.
    """
    if all(item.state not in ("missing", "unchecked") for item in plan(checkpoints, home, trust_first)):
        progress.planned([])
        return
    with lock.fetching(home):
        items = plan(checkpoints, home, trust_first)
        downloads = look_up(items, home)
        require_room(downloads, home)
        progress.planned(downloads)
        run = _Run(home, progress)
        _at_once(run.accept, [item for item in items if item.state == "unchecked"], run.stop)
        _at_once(run.bring, downloads, run.stop)
        with suppress(OSError):  # it still holds parts of other files
            (home / _PARTS).rmdir()


def require_room(downloads: Sequence[Download], home: Path) -> None:
    """Raises NotEnoughRoom when the disk cannot take the rest of every file."""
    needed = sum(download.size - download.have for download in downloads)
    place = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if downloads and needed + SPARE > free:
        raise NotEnoughRoom(
            f"{needed / 1e9:,.1f} GB are to be fetched to {home}, and its disk has {free / 1e9:,.1f} GB "
            "free. Nothing was fetched. Make room, or name a folder on another disk with --weights-dir."
        )


def _offered(item: Item, home: Path) -> Download:
    remote = ask(item.file.source)
    size = item.file.size or remote.size
    if size is None:
        raise TryLater(
            f"{item.file.source.address}: its server does not say how large it is. Try again later, or bring "
            "the file with `flux-pulid weights import DIR`."
        )
    if remote.size not in (None, size) or (item.expected and remote.sha256 not in (None, item.expected)):
        raise item.wrong(f"one of {remote.size} bytes, SHA-256 {remote.sha256 or 'not told'}")
    # A part has its file's suffix, by which readers tell formats apart; other content has another name.
    folder = home / _PARTS / item.file.path.replace("/", "--")
    identity = item.expected or f"{remote.etag} {size}"
    name = sha256(identity.encode()).hexdigest()[:16] + PurePath(item.file.path).suffix
    return Download(item=item, remote=remote, size=size, part=folder / name)


def _at_once(work: Callable[[_A], _B], things: Sequence[_A], stop: threading.Event) -> list[_B]:
    """The results, in any order. The first error stops all work and is raised, so is Ctrl-C."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(work, thing) for thing in things]
        try:
            return [future.result() for future in as_completed(futures)]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True)
class _Run:
    """One fetch: its threads share the lock file, and the word to stop."""

    home: Path
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    recording: threading.Lock = field(default_factory=threading.Lock)

    def bring(self, download: Download) -> None:
        """Fetch one file, prove it, and give it its name."""
        item, part = download.item, download.part
        source = item.file.source.address
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            self._gather(download)
            self.progress.checking(item.file)
            found = lock.sha256_of(part)
            try:
                prove(item, part, found, download.remote.sha256)
            except WrongFile:
                part.unlink()
                raise
            entry = lock.entry_of(part, sha256=found, source=source, trust=item.trust)
            _place(part, self.home / item.file.path)
            self._record(item, entry)
        except OSError as exc:
            raise _disk_trouble(exc, self.home) from exc

    def accept(self, item: Item) -> None:
        """Take a file that is there already, if it is what it should be."""
        path = self.home / item.file.path
        try:
            self.progress.checking(item.file)
            found = lock.sha256_of(path)
            prove(item, path, found)
            entry = lock.entry_of(path, sha256=found, source="found in the folder", trust=item.trust)
            self._record(item, entry)
        except OSError as exc:
            raise _disk_trouble(exc, self.home) from exc

    def _record(self, item: Item, entry: LockEntry) -> None:
        with self.recording:
            lock.record(self.home, {item.file.path: entry})
        self.progress.done(item.file, entry)

    def _gather(self, download: Download) -> None:
        """Until the part has every byte. A try that brings some is followed by the next one at once."""
        pauses = iter(RETRY_AFTER_S)
        while (had := download.have) < download.size:
            broke = Interrupted(f"{download.remote.source.address} sends nothing. Try again later.")
            try:
                self._receive(download, had)
            except Interrupted as exc:
                broke = exc
            if download.have > had and not self.stop.is_set():
                pauses = iter(RETRY_AFTER_S)
            elif (pause := next(pauses, None)) is None or self.stop.wait(pause):
                raise broke

    def _receive(self, download: Download, had: int) -> None:
        with opened(download.remote, had) as (size, blocks), download.part.open("ab") as part:
            part.truncate(size)
            self.progress.received(download.item.file, size - had)
            for block in blocks:
                size += len(block)
                if self.stop.is_set() or size > download.size:
                    break
                part.write(block)
                self.progress.received(download.item.file, len(block))
        if size > download.size:
            download.part.unlink()
            raise download.item.wrong(f"one of more than {download.size} bytes")


def _place(part: Path, final: Path) -> None:
    """From here on the file has its name. Raises OSError."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)
    lock.sync_folder(final.parent)
    shutil.rmtree(part.parent, ignore_errors=True)  # with parts of older content


def _disk_trouble(exc: OSError, home: Path) -> FetchFailed:
    if exc.errno in _NO_ROOM:
        return NotEnoughRoom(
            f"The disk of {home} took no more ({exc.strerror}) while files were fetched. Make room and run "
            "the same command again: it goes on where it stopped."
        )
    return lock.cannot_write(Path(exc.filename or home), exc)
