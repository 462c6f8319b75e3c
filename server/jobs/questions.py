"""PhotoQuestions: which faces a photo has, and what identity; a worker answers while the caller waits.

A question is no job: it has no record and no place in the queue, nothing of it is on disk, and one
whose worker dies is answered with that. A few photos are looked at at a time, so that they neither fill
the memory nor hold up jobs. Lives on the event loop; knows no HTTP, and no picture format.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pulid.engine import FaceChoice, Fusion
from pulid.errors import Busy, ImageRejected, PulidError
from server.jobs.ends import about
from server.jobs.face_stage import FaceStage
from server.jobs.job import JobTimedOut, NotReady
from server.jobs.messages import (
    Answer,
    AskFaces,
    AskFailed,
    AskIdentity,
    FacesFound,
    IdentityMade,
    Question,
    ToWorker,
)

MAX_TOGETHER_MB = 40  # of one question; it goes through the pipe as a whole, from the event loop
MAX_OPEN = 8  # photos, in the questions of all callers


@dataclass(slots=True, eq=False)
class _Open:
    places: tuple[str, ...]  # the field of each of its photos
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)
    device: str | None = None  # None: its photos are still being fetched


class PhotoQuestions:
    def __init__(
        self,
        *,
        face_stage: FaceStage,
        device: Callable[[], str | None],
        send: Callable[[str, ToWorker], None],
    ) -> None:
        """`device` names one that may be asked now."""
        self._face_stage = face_stage
        self._device = device
        self._send = send
        self._open: dict[str, _Open] = {}
        self._end: PulidError | None = None

    async def faces(self, photo: str, *, timeout_s: float) -> FacesFound:
        """Fetch the photo and ask a worker which faces it has.

        Raises ImageRejected, Busy, NotReady, JobTimedOut, OutOfMemory or EngineFailed.
        """

        def question(question_id: str, photos: tuple[bytes, ...]) -> AskFaces:
            return AskFaces(question_id, *photos)

        found: FacesFound = await self._ask({"": photo}, question, timeout_s)
        return found

    async def identity(
        self, photos: Mapping[str, str], fusion: Fusion, face: FaceChoice, *, timeout_s: float
    ) -> bytes:
        """Fetch photos, each under the name of its field, and ask a worker for their person's identity file.

        Raises what `faces` raises, NoFaceFound and SeveralFaces.
        """

        def question(question_id: str, photos: tuple[bytes, ...]) -> AskIdentity:
            return AskIdentity(question_id=question_id, photos=photos, fusion=fusion, face=face)

        made: IdentityMade = await self._ask(photos, question, timeout_s)
        return made.identity

    async def _ask(
        self,
        photos: Mapping[str, str],
        question: Callable[[str, tuple[bytes, ...]], Question],
        timeout_s: float,
    ) -> Any:
        self._require_device()
        if sum(len(other.places) for other in self._open.values()) + len(photos) > MAX_OPEN:
            raise Busy(f"The server looks at {MAX_OPEN} photos at a time. Try again in a few seconds.")
        question_id, open_one = secrets.token_hex(16), _Open(tuple(photos))
        self._open[question_id] = open_one
        try:
            async with asyncio.timeout(timeout_s):
                # One after the other: whoever sends URLs has no more of them fetched at once by that.
                files = [await self._face_stage.read(photo, place) for place, photo in photos.items()]
                if sum(map(len, files)) > MAX_TOGETHER_MB * 1_000_000:
                    raise ImageRejected(
                        f"These photos have more than {MAX_TOGETHER_MB} MB together. Send smaller ones."
                    )
                open_one.device = self._require_device()
                self._send(open_one.device, question(question_id, tuple(files)))
                del files
                return await open_one.answer
        except TimeoutError:
            raise JobTimedOut(f"The photo was not looked at within {timeout_s:.4g} seconds.") from None
        finally:
            if open_one.device is None:  # else its place is free when the worker is done with it
                del self._open[question_id]

    def answered(self, event: Answer) -> None:
        question = self._open.pop(event.question_id, None)
        if question is None or question.answer.done():  # nobody waits any more
            return
        if isinstance(event, AskFailed):
            question.answer.set_exception(about(event.error, question.places))
        else:
            question.answer.set_result(event)

    def device_lost(self, device: str, error: PulidError) -> None:
        """Its worker has died, and with it what it was asked."""
        for question_id, question in list(self._open.items()):
            if question.device == device:
                self.answered(AskFailed(question_id, error))

    def end_all(self, error: PulidError) -> None:
        """Whoever waits hears it now; whose photo is being fetched, once that is there. For good."""
        self._end = error
        for question_id, question in list(self._open.items()):
            if question.device is not None:
                self.answered(AskFailed(question_id, error))

    def _require_device(self) -> str:
        if self._end is not None:
            raise self._end
        device = self._device()
        if device is None:
            raise NotReady("No engine is free to look at photos now. Try again in a few seconds.")
        return device
