"""ScriptedEngine: obeys `pulid.engine.Engine` without a model, and fails, stalls or dies on command.

For tests of jobs and HTTP only; everything about pictures is tested with the tiny profile. What an
engine does with a request stands in the request's prompt:

    "a knight, crash at step 2"            SIGKILL in the middle of its second step
    "crash once while preparing"           the same, but only the first time (needs a Script)
    "stall at step 3"                      never comes back
    "oom", "raise", "lose the device"      at step 1; or at admission, at step N, while preparing,
                                           while decoding
    "slow 0.05 s per step", "slow 0.5 s while preparing"
    "held while decoding"                  until the test lets it (needs a Script)
    "no face", "several faces", "a foreign identity"
    "alike 0.7 none"                       who asks hears that of two people; unsaid: 0.5, of one
    "skips 3 steps"                        says that it has skipped so many
    "raise over the likeness"              or another order of the third line

What it finds in a photo stands in the photo's first pixel: see `photo_of`.

Engines usually live in worker processes. A `Script` is the test's end of them: it is the picklable
`create_engine` of a worker pool, holds their steps back, and reads what they did from a journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pulid.engine import (
    LARGEST_FACE,
    Box,
    DenoisedRequest,
    EngineInfo,
    FaceChoice,
    FaceEmbedding,
    FaceFound,
    Fusion,
    GenerationRequest,
    GenerationResult,
    LoadProgress,
    Mask,
    Person,
    PhotoFile,
    PreparedRequest,
    RgbImage,
    StepEvent,
)
from pulid.errors import (
    DeviceLost,
    IdentityRejected,
    NoFaceFound,
    OutOfMemory,
    PulidError,
    SeveralFaces,
    about_photo,
)

PATIENCE_S = 20.0  # for what must happen soon; only a failing test waits this long
_POLL_S = 0.002

SECRET = "a private prompt"  # in the text of every unexpected exception: it may appear nowhere

_ORDER = re.compile(
    r"\b(?P<what>crash|stall|oom|raise|lose the device)(?P<once> once)?"
    r"(?: (?P<when>at admission|at step (?P<step>\d+)|while preparing|while decoding|over the likeness))?\b"
)
_ALIKE = re.compile(r"\balike(?P<people>(?: [\d.]+| none)+)")
_SKIPS = re.compile(r"\bskips (\d+) steps\b")
_SLOW = re.compile(r"\bslow (?P<s>[\d.]+) s (?P<when>per step|while preparing)\b")


class ScriptedEngine:
    def __init__(
        self, script: Script | None = None, *, device: str = "none", places: int = 1, notice: str = ""
    ) -> None:
        self.info = EngineInfo(
            profile="scripted", device=device, notice=notice, details={"pid": str(os.getpid())}
        )
        # For tests that hold the engine itself: what to raise for a prompt, and what has happened.
        self.fail_admit: dict[str, BaseException] = {}
        self.fail_step: dict[str, BaseException] = {}
        self.report_error: dict[str, PulidError] = {}  # as the error of its last event
        self.admitted: dict[str, GenerationRequest] = {}  # everything ever admitted, in order
        self.steps: dict[str, int] = {}  # steps done, by job
        self.closed = False
        self.threads: set[int] = set()  # that have driven this engine
        self._script = script
        self._places = places
        self._in_flight: dict[str, PreparedRequest] = {}
        self._watched: set[str] = set()

    @property
    def last_request(self) -> GenerationRequest:
        return list(self.admitted.values())[-1]

    def can_admit(self, request: GenerationRequest) -> bool:
        return len(self._in_flight) < self._places

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        request, timings = with_pixels(request)
        self._note("preparing", prompt=request.prompt)
        self._obey(request.prompt, "while preparing")
        if "no face" in request.prompt:
            raise NoFaceFound
        if "several faces" in request.prompt:
            raise SeveralFaces("The photo shows 2 faces.")
        if "a foreign identity" in request.prompt:
            raise IdentityRejected("The identity was made by other networks.")
        return PreparedRequest(
            request=replace(request, id_images=()),
            conditioning=request.id_images,
            timings={**timings, "face": 0.0, "text": 0.0},
            cache_hits={"identity": False, "prompt": False},
        )

    def admit(self, job_id: str, request: GenerationRequest | PreparedRequest) -> None:
        self.threads.add(threading.get_ident())
        prepared = self.prepare(request) if isinstance(request, GenerationRequest) else request
        prompt = prepared.request.prompt
        if prompt in self.fail_admit:
            raise self.fail_admit[prompt]
        self._obey(prompt, "at admission")
        self._in_flight[job_id] = prepared
        self.admitted[job_id] = replace(prepared.request, id_images=prepared.conditioning)
        self.steps[job_id] = 0
        self._note("admitted", job=job_id, request=_as_json(self.admitted[job_id]))

    def step(self) -> list[StepEvent]:
        if self._script is not None:
            self._script.take_step()
        for prepared in self._in_flight.values():
            if (fault := self.fail_step.get(prepared.request.prompt)) is not None:
                raise fault
        return [self._advance(job_id) for job_id in list(self._in_flight)]

    def decode(self, denoised: DenoisedRequest) -> GenerationResult:
        self._note("decoding", prompt=denoised.request.prompt)
        self._obey(denoised.request.prompt, "while decoding")
        if "held while decoding" in denoised.request.prompt:
            self._script.take_decoding()
        skipped = _SKIPS.search(denoised.request.prompt)
        result = paint(replace(denoised.request, id_images=denoised.latents))
        return replace(result, skipped_steps=int(skipped[1]) if skipped else 0)

    def watch(self, job_id: str, on: bool) -> None:
        self.threads.add(threading.get_ident())
        (self._watched.add if on else self._watched.discard)(job_id)
        self._note("watch", job=job_id, on=on)

    def cancel(self, job_id: str) -> None:
        self._in_flight.pop(job_id, None)
        self._note("cancelled", job=job_id)

    def faces(self, photo: RgbImage) -> tuple[FaceFound, ...]:
        count, order, other = (int(value) for value in photo[0, 0])
        self._note("asked", count=count)
        if other:  # not by `photo_of`
            return ()
        if order:
            _ORDERS[list(_ORDERS)[order - 1]]()
        return tuple(
            FaceFound(box=Box(left=i / 8, top=0.25, right=(i + 1) / 8, bottom=0.5), score=0.9 - i / 16)
            for i in range(count)
        )

    def likeness(
        self, image: RgbImage, reference_faces: Sequence[FaceEmbedding | None]
    ) -> tuple[float | None, ...]:
        """What the references say, and a little more for a picture that begins with much red."""
        self._note("likeness", people=len(reference_faces))
        for reference in reference_faces:
            if order := int(reference[1]):
                _ORDERS[list(_ORDERS)[order - 1]]()
        return tuple(
            None if np.isnan(reference[0]) else float(reference[0]) + own_part(image[0, 0])
            for reference in reference_faces
        )

    def embed(
        self, photos: Sequence[RgbImage], fusion: Fusion = "mean", face: FaceChoice = LARGEST_FACE
    ) -> bytes:
        for photo in photos:
            if not self.faces(photo):
                raise NoFaceFound
        content = hashlib.sha256(b"".join(photo.tobytes() for photo in photos)).hexdigest()
        return json.dumps([len(photos), fusion, asdict(face), content]).encode()

    def close(self) -> None:
        self.closed = True
        self._note("closed")

    def _advance(self, job_id: str) -> StepEvent:
        prepared = self._in_flight[job_id]
        request = prepared.request
        done = self.steps[job_id] + 1
        error = self.report_error.get(request.prompt)
        try:
            self._obey(request.prompt, f"at step {done}")
        except OutOfMemory as exc:
            error = exc
        self.steps[job_id] = done
        self._note("step", job=job_id, step=done)
        denoised = None
        if error is None and done == request.num_steps:
            denoised = denoised_of(request, latents=prepared.conditioning)
        preview = preview_of(done) if job_id in self._watched and denoised is None else None
        if error is not None or denoised is not None:
            del self._in_flight[job_id]
            self._watched.discard(job_id)
        return StepEvent(
            job_id=job_id,
            step=done,
            num_steps=request.num_steps,
            preview=preview,
            denoised=denoised,
            error=error,
        )

    def _obey(self, prompt: str, when: str) -> None:
        """Do what the prompt says for this moment."""
        for order in _SLOW.finditer(prompt):
            if order["when"] == when or (order["when"] == "per step" and when.startswith("at step")):
                time.sleep(float(order["s"]))
        for order in _ORDER.finditer(prompt):
            if (order["when"] or "at step 1") == when and (not order["once"] or self._is_first(order[0])):
                _ORDERS[order["what"]]()

    def _is_first(self, order: str) -> bool:
        assert self._script is not None, "'once' needs a Script to remember it"
        return self._script.is_first(order)

    def _note(self, what: str, **facts: object) -> None:
        if self._script is not None:
            self._script.write(what, device=self.info.device, pid=os.getpid(), **facts)


def with_pixels(request: GenerationRequest) -> tuple[GenerationRequest, dict[str, float]]:
    """The request with all its photo files decoded, and how long that took, as an engine tells it."""
    started = time.perf_counter()
    photos = list(request.id_images)
    for number, photo in enumerate(photos):
        if isinstance(photo, PhotoFile):
            with about_photo(number):
                photos[number] = photo.decode(photo.data)
    timings = {"decode_photo": time.perf_counter() - started} if photos else {}
    return replace(request, id_images=tuple(photos)), timings


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal is on its way


def _stall() -> None:
    threading.Event().wait()


def _run_out_of_memory() -> None:
    raise OutOfMemory("The device is out of memory.")


def _raise() -> None:
    raise RuntimeError(SECRET)


def _lose_the_device() -> None:
    raise DeviceLost("The device reported a fault.")


_ORDERS: dict[str, Callable[[], None]] = {
    "crash": _crash,
    "stall": _stall,
    "oom": _run_out_of_memory,
    "raise": _raise,
    "lose the device": _lose_the_device,
}


@dataclass(frozen=True)
class Script:
    """The `create_engine` of a test: makes scripted engines, steers them and knows what they did.

    `folder` is shared with the worker processes; an empty one for each test. `gated`: each step, of
    whichever engine, happens only when the test lets it (`run_steps`). `slow_to_load`: engines are
    loaded when the test lets them (`let_load`).
    """

    folder: Path
    gated: bool = False
    places: int = 1  # jobs that an engine takes at once
    notice: str = ""
    slow_to_load: bool = False
    load_error: Exception | None = None
    fails_on: tuple[str, ...] = ()  # the devices that `load_error` is about; empty: all
    tears_a_message: bool = False  # the first worker dies in the middle of its first message
    loaded_percent: int | None = None  # told of the loading, once

    def __call__(
        self, device: str, *, progress: Callable[[str, LoadProgress], None] | None = None
    ) -> ScriptedEngine:
        self.write("loading", device=device, pid=os.getpid())
        if progress is not None and self.loaded_percent is not None:
            told = LoadProgress(part="FLUX transformer", done_bytes=self.loaded_percent, total_bytes=100)
            progress(device, told)
        if self.slow_to_load:
            _wait_until((self.folder / "load").exists)
        if self.tears_a_message and self.is_first("tear"):
            _write_half_a_message()
            _crash()
        if self.load_error is not None and device in (self.fails_on or (device,)):
            raise self.load_error
        return ScriptedEngine(self, device=device, places=self.places, notice=self.notice)

    # what a test calls

    def let_load(self) -> None:
        (self.folder / "load").touch()

    def let_decode(self) -> None:
        (self.folder / "decode").touch()

    def run_steps(self, count: int) -> None:
        """Let gated engines do that many steps, all together."""
        for _ in range(count):
            (self.folder / f"permit-{time.monotonic_ns()}-{os.urandom(4).hex()}").touch()

    def open_gate(self) -> None:
        (self.folder / "open").touch()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Wait until something the engines have done makes `condition` true."""
        return _wait_until(condition, timeout_s)

    def lines(self, what: str) -> list[dict[str, Any]]:
        """Everything of one kind that engines have done, in order."""
        try:
            text = (self.folder / "journal").read_text()
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line["what"] == what]

    @property
    def admitted(self) -> dict[str, GenerationRequest]:
        """Everything ever admitted, by job; a black picture of its size stands for the photo."""
        return {line["job"]: _from_json(line["request"]) for line in self.lines("admitted")}

    @property
    def last_request(self) -> GenerationRequest:
        return list(self.admitted.values())[-1]

    @property
    def prepared(self) -> list[str]:
        """The prompts that were begun to be read, in order."""
        return [line["prompt"] for line in self.lines("preparing")]

    @property
    def decoded(self) -> list[str]:
        """The prompts whose pictures were begun to be decoded, in order."""
        return [line["prompt"] for line in self.lines("decoding")]

    @property
    def steps(self) -> dict[str, int]:
        """Steps done in the last attempt, by job."""
        return {line["job"]: line["step"] for line in self.lines("step")}

    @property
    def cancelled(self) -> list[str]:
        return [line["job"] for line in self.lines("cancelled")]

    @property
    def closed(self) -> bool:
        return bool(self.lines("closed"))

    @property
    def pids(self) -> list[int]:
        """Of the worker processes, in the order of their starts."""
        return [line["pid"] for line in self.lines("loading")]

    # what an engine calls

    def write(self, what: str, **facts: object) -> None:
        line = json.dumps({"what": what, **facts}) + "\n"
        # One write of a file opened for appending is never torn apart by another process.
        with (self.folder / "journal").open("ab", buffering=0) as journal:
            journal.write(line.encode())

    def take_step(self) -> None:
        """Wait for the permission to do a step."""
        if self.gated:
            _wait_until(lambda: (self.folder / "open").exists() or self._take_permit(), timeout_s=None)

    def take_decoding(self) -> None:
        """Wait for the permission to decode."""
        _wait_until((self.folder / "decode").exists, timeout_s=None)

    def is_first(self, order: str) -> bool:
        try:
            (self.folder / f"done-{hashlib.sha256(order.encode()).hexdigest()[:16]}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _take_permit(self) -> bool:
        for permit in self.folder.glob("permit-*"):
            try:
                permit.unlink()
            except FileNotFoundError:  # another engine was faster
                continue
            return True
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float | None = PATIENCE_S) -> bool:
    deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _write_half_a_message() -> None:
    """Into every socket this process has; a worker has one, its pipe. Linux only."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_socket():
            os.write(int(link.name), (1000).to_bytes(4, "big") + b"half")


def _as_json(request: GenerationRequest) -> dict[str, Any]:
    photos = [photo.shape for photo in request.id_images]
    told = asdict(replace(request, id_images=())) | {"id_images": photos}
    for person in told["people"]:
        if person["identity"] is not None:
            person["identity"] = person["identity"].hex()
        if person["region"] is not None:
            person["region"] = {name: np.asarray(value).tolist() for name, value in person["region"].items()}
    return told


def _from_json(fields: dict[str, Any]) -> GenerationRequest:
    photos = tuple(np.zeros(shape, np.uint8) for shape in fields["id_images"])
    people = tuple(_person_from_json(person) for person in fields["people"])
    told = {"id_images": photos, "people": people, "face": FaceChoice(**fields["face"])}
    return GenerationRequest(**fields | told)


def _person_from_json(fields: dict[str, Any]) -> Person:
    region, identity = fields["region"], fields["identity"]
    told: dict[str, Any] = {"photos": tuple(fields["photos"]), "face": FaceChoice(**fields["face"])}
    if identity is not None:
        told["identity"] = bytes.fromhex(identity)
    if region is not None:
        is_mask = "weights" in region
        told["region"] = Mask(np.array(region["weights"], np.uint8)) if is_mask else Box(**region)
    return Person(**fields | told)


# pictures


def denoised_of(request: GenerationRequest, latents: object = ()) -> DenoisedRequest:
    """What stands for the latents is what `paint` needs beside the request: the photos."""
    painted = paint(replace(request, id_images=()))
    return DenoisedRequest(
        request=request,
        latents=latents,
        seeds=painted.seeds,
        timings=painted.timings,
        reference_faces=painted.reference_faces,
    )


def paint(request: GenerationRequest) -> GenerationResult:
    """Pictures of the size the real engine would give; flat, in a colour that tells the seed.

    Only the last eight rows differ: they tell everything else about the request, the photo included,
    so that two requests never have the same picture.
    """
    seeds = tuple((request.seed + i) % 2**63 for i in range(request.num_outputs))
    height, width = (-(-side // 16) * 16 for side in (request.height, request.width))
    images = []
    for seed in seeds:
        image = flat_picture(height, width, colour_of(seed))
        image[-8:] = _fingerprint(replace(request, seed=seed), width)
        images.append(image)
    timings = {"face": 0.0, "text": 0.0, "denoise": 0.0, "decode": 0.0}
    return GenerationResult(
        images=tuple(images),
        seeds=seeds,
        timings=timings,
        device_memory=2**30,
        reference_faces=_references(request) if request.measures_similarity else (),
    )


def _references(request: GenerationRequest) -> tuple[FaceEmbedding, ...]:
    """One for each person of the prompt: how alike, and as what number of an order it ends."""
    alike = _ALIKE.search(request.prompt)
    order = next(
        (o["what"] for o in _ORDER.finditer(request.prompt) if o["when"] == "over the likeness"), None
    )
    references = []
    for person in alike["people"].split() if alike else ["0.5"]:
        reference = np.zeros(512, np.float32)
        reference[0] = np.nan if person == "none" else float(person)
        reference[1] = 0 if order is None else 1 + list(_ORDERS).index(order)
        references.append(reference)
    return tuple(references)


def own_part(colour: Iterable[int]) -> float:
    """What a picture of this colour adds to how alike its people are."""
    red, _, _ = colour
    return int(red) / 10_000


def preview_of(step: int) -> bytes:
    """A small JPEG that tells the number of steps."""
    file = BytesIO()
    Image.fromarray(flat_picture(8, 8, (10 * step,) * 3)).save(file, "JPEG")
    return file.getvalue()


def _fingerprint(request: GenerationRequest, width: int) -> np.ndarray:
    """Eight rows (8, width, 3) of blocks of 8x8 pixels, each block of one colour."""
    photos = b"".join(photo.tobytes() for photo in request.id_images)
    told = json.dumps(_as_json(request), sort_keys=True).encode() + photos
    blocks = -(-width // 8)
    colours = np.frombuffer(hashlib.shake_128(told).digest(3 * blocks), np.uint8).reshape(1, blocks, 3)
    return colours.repeat(8, axis=1)[:, :width].repeat(8, axis=0)


def photo_of(faces: int, order: str | None = None) -> np.ndarray:
    """A picture (48, 64, 3) in which as many faces are found; `order`: what happens to who looks for them."""
    number = 0 if order is None else 1 + list(_ORDERS).index(order)
    return flat_picture(48, 64, (faces, number, 0))


def colour_of(seed: int) -> tuple[int, int, int]:
    return (seed * 37 % 256, seed * 101 % 256, seed * 197 % 256)


def flat_picture(height: int, width: int, colour: Iterable[int]) -> np.ndarray:
    return np.full((height, width, 3), tuple(colour), dtype=np.uint8)
