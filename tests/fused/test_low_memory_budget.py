"""What the profiles lowvram-* promise of memory, computed at full size on the meta device.

Weights and slots from their real sizes. What a request makes is counted with the plain kernels, which hold
more at a time than those of Triton; attention with one kernel, as torch has on these cards.
"""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from docs.project_files import text_of
from fused.on_meta import Counted
from pulid.flux.fused import FusedFlux
from pulid.flux.kernels.plain import E4M3
from pulid.flux.quantised import block_linears, quantise
from pulid.flux.tiles import PIXELS, decoded_in_tiles
from pulid.identity.attention import FoldedAttention, FoldedIdentity
from pulid.parts import FLUX_DEV, build_networks, build_text_models
from pulid.placement import placement
from pulid.profiles import CONTEXT, LOW_MEMORY, PROFILES

WIDTH, HEIGHT, TEXT = 896, 1152, 128  # the default request
CARDS = {"lowvram-24g": 24, "lowvram-16g": 16, "lowvram-12g": 12}
AWAY = {  # double blocks, single blocks, linears of modulation, T5's blocks
    "lowvram-24g": (0, 0, 54, 23),
    "lowvram-16g": (0, 17, 77, 24),
    "lowvram-12g": (0, 37, 77, 24),
}
EACH = pytest.mark.parametrize("profile", LOW_MEMORY, ids=lambda profile: profile.name)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture(scope="module")
def model():
    networks = build_networks(FLUX_DEV)
    t5, clip = build_text_models(FLUX_DEV)
    return SimpleNamespace(networks=networks, t5=t5, clip=clip)


@pytest.fixture(scope="module")
def places(model):
    return {profile.name: placement(profile, model.networks, model.t5, model.clip) for profile in LOW_MEMORY}


@pytest.fixture
def one_kernel(monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query))


def peak(compute):
    with torch.inference_mode(), Counted() as counted:
        compute()
    return counted.peak


def step_peak(networks, width, height, rows=1):
    """One step in fp8 with a person: his maps, inputs, all that the blocks make."""
    transformer = networks.transformer.to(torch.bfloat16)
    for _, linear in block_linears(transformer):
        quantise(linear, linear.weight.data, E4M3)
    flux = FusedFlux(transformer)

    def product(x, weight, bias):
        return empty(*x.values.shape[:-1], len(bias))

    flux._block_kernels = dataclasses.replace(flux._block_kernels, linear=product)
    tokens = width * height // 256

    def compute():
        maps = [
            FoldedAttention(
                empty(1, 3072, 512), empty(1, 1, 512, dtype=torch.float32), empty(1, 512, 3072), 16
            )
            for _ in range(20)
        ]
        flux(
            empty(rows, tokens, 64),
            text=empty(rows, TEXT, 4096),
            pooled=empty(rows, 768),
            timestep=empty(rows),
            guidance=empty(rows),
            rotary=(empty(tokens + TEXT, 128, dtype=torch.float32),) * 2,
            identity=FoldedIdentity(tuple(maps)),
            modulation_rows=empty(rows, sum(flux._widths)),
        )

    return peak(compute)


def decode_peak(networks, profile, width, height):
    """In float32, where a card computes partly in bfloat16."""

    def decode(cells):
        return networks.autoencoder.decode(cells, return_dict=False)[0]

    latents = (1, 16, height // PIXELS, width // PIXELS)
    side = profile.decode_tile // PIXELS
    if max(latents[2:]) <= side:
        return peak(lambda: decode(empty(*latents, dtype=torch.float32)))
    return peak(lambda: decoded_in_tiles(decode, empty(*latents, dtype=torch.float32), side))


# ---- weights ----


@EACH
def test_weights_and_working_memory_are_within_the_limit_and_the_limit_within_the_card(profile, places):
    where = places[profile.name]
    assert where.on_device + profile.working_memory <= profile.memory_limit
    assert profile.memory_limit + CONTEXT == profile.device_memory <= CARDS[profile.name] * 10**9
    assert where.on_host + 2 * 10**8 <= profile.host_memory <= where.on_host + 1.2e9


@EACH
def test_what_comes_from_the_host_is_what_the_documents_say(profile, places):
    where = places[profile.name]
    groups = (where.doubles, where.singles, where.modulation, where.t5)
    assert tuple(len(group.away) for group in groups) == AWAY[profile.name]
    blocks = len(where.doubles.away) + len(where.singles.away)
    cells = [
        f"`{profile.name}`",
        f"{profile.memory_limit / 1e9:.0f} GB",
        f"{where.on_device / 1e9:.1f} GB",
        f"{profile.working_memory / 1e9:.2f} GB",
        f"{blocks} of 57",
        f"{len(where.modulation.away)} of 77",
        f"{len(where.t5.away)} of 24",
        f"{where.on_host / 1e9:.1f} GB",
    ]
    assert "| " + " | ".join(cells) + " |" in text_of("docs/profiles.md")


def test_sizes_are_those_of_the_weights_themselves(model, places):
    """A quantised block counted tensor by tensor, and all of it together."""
    where = places["lowvram-12g"]
    block = 7 * 3072 * 3072 + 5 * 3072 * 3072  # into, out
    scales, biases, norms = 4 * (7 + 1) * 3072, 2 * (7 + 1) * 3072, 2 * 2 * 128
    assert set(where.singles.sizes) == {block + scales + biases + norms}
    assert where.on_device + where.on_host == pytest.approx(
        27.1e9 + 2 * (where.flux.slot + where.t5.slot), rel=0.01
    )  # as docs/profiles.md has it for fp8, less the autoencoder's half


def test_a_smaller_limit_sends_more_away_and_never_the_other_way_round(model):
    last = None
    for limit in range(4, 40, 2):
        profile = dataclasses.replace(PROFILES["lowvram-12g"], memory_limit=limit * 10**9)
        where = placement(profile, model.networks, model.t5, model.clip)
        counts = [len(group.away) for group in (where.doubles, where.singles, where.modulation, where.t5)]
        if last is not None:
            assert all(now <= before for now, before in zip(counts, last, strict=True))
        last = counts
    assert last == [0, 0, 0, 0]
    assert where.flux is None
    assert where.on_host == 0


def test_blocks_that_come_lie_between_blocks_that_stay(places):
    """So that each copy has the work of a block that stays to hide behind, and the first one too."""
    away = places["lowvram-16g"].singles.away
    assert 0 not in away
    assert all(later - sooner >= 2 for sooner, later in itertools.pairwise(away))


# ---- what requests make ----


@pytest.mark.usefixtures("one_kernel")
def test_the_default_request_has_room_for_a_step_beside_a_decoding(model):
    """With a tenth to spare, and 400 MB for a photo and a prompt beside, and for what libraries take."""
    step = step_peak(model.networks, WIDTH, HEIGHT)
    assert 1.0e9 < step < 1.2e9
    for profile in LOW_MEMORY:
        decode = decode_peak(model.networks, profile, WIDTH, HEIGHT)
        assert 1.1 * (step + decode) + 0.4e9 < profile.working_memory, profile.name
