"""Engines whose weights come in turn paint the bytes of the profile fp8, on the CPU, at small size."""

import copy
import dataclasses
import threading

import numpy as np
import pytest
import torch

from model.portraits import difference, generate, photo, portrait
from pulid import load
from pulid.engine import Box, Person
from pulid.errors import Busy, OutOfMemory
from pulid.flux.decoder import Decoder
from pulid.flux.streaming import HostLane, Slots
from pulid.flux.tiles import OVERLAP, PIXELS, decoded_in_tiles, starts
from pulid.load import FileModel, engine_of, limit_memory
from pulid.parts import build_networks
from pulid.placement import placement
from pulid.profiles import PROFILES
from pulid.seeded import SMALL, fill_randomly, seeded_text_encoder, small_face_reader
from pulid.tiny import tiny_engine

CPU = torch.device("cpu")
DEEPER = dataclasses.replace(
    SMALL, transformer={**SMALL.transformer, "num_layers": 3, "num_single_layers": 5}
)
RESIDENT = dataclasses.replace(PROFILES["fp8"], dtype="float32")
STREAMED = dataclasses.replace(PROFILES["lowvram-12g"], dtype="float32", working_memory=0, decode_tile=0)
QUICK = {"width": 128, "height": 160, "num_steps": 2, "max_sequence_length": 128}
LEFT, RIGHT = Box(left=0, top=0, right=0.5, bottom=1), Box(left=0.5, top=0, right=1, bottom=1)
REQUESTS = {
    "one": portrait("collins", **QUICK),
    "guided": portrait("obama", prompt="a wizard", true_cfg=2.0, num_outputs=2, **QUICK),
    "wide": portrait("obama", seed=3, **{**QUICK, "width": 192, "num_steps": 3}),
    "nobody": portrait(None, prompt="a house", seed=4, **{**QUICK, "max_sequence_length": 160}),
    "two": portrait(
        None,
        id_images=(photo("collins"), photo("obama")),
        people=(Person(photos=(0,), region=LEFT), Person(photos=(1,), region=RIGHT)),
        **QUICK,
    ),
}


@pytest.fixture(scope="module")
def original():
    """What files would give."""
    networks = build_networks(DEEPER)
    for number, field in enumerate(dataclasses.fields(networks)):
        network = getattr(networks, field.name)
        network.to_empty(device="cpu")
        fill_randomly(network, number)
    networks.eva_clip.reset_computed_buffers("cpu")
    text = seeded_text_encoder(CPU)
    return FileModel(
        networks=networks,
        t5=text._t5,
        t5_tokenizer=text._t5_tokenizer,
        clip=text._clip,
        clip_tokenizer=text._clip_tokenizer,
        faces=small_face_reader("one-face"),
    )


def engine_with(original, profile):
    model = dataclasses.replace(
        original,
        networks=copy.deepcopy(original.networks),
        t5=copy.deepcopy(original.t5),
        clip=copy.deepcopy(original.clip),
    )
    return engine_of(model, profile, CPU)


def with_room_for(original, *, singles=0, modulation=0, doubles=3):
    """The profile with a limit that lets so many stay."""
    everything = placed(original, dataclasses.replace(STREAMED, memory_limit=10**12))
    slots = 2 * (
        max(everything.t5.sizes) + max(*everything.modulation.sizes, *everything.singles.sizes)
        if doubles == 3
        else max(everything.t5.sizes) + max(everything.doubles.sizes)
    )
    limit = everything.always + slots + doubles * max(everything.doubles.sizes)
    limit += singles * max(everything.singles.sizes) + modulation * max(everything.modulation.sizes)
    return dataclasses.replace(STREAMED, memory_limit=limit)


def placed(original, profile):
    return placement(profile, original.networks, original.t5, original.clip)


LIKE = {  # what leaves the card, from the largest card to one that is too small for anything
    "lowvram-24g": {"singles": 5, "modulation": 3},
    "lowvram-16g": {"singles": 2},
    "lowvram-12g": {},
    "less": {"doubles": 1},
}


@pytest.fixture(scope="module")
def expected(original):
    engine = engine_with(original, RESIDENT)
    return {name: generate(engine, request).images for name, request in REQUESTS.items()}


