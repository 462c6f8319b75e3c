"""A model with random weights, made on its device, and random requests for it. No files, and no zeros.

The same classes as in a real engine, at full size or at the tiny one. Every number that a kernel reads is
drawn: zeros would flatter a chip, which uses less power on them and so runs faster. Rows of a bench share
the weights but not the modules (`shell`), so that one row's hooks and compiled code are not another's.

Does not know: how a row denoises, and how long it takes.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the text encoders and the face stage of the GPU tests

from gpu.full_size import MARKS, random_faces, random_text_encoder  # noqa: E402
from pulid.engine import GenerationRequest, RgbImage  # noqa: E402
from pulid.flux import latents, sampling  # noqa: E402
from pulid.flux.compiled import compiled_blocks  # noqa: E402
from pulid.flux.packing import double_weights, single_weights  # noqa: E402
from pulid.flux.quantised import PRECISIONS, block_linears, linears_of, quantise  # noqa: E402
from pulid.flux.text import TextEncoder  # noqa: E402
from pulid.flux.text_int8 import quantise as quantise_t5  # noqa: E402
from pulid.flux.text_int8 import t5_linears  # noqa: E402
from pulid.parts import FLUX_DEV, Architecture, Networks, Parts, build_networks  # noqa: E402
from pulid.pipeline import PulidFluxEngine  # noqa: E402
from pulid.profiles import LinearForm, SpeedProfile  # noqa: E402
from pulid.seeded import SMALL, seeded_text_encoder  # noqa: E402

SEED = 20_261
BIAS, NORM_SPREAD = 0.02, 0.1
NETWORKS = ("transformer", "autoencoder", "idformer", "identity_attentions", "eva_clip")
PHOTO_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`full` is what counts; `tiny` runs every line of a bench on any machine in seconds."""

    name: str
    architecture: Architecture
    divisor: int  # of each side of a picture
    num_steps: int

    def side(self, pixels: int) -> int:
        return pixels // self.divisor


SCALES = {
    scale.name: scale
    for scale in (
        Scale(name="full", architecture=replace(FLUX_DEV, clip=MARKS), divisor=1, num_steps=20),
        Scale(
            name="tiny",
            # Deep enough that both kinds of block come with and without an identity after them.
            architecture=replace(
                SMALL, transformer={**SMALL.transformer, "num_layers": 3, "num_single_layers": 5}
            ),
            divisor=8,
            num_steps=3,
        ),
    )
}


# ---- weights ----


@torch.no_grad()
def random_parts(scale: Scale, device: torch.device, dtype: torch.dtype) -> Parts:
    """Everything an engine is made of. The autoencoder is float32, as in a real one."""
    networks = build_networks(scale.architecture)
    generator = torch.Generator(device).manual_seed(SEED)
    for name in NETWORKS:
        network = getattr(networks, name)
        network.to(torch.float32 if name == "autoencoder" else dtype).to_empty(device=device)
        fill(network, generator)
    networks.eva_clip.reset_computed_buffers(device, dtype)
    if scale.name == "tiny":
        text = seeded_text_encoder(device)
        for model in (text._t5, text._clip):
            model.to(device, dtype)
    else:
        text = random_text_encoder(scale.architecture, dtype, device)
    return Parts(networks=networks, text=text, faces=random_faces())


@torch.no_grad()
def fill(module: nn.Module, generator: torch.Generator) -> None:
    """In place. Matrices: normal, over the square root of their inputs; norms around 1; biases around 0."""
    for name, parameter in module.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if parameter.ndim > 1:
            parameter.copy_(normal / math.sqrt(math.prod(parameter.shape[1:])))
        elif name.endswith("bias"):
            parameter.copy_(BIAS * normal)
        else:
            parameter.copy_(1 + NORM_SPREAD * normal)


def weights_gib(networks: Networks) -> dict[str, float]:
    """By network; rows share them, but for what the reference joins."""
    return {
        name: round(sum(p.nbytes for p in getattr(networks, name).parameters()) / 2**30, 3)
        for name in NETWORKS
    }


def shell(module: Any) -> Any:
    """The same module anew, over the same numbers: parameters of its own that share their memory."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False) for parameter in module.parameters()
    }
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def engine_of(parts: Parts, profile: SpeedProfile, device: torch.device) -> PulidFluxEngine:
    """An engine of its own for one row, warmed up. It may change its modules, but not the numbers in them."""
    if profile.transformer_form == "fused" and profile.linears == "full":
        pack(parts.networks.transformer)
    if device.type == "cpu" and profile.decoder_form == "compiled":  # there may be no compiler
        profile = replace(profile, decoder_form="channels_last")
    if profile.linears != linears_of(parts.networks.transformer):
        parts = quantised(parts, profile.linears)
    networks = Networks(**{name: shell(getattr(parts.networks, name)) for name in NETWORKS})
    text = in_int8(parts.text, device) if profile.t5_int8 else parts.text
    engine = PulidFluxEngine(replace(parts, networks=networks, text=text), profile, device)
    if profile.compiles:
        engine.warm_up(compiled_blocks(backend_of(device)))
    elif device.type == "cuda":
        engine.warm_up()
    return engine


def quantised(parts: Parts, form: LinearForm) -> Parts:
    """The same parts, but for the blocks' linears: those are in eight bits, in memory of their own."""
    transformer = shell(parts.networks.transformer)
    for _, linear in block_linears(transformer):
        quantise(linear, linear.weight.data, PRECISIONS[form])
    pack(transformer)
    return replace(parts, networks=replace(parts.networks, transformer=transformer))


