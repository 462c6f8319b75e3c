"""How the files of a checkpoint stand in a weights folder, and what each of them must be.

Reads the lock file and the files themselves; asks no server and changes nothing. A file is known by
its hash where anybody has said one, and by its tensors where its checkpoint has a table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from weights import lock, tables, tensor_files
from weights.errors import UntrustedFile, WrongFile
from weights.lock import LockEntry, State, Trust
from weights.manifest import Checkpoint, WeightFile
from weights.onnx_files import onnx_problem
from weights.paths import is_present, path_of
from weights.pickles import TensorInfo

_MAY_HOLD_CODE = {".pt", ".pth", ".onnx"}
_HEAD = 4096  # bytes
_AGAIN = "and run the same command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file of a checkpoint, and how it stands with it."""

    checkpoint: Checkpoint
    file: WeightFile
    state: State
    expected: str | None  # its SHA-256, as far as anybody has said
    trust: Trust  # who vouches for it once it is here

    def wrong(self, what: str) -> WrongFile:
        """That the file is `what` instead, and what to do."""
        wanted = f"SHA-256 {self.expected or 'unknown'}"
        if self.state == "unchecked":
            return WrongFile(
                f"{self.file.path} in the weights folder is not the file of that name ({wanted}), but "
                f"{what}. Delete it or move it away, {_AGAIN}."
            )
        address = self.file.source.address
        if self.trust == "shipped" or not self.expected:
            return WrongFile(
                f"{address} is not the file that this version of the server knows ({wanted}), but {what}. "
                "Nothing of it was kept. If HF_ENDPOINT or a proxy names a mirror, try without it; otherwise "
                "its publisher has replaced it: look for a newer version of this server."
            )
        return WrongFile(
            f"{address} is not what it was when it was first fetched ({wanted} in {lock.NAME}), but {what}. "
            "Nothing of it was kept. If its publisher has announced the change and you trust it, take the "
            f"entry out of that file {_AGAIN}."
        )


def plan(checkpoints: Iterable[Checkpoint], home: Path, trust_first: Collection[str] = ()) -> list[Item]:
    """Every file of the checkpoints; takes milliseconds.

    `trust_first` names checkpoints whose files a person accepts although nobody has said their hash.
    Raises WrongFile for files that have changed or a damaged lock file, and UntrustedFile.
    """
    known = lock.read(home)
    items = [
        _item(checkpoint, file, home, known.get(file.path))
        for checkpoint in checkpoints
        if not _has_a_copy(checkpoint, home)
        for file in checkpoint.files
    ]
    _refuse_changed(items, home)
    _refuse_untrusted(items, trust_first)
    return items


def prove(item: Item, path: Path, found: str, offered: str | None = None) -> None:
    """Raises WrongFile unless the hash `found` and what is in `path` are what they must be.

    `offered` is the hash that the server told, for a file of which nobody else has said one.
    """
    if found != (item.expected or offered or found):
        raise item.wrong(f"SHA-256 {found}")
    if what := _fault_in(path, item.checkpoint):
        raise item.wrong(f"one that {what}")


def _fault_in(path: Path, checkpoint: Checkpoint) -> str:
    if path.suffix == ".onnx":
        return onnx_problem(path)
    if path.suffix not in tensor_files.SUFFIXES:
        with path.open("rb") as file:
            return tensor_files.not_a_model(file.read(_HEAD))
    try:
        tensors = tensor_files.tensors_in(path)
    except tensor_files.UnreadableFile as exc:
        return exc.what
    return _other_tensors(tensors, checkpoint) if checkpoint.table else ""


def _other_tensors(tensors: Mapping[str, TensorInfo], checkpoint: Checkpoint) -> str:
    wanted = tables.table(str(checkpoint.table))
    if len(checkpoint.files) > 1:  # a shard has some of the keys
        here = {key: shape for key, shape in wanted.required.items() if key in tensors}
        wanted = replace(wanted, required=here)
    found = tables.differences(tensors, wanted)
    return f"has other tensors: {found}" if found else ""


def states(checkpoint: Checkpoint, home: Path, known: Mapping[str, LockEntry]) -> dict[str, State]:
    """How its files stand, by path below the folder; the converted copy where that stands for a pickle."""
    if _has_a_copy(checkpoint, home):
        copy = path_of(checkpoint, home).relative_to(home).as_posix()
        return {copy: lock.state_of(home / copy, known.get(copy))}
    return {file.path: _state(file, home, known.get(file.path)) for file in checkpoint.files}


def _has_a_copy(checkpoint: Checkpoint, home: Path) -> bool:
    """Does a converted copy stand for a pickle that is not there itself?"""
    return is_present(checkpoint, home) and not any((home / file.path).exists() for file in checkpoint.files)


def _state(file: WeightFile, home: Path, entry: LockEntry | None) -> State:
    state = lock.state_of(home / file.path, entry)
    if state in ("verified", "pinned") and entry is not None and file.sha256 not in (None, entry.sha256):
        return "changed"  # the manifest knows better by now; an operator's word stays
    return state


def _item(checkpoint: Checkpoint, file: WeightFile, home: Path, entry: LockEntry | None) -> Item:
    first: Trust = "operator" if PurePath(file.path).suffix in _MAY_HOLD_CODE else "pinned"
    return Item(
        checkpoint=checkpoint,
        file=file,
        state=_state(file, home, entry),
        expected=file.sha256 or (entry.sha256 if entry else None),
        trust="shipped" if file.sha256 else entry.trust if entry else first,
    )


def _refuse_changed(items: Sequence[Item], home: Path) -> None:
    changed = [str(home / item.file.path) for item in items if item.state == "changed"]
    if changed:
        raise WrongFile(
            f"{', '.join(changed)}: not what {lock.NAME} says of it. It has changed since it was fetched, or "
            f"was replaced. Delete it {_AGAIN}."
        )


def _refuse_untrusted(items: Sequence[Item], trust_first: Collection[str]) -> None:
    untrusted = [
        item
        for item in items
        if item.trust == "operator" and item.expected is None and item.checkpoint.name not in trust_first
    ]
    if untrusted:
        flags = " ".join(sorted({f"--trust-first {item.checkpoint.name}" for item in untrusted}))
        raise UntrustedFile(
            f"{', '.join(item.file.path for item in untrusted)}: a file of this kind can hold code, and "
            "nobody has said which hash it must have. Nothing was fetched. If you trust its publisher "
            f"({untrusted[0].file.source.address}), add {flags}: its hash is then recorded in {lock.NAME}, "
            "and only that very file is taken ever after."
        )
