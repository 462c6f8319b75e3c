"""A job's record as a row of a database, whichever: names of columns, and what is JSON in them.

Knows no SQL. A row is read by the names of its columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from server.errors import FieldProblem
from server.jobs.job import JobFile, JobRecord, JobState


class Row(Protocol):
    def __getitem__(self, column: str, /) -> Any: ...


COLUMNS = (
    "id",
    "key",
    "api",
    "state",
    "submitted_at",
    "deadline_at",
    "started_at",
    "finished_at",
    "width",
    "height",
    "max_sequence_length",
    "num_steps",
    "num_outputs",
    "seed",
    "tries",
    "deaths",
    "media_id",
    "files",
    "error",
    "error_code",
    "error_fields",
    "similarities",
)
TIMES = ("submitted_at", "deadline_at", "started_at", "finished_at")  # Unix seconds
_NEVER_CHANGE = {"id", "key", "api", "submitted_at", "media_id"}  # their indexes would be written anew
CHANGING = tuple(column for column in COLUMNS if column not in _NEVER_CHANGE)


def row_of(record: JobRecord) -> dict[str, object]:
    row: dict[str, object] = {column: getattr(record, column) for column in COLUMNS}
    return row | {
        "state": record.state.value,
        "files": json_of(record.files),
        "error_fields": json_of(record.error_fields),
        "similarities": json.dumps(record.similarities),
    }


def record_of(row: Row) -> JobRecord:
    values: dict[str, Any] = {column: row[column] for column in COLUMNS}
    values |= {
        "state": JobState(row["state"]),
        "files": files_of(row["files"]),
        "error_fields": tuple(FieldProblem(**problem) for problem in json.loads(row["error_fields"])),
        "similarities": tuple(tuple(picture) for picture in json.loads(row["similarities"])),
    }
    return JobRecord(**values)


def json_of(items: Sequence[JobFile | FieldProblem]) -> str:
    return json.dumps([asdict(item) for item in items])


def files_of(text: str) -> tuple[JobFile, ...]:
    return tuple(JobFile(**file) for file in json.loads(text))
