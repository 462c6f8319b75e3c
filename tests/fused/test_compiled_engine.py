"""Compiled while it warms up, the fused engine compiles nothing afterwards, and paints what it painted.

The backends here run graphs as they were traced: what differs to a compiler differs to them. Nothing is
built, so no C++ compiler is needed.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.portraits import generate, photo, portrait, results, within_one_level
from model.test_engine import DIFFERENT_REQUESTS, engine_like
from pulid.engine import Box, Person
from pulid.flux.compiled import agrees, compiled_blocks, graphs_made, uncompiled_calls
from pulid.flux.fused import PLAIN_BLOCKS, Blocks
from pulid.flux.kernels.choice import FILES, Kernels, triton_form
from pulid.profiles import PROFILES

PHOTOS = tuple(photo(name) for name in ("collins", "obama", "ardern"))
SIZES = [
    (256, 256), (256, 272), (272, 256), (304, 272), (320, 256), (256, 512), (512, 288),
    (400, 368), (256, 640), (336, 336), (288, 480), (640, 272), (512, 512),
]  # fmt: skip
LENGTHS = [128, 256, 384, 512]


@pytest.fixture(scope="module")
def engine():
    from pulid.seeded import seeded_engine

    return seeded_engine()


@pytest.fixture(scope="module")
def plain(engine):
    return engine_like(engine, transformer_form="fused")


@pytest.fixture
def compiler():
    """Empty before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module", params=["eager", pytest.param("aot_eager", marks=pytest.mark.release)])
def warm(engine, request):
    torch.compiler.reset()
    made = engine_like(engine, transformer_form="fused", compiles=True)
    made.warm_up(compiled_blocks(request.param))
    yield made
    torch.compiler.reset()


@pytest.fixture
def nothing_compiles(warm):
    """Nor runs uncompiled what should be compiled."""
    before = graphs_made(), uncompiled_calls()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert (graphs_made(), uncompiled_calls()) == before


# ---- after the warm-up ----


def test_the_engine_says_that_its_blocks_are_compiled(warm, plain):
    assert warm.info.details["blocks"] == "compiled"
    assert plain.info.details["blocks"] == "plain"


@pytest.mark.usefixtures("nothing_compiles")
def test_every_size_and_text_length_is_served_by_the_graphs_of_the_warm_up(warm):
    for (width, height), length in zip(SIZES, itertools.cycle(LENGTHS), strict=False):
        size = {"width": width, "height": height, "max_sequence_length": length}
        generate(warm, portrait(num_steps=1, **size))


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("true_cfg", [1.0, 2.0])
@pytest.mark.parametrize("num_outputs", [1, 2, 3])
def test_so_is_every_batch_with_and_without_people(warm, num_outputs, true_cfg):
    how = {"num_outputs": num_outputs, "true_cfg": true_cfg, "num_steps": 2, "seed": 3}
    for people in (
        (),
        (Person(photos=(0,)),),
        (Person(photos=(0,), start_step=1),),
        (Person(photos=(0, 1), fusion="concat"),),
        (Person(photos=(0, 1, 2), fusion="concat"),),
        (Person(photos=(0, 1, 2, 0), fusion="concat"),),
        (Person(photos=(0,), region=Box(left=0, top=0, right=0.5, bottom=1)), Person(photos=(1,))),
    ):
        generate(warm, portrait(None, id_images=PHOTOS if people else (), people=people, **how))


@pytest.mark.usefixtures("nothing_compiles")
def test_a_request_has_the_picture_that_it_has_uncompiled(warm, plain):
    together = results(warm, DIFFERENT_REQUESTS)
    for name, request in DIFFERENT_REQUESTS.items():
        for got, expected in zip(together[name].images, generate(plain, request).images, strict=True):
            assert got.std() > 1
            assert within_one_level(got, expected), name


def test_without_a_fitting_graph_the_blocks_run_uncompiled_at_once_and_are_counted(warm, plain):
    torch.compiler.reset()  # the last test with these graphs
    before, graphs = uncompiled_calls(), graphs_made()
    request = portrait(num_steps=1)
    assert np.array_equal(generate(warm, request).images[0], generate(plain, request).images[0])
    config = warm.parts.networks.transformer.config
    attentions = len(warm._attentions)
    assert uncompiled_calls() - before == config.num_layers + config.num_single_layers + attentions
    assert graphs_made() == graphs


# ---- where the compiler fails ----


def failing(graph, inputs):
    raise FileNotFoundError("no cc here")


def doubling(graph, inputs):
    return lambda *tensors: [2 * x if isinstance(x, torch.Tensor) else x for x in graph(*tensors)]


