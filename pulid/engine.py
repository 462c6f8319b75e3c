"""The contract between the server and a model: what may be asked, what comes back. Torch-free.

One engine serves one device and is driven by one thread: `admit` requests, call `step` until
their last event has come. Only `prepare` may run in a second thread, beside the steps. Knows no
HTTP, no queue, no files. The only implementation for pictures is `pulid.pipeline.PulidFluxEngine`;
tests of the job code have a scripted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pulid.errors import PulidError

RgbImage = npt.NDArray[np.uint8]  # (height, width, 3), RGB

DEFAULT_NEGATIVE_PROMPT = (
    "bad quality, worst quality, text, signature, watermark, extra limbs, low resolution, "
    "partially rendered objects, deformed or partially rendered eyes, deformed, deformed eyeballs, "
    "cross-eyed, blurry"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for `num_outputs` pictures of one person. Ranges are checked by the caller."""

    prompt: str
    seed: int  # of the first picture, 0 .. 2^63-1; picture i uses (seed + i) mod 2^63
    id_image: RgbImage | None = None  # the photo; None paints without an identity (plain FLUX)
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT  # read only when true CFG is on
    width: int = 896  # pixels; each side is rounded up to a multiple of 16
    height: int = 1152
    num_steps: int = 20
    start_step: int = 0  # first step (0-based) that sees the identity
    guidance: float = 4.0  # distilled guidance, not classifier-free
    id_weight: float = 1.05  # strength of the identity; 0 turns it off
    true_cfg: float = 1.0  # real classifier-free guidance; on when more than 0.01 away from 1
    timestep_to_start_cfg: int = 0  # first step with true CFG; the wire always sets it to start_step
    max_sequence_length: int = 128  # T5 tokens; padding is attended to, so it changes the picture
    num_outputs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A request whose photo and prompt have been read: made by `Engine.prepare`, for that engine only."""

    request: GenerationRequest  # without the photo
    conditioning: Any  # what the engine made of photo and prompt, on its device
    timings: Mapping[str, float]  # seconds: face, text
    cache_hits: Mapping[str, bool] = field(default_factory=dict)  # identity, prompt: was it known?


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    images: tuple[RgbImage, ...]
    seeds: tuple[int, ...]  # one per image
    timings: Mapping[str, float]  # seconds by stage: face, text, denoise, decode
    device_memory: int | None = None  # bytes held on the device; None where nobody counts


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """What one call of `step` did for one job. The last event of a job has `result` or `error`."""

    job_id: str
    step: int  # denoising steps done so far
    num_steps: int
    result: GenerationResult | None = None
    error: PulidError | None = None

    @property
    def is_last(self) -> bool:
        return self.result is not None or self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    profile: str
    device: str
    notice: str = ""  # what a user must be told about these pictures
    details: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """What the server may ask of a model."""

    @property
    def info(self) -> EngineInfo: ...

    def can_admit(self, request: GenerationRequest) -> bool:
        """Is there room for this request now?"""
        ...

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Read the face and the prompt; nothing is in flight by this.

        The only method for another thread: it may run beside `step`. Raises BadRequest
        (NoFaceFound, ...), OutOfMemory or DeviceLost.
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

    def cancel(self, job_id: str) -> None:
        """Forget the job; no further event of it comes. Unknown ids are fine."""
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
