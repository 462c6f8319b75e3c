"""Recognises files of the model that ComfyUI, diffusers, the Hub's cache or PuLID's own app have downloaded.

By size and hash, whatever the names are. Else by names, tensors and what lies beside: then a person's
word may be needed, because files of other versions look just alike. Only reads; what is done with
the finds is in `weights.adopt`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from weights import lock
from weights.errors import WrongFile
from weights.lock import LockEntry, Trust
from weights.manifest import MANIFEST, Checkpoint, WeightFile
from weights.onnx_files import onnx_problem
from weights.tables import differences, table
from weights.tensor_files import PICKLES, SUFFIXES, UnreadableFile, fingerprint, tensors_in
from weights.verify import INDEX, Held, OnBytes, Problem, Tables, Tensors, examine

_MODEL_SUFFIXES = {*SUFFIXES, ".onnx"}
_MAY_HOLD_CODE = {*PICKLES, ".onnx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """A file that can be taken over, and what it becomes."""

    source: Path  # the file itself, not a link to it
    checkpoint: Checkpoint
    file: WeightFile
    entry: LockEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A file, or a folder, that resembles one of ours and is not taken."""

    source: Path
    why: str  # to be put after its name


@dataclass(slots=True)
class Survey:
    """What a folder has of the model."""

    finds: list[Find] = field(default_factory=list)
    there: list[WeightFile] = field(default_factory=list)  # found, but in the weights folder already
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a person vouches for: names of checkpoints."""

    taken_as: str | None = None  # a file of unknown hash is this checkpoint
    trust_first: Collection[str] = ()  # a file of unknown hash that could hold code is taken too

    def cover(self, checkpoint: Checkpoint, path: Path) -> bool:
        if path.suffix in _MAY_HOLD_CODE:
            return checkpoint.name in self.trust_first
        return checkpoint.name == self.taken_as


def survey(
    place: Path,
    home: Path,
    *,
    checkpoints: Sequence[Checkpoint] = MANIFEST,
    words: Words = Words(),
    tables: Tables = table,
    on_bytes: OnBytes = lambda file, count: None,
) -> Survey:
    """What a folder (or one file) has of the checkpoints. Reads, and hashes what has the right size.

    Raises WrongFile if the lock file of the weights folder `home` cannot be used, or a disk fails.
    """
    search = _Search(
        home=home,
        checkpoints=checkpoints,
        words=words,
        tables=tables,
        on_bytes=on_bytes,
        entries=lock.read(home),
    )
    own = {(home / file.path).resolve() for checkpoint in checkpoints for file in checkpoint.files}
    names = {PurePath(file.path).name for checkpoint in checkpoints for file in checkpoint.files}
    paths = [path for path in _files_below(place, names) if path.resolve() not in own]
    try:
        for look in (search.by_access, search.by_hash, search.by_folder, search.by_tensors, search.by_name):
            look(paths)
    except OSError as exc:
        raise WrongFile(
            f"{exc.filename} cannot be read: {exc.strerror}. Leave it out, or try again."
        ) from exc
    return search.result


def _files_below(place: Path, names: Collection[str]) -> Iterator[Path]:
    """Model files, and others that have one of the names; through links too, but no folder twice."""
    if place.is_file():
        yield place
        return
    seen = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if "snapshots" in folders and "blobs" in folders:
            folders.remove("blobs")  # of the Hub's cache: the same files without their names
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if (path.suffix in _MODEL_SUFFIXES or name in names) and path.is_file():
                yield path


@dataclass(kw_only=True)
class _Search:
    """One look through a folder: what is recognised in one way is not looked at in the next."""

    home: Path
    checkpoints: Sequence[Checkpoint]
    words: Words
    tables: Tables
    on_bytes: OnBytes
    entries: Mapping[str, LockEntry]
    result: Survey = field(default_factory=Survey)
    known: set[Path] = field(default_factory=set)  # files that need no further look
    sure_folders: set[Path] = field(default_factory=set)  # in which a file was recognised by its hash
    taken: set[WeightFile] = field(default_factory=set)
    hashes: dict[Path, str] = field(default_factory=dict)

    def by_access(self, paths: Iterable[Path]) -> None:
        """Files that this user may not read."""
        for path in paths:
            if not os.access(path, os.R_OK):
                self._refuse(path, "may not be read by this user")

    def by_hash(self, paths: Iterable[Path]) -> None:
        """Files of which the manifest knows size and hash, whatever their names are."""
        for path in self._unknown(paths):
            size = path.stat().st_size
            alike = [(c, f) for c in self.checkpoints for f in c.files if f.sha256 and f.size == size]
            sha256 = self._sha256(path) if alike else ""
            for checkpoint, file in alike:
                if file.sha256 == sha256:
                    self._take(path, checkpoint, file, "shipped")
                    self.sure_folders.add(path.parent)

    def by_folder(self, paths: Iterable[Path]) -> None:
        """The other files of checkpoints that are folders: beside sure ones, or on a person's word."""
        for folder in sorted({path.parent for path in self._unknown(paths)}):
            for checkpoint in self.checkpoints:
                if len(checkpoint.files) > 1 and PurePath(checkpoint.path).name == folder.name:
                    self._folder(folder, checkpoint)

    def _folder(self, folder: Path, checkpoint: Checkpoint) -> None:
        places = {file: folder / PurePath(file.path).name for file in checkpoint.files}
        rest = [file for file, path in places.items() if file not in self.taken and path.is_file()]
        if not rest or all(path.suffix == ".onnx" for path in places.values()):
            return
        is_covered = self.words.taken_as == checkpoint.name
        unproven = [places[file] for file in rest if file.sha256]
        if unproven and not is_covered:
            self._refuse_unproven(folder, checkpoint, unproven)
        elif is_covered or self._is_sure(folder):
            problems = self._examined(checkpoint, places)
            for problem in problems:
                self._refuse(problem.file, problem.what)
            for file in rest if not problems else ():
                self._take(places[file], checkpoint, file, "operator" if is_covered else "pinned")

    def _is_sure(self, folder: Path) -> bool:
        """Is it, or a folder beside it, one of the folders where a file was recognised by its hash?"""
        around = {folder, folder.parent}
        return any(sure in around or sure.parent == folder.parent for sure in self.sure_folders)

    def _examined(self, checkpoint: Checkpoint, places: Mapping[WeightFile, Path]) -> list[Problem]:
        """Do they go together? Of those that are not there nothing is said: a fetch brings them."""
        there = [(file, path) for file, path in places.items() if path.is_file()]
        held = [Held(path=path, entry=None, known=replace(file, size=None)) for file, path in there]
        is_whole = len(there) == len(places)
        alone = checkpoint if is_whole else replace(checkpoint, table=None)
        problems = examine(alone, held, {}, tables=self.tables)
        return problems if is_whole else [p for p in problems if not p.file.name.endswith(INDEX)]

    def _refuse_unproven(self, folder: Path, checkpoint: Checkpoint, files: Sequence[Path]) -> None:
        """Say what is wrong with files of our names, if anything shows that they are meant to be ours."""
        self.known.update(files)
        tensors: Tensors = {}
        for path in files:
            try:
                tensors |= tensors_in(path) if path.suffix in SUFFIXES else {}
            except UnreadableFile as exc:
                self._refuse(path, exc.what)
                return
        if any(file in self.taken for file in checkpoint.files):
            for path in files:
                self._refuse(path, "is not the published file, which the others in its folder are")
        elif tensors and checkpoint.table and not differences(tensors, self.tables(checkpoint.table)):
            self._refuse(folder, _unpublished([checkpoint]))

    def by_tensors(self, paths: Iterable[Path]) -> None:
        """Single files that have the tensors of a checkpoint and are none of the published ones."""
        for path in self._unknown(paths):
            if path.suffix not in SUFFIXES:
                continue
            try:
                self._single(path, tensors_in(path))
            except UnreadableFile as exc:
                if self._of_name(path):
                    self._refuse(path, exc.what)

    def _single(self, path: Path, tensors: Tensors) -> None:
        is_fp8 = any(info.dtype.startswith("F8") for info in tensors.values())
        fitting = [
            checkpoint
            for checkpoint in self.checkpoints
            if len(checkpoint.files) == 1
            and checkpoint.table
            and (path.suffix in PICKLES) == (PurePath(checkpoint.path).suffix in PICKLES)
            and is_fp8 != ("exact" in checkpoint.profiles)
            and not differences(tensors, self.tables(checkpoint.table))
        ]
        of_name = [checkpoint for checkpoint, _ in self._of_name(path)]
        if covered := [checkpoint for checkpoint in fitting if self.words.cover(checkpoint, path)]:
            self._take(path, covered[0], covered[0].files[0], "operator")
        elif pinned := [c for c in of_name if c in fitting and not c.files[0].sha256]:
            self._take(path, pinned[0], pinned[0].files[0], "pinned")
        elif fitting:
            self._refuse(path, _unpublished(fitting))
        elif of_name:
            wrong = differences(tensors, self.tables(str(of_name[0].table)))
            self._refuse(path, f"does not hold the tensors of {of_name[0].name}: {wrong}")

    def by_name(self, paths: Iterable[Path]) -> None:
        """ONNX files, which have no table: those of our names that are not the published ones."""
        for path in self._unknown(paths):
            for checkpoint, file in self._of_name(path) if path.suffix == ".onnx" else ():
                if problem := onnx_problem(path):
                    self._refuse(path, problem)
                elif self.words.cover(checkpoint, path):
                    self._take(path, checkpoint, file, "operator")
                else:
                    self._refuse(path, _unpublished([checkpoint]))

    def _unknown(self, paths: Iterable[Path]) -> list[Path]:
        return [path for path in paths if path not in self.known]

    def _of_name(self, path: Path) -> list[tuple[Checkpoint, WeightFile]]:
        """Of the names that say something; `model.safetensors` may be anything."""
        return [
            (checkpoint, file)
            for checkpoint in self.checkpoints
            for file in checkpoint.files
            if PurePath(file.path).name == path.name
            and (len(checkpoint.files) == 1 or path.suffix == ".onnx")
        ]

    def _take(self, path: Path, checkpoint: Checkpoint, file: WeightFile, trust: Trust) -> None:
        self.known.add(path)
        if file in self.taken:
            return
        self.taken.add(file)
        source, target = path.resolve(), self.home / file.path
        entry = lock.entry_of(
            source, sha256=self._sha256(path), source=f"imported from {source}", trust=trust
        )
        state = lock.state_of(target, self.entries.get(file.path))
        if state == "missing" or (state == "unchecked" and fingerprint(target) == entry.fingerprint):
            self.result.finds.append(Find(source=source, checkpoint=checkpoint, file=file, entry=entry))
        elif state in ("unchecked", "changed"):
            self._refuse(path, f"is {file.path}, but another file has its place: delete {target} first")
        else:
            self.result.there.append(file)

    def _sha256(self, path: Path) -> str:
        if path not in self.hashes:
            self.hashes[path] = lock.sha256_of(path, lambda count: self.on_bytes(path, count))
        return self.hashes[path]

    def _refuse(self, path: Path, why: str) -> None:
        self.known.add(path)
        self.result.refusals.append(Refusal(source=path, why=why))


def _unpublished(checkpoints: Sequence[Checkpoint]) -> str:
    names = [checkpoint.name for checkpoint in checkpoints]
    option = (
        "--trust-first"
        if PurePath(checkpoints[0].path).suffix in PICKLES or not checkpoints[0].table
        else "--as"
    )
    return (
        f"looks like {' or '.join(names)}, but is not the published file. If you know where it comes from, "
        f"take it with {' or '.join(f'{option} {name}' for name in names)}"
    )
