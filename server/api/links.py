"""Absolute URLs of jobs and pictures, as the caller of this request can reach them.

Clients request them exactly as given, so they are never relative. Where the base comes from is
decided in server/security/origin.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.jobs.job import JobFile, JobRecord


@dataclass(frozen=True, slots=True)
class Links:
    base: str  # "https://host"
    mount: str  # "/json" where the caller uses that base URL, else ""

    def status(self, job_id: str) -> str:
        return f"{self.base}{self.mount}/v2/requests/{job_id}/status"

    def result(self, job_id: str) -> str:
        return f"{self.base}{self.mount}/v2/requests/{job_id}"

    def poll(self, job_id: str) -> str:
        """The older address of the result."""
        return f"{self.base}{self.mount}/v1/requests/{job_id}"

    def picture(self, record: JobRecord, file: JobFile) -> str:
        return f"{self.base}/outputs/{record.media_id}/{file.name}"

    def pictures(self, record: JobRecord) -> list[str]:
        return [self.picture(record, file) for file in record.files]
