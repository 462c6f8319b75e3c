"""A Debian folder that stands for a container: the steps of the Dockerfile run in it for real.

`debootstrap` makes the root of the base image, each stage gets a copy of the one it stands on, and a
step runs in it by chroot in mount and process namespaces of its own, with the stage's environment
and nothing of the host's. Left out of what an engine does: layers, caches, and the network's walls.
pip's own settings on this machine (mirrors, folders of wheels, certificates) count inside too.

Needs root, Linux and debootstrap.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from docs.dockerfile import Dockerfile, pairs_in
from docs.project_files import ROOT, project_files

MIRROR = "http://deb.debian.org/debian"
_LOOPBACK_UP = (
    "import fcntl, socket, struct; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14s', b'lo', 1, b''))"  # SIOCSIFFLAGS, IFF_UP
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def what_is_missing() -> str:
    """Why no root can be made here; empty where one can."""
    programs = [name for name in ("debootstrap", "unshare", "chroot", "mount") if shutil.which(name) is None]
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "it makes a Debian root: run it on Linux as root"
    return f"it needs {', '.join(programs)}: apt-get install debootstrap util-linux" if programs else ""


@dataclass(frozen=True)
class PipSettings:
    """How pip is set up on this machine, to be the same inside."""

    environment: dict[str, str]
    folders: tuple[Path, ...]  # that it reads

    @classmethod
    def of_this_machine(cls) -> PipSettings:
        command = [sys.executable, "-m", "pip", "config", "list"]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        pairs = [line.partition("=") for line in listing.splitlines()]
        values = {key.rpartition(".")[2]: shlex.split(value)[0] for key, _, value in pairs}
        values.pop("no-cache-dir", None)
        places = [place for value in values.values() for place in value.split()]
        paths = {Path(urlsplit(place).path) for place in places if place.startswith(("/", "file:/"))}
        return cls(
            {f"PIP_{key.upper().replace('-', '_')}": value for key, value in values.items()},
            tuple(sorted(_top_of(path) for path in paths if path.exists())),
        )

    @property
    def build_arguments(self) -> dict[str, str]:
        """An index that this machine adds takes the place of the one that the Dockerfile adds."""
        added = self.environment.get("PIP_EXTRA_INDEX_URL")
        return {"TORCH_INDEX": added} if added else {}


def _top_of(path: Path) -> Path:
    """A simple index refers to files beside it."""
    return path.parent if path.name == "simple" else path


@dataclass
class Room:
    """The root of one stage, and what is true in it."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)  # by ENV
    arguments: dict[str, str] = field(default_factory=dict)  # by ARG
    folder: str = "/"

    def run(
        self,
        command: str,
        *,
        user: str = "0:0",
        given: Mapping[str, str] | None = None,
        folders: tuple[Path, ...] = (),
        writable: tuple[str, ...] | None = None,
        timeout_s: float = 1200,
    ) -> str:
        """Run a shell command line inside; its output. Raises AssertionError when it fails.

        `folders` of the host are seen under their own names. With `writable` it is as compose.yaml starts
        it: only these folders of the root and a new /tmp can be written. There is no network then but a
        loopback of its own, on which every port is free.
        """
        environment = {"PATH": PATH, **self.environment, **(given or {})}
        assignments = " ".join(shlex.quote(f"{key}={value}") for key, value in environment.items())
        inside = f"cd {self.folder} && {command}"
        script = "\n".join(
            (
                "set -e",
                *self._mounts(folders),
                *(self._walls(writable) if writable is not None else ()),
                f"exec chroot --userspec={user} {self.path} /usr/bin/env -i {assignments} "
                f"/bin/sh -c {shlex.quote(inside)}",
            )
        )
        spaces = ["--mount", "--pid", *(["--net"] if writable is not None else [])]
        command_line = ["unshare", *spaces, "--fork", "--kill-child", "/bin/sh", "-c", script]
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def _mounts(self, folders: tuple[Path, ...]) -> list[str]:
        lines = [
            f"mount -t proc proc {self.path}/proc",
            f"mount --rbind /dev {self.path}/dev",
            f"touch {self.path}/etc/resolv.conf",
            f"mount --bind /etc/resolv.conf {self.path}/etc/resolv.conf",
        ]
        for folder in folders:
            place = f"{self.path}{folder}"
            make = (
                f"mkdir -p {place}" if folder.is_dir() else f"mkdir -p {Path(place).parent} && touch {place}"
            )
            lines += [make, f"mount --bind {folder} {place}"]
        return lines

    def _walls(self, writable: tuple[str, ...]) -> list[str]:
        kept = [f"mount --bind {self.path}{folder} {self.path}{folder}" for folder in writable]
        return [
            shlex.join([sys.executable, "-c", _LOOPBACK_UP]),
            f"mount --rbind {self.path} {self.path}",
            *kept,
            f"mount -t tmpfs tmpfs {self.path}/tmp",
            f"mount -o remount,bind,ro {self.path}",
        ]


