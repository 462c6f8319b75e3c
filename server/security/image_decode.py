"""Bytes from outside -> a clean RGB picture or a mask, or ImageRejected. The only place that decodes uploads.

Pillow is given a short list of formats, judges the size from the header, and decodes the first
frame only. Orientation is applied; transparency becomes white, in a mask black; no metadata survives.

Does not know: where the bytes came from, faces, base64. Colour profiles are not applied.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pulid.engine import RgbImage
from pulid.errors import ImageRejected

# What phones, browsers and editors produce for the web. TIFF is left out: no browser shows it, and it
# brings a large decoder.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MIN_SIDE = 16  # pixels
MAX_MEGAPIXELS = 60.0
MAX_MASK_MEGAPIXELS = 16.0  # far above any canvas; it is decoded beside the answers to other calls
MAX_MASK_SIDE = 384  # pixels that are kept: four for each token of the largest canvas
MAX_SCANS = 100  # of one JPEG; ten are usual. Each costs the time of all its pixels, and 50 bytes may be one
MAX_SEGMENTS = 10_000  # of one JPEG, scans and all; some hundred with a large colour profile

_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", 0xD9, 0xDA
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of those that say their length, and the end

# The size is judged here; a warning beside the refusal would only put a path into the log.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF orientation -> what brings the picture upright. 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_image(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Judge a picture without decoding it, in milliseconds. Raises ImageRejected as `decode_image` does."""
    with _as_rejections(max_megapixels):
        _opened(data, max_megapixels)


def decode_image(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> RgbImage:
    """The first frame of an encoded picture as uint8 (height, width, 3).

    Raises ImageRejected, before decoding, when the format is not in FORMATS, a side is below
    MIN_SIDE, the picture is larger than `max_megapixels` (or than Pillow itself thinks safe), or a
    JPEG has more than MAX_SCANS scans or MAX_SEGMENTS segments.
    """
    with _as_rejections(max_megapixels):
        image = _opened(data, max_megapixels)
        image.load()
        upright = _turned_upright(image)
    return _to_rgb(upright)


def decode_mask(data: bytes, *, max_megapixels: float = MAX_MASK_MEGAPIXELS) -> npt.NDArray[np.uint8]:
    """The first frame of an encoded picture of any size as levels of gray, uint8 (height, width).

    Transparent is black. A side above MAX_MASK_SIDE is brought down to it by the mean of areas: a mask
    lies in memory as long as its job waits. Raises ImageRejected as `decode_image` does.
    """
    with _as_rejections(max_megapixels, "mask"):
        image = _opened(data, max_megapixels, min_side=1, what="mask")
        image.load()
        gray = _to_gray(_turned_upright(image))
    size = (min(gray.width, MAX_MASK_SIDE), min(gray.height, MAX_MASK_SIDE))
    return np.array(gray if size == gray.size else gray.resize(size, Image.Resampling.BOX))


def _opened(
    data: bytes, max_megapixels: float, *, min_side: int = MIN_SIDE, what: str = "photo"
) -> Image.Image:
    if data.startswith(_JPEG_START) and _is_laborious(data):
        raise _damaged(what)
    image = Image.open(BytesIO(data), formats=FORMATS)
    # Above its own limit Pillow only warns of a bomb; here that is a refusal.
    _check_size(image, min_side, min(max_megapixels * 1e6, Image.MAX_IMAGE_PIXELS or math.inf), what)
    return image


def _is_laborious(jpeg: bytes) -> bool:
    """A decoder goes over all pixels once for each scan: a small file could keep it busy for hours."""
    scans, position = 0, len(_JPEG_START)
    for _ in range(MAX_SEGMENTS):
        marker = _JPEG_MARKER.search(jpeg, position)
        if marker is None or marker[1][0] == _JPEG_END:
            return False
        scans += marker[1][0] == _JPEG_SCAN
        if scans > MAX_SCANS:
            return True
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return True


@contextmanager
def _as_rejections(max_megapixels: float, what: str = "photo") -> Iterator[None]:
    try:
        yield
    except ImageRejected:
        raise
    except UnidentifiedImageError as exc:
        raise ImageRejected(
            f"The {what} is in no format this server reads. Send {_listed(FORMATS)}."
        ) from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_large(max_megapixels * 1e6, what) from exc
    except Exception as exc:  # a broken file makes Pillow's decoders raise almost anything
        raise _damaged(what) from exc


def _check_size(image: Image.Image, min_side: int, max_pixels: float, what: str) -> None:
    width, height = image.size
    if min(width, height) < min_side:
        raise ImageRejected(
            f"The {what} is {width}x{height} pixels; each side needs at least {min_side}."
            f" Send a larger {what}."
        )
    if width * height > max_pixels:
        raise _too_large(max_pixels, what)


def _damaged(what: str) -> ImageRejected:
    return ImageRejected(f"The {what} is damaged or incomplete. Save it again and resend it.")


def _too_large(max_pixels: float, what: str) -> ImageRejected:
    return ImageRejected(f"The {what} has more than {max_pixels / 1e6:g} megapixels. Send a smaller one.")


def _turned_upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> RgbImage:
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = _over(image, "white")
    return np.array(image.convert("RGB"))


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = _over(image, "black")
    return image.convert("L")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit gray -> 8-bit gray by its high byte, as Pillow does for colour; its own convert() clips."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _over(image: Image.Image, background: str) -> Image.Image:
    colours = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=colours.getchannel("A"))
    return canvas


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
