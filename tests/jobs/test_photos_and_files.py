"""What comes in as a photo, what goes out as a file."""

import base64
import contextlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fakes import flat_picture
from pulid.errors import ImageRejected
from server.jobs.face_stage import from_base64, is_url
from server.jobs.files import OutputOptions, encode_image, encode_images


@given(st.binary(min_size=1, max_size=200))
def test_base64_gives_back_the_bytes_in_every_form(data):
    text = base64.b64encode(data).decode()
    for form in (text, f"data:image/png;base64,{text}", text.rstrip("="), f" {text[:4]}\n{text[4:]} "):
        assert from_base64(form) == data


@given(st.text(max_size=100))
def test_any_text_is_bytes_or_refused(text):
    with contextlib.suppress(ImageRejected):
        assert from_base64(text)


@pytest.mark.parametrize(
    "text", ["", "=", "A", "AA=A", "a,b", "data:image/png;base64,", "data:,abcd", "ab%20"]
)
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(ImageRejected, match="main_face_image is not readable"):
        from_base64(text)


@pytest.mark.parametrize("text", ["http://a", "HTTPS://A", "  https://a"])
def test_an_http_address_is_recognised(text):
    assert is_url(text)


@pytest.mark.parametrize("text", ["ftp://a", "data:image/png;base64,AAAA", "httpAAAA", ""])
def test_everything_else_is_no_address(text):
    assert not is_url(text)


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_a_picture_becomes_a_file_of_its_format(name, kind):
    file = encode_image(flat_picture(32, 48, (10, 200, 30)), OutputOptions(format=name, quality=90))
    image = Image.open(BytesIO(file.data))
    assert (image.format, image.size, image.mode) == (kind, (48, 32), "RGB")
    assert (file.width, file.height) == (48, 32)
    assert np.allclose(np.asarray(image), (10, 200, 30), atol=6)


def test_png_keeps_every_pixel_and_the_order_of_pictures():
    pictures = [np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8) for seed in range(3)]
    files = encode_images(pictures, OutputOptions(format="png"))
    for picture, file in zip(pictures, files, strict=True):
        assert np.array_equal(np.asarray(Image.open(BytesIO(file.data))), picture)
