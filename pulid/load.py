"""From checkpoint files to a ready engine: build on the meta device, stream, check, assign.

Knows how the published files are laid out inside. Does not know where they come from or how they
are fetched: the caller hands in paths. Nothing here reaches the network.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from pulid.engine import FaceMode
from pulid.errors import DeviceUnavailable, WeightsMissing
from pulid.flux import checkpoint
from pulid.flux.text import TextEncoder
from pulid.identity.eva_clip import load_eva_state
from pulid.identity.face import load_face_reader
from pulid.parts import FLUX_DEV, Architecture, Networks, Parts, build_networks
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import SpeedProfile
from pulid.strict_load import load_strictly

State = dict[str, Tensor]


class ModelPaths(Protocol):
    """Where each checkpoint is. A folder where the checkpoint is several files."""

    @property
    def transformer(self) -> Path: ...
    @property
    def autoencoder(self) -> Path: ...
    @property
    def t5(self) -> Path: ...
    @property
    def t5_tokenizer(self) -> Path: ...
    @property
    def clip(self) -> Path: ...
    @property
    def clip_tokenizer(self) -> Path: ...
    @property
    def pulid(self) -> Path: ...
    @property
    def eva_clip(self) -> Path: ...
    @property
    def antelopev2(self) -> Path: ...
    @property
    def retinaface(self) -> Path: ...
    @property
    def bisenet(self) -> Path: ...


def load_engine(
    profile: SpeedProfile, paths: ModelPaths, device: str, *, face_mode: FaceMode = "one-face"
) -> PulidFluxEngine:
    """The engine of a profile at full size. Raises WeightsMissing or DeviceUnavailable."""
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(f"The profile {profile.name!r} needs a CUDA device, and torch sees none.")
    require_all(paths)
    dtype: torch.dtype = getattr(torch, profile.dtype)
    parts = Parts(
        networks=load_networks(FLUX_DEV, paths, dtype, target),
        text=load_text_encoder(paths, dtype, target),
        faces=load_face_reader(
            antelopev2=paths.antelopev2,
            retinaface=paths.retinaface,
            bisenet=paths.bisenet,
            mode=face_mode,
            device=target,
        ),
    )
    return PulidFluxEngine(parts, profile, target)


def require_all(paths: ModelPaths) -> None:
    """Raise WeightsMissing naming every checkpoint that is not there."""
    roles = [name for name, value in vars(ModelPaths).items() if isinstance(value, property)]
    absent = [f"  {role}: {getattr(paths, role)}" for role in roles if not getattr(paths, role).exists()]
    if absent:
        raise WeightsMissing(
            "These checkpoints are missing:\n" + "\n".join(absent) + "\n"
            "docs/weights-and-licences.md says where each comes from. "
            "To try the server without them, use the profile tiny."
        )


def load_networks(
    architecture: Architecture, paths: ModelPaths, dtype: torch.dtype, device: torch.device
) -> Networks:
    """All networks on `device`: the autoencoder in float32, the others in `dtype`."""
    networks = build_networks(architecture)
    load_strictly(
        networks.transformer, transformer_state(paths.transformer, dtype, device), "FLUX transformer"
    )
    load_strictly(
        networks.autoencoder, autoencoder_state(paths.autoencoder, torch.float32, device), "FLUX autoencoder"
    )
    encoder, attentions = split_pulid(dict(stream(paths.pulid, dtype, device)))
    load_strictly(networks.idformer, encoder, "PuLID")
    load_strictly(networks.identity_attentions, attentions, "PuLID")
    eva_clip = stream(paths.eva_clip, dtype, device)
    load_eva_state(networks.eva_clip, {k: v for k, v in eva_clip if not k.startswith("text.")})
    networks.eva_clip.to(device=device, dtype=dtype)
    return networks


def transformer_state(path: Path, dtype: torch.dtype, device: torch.device) -> State:
    """A FLUX transformer in diffusers' layout, from either layout."""
    return checkpoint.diffusers_layout(
        dict(stream(path, dtype, device)), checkpoint.is_bfl_transformer, checkpoint.transformer_tensors
    )


def autoencoder_state(path: Path, dtype: torch.dtype, device: torch.device) -> State:
    """A FLUX autoencoder in diffusers' layout, from either layout."""
    return checkpoint.diffusers_layout(
        dict(stream(path, dtype, device)), checkpoint.is_bfl_autoencoder, checkpoint.autoencoder_tensors
    )


def split_pulid(state: State) -> tuple[State, State]:
    """PuLID's checkpoint as (IDFormer, identity attentions), by the prefix of each key."""
    parts: dict[str, State] = {"pulid_encoder": {}, "pulid_ca": {}}
    for key, tensor in state.items():
        module, _, name = key.partition(".")
        if module not in parts:
            raise WeightsMissing(f"This is not a PuLID-FLUX checkpoint: it has a key {key!r}.")
        parts[module][name] = tensor
    return parts["pulid_encoder"], parts["pulid_ca"]


def load_text_encoder(paths: ModelPaths, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    t5 = T5EncoderModel.from_pretrained(paths.t5, dtype=dtype, local_files_only=True)
    clip = CLIPTextModel.from_pretrained(paths.clip, dtype=dtype, local_files_only=True)
    return TextEncoder(
        t5=t5.requires_grad_(False).eval().to(device),
        t5_tokenizer=AutoTokenizer.from_pretrained(paths.t5_tokenizer, local_files_only=True),
        clip=clip.requires_grad_(False).eval().to(device),
        clip_tokenizer=AutoTokenizer.from_pretrained(paths.clip_tokenizer, local_files_only=True),
        device=device,
    )


def stream(path: Path, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, a folder of its shards, or a pickled state dict, one by one.

    Pickles are read with weights_only: they can hold tensors, not code.
    """
    if path.suffix in {".pt", ".pth"}:
        for key, tensor in torch.load(path, map_location="cpu", weights_only=True, mmap=True).items():
            yield key, tensor.to(device=device, dtype=dtype)
        return
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    for file in files:
        with safe_open(file, "pt", device=str(device)) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                yield key, tensors.get_tensor(key).to(dtype)
