"""The engine as the server drives it: prepare, admit, step, cancel, rows side by side, broken devices."""

import dataclasses
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from model.portraits import difference, generate, photo, picture, portrait, results, within_one_level
from pulid.errors import Busy, DeviceLost, NoFaceFound, OutOfMemory
from pulid.flux import latents, sampling
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity
from pulid.identity.reader import Photo
from pulid.pipeline import MAX_ROWS, SEED_RANGE, PulidFluxEngine
from pulid.profiles import PROFILES

DIFFERENT_REQUESTS = {
    "one": portrait("collins"),
    "two": portrait("obama", prompt="a wizard in the forest", seed=5, id_weight=2.0, start_step=1),
    "guided": portrait("ardern", seed=6, true_cfg=2.5, start_step=2, timestep_to_start_cfg=1, guidance=2.0),
    "longer": portrait("obama", seed=7, num_steps=6, num_outputs=2),
    "nobody": portrait(None, seed=8),
    "wide": portrait("collins", seed=9, width=320),
}


def literal_loop(engine, request):
    """docs/spec/PULID_SPEC.md 7.3 written out: one row, one branch at a time, the reference's attention."""
    cpu = torch.device("cpu")
    noise = latents.draw_noise(
        request.seed, request.height, request.width, channels=16, dtype=torch.float32, device=cpu
    )
    x = latents.pack(noise)
    times = sampling.timesteps(request.num_steps, x.shape[1])
    rotary = engine._flux.rotary(
        latents.text_ids(request.max_sequence_length, cpu),
        latents.image_ids(request.height, request.width, cpu),
    )
    id_tokens = engine._encoder.encode(engine._faces.read(request.id_images[0]))
    identity, uncond = (
        ReferenceIdentity.of(engine._attentions, tokens, request.id_weight, torch.float32)
        for tokens in (id_tokens, engine._encoder.unconditional())
    )

    def model(prompt, who, t):
        text = engine._text.encode(prompt, request.max_sequence_length)
        return engine._flux(
            x,
            text=text.tokens,
            pooled=text.pooled,
            timestep=torch.tensor([t]),
            guidance=torch.tensor([request.guidance]),
            rotary=rotary,
            identity=who,
        )

    for i in range(request.num_steps):
        seen = i >= request.start_step
        pred = model(request.prompt, identity if seen else None, times[i])
        if abs(request.true_cfg - 1) > 0.01 and i >= request.timestep_to_start_cfg:
            neg = model(request.negative_prompt, uncond if seen else None, times[i])
            pred = neg + request.true_cfg * (pred - neg)
        x = x + (times[i + 1] - times[i]) * pred
    return engine._decoder.pictures(x, request.height, request.width)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start_step": 2, "id_weight": 2.0},
        {"true_cfg": 2.5, "start_step": 1, "timestep_to_start_cfg": 1},
        {"true_cfg": 4.0, "start_step": 1, "timestep_to_start_cfg": 2},
        {"true_cfg": 0.5},
        {"true_cfg": 1.009, "max_sequence_length": 256},
        {"width": 300, "height": 260, "guidance": 2.5},
    ],
    ids=str,
)
@torch.inference_mode()
def test_the_engine_paints_what_the_literal_loop_paints(engine, changes):
    request = portrait("obama", **changes)
    assert within_one_level(generate(engine, request).images[0], literal_loop(engine, request))


def test_interleaved_requests_give_the_bytes_they_give_alone(engine):
    together = results(engine, DIFFERENT_REQUESTS)
    for name, request in DIFFERENT_REQUESTS.items():
        for got, alone in zip(together[name].images, generate(engine, request).images, strict=True):
            assert np.array_equal(got, alone), name


def engine_like(engine, **changes):
    """An engine over the same networks with a changed profile."""
    parts = engine.parts
    return PulidFluxEngine(parts, dataclasses.replace(PROFILES["tiny"], **changes), torch.device("cpu"))