@pytest.fixture
def poisoned(monkeypatch):
    """Whatever reads a slot after its release reads NaN."""
    release = Slots.release

    def poisoning(self, number):
        release(self, number)
        self.buffers[number].fill_(255)

    monkeypatch.setattr(Slots, "release", poisoning)


@pytest.fixture(scope="module")
def small(original):
    return engine_with(original, with_room_for(original, singles=2))


def assert_painted(images, expected):
    for got, other in zip(images, expected, strict=True):
        assert np.array_equal(got, other)


# ---- the same bytes ----


def test_in_int8_too(original, poisoned):
    resident, streamed = (
        dataclasses.replace(profile, linears="int8")
        for profile in (RESIDENT, with_room_for(original, singles=2))
    )
    engine = engine_with(original, streamed)
    assert engine.info.details["linears"] == "int8"
    expected = generate(engine_with(original, resident), REQUESTS["guided"]).images
    assert_painted(generate(engine, REQUESTS["guided"]).images, expected)


@pytest.mark.parametrize("name", LIKE)
def test_pictures_have_the_bytes_of_weights_that_stay(original, expected, poisoned, name):
    engine = engine_with(original, with_room_for(original, **LIKE[name]))
    for request in ("guided", "wide"):
        assert_painted(generate(engine, REQUESTS[request]).images, expected[request])


@pytest.mark.parametrize(
    ("name", "away"),
    [
        ("lowvram-24g", (0, 0, 9, 0)),  # the text models are smaller here
        ("lowvram-16g", (0, 3, 12, 2)),
        ("lowvram-12g", (0, 5, 12, 2)),
        ("less", (2, 5, 12, 2)),
    ],
)
def test_the_small_engines_stream_what_the_large_ones_do(original, name, away):
    where = placed(original, with_room_for(original, **LIKE[name]))
    groups = (where.doubles, where.singles, where.modulation, where.t5)
    assert tuple(len(group.away) for group in groups) == away


def test_requests_after_each_other_leave_no_trace(small, expected):
    for name in (*REQUESTS, "nobody", "guided", "one"):
        assert_painted(generate(small, REQUESTS[name]).images, expected[name])


def test_one_request_at_a_time_is_in_the_making(small):
    """The room is for one."""
    assert small.can_admit(REQUESTS["guided"])
    small.admit("job", REQUESTS["one"])
    assert not small.can_admit(REQUESTS["one"])
    with pytest.raises(Busy, match="pictures are in the making"):
        small.admit("other", REQUESTS["one"])
    small.cancel("job")
    assert small.can_admit(REQUESTS["one"])


def test_prompts_are_read_beside_the_steps(small, original, expected):
    small.admit("job", REQUESTS["wide"])
    prompts = [f"portrait number {number}" for number in range(6)]
    read = {}

    def prepare():
        for prompt in prompts:
            read[prompt] = small.prepare(portrait(None, prompt=prompt, **QUICK)).conditioning.text

    thread = threading.Thread(target=prepare)
    thread.start()
    while events := small.step():
        denoised = events[-1].denoised
    thread.join()
    assert_painted(small.decode(denoised).images, expected["wide"])
    resident = engine_with(original, RESIDENT)
    for prompt in prompts:
        assert torch.equal(read[prompt].tokens, resident._text.encode(prompt, 128).tokens)


def test_the_engine_says_what_comes_from_the_host(small):
    assert small.info.details["placement"] == "3 of 8 blocks come from the host in each step"


def test_what_is_streamed_is_in_memory_once(small):
    """The network's own modules hold nothing of it, and its autoencoder has no half that nobody uses."""
    networks = small.parts.networks
    flags = [block.proj_mlp.weight.is_meta for block in networks.transformer.single_transformer_blocks]
    assert flags.count(True) == 3
    assert networks.transformer.norm_out.linear.weight.is_meta
    assert not hasattr(networks.autoencoder, "encoder")


# ---- failures ----


class Failing(HostLane):
    """Runs out of memory at one of its copies."""

    def __init__(self, at):
        self.left = at

    def copy(self, parcel, slot, after):
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("no memory")
        return super().copy(parcel, slot, after)


