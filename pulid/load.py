"""From checkpoint files to a ready engine.

Two passes. The first builds every network without memory, and gives it tensors that lie in the
mapped files: all files, names and shapes are checked, and nothing is on the device yet. The second
puts one tensor after the other on the device in the profile's precision, LoRA files merged in and then,
if the profile says so, quantised. So the host needs memory for one tensor, and the device for none twice;
on the CPU a tensor that keeps its precision stays in its file.

Knows how the published files are laid out inside. Does not know where they come from or how they
are fetched: the caller hands in paths. Nothing here reaches the network.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from pulid.engine import FaceMode, LoadProgress
from pulid.errors import DeviceUnavailable, WeightsMissing
from pulid.flux import checkpoint, lora, quantised_file
from pulid.flux.lora import Change, Lora
from pulid.flux.modulation import modulation_linears
from pulid.flux.packing import block_without_modulation
from pulid.flux.quantised import (
    PRECISIONS,
    SCALE,
    block_linears,
    linears_of,
    quantise,
    require_linears,
)
from pulid.flux.streaming import Slots, module_tensors
from pulid.flux.text import TextEncoder, load_clip, load_t5, stream_t5
from pulid.identity.eva_clip import load_eva_state
from pulid.identity.face import FaceReader, load_face_reader
from pulid.parts import FLUX_DEV, Architecture, Networks, Parts, build_networks, build_text_models
from pulid.pipeline import PulidFluxEngine
from pulid.placement import Placement, placement
from pulid.profiles import LinearForm, SpeedProfile, on_card
from pulid.state_files import REMEDY, read_state
from pulid.strict_load import Shapes, load_strictly, shapes_of

Progress = Callable[[LoadProgress], None]
PROGRESS_BYTES = 64 << 20  # between two reports


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
    profile: SpeedProfile,
    paths: ModelPaths,
    device: str,
    *,
    face_mode: FaceMode = "one-face",
    loras: Sequence[tuple[Path, float]] = (),
    progress: Progress | None = None,
    architecture: Architecture = FLUX_DEV,
) -> PulidFluxEngine:
    """The engine of a profile, with each LoRA file added at its scale; warmed up on a CUDA device.

    What the LoRA files were, and what of them is not applied, is in `info.details`. Raises
    WeightsMissing for whatever is wrong with a file, before anything is put on the device, and
    DeviceUnavailable where there is no such device, too little memory on it, or not the precision.
    The limit of a profile that has one is from then on the process's.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(f"The profile {profile.name!r} needs a CUDA device, and torch sees none.")
    profile = on_device(profile, device)
    require_all(paths)
    require_linears(profile, target)
    model = read_model(paths, architecture, face_mode)
    transformer = model.networks.transformer
    if (form := linears_of(transformer)) != "full":
        require_use_of_quantised(paths.transformer, form, profile, loras)
    applied = read_loras(loras, shapes_of(transformer.state_dict()))
    engine = engine_of(model, profile, target, applied, progress)
    if applied:
        details = {**engine.info.details, "loras": ", ".join(map(str, applied))}
        engine.info = replace(engine.info, details=details)
    return engine


def on_device(profile: SpeedProfile, device: str) -> SpeedProfile:
    """The profile as it is computed there; see `on_card`. Where torch sees no card, as it is."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return profile
    return on_card(profile, torch.cuda.get_device_capability(device))


def engine_of(
    model: FileModel,
    profile: SpeedProfile,
    device: torch.device,
    loras: Sequence[Lora] = (),
    progress: Progress | None = None,
) -> PulidFluxEngine:
    """The engine of what was read, within the profile's limit. Raises DeviceUnavailable."""
    limit_memory(device, profile.memory_limit)
    where = placement(profile, model.networks, model.t5, model.clip)
    if where is not None:
        del model.networks.autoencoder.encoder  # nothing here codes a picture
    total = model.size
    needed = total if where is None else where.on_device
    dtype = getattr(torch, profile.dtype)
    try:
        parts = put_on_device(model, device, dtype, loras, progress, linears=profile.linears, where=where)
        engine = PulidFluxEngine(parts, profile, device)
        if device.type == "cuda" or profile.compiles:
            if progress is not None:
                progress(LoadProgress(part="warm-up", done_bytes=total, total_bytes=total))
            engine.warm_up()
    except torch.OutOfMemoryError:
        raise DeviceUnavailable(
            f"{device} has too little free memory: the weights of the profile {profile.name!r} take"
            f" {needed / 2**30:.0f} GiB. `nvidia-smi` shows what else is there."
        ) from None
    return engine


