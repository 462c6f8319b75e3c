"""Makes safetensors copies of the checkpoints that are published as pickles; they are loaded in their place.

A copy has the published names, values and dtypes, but only the tensors of its table: of EVA-CLIP's
file the vision tower, without the text tower and the tables that are computed anyway. It loads
without unpickling, and the pickle may then be deleted. Torch is imported here, late, and reads a
pickle only after its hash, names and shapes were found right without it.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from weights import lock
from weights.errors import FetchFailed, FilesMissing, NotEnoughRoom, UntrustedFile, WrongFile
from weights.lock import LockEntry, Trust
from weights.manifest import Checkpoint
from weights.paths import converted_path
from weights.tables import Table, differences, table
from weights.tensor_files import PICKLES, state_dict, tensors_in
from weights.verify import FETCH_AGAIN, Held, OnBytes, Tables, examine

_SPARE = 64 << 20  # bytes that are left free on the disk


def is_convertible(checkpoint: Checkpoint) -> bool:
    return Path(checkpoint.path).suffix in PICKLES


def convert(
    checkpoint: Checkpoint,
    home: Path,
    *,
    tables: Tables = table,
    on_bytes: OnBytes = lambda file, count: None,
) -> Path | None:
    """Write the copy of a convertible checkpoint beside its pickle; None if it is there already.

    `on_bytes` hears of what is hashed. Raises WeightsError. The copy appears whole, or not at all.
    """
    (file,) = checkpoint.files
    pickle, copy = home / file.path, converted_path(home / file.path)
    with lock.fetching(home):
        entries = lock.read(home)
        if copy.is_file() and not pickle.exists():
            return None
        source = Held(path=pickle, entry=entries.get(file.path), known=file)
        _require_sound(checkpoint, source, entries, tables)
        made_from = f"{file.path}, SHA-256 {source.sha256}"
        recorded = entries.get(copy.relative_to(home).as_posix())
        if recorded and recorded.source == made_from and lock.state_of(copy, recorded) != "changed":
            return None
        _require_hash(source, on_bytes)
        _require_room(source)
        try:
            _write(pickle, copy, tables(str(checkpoint.table)), made_from)
            _record(copy, home, made_from, "operator" if source.is_accepted else "pinned", on_bytes)
        except OSError as exc:
            raise lock.cannot_write(copy, exc) from exc
    return copy


def _require_sound(
    checkpoint: Checkpoint, source: Held, entries: Mapping[str, LockEntry], tables: Tables
) -> None:
    for problem in examine(checkpoint, [source], entries, tables=tables):
        raise (FilesMissing if problem.is_missing else WrongFile)(str(problem))
    if source.sha256 is None:
        raise UntrustedFile(
            f"{source.path} is of a kind that can hold code, and nobody has said which hash it must have. If "
            f"you trust it, run `flux-pulid weights fetch {checkpoint.name} --trust-first {checkpoint.name}`."
        )


def _require_hash(source: Held, on_bytes: OnBytes) -> None:
    found = lock.sha256_of(source.path, lambda count: on_bytes(source.path, count))
    if found != source.sha256:
        raise WrongFile(f"{source.path} has SHA-256 {found}, expected {source.sha256}. {FETCH_AGAIN}")


def _require_room(source: Held) -> None:
    needed = source.path.stat().st_size + _SPARE
    free = shutil.disk_usage(source.path.parent).free
    if free < needed:
        raise NotEnoughRoom(
            f"A copy of {source.path} may take {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB "
            "free. Nothing was written. Make room and run the same command again."
        )


def _write(pickle: Path, copy: Path, wanted: Table, made_from: str) -> None:
    """Raises OSError, or FetchFailed."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        loaded = torch.load(pickle, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(pickle))
    except Exception as exc:  # torch's unpickler raises whatever the bytes lead it to
        raise WrongFile(f"{pickle} cannot be read by torch ({type(exc).__name__}). {FETCH_AGAIN}") from exc
    # Cloned, because tensors that share memory are no two tensors in a safetensors file.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict(loaded).items()
        if wanted.of_use(name)
    }
    part = copy.with_name(f".{copy.name}.part{copy.suffix}")
    try:
        save_file(tensors, part, metadata={"format": "pt", "made_from": made_from})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if wrong := differences(tensors_in(part), wanted):
            raise WrongFile(
                f"{pickle} has other tensors for torch than were seen in it: {wrong}. {FETCH_AGAIN}"
            )
        part.replace(copy)
    except SafetensorError as exc:
        raise FetchFailed(
            f"{copy} cannot be written: {exc}. Make room and run the same command again."
        ) from exc
    finally:
        part.unlink(missing_ok=True)
    lock.sync_folder(copy.parent)


def _record(copy: Path, home: Path, made_from: str, trust: Trust, on_bytes: OnBytes) -> None:
    sha256 = lock.sha256_of(copy, lambda count: on_bytes(copy, count))
    entry = lock.entry_of(copy, sha256=sha256, source=made_from, trust=trust)
    lock.record(home, {copy.relative_to(home).as_posix(): entry})
