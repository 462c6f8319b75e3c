"""The engine: a photo of a face and a prompt in, pictures of that person out. Read this file first.

    admit   photo -> face -> identity tokens -> folded identity;  prompt -> text;  seed -> noise
    step    one denoising step for whoever's turn it is
    finish  latents -> pixels

Implements `pulid.engine.Engine`. Knows no HTTP, no files, no queue; one thread drives it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pulid.batch import Batch, Branch, Flight, step_input
from pulid.cache import LruCache
from pulid.engine import EngineInfo, GenerationRequest, GenerationResult, RgbImage, StepEvent
from pulid.errors import Busy, OutOfMemory
from pulid.flux import latents, sampling
from pulid.flux.transformer import IdentityFlux, Rotary
from pulid.identity.attention import FORMS, IdentityAttention, PreparedIdentity
from pulid.identity.encoder import IdentityEncoder
from pulid.parts import Parts
from pulid.profiles import SpeedProfile

MAX_ROWS = 16  # pictures in flight on one device
CACHED_IDENTITIES = 64  # at full size 128 KiB each
CACHED_ROTARY_TABLES = 8  # at full size up to 10 MiB each
SEED_RANGE = 2**63


class PulidFluxEngine:
    """PuLID-FLUX on one device."""

    def __init__(self, parts: Parts, profile: SpeedProfile, device: torch.device) -> None:
        self.info = EngineInfo(profile=profile.name, device=str(device), notice=profile.notice)
        self.parts = parts
        self._device = device
        self._dtype = getattr(torch, profile.dtype)
        self._form = FORMS[profile.identity_attention]
        self._faces = parts.faces
        self._text = parts.text
        self._flux = IdentityFlux(parts.networks.transformer)
        self._autoencoder = parts.networks.autoencoder
        self._attentions: list[IdentityAttention] = list(parts.networks.identity_attentions)  # type: ignore[arg-type]
        self._encoder = IdentityEncoder(
            parts.networks.eva_clip, parts.networks.idformer, device=device, dtype=self._dtype
        )
        self._identities: LruCache[bytes, Tensor] = LruCache(CACHED_IDENTITIES)
        self._rotary_tables: LruCache[tuple[int, int, int], Rotary] = LruCache(CACHED_ROTARY_TABLES)
        self._batch = Batch(shares_steps=profile.shares_steps)

    def can_admit(self, request: GenerationRequest) -> bool:
        return self._batch.rows + request.num_outputs <= MAX_ROWS

    @torch.inference_mode()
    def admit(self, job_id: str, request: GenerationRequest) -> None:
        """Raises NoFaceFound for a photo without a face, Busy when the device is full."""
        if not self.can_admit(request):
            raise Busy(f"{MAX_ROWS} pictures are in the making on this device. Try again in a moment.")
        timings: dict[str, float] = {}
        with _timed(timings, "face"):
            id_tokens = None if request.id_image is None else self._id_tokens(request.id_image)
        with _timed(timings, "text"):
            positive, negative = self._branches(request, id_tokens)
        noise, seeds = self._noise(request)
        self._batch.join(
            Flight(
                job_id=job_id,
                request=request,
                seeds=seeds,
                latents=noise,
                times=sampling.timesteps(request.num_steps, noise.shape[1]),
                positive=positive,
                negative=negative,
                timings=timings,
            )
        )

    @torch.inference_mode()
    def step(self) -> Sequence[StepEvent]:
        """One denoising step of the next group; finished requests bring their pictures."""
        group = self._batch.next_group()
        if not group:
            return []
        try:
            self._advance(group)
            return [self._report(flight) for flight in group]
        except torch.OutOfMemoryError:
            pass  # handled below, outside this frame: the traceback would keep the tensors alive
        return self._give_up(group)

    def cancel(self, job_id: str) -> None:
        self._batch.leave(job_id)

    def close(self) -> None:
        """Drop every network; the device's memory is free when the caller drops the engine."""
        self.__dict__.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # admit: identity, text, noise

    def _id_tokens(self, photo: RgbImage) -> Tensor:
        """Identity tokens (1, 32, 2048) of the face in a photo, kept by the photo's content."""
        content = hashlib.blake2b(photo.tobytes(), key=str(photo.shape).encode(), digest_size=16).digest()
        return self._identities.get_or_make(content, lambda: self._encoder.encode(self._faces.read(photo)))

    def _branches(self, request: GenerationRequest, id_tokens: Tensor | None) -> tuple[Branch, Branch | None]:
        length = request.max_sequence_length
        positive = Branch(
            text=self._text.encode(request.prompt, length), identity=self._prepared(request, id_tokens)
        )
        if not sampling.true_cfg_is_on(request.true_cfg):
            return positive, None
        unconditional = None if id_tokens is None else self._encoder.unconditional()
        negative = Branch(
            text=self._text.encode(request.negative_prompt, length),
            identity=self._prepared(request, unconditional),
        )
        return positive, negative

    def _prepared(self, request: GenerationRequest, id_tokens: Tensor | None) -> PreparedIdentity | None:
        """None where the identity would add nothing: no photo, weight 0, or a start after the end."""
        if id_tokens is None or request.id_weight == 0 or request.start_step >= request.num_steps:
            return None
        return self._form.of(self._attentions, id_tokens, request.id_weight, self._dtype)

    def _noise(self, request: GenerationRequest) -> tuple[Tensor, tuple[int, ...]]:
        """Packed noise (num_outputs, image tokens, 64), each row from a seed of its own."""
        seeds = tuple((request.seed + i) % SEED_RANGE for i in range(request.num_outputs))
        rows = [
            latents.draw_noise(
                seed,
                request.height,
                request.width,
                channels=self._autoencoder.config.latent_channels,
                dtype=self._dtype,
                device=self._device,
            )
            for seed in seeds
        ]
        return latents.pack(torch.cat(rows)), seeds

    # step

    def _advance(self, group: Sequence[Flight]) -> None:
        started = time.perf_counter()
        denoise_step(self._flux, group, self._rotary(group[0]))
        elapsed = time.perf_counter() - started
        for flight in group:
            flight.timings["denoise"] = flight.timings.get("denoise", 0.0) + elapsed

    def _rotary(self, flight: Flight) -> Rotary:
        def make() -> Rotary:
            height, width = flight.request.height, flight.request.width
            return self._flux.rotary(
                latents.text_ids(flight.request.max_sequence_length, self._device),
                latents.image_ids(height, width, self._device),
            )

        return self._rotary_tables.get_or_make(flight.shape, make)

    def _report(self, flight: Flight) -> StepEvent:
        result = self._finish(flight) if flight.is_done else None
        return StepEvent(
            job_id=flight.job_id, step=flight.step, num_steps=flight.request.num_steps, result=result
        )

    # finish

    def _finish(self, flight: Flight) -> GenerationResult:
        """Decode picture by picture, so that four outputs need the memory of one."""
        request = flight.request
        with _timed(flight.timings, "decode"):
            images = tuple(
                image
                for packed in flight.latents.split(1)
                for image in latents.to_uint8(
                    latents.decode(self._autoencoder, packed, request.height, request.width, self._dtype)
                )
            )
        self._batch.leave(flight.job_id)
        return GenerationResult(images=images, seeds=flight.seeds, timings=flight.timings)

    def _give_up(self, group: Sequence[Flight]) -> list[StepEvent]:
        for flight in group:
            self._batch.leave(flight.job_id)
        torch.cuda.empty_cache()
        error = OutOfMemory(
            "The device ran out of memory for this request. Ask for a smaller size or fewer outputs."
        )
        return [
            StepEvent(job_id=flight.job_id, step=flight.step, num_steps=flight.request.num_steps, error=error)
            for flight in group
        ]


def denoise_step(flux: IdentityFlux, group: Sequence[Flight], rotary: Rotary) -> None:
    """Advance flights of one shape by one step, in one forward pass."""
    rows = step_input(group)
    velocity = flux(
        rows.latents,
        text=rows.text,
        pooled=rows.pooled,
        timestep=rows.timestep,
        guidance=rows.guidance,
        rotary=rotary,
        identity=rows.identity,
    )
    counts = [len(flight.seeds) * len(flight.branches()) for flight in group]
    for flight, own_rows in zip(group, velocity.split(counts), strict=True):
        flight.advance(own_rows)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
