"""Traps of bfloat16: which numbers the transformer really sees."""

import pytest
import torch

from golden import flux_models, goldens
from pulid.batch import step_input
from pulid.flux import latents
from pulid.identity.attention import FoldedIdentity

ROWS = [row for row in goldens.table("schedules")["rows"] if row["bf16_steps_that_differ"]]


@pytest.fixture
def bf16_flux():
    """The small golden model in bfloat16, with what its sinusoid was asked for."""
    flux, modules = flux_models.model("B")
    flux.transformer.bfloat16()
    seen = []
    flux.transformer.time_text_embed.time_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].float().tolist())
    )
    yield flux, modules, seen
    flux_models.model.cache_clear()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['width']}x{row['height']}-{row['num_steps']}")
@torch.inference_mode()
def test_the_sinusoid_sees_the_references_timesteps(bf16_flux, row):
    """In bfloat16 the stock pipeline's rounding gives other timesteps on some of these steps."""
    flux, modules, seen = bf16_flux
    case = {
        **goldens.case_named("flux", "A.loop0.n4.noid.cfg1.0.start0"),
        "num_steps": row["num_steps"],
        "inputs": goldens.case_named("flux", "B.fwd1.noid")["inputs"],
    }
    flight = flux_models.flight(modules, case, FoldedIdentity, torch.bfloat16)
    flight.times = row["timesteps"]
    tables = flux_models.rotary(flux, case)
    timesteps = []
    while not flight.is_done:
        rows = step_input([flight])
        seen.clear()
        flux(
            rows.latents,
            text=rows.text,
            pooled=rows.pooled,
            timestep=rows.timestep,
            guidance=rows.guidance,
            rotary=tables,
        )
        timesteps.append(seen[0][0])
        flight.step += 1
    assert timesteps == row["bf16_sinusoid_argument_reference"]


def test_bfloat16_noise_is_one_draw_in_bfloat16():
    draw = {
        dtype: latents.draw_noise(3, 64, 64, channels=16, dtype=dtype, device=torch.device("cpu"))
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert draw[torch.bfloat16].dtype == torch.bfloat16
    assert torch.equal(draw[torch.bfloat16], draw[torch.float32].bfloat16())
