"""Whether the files of the checkpoints are what they should be: quickly before each start, or thoroughly.

Quickly, in milliseconds at any size: every file is there and whole, is still the one that the lock
file knows, and its checkpoint has exactly the tensors of its table. Thoroughly: the hash of every
byte too. Finds problems and says what to do; changes nothing, loads nothing, runs nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weights import lock
from weights.errors import FilesMissing, WrongFile
from weights.lock import LockEntry
from weights.manifest import MANIFEST, Checkpoint, WeightFile
from weights.onnx_files import onnx_problem
from weights.paths import path_of
from weights.pickles import TensorInfo
from weights.tables import Table, differences, table
from weights.tensor_files import (
    MAX_HEADER,
    SUFFIXES,
    UnreadableFile,
    fingerprint,
    listed,
    not_a_model,
    tensors_in,
)

Tables = Callable[[str], Table]
Tensors = dict[str, TensorInfo]
OnBytes = Callable[[Path, int], None]  # of which file how many more bytes were read

FETCH = (
    "Run `flux-pulid weights fetch`, or `flux-pulid weights import DIR` for files that are in DIR already."
)
FETCH_AGAIN = "Delete it and run `flux-pulid weights fetch`."
_CONVERT_AGAIN = "Delete it and run `flux-pulid weights fetch`, then `flux-pulid weights convert`."
INDEX = ".safetensors.index.json"
_HEAD = 4096  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    file: Path  # or a folder, where its files do not go together
    what: str  # to be put after the file's name
    remedy: str
    is_missing: bool = False

    def __str__(self) -> str:
        return f"{self.file} {self.what}. {self.remedy}"

    def name_in(self, home: Path) -> str:
        """As it is called below the weights folder."""
        return self.file.relative_to(home).as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A file that should be there, and what is known of it."""

    path: Path
    entry: LockEntry | None  # of the lock file
    known: WeightFile | None  # of the manifest; a converted copy is not in it

    @property
    def size(self) -> int | None:
        """In bytes, by the manifest, unless a person overruled it; the lock file's is in its fingerprint."""
        return self.known.size if self.known and not self.is_accepted else None

    @property
    def sha256(self) -> str | None:
        """That it must have: the manifest's, if it has one and no person overruled it."""
        if self.known and self.known.sha256 and not self.is_accepted:
            return self.known.sha256
        return self.entry.sha256 if self.entry else None

    @property
    def is_accepted(self) -> bool:
        return self.entry is not None and self.entry.trust == "operator"

    @property
    def remedy(self) -> str:
        return FETCH_AGAIN if self.known else _CONVERT_AGAIN


class _Fault(Exception):
    """What is wrong with one file."""

    def __init__(self, what: str, remedy: str, *, is_missing: bool = False):
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.is_missing = is_missing


def check_quickly(checkpoints: Iterable[Checkpoint], home: Path, *, tables: Tables = table) -> list[Problem]:
    """What can be seen without reading whole files. Raises WrongFile if the lock file cannot be used."""
    entries = lock.read(home)
    return [
        problem
        for checkpoint in checkpoints
        for problem in examine(checkpoint, held_of(checkpoint, home, entries), entries, tables=tables)
    ]


def check_thoroughly(
    checkpoints: Iterable[Checkpoint],
    home: Path,
    *,
    tables: Tables = table,
    on_bytes: OnBytes = lambda file, count: None,
) -> list[Problem]:
    """That, and the hash of every file in which nothing was found."""
    entries = lock.read(home)
    problems = []
    for checkpoint in checkpoints:
        held = held_of(checkpoint, home, entries)
        quick = examine(checkpoint, held, entries, tables=tables)
        faulty = {problem.file for problem in quick}
        hashed = [_by_hash(one, on_bytes) for one in held if not {one.path, one.path.parent} & faulty]
        problems += quick + [problem for problem in hashed if problem]
    return problems


