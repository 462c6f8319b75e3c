"""Boxes and masks on the grid of image tokens: areas are kept, and outside is exactly zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulid.engine import Box, Mask, Person
from pulid.errors import BadRequest
from pulid.identity.reader import check_people
from pulid.identity.region import token_weights

sides = st.integers(1, 40)
NO_DEADLINE = settings(deadline=None)  # how long an example takes is the machine's business


def box(left, top, right, bottom):
    return Box(left=left, top=top, right=right, bottom=bottom)


@st.composite
def boxes(draw):
    left, right = sorted(draw(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999))))
    top, bottom = sorted(draw(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999))))
    return box(left, top, right + 0.001, bottom + 0.001)


@st.composite
def masks(draw):
    height, width = draw(sides), draw(sides)
    return Mask(np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width), np.uint8))


@NO_DEADLINE
@given(boxes(), sides, sides)
def test_a_box_keeps_its_area_however_thin_it_is(region, rows, columns):
    weights = token_weights(region, rows, columns)
    assert weights.shape == (rows * columns,)
    assert weights.min() >= 0
    assert weights.max() <= 1
    area = (region.right - region.left) * (region.bottom - region.top)
    assert weights.mean() == pytest.approx(area, abs=1e-9)


@NO_DEADLINE
@given(masks(), sides, sides)
def test_a_mask_of_any_size_keeps_its_mean_level(region, rows, columns):
    weights = token_weights(region, rows, columns)
    assert weights.shape == (rows * columns,)
    assert weights.min() >= 0
    assert weights.max() <= 1 + 1e-12
    assert weights.mean() == pytest.approx(region.weights.mean() / 255, abs=1e-9)


@NO_DEADLINE
@given(sides, sides)
def test_the_whole_canvas_is_one_everywhere_and_an_empty_mask_zero(rows, columns):
    for whole in (box(0, 0, 1, 1), Mask(np.full((7, 5), 255, np.uint8))):
        assert (token_weights(whole, rows, columns).astype(np.float32) == 1).all()
    assert (token_weights(Mask(np.zeros((7, 5), np.uint8)), rows, columns) == 0).all()


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_box_that_ends_between_two_tokens_touches_no_token_beyond(tenth):
    """0.7 times ten is 7.000000000000001 in floating point, were it not rounded."""
    row = token_weights(box(0, 0, tenth / 10, 1), 1, 10)
    assert row.tolist() == [1.0] * tenth + [0.0] * (10 - tenth)


def test_a_box_covers_its_edge_tokens_by_their_share():
    weights = token_weights(box(0.25, 0, 0.875, 0.5), 2, 2).reshape(2, 2)
    assert weights.tolist() == [[0.5, 0.75], [0, 0]]
    thin = token_weights(box(0.31, 0, 0.32, 1), 1, 10)
    assert thin.tolist() == pytest.approx([0, 0, 0, 0.1, 0, 0, 0, 0, 0, 0])


def test_a_mask_is_read_by_rows_and_columns():
    levels = np.array([[0, 255, 51], [102, 0, 255]], np.uint8)
    assert token_weights(Mask(levels), 2, 3).tolist() == [0, 1, 0.2, 0.4, 0, 1]
    assert token_weights(Mask(levels), 1, 3).tolist() == pytest.approx([0.2, 0.5, 0.6])
    assert token_weights(Mask(levels), 4, 3).reshape(4, 3)[:2].tolist() == [[0, 1, 0.2]] * 2


def test_a_box_and_its_mask_weigh_the_same():
    mask = np.zeros((60, 70), np.uint8)
    mask[12:33, 14:56] = 255
    region = box(14 / 70, 12 / 60, 56 / 70, 33 / 60)
    np.testing.assert_allclose(token_weights(Mask(mask), 6, 9), token_weights(region, 6, 9), atol=1e-9)


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (box(0.5, 0, 0.5, 1), "left before right"),
        (box(0, 0.9, 1, 0.1), "top before bottom"),
        (box(-0.1, 0, 1, 1), "0 to 1"),
        (box(0, 0, 1, 1.01), "0 to 1"),
        (box(0, 0, float("nan"), 1), "0 to 1"),
        (Mask(np.zeros((2, 2, 3), np.uint8)), "one channel"),
        (Mask(np.zeros((0, 4), np.uint8)), "at least one pixel"),
        (Mask(np.zeros((4, 4), np.float32)), "levels from 0 to 255"),
    ],
)
def test_a_region_without_sense_is_refused(region, says):
    with pytest.raises(BadRequest, match=says):
        check_people([Person(photos=(0,), region=region)], photos=1)


def test_masks_are_equal_by_their_levels():
    one, same = (Mask(np.eye(3, dtype=np.uint8)) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Mask(np.zeros((3, 3), np.uint8))
    assert one != box(0, 0, 1, 1)