class BareRoots:
    """The stages of a Dockerfile as folders below `folder`."""

    def __init__(self, folder: Path, dockerfile: Dockerfile) -> None:
        self.folder = folder
        self.dockerfile = dockerfile
        self.pip = PipSettings.of_this_machine()
        self.rooms: dict[str, Room] = {}

    def room(self, stage: str) -> Room:
        """The root of a stage after its steps, made when it is asked for first."""
        if stage not in self.rooms:
            self.rooms[stage] = self._made(stage)
        return self.rooms[stage]

    def _made(self, name: str) -> Room:
        stage = self.dockerfile.stages[name]
        room = Room(self.folder / name)
        if stage.base in self.dockerfile.stages:
            below = self.room(stage.base)
            subprocess.run(["cp", "-a", below.path, room.path], check=True)
            room.environment, room.folder = dict(below.environment), below.folder
        else:
            _debootstrap(stage.base, room.path)
        for instruction, arguments in stage.steps:
            self._step(room, instruction, arguments)
        return room

    def _step(self, room: Room, instruction: str, arguments: str) -> None:
        match instruction:
            case "ENV":
                room.environment |= dict(pairs_in(arguments))
            case "ARG":
                key, _, default = arguments.partition("=")
                room.arguments[key] = self.pip.build_arguments.get(key, default)
            case "WORKDIR":
                room.folder = arguments
                (room.path / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(room, arguments)
            case "RUN":
                # ENV is stronger than what an engine is given from outside.
                given = {**self.pip.environment, **room.environment, **room.arguments}
                folders = self.pip.folders if "pip install" in arguments else ()
                room.run(arguments, given=given, folders=folders)

    def _copy(self, room: Room, arguments: str) -> None:
        *sources, target = arguments.split()
        if sources[0].startswith("--from="):
            other = self.room(sources.pop(0).removeprefix("--from="))
            (source,) = sources
            shutil.copytree(other.path / source.lstrip("/"), room.path / target.lstrip("/"), symlinks=True)
            return
        for source in sources:
            for name in project_files():
                if name == source or name.startswith(f"{source}/"):
                    # A folder's content goes into the target, a file into it under its own name.
                    is_file = name == source
                    below = Path(name).name if is_file else str(Path(name).relative_to(source))
                    place = room.path / room.folder.lstrip("/") / target
                    place = place if is_file and not target.endswith("/") else place / below
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, place)


def _debootstrap(image: str, root: Path) -> None:
    """The root of `debian:<release>-slim`."""
    distribution, _, tag = image.partition(":")
    if distribution != "debian":
        raise ValueError(f"debootstrap makes no {image}")
    release = tag.removesuffix("-slim")
    subprocess.run(
        ["debootstrap", "--variant=minbase", release, root, MIRROR], check=True, capture_output=True
    )
