"""Every checkpoint of the full-size model: what it is, where it comes from, what its licence allows.

A table and the questions that it answers by itself. Torch-free; knows no paths on this machine.
Where each size and hash is published, and which are not known: docs/decisions/0008-weights-manifest.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from weights.licences import APACHE, FLUX_DEV, INSIGHTFACE, MIT, Licence

Role = Literal[
    "transformer",
    "autoencoder",
    "t5",
    "t5_tokenizer",
    "clip",
    "clip_tokenizer",
    "pulid",
    "eva_clip",
    "antelopev2",
    "retinaface",
    "bisenet",
]
ROLES: tuple[Role, ...] = Role.__args__  # type: ignore[attr-defined]
BaseModel = Literal["flux1-dev", "flux1-krea-dev"]
PulidVersion = Literal["v0.9.1", "v0.9.0"]
IN_FP8 = ("fp8", "turbo", "lowvram-24g", "lowvram-16g", "lowvram-12g")  # profiles


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository on the Hugging Face Hub."""

    repo: str
    path: str  # in the repository
    revision: str = "main"  # a commit where one is known: then what is fetched cannot change
    gated: bool = False  # a licence must be accepted on the repository's page

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repo}"

    @property
    def address(self) -> str:
        return f"{self.page}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """A file at a plain address."""

    url: str

    @property
    def address(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    path: str  # below the weights folder
    source: HubFile | ReleaseFile
    size: int | None = None  # bytes; None: not known to this table
    sha256: str | None = None  # None: pinned in the lock file by the first fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights of one network in one published layout."""

    name: str  # what commands call it
    role: Role  # what the model uses it for; a field of `weights.paths.ModelPaths`
    variant: str = ""  # where a role can be filled by different weights: which these are
    path: str  # below the weights folder: the file, or the folder of the files
    files: tuple[WeightFile, ...]
    licence: Licence
    table: str | None = None  # of weights/tables: its keys and shapes; None where it has none
    profiles: tuple[str, ...] = ("exact", *IN_FP8)
    is_default: bool = True  # of its role and variant: what is fetched; others are used where they are

    @property
    def is_gated(self) -> bool:
        return any(isinstance(file.source, HubFile) and file.source.gated for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which weights fill the roles that can be filled by several."""

    base_model: BaseModel = "flux1-dev"
    pulid: PulidVersion = "v0.9.1"

    def takes(self, checkpoint: Checkpoint) -> bool:
        wanted = {"transformer": self.base_model, "pulid": self.pulid}.get(checkpoint.role, "")
        return checkpoint.variant == wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repo:
    """Where files of the table come from, so that each is one line."""

    repo: str
    revision: str = "main"
    gated: bool = False

    def file(
        self, path: str, *, at: str = "", size: int | None = None, sha256: str | None = None
    ) -> WeightFile:
        """A file of this repository, `at` a place below the weights folder, or at its own."""
        source = HubFile(repo=self.repo, path=path, revision=self.revision, gated=self.gated)
        return WeightFile(path=at or path, source=source, size=size, sha256=sha256)


_DEV = _Repo(
    repo="black-forest-labs/FLUX.1-dev", revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21", gated=True
)
_KREA = _Repo(repo="black-forest-labs/FLUX.1-Krea-dev", gated=True)
_FP8 = _Repo(repo="Kijai/flux-fp8", revision="2ef6f85f9f4b94634f995ba0bfa84fd3ab865c1d")
_PULID = _Repo(repo="guozinan/PuLID", revision="492b1451255dc9d9bc3c857259690b5f8b998d4a")
_EVA = _Repo(repo="QuanSun/EVA-CLIP", revision="11afd202f2ae80869d6cef18b1ec775e79bd8d12")
_COMFYUI = _Repo(
    repo="comfyanonymous/flux_text_encoders", revision="6af2a98e3f615bdfa612fbd85da93d1ed5f69ef5"
)
_ANTELOPE = _Repo(repo="DIAMONIK7777/antelopev2", revision="ba0c3e10f4548361eb9a63265d87ce1140ab5a05")
_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"


def _dev(path: str, *, size: int | None = None, sha256: str | None = None) -> WeightFile:
    """A file of FLUX.1-dev; it keeps its place below a folder of that name."""
    return _DEV.file(path, at=f"FLUX.1-dev/{path}", size=size, sha256=sha256)


MANIFEST = (
    Checkpoint(
        name="flux1-dev",
        role="transformer",
        variant="flux1-dev",
        path="FLUX.1-dev/flux1-dev.safetensors",
        files=(
            _dev(
                "flux1-dev.safetensors",
                size=23_802_932_552,
                sha256="4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7",
            ),
        ),
        licence=FLUX_DEV,
        table="flux-transformer-bfl",
    ),
    Checkpoint(
        name="flux1-dev-diffusers",
        role="transformer",
        variant="flux1-dev",
        path="FLUX.1-dev/transformer",
        files=(
            _dev("transformer/config.json"),
            _dev("transformer/diffusion_pytorch_model.safetensors.index.json"),
            _dev(
                "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
                size=9_983_040_304,
                sha256="d86a3038eacaa720682cb9b1da3c49fecf8a3ded605af4def6061eaa18903eb8",
            ),
            _dev(
                "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
                size=9_949_328_904,
                sha256="5e830704a83aa938dfaf23da308100a1c44b83fa084283abf1d163ea727e5f7a",
            ),
            _dev(
                "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
                size=3_870_584_832,
                sha256="0d9c7c663217d1c3d44a6deed4e1cf1ac09fbc2c4137c47de1e3d74c959833de",
            ),
        ),
        licence=FLUX_DEV,
        table="flux-transformer-diffusers",
        is_default=False,
    ),
    Checkpoint(
        name="flux1-dev-fp8",  # every weight cast to float8_e4m3fn, without scales
        role="transformer",
        variant="flux1-dev",
        path="FLUX.1-dev/flux1-dev-fp8.safetensors",
        files=(
            _FP8.file(
                "flux1-dev-fp8.safetensors",
                at="FLUX.1-dev/flux1-dev-fp8.safetensors",
                size=11_901_525_888,
                sha256="1be961341be8f5307ef26c787199f80bf4e0de3c1c0b4617095aa6ee5550dfce",
            ),
        ),
        licence=FLUX_DEV,
        table="flux-transformer-bfl",
        profiles=IN_FP8,  # never where arithmetic must be exact
        is_default=False,
    ),
    Checkpoint(
        name="flux1-krea-dev",
        role="transformer",
        variant="flux1-krea-dev",
        path="FLUX.1-Krea-dev/flux1-krea-dev.safetensors",
        files=(
            _KREA.file(
                "flux1-krea-dev.safetensors",
                at="FLUX.1-Krea-dev/flux1-krea-dev.safetensors",
                size=23_802_958_224,
                sha256="f6315581b7cddd450b9aba72b4e9ccf8b6580dc1a6b9538aff43ee26a1a3b6c2",
            ),
        ),
        licence=FLUX_DEV,
        table="flux-transformer-bfl",
    ),
    Checkpoint(
        name="ae",
        role="autoencoder",
        path="FLUX.1-dev/ae.safetensors",
        files=(
            _dev(
                "ae.safetensors",
                size=335_304_388,
                sha256="afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38",
            ),
        ),
        licence=APACHE,
        table="flux-autoencoder-bfl",
    ),
    Checkpoint(
        name="ae-diffusers",
        role="autoencoder",
        path="FLUX.1-dev/vae",
        files=(
            _dev("vae/config.json"),
            _dev(
                "vae/diffusion_pytorch_model.safetensors",
                size=167_666_902,
                sha256="f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3",
            ),
        ),
        licence=APACHE,
        table="flux-autoencoder-diffusers",
        is_default=False,
    ),
    Checkpoint(
        name="t5-xxl",
        role="t5",
        path="FLUX.1-dev/text_encoder_2",
        files=(
            _dev("text_encoder_2/config.json"),
            _dev("text_encoder_2/model.safetensors.index.json"),
            _dev(
                "text_encoder_2/model-00001-of-00002.safetensors",
                size=4_994_582_224,
                sha256="ec87bffd1923e8b2774a6d240c922a41f6143081d52cf83b8fe39e9d838c893e",
            ),
            _dev(
                "text_encoder_2/model-00002-of-00002.safetensors",
                size=4_530_066_360,
                sha256="a5640855b301fcdbceddfa90ae8066cd9414aff020552a201a255ecf2059da00",
            ),
        ),
        licence=APACHE,
        table="t5-xxl",
    ),
    Checkpoint(
        name="t5-xxl-comfyui",  # the same encoder in float16, as one file
        role="t5",
        path="flux_text_encoders/t5xxl_fp16.safetensors",
        files=(
            _COMFYUI.file(
                "t5xxl_fp16.safetensors",
                at="flux_text_encoders/t5xxl_fp16.safetensors",
                size=9_787_841_024,
                sha256="6e480b09fae049a72d2a8c5fbccb8d3e92febeb233bbe9dfe7256958a9167635",
            ),
        ),
        licence=APACHE,
        table="t5-xxl",
        is_default=False,
    ),
    Checkpoint(
        name="t5-tokenizer",
        role="t5_tokenizer",
        path="FLUX.1-dev/tokenizer_2",
        files=(
            _dev("tokenizer_2/special_tokens_map.json"),
            _dev(
                "tokenizer_2/spiece.model",
                size=791_656,
                sha256="d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86",
            ),
            _dev("tokenizer_2/tokenizer.json"),
            _dev("tokenizer_2/tokenizer_config.json"),
        ),
        licence=APACHE,
    ),
    Checkpoint(
        name="clip-l",
        role="clip",
        path="FLUX.1-dev/text_encoder",
        files=(
            _dev("text_encoder/config.json"),
            _dev(
                "text_encoder/model.safetensors",
                size=246_144_352,
                sha256="893d67a23f4693ed42cdab4cbad7fe3e727cf59609c40da28a46b5470f9ed082",
            ),
        ),
        licence=MIT,
        table="clip-l",
    ),
    Checkpoint(
        name="clip-l-comfyui",
        role="clip",
        path="flux_text_encoders/clip_l.safetensors",
        files=(
            _COMFYUI.file(
                "clip_l.safetensors",
                at="flux_text_encoders/clip_l.safetensors",
                size=246_144_152,
                sha256="660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
            ),
        ),
        licence=MIT,
        table="clip-l",
        is_default=False,
    ),
    Checkpoint(
        name="clip-tokenizer",
        role="clip_tokenizer",
        path="FLUX.1-dev/tokenizer",
        files=(
            _dev("tokenizer/merges.txt"),
            _dev("tokenizer/special_tokens_map.json"),
            _dev("tokenizer/tokenizer_config.json"),
            _dev("tokenizer/vocab.json"),
        ),
        licence=MIT,
    ),
    Checkpoint(
        name="pulid-v0.9.1",
        role="pulid",
        variant="v0.9.1",
        path="pulid_flux_v0.9.1.safetensors",
        files=(
            _PULID.file(
                "pulid_flux_v0.9.1.safetensors",
                size=1_142_099_520,
                sha256="92c41c3af322b02e58e1b32842e4601e08c8f16ec1fe80089dbe957df510f51d",
            ),
        ),
        licence=APACHE,
        table="pulid-flux",
    ),
    Checkpoint(
        name="pulid-v0.9.0",
        role="pulid",
        variant="v0.9.0",
        path="pulid_flux_v0.9.0.safetensors",
        files=(
            _PULID.file(
                "pulid_flux_v0.9.0.safetensors",
                size=1_142_099_520,
                sha256="14e3c257ae88643412db0f6d239f55132cd5487107ed33944c54339284cbe1e6",
            ),
        ),
        licence=APACHE,
        table="pulid-flux",
    ),
    Checkpoint(
        name="eva-clip",
        role="eva_clip",
        path="EVA02_CLIP_L_336_psz14_s6B.pt",
        files=(
            _EVA.file(
                "EVA02_CLIP_L_336_psz14_s6B.pt",
                size=856_461_210,
                sha256="84c3a17a228c567a155259b2245b0b59072bf7da510260a0a02ec54de6d50b05",
            ),
        ),
        licence=MIT,
        table="eva-clip",
    ),
    Checkpoint(
        name="antelopev2",
        role="antelopev2",
        path="antelopev2",
        files=(
            _ANTELOPE.file(
                "scrfd_10g_bnkps.onnx",
                at="antelopev2/scrfd_10g_bnkps.onnx",
                size=16_923_827,
                sha256="5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
            ),
            _ANTELOPE.file(
                "glintr100.onnx",
                at="antelopev2/glintr100.onnx",
                size=260_665_334,
                sha256="4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
            ),
        ),
        licence=INSIGHTFACE,
    ),
    Checkpoint(
        name="retinaface",
        role="retinaface",
        path="detection_Resnet50_Final.pth",
        files=(
            WeightFile(
                path="detection_Resnet50_Final.pth",
                source=ReleaseFile(url=f"{_FACEXLIB}/v0.1.0/detection_Resnet50_Final.pth"),
                size=109_497_761,
                sha256="6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
            ),
        ),
        licence=MIT,
        table="retinaface",
    ),
    Checkpoint(
        name="bisenet",
        role="bisenet",
        path="parsing_bisenet.pth",
        files=(
            WeightFile(
                path="parsing_bisenet.pth",
                source=ReleaseFile(url=f"{_FACEXLIB}/v0.2.0/parsing_bisenet.pth"),
                size=53_289_463,
                sha256="468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            ),
        ),
        licence=MIT,
        table="bisenet",
    ),
)


def candidates(role: Role, choice: Choice, profile: str = "exact") -> Iterator[Checkpoint]:
    """All layouts that may fill a role, the preferred one first."""
    return (
        checkpoint
        for checkpoint in MANIFEST
        if checkpoint.role == role and choice.takes(checkpoint) and profile in checkpoint.profiles
    )


def needed(choice: Choice, profile: str) -> list[Checkpoint]:
    """What a fetch for a profile brings: the default layout of each role."""
    return [
        checkpoint
        for checkpoint in MANIFEST
        if checkpoint.is_default and choice.takes(checkpoint) and profile in checkpoint.profiles
    ]


def named(name: str) -> Checkpoint:
    """Raises KeyError."""
    return {checkpoint.name: checkpoint for checkpoint in MANIFEST}[name]
