"""The machine: driver, torch, cards, memory. Judged by what the profile in force needs.

Torch is asked through server/engines.py, the driver by its own program. Nothing here takes memory of
a card or changes anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pulid.errors import DeviceUnavailable, SetupError
from pulid.profiles import PROFILES, SpeedProfile, fits, on_card, why_not
from server import engines
from server.checks.finding import Finding, fault, gigabytes, ok, warning

if TYPE_CHECKING:
    from pulid.probe import Card, TorchFacts

_PATIENCE_S = 30.0  # nvidia-smi starts the driver where nothing else has
_INSTALL = "pip install --force-reinstall -c configs/constraints.txt torch torchvision"
# Of the host, for each worker: an engine that computes on the CPU; one that only passes through to a card,
# where the largest tensor on its way and the libraries count.
_HOST_MEMORY = {"cpu": 2 * 10**9, "cuda": 8 * 10**9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What nvidia-smi says."""

    problem: str = ""  # why it says nothing
    version: str = ""
    cuda: str = ""  # the newest CUDA release it serves
    free: dict[str, int] = field(default_factory=dict)  # bytes, by the card's uuid


def machine(profile: SpeedProfile, devices: str) -> Iterator[Finding]:
    """Driver, torch, each card that would be used, memory."""
    driver = read_driver() if profile.device == "cuda" else Driver()
    try:
        facts = engines.torch_facts()
    except SetupError as exc:
        yield fault("torch", str(exc))
        return
    yield check_driver(profile, driver, sees_cards=bool(facts.cards))
    yield check_torch(profile, driver, facts)
    yield from check_cards(profile, driver, facts, devices)
    yield check_memory(profile, workers=max(1, _workers(profile, devices)))


