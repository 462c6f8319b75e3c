"""The only door to the model: which devices there are, and a ready engine on one of them.

Nothing here imports torch before a function is called, so the server and its command line start
at once. Never falls back silently: what was asked for is what computes, or the start ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pulid.engine import Engine, FaceMode, LoadProgress, RgbImage
from pulid.errors import DeviceUnavailable, SetupError
from pulid.profiles import (
    PROFILES,
    LinearForm,
    SpeedProfile,
    chosen_for,
    profile_named,
    with_t5_in_int8,
)
from server.model_files import (
    Loras,
    checkpoints_of,
    refuse_loras_that_fit_nothing,
    require_checkpoints,
    require_loras,
)
from server.settings import SettingsError
from weights.manifest import Choice
from weights.paths import ModelPaths, model_paths, quantised_path

if TYPE_CHECKING:
    from pulid.probe import LibraryFacts, TorchFacts


def create_engine(
    device: str,
    *,
    profile: str | None,
    weights_dir: Path,
    face_mode: FaceMode,
    choice: Choice = Choice(),  # noqa: B008 - frozen
    loras: Loras = (),
    turbo_threshold: float | None = None,
    t5_int8: bool = False,
    compile_cache: Path | None = None,
    progress: Callable[[str, LoadProgress], None] | None = None,
) -> Engine:
    """Load an engine; takes seconds (tiny) to minutes. Call it in the process that will drive it.

    `device` is one of `devices_for`; `profile` None means exact. The files are looked at before the
    device is touched; `progress` hears on which device and how far the loading is. `turbo_threshold`, for
    the profile turbo only, takes the place of its own; `t5_int8` is for profiles in 8 bits.
    What compilers make goes to `compile_cache`, unless the environment names another folder. Raises
    UnknownProfile, SettingsError, DeviceUnavailable or WeightsMissing.
    """
    chosen = profile_with(profile, t5_int8=t5_int8)
    if turbo_threshold is not None:
        chosen = replace(chosen, skip_threshold=turbo_threshold)
    require_loras(chosen, loras)
    if chosen.name == "tiny":
        from pulid.tiny import tiny_engine

        return tiny_engine(face_mode=face_mode)

    require_checkpoints(checkpoints_of(chosen, weights_dir, choice), weights_dir)
    if compile_cache is not None:
        keep_compiled_code(compile_cache)
    from pulid.load import load_engine, on_device

    chosen = on_device(chosen, device)
    return load_engine(
        chosen,
        paths_for(chosen, weights_dir, choice, loras),
        device,
        face_mode=face_mode,
        loras=loras,
        progress=None if progress is None else partial(progress, device),
    )


def paths_for(profile: SpeedProfile, home: Path, choice: Choice, loras: Loras) -> ModelPaths:
    """The files of a profile: the copy quantised as it computes, where there is one and nothing is merged."""
    paths = model_paths(home, choice, profile.name)
    copy = quantised_path(paths.transformer, profile.linears)
    takes_copy = profile.linears != "full" and not loras and copy.is_file()
    return replace(paths, transformer=copy) if takes_copy else paths


def quantise_transformer(source: Path, copy: Path, form: LinearForm, on_bytes: Callable[[int], None]) -> None:
    """Write the copy that profiles of that form read; takes minutes. Raises WeightsMissing or OSError."""
    from pulid.quantise import quantise_file

    quantise_file(source, copy, form, made_from=source.name, on_bytes=on_bytes)


def lpips_distance(folder: Path) -> Callable[[RgbImage, RgbImage], float]:
    """How far apart two pictures look, by the network in `folder`. Raises WeightsMissing."""
    from pulid.lpips import load_lpips

    return load_lpips(folder).distance


def keep_compiled_code(folder: Path) -> None:
    """Let this process's compilers find what an earlier one made. What the operator has set stays."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torch"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def profile_or_exact(name: str | None) -> SpeedProfile:
    """Raises UnknownProfile."""
    return PROFILES["exact"] if name is None else profile_named(name)