def require(checkpoints: Sequence[Checkpoint], home: Path, *, tables: Tables = table) -> None:
    """Raises FilesMissing or WrongFile, naming every file in which the quick check finds a problem."""
    problems = check_quickly(checkpoints, home, tables=tables)
    missing = [problem.name_in(home) for problem in problems if problem.remedy == FETCH]
    texts = [
        f"{problem.name_in(home)} {problem.what}. {problem.remedy}"
        for problem in problems
        if problem.remedy != FETCH
    ]
    if missing:
        texts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. {FETCH}")
    if problems:
        kind = FilesMissing if all(problem.is_missing for problem in problems) else WrongFile
        raise kind(f"In the weights folder {home}: {' '.join(texts)}")


def held_of(checkpoint: Checkpoint, home: Path, entries: Mapping[str, LockEntry]) -> list[Held]:
    """The files that are read of a checkpoint; of a pickle that was converted, the copy."""
    path = path_of(checkpoint, home)
    if path != home / checkpoint.path:
        return [Held(path=path, entry=entries.get(path.relative_to(home).as_posix()), known=None)]
    return [
        Held(path=home / file.path, entry=entries.get(file.path), known=file) for file in checkpoint.files
    ]


def examine(
    checkpoint: Checkpoint, held: Sequence[Held], entries: Mapping[str, LockEntry], *, tables: Tables = table
) -> list[Problem]:
    """The quick check of a checkpoint whose files are those `held`, wherever they lie."""
    problems: list[Problem] = []
    tensors: dict[Path, Tensors] = {}
    for one in held:
        try:
            tensors[one.path] = _read(one, entries)
        except _Fault as fault:
            problems.append(
                Problem(file=one.path, what=fault.what, remedy=fault.remedy, is_missing=fault.is_missing)
            )
        except OSError as exc:
            problems.append(_unreadable(one.path, exc))
    if len(held) > 1 and all(problem.remedy == FETCH for problem in problems) and len(problems) == len(held):
        return [Problem(file=held[0].path.parent, what="is missing", remedy=FETCH, is_missing=True)]
    return problems or list(_together(checkpoint, tensors, tables))


# ---- one file ----


def _read(one: Held, entries: Mapping[str, LockEntry]) -> Tensors:
    """The tensors of a file, none if it holds none. Raises _Fault or OSError."""
    if not one.path.is_file():
        raise _missing(one.path)
    with one.path.open("rb") as file:
        if instead := not_a_model(file.read(_HEAD)):
            raise _Fault(instead, one.remedy)
    tensors = _content(one)
    size = one.path.stat().st_size
    if one.size not in (None, size):
        raise _Fault(
            f"is another version: {size:,} bytes, expected {one.size:,}{_as_large_as(size)}", one.remedy
        )
    if one.entry and not one.is_accepted and one.sha256 not in (None, one.entry.sha256):
        raise _Fault(f"is another version: SHA-256 {one.entry.sha256}, expected {one.sha256}", one.remedy)
    if one.entry and fingerprint(one.path) != one.entry.fingerprint:
        raise _changed(one, entries)
    return tensors


def _missing(path: Path) -> _Fault:
    deeper = next(path.parent.glob(f"*/{path.name}"), None)
    if deeper is None:
        return _Fault("is missing", FETCH, is_missing=True)
    remedy = f"Move it up: `mv {shlex.quote(str(deeper))} {shlex.quote(str(path))}`."
    return _Fault(f"is missing, but lies one folder too deep, in {deeper.parent}", remedy, is_missing=True)


def _content(one: Held) -> Tensors:
    suffix = one.path.suffix
    if suffix in SUFFIXES:
        try:
            return tensors_in(one.path)
        except UnreadableFile as exc:
            raise _Fault(exc.what, one.remedy) from exc
    if suffix == ".onnx" and (problem := onnx_problem(one.path)):
        raise _Fault(problem, one.remedy)
    if suffix == ".json" and not _ends_as_json(one.path):
        raise _Fault("is cut short, or no JSON", one.remedy)
    return {}


