"""Photos that come as files: a known one is not decoded, and whatever is decoded is as it always was."""

import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest
import torch

from model.portraits import PHOTOS, generate, photo, picture, portrait
from pulid.engine import FaceChoice, PhotoFile
from pulid.errors import ImageRejected, NoFaceFound
from server.security.image_decode import decode_image

_NUMBERS = count()


def file_of(name):
    """The bytes of a photo file that no other test has: what follows a JPEG's end is not looked at."""
    return (PHOTOS / f"{name}.jpg").read_bytes() + f"test {next(_NUMBERS)}".encode()


def no_decoder(data):
    raise AssertionError("a known photo was decoded")


class Decoder:
    """Decodes, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, data):
        self.calls += 1
        return decode_image(data)


def tokens_of(prepared):
    [(_, identity)] = prepared.conditioning.people
    return identity.tokens


def test_a_known_file_is_not_decoded_and_paints_what_its_pixels_paint(engine):
    data, decoder = file_of("collins"), Decoder()
    first = engine.prepare(portrait(id_images=(PhotoFile(data, decoder),)))
    assert decoder.calls == 1
    assert first.cache_hits["identity"] is False
    assert set(first.timings) == {"decode_photo", "face", "text"}

    known = portrait(id_images=(PhotoFile(data, no_decoder),))
    second = engine.prepare(known)
    assert second.cache_hits["identity"] is True
    assert set(second.timings) == {"face", "text"}
    assert second.request.id_images == ()
    assert torch.equal(tokens_of(first), tokens_of(second))
    assert np.array_equal(generate(engine, known).images[0], picture(engine, "collins"))


def test_another_face_of_a_known_file_is_decoded_anew(engine):
    data, decoder = file_of("obama"), Decoder()
    image = PhotoFile(data, decoder)
    engine.prepare(portrait(id_images=(image,)))
    other = engine.prepare(portrait(id_images=(image,), face=FaceChoice(order="central")))
    assert other.cache_hits["identity"] is False
    assert decoder.calls == 2


def test_one_byte_more_is_another_file(engine):
    data, decoder = file_of("obama"), Decoder()
    for content in (data, data + b"x"):
        hits = engine.prepare(portrait(id_images=(PhotoFile(content, decoder),))).cache_hits
        assert hits["identity"] is False
    assert decoder.calls == 2


def test_copies_of_one_file_are_decoded_once_and_have_the_tokens_of_one(engine):
    decoder = Decoder()
    image = PhotoFile(file_of("obama"), decoder)
    many = engine.prepare(portrait(id_images=(image,) * 3))
    assert decoder.calls == 1
    assert torch.equal(tokens_of(many), tokens_of(engine.prepare(portrait("obama"))))


def test_files_and_pixels_may_stand_side_by_side(engine):
    files = (PhotoFile(file_of("collins"), decode_image), photo("obama"))
    pixels = (photo("collins"), photo("obama"))
    both = [tokens_of(engine.prepare(portrait(id_images=images))) for images in (files, pixels)]
    assert torch.equal(*both)


def test_a_file_that_cannot_be_decoded_is_refused_by_its_number_each_time(engine):
    cut = file_of("obama")[:5000]
    with pytest.raises(ImageRejected) as alone:
        decode_image(cut)
    images = tuple(PhotoFile(data, decode_image) for data in (file_of("collins"), cut, file_of("ardern")))
    for _ in range(2):
        with pytest.raises(ImageRejected) as caught:
            engine.prepare(portrait(id_images=images))
        assert caught.value.photo == 1
        assert str(caught.value) == str(alone.value)


def test_a_file_without_a_face_is_refused_by_its_number(engine):
    gray = PhotoFile(b"gray", lambda data: np.full((300, 300, 3), 126, np.uint8))
    with pytest.raises(NoFaceFound) as caught:
        engine.prepare(portrait(id_images=(photo("obama"), gray)))
    assert caught.value.photo == 1


def test_of_several_files_one_at_a_time_is_in_memory_as_pixels(engine):
    made = []

    def decode(data):
        assert [kept() for kept in made] == [None] * len(made)
        pixels = decode_image(data)
        made.append(weakref.ref(pixels))
        return pixels

    images = tuple(PhotoFile(file_of(name), decode) for name in ("collins", "obama", "ardern"))
    prepared = engine.prepare(portrait(id_images=images))
    assert [kept() for kept in made] == [None] * 3
    assert prepared.cache_hits["identity"] is False


def test_decoding_is_not_counted_as_reading_the_face(engine):
    def decode_slowly(data):
        time.sleep(0.3)
        return decode_image(data)

    engine.prepare(portrait())  # the prompt
    images = (PhotoFile(file_of("collins"), decode_slowly),)
    started = time.perf_counter()
    timings = engine.prepare(portrait(id_images=images)).timings
    took = time.perf_counter() - started
    assert timings["decode_photo"] >= 0.3
    assert timings["face"] > 0
    assert sum(timings.values()) <= took


def test_the_detectors_serve_others_while_a_photo_is_decoded(engine):
    with ThreadPoolExecutor(1) as thread:

        def decode(data):
            assert len(thread.submit(engine.faces, photo("ardern")).result(timeout=30)) == 1
            return decode_image(data)

        engine.prepare(portrait(id_images=(PhotoFile(file_of("collins"), decode),)))
