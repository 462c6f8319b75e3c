"""The server on a Ray cluster of this machine, as a process of the tests' own.

    with ray_server(settings={"profile": "tiny", ...}, max_engines=2) as server:
        server.replicas("engine")

Ray is an extra that the tests' environment may lack: then a second one is made, of Ray and, through a path
file, of everything that is in the first. Knows processes and the wire; whatever happens, none is left.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil

from live_server import HERE, ServerProcess, clean_environment, wait_until

START_S = 240.0  # two tiny engines on two busy cores take more than one minute
STOP_S = 60.0
REPLACED_S = 60.0
CONSTRAINTS = HERE.parent / "configs" / "constraints.txt"


@functools.cache
def python_with_ray() -> str:
    """An interpreter that has Ray and what this one has."""
    if find_spec("ray") is not None:
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="flux-pulid-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, "ray[serve]>=2.60"]
    subprocess.run(install, check=True, timeout=600)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "first.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(python)


class RayServer(ServerProcess):
    """One life of a cluster with the application."""

    def __init__(self, arguments: Mapping[str, object], *, folder: Path, data_dir: Path, log: Path) -> None:
        self._folder = folder
        port = free_port()
        program = [python_with_ray(), str(HERE / "cluster" / "ray_program.py")]
        command = [*program, str(port), str(folder), json.dumps(arguments)]
        super().__init__(
            command, data_dir=data_dir, log=log, stdin=subprocess.PIPE, environment=environment()
        )
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_up(self) -> None:
        wait_until(lambda: self.said("Listening on"), START_S, self.explain)
        self.client = self.new_client()
        self.wait_until_ready()

    def said(self, words: str) -> bool:
        assert self.exit_code is None, self.explain()
        return words in self.output()

    def replicas(self, deployment: str) -> dict[int, psutil.Process]:
        """By number of the process."""
        title = f"ray::ServeReplica:flux-pulid:{deployment}"
        return {process.pid: process for process in self.processes() if name_of(process).startswith(title)}

    def replace(self, deployment: str, pid: int, signal: int) -> None:
        """Send a signal to one replica; return when it has ended and another one works in its place."""
        before = self.replicas(deployment)
        before[pid].send_signal(signal)
        wait_until(lambda: not before[pid].is_running() or is_gone(before[pid]), REPLACED_S, self.explain)
        wait_until(lambda: self.running(deployment) == len(before), REPLACED_S, self.explain)

    def running(self, deployment: str) -> int:
        """How many replicas Ray calls RUNNING, if nothing else is going on with this deployment."""
        asked = self.output().count("states ")
        self.tell("states")
        wait_until(lambda: self.output().count("states ") > asked, REPLACED_S, self.explain)
        states = json.loads(self.output().rpartition("states ")[2].partition("\n")[0])[deployment]
        return int(states.get("RUNNING", 0)) if set(states) == {"RUNNING"} else 0

    def end(self) -> None:
        """In order: all of Ray is gone when it ends."""
        left = self.processes()
        self.end_input()
        assert self.wait(STOP_S) == 0, self.explain()
        _, alive = psutil.wait_procs(left, timeout=STOP_S)
        assert alive == [], alive

    def clean_up(self) -> None:
        super().clean_up()
        for process in psutil.process_iter():  # raylets outlive a driver that is killed
            with_us = [str(self._folder) in part for part in command_of(process)]
            if any(with_us):
                process.kill()


@contextmanager
def ray_server(folder: Path, settings: Mapping[str, object], **arguments: object) -> Iterator[RayServer]:
    """Ready. At the end of the block it must end well; none of its processes is left in any case."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray_folder:
        data_dir = folder / "data"
        arguments["settings"] = {"data_dir": str(data_dir), "auth": "none", **settings}
        server = RayServer(arguments, folder=Path(ray_folder), data_dir=data_dir, log=folder / "log")
        try:
            server.wait_until_up()
            yield server
            server.end()
        finally:
            server.clean_up()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    ours = clean_environment() | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    return ours | {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "server.ray_serve:proxy_layers"}


def name_of(process: psutil.Process) -> str:
    return next(iter(command_of(process)), "")


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
