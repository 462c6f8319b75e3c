"""The engine: photos of faces and a prompt in, pictures of those people out. Read this file first.

    prepare photos -> faces -> identity tokens;  prompt -> text
    admit   identity tokens -> folded identities, each in its place;  seed -> noise
    step    one denoising step for whoever's turn it is
    decode  latents -> pixels

Implements `pulid.engine.Engine`. Knows no HTTP, no files, no queue. One thread drives it; what comes
before and after the steps may run in others, beside them (`streams`: what that takes on CUDA). Errors
of the device leave it as OutOfMemory or DeviceLost, so that nobody outside needs torch to tell them
apart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pulid.batch import Batch, Branch, Flight, step_input
from pulid.cache import LruCache
from pulid.device_faults import device_faults_named, out_of_memory
from pulid.engine import (
    LARGEST_FACE,
    DenoisedRequest,
    EngineInfo,
    FaceChoice,
    FaceEmbedding,
    FaceFound,
    Fusion,
    GenerationRequest,
    GenerationResult,
    Person,
    PreparedRequest,
    RgbImage,
    StepEvent,
)
from pulid.errors import Busy
from pulid.flux import fused, latents, sampling
from pulid.flux.compiled import compiled_blocks, proven
from pulid.flux.decoder import Decoder
from pulid.flux.fused import Blocks, FusedFlux
from pulid.flux.kernels.samples import Draw
from pulid.flux.preview import LatentPreview
from pulid.flux.step_cache import MAX_SKIPPED, StepCache
from pulid.flux.step_graph import CapturedFlux, captured
from pulid.flux.streaming import Slots
from pulid.flux.text import TextFeatures
from pulid.flux.transformer import IdentityFlux, Rotary
from pulid.identity.attention import FORMS, IdentityAttention, PreparedIdentity, ReferenceIdentity
from pulid.identity.encoder import IdentityEncoder
from pulid.identity.likeness import similarities
from pulid.identity.people import Identity, PlacedIdentity, like_nobody, place
from pulid.identity.reader import IdentityReader, Photo, check_people
from pulid.parts import Parts
from pulid.profiles import SpeedProfile
from pulid.streams import SideStream, lend, mark
from pulid.warm_up import FOR_LIBRARIES, Asked, RandomConditions, for_compilers

MAX_ROWS = 16  # pictures in flight on one device
# From here on (four photos side by side) a folded identity costs more than keys and values made anew
# in each step; its 6 MiB a block and photo would fill the device, too.
MAX_FOLDED_TOKENS = 128
CACHED_ROTARY_TABLES = 8  # at full size up to 10 MiB each
SEED_RANGE = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What photos and a prompt have become, before the identities are folded for one request."""

    people: tuple[tuple[Person, Identity], ...]
    text: TextFeatures
    unconditional: Tensor | None  # identity tokens of nobody, for the negative branch
    negative_text: TextFeatures | None  # None: true CFG is off

    def tensors(self) -> Iterator[Tensor]:
        yield from (identity.tokens for _, identity in self.people)
        if self.unconditional is not None:
            yield self.unconditional
        for text in filter(None, (self.text, self.negative_text)):
            yield from (text.tokens, text.pooled)


@dataclass(frozen=True, slots=True)
class FinalLatents:
    """Where the last step has led."""

    packed: Tensor  # (num_outputs, image tokens, 64)
    ready: torch.cuda.Event | None  # when they are; None on the CPU