def in_int8(text: TextEncoder, device: torch.device) -> TextEncoder:
    """Another encoder, which has read no prompt; T5's matrices are in memory of their own."""
    t5 = shell(text._t5)
    for name, linear in list(t5_linears(t5)):
        quantise_t5(t5, name, linear.weight.data)
    return TextEncoder(
        t5=t5,
        t5_tokenizer=text._t5_tokenizer,
        clip=text._clip,
        clip_tokenizer=text._clip_tokenizer,
        device=device,
    )


def pack(transformer: FluxTransformer2DModel) -> None:
    """As the fused form wants it, once: the shells' matrices then lie side by side, and are shared."""
    double_weights(transformer)
    single_weights(transformer)


def backend_of(device: torch.device) -> str:
    """Of torch's compiler. Without a GPU its graphs are made and run as they are: that checks the script."""
    return "inductor" if device.type == "cuda" else "eager"


# ---- requests ----


def random_request(scale: Scale, width: int, height: int, **changes: Any) -> GenerationRequest:
    """A request for a picture of full-size `width` and `height`, with a photo of noise."""
    return GenerationRequest(
        **{
            "prompt": "portrait of a woman, neon color, cinematic",
            "seed": SEED,
            "id_images": (random_photo(1),),
            "width": scale.side(width),
            "height": scale.side(height),
            "num_steps": scale.num_steps,
            **changes,
        }
    )


def random_photo(seed: int) -> RgbImage:
    return np.random.default_rng(seed).integers(0, 256, (PHOTO_SIDE, PHOTO_SIDE, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a loop of any make needs for one request: the tensors that an engine makes of it."""

    noise: Tensor  # (num_outputs, image tokens, 64)
    times: Sequence[float]  # num_steps + 1
    image_ids: Tensor  # (image tokens, 3)
    text: Tensor  # (1, text tokens, 4096)
    pooled: Tensor  # (1, 768)
    identity: Tensor | None  # (1, 32, 2048)
    negative: (
        tuple[Tensor, Tensor, Tensor | None] | None
    )  # text, pooled, identity of nobody; None: no true CFG
    guidance: float
    true_cfg: float
    id_weight: float


@torch.inference_mode()
def given_to(engine: PulidFluxEngine, request: GenerationRequest, dtype: torch.dtype | None = None) -> Given:
    """The request in tensors, of the engine's dtype or cast to another, on the engine's device."""
    made = engine.prepare(request).conditioning
    own = made.text.tokens.dtype
    device = made.text.tokens.device
    dtype = dtype or own
    size = request.height, request.width
    noise = torch.cat(
        [
            latents.pack(
                latents.draw_noise(request.seed + number, *size, channels=16, dtype=own, device=device)
            )
            for number in range(request.num_outputs)
        ]
    ).to(dtype)

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    negative = made.negative_text
    return Given(
        noise=noise,
        times=sampling.timesteps(request.num_steps, noise.shape[1]),
        image_ids=latents.image_ids(*size, device),
        text=made.text.tokens.to(dtype),
        pooled=made.text.pooled.to(dtype),
        identity=cast(made.people[0][1].tokens) if made.people else None,
        negative=None
        if negative is None
        else (negative.tokens.to(dtype), negative.pooled.to(dtype), cast(made.unconditional)),
        guidance=request.guidance,
        true_cfg=request.true_cfg,
        id_weight=request.id_weight,
    )


@torch.inference_mode()
def check_activations(transformer: nn.Module, given: Given) -> dict[str, float]:
    """The least and the largest root mean square behind any block. Raises ValueError for no signal."""
    seen: list[float] = []
    model = shell(transformer)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.register_forward_hook(
            lambda _, __, out: seen.extend(float(x.float().square().mean().sqrt()) for x in out)
        )
    rows = given.noise.shape[0]
    one = torch.ones(rows, dtype=given.noise.dtype, device=given.noise.device)
    model(
        hidden_states=given.noise,
        encoder_hidden_states=given.text.expand(rows, -1, -1),
        pooled_projections=given.pooled.expand(rows, -1),
        timestep=one,
        guidance=one * given.guidance,
        img_ids=given.image_ids,
        txt_ids=latents.text_ids(given.text.shape[1], given.noise.device),
    )
    if not all(math.isfinite(x) and x > 0 for x in seen):
        raise ValueError(f"The random weights do not carry a signal: root mean squares {seen}.")
    return {"rms_min": round(min(seen), 3), "rms_max": round(max(seen), 3)}
