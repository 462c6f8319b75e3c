"""Pictures as files: PNG, JPEG or WebP bytes, with their type and size, and no metadata.

Knows nothing of jobs and routes. Encoding costs up to a second of CPU for a large picture:
call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import Image

from pulid.engine import RgbImage

ImageFormat = Literal["png", "jpg", "webp"]

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    format: ImageFormat = "webp"
    quality: int = 80  # 1..100; jpg and webp


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    data: bytes
    format: ImageFormat
    width: int  # pixels, of the picture itself
    height: int

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


def encode_image(image: RgbImage, options: OutputOptions) -> ImageFile:
    """One picture, uint8 (height, width, 3), as the bytes of a file."""
    buffer = BytesIO()
    picture = Image.fromarray(image)
    if options.format == "png":
        picture.save(buffer, format="PNG")
    elif options.format == "jpg":
        picture.save(buffer, format="JPEG", quality=options.quality, optimize=True)
    else:
        picture.save(buffer, format="WEBP", quality=options.quality)
    height, width, _ = image.shape
    return ImageFile(data=buffer.getvalue(), format=options.format, width=width, height=height)


def encode_images(images: Iterable[RgbImage], options: OutputOptions) -> tuple[ImageFile, ...]:
    return tuple(encode_image(image, options) for image in images)