class PulidFluxEngine:
    """PuLID-FLUX on one device."""

    def __init__(self, parts: Parts, profile: SpeedProfile, device: torch.device) -> None:
        self.parts = parts
        self._device = device
        self._dtype = getattr(torch, profile.dtype)
        self._compiles = profile.compiles
        self._skip_threshold = profile.skip_threshold
        self._is_limited = profile.memory_limit > 0
        self._form = FORMS[profile.identity_attention]
        self._faces = parts.faces
        self._text = parts.text
        self._flux = fused.FORMS[profile.transformer_form](parts.networks.transformer)
        if parts.streams is not None and isinstance(self._flux, FusedFlux):
            self._flux.stream(
                Slots(parts.streams.slot, device),
                doubles=parts.streams.doubles,
                singles=parts.streams.singles,
                modulation=parts.streams.modulation,
            )
        self._forward = captured(self._flux, device) if profile.captures else self._flux
        self._autoencoder = parts.networks.autoencoder
        self._attentions: list[IdentityAttention] = list(parts.networks.identity_attentions)  # type: ignore[arg-type]
        self._encoder = IdentityEncoder(
            parts.networks.eva_clip, parts.networks.idformer, device=device, dtype=self._dtype
        )
        self._reading = threading.Lock()  # detectors and tokenizers serve one thread at a time
        self._identities = IdentityReader(self._faces, self._encoder, self._reading)
        self._preview = LatentPreview(self._autoencoder)
        self._decoder = Decoder(
            self._autoencoder, self._dtype, profile.decoder_form, tile=profile.decode_tile
        )
        self._watched: set[str] = set()
        self._rotary_tables: LruCache[tuple[int, int, int], Rotary] = LruCache(CACHED_ROTARY_TABLES)
        self._batch = Batch(shares_steps=profile.shares_steps)
        self.info = EngineInfo(
            profile=profile.name,
            device=str(device),
            notice=profile.notice,
            details={
                "identity_checkpoint": self._identities.checkpoint,
                **_details(self._flux),
                **_details(self._forward),
                **_skipping(profile),
                **({"t5": "weights in int8"} if profile.t5_int8 else {}),
                "decoder": self._decoder.note,
            },
        )
        # One for all that asks or fills the caches of identities and prompts, one for the pictures.
        self._reading_stream, self._decoding_stream = SideStream(device), SideStream(device)

    @torch.inference_mode()
    def warm_up(self, blocks: Blocks | None = None) -> None:
        """Compute a little of everything, so that no request waits for a compiler or a library's start.

        `blocks`: to be proven and used in place of inductor's, which a profile that compiles has. Call it
        before the first request. Raises torch.OutOfMemoryError.
        """
        if blocks is None and self._compiles:
            blocks = compiled_blocks()
        if blocks is not None and isinstance(self._flux, FusedFlux):
            asked = for_compilers(typical=self._device.type == "cuda")
            self._flux.blocks = proven(self._flux, blocks, lambda: self._try_steps(asked))
        self._try_steps(FOR_LIBRARIES)
        with self._decoding_stream.work():
            request, _ = FOR_LIBRARIES[0]
            self._decoder.prove(self._noise(request)[0], request.height, request.width)
        told = {**_details(self._flux), "decoder": self._decoder.note}
        self.info = replace(self.info, details={**self.info.details, **told})

    def can_admit(self, request: GenerationRequest) -> bool:
        if self._is_limited:  # what a second request keeps would be missed by the first one's steps
            return self._batch.rows == 0
        return self._batch.rows + request.num_outputs <= MAX_ROWS

    @device_faults_named
    @torch.inference_mode()
    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Raises ImageRejected, NoFaceFound, SeveralFaces or IdentityRejected."""
        photos, everyone = tuple(map(Photo, request.id_images)), request.everyone
        check_people(everyone, len(photos))
        timings: dict[str, float] = {}
        cache_hits = {"prompt": self._text.knows(request.prompt, request.max_sequence_length)}
        with _timed(timings, "face"), self._reading_stream.work():
            if photos:
                cache_hits["identity"] = all(self._identities.knows(photos, person) for person in everyone)
            people = tuple((person, self._identities.read(photos, person)) for person in everyone)
        _tell_decoding_apart(timings, photos)
        with self._reading, _timed(timings, "text"), self._reading_stream.work():
            conditioning = self._condition(request, people)
        return PreparedRequest(
            request=replace(request, id_images=()),
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
            rows = self._batch.rows
            raise Busy(f"{rows} pictures are in the making on this device. Try again in a moment.")
        prepared = self.prepare(request) if isinstance(request, GenerationRequest) else request
        self._batch.join(self._flight(job_id, prepared))

    @device_faults_named
    @torch.inference_mode()
    def step(self) -> Sequence[StepEvent]:
        """One denoising step of the next group; finished requests bring what `decode` wants."""
        group = self._batch.next_group()
        if not group:
            return []
        try:
            self._advance(group)
            return [self._report(flight) for flight in group]
        except torch.OutOfMemoryError:
            pass  # handled below, outside this frame: the traceback would keep the tensors alive
        return self._give_up(group)

    @device_faults_named
    @torch.inference_mode()
    def decode(self, denoised: DenoisedRequest) -> GenerationResult:
        request, last, timings = denoised.request, denoised.latents, dict(denoised.timings)
        with _timed(timings, "decode"), self._decoding_stream.work(after=last.ready):
            images = self._decoder.pictures(last.packed, request.height, request.width)
        return GenerationResult(
            images=images,
            seeds=denoised.seeds,
            timings=timings,
            device_memory=self._memory(),
            reference_faces=denoised.reference_faces,
            skipped_steps=denoised.skipped_steps,
        )

    def watch(self, job_id: str, on: bool) -> None:
        if on:
            self._watched.add(job_id)
        else:
            self._watched.discard(job_id)

    def cancel(self, job_id: str) -> None:
        self._leave(job_id)

    def flight(self, job_id: str) -> Flight:
        """A job in flight, for those who drive the engine in the same process. Raises KeyError."""
        return self._batch.flight(job_id)

    @device_faults_named
    def faces(self, photo: RgbImage) -> tuple[FaceFound, ...]:
        with self._reading, self._reading_stream.work():
            return self._faces.faces(photo)

    @device_faults_named
    @torch.inference_mode()
    def embed(
        self, photos: Sequence[RgbImage], fusion: Fusion = "mean", face: FaceChoice = LARGEST_FACE
    ) -> bytes:
        """Raises NoFaceFound or SeveralFaces."""
        with self._reading_stream.work():
            identity = self._identities.read_photos(list(map(Photo, photos)), fusion, face)
            return self._identities.as_file(identity)

    @device_faults_named
    def likeness(
        self, image: RgbImage, reference_faces: Sequence[FaceEmbedding | None]
    ) -> tuple[float | None, ...]:
        with self._reading, self._reading_stream.work():
            found = self._faces.face_embeddings(image)
        return similarities(found, reference_faces)

    def close(self) -> None:
        """Drop every network; the device's memory is free when the caller drops the engine."""
        self.__dict__.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # warm up

    def _try_steps(self, asked: Asked) -> None:
        """One step of each request by itself, with random numbers for what photos and prompts become."""
        config = self.parts.networks.transformer.config
        given = RandomConditions(
            text_width=config.joint_attention_dim,
            pooled_width=config.pooled_projection_dim,
            identity_shape=(self._identities.tokens_per_photo, self._attentions[0].to_kv.in_features),
            draw=Draw(self._device, self._dtype),
        )
        for request, photos in asked:
            is_guided = sampling.true_cfg_is_on(request.true_cfg)
            conditioning = Conditioning(
                people=given.people(photos),
                text=given.text(request),
                unconditional=given.nobody() if is_guided and photos else None,
                negative_text=given.text(request) if is_guided else None,
            )
            prepared = PreparedRequest(request=request, conditioning=conditioning, timings={})
            flight = self._flight("warm-up", prepared)
            denoise_step(self._flux, [flight], self._make_rotary(flight))
        self._wait_for_the_device()

    # prepare: text

    def _condition(
        self, request: GenerationRequest, people: tuple[tuple[Person, Identity], ...]
    ) -> Conditioning:
        length = request.max_sequence_length
        text = self._text.encode(request.prompt, length)
        if not sampling.true_cfg_is_on(request.true_cfg):
            return Conditioning(people=people, text=text, unconditional=None, negative_text=None)
        return Conditioning(
            people=people,
            text=text,
            unconditional=self._encoder.unconditional() if people else None,
            negative_text=self._text.encode(request.negative_prompt, length),
        )

    # admit: folded identities, noise

    def _flight(self, job_id: str, prepared: PreparedRequest) -> Flight:
        request, given = prepared.request, prepared.conditioning
        lend(given.tensors())
        positive, negative = self._branches(request, given)
        noise, seeds = self._noise(request)
        times = sampling.timesteps(request.num_steps, noise.shape[1])
        if isinstance(self._flux, FusedFlux):
            for branch in filter(None, (positive, negative)):
                branch.modulation = self._flux.modulation_table(
                    times[:-1], request.guidance, branch.text.pooled
                )
                if self._skip_threshold:
                    branch.cache = StepCache(self._skip_threshold)
        return Flight(
            job_id=job_id,
            request=request,
            seeds=seeds,
            latents=noise,
            times=times,
            positive=positive,
            negative=negative,
            steps_alone=self._steps_alone(given),
            reference_faces=_reference_faces(given) if request.measures_similarity else (),
            timings=dict(prepared.timings),
        )

    def _branches(self, request: GenerationRequest, given: Conditioning) -> tuple[Branch, Branch | None]:
        """Under true CFG the same people again, each with the tokens of nobody."""
        seen = [(person, identity.tokens) for person, identity in given.people]
        positive = Branch(text=given.text, people=self._placed(request, seen))
        if given.negative_text is None:
            return positive, None
        nobody = given.unconditional
        unseen = [] if nobody is None else [(p, like_nobody(nobody, tokens)) for p, tokens in seen]
        return positive, Branch(text=given.negative_text, people=self._placed(request, unseen))

    def _placed(
        self, request: GenerationRequest, people: Sequence[tuple[Person, Tensor]]
    ) -> tuple[PlacedIdentity, ...]:
        grid = latents.token_grid(request.height, request.width)
        return place(people, self._folded, grid=grid, num_steps=request.num_steps)

    def _folded(self, id_tokens: Tensor, id_weight: float) -> PreparedIdentity:
        form = self._form if id_tokens.shape[1] <= MAX_FOLDED_TOKENS else ReferenceIdentity
        return form.of(self._attentions, id_tokens, id_weight, self._dtype)

    def _steps_alone(self, given: Conditioning) -> bool:
        """Rows share a step only where each sees at most one person, everywhere, by one photo's tokens."""
        return len(given.people) > 1 or any(
            person.region is not None or identity.tokens.shape[1] != self._identities.tokens_per_photo
            for person, identity in given.people
        )

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
        for flight in group:
            flight.is_watched = flight.job_id in self._watched
        started = time.perf_counter()
        denoise_step(self._forward, group, self._rotary(group[0]))
        self._wait_for_the_device()
        elapsed = time.perf_counter() - started
        for flight in group:
            flight.timings["denoise"] = flight.timings.get("denoise", 0.0) + elapsed

    def _wait_for_the_device(self) -> None:
        """A step is done when the device is: else progress would run ahead, and cancels come too late."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _rotary(self, flight: Flight) -> Rotary:
        return self._rotary_tables.get_or_make(flight.shape, lambda: self._make_rotary(flight))

    def _make_rotary(self, flight: Flight) -> Rotary:
        height, width = flight.request.height, flight.request.width
        return self._flux.rotary(
            latents.text_ids(flight.request.max_sequence_length, self._device),
            latents.image_ids(height, width, self._device, tokens_across=self.parts.tokens_across),
        )

    def _report(self, flight: Flight) -> StepEvent:
        return StepEvent(
            job_id=flight.job_id,
            step=flight.step,
            num_steps=flight.request.num_steps,
            preview=self._preview_of(flight),
            denoised=self._finish(flight) if flight.is_done else None,
        )

    def _preview_of(self, flight: Flight) -> bytes | None:
        if flight.predicted_latents is None or flight.is_done:
            return None
        request = flight.request
        return self._preview.jpeg(flight.predicted_latents[:1], request.height, request.width)

    def _leave(self, job_id: str) -> None:
        self._batch.leave(job_id)
        self._watched.discard(job_id)

    def _finish(self, flight: Flight) -> DenoisedRequest:
        self._leave(flight.job_id)
        return DenoisedRequest(
            request=flight.request,
            latents=FinalLatents(flight.latents, mark(self._device)),
            seeds=flight.seeds,
            timings=flight.timings,
            reference_faces=flight.reference_faces,
            skipped_steps=flight.skipped_steps,
        )

    def _memory(self) -> int | None:
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else None

    def _give_up(self, group: Sequence[Flight]) -> list[StepEvent]:
        for flight in group:
            self._leave(flight.job_id)
        error = out_of_memory()
        return [
            StepEvent(job_id=flight.job_id, step=flight.step, num_steps=flight.request.num_steps, error=error)
            for flight in group
        ]


def denoise_step(
    flux: IdentityFlux | FusedFlux | CapturedFlux, group: Sequence[Flight], rotary: Rotary
) -> None:
    """Advance flights of one shape by one step, in one forward pass."""
    rows = step_input(group)
    of_fused: dict[str, Any] = {"modulation_rows": rows.modulation, "turns": rows.turns}
    velocity = flux(
        rows.latents,
        text=rows.text,
        pooled=rows.pooled,
        timestep=rows.timestep,
        guidance=rows.guidance,
        rotary=rotary,
        identity=rows.identity,
        **{name: given for name, given in of_fused.items() if given is not None},
    )
    counts = [len(flight.seeds) * len(flight.branches()) for flight in group]
    for flight, own_rows in zip(group, velocity.split(counts), strict=True):
        flight.advance(own_rows)


def _details(flux: IdentityFlux | FusedFlux | CapturedFlux) -> dict[str, str]:
    if isinstance(flux, CapturedFlux):
        return {"captures": flux.form}
    return flux.described() if isinstance(flux, FusedFlux) else {}


def _skipping(profile: SpeedProfile) -> dict[str, str]:
    if profile.skip_threshold is None:
        return {}
    how = f"threshold {profile.skip_threshold:g}, at most {MAX_SKIPPED} steps in a row"
    return {"step_cache": how if profile.skip_threshold else "off"}


def _reference_faces(given: Conditioning) -> tuple[FaceEmbedding | None, ...]:
    return tuple(identity.face_embedding for _, identity in given.people)


def _tell_decoding_apart(timings: dict[str, float], photos: Sequence[Photo]) -> None:
    """Photos are decoded among the reading of faces, and only those that were not known."""
    decoding_s = [photo.decoding_s for photo in photos if photo.decoding_s is not None]
    if decoding_s:
        timings["decode_photo"] = sum(decoding_s)
        timings["face"] -= timings["decode_photo"]


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