def limit_memory(device: torch.device, limit: int) -> None:
    """From now on this process gets out of memory where it would take more than `limit` bytes of a card.

    0 takes an earlier limit back. What torch allocates counts; what CUDA takes for itself does not.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total) if limit else 1.0, device)


def require_all(paths: ModelPaths) -> None:
    """Raise WeightsMissing naming every checkpoint that is not there."""
    roles = [name for name, value in vars(ModelPaths).items() if isinstance(value, property)]
    absent = [f"  {role}: {getattr(paths, role)}" for role in roles if not getattr(paths, role).exists()]
    if absent:
        raise WeightsMissing(
            "These checkpoints are missing:\n" + "\n".join(absent) + "\n"
            "`flux-pulid weights fetch` brings them. To try the server without them, use the profile tiny."
        )


def require_use_of_quantised(
    file: Path, form: LinearForm, profile: SpeedProfile, loras: Sequence[tuple[Path, float]]
) -> None:
    """Raise WeightsMissing where a transformer quantised to `form` is not what is wanted."""
    if profile.linears != form:
        computes = "full precision" if profile.linears == "full" else profile.linears
        raise WeightsMissing(
            f"{file} is quantised to {form}, and the profile {profile.name!r} computes in {computes} here."
            " Use the file that it was made from."
        )
    if loras:
        raise WeightsMissing(
            f"{file} is quantised already, and LoRA files are added before that. Use the file that it was"
            " made from, which is quantised while it is loaded, or leave lora out."
        )


# ---- first pass: everything is checked, and lies in its file ----


@dataclass(frozen=True, slots=True, kw_only=True)
class FileModel:
    """What an engine is made of; the weights lie in mapped files, and nothing is on a device yet."""

    networks: Networks
    t5: T5EncoderModel
    t5_tokenizer: PreTrainedTokenizerBase
    clip: CLIPTextModel
    clip_tokenizer: PreTrainedTokenizerBase
    faces: FaceReader
    tokens_across: float | None = None

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """Each network whose precision is chosen here, and what to call it."""
        networks = self.networks
        yield "FLUX transformer", networks.transformer
        yield "T5-XXL", self.t5
        yield "PuLID", pulid_modules(networks)
        yield "EVA-CLIP", networks.eva_clip
        yield "CLIP-L", self.clip
        yield "FLUX autoencoder", networks.autoencoder

    @property
    def size(self) -> int:
        """Bytes of all weights, as they are in the files."""
        return sum(tensor.nbytes for _, network in self.named() for _, tensor in tensors_of(network))


def read_model(paths: ModelPaths, architecture: Architecture, face_mode: FaceMode) -> FileModel:
    """Every network with its checkpoint's tensors. Raises WeightsMissing."""
    networks = build_networks(architecture)
    read_transformer(networks.transformer, paths.transformer)
    read_autoencoder(networks.autoencoder, paths.autoencoder)
    read_pulid(networks, paths.pulid)
    load_eva_state(networks.eva_clip, read_state(paths.eva_clip), file=paths.eva_clip)
    t5, clip = build_text_models(architecture)
    load_t5(t5, read_state(paths.t5), file=paths.t5)
    load_clip(clip, read_state(paths.clip), file=paths.clip)
    return FileModel(
        networks=networks,
        t5=t5,
        t5_tokenizer=read_tokenizer(paths.t5_tokenizer, t5.config.vocab_size, t5.config.eos_token_id),
        clip=clip,
        clip_tokenizer=read_tokenizer(paths.clip_tokenizer, clip.config.vocab_size, clip_end(clip)),
        faces=load_face_reader(
            antelopev2=paths.antelopev2, retinaface=paths.retinaface, bisenet=paths.bisenet, mode=face_mode
        ),
    )


def read_transformer(network: FluxTransformer2DModel, path: Path) -> None:
    """In diffusers' or in Black Forest Labs' layout, or one of `quantised_file`. Raises WeightsMissing."""
    if quantised_file.is_one(path):
        quantised_file.read(network, path)
        return
    wanted = shapes_of(network.state_dict())
    state = checkpoint.diffusers_transformer(read_state(path), wanted, file=path)
    load_strictly(network, state, "FLUX transformer", file=path)


def read_autoencoder(network: AutoencoderKL, path: Path) -> None:
    """In diffusers' or in Black Forest Labs' layout. Raises WeightsMissing."""
    wanted = shapes_of(network.state_dict())
    state = checkpoint.diffusers_autoencoder(read_state(path), wanted, file=path)
    load_strictly(network, state, "FLUX autoencoder", file=path)


def read_pulid(networks: Networks, path: Path) -> None:
    """Raises WeightsMissing."""
    load_strictly(pulid_modules(networks), read_state(path), "PuLID-FLUX", file=path)


def pulid_modules(networks: Networks) -> nn.ModuleDict:
    """PuLID's two modules under the names that its file has for them."""
    return nn.ModuleDict({"pulid_encoder": networks.idformer, "pulid_ca": networks.identity_attentions})


def read_loras(files: Sequence[tuple[Path, float]], transformer: Shapes) -> list[Lora]:
    """Raises WeightsMissing."""
    return [lora.read_lora(file, scale, transformer) for file, scale in files]


def clip_end(clip: CLIPTextModel) -> int:
    """The token at which CLIP's pooled vector is read.

    The published config has a 2 there, which transformers takes for "the largest id".
    """
    config = clip.config
    return config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id


