"""The contract between the server and a model: what may be asked, what comes back. Torch-free.

One engine serves one device and is driven by one thread: `admit` requests, call `step` until their
last event has come. What goes before and after (`prepare`, `decode`) and what only reads (`faces`,
`embed`, `likeness`) may run in other threads, beside the steps. Knows no HTTP, no queue, no files. The
only implementation for pictures is `pulid.pipeline.PulidFluxEngine`; tests of the job code have a
scripted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pulid.errors import PulidError

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3), RGB
FaceEmbedding = npt.NDArray[np.float32]  # (512,), ArcFace

DEFAULT_NEGATIVE_PROMPT = (
    "bad quality, worst quality, text, signature, watermark, extra limbs, low resolution, "
    "partially rendered objects, deformed or partially rendered eyes, deformed, deformed eyeballs, "
    "cross-eyed, blurry"
)


@dataclass(frozen=True, slots=True, eq=False)
class PhotoFile:
    """A photo as a file. Its pixels are made for an engine that has not read the same file before."""

    data: bytes
    decode: Callable[[bytes], RgbImage]  # raises ImageRejected


FaceOrder = Literal["largest", "left-to-right", "central"]
Fusion = Literal["mean", "concat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceChoice:
    """Which face of a photo is meant. The default is the largest one."""

    index: int = 0  # in `order`, counted from 0
    order: FaceOrder = "largest"  # central: nearest to the photo's centre first
    strict: bool = False  # refuse photos with several faces


LARGEST_FACE = FaceChoice()


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in fractions of a picture's width and height, 0 .. 1; (0, 0) is its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A region of any form, stretched over the canvas: 255 is inside, 0 outside, between is strength."""

    weights: npt.NDArray[np.uint8]  # (height, width), of any size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and np.array_equal(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((self.weights.shape, self.weights.tobytes()))


