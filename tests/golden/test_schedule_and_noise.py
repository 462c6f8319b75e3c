"""Timesteps and CPU noise against the recorded tables."""

import pytest
import torch

from golden import goldens
from pulid.flux import latents, sampling

SCHEDULES = goldens.table("schedules")


def size_and_steps(row):
    return f"{row['width']}x{row['height']}-{row['num_steps']}"


NOISE = goldens.table("noise_cpu")["rows"]


@pytest.mark.parametrize("row", SCHEDULES["rows"], ids=size_and_steps)
def test_timesteps_are_the_references(row):
    rows, columns = latents.token_grid(row["height"], row["width"])
    assert rows * columns == row["image_seq_len"]
    assert sampling.shift_strength(rows * columns) == pytest.approx(row["mu"], abs=1e-12)
    got = sampling.timesteps(row["num_steps"], rows * columns)
    assert got == pytest.approx(row["timesteps"], abs=SCHEDULES["tol_abs"])


@pytest.mark.parametrize("row", NOISE, ids=lambda r: f"{r['seed']}-{r['width']}x{r['height']}-{r['dtype']}")
def test_cpu_noise_is_the_references(row):
    noise = latents.draw_noise(
        row["seed"],
        row["height"],
        row["width"],
        channels=16,
        dtype=getattr(torch, row["dtype"]),
        device=torch.device("cpu"),
    )
    assert list(noise.shape) == row["shape"]
    assert noise[0, 0, 0, :8].tolist() == row["first8_row0"]
    assert noise.flatten()[-4:].tolist() == row["last4"]
    packed = latents.pack(noise)
    assert list(packed.shape) == row["packed_shape"]
    assert packed[0, 0, :8].tolist() == row["packed_token0_first8"]
    assert packed[0, -1, -4:].tolist() == row["packed_last_token_last4"]
    assert torch.equal(latents.unpack(packed, row["height"], row["width"]), noise.float())
