"""What the server and a worker process tell each other. Plain data that travels over a pipe.

Server to worker: Prepare, Admit, Watch, Cancel, AskFaces, AskIdentity, Stop. Worker to server: the
WorkerEvents. `WorkerDied` and `OutOfService` are said by the pool about a worker that can no longer speak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pulid.engine import EngineInfo, FaceChoice, FaceFound, Fusion, GenerationRequest
from pulid.errors import PulidError
from server.jobs.files import OutputOptions
from server.jobs.job import JobFile, Similarities


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Read the photos and the prompt of a job, so that it can start at once when it is admitted."""

    job_id: str
    request: GenerationRequest  # without the photos
    photos: tuple[Path, ...]  # the picture files as they were sent; deleted by the server
    output: OutputOptions
    media_id: str  # where its pictures go
    is_admitted: bool = False  # nothing is before it: it starts when it is prepared, as if by Admit
    alone: bool = False  # a worker died over it: whoever has several senders lets nothing run beside it


@dataclass(frozen=True, slots=True)
class Admit:
    """Start a job that was prepared (or is still being prepared: it starts when that is done)."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Watch:
    """Whether somebody looks at previews of a job that was sent to be prepared; at first nobody does."""

    job_id: str
    on: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class AskFaces:
    """Which faces does this photo have? Answered in the order in which Prepares and questions were sent."""

    question_id: str
    photo: bytes  # the picture file as it was sent; by pipe, so that it is never on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class AskIdentity:
    """The identity file of the person in these photos. Travels and is answered as AskFaces is."""

    question_id: str
    photos: tuple[bytes, ...]
    fusion: Fusion
    face: FaceChoice


Question = AskFaces | AskIdentity


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the current step."""


ToWorker = Prepare | Admit | Watch | Cancel | Question | Stop


@dataclass(frozen=True, slots=True)
class Loading:
    """How far the engine is that is being loaded."""

    part: str  # the network that is being put on the device
    percent: int  # of all networks together


@dataclass(frozen=True, slots=True)
class EngineReady:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class EngineFailedToLoad:
    error: PulidError


@dataclass(frozen=True, slots=True)
class Preparing:
    job_id: str


@dataclass(frozen=True, slots=True)
class Prepared:
    job_id: str
    timings: Mapping[str, float]  # seconds: decode_photo, face, text
    cache_hits: Mapping[str, bool] = field(default_factory=dict)  # identity, prompt


@dataclass(frozen=True, slots=True)
class Stepping:
    """The first step of a job begins: from here on the attempt counts as a try."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Stepped:
    job_id: str
    step: int  # denoising steps done
    num_steps: int
    jobs: int = 1  # that shared the step
    preview: bytes | None = None  # a small JPEG; only of a job that is watched


@dataclass(frozen=True, slots=True)
class Finished:
    """The pictures are on disk under their final names."""

    job_id: str
    media_id: str
    files: tuple[JobFile, ...]
    timings: Mapping[str, float]  # seconds: face, text, denoise, decode, encode
    device_memory: int | None = None  # bytes held on the device
    similarities: Similarities = ()
    skipped_steps: int = 0  # by the profile; those of both branches of true CFG


@dataclass(frozen=True, slots=True)
class JobFailed:
    job_id: str
    error: PulidError  # without traceback, cause or context


@dataclass(frozen=True, slots=True, kw_only=True)
class FacesFound:
    """The answer to AskFaces."""

    question_id: str
    faces: tuple[FaceFound, ...]  # in the order "largest"
    width: int  # of the upright photo, pixels
    height: int


@dataclass(frozen=True, slots=True)
class IdentityMade:
    """The answer to AskIdentity."""

    question_id: str
    identity: bytes  # an identity file


@dataclass(frozen=True, slots=True)
class AskFailed:
    """The other answer to either."""

    question_id: str
    error: PulidError  # without traceback, cause or context


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """The device is in no state to go on; the worker ends itself after this."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    exit_code: int | None
    running: tuple[str, ...]  # admitted jobs that had not finished
    preparing: str | None  # the job whose photo or prompt was being read


@dataclass(frozen=True, slots=True)
class OutOfService:
    """No worker will be started on this device again: its engine cannot be loaded, or it keeps dying."""

    error: PulidError


Answer = FacesFound | IdentityMade | AskFailed

WorkerEvent = (
    Loading
    | EngineReady
    | EngineFailedToLoad
    | Preparing
    | Prepared
    | Stepping
    | Stepped
    | Finished
    | JobFailed
    | Answer
    | DeviceFault
    | WorkerDied
    | OutOfService
)
