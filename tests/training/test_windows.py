"""Of large pictures the painter is shown a part, where it really is."""

import pytest
import torch

from pulid.flux import latents as flux_latents
from pulid.tiny_model import TOKENS_ACROSS
from training.learning.train_painter import Window

CPU = torch.device("cpu")
WIDTH, HEIGHT = 512, 640


def at_its_place(window, tokens):
    """Of (..., tokens of the whole picture, n) those of the window, in the order of its own."""
    rows, columns = flux_latents.token_grid(window.height, window.width)
    grid = tokens.unflatten(-2, (rows, columns))
    down = slice(window.top, window.top + window.rows)
    across = slice(window.left, window.left + window.columns)
    return grid[..., down, across, :].flatten(-3, -2)


def _many(count):
    return [Window.somewhere(WIDTH, HEIGHT) for _ in range(count)]


@pytest.fixture
def windows():
    torch.manual_seed(1)
    return [Window.somewhere(WIDTH, HEIGHT) for _ in range(20)]


def test_the_places_in_a_window_are_those_in_the_whole_picture(windows):
    whole = flux_latents.image_ids(HEIGHT, WIDTH, CPU, tokens_across=TOKENS_ACROSS)
    for window in windows:
        assert torch.equal(window.image_ids(CPU), at_its_place(window, whole))


def test_the_latents_in_a_window_are_those_in_the_whole_picture(windows):
    whole = torch.arange(16 * (HEIGHT // 8) * (WIDTH // 8)).reshape(1, 16, HEIGHT // 8, WIDTH // 8).float()
    for window in windows:
        packed = at_its_place(window, flux_latents.pack(whole))
        assert torch.equal(flux_latents.pack(window.of(whole)), packed)


def test_windows_reach_every_edge_and_never_past_it(windows):
    rows, columns = flux_latents.token_grid(HEIGHT, WIDTH)
    torch.manual_seed(2)
    small = [window for window in windows + _many(1500) if window.rows == 12]
    assert {window.top for window in small} == set(range(rows - 12 + 1))
    assert {window.left for window in small} == set(range(columns - 12 + 1))


def test_some_windows_are_the_whole_of_a_large_picture():
    torch.manual_seed(3)
    whole = flux_latents.token_grid(HEIGHT, WIDTH)
    sizes = {(window.rows, window.columns) for window in _many(60)}
    assert sizes == {(12, 12), (24, 24), whole}


def test_a_small_picture_is_shown_whole():
    window = Window.somewhere(256, 320)
    assert (window.top, window.left) == (0, 0)
    whole = flux_latents.image_ids(320, 256, CPU, tokens_across=TOKENS_ACROSS)
    assert torch.equal(window.image_ids(CPU), whole)
