"""The staged server with thresholds that a test can reach in seconds.

    python tests/failures/hard_server.py --stall-floor-s=2 --min-free-bytes=0 --script=FOLDER serve ...

Both are constants of the server on purpose: nobody who runs it needs to turn them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial

import server.app
import staged_server
from server.jobs.runner import JobLimits
from server.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stall-floor-s", type=float)
    parser.add_argument("--min-free-bytes", type=int)
    ours, rest = parser.parse_known_args()
    if ours.stall_floor_s is not None:
        original = server.app.job_limits

        def job_limits(settings: Settings) -> JobLimits:
            return replace(original(settings), stall_floor_s=ours.stall_floor_s)

        server.app.job_limits = job_limits
    if ours.min_free_bytes is not None:
        storage = partial(server.app.JobStorage, min_free_bytes=ours.min_free_bytes)
        server.app.JobStorage = storage  # type: ignore[misc, assignment]
    sys.argv[1:] = rest
    staged_server.main()


if __name__ == "__main__":
    main()