Region = Box | Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One human of a request: where their face comes from, and where and when the picture sees it."""

    photos: tuple[int, ...] = ()  # indexes into the request's `id_images`
    identity: bytes | None = None  # an identity file (`Engine.embed`) instead of photos
    fusion: Fusion = "mean"  # of several photos: the mean of their tokens, or all side by side
    face: FaceChoice = LARGEST_FACE  # in each of the photos
    region: Region | None = None  # None: everywhere
    weight: float = 1.05  # as `id_weight`
    start_step: int = 0  # first step (0-based) that sees them
    end_step: int | None = None  # first step that no longer does; None: they stay to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for `num_outputs` pictures. Ranges are checked by the caller.

    Without `people` the photos show one person; without photos too it is plain FLUX.
    """

    prompt: str
    seed: int  # of the first picture, 0 .. 2^63-1; picture i uses (seed + i) mod 2^63
    id_images: tuple[RgbImage | PhotoFile, ...] = ()  # the photos
    people: tuple[Person, ...] = ()  # if any, these count, and not the fields marked (one person)
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT  # read only when true CFG is on
    width: int = 896  # pixels; each side is rounded up to a multiple of 16
    height: int = 1152
    num_steps: int = 20
    start_step: int = 0  # first step (0-based) that sees the identity (one person)
    id_end_step: int | None = None  # first step that no longer does; None: none (one person)
    guidance: float = 4.0  # distilled guidance, not classifier-free
    id_weight: float = 1.05  # strength of the identity; 0 turns it off (one person)
    fusion: Fusion = "mean"  # of several photos (one person)
    face: FaceChoice = LARGEST_FACE  # in each photo (one person)
    true_cfg: float = 1.0  # real classifier-free guidance; on when more than 0.01 away from 1
    timestep_to_start_cfg: int = 0  # first step with true CFG; the wire always sets it to start_step
    max_sequence_length: int = 128  # T5 tokens; padding is attended to, so it changes the picture
    num_outputs: int = 1
    measures_similarity: bool = False  # whether the result brings its reference faces

    @property
    def everyone(self) -> tuple[Person, ...]:
        """The people of the picture: those named, or the one person that all photos show."""
        if self.people or not self.id_images:
            return self.people
        return (
            Person(
                photos=tuple(range(len(self.id_images))),
                fusion=self.fusion,
                face=self.face,
                weight=self.id_weight,
                start_step=self.start_step,
                end_step=self.id_end_step,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request whose photos and prompt have been read: made by `Engine.prepare`, for that engine only."""

    request: GenerationRequest  # without the photos
    conditioning: Any  # what the engine made of photos and prompt, on its device
    timings: Mapping[str, float]  # seconds: face, text; decode_photo where a file was decoded
    cache_hits: Mapping[str, bool] = field(default_factory=dict)  # identity, prompt: was it known?


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisedRequest:
    """A request whose steps are done: made by `Engine.step`, for `Engine.decode` of that engine only."""

    request: GenerationRequest  # without the photos
    latents: Any  # what the pictures are decoded from, on the device: 0.5 MiB for a picture of a megapixel
    seeds: tuple[int, ...]  # one per picture
    timings: Mapping[str, float]  # seconds by stage: face, text, denoise
    reference_faces: tuple[FaceEmbedding | None, ...] = ()  # as in the result
    skipped_steps: int = 0  # as in the result


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    images: tuple[RgbImage, ...]
    seeds: tuple[int, ...]  # one per image
    timings: Mapping[str, float]  # seconds by stage: face, text, denoise, decode
    device_memory: int | None = None  # bytes held on the device; None where nobody counts
    # For `Engine.likeness`, if asked for: one for each person, of length 1; None where it is not known.
    reference_faces: tuple[FaceEmbedding | None, ...] = ()
    # By a profile that skips steps: how many. Under true CFG those of both branches, of twice as many.
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What one call of `step` did for one job. The last event of a job has `denoised` or `error`."""

    job_id: str
    step: int  # denoising steps done so far
    num_steps: int
    preview: bytes | None = None  # a small JPEG of how far the first picture is; for watched jobs only
    denoised: DenoisedRequest | None = None  # no longer in flight; whoever wants its pictures decodes them
    error: PulidError | None = None

    @property
    def is_last(self) -> bool:
        return self.denoised is not None or self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceFound:
    """One face of a photo."""

    box: Box
    score: float  # the detector's, 0 .. 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    profile: str
    device: str
    notice: str = ""  # what a user must be told about these pictures
    # identity_checkpoint: fingerprint of the networks that make identities; identity files carry it.
    details: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """What the server may ask of a model."""

    @property
    def info(self) -> EngineInfo: ...

    def can_admit(self, request: GenerationRequest) -> bool:
        """Is there room for this request now?"""
        ...

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Read the faces and the prompt; nothing is in flight by this.

        May run beside `step`, in another thread. Raises BadRequest (NoFaceFound, SeveralFaces,
        ImageRejected, IdentityRejected, ...), OutOfMemory or DeviceLost.
        """
        ...

    def admit(self, job_id: str, request: GenerationRequest | PreparedRequest) -> None:
        """Put the request in flight, after `prepare` if that was not done yet.

        Raises what `prepare` raises, or Busy; then nothing was admitted.
        """
        ...

    def step(self) -> Sequence[StepEvent]:
        """Advance by one denoising step. Empty when nothing is in flight. Raises DeviceLost."""
        ...

    def decode(self, denoised: DenoisedRequest) -> GenerationResult:
        """The pictures. May run beside `step`, in another thread. Raises OutOfMemory or DeviceLost."""
        ...

    def watch(self, job_id: str, on: bool) -> None:
        """Whether the job's events bring previews. Holds until said otherwise or the job has ended."""
        ...

    def cancel(self, job_id: str) -> None:
        """Forget the job; no further event of it comes. Unknown ids are fine."""
        ...

    def faces(self, photo: RgbImage) -> tuple[FaceFound, ...]:
        """The faces of a photo, in the order "largest". May run beside `step`, in another thread."""
        ...

    def embed(
        self, photos: Sequence[RgbImage], fusion: Fusion = "mean", face: FaceChoice = LARGEST_FACE
    ) -> bytes:
        """The identity file of one person, for `Person.identity`. May run beside `step`.

        Raises BadRequest (NoFaceFound, SeveralFaces), OutOfMemory or DeviceLost.
        """
        ...

    def likeness(
        self, image: RgbImage, reference_faces: Sequence[FaceEmbedding | None]
    ) -> tuple[float | None, ...]:
        """How much each reference looks like the face of `image` that is nearest to it: ArcFace cosine.

        None where the picture shows no face, or the reference is None. May run beside `step`, in
        another thread.
        """
        ...

    def close(self) -> None:
        """Free the device. The engine cannot be used afterwards."""
        ...


FaceMode = Literal["one-face", "reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far the loading of an engine has come. Told a few times a second: whoever listens must be quick."""

    part: str  # the network that is being put on the device
    done_bytes: int  # of all networks together, as they are in the files
    total_bytes: int
