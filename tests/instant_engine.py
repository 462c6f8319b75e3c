"""InstantEngine: every request is done at once, with the same picture. For measuring the server alone.

Nothing is looked at but the job's id, so it takes no time worth measuring. Where a test looks at
pictures or at what an engine was asked, `fakes.ScriptedEngine` is the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fakes import paint
from pulid.engine import (
    LARGEST_FACE,
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


def the_picture() -> GenerationResult:
    """What every job ends with."""
    return paint(GenerationRequest(prompt="portrait", seed=1, width=SIDE, height=SIDE, num_steps=1))


class InstantEngine:
    """For requests of one step and one picture."""

    def __init__(self, device: str, *, progress: Callable[[str, LoadProgress], None] | None = None) -> None:
        self.info = EngineInfo(profile="instant", device=device)
        self._result = the_picture()
        self._in_flight: list[str] = []

    def can_admit(self, request: GenerationRequest) -> bool:
        return not self._in_flight

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        return PreparedRequest(request=request, conditioning=None, timings={})

    def admit(self, job_id: str, request: GenerationRequest | PreparedRequest) -> None:
        self._in_flight.append(job_id)

    def step(self) -> list[StepEvent]:
        done = [StepEvent(job_id=job, step=1, num_steps=1, result=self._result) for job in self._in_flight]
        self._in_flight.clear()
        return done

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