def test_where_steps_are_shared_a_batch_equals_its_singles_within_one_level(engine):
    together = results(engine_like(engine, shares_steps=True), DIFFERENT_REQUESTS)
    for name, request in DIFFERENT_REQUESTS.items():
        for got, alone in zip(together[name].images, generate(engine, request).images, strict=True):
            assert within_one_level(got, alone), name


def test_both_attention_forms_paint_the_same_picture(engine):
    reference = engine_like(engine, identity_attention="reference")
    assert within_one_level(picture(reference, true_cfg=2.0), picture(engine, true_cfg=2.0))


def test_several_outputs_are_the_pictures_of_consecutive_seeds(engine):
    result = generate(engine, portrait(seed=41, num_outputs=3))
    assert result.seeds == (41, 42, 43)
    for seed, image in zip(result.seeds, result.images, strict=True):
        assert within_one_level(image, picture(engine, seed=seed))


def test_seeds_wrap_at_two_to_the_63(engine):
    result = generate(engine, portrait(seed=SEED_RANGE - 1, num_outputs=2))
    assert result.seeds == (SEED_RANGE - 1, 0)
    assert difference(result.images[1], picture(engine, seed=0)) < 1


@pytest.mark.parametrize(
    ("asked", "painted"), [((1000, 700), (1008, 704)), ((257, 256), (272, 256)), ((256, 304), (256, 304))]
)
def test_sizes_are_rounded_up_to_sixteen(engine, asked, painted):
    width, height = asked
    image = picture(engine, width=width, height=height, num_steps=1)
    assert image.shape == (painted[1], painted[0], 3)


@pytest.mark.parametrize(("cfg_start", "forwards"), [(1, 39), (0, 40), (4, 36), (20, 20)])
def test_true_cfg_costs_a_second_forward_from_its_first_step_on(engine, cfg_start, forwards):
    rows = []
    handle = engine._flux.transformer.proj_out.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[0])
    )
    picture(engine, true_cfg=2.0, timestep_to_start_cfg=cfg_start, num_steps=20)
    handle.remove()
    assert sum(rows) == forwards
    assert len(rows) == 20


@pytest.mark.parametrize("changes", [{"id_weight": 0.0}, {"start_step": 4}, {"start_step": 10}], ids=str)
def test_an_identity_that_never_acts_is_plain_flux_bit_for_bit(engine, changes):
    for true_cfg in (1.0, 2.0):
        with_photo = picture(engine, true_cfg=true_cfg, **changes)
        assert np.array_equal(with_photo, picture(engine, None, true_cfg=true_cfg))


def test_nothing_of_an_identity_stays_behind(engine):
    before = picture(engine, None)
    picture(engine, "obama", id_weight=3.0)
    assert np.array_equal(picture(engine, None), before)


def test_a_photo_without_a_face_is_refused_and_leaves_nothing_in_flight(engine):
    with pytest.raises(NoFaceFound, match="Use a photo with one clear"):
        engine.admit("faceless", portrait(id_images=(np.full((300, 300, 3), 128, np.uint8),)))
    assert engine.step() == []


def test_the_face_is_read_once_for_one_photo(engine):
    seen = []
    reads = engine._faces.read
    engine._faces.read = lambda *args: seen.append(1) or reads(*args)
    try:
        fresh = photo("collins").copy()
        fresh[0, 0] += 1
        for seed in (1, 2):
            picture(engine, id_images=(fresh,), seed=seed)
    finally:
        del engine._faces.read
    assert len(seen) == 1


def test_a_cancelled_request_sends_no_further_event(engine):
    engine.admit("stays", portrait())
    engine.admit("leaves", portrait("obama"))
    engine.step()
    engine.cancel("leaves")
    engine.cancel("never admitted")
    events = []
    while step := engine.step():
        events.extend(step)
    assert {event.job_id for event in events} == {"stays"}
    assert events[-1].denoised is not None


