"""The only door to the model: a profile's name in, a ready engine out.

Nothing here imports torch before a function is called, so the server and its command line start
at once. Never falls back silently: what was asked for is what computes, or the start ends.
"""

from __future__ import annotations

from pathlib import Path

from pulid.engine import Engine, FaceMode
from pulid.errors import DeviceUnavailable
from pulid.profiles import PROFILES, SpeedProfile, profile_named


def create_engine(*, profile: str | None, device: str, weights_dir: Path, face_mode: FaceMode) -> Engine:
    """Load an engine; takes seconds (tiny) to minutes. Call it in the thread that will drive it.

    `profile` None means exact. `device` is "all", "cpu" or the number of one GPU.
    Raises UnknownProfile, DeviceUnavailable or WeightsMissing.
    """
    chosen = PROFILES["exact"] if profile is None else profile_named(profile)
    place = place_of(chosen, device)
    if chosen.name == "tiny":
        from pulid.tiny import tiny_engine

        return tiny_engine(face_mode=face_mode)

    from pulid.load import load_engine
    from weights.paths import model_paths

    return load_engine(chosen, model_paths(weights_dir), place, face_mode=face_mode)


def place_of(profile: SpeedProfile, device: str) -> str:
    """The torch device for a profile: "cpu", "cuda" or "cuda:1". Raises DeviceUnavailable."""
    if profile.device == "cpu":
        if device not in ("all", "cpu"):
            raise DeviceUnavailable(
                f"The {profile.name} profile computes on the CPU. Set devices to cpu, or leave it out."
            )
        return "cpu"

    if device == "cpu" or not _cuda_available():
        found = "devices is set to cpu" if device == "cpu" else "no CUDA device was found"
        raise DeviceUnavailable(
            f"The {profile.name} profile needs a CUDA device, and {found}. To try the server without "
            "one, choose --profile tiny: it runs on any CPU and paints abstract pictures."
        )
    return "cuda" if device == "all" else f"cuda:{device}"


def _cuda_available() -> bool:
    from pulid.probe import cuda_available

    return cuda_available()
