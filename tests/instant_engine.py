"""InstantEngine: every request is done at once, with the same picture. For measuring the server alone.

Nothing is looked at but the job's id, so all but the decoding of its photo takes no time worth
measuring. Where a test looks at pictures or at what an engine was asked, `fakes.ScriptedEngine` is the
right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fakes import denoised_of, paint, with_pixels
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
    LoadProgress,
    PreparedRequest,
    RgbImage,
    StepEvent,
)

SIDE = 256  # pixels


THE_REQUEST = GenerationRequest(prompt="portrait", seed=1, width=SIDE, height=SIDE, num_steps=1)


def the_picture() -> GenerationResult:
    """What every job ends with."""
    return paint(THE_REQUEST)


class InstantEngine:
    """For requests of one step and one picture."""

    def __init__(self, device: str, *, progress: Callable[[str, LoadProgress], None] | None = None) -> None:
        self.info = EngineInfo(profile="instant", device=device)
        self._result = the_picture()
        self._denoised = denoised_of(THE_REQUEST)
        self._in_flight: list[str] = []

    def can_admit(self, request: GenerationRequest) -> bool:
        return not self._in_flight

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """The photos are decoded, as an engine decodes those that it does not know."""
        request, timings = with_pixels(request)
        return PreparedRequest(request=request, conditioning=None, timings=timings)

    def admit(self, job_id: str, request: GenerationRequest | PreparedRequest) -> None:
        self._in_flight.append(job_id)

    def step(self) -> list[StepEvent]:
        done = [
            StepEvent(job_id=job, step=1, num_steps=1, denoised=self._denoised) for job in self._in_flight
        ]
        self._in_flight.clear()
        return done

    def decode(self, denoised: DenoisedRequest) -> GenerationResult:
        return self._result

    def watch(self, job_id: str, on: bool) -> None:
        pass

    def cancel(self, job_id: str) -> None:
        if job_id in self._in_flight:
            self._in_flight.remove(job_id)

    def faces(self, photo: RgbImage) -> tuple[FaceFound, ...]:
        return ()

    def embed(
        self, photos: Sequence[RgbImage], fusion: Fusion = "mean", face: FaceChoice = LARGEST_FACE
    ) -> bytes:
        return b""

    def likeness(
        self, image: RgbImage, reference_faces: Sequence[FaceEmbedding | None]
    ) -> tuple[float | None, ...]:
        return ()

    def close(self) -> None:
        pass
