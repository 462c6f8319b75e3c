"""Uploads become clean RGB pictures or ImageRejected; nothing else comes out, whatever goes in."""

import contextlib
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pulid.errors import ImageRejected
from server.security.image_decode import (
    FORMATS,
    MAX_MASK_SIDE,
    MAX_SCANS,
    MIN_SIDE,
    check_image,
    decode_image,
    decode_mask,
)

WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 160, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS = ("PNG", "GIF", "BMP")


def encoded(image, file_format="PNG", **options):
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def quarters():
    """Red, green, blue and white quarters: every rotation and mirroring looks different."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:] = RED, GREEN
    pixels[16:, :24], pixels[16:, 24:] = BLUE, WHITE
    return pixels


def picture():
    return Image.fromarray(quarters())


def assert_same_picture(got, want, levels):
    assert got.dtype == np.uint8
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want.astype(int)).mean() <= levels


def jpeg_of_scans(count):
    """Progressive, its last scan again and again: valid to every decoder, and work for each of them."""
    whole = encoded(picture().convert("L"), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xc4")  # its Huffman table, then the scan
    before, scan = whole[:start], whole[start:-2]
    return before + scan * (count - before.count(b"\xff\xda")) + b"\xff\xd9"


@pytest.mark.parametrize("look", [check_image, decode_image, decode_mask])
def test_a_jpeg_that_would_keep_a_decoder_busy_is_refused_before_it_does(look):
    look(jpeg_of_scans(MAX_SCANS))
    with pytest.raises(ImageRejected, match="is damaged or incomplete"):
        look(jpeg_of_scans(MAX_SCANS + 1))


def test_a_jpeg_of_countless_empty_segments_is_refused_at_once():
    ordinary = encoded(picture(), "JPEG")
    with pytest.raises(ImageRejected, match="is damaged or incomplete"):
        check_image(ordinary[:2] + b"\xff\xfe\0\2" * 10_000 + ordinary[2:])


def test_what_looks_like_scans_inside_a_jpeg_or_after_it_is_none():
    ordinary = encoded(picture(), "JPEG", progressive=True)
    in_a_comment = b"\xff\xfe" + (60_002).to_bytes(2, "big") + b"\xff\xda" * 30_000
    decode_image(ordinary[:2] + in_a_comment + ordinary[2:] + b"\xff\xda\0\2" * 1000)


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_listed_format_is_decoded(file_format):
    got = decode_image(encoded(picture(), file_format))
    assert_same_picture(got, quarters(), levels=0 if file_format in LOSSLESS else 6)


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "TGA", "ICO", "PCX", "EPS", "PDF", "JPEG2000"])
def test_a_format_that_is_not_listed_is_refused_even_if_pillow_could_read_it(file_format):
    with pytest.raises(ImageRejected, match="JPEG, PNG, WEBP, GIF, BMP or AVIF"):
        decode_image(encoded(picture(), file_format))


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 500])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(ImageRejected, match="no format this server reads"):
        decode_image(data)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused(file_format, part):
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    with pytest.raises(ImageRejected):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, 1)),
        (7, lambda p: p[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p, -1)),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_stored_turned_comes_out_upright(orientation, turn, file_format):
    stored = Image.fromarray(np.ascontiguousarray(turn(quarters())))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    got = decode_image(encoded(stored, file_format, exif=exif.tobytes()))
    assert_same_picture(got, quarters(), levels=6)


def test_an_orientation_that_does_not_exist_is_ignored():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    got = decode_image(encoded(picture(), exif=exif.tobytes()))
    assert_same_picture(got, quarters(), levels=0)


def test_what_is_transparent_becomes_white_and_half_transparent_half_white():
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16] = (255, 0, 0, 0)
    pixels[16:] = (0, 0, 0, 128)
    got = decode_image(encoded(Image.fromarray(pixels)))
    assert (got[:16] == 255).all()
    assert (got[16:] == 127).all()


def test_gray_with_transparency_becomes_white_where_it_is_transparent():
    pixels = np.zeros((32, 32, 2), np.uint8)
    pixels[16:, :, 1] = 255
    got = decode_image(encoded(Image.fromarray(pixels, "LA")))
    assert (got[:16] == 255).all()
    assert (got[16:] == 0).all()


def test_the_transparent_colour_of_a_palette_becomes_white():
    indices = Image.fromarray(np.repeat([[0], [1]], 16, axis=0).repeat(32, axis=1).astype(np.uint8), "P")
    indices.putpalette([*RED, *BLUE])
    got = decode_image(encoded(indices, "GIF", transparency=0))
    assert (got[:16] == WHITE).all()
    assert (got[16:] == BLUE).all()


def test_a_palette_picture_keeps_its_colours():
    got = decode_image(encoded(picture().quantize(8)))
    assert_same_picture(got, quarters(), levels=2)


@pytest.mark.parametrize(("mode", "level"), [("1", 255), ("L", 200)])
def test_gray_and_black_and_white_pictures_become_rgb(mode, level):
    got = decode_image(encoded(Image.new(mode, (20, 20), level)))
    assert got.shape == (20, 20, 3)
    assert (got == level).all()


def test_16_bit_gray_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    got = decode_image(encoded(Image.fromarray(np.tile(ramp, (16, 1)))))
    assert got[0, :, 0].tolist() == (ramp >> 8).tolist()
    assert (got == got[..., :1]).all()


def test_16_bit_colour_is_scaled_and_not_clipped():
    row = b"\x00" + struct.pack(">HHH", 0x8001, 0x0102, 0xFFFF) * 16
    got = decode_image(png_file(16, 16, row * 16, bit_depth=16, colour_type=2))
    assert (got == (0x80, 0x01, 0xFF)).all()


def test_a_cmyk_jpeg_keeps_its_colours():
    # Pillow writes Adobe's marker and, as Photoshop does, inverted inks.
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_same_picture(decode_image(data), quarters(), levels=8)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_only_the_first_frame_of_an_animation_is_used(file_format):
    first, second = Image.new("RGB", (32, 32), RED), Image.new("RGB", (32, 32), BLUE)
    data = encoded(first, file_format, save_all=True, append_images=[second])
    assert_same_picture(decode_image(data), np.full((32, 32, 3), RED), levels=4)


def test_a_jpeg_with_an_embedded_second_picture_is_read_as_a_jpeg():
    data = encoded(Image.new("RGB", (32, 32), RED), "MPO", save_all=True, append_images=[picture()])
    assert_same_picture(decode_image(data), np.full((32, 32, 3), RED), levels=4)


@pytest.mark.parametrize("size", [(MIN_SIDE - 1, 200), (200, MIN_SIDE - 1), (1, 1)])
def test_a_tiny_or_thin_picture_is_refused(size):
    with pytest.raises(ImageRejected, match="at least 16"):
        decode_image(encoded(Image.new("RGB", size)))


def test_the_smallest_side_allowed_is_decoded():
    assert decode_image(encoded(Image.new("RGB", (MIN_SIDE, 500)))).shape == (500, MIN_SIDE, 3)


def test_a_picture_above_the_limit_is_refused_and_one_at_the_limit_is_not():
    data = encoded(Image.new("RGB", (100, 100)))
    assert decode_image(data, max_megapixels=0.01).shape == (100, 100, 3)
    with pytest.raises(ImageRejected, match=r"more than 0\.0099 megapixels"):
        decode_image(data, max_megapixels=0.0099)


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side):
    # No pixel data at all: whoever decodes before judging the size reports damage instead.
    with pytest.raises(ImageRejected, match="more than 60 megapixels"):
        decode_image(png_file(side, side, b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as in production
def test_a_limit_above_pillows_own_does_not_open_the_door_to_bombs():
    side = 10_000  # 100 megapixels; Pillow warns above 89.5
    with pytest.raises(ImageRejected, match="megapixels"):
        decode_image(png_file(side, side, b""), max_megapixels=1000)


def test_no_metadata_and_no_read_only_memory_come_out():
    got = decode_image(encoded(picture(), "JPEG", comment=b"private"))
    assert type(got) is np.ndarray
    assert got.flags.writeable
    assert got.flags.c_contiguous


def png_file(width, height, rows, *, bit_depth=8, colour_type=2):
    """A PNG made by hand: any header over any (also missing) pixel data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def assert_decodes_or_is_rejected(data):
    try:
        got = decode_image(data, max_megapixels=1)
    except ImageRejected:
        return
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3
    assert min(got.shape[:2]) >= MIN_SIDE
    assert got.shape[0] * got.shape[1] <= 1e6