def _ends_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(_HEAD, path.stat().st_size), 2)
        return file.read().rstrip().endswith((b"}", b"]"))


def _as_large_as(size: int) -> str:
    others = [file.path for checkpoint in MANIFEST for file in checkpoint.files if file.size == size]
    return f", as {' and '.join(others)} {'has' if len(others) == 1 else 'have'}" if others else ""


def _changed(one: Held, entries: Mapping[str, LockEntry]) -> _Fault:
    found = fingerprint(one.path)
    others = [name for name, entry in entries.items() if entry.fingerprint == found]
    this = f"; it is {others[0]} under another name" if others else ""
    return _Fault(f"has changed since {lock.NAME} recorded it{this}", one.remedy)


def _unreadable(path: Path, exc: OSError) -> Problem:
    remedy = "Give this user the right to read it, or look at the disk."
    return Problem(file=path, what=f"cannot be read: {exc.strerror or exc}", remedy=remedy)


def _by_hash(one: Held, on_bytes: OnBytes) -> Problem | None:
    try:
        found = lock.sha256_of(one.path, lambda count: on_bytes(one.path, count))
    except OSError as exc:
        return _unreadable(one.path, exc)
    if one.sha256 in (None, found):
        return None
    others = [file.path for checkpoint in MANIFEST for file in checkpoint.files if file.sha256 == found]
    this = f"; it is {others[0]} under another name" if others else ""
    what = f"has SHA-256 {found}, expected {one.sha256}{this}"
    return Problem(file=one.path, what=what, remedy=one.remedy)


# ---- the files of one checkpoint ----


def _together(checkpoint: Checkpoint, files: Mapping[Path, Tensors], tables: Tables) -> Iterator[Problem]:
    index = next((path for path in files if path.name.endswith(INDEX)), None)
    shards = {path: tensors for path, tensors in files.items() if path.suffix in SUFFIXES}
    if index and (problems := list(_by_index(index, shards))):
        yield from problems
    elif checkpoint.table:
        tensors = {key: info for shard in shards.values() for key, info in shard.items()}
        if wrong := differences(tensors, tables(checkpoint.table)):
            place = next(iter(shards)) if len(shards) == 1 else next(iter(shards)).parent
            what = f"does not hold the tensors of {checkpoint.name}{_those_of(tensors, tables)}: {wrong}"
            yield Problem(file=place, what=what, remedy=FETCH_AGAIN)


def _by_index(index: Path, shards: Mapping[Path, Tensors]) -> Iterator[Problem]:
    """Does the index list exactly these shards, and of each exactly its tensors?"""
    try:
        file_of = _file_of(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield Problem(file=index, what="is damaged, or no index of shards", remedy=FETCH_AGAIN)
        return
    if strays := sorted(set(file_of.values()) - {path.name for path in shards}):
        what = f"lists shards that do not belong to this checkpoint ({listed(strays)})"
        yield Problem(file=index, what=what, remedy=FETCH_AGAIN)
        return
    for path, tensors in shards.items():
        wrong = sorted(tensors.keys() ^ {key for key, name in file_of.items() if name == path.name})
        if wrong:
            differ = f"it and {index.name} differ in {len(wrong)} tensors ({listed(wrong)})"
            yield Problem(file=path, what=f"is a shard of another set: {differ}", remedy=FETCH_AGAIN)


def _file_of(index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises what a damaged index leads to."""
    if index.stat().st_size > MAX_HEADER:
        raise ValueError("larger than any index")
    listed_in: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    if not all(text.isprintable() for pair in listed_in.items() for text in pair):
        raise ValueError("a name that cannot be printed")
    return dict(listed_in)


def _those_of(tensors: Tensors, tables: Tables) -> str:
    """Of which checkpoint they are instead, if of one that we know."""
    names = {checkpoint.table: checkpoint.name for checkpoint in reversed(MANIFEST) if checkpoint.table}
    found = [name for known, name in names.items() if not differences(tensors, tables(known))]
    return f", but those of {found[0]}" if found else ""
