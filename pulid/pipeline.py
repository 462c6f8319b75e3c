"""The engine: a photo of a face and a prompt in, pictures of that person out. Read this file first.

    prepare photo -> face -> identity tokens;  prompt -> text
    admit   identity tokens -> folded identity;  seed -> noise
    step    one denoising step for whoever's turn it is
    finish  latents -> pixels

Implements `pulid.engine.Engine`. Knows no HTTP, no files, no queue; one thread drives it, and
`prepare` may run in another beside the steps. Errors of the device leave it as OutOfMemory or
DeviceLost, so that nobody outside needs torch to tell them apart.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pulid.batch import Batch, Branch, Flight, step_input
from pulid.cache import LruCache
from pulid.device_faults import device_faults_named, out_of_memory
from pulid.engine import (
    EngineInfo,
    GenerationRequest,
    GenerationResult,
    PreparedRequest,
    RgbImage,
    StepEvent,
)
from pulid.errors import Busy
from pulid.flux import latents, sampling
from pulid.flux.text import TextFeatures
from pulid.flux.transformer import IdentityFlux, Rotary
from pulid.identity.attention import FORMS, IdentityAttention, PreparedIdentity
from pulid.identity.encoder import IdentityEncoder
from pulid.parts import Parts
from pulid.profiles import SpeedProfile

MAX_ROWS = 16  # pictures in flight on one device
CACHED_IDENTITIES = 64  # at full size 128 KiB each
CACHED_ROTARY_TABLES = 8  # at full size up to 10 MiB each
SEED_RANGE = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What a photo and a prompt have become, before the identity is folded for one request."""

    id_tokens: Tensor | None  # (1, 32, 2048); None paints without an identity
    text: TextFeatures
    unconditional: Tensor | None  # identity tokens of nobody, for the negative branch
    negative_text: TextFeatures | None  # None: true CFG is off


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
        self._reading = threading.Lock()  # detectors and tokenizers serve one thread at a time

    def can_admit(self, request: GenerationRequest) -> bool:
        return self._batch.rows + request.num_outputs <= MAX_ROWS

    @device_faults_named
    @torch.inference_mode()
    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Raises NoFaceFound for a photo without a face."""
        timings: dict[str, float] = {}
        cache_hits = {"prompt": self._text.knows(request.prompt, request.max_sequence_length)}
        if request.id_image is not None:
            cache_hits["identity"] = _content_of(request.id_image) in self._identities
        with self._reading:
            with _timed(timings, "face"):
                id_tokens = None if request.id_image is None else self._id_tokens(request.id_image)
            with _timed(timings, "text"):
                conditioning = self._condition(request, id_tokens)
        return PreparedRequest(
            request=replace(request, id_image=None),
            conditioning=conditioning,
            timings=timings,
            cache_hits=cache_hits,
        )

    @device_faults_named
    @torch.inference_mode()
    def admit(self, job_id: str, request: GenerationRequest | PreparedRequest) -> None:
        """Raises Busy when the device is full."""
        asked = request if isinstance(request, GenerationRequest) else request.request
        if not self.can_admit(asked):
            raise Busy(f"{MAX_ROWS} pictures are in the making on this device. Try again in a moment.")
        prepared = self.prepare(request) if isinstance(request, GenerationRequest) else request
        self._batch.join(self._flight(job_id, prepared))

    @device_faults_named
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

    # prepare: identity tokens, text

    def _id_tokens(self, photo: RgbImage) -> Tensor:
        """Identity tokens (1, 32, 2048) of the face in a photo, kept by the photo's content."""
        return self._identities.get_or_make(
            _content_of(photo), lambda: self._encoder.encode(self._faces.read(photo))
        )

    def _condition(self, request: GenerationRequest, id_tokens: Tensor | None) -> Conditioning:
        length = request.max_sequence_length
        text = self._text.encode(request.prompt, length)
        if not sampling.true_cfg_is_on(request.true_cfg):
            return Conditioning(id_tokens=id_tokens, text=text, unconditional=None, negative_text=None)
        return Conditioning(
            id_tokens=id_tokens,
            text=text,
            unconditional=None if id_tokens is None else self._encoder.unconditional(),
            negative_text=self._text.encode(request.negative_prompt, length),
        )

    # admit: folded identity, noise

    def _flight(self, job_id: str, prepared: PreparedRequest) -> Flight:
        request = prepared.request
        positive, negative = self._branches(request, prepared.conditioning)
        noise, seeds = self._noise(request)
        return Flight(
            job_id=job_id,
            request=request,
            seeds=seeds,
            latents=noise,
            times=sampling.timesteps(request.num_steps, noise.shape[1]),
            positive=positive,
            negative=negative,
            timings=dict(prepared.timings),
        )

    def _branches(self, request: GenerationRequest, given: Conditioning) -> tuple[Branch, Branch | None]:
        positive = Branch(text=given.text, identity=self._folded(request, given.id_tokens))
        if given.negative_text is None:
            return positive, None
        return positive, Branch(text=given.negative_text, identity=self._folded(request, given.unconditional))

    def _folded(self, request: GenerationRequest, id_tokens: Tensor | None) -> PreparedIdentity | None:
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
        return GenerationResult(
            images=images, seeds=flight.seeds, timings=flight.timings, device_memory=self._memory()
        )

    def _memory(self) -> int | None:
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else None

    def _give_up(self, group: Sequence[Flight]) -> list[StepEvent]:
        for flight in group:
            self._batch.leave(flight.job_id)
        error = out_of_memory()
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


def _content_of(photo: RgbImage) -> bytes:
    return hashlib.blake2b(photo.tobytes(), key=str(photo.shape).encode(), digest_size=16).digest()


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
