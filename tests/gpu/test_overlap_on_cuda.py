"""Photos, prompts and pictures beside the steps, in streams of their own: the bytes of one after the other.

    python -m pytest -m gpu -s tests/gpu/test_overlap_on_cuda.py

Needs about 50 GB of GPU memory. Nothing skips: without a GPU these tests fail.
"""

import dataclasses
import json
import queue
import threading

import numpy as np
import pytest
import torch

from golden import golden_fill
from gpu.full_size import MARKS, random_engine
from model.portraits import generate, portrait
from pulid.flux.decoder import Decoder
from pulid.parts import FLUX_DEV
from pulid.profiles import PROFILES
from pulid.streams import SideStream, lend, mark

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(590)]

CUDA = torch.device("cuda")
CYCLES = 4 * 10**9  # of `_sleep`: two seconds or more, many steps' time
ROUNDS = 3


@pytest.fixture(scope="module")
def engine():
    return random_engine(dataclasses.replace(FLUX_DEV, clip=MARKS), PROFILES["exact"], CUDA)


def request(number):
    """Each with a photo and a prompt that are in no cache, and of changing size."""
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    width, height = ((512, 512), (896, 1152), (640, 512))[number % 3]
    return portrait(
        None,
        id_images=(pixels,),
        prompt=f"portrait number {number}",
        seed=number,
        width=width,
        height=height,
        num_steps=3,
        true_cfg=2.0 if number % 4 == 1 else 1.0,
        num_outputs=1 + number % 2,
    )


def side_by_side(engine, requests):
    """As a worker: one thread prepares, one steps, one decodes. {job: result}"""
    prepared, denoised, results = queue.Queue(), queue.Queue(), {}

    def prepare():
        for job, asked in requests.items():
            prepared.put((job, engine.prepare(asked)))

    def save():
        for _ in requests:
            job, done = denoised.get()
            results[job] = engine.decode(done)

    threads = [threading.Thread(target=work) for work in (prepare, save)]
    for thread in threads:
        thread.start()
    for _ in requests:
        engine.admit(*prepared.get())
        while events := engine.step():
            for event in events:
                if event.denoised is not None:
                    denoised.put((event.job_id, event.denoised))
    for thread in threads:
        thread.join()
    return results


def forget(engine):
    """What was read before: it shall be read again."""
    for cache in (engine._identities._identities, engine._text._cache):
        cache._entries.clear()


def test_pictures_have_the_same_bytes_whatever_runs_beside_their_steps(engine):
    for turn in range(ROUNDS):
        numbers = range(100 * turn, 100 * turn + 8)
        results = side_by_side(engine, {number: request(number) for number in numbers})
        forget(engine)
        for number in numbers:
            alone = generate(engine, request(number))
            for got, expected in zip(results[number].images, alone.images, strict=True):
                assert np.array_equal(got, expected), number


def test_a_step_does_not_wait_for_side_work(engine):
    side, begun, done = SideStream(CUDA), threading.Event(), threading.Event()

    def work():
        with side.work():
            torch.cuda._sleep(CYCLES)
            begun.set()
        done.set()

    engine.admit("job", request(0))
    engine.step()  # whatever a first step makes
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    engine.step()
    assert not done.is_set()
    thread.join()
    engine.cancel("job")


def test_side_work_waits_for_the_mark_and_its_end_for_the_work():
    side, x = SideStream(CUDA), torch.zeros(1024, device=CUDA)
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    x += 1
    with side.work(after=mark(CUDA)):
        torch.cuda._sleep(CYCLES // 4)
        doubled = 2 * x
    assert side._stream.query()
    assert (doubled == 2).all()


def test_memory_that_is_lent_is_not_given_to_others_while_it_is_read():
    side = SideStream(CUDA)
    with side.work():
        made = torch.ones(2**22, device=CUDA)
    address = made.data_ptr()
    torch.cuda._sleep(CYCLES)
    copy = made.clone()
    lend([made])
    del made
    with side.work():
        other = torch.zeros(2**22, device=CUDA)
    assert other.data_ptr() != address
    torch.cuda.synchronize()
    assert (copy == 1).all()


@pytest.mark.parametrize("form", ["channels_last", "compiled"])
@torch.inference_mode()
def test_the_decoders_forms_stay_together_at_full_size(engine, form):
    """In bfloat16; the bound is several times what two correct kernels differ by. Prints what each takes."""
    vae = engine.parts.networks.autoencoder
    plain, sizes = Decoder(vae, torch.bfloat16), ((896, 1152), (512, 512), (1024, 1024))
    packed = [torch.randn(1, h * w // 256, 64, device=CUDA, dtype=torch.bfloat16) for w, h in sizes]
    expected = [plain.decode(x, h, w) for x, (w, h) in zip(packed, sizes, strict=True)]
    try:
        other = Decoder(vae, torch.bfloat16, form)
        for x, (w, h), before in zip(packed, sizes, expected, strict=True):
            error = golden_fill.compare(other.decode(x, h, w), before)[0]
            print(json.dumps({"form": form, "width": w, "height": h, "relative_error": error}))
            assert error < 0.05
    finally:
        vae.to(memory_format=torch.contiguous_format)
