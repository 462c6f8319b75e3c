"""What a step is given: the rows of all requests in it, each with its own words, time and guidance."""

import pytest
import torch

from fused.stories import Studio, smallest_model
from pulid.batch import step_input
from pulid.flux.fused import FusedFlux

GROUPS = {
    "one": [{}],
    "several outputs": [{"outputs": 3}],
    "guided": [{"true_cfg": 2.0, "outputs": 2}],
    "beside others": [
        {"guidance": 1.7, "outputs": 2},
        {"seed": 3, "prompt": 2},
        {"true_cfg": 2.0, "seed": 4},
    ],
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def studio(request):
    flux, attentions = smallest_model()
    flux.transformer.to(request.param)
    return Studio(FusedFlux(flux.transformer), attentions)


@pytest.mark.parametrize("name", GROUPS)
@torch.inference_mode()
def test_every_row_has_its_own(studio, name):
    flights = [studio.flight(str(number), **changes) for number, changes in enumerate(GROUPS[name])]
    for step in range(4):
        for flight in flights:
            flight.step = step
        rows = step_input(flights)
        expected = [
            (
                picture,
                branch.text.tokens[0],
                branch.text.pooled[0],
                torch.tensor(flight.times[step]).to(picture),
                torch.tensor(flight.request.guidance).to(picture),
                branch.modulation.rows[step],
            )
            for flight in flights
            for branch in flight.branches()
            for picture in flight.latents
        ]
        got = (rows.latents, rows.text, rows.pooled, rows.timestep, rows.guidance, rows.modulation)
        for tensor, values in zip(got, zip(*expected, strict=True), strict=True):
            assert torch.equal(tensor, torch.stack(values))
            assert tensor.is_contiguous()
