"""Where each checkpoint lies on this machine, as plain paths. Opens nothing, loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weights.manifest import MANIFEST, SINGLE_FILES


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


def model_paths(home: Path) -> ModelPaths:
    """The paths below the weights folder `home`. FLUX may lie there as folders or as single files."""
    paths = {file.role: home / file.path for file in MANIFEST}
    for role, single_file in SINGLE_FILES.items():
        if not paths[role].exists() and (home / single_file).exists():
            paths[role] = home / single_file
    return ModelPaths(**paths)