def test_events_count_the_steps_and_the_last_one_brings_what_is_decoded(engine):
    engine.admit("job", portrait(num_steps=3))
    events = [engine.step()[0] for _ in range(3)]
    assert [(event.step, event.num_steps, event.is_last) for event in events] == [
        (1, 3, False),
        (2, 3, False),
        (3, 3, True),
    ]
    assert set(events[-1].denoised.timings) == {"face", "text", "denoise"}
    assert engine.step() == []
    result = engine.decode(events[-1].denoised)
    assert set(result.timings) == {"face", "text", "denoise", "decode"}
    assert [image.shape for image in result.images] == [(256, 256, 3)]


def test_a_full_engine_says_busy(engine):
    four = portrait(None, num_outputs=4)
    jobs = [f"job {i}" for i in range(MAX_ROWS // 4)]
    for job in jobs:
        assert engine.can_admit(four)
        engine.admit(job, four)
    assert not engine.can_admit(portrait(None))
    with pytest.raises(Busy):
        engine.admit("one too many", portrait(None))
    for job in jobs:
        engine.cancel(job)
    assert engine.can_admit(four)


def test_prepared_identities_are_of_the_profiles_form(engine):
    assert isinstance(engine._folded(engine._encoder.unconditional(), 1.0), FoldedIdentity)


# prepare


def run_prepared(engine, prepared):
    engine.admit("job", prepared)
    while events := engine.step():
        if events[-1].is_last:
            return engine.decode(events[-1].denoised)
    raise AssertionError("no last event")


@pytest.mark.parametrize("name", DIFFERENT_REQUESTS)
def test_a_prepared_request_gives_the_bytes_of_the_same_request_admitted_whole(engine, name):
    request = DIFFERENT_REQUESTS[name]
    got = run_prepared(engine, engine.prepare(request))
    alone = generate(engine, request)
    assert got.seeds == alone.seeds
    for image, expected in zip(got.images, alone.images, strict=True):
        assert np.array_equal(image, expected)


def test_a_prepared_request_no_longer_holds_the_photo_and_knows_its_timings(engine):
    request = portrait()
    prepared = engine.prepare(request)
    assert prepared.request == dataclasses.replace(request, id_images=())
    assert set(prepared.timings) == {"face", "text"}
    assert engine.step() == [], "preparing puts nothing in flight"
    assert set(run_prepared(engine, prepared).timings) == {"face", "text", "denoise", "decode"}


def test_preparing_reads_the_face_and_both_prompts_so_that_admitting_does_not(engine, monkeypatch):
    prepared = engine.prepare(portrait("obama", true_cfg=2.0))

    def forbidden(*args):
        raise AssertionError("read again")

    monkeypatch.setattr(engine._faces, "read", forbidden)
    monkeypatch.setattr(engine._text, "encode", forbidden)
    monkeypatch.setattr(engine._encoder, "unconditional", forbidden)
    assert len(run_prepared(engine, prepared).images) == 1


def test_a_photo_without_a_face_is_refused_when_it_is_prepared(engine):
    with pytest.raises(NoFaceFound):
        engine.prepare(portrait(id_images=(np.full((300, 300, 3), 127, np.uint8),)))


def test_preparing_beside_the_steps_changes_neither_picture(engine):
    """Photos and prompts that are in no cache are read in a second thread while steps run."""
    running = portrait("obama", seed=11, num_steps=12)
    fresh = photo("collins").copy()
    fresh[0, 0] ^= 1
    ahead = portrait(id_images=(fresh,), prompt="a prompt that nobody has asked for", true_cfg=1.5)
    prepared = []
    second = threading.Thread(target=lambda: prepared.append(engine.prepare(ahead)))
    engine.admit("running", running)
    events = [*engine.step()]
    second.start()
    while step := engine.step():
        events.extend(step)
    second.join()
    painted = engine.decode(events[-1].denoised)
    assert np.array_equal(painted.images[0], generate(engine, running).images[0])
    assert np.array_equal(run_prepared(engine, prepared[0]).images[0], generate(engine, ahead).images[0])


# faults of the device


@contextmanager
def broken(module, fault):
    """A network that raises `fault`; yields what the traceback alone keeps alive."""
    kept = []

    def hook(*_):
        activations = torch.zeros(3)
        kept.append(weakref.ref(activations))
        raise fault()

    handle = module.register_forward_hook(hook)
    yield kept
    handle.remove()


def test_out_of_memory_in_a_step_ends_that_request_only_and_keeps_nothing_alive(engine):
    engine.admit("large", portrait())
    with broken(engine._flux.transformer.proj_out, torch.OutOfMemoryError) as kept:
        (event,) = engine.step()
    assert (event.job_id, event.is_last) == ("large", True)
    assert isinstance(event.error, OutOfMemory)
    assert "smaller size" in str(event.error)
    assert kept[0]() is None
    assert engine.step() == []
    assert picture(engine).shape == (256, 256, 3)


@pytest.mark.parametrize("verb", ["prepare", "admit"])
def test_out_of_memory_while_reading_a_photo_is_said_so_and_keeps_nothing_alive(engine, verb):
    fresh = photo("collins").copy()
    fresh[0, 0] ^= 2 if verb == "prepare" else 3  # in no cache
    call = {"prepare": engine.prepare, "admit": lambda request: engine.admit("large", request)}[verb]
    with broken(engine._encoder.idformer, torch.OutOfMemoryError) as kept:
        with pytest.raises(OutOfMemory) as caught:
            call(portrait(id_images=(fresh,)))
        assert caught.value.__context__ is None
        assert kept[0]() is None
    assert engine.step() == []
    assert picture(engine, id_images=(fresh,)).shape == (256, 256, 3)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: torch.AcceleratorError("an illegal memory access was encountered"),
        lambda: RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=["accelerator", "cuda", "cudnn"],
)
def test_a_fault_of_the_device_is_told_apart_from_all_others(engine, fault):
    engine.admit("job", portrait())
    with (
        broken(engine._flux.transformer.proj_out, fault),
        pytest.raises(DeviceLost, match=r"reported a fault \([^\n]+\)\. Start again") as caught,
    ):
        engine.step()
    assert caught.value.code == "device_lost"
    engine.cancel("job")


def test_an_error_of_our_own_stays_what_it_is(engine):
    engine.admit("job", portrait())
    with (
        broken(engine._flux.transformer.proj_out, lambda: RuntimeError("shape [1, 2]")),
        pytest.raises(RuntimeError, match="shape"),
    ):
        engine.step()
    engine.cancel("job")


def test_a_prepared_request_tells_what_was_known_already(engine):
    fresh = photo("collins").copy()
    fresh[1, 1] += 1
    request = portrait(id_images=(fresh,), prompt="a prompt of this test alone")
    assert engine.prepare(request).cache_hits == {"identity": False, "prompt": False}
    assert engine.prepare(request).cache_hits == {"identity": True, "prompt": True}


def test_a_rotary_table_is_kept_by_its_shape_and_not_by_its_size(engine):
    wide, high = portrait(None, width=512, height=256), portrait(None, width=256, height=512)
    alone = [generate(engine_like(engine), request).images[0] for request in (wide, high)]
    shared = engine_like(engine)
    again = [generate(shared, request).images[0] for request in (wide, high)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, again, strict=True))


def test_photos_of_equal_bytes_and_other_shapes_are_different_photos():
    flat = np.arange(32 * 48 * 3, dtype=np.uint8)
    seen = [Photo(flat.reshape(shape)).content for shape in ((32, 48, 3), (48, 32, 3))]
    assert seen[0] != seen[1]
