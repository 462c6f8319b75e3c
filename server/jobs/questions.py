"""FaceQuestions: which faces a photo has, asked of a worker and answered while the caller waits.

A question is no job: it has no record and no place in the queue, nothing of it is on disk, and one
whose worker dies is answered with that. A few are open at a time, so that photos neither fill the
memory nor hold up jobs. Lives on the event loop; knows no HTTP, and no picture format.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from pulid.errors import Busy, PulidError
from server.jobs.face_stage import FaceStage
from server.jobs.job import JobTimedOut, NotReady
from server.jobs.messages import AskFaces, AskFailed, FacesFound, ToWorker

MAX_OPEN = 8  # questions of all callers; each may hold a photo


@dataclass(slots=True, eq=False)
class _Question:
    answer: asyncio.Future[FacesFound] = field(default_factory=asyncio.Future)
    device: str | None = None  # None: its photo is still being fetched


class FaceQuestions:
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
        self._open: dict[str, _Question] = {}
        self._end: PulidError | None = None

    async def ask(self, photo: str, *, timeout_s: float) -> FacesFound:
        """Fetch the photo and ask a worker.

        Raises ImageRejected, Busy, NotReady, JobTimedOut, OutOfMemory or EngineFailed.
        """
        self._require_device()
        if len(self._open) >= MAX_OPEN:
            raise Busy(f"{MAX_OPEN} photos are being looked at already. Try again in a few seconds.")
        question_id, question = secrets.token_hex(16), _Question()
        self._open[question_id] = question
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._face_stage.read(photo)
                question.device = self._require_device()
                self._send(question.device, AskFaces(question_id, data))
                del data
                return await question.answer
        except TimeoutError:
            raise JobTimedOut(f"The photo was not looked at within {timeout_s:.4g} seconds.") from None
        finally:
            if question.device is None:  # else its place is free when the worker is done with it
                del self._open[question_id]

    def answered(self, event: FacesFound | AskFailed) -> None:
        question = self._open.pop(event.question_id, None)
        if question is None or question.answer.done():  # nobody waits any more
            return
        if isinstance(event, FacesFound):
            question.answer.set_result(event)
        else:
            question.answer.set_exception(event.error)

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
