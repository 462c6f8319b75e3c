"""Takes over files that another program has downloaded: gives them their names in the weights folder.

As hard links, which take no room; as copies where the files lie on another disk. Records each with
its hash. The files that are taken over, and their folder, stay as they are.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from weights import lock
from weights.errors import NotEnoughRoom, WrongFile
from weights.survey import Find
from weights.tensor_files import fingerprint

# A link is not possible: another disk, another owner, or a file system without links.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
_SPARE = 256 << 20  # bytes that copies leave free on the disk
_BLOCK = 8 << 20  # bytes copied at once


def adopt(
    finds: Sequence[Find], home: Path, *, on_done: Callable[[Find, bool], None] = lambda find, linked: None
) -> None:
    """Take files over. `on_done` hears of each, and whether it is a link or a copy. Raises WeightsError."""
    with lock.fetching(home):
        _require_room(finds, home)
        for find in finds:
            target = home / find.file.path
            try:
                linked = _place(find, target)
                lock.record(home, {find.file.path: find.entry})
            except OSError as exc:
                raise lock.cannot_write(target, exc) from exc
            on_done(find, linked)


def _require_room(finds: Sequence[Find], home: Path) -> None:
    """For what must be copied. Raises NotEnoughRoom."""
    disk = home.stat().st_dev
    needed = sum(find.entry.size for find in finds if find.source.stat().st_dev != disk)
    free = shutil.disk_usage(home).free
    if needed and needed + _SPARE > free:
        raise NotEnoughRoom(
            f"{needed / 1e9:,.1f} GB are to be copied from another disk to {home}, which has "
            f"{free / 1e9:,.1f} GB free. Nothing was copied. Make room, name only some checkpoints, or name "
            "a folder on their disk with --weights-dir: there they are linked and take no room."
        )


def _place(find: Find, target: Path) -> bool:
    """Give the file its name in the weights folder; whether that is a link. Raises OSError, WrongFile."""
    if target.is_file() and fingerprint(target) == find.entry.fingerprint:
        return target.samefile(find.source)  # an earlier command was stopped before it recorded it
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part{target.suffix}")
    part.unlink(missing_ok=True)
    linked = _linked(find.source, part)
    if not linked:
        _copy(find.source, part)
    is_same = fingerprint(part) == find.entry.fingerprint
    if not is_same or not (linked or lock.sha256_of(part) == find.entry.sha256):
        part.unlink()
        raise WrongFile(f"{find.source} changed while it was taken over. Run the same command again.")
    part.replace(target)
    lock.sync_folder(target.parent)
    return linked


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as old, target.open("xb") as new:
            shutil.copyfileobj(old, new, _BLOCK)
            new.flush()
            os.fsync(new.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