def read_tokenizer(folder: Path, vocabulary: int, end: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with `vocabulary` tokens of which `end` ends a text. Raises WeightsMissing."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        last = tokenizer("portrait").input_ids[-1]
    except Exception as exc:  # transformers raises whatever the damaged files lead it to
        raise WeightsMissing(f"{folder} holds no tokenizer that can be read. {REMEDY}") from exc
    if len(tokenizer) > vocabulary or last != end:
        raise WeightsMissing(
            f"{folder} is the tokenizer of another model: it has {len(tokenizer)} tokens and ends a text with"
            f" {last}, expected {vocabulary} at most and {end}. {REMEDY}"
        )
    return tokenizer


# ---- second pass: onto the device, tensor by tensor ----


def put_on_device(
    model: FileModel,
    device: torch.device,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    progress: Progress | None = None,
    *,
    linears: LinearForm = "full",
    where: Placement | None = None,
) -> Parts:
    """All networks on `device`: the autoencoder and the face networks in float32, the others in `dtype`.

    `where`: what comes in turn is left in the host's memory, when it has been cast and quantised.
    """
    meter = Meter(model.size, progress)
    networks = model.networks
    away = set() if where is None else tensors_away(model, where)
    quantised = {f"{name}.weight": linear for name, linear in block_linears(networks.transformer)}
    for name, network in model.named():
        precision = torch.float32 if network is networks.autoencoder else dtype
        changes = changes_of(loras) if network is networks.transformer else {}
        for tensor_name, tensor in tensors_of(network):
            size = tensor.nbytes
            to_add = changes.get(tensor_name, ())
            if linears == "full" or network is not networks.transformer or tensor_name not in quantised:
                put(tensor, device, torch.float32 if tensor_name.endswith(SCALE) else precision, to_add)
            else:
                put_quantised(quantised[tensor_name], device, PRECISIONS[linears], to_add)
            if id(tensor) in away:
                tensor.data = tensor.data.cpu()
            meter.add(name, size)
        meter.report(name)
    if where is not None and where.t5.away:
        stream_t5(model.t5, where.t5.away, Slots(where.t5.slot, device))
    text = TextEncoder(
        t5=model.t5,
        t5_tokenizer=model.t5_tokenizer,
        clip=model.clip,
        clip_tokenizer=model.clip_tokenizer,
        device=device,
    )
    return Parts(
        networks=networks,
        text=text,
        faces=model.faces.to(device),
        tokens_across=model.tokens_across,
        streams=None if where is None else where.flux,
    )


def tensors_away(model: FileModel, where: Placement) -> set[int]:
    """Ids of all that comes in turn."""
    transformer, modulation = model.networks.transformer, modulation_linears(model.networks.transformer)
    blocks = [
        *(transformer.transformer_blocks[number] for number in where.doubles.away),
        *(transformer.single_transformer_blocks[number] for number in where.singles.away),
    ]
    modules: list[nn.Module] = [
        *map(block_without_modulation, blocks),
        *(modulation[number] for number in where.modulation.away),
        *(model.t5.encoder.block[number] for number in where.t5.away),
    ]
    return {id(tensor) for module in modules for tensor in module_tensors(module)}


def put(tensor: Tensor, device: torch.device, dtype: torch.dtype, changes: Sequence[Change]) -> None:
    """Move a parameter or buffer, in place. What is not whole numbers is cast there, after LoRA was added."""
    there = tensor.data.to(device)
    if changes:
        there = lora.merged(there, changes)
    tensor.data = there.to(dtype) if there.is_floating_point() else there


def put_quantised(
    linear: nn.Linear, device: torch.device, to: torch.dtype, changes: Sequence[Change]
) -> None:
    """Move its weight and quantise it there, after LoRA was added; or only move it, quantised as it is."""
    there = linear.weight.data.to(device)
    if hasattr(linear, SCALE):
        linear.weight.data = there
    else:
        quantise(linear, lora.merged(there, changes) if changes else there, to)


def tensors_of(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, each once, in the order of their file: it is read from front to back."""
    return sorted(
        [*network.named_parameters(), *network.named_buffers()], key=lambda item: item[1].data_ptr()
    )


def changes_of(loras: Sequence[Lora]) -> dict[str, list[Change]]:
    """What all files together add to each weight."""
    together: dict[str, list[Change]] = defaultdict(list)
    for file in loras:
        for name, changes in file.changes.items():
            together[name].extend(changes)
    return together


class Meter:
    """Counts the bytes that are on the device, and tells now and then."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = self._reported = 0

    def add(self, part: str, size: int) -> None:
        self._done += size
        if self._done - self._reported >= PROGRESS_BYTES:
            self.report(part)

    def report(self, part: str) -> None:
        self._reported = self._done
        if self._progress is not None:
            self._progress(LoadProgress(part=part, done_bytes=self._done, total_bytes=self._total))