def profile_with(name: str | None, *, t5_int8: bool) -> SpeedProfile:
    """The profile, with T5 as the operator wants it. Raises UnknownProfile."""
    profile = profile_or_exact(name)
    return with_t5_in_int8(profile) if t5_int8 else profile


def profile_for_cards(devices: str, *, first_only: bool = False) -> tuple[str, str]:
    """What the profile auto means for the setting `devices`: a profile's name, and why it is that one.

    `first_only`: for whoever computes on the first of them and no other. Asks torch for the cards, which
    takes no memory of them. Raises SettingsError or DeviceUnavailable.
    """
    asked = devices.split(",")
    if "cpu" in asked:
        raise SettingsError(_needs_cuda("auto", "devices names the CPU"))
    cards = torch_facts().cards
    numbers = _numbers("auto", asked, len(cards))[: 1 if first_only else None]
    profile, why = chosen_for([card for card in cards if card.number in numbers])
    return profile.name, why


def devices_for(profile: SpeedProfile, devices: str) -> list[str]:
    """The devices that the setting `devices`, in a form it may have, means for a profile.

    "all" is every CUDA card ("cuda:0", ...), or the one CPU; "0,1" are cards; "cpu,cpu" are two
    engines on the CPU ("cpu:0", "cpu:1"), so that each has a name of its own. Raises SettingsError
    where the two do not fit, and DeviceUnavailable where the machine lacks what is asked for.
    """
    asked = _asked(profile, devices)
    if profile.device == "cpu":
        return asked if len(asked) == 1 else [f"cpu:{number}" for number in range(len(asked))]
    return [f"cuda:{number}" for number in _numbers(profile.name, asked, _cuda_count())]


def require_fitting(profile: SpeedProfile, devices: str, loras: Loras) -> None:
    """Raises SettingsError for settings that no machine could run. Looks at no device and no file."""
    _asked(profile, devices)
    refuse_loras_that_fit_nothing(profile, loras)


def _asked(profile: SpeedProfile, devices: str) -> list[str]:
    asked = ["cpu"] if devices == "all" and profile.device == "cpu" else devices.split(",")
    if profile.device == "cpu" and any(device != "cpu" for device in asked):
        raise SettingsError(
            f"The {profile.name} profile computes on the CPU, and devices is {devices!r}. "
            "Set devices to cpu, or leave it out."
        )
    if profile.device == "cuda" and "cpu" in asked:
        raise SettingsError(_needs_cuda(profile.name, "devices names the CPU"))
    return asked


def _needs_cuda(profile: str, found: str) -> str:
    return (
        f"The {profile} profile needs a CUDA device, and {found}. To try the server without "
        "one, choose --profile tiny: it runs on any CPU and draws portraits."
    )


def _numbers(profile: str, asked: list[str], count: int) -> list[int]:
    """The cards that are asked for, of so many that are there."""
    if count == 0:
        raise DeviceUnavailable(_needs_cuda(profile, "no CUDA device was found"))
    numbers = list(range(count)) if asked == ["all"] else [int(device) for device in asked]
    if absent := [number for number in numbers if number >= count]:
        raise DeviceUnavailable(
            f"devices names GPU {absent[0]}, and this machine has {count}, counted from 0. "
            "Set devices to all, or to numbers of GPUs that are there."
        )
    return numbers


def _cuda_count() -> int:
    from pulid.probe import cuda_count

    return cuda_count()


def torch_facts() -> TorchFacts:
    """What torch sees of this machine. Raises SetupError where it does not load."""
    try:
        from pulid.probe import torch_facts
    except (ImportError, OSError) as exc:
        raise SetupError(
            f"torch cannot be loaded: {exc}. Install it again: "
            "pip install --force-reinstall -c configs/constraints.txt torch torchvision"
        ) from exc
    return torch_facts()


def library_facts() -> LibraryFacts:
    """Of the libraries beside torch. Raises SetupError where one does not load."""
    try:
        from pulid.probe import library_facts

        return library_facts()
    except (ImportError, OSError) as exc:
        raise SetupError(
            f"A library of the model cannot be loaded: {exc}. Install the project again: "
            "pip install -c configs/constraints.txt -e ."
        ) from exc
