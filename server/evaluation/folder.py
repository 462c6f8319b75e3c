"""The folder of a report: what was asked for, what is done, and that one command alone writes it.

    evaluation.json   what decides about the pictures; another evaluation is refused by it
    photos.json       what is known of the photos: which were left out, and how alike they are
    photos/           small copies of the photos, for the page
    pictures/         the painted pictures
    results.csv       a line for each of them, added when the picture is whole
    summary.json, index.html   made from the above, at any time

Files are written under a temporary name and renamed; a line of results.csv that a kill has cut is
removed when the folder is opened again. Knows no engine, no numbers and no markup.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pulid.errors import EngineFailed
from server.errors import InvalidParameters
from server.evaluation.inputs import wrong

_MANIFEST, _PHOTOS, _RESULTS, _LOCK = "evaluation.json", "photos.json", "results.csv", "lock"
_TEMPORARY = ".tmp"
_BEFORE_THE_FIRST = {_LOCK, _MANIFEST + _TEMPORARY}  # what a command leaves that is killed at its very start


class ReportFolder:
    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    @contextmanager
    def open(cls, root: Path, manifest: Mapping[str, Any], columns: Sequence[str]) -> Iterator[ReportFolder]:
        """The folder for this evaluation alone: new, or the one in which it was begun.

        `columns` are those of results.csv. Raises InvalidParameters for a folder that is something else.
        """
        folder = cls(root)
        folder._make()
        with folder._locked():
            folder._begin(manifest, columns)
            yield folder

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Around what makes sense of the files here. Raises InvalidParameters where somebody changed them."""
        try:
            yield
        except (KeyError, TypeError, ValueError, csv.Error) as exc:
            raise _damaged(self.root) from exc

    def rows(self) -> list[dict[str, str]]:
        """Of results.csv, as text."""
        return list(csv.DictReader(io.StringIO((self.root / _RESULTS).read_text("utf-8"))))

    def add_row(self, values: Sequence[object]) -> None:
        """On return the line survives a kill. Raises EngineFailed on a full disk."""
        with self._writing(_RESULTS), (self.root / _RESULTS).open("ab", buffering=0) as file:
            file.write(_csv_line(values))
            os.fsync(file.fileno())

    def write(self, name: str, data: bytes | str) -> None:
        """Replace a file as a whole. Raises EngineFailed on a full disk."""
        path = self.root / name
        temporary = path.with_name(path.name + _TEMPORARY)
        with self._writing(name):
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            temporary.replace(path)

    def photo_facts(self) -> dict[str, Any] | None:
        """What `write_photo_facts` was told; None before."""
        path = self.root / _PHOTOS
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def write_photo_facts(self, facts: Mapping[str, Any]) -> None:
        self.write(_PHOTOS, json.dumps(facts, indent=2, ensure_ascii=False))

    def _make(self) -> None:
        if not self.root.parent.is_dir():
            raise wrong("out", f"The folder {self.root.parent} of --out does not exist.")
        try:
            self.root.mkdir(exist_ok=True)
            writable = os.access(self.root, os.W_OK | os.X_OK)
        except OSError as exc:
            raise wrong("out", f"--out {self.root} cannot be a folder: {exc.strerror}.") from exc
        if not writable:
            raise wrong("out", f"--out {self.root} cannot be written. Give another folder.")
        names = {file.name for file in self.root.iterdir()}
        if names - _BEFORE_THE_FIRST and _MANIFEST not in names:
            raise wrong("out", f"--out {self.root} is not empty and holds no report. Give another folder.")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise wrong("out", f"Another command is writing the report in {self.root}.") from exc
            yield

    def _begin(self, manifest: Mapping[str, Any], columns: Sequence[str]) -> None:
        path = self.root / _MANIFEST
        wanted = json.loads(json.dumps(manifest))
        if path.exists():
            self._require_same(_parsed(path), wanted)
        else:
            self.write(_MANIFEST, json.dumps(wanted, indent=2, ensure_ascii=False))
        results = self.root / _RESULTS
        if not results.exists():
            self.write(_RESULTS, _csv_line(columns))
        _drop_cut_line(results)

    def _require_same(self, found: Any, wanted: Mapping[str, Any]) -> None:
        old = found if isinstance(found, dict) else {}
        differing = [name for name in wanted if old.get(name) != wanted[name]]
        if differing:
            raise wrong(
                "out",
                f"{self.root} holds a report of other settings; different: {', '.join(differing)}. "
                "Give the command as it was then, or another folder with --out.",
            )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise EngineFailed(f"{self.root / name} cannot be written: {exc.strerror}.") from exc


def _parsed(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_text("utf-8"))
    except ValueError as exc:
        raise _damaged(manifest) from exc


def _damaged(path: Path) -> InvalidParameters:
    return wrong("out", f"{path} is no longer what this command wrote. Give another folder with --out.")


def _csv_line(values: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode()


def _drop_cut_line(results: Path) -> None:
    """No value holds a line end, so a whole line ends with the only one."""
    data = results.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(results, whole)
