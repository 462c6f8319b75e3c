"""Where each checkpoint lies on this machine, as plain paths. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weights.manifest import ROLES, Checkpoint, Choice, Role, candidates

_PICKLES = {".pt", ".pth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPaths:
    """One path for each role of the manifest; a path may not exist yet."""

    transformer: Path
    autoencoder: Path
    t5: Path
    t5_tokenizer: Path
    clip: Path
    clip_tokenizer: Path
    pulid: Path
    eva_clip: Path
    antelopev2: Path
    retinaface: Path
    bisenet: Path


def model_paths(home: Path, choice: Choice = Choice(), profile: str = "exact") -> ModelPaths:  # noqa: B008
    """The paths below the weights folder `home`: for each role the first layout that is wholly there."""
    return ModelPaths(
        **{role: path_of(present_or_default(role, home, choice, profile), home) for role in ROLES}
    )


def present_or_default(role: Role, home: Path, choice: Choice, profile: str = "exact") -> Checkpoint:
    """The checkpoint that fills a role: one that is there, or the one that a fetch would bring."""
    layouts = list(candidates(role, choice, profile))
    there = (layout for layout in layouts if is_present(layout, home))
    return next(there, next(layout for layout in layouts if layout.is_default))


def is_present(checkpoint: Checkpoint, home: Path) -> bool:
    """Are all its files there? A converted copy stands for a pickle."""
    is_converted = path_of(checkpoint, home) != home / checkpoint.path
    return is_converted or all((home / file.path).is_file() for file in checkpoint.files)


def path_of(checkpoint: Checkpoint, home: Path) -> Path:
    """Its file or folder; of a pickle the copy that `weights convert` made, where there is one."""
    path = home / checkpoint.path
    converted = converted_path(path)
    return converted if path.suffix in _PICKLES and converted.is_file() else path


def quantised_path(transformer: Path, form: str) -> Path:
    """Where `weights convert --to FORM` puts the quantised copy of a transformer's file or folder."""
    stem = transformer.name.removesuffix(transformer.suffix)
    return transformer.with_name(f"{stem}.{form}-rows.safetensors")


def converted_path(pickle: Path) -> Path:
    """Where `weights convert` puts the safetensors copy of a pickle."""
    return pickle.with_suffix(".safetensors")