def read_driver() -> Driver:
    """The driver's own report. Never raises."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Driver(problem="nvidia-smi is not installed")
    try:
        done = subprocess.run(
            [program, "-q", "-x"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Driver(problem=f"nvidia-smi does not answer ({type(exc).__name__})")
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).partition("\n")[0]
        return Driver(problem=f"nvidia-smi says: {said or done.returncode}")
    return _driver_from(done.stdout)


def _driver_from(report: str) -> Driver:
    try:
        root = ElementTree.fromstring(report)  # noqa: S314 - of the driver's own program
    except ElementTree.ParseError:
        return Driver(problem="nvidia-smi answers in an unknown form")
    memory = {
        card.findtext("uuid", ""): _mebibytes(card.findtext("fb_memory_usage/free", ""))
        for card in root.iter("gpu")
    }
    return Driver(
        version=root.findtext("driver_version", ""),
        cuda=root.findtext("cuda_version", ""),
        free={uuid: free for uuid, free in memory.items() if free is not None},
    )


def _mebibytes(text: str) -> int | None:
    match = re.fullmatch(r"(\d+) MiB", text.strip())
    return int(match[1]) * 2**20 if match else None


def check_driver(profile: SpeedProfile, driver: Driver, *, sees_cards: bool) -> Finding:
    """`sees_cards`: does torch? Then the driver works, whatever its own program says."""
    if profile.device == "cpu":
        return ok("driver", f"Not needed: the profile {profile.name} computes on the CPU.")
    if driver.problem and sees_cards:
        return warning(
            "driver",
            f"It works, but cannot be asked what others hold of the cards: {driver.problem}. In a container, "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility brings nvidia-smi.",
        )
    if driver.problem:
        return fault(
            "driver",
            f"There is no working NVIDIA driver here: {driver.problem}. Install NVIDIA's driver, release "
            "580 or later, and reboot; in a container, start it with the NVIDIA container toolkit "
            "(--gpus all). Without a card only --profile tiny runs.",
        )
    return ok("driver", f"NVIDIA {driver.version}, for CUDA up to {driver.cuda or 'an unknown release'}.")


def check_torch(profile: SpeedProfile, driver: Driver, facts: TorchFacts) -> Finding:
    """Was torch built for what is here?"""
    name = f"torch {facts.version}"
    if profile.device == "cpu":
        return ok("torch", f"{name}, on the CPU.")
    if facts.cuda is None:
        return fault(
            "torch",
            f"{name} is built for the CPU alone. Install the CUDA build, without an index or a folder of CPU "
            f"builds: {_INSTALL}",
        )
    if driver.cuda and _major(driver.cuda) < _major(facts.cuda):
        return fault(
            "torch",
            f"{name} is built for CUDA {facts.cuda}, and the driver {driver.version} serves CUDA up to "
            f"{driver.cuda}. Update the driver, or install a torch that is built for CUDA "
            f"{_major(driver.cuda)}: docs/deployment.md.",
        )
    if not facts.cards:
        limit = os.environ.get("CUDA_VISIBLE_DEVICES")
        narrowed = "" if limit is None else f" CUDA_VISIBLE_DEVICES is {limit!r}: is that meant?"
        return fault(
            "torch",
            f"{name} for CUDA {facts.cuda} sees no card: {facts.why_no_cards}.{narrowed} Compare with "
            "nvidia-smi, and reboot after an update of the driver.",
        )
    return ok("torch", f"{name}, built for CUDA {facts.cuda}.")


def _major(release: str) -> int:
    return int(release.partition(".")[0])


def check_cards(profile: SpeedProfile, driver: Driver, facts: TorchFacts, devices: str) -> Iterator[Finding]:
    """One finding for each card that would be used. Without any, why not."""
    if profile.device == "cpu":
        return
    try:
        wanted = set(engines.devices_for(profile, devices))
    except DeviceUnavailable as exc:
        yield fault("cards", str(exc))
        return
    for card in facts.cards:
        if f"cuda:{card.number}" in wanted:
            yield check_card(profile, card, driver.free.get(card.uuid))


def check_card(profile: SpeedProfile, card: Card, free: int | None) -> Finding:
    """`free` in bytes, None where nobody knows."""
    check = f"cuda:{card.number}"
    what = f"{card.name}, {gigabytes(card.memory)}"
    if not card.has_kernels:
        return fault(
            check,
            f"{what}: this build of torch has no code for it. Install a build for this generation of cards, "
            "or choose other cards with --devices.",
        )
    if problem := why_not(profile, check, card.name, card.capability):
        return fault(check, problem)
    fitting = [p.name for p in PROFILES.values() if fits(p, card)]
    if card.memory < profile.device_memory:
        smaller = f"--profile {fitting[0]} fits" if fitting else "No profile for smaller cards exists yet"
        return fault(
            check,
            f"{what}: {profile.name} needs {gigabytes(profile.device_memory)}. Choose cards with more with "
            f"--devices. {smaller}.",
        )
    if free is not None and free < profile.device_memory:
        return warning(
            check,
            f"{what}, of which {gigabytes(free)} are free: {profile.name} needs "
            f"{gigabytes(profile.device_memory)}. nvidia-smi shows who holds the rest; a running server of "
            "this project on the card is reason enough.",
        )
    room = "" if free is None else f", {gigabytes(free)} free"
    form = on_card(profile, card.capability).linears
    how = (
        "" if form == profile.linears else f" {profile.name} computes in {form} there, not {profile.linears}."
    )
    return ok(check, f"{what}{room}. What fits: {', '.join(fitting)}.{how}")


def _workers(profile: SpeedProfile, devices: str) -> int:
    try:
        return len(engines.devices_for(profile, devices))
    except DeviceUnavailable:
        return 0


def check_memory(profile: SpeedProfile, *, workers: int) -> Finding:
    needed = workers * (_HOST_MEMORY[profile.device] + profile.host_memory)
    available = available_memory()
    if available is None:
        return ok("memory", f"Unknown here; {profile.name} needs {gigabytes(needed)} of the host.")
    found = f"{gigabytes(available)} of the host are available"
    if available < needed:
        return warning(
            "memory",
            f"{found}, and {profile.name} wants {gigabytes(needed)} for {workers} worker(s). Stop something "
            "else, raise the container's limit, or use fewer devices.",
        )
    return ok("memory", f"{found}.")


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that may still be used, the container's limit included; None where no /proc tells."""
    try:
        report = (proc / "meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", report, re.MULTILINE)
    limits = [_room_in(cgroup)] + ([int(match[1]) * 1024] if match else [])
    return min((limit for limit in limits if limit is not None), default=None)


def _room_in(cgroup: Path) -> int | None:
    """What a container's limit leaves. Files that can be read again do not count as used."""
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no cgroup 2, or its root
        return None
    return None if limit == "max" else int(limit) - int(used) + (int(cached[1]) if cached else 0)
