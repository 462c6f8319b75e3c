"""Every checkpoint of the full-size model: what it is, where it comes from, what its licence allows.

A table and nothing else. Torch-free; knows no paths on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One checkpoint, or one folder of files that belong together."""

    role: str  # what the model uses it for; the field of `weights.paths.ModelPaths`
    path: str  # below the weights folder
    source: str  # a Hub repository, or the address of a release
    parameters: int | None  # None where the file is a tokenizer, or holds several networks
    licence: str


_FLUX_LICENCE = "FLUX.1 [dev] Non-Commercial License; gated: accept it on the repository's page first"
_FLUX = "black-forest-labs/FLUX.1-dev"

MANIFEST = (
    WeightFile(
        role="transformer",
        path="FLUX.1-dev/transformer",
        source=_FLUX,
        parameters=11_901_408_320,
        licence=_FLUX_LICENCE,
    ),
    WeightFile(
        role="autoencoder",
        path="FLUX.1-dev/vae",
        source=_FLUX,
        parameters=83_819_683,
        licence=_FLUX_LICENCE,
    ),
    WeightFile(
        role="t5",
        path="FLUX.1-dev/text_encoder_2",
        source=_FLUX,
        parameters=4_762_310_656,
        licence="Apache-2.0",
    ),
    WeightFile(
        role="t5_tokenizer",
        path="FLUX.1-dev/tokenizer_2",
        source=_FLUX,
        parameters=None,
        licence="Apache-2.0",
    ),
    WeightFile(
        role="clip",
        path="FLUX.1-dev/text_encoder",
        source=_FLUX,
        parameters=123_060_480,
        licence="MIT",
    ),
    WeightFile(
        role="clip_tokenizer",
        path="FLUX.1-dev/tokenizer",
        source=_FLUX,
        parameters=None,
        licence="MIT",
    ),
    WeightFile(
        role="pulid",
        path="pulid_flux_v0.9.1.safetensors",
        source="guozinan/PuLID",
        parameters=571_033_600,
        licence="Apache-2.0",
    ),
    WeightFile(
        role="eva_clip",
        path="EVA02_CLIP_L_336_psz14_s6B.pt",
        source="QuanSun/EVA-CLIP",
        parameters=None,
        licence="MIT",
    ),
    WeightFile(
        role="antelopev2",
        path="antelopev2",
        source="DIAMONIK7777/antelopev2",
        parameters=None,
        licence="InsightFace models: non-commercial research only",
    ),
    WeightFile(
        role="retinaface",
        path="detection_Resnet50_Final.pth",
        source="facexlib release v0.1.0",
        parameters=27_293_600,
        licence="MIT",
    ),
    WeightFile(
        role="bisenet",
        path="parsing_bisenet.pth",
        source="facexlib release v0.2.0",
        parameters=13_300_416,
        licence="MIT",
    ),
)

# The same two networks in Black Forest Labs' own single files, used where the folders above are absent.
SINGLE_FILES = {
    "transformer": "FLUX.1-dev/flux1-dev.safetensors",
    "autoencoder": "FLUX.1-dev/ae.safetensors",
}
