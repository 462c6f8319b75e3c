"""Which files an engine is made of, and that they are what they should be before any device is touched.

Between `weights`, which knows files and no profiles, and `server/engines.py`, which makes the engine.
Reads headers and a few blocks, so it takes milliseconds at any size. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pulid.errors import WeightsMissing
from pulid.profiles import SpeedProfile
from server.settings import SettingsError
from weights.errors import WeightsError
from weights.manifest import Checkpoint, Choice, needed
from weights.paths import present_or_default
from weights.tensor_files import UnreadableFile, tensors_in
from weights.verify import require

Loras = Sequence[tuple[Path, float]]  # files with their scales


def checkpoints_of(profile: SpeedProfile, home: Path, choice: Choice) -> list[Checkpoint]:
    """What fills the roles of a profile: the layouts that are there, else those that a fetch brings.

    `home` is the weights folder. Empty for a profile that has no weights.
    """
    roles = dict.fromkeys(checkpoint.role for checkpoint in needed(choice, profile.name))
    return [present_or_default(role, home, choice, profile.name) for role in roles]


def require_checkpoints(checkpoints: Sequence[Checkpoint], home: Path) -> None:
    """Raises WeightsMissing that names each file with something wrong, and what to do."""
    try:
        require(checkpoints, home)
    except WeightsError as exc:
        raise WeightsMissing(str(exc)) from exc


def require_loras(profile: SpeedProfile, loras: Loras) -> None:
    """Raises SettingsError or WeightsMissing. Whether the keys fit is seen when they are merged."""
    refuse_loras_that_fit_nothing(profile, loras)
    problems = [problem for path, _ in loras if (problem := _why_unreadable(path))]
    if problems:
        raise WeightsMissing(" ".join(problems) + " Correct the setting lora, or fetch the file again.")


def refuse_loras_that_fit_nothing(profile: SpeedProfile, loras: Loras) -> None:
    """Raises SettingsError where the profile has no published transformer."""
    if loras and not needed(Choice(), profile.name):
        raise SettingsError(
            f"The profile {profile.name} has a small model of its own that no LoRA file fits. "
            "Leave lora out, or choose another profile."
        )


def _why_unreadable(path: Path) -> str:
    if path.suffix != ".safetensors":
        return f"The LoRA file {path} is no .safetensors file; no other kind is read."
    try:
        tensors_in(path)
    except UnreadableFile as exc:
        return f"The LoRA file {path} {exc.what}."
    return ""