@pytest.mark.parametrize(
    ("backend", "note"), [(failing, "plain: FileNotFoundError"), (doubling, "plain: ComputesOtherwise")]
)
def test_the_plain_blocks_stay_and_the_engine_says_why(engine, plain, compiler, backend, note):
    made = engine_like(engine, transformer_form="fused", compiles=True)
    made.warm_up(compiled_blocks(backend))
    assert made.info.details["blocks"] == note
    before = graphs_made()
    request = DIFFERENT_REQUESTS["guided"]
    assert np.array_equal(generate(made, request).images[0], generate(plain, request).images[0])
    assert graphs_made() == before


def test_one_wrong_block_is_enough(engine, compiler):
    blocks = dataclasses.replace(
        PLAIN_BLOCKS, identity=lambda *inputs: 1.001 * PLAIN_BLOCKS.identity(*inputs)
    )
    made = engine_like(engine, transformer_form="fused")
    made.warm_up(blocks)
    assert made.info.details["blocks"] == "plain: ComputesOtherwise"


def test_too_little_memory_is_not_taken_for_a_compiler_that_fails(engine, compiler):
    def full(graph, inputs):
        raise torch.OutOfMemoryError

    made = engine_like(engine, transformer_form="fused", compiles=True)
    with pytest.raises(torch.OutOfMemoryError):
        made.warm_up(compiled_blocks(full))
    assert made._flux.blocks is PLAIN_BLOCKS


@pytest.mark.parametrize(("dtype", "allowed", "wrong"), [("float32", 1e-6, 1e-4), ("bfloat16", 5e-3, 2e-2)])
def test_noise_of_the_precision_agrees_and_more_does_not(dtype, allowed, wrong):
    exact = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).double()
    dtype = getattr(torch, dtype)
    assert agrees((exact * (1 + allowed)).to(dtype), exact.to(dtype))
    assert not agrees((exact * (1 + wrong)).to(dtype), exact.to(dtype))
    assert not agrees((exact * float("nan")).to(dtype), exact.to(dtype))
    assert not agrees(exact.to(dtype)[:1], exact.to(dtype))
    assert not agrees(exact, exact.to(dtype))


# ---- the warm-up itself ----


@pytest.mark.parametrize("form", [{}, {"transformer_form": "fused"}])
def test_a_warm_up_leaves_nothing_behind(engine, form):
    made = engine_like(engine, **form)
    torch.manual_seed(5)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    details = dict(made.info.details)
    made.warm_up()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert made._batch.rows == 0
    assert len(made._rotary_tables) == 0
    assert made.step() == []
    assert made.info.details == details


def test_only_the_fused_form_can_be_compiled():
    with pytest.raises(ValueError, match="'exact' compiles, so its transformer_form must be fused"):
        dataclasses.replace(PROFILES["exact"], compiles=True)
    assert not any(profile.compiles for profile in PROFILES.values())


# ---- with Triton's forms, which no CPU runs ----


class Answering:
    """Blocks whose graphs are made of Triton's forms, and answer with what the plain ones compute."""

    def __init__(self):
        self._kernels = Kernels(**{kernel: triton_form(kernel) for kernel in FILES})
        self._answer = []
        compiled = compiled_blocks(lambda graph, inputs: lambda *tensors: self._answer)
        self.blocks = Blocks(
            double=self._answered(PLAIN_BLOCKS.double, compiled.double),
            single=self._answered(PLAIN_BLOCKS.single, compiled.single),
            identity=self._answered(PLAIN_BLOCKS.identity, compiled.identity),
            note="answering",
        )

    def _answered(self, plain, compiled):
        def call(kernels, *inputs):
            expected = plain(kernels, *inputs)
            self._answer = list(expected) if isinstance(expected, tuple) else [expected]
            return compiled(self._kernels, *inputs)

        return call


@pytest.mark.release
@torch.inference_mode()
def test_with_tritons_forms_too_the_graphs_of_the_warm_up_serve_everything(engine, compiler, monkeypatch):
    pytest.importorskip("triton", reason="triton is made for Linux only")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    made = engine_like(engine, transformer_form="fused")
    start = graphs_made()
    made.warm_up(Answering().blocks)
    assert made.info.details["blocks"] == "answering"
    before = graphs_made()
    assert before > start
    for (width, height), length in zip(SIZES[:2], itertools.cycle(LENGTHS), strict=False):
        for photos, outputs, true_cfg in ((0, 1, 1.0), (1, 1, 1.0), (2, 3, 2.0), (4, 1, 2.0), (3, 3, 1.0)):
            request = portrait(
                None,
                num_steps=1, width=width, height=height, max_sequence_length=length,
                num_outputs=outputs, true_cfg=true_cfg,
            )  # fmt: skip
            made._try_steps([(request, photos)])
    assert graphs_made() == before
