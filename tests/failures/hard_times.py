"""A server process in a world that can be made worse: little patience, a small disk, few file handles.

`hard_server` starts the staged server with thresholds that a test can reach. `limits_of` takes
resources from a running process and gives them back. Linux only, like the signals of these tests.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from fakes import Script
from live_server import ServerProcess

PROGRAM = Path(__file__).with_name("hard_server.py")
TESTS = PROGRAM.parents[1]


@contextmanager
def hard_server(
    data_dir: Path,
    *,
    scripted: Script,
    stall_floor_s: float | None = None,
    min_free_bytes: int | None = None,
    disk_mb: int | None = None,
) -> Iterator[ServerProcess]:
    """A ready server; it is killed at the end. `disk_mb`: its data folder is a disk of its own.

    That disk is seen by the server alone; the test reaches it by `seen_by`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    flags = [f"--script={scripted.folder}", *(["--gated"] if scripted.gated else [])]
    flags += [] if stall_floor_s is None else [f"--stall-floor-s={stall_floor_s}"]
    flags += [] if min_free_bytes is None else [f"--min-free-bytes={min_free_bytes}"]
    serve = ["serve", "--port=0", "--profile=tiny", f"--data-dir={data_dir}"]
    command = ["env", f"PYTHONPATH={TESTS}", sys.executable, str(PROGRAM), *flags, *serve]
    if disk_mb is not None:
        command = on_own_disk(data_dir, disk_mb, command)
    log = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.log")
    server = ServerProcess(command, data_dir=data_dir, log=log)
    try:
        server.wait_until_listening()
        server.wait_until_ready()
        yield server
    finally:
        server.clean_up()


def on_own_disk(folder: Path, size_mb: int, command: list[str]) -> list[str]:
    """The command with a new file system in `folder`, in a mount namespace that ends with it."""
    script = 'mount -t tmpfs -o size="$1"m tmpfs "$2" && shift 2 && exec "$@"'
    wrapped = ["sh", "-c", script, "sh", str(size_mb), str(folder), *command]
    return ["unshare", "--user", "--map-root-user", "--mount", *wrapped]


def seen_by(server: ServerProcess, path: Path) -> Path:
    """A path of the server's own file systems."""
    return Path(f"/proc/{server.pid}/root{path}")


@contextmanager
def limits_of(processes: list[psutil.Process], resource: int, most: int) -> Iterator[None]:
    """Running processes may have no more than `most` of a resource; afterwards as much as before."""
    before = [(process, process.rlimit(resource)) for process in processes]
    try:
        for process, (_, hard) in before:
            process.rlimit(resource, (most, hard))
        yield
    finally:
        for process, limits in before:
            if process.is_running():
                process.rlimit(resource, limits)