# Pillow warns about odd metadata in files it still reads; that is not this test's business.
@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(data):
    assert_decodes_or_is_rejected(data)


SEEDS = [
    encoded(picture(), file_format, **options)
    for file_format, options in [
        *((name, {}) for name in FORMATS),
        (
            "JPEG",
            {"progressive": True, "exif": b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00"},
        ),
        ("WEBP", {"lossless": True}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}),
    ]
] + [encoded(picture().quantize(8)), encoded(picture().convert("CMYK"), "JPEG")]


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutated_picture_never_raises_anything_else(data):
    mutated = bytearray(data.draw(st.sampled_from(SEEDS)))
    places = st.tuples(st.integers(0, len(mutated) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=12)):
        mutated[place] = value
    cut = data.draw(st.integers(0, len(mutated)) | st.just(len(mutated)))
    assert_decodes_or_is_rejected(bytes(mutated[:cut]))


# masks


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_mask_is_gray_in_every_listed_format(file_format):
    got = decode_mask(encoded(picture(), file_format))
    want = np.asarray(picture().convert("L"))
    assert_same_picture(got, want, levels=1 if file_format in LOSSLESS else 6)


def test_a_mask_may_be_of_any_size_and_keeps_its_levels():
    for shape in ((1, 1), (3, 50), (MAX_MASK_SIDE, 2)):
        levels = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
        assert np.array_equal(decode_mask(encoded(Image.fromarray(levels))), levels)


def test_a_mask_is_turned_upright_and_its_16_bits_become_8():
    levels = np.array([[0, 128], [255, 64]], np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turned = encoded(Image.fromarray(np.rot90(levels, 2).copy()), exif=exif)
    assert np.array_equal(decode_mask(turned), levels)
    deep = encoded(Image.fromarray(levels.astype(np.uint16) * 257))
    assert np.array_equal(decode_mask(deep), levels)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "The mask is in no format this server reads"),
        (encoded(picture())[:90], "The mask is damaged or incomplete"),
        (encoded(Image.new("1", (5000, 5000))), "The mask has more than 16 megapixels"),
        (encoded(picture(), "TIFF"), "JPEG, PNG, WEBP, GIF, BMP or AVIF"),
    ],
    ids=["nothing", "half", "large", "format"],
)
def test_a_mask_has_the_limits_of_photos_and_says_what_it_is(data, words):
    with pytest.raises(ImageRejected, match=words):
        decode_mask(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_mask_or_refused(data):
    with contextlib.suppress(ImageRejected):
        assert decode_mask(data).ndim == 2
