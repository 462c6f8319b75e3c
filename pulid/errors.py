"""Everything that can go wrong in `pulid`, as one tree. Torch-free.

PulidError
├── BadRequest              the caller can fix it; costs nothing
│   ├── NoFaceFound
│   ├── SeveralFaces
│   ├── ImageRejected
│   └── IdentityRejected    an identity file is broken, or of another checkpoint
├── Busy                    try again later
├── OutOfMemory             this request is too large for the device right now
├── EngineFailed            our fault
│   └── DeviceLost          no later request can succeed in this process
└── SetupError              the operator can fix it; raised before the first request
    ├── UnknownProfile
    ├── DeviceUnavailable
    └── WeightsMissing      a file is absent, or is not the checkpoint it should be

`code` is a stable machine-readable name; the text says what happened and what to do next.
Every error survives pickling with its type, text and attributes: workers send them to the server.
"""

import copyreg
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class PulidError(Exception):
    code = "internal_error"

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt without __init__: some errors take other arguments than their text, or none.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class BadRequest(PulidError):
    code = "bad_request"
    photo: int | None = None  # by its number in the request, where it is about one photo


@contextmanager
def about_photo(number: int) -> Iterator[None]:
    """Whatever is wrong with a request in here is wrong with this photo of it."""
    try:
        yield
    except BadRequest as exc:
        exc.photo = number
        raise


class NoFaceFound(BadRequest):
    code = "no_face"

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message or "No face found. Use a photo with one clear, front-facing face of at least 64 pixels."
        )


class SeveralFaces(BadRequest):
    code = "several_faces"


class ImageRejected(BadRequest):
    code = "image_rejected"


class IdentityRejected(BadRequest):
    code = "identity_rejected"


class Busy(PulidError):
    code = "busy"


class OutOfMemory(PulidError):
    code = "out_of_memory"


class EngineFailed(PulidError):
    code = "engine_failed"


class DeviceLost(EngineFailed):
    code = "device_lost"


class SetupError(PulidError):
    code = "setup_error"


class UnknownProfile(SetupError):
    code = "unknown_profile"


class DeviceUnavailable(SetupError):
    code = "device_unavailable"


class WeightsMissing(SetupError):
    code = "weights_missing"
