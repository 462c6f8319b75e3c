"""Bodies and pictures as objects of an S3-compatible store: what `files.py` keeps in folders.

    PREFIX/bodies/<job id>            PREFIX/media/<media id>/0.webp

An object is whole or not there. The endpoint and who may use it are AWS's own variables
(AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on). Each object is opened anew in each process, so these
classes travel by pickle. Knows no records. All of it blocks, without holding the interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from server.jobs.files import ID, MEDIA_NAME, ImageFile, checked, job_file
from server.jobs.job import JobFile, StoreFailed

PATIENCE_S = 20  # of one call with its retries; a worker that says nothing for longer is taken for stalled


@dataclass(frozen=True)
class ObjectFolder:
    """The objects under one address, such as s3://bucket/prefix."""

    url: str

    @cached_property
    def store(self) -> ObjectStore:
        return open_store(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def put(self, path: str, data: bytes) -> None:
        """Raises StoreFailed."""
        with _faults_as(StoreFailed):
            obstore.put(self.store, path, data)

    def get(self, path: str) -> bytes:
        """Raises FileNotFoundError, or another OSError."""
        with _faults_as(OSError):
            return bytes(obstore.get(self.store, path).bytes())

    def delete(self, paths: Sequence[str]) -> None:
        """What is not there is no fault. Raises OSError."""
        with _faults_as(OSError), suppress(FileNotFoundError):
            if paths:
                obstore.delete(self.store, list(paths))

    def older(self, folder: str, seconds: float) -> Iterator[str]:
        """Paths below a folder that have been there for so long. Raises OSError."""
        latest = datetime.now(UTC) - timedelta(seconds=seconds)
        with _faults_as(OSError):
            for page in obstore.list(self.store, f"{folder}/"):
                for found in page:
                    if not seconds or found["last_modified"] < latest:
                        yield found["path"]


class ObjectBodies:
    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder

    def write(self, job_id: str, body: bytes) -> None:
        self._folder.put(_body(job_id), body)

    def read(self, job_id: str) -> bytes:
        return self._folder.get(_body(job_id))

    def delete(self, job_id: str) -> None:
        self._folder.delete([_body(job_id)])

    def delete_others(self, job_ids: Collection[str], *, older_than_s: float = 0.0) -> None:
        known = {_body(job_id) for job_id in job_ids}
        self._folder.delete(
            [path for path in self._folder.older("bodies", older_than_s) if path not in known]
        )

    def probe(self) -> None:
        self._folder.put("probe", b"\0")
        with _faults_as(StoreFailed):
            obstore.delete(self._folder.store, "probe")


class ObjectMedia:
    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder

    def save(self, media_id: str, files: Sequence[ImageFile]) -> tuple[JobFile, ...]:
        """What was put before a failure is deleted again, or cleared away later: no record names it."""
        named = {f"{index}.{file.format}": file for index, file in enumerate(files)}
        try:
            for name, file in named.items():
                self._folder.put(_picture(media_id, name), file.data)
        except BaseException:
            with suppress(OSError):
                self.delete(media_id)
            raise
        return tuple(job_file(name, file) for name, file in named.items())

    def read(self, media_id: str, name: str) -> bytes:
        return self._folder.get(_picture(media_id, name))

    def delete(self, media_id: str) -> None:
        self._folder.delete(list(self._folder.older(f"media/{checked(ID, media_id)}", 0)))

    def media_ids(self, *, older_than_s: float = 0.0) -> set[str]:
        return {path.split("/")[1] for path in self._folder.older("media", older_than_s)}


def open_store(url: str) -> ObjectStore:
    """Raises ValueError for an address that is none."""
    try:
        return from_url(
            url,
            client_options={
                "timeout": f"{PATIENCE_S // 2}s",
                "connect_timeout": "3s",
                "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
            },
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=PATIENCE_S)},
        )
    except BaseError as exc:
        raise ValueError(str(exc)) from exc


def _body(job_id: str) -> str:
    return f"bodies/{checked(ID, job_id)}"


def _picture(media_id: str, name: str) -> str:
    return f"media/{checked(ID, media_id)}/{checked(MEDIA_NAME, name)}"


@contextmanager
def _faults_as(error: Callable[[str], Exception]) -> Iterator[None]:
    """FileNotFoundError passes. Other texts name buckets and hosts: they are the cause, for the log."""
    try:
        yield
    except BaseError as exc:
        raise error("its object store does not answer") from exc
