"""What the commands of `flux-pulid weights` have in common: their options, and the folder they mean.

Knows flags and settings. Does not know what a command does with the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pulid.profiles import AUTO, PROFILES
from server.cli.flags import used
from server.model_files import checkpoints_of
from server.settings import load_settings
from weights import manifest
from weights.errors import WeightsError
from weights.manifest import Checkpoint, Choice

TrustFirst = Annotated[
    list[str] | None,
    typer.Option(
        help="Accept a file that could hold code although nobody has said its hash.", metavar="NAME"
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Checkpoints, as `list` names them. Default: all that the profile needs.", metavar="[NAME]..."
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="Their folder. Default: the setting weights_dir.", metavar="FOLDER"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", metavar="FILE")]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Whose files. Default: the setting profile, or exact.")
]
BaseModel = Annotated[
    str | None, typer.Option("--base-model", help="Whose transformer. Default: the setting base_model.")
]
PulidVersion = Annotated[
    str | None,
    typer.Option("--pulid-version", "--pulid", help="Whose identity. Default: the setting pulid_version."),
]


@dataclass(frozen=True, slots=True)
class Place:
    """A weights folder, and what of the model belongs there."""

    home: Path
    profile: str
    wanted: list[Checkpoint]
    choice: Choice

    @classmethod
    def of(
        cls,
        weights_dir: Path | None,
        config: Path | None,
        profile: str | None,
        base_model: str | None,
        pulid_version: str | None,
    ) -> Place:
        """By flags, environment and file, as `serve` takes them. Raises SettingsError."""
        flags = {"weights_dir": weights_dir, "profile": profile}
        flags |= {"base_model": base_model, "pulid_version": pulid_version}
        settings = load_settings(flags=used(flags), config=config).settings
        # All profiles that auto may choose read what exact reads.
        chosen = PROFILES["exact" if settings.profile in (None, AUTO) else settings.profile]
        choice = Choice(base_model=settings.base_model, pulid=settings.pulid_version)
        home = settings.weights_dir.absolute()
        return cls(home, chosen.name, checkpoints_of(chosen, home, choice), choice)

    def checkpoints(self, names: Sequence[str] | None) -> list[Checkpoint]:
        return [checkpoint_named(name) for name in names] if names else self.wanted


def checkpoint_named(name: str) -> Checkpoint:
    """Raises WeightsError."""
    try:
        return manifest.named(name)
    except KeyError:
        known = ", ".join(checkpoint.name for checkpoint in manifest.MANIFEST)
        raise WeightsError(f"There is no checkpoint named {name}. There are: {known}.") from None


def readers_of(checkpoint: Checkpoint) -> list[str]:
    """The profiles of this version that read it; the manifest also knows of later ones."""
    return [name for name in checkpoint.profiles if name in PROFILES]
