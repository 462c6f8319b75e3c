"""What comes in as a photo."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulid.errors import ImageRejected
from server.jobs.face_stage import from_base64, is_url


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
    with pytest.raises(ImageRejected, match="The photo is not readable"):
        from_base64(text)


@pytest.mark.parametrize("text", ["http://a", "HTTPS://A", "  https://a"])
def test_an_http_address_is_recognised(text):
    assert is_url(text)


@pytest.mark.parametrize("text", ["ftp://a", "data:image/png;base64,AAAA", "httpAAAA", ""])
def test_everything_else_is_no_address(text):
    assert not is_url(text)
