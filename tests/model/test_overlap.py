"""What surrounds the steps runs beside them: the pictures' bytes do not depend on it, and errors stay apart.

By the order of events, never by durations: a decoder is held in its middle until other steps are done.
"""

import dataclasses
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from model.portraits import generate, portrait
from pulid.errors import DeviceLost, OutOfMemory
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES
from pulid.streams import SideStream, mark

PATIENCE_S = 60.0
FIRST = portrait("collins", num_outputs=2, num_steps=2)
SECOND = portrait("obama", seed=5, true_cfg=2.0, num_steps=2)


def denoised(engine, request):
    engine.admit("job", request)
    while events := engine.step():
        if events[-1].is_last:
            return events[-1].denoised
    raise AssertionError("no last event")


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_pre_hook(lambda *_: hook())
    yield
    handle.remove()


def same_pictures(one, other):
    assert len(one.images) == len(other.images)
    return all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))


@pytest.fixture(scope="module")
def alone(engine):
    return [generate(engine, request) for request in (FIRST, SECOND)]


def test_the_steps_of_another_job_go_on_in_the_middle_of_a_decoding(engine, alone):
    begun, may_go_on, results = threading.Event(), threading.Event(), []
    first = denoised(engine, FIRST)

    def hold():
        begun.set()
        assert may_go_on.wait(PATIENCE_S)

    saver = threading.Thread(target=lambda: results.append(engine.decode(first)))
    with hooked(engine.parts.networks.autoencoder.decoder.mid_block, hold):
        saver.start()
        assert begun.wait(PATIENCE_S)
        second = denoised(engine, SECOND)
        assert not results
        may_go_on.set()
        saver.join()
    results.append(engine.decode(second))
    assert all(map(same_pictures, results, alone))


def test_what_is_decoded_later_or_again_is_the_same_picture(engine, alone):
    waiting = [denoised(engine, request) for request in (FIRST, SECOND)]
    for number in (1, 0, 1):
        again = engine.decode(waiting[number])
        assert same_pictures(again, alone[number])
        assert again.seeds == waiting[number].seeds == alone[number].seeds


def test_a_denoised_request_is_no_longer_in_flight_and_holds_no_photo(engine):
    done = denoised(engine, FIRST)
    assert done.request == dataclasses.replace(FIRST, id_images=())
    assert engine.step() == []
    with pytest.raises(KeyError):
        engine.flight("job")


def raising(fault):
    def hook():
        raise fault()

    return hook


def test_out_of_memory_while_decoding_is_said_so_and_costs_no_other_job(engine, alone):
    done = denoised(engine, FIRST)
    engine.admit("other", SECOND)
    decoder = engine.parts.networks.autoencoder.decoder
    with hooked(decoder.mid_block, raising(torch.OutOfMemoryError)), pytest.raises(OutOfMemory) as caught:
        engine.decode(done)
    assert caught.value.__context__ is None  # a traceback would keep the decoder's tensors alive
    assert "smaller size" in str(caught.value)
    while events := engine.step():
        last = events[-1]
    assert same_pictures(engine.decode(last.denoised), alone[1])


def test_a_device_that_is_lost_while_decoding_is_said_so(engine):
    done = denoised(engine, FIRST)
    fault = raising(lambda: torch.AcceleratorError("an illegal memory access was encountered"))
    with hooked(engine.parts.networks.autoencoder.decoder, fault), pytest.raises(DeviceLost):
        engine.decode(done)


@pytest.mark.parametrize("form", ["channels_last", "compiled"])
def test_an_engine_takes_the_decoders_form_from_its_profile(engine, form):
    """Not the compiler: nothing is decoded here."""
    vae = engine.parts.networks.autoencoder
    before = {name: tensor.stride() for name, tensor in vae.state_dict().items()}
    try:
        profile = dataclasses.replace(PROFILES["tiny"], decoder_form=form)
        PulidFluxEngine(engine.parts, profile, torch.device("cpu"))
        assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert not vae.decoder.conv_in.weight.is_contiguous()
    finally:
        vae.to(memory_format=torch.contiguous_format)
    assert before == {name: tensor.stride() for name, tensor in vae.state_dict().items()}


# streams


class Stream:
    """Stands where CUDA's streams stand, and writes down who waits for whom."""

    def __init__(self, name, told):
        self.name = name
        self._told = told

    def wait_stream(self, other):
        self._told.append((self.name, "after", other.name))

    def wait_event(self, event):
        self._told.append((self.name, "after", event))

    def record_event(self):
        return f"what {self.name} has"

    def synchronize(self):
        self._told.append(("host", "after", self.name))


@pytest.fixture
def told(monkeypatch):
    """The order of waits of a device that has streams."""
    told = []
    steps = Stream("steps", told)

    @contextmanager
    def entered(stream):
        told.append((stream.name, "entered"))
        try:
            yield
        finally:
            told.append((stream.name, "left"))

    monkeypatch.setattr("torch.cuda.Stream", lambda device: Stream("side", told))
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: steps)
    monkeypatch.setattr("torch.cuda.stream", entered)
    return told


CUDA = torch.device("cuda")


def test_side_work_comes_after_the_weights_and_the_mark_and_is_done_at_its_end(told):
    side = SideStream(CUDA)
    assert told == [("side", "after", "steps")]
    told.clear()
    with side.work(after=mark(CUDA)):
        told.append("work")
    assert told == [
        ("side", "entered"),
        ("side", "after", "what steps has"),
        "work",
        ("host", "after", "side"),
        ("side", "left"),
    ]


def test_side_work_that_fails_is_waited_for_all_the_same(told):
    side = SideStream(CUDA)
    with pytest.raises(RuntimeError, match="broken"), side.work():
        raise RuntimeError("broken")
    assert ("host", "after", "side") in told


def test_on_the_cpu_nothing_has_a_stream():
    cpu = torch.device("cpu")
    assert mark(cpu) is None
    with SideStream(cpu).work(after=mark(cpu)):
        assert torch.ones(2).sum() == 2