@pytest.mark.parametrize("at", [1, 3])
def test_out_of_memory_while_weights_move_ends_one_request_and_no_other(small, expected, monkeypatch, at):
    flux, text = small._flux._singles._slots, small._text._t5.encoder.block._slots
    for slots, act in (
        (text, lambda: small.prepare(portrait(None, prompt=f"not read before {at}", **QUICK))),
        (flux, lambda: small.admit("job", REQUESTS["one"])),
    ):
        monkeypatch.setattr(slots, "_lane", Failing(min(at, 2) if slots is text else at))
        with pytest.raises(OutOfMemory):
            act()
        monkeypatch.undo()
    small.admit("job", REQUESTS["one"])
    monkeypatch.setattr(flux, "_lane", Failing(at))
    (event,) = small.step()
    assert isinstance(event.error, OutOfMemory)
    monkeypatch.undo()
    assert not small.step()
    assert_painted(generate(small, REQUESTS["one"]).images, expected["one"])


# ---- tiles ----


@pytest.mark.parametrize("side", [40, 64])
def test_tiles_cover_every_cell_evenly_and_overlap(side):
    for length in range(1, 200):
        begins = starts(length, side)
        ends = [begin + min(side, length) for begin in begins]
        assert (begins[0], ends[-1]) == (0, length)
        assert all(end - begin >= OVERLAP for end, begin in zip(ends, begins[1:], strict=False))


def test_tiles_of_a_picture_that_is_the_same_everywhere_are_that_picture():
    latents = torch.randn(2, 16, 1, 1).expand(2, 16, 70, 50)
    paint = lambda cells: cells[:, :3].repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)  # noqa: E731
    torch.testing.assert_close(decoded_in_tiles(paint, latents, 32), paint(latents))


def test_tiles_put_each_cell_in_its_place():
    latents = torch.randn(1, 16, 37, 70)
    paint = lambda cells: cells[:, :3].repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)  # noqa: E731
    torch.testing.assert_close(decoded_in_tiles(paint, latents, 32), paint(latents))


@torch.inference_mode()
def test_tiles_of_a_trained_decoder_stay_near_the_whole_picture():
    """As docs/profiles.md says. The share of a tile in the picture is that of lowvram-12g."""
    engine = tiny_engine()
    engine.admit("job", portrait(width=448, height=576, num_steps=2))
    while events := engine.step():
        packed = events[-1].denoised and events[-1].denoised.latents.packed
    autoencoder = engine.parts.networks.autoencoder
    whole, tiled = (
        Decoder(autoencoder, torch.float32, tile=tile).pictures(packed, 576, 448)[0] for tile in (0, 256)
    )
    assert 0 < difference(tiled, whole) < 1


# ---- the limit ----


def test_the_limit_is_given_to_torch_as_a_share_of_the_card(monkeypatch):
    given = []
    card = type("Card", (), {"total_memory": 80 * 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda share, device: given.append((share, str(device))),
    )
    for limit in (20 * 10**9, 0, 90 * 10**9):
        limit_memory(torch.device("cuda:1"), limit)
    assert given == [(0.25, "cuda:1"), (1.0, "cuda:1"), (1.0, "cuda:1")]
    limit_memory(CPU, 10**9)
    assert len(given) == 3


def test_an_engine_has_the_limit_and_the_tiles_of_its_profile(original, expected, monkeypatch):
    given = []
    monkeypatch.setattr(load, "limit_memory", lambda device, limit: given.append((device, limit)))
    profile = dataclasses.replace(with_room_for(original), decode_tile=136)
    (image,) = generate(engine_with(original, profile), REQUESTS["one"]).images
    assert given == [(CPU, profile.memory_limit)]
    assert image.shape == expected["one"][0].shape
    assert not np.array_equal(image, expected["one"][0])


def test_other_profiles_have_no_limit_and_stream_nothing(original):
    for name in ("exact", "fp8", "tiny"):
        assert PROFILES[name].memory_limit == 0
        assert placed(original, PROFILES[name]) is None
    assert isinstance(engine_with(original, RESIDENT)._flux._singles, list)


def test_a_limit_is_for_the_fused_form():
    with pytest.raises(ValueError, match="has a limit, so its transformer_form must be fused"):
        dataclasses.replace(PROFILES["exact"], memory_limit=10**9)
