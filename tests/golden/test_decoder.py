"""The decoder in all its forms: the recorded picture, every size of picture, and one graph for all of them.

The compiler's backend here changes no arithmetic; what a GPU's compiler makes of the graph is not tested.
"""

import pytest
import torch
from diffusers import AutoencoderKL
from torch._dynamo.utils import counters

from golden import golden_fill, goldens
from pulid.flux.decoder import Decoder
from pulid.flux.latents import to_uint8

# diffusers asks for torch's version within its upsampling, by a function that remembers its answer.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
)

FORMS = ["plain", "channels_last"]  # the compiled one is held against the plain one below
SIZES = [(64, 64), (128, 48), (16, 256), (176, 144)]
# On the CPU small pictures are convolved otherwise, and that choice is part of a graph: more than 1280 cells.
LARGER_SIZES = [(288, 304), (320, 320), (512, 176)]
ROUNDING = 3e-5  # of float32, through sixty layers
(CASE,) = goldens.cases("extra", "vae_decode")


@pytest.fixture(autouse=True)
def forgetful_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def recorded_vae():
    vae = AutoencoderKL(**CASE["autoencoder_kl_config"]).requires_grad_(False).eval()
    golden_fill.fill_(vae, CASE["fill"]["seed"], CASE["fill"]["prefix"])
    return vae


def decoder(form, dtype=torch.float32):
    return Decoder(recorded_vae(), dtype, form, backend="eager")


def noise(height, width):
    """Packed latents as a denoised picture's are: around 0, up to a few."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return 2 * torch.randn(1, height // 16 * (width // 16), 64, generator=generator)


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_decoding_is_the_references(form):
    vae = recorded_vae()
    assert golden_fill.fingerprint(vae, CASE["fill"]["prefix"]) == CASE["fill"]["crc32"]
    packed = goldens.inputs(CASE)["packed"]
    decoded = Decoder(vae, torch.float32, form, backend="eager").decode(packed, CASE["height"], CASE["width"])
    goldens.assert_close(decoded[..., ::2, ::2], goldens.expected(CASE, "decoded_sub"), CASE["tol"])
    (image,) = to_uint8(decoded)
    difference = torch.from_numpy(image).int() - goldens.expected(CASE, "image_u8").int()
    assert difference.abs().max() <= CASE["tol_levels"]


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_a_bfloat16_engine_decodes_under_autocast_with_float32_weights(form):
    """The recorded float32 picture within bfloat16's reach, in bfloat16: norms in float32, the rest not."""
    packed = goldens.inputs(CASE)["packed"].bfloat16()
    decoded = decoder(form, torch.bfloat16).decode(packed, CASE["height"], CASE["width"])
    assert decoded.dtype == torch.bfloat16
    error = golden_fill.compare(decoded[..., ::2, ::2], goldens.expected(CASE, "decoded_sub"))[0]
    assert 1e-3 < error < 0.05


@torch.inference_mode()
def test_with_channels_last_every_size_is_the_plain_picture_but_for_rounding():
    plain, other = decoder("plain"), decoder("channels_last")
    for height, width in SIZES:
        packed = noise(height, width)
        expected = plain.decode(packed, height, width)
        assert expected.shape == (1, 3, height, width)
        goldens.assert_close(other.decode(packed, height, width), expected, ROUNDING)


@torch.inference_mode()
def test_channels_are_innermost_from_the_first_layer_to_the_last():
    vae = recorded_vae()
    layouts = []
    for module in vae.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: layouts.extend(
                    x.is_contiguous(memory_format=torch.channels_last) for x in (inputs[0], output)
                )
            )
    Decoder(vae, torch.float32, "channels_last").decode(noise(64, 96), 64, 96)
    assert len(layouts) > 60
    assert [number for number, is_last in enumerate(layouts) if not is_last] == []


@torch.inference_mode()
def test_one_graph_serves_every_size():
    compiled, plain = decoder("compiled"), decoder("plain")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for height, width in LARGER_SIZES:
            packed = noise(height, width)
            got = compiled.decode(packed, height, width)
            goldens.assert_close(got, plain.decode(packed, height, width), ROUNDING)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def out_of_order(latents, **options):
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda network: out_of_order, "channels_last: RuntimeError"),
        (
            lambda network: lambda x, **options: network(1.1 * x, **options),
            "channels_last: ComputesOtherwise",
        ),
        (
            lambda network: lambda x, **options: network(x + torch.nan, **options),
            "channels_last: ComputesOtherwise",
        ),
        (lambda network: lambda x, **options: network(x, **options), "channels_last"),
    ],
)
@torch.inference_mode()
def test_a_compiled_form_that_fails_or_computes_otherwise_is_not_used(change, note):
    made, plain = decoder("channels_last"), decoder("plain")
    made._network = change(made._network)
    made.prove(noise(64, 96), 64, 96)
    assert made.note == note
    packed = noise(128, 48)
    goldens.assert_close(made.decode(packed, 128, 48), plain.decode(packed, 128, 48), ROUNDING)


@torch.inference_mode()
def test_want_of_memory_is_not_the_compilers_fault():
    def full(latents, **options):
        raise torch.OutOfMemoryError

    made = decoder("channels_last")
    made._network = full
    with pytest.raises(torch.OutOfMemoryError):
        made.prove(noise(64, 96), 64, 96)


@torch.inference_mode()
def test_several_pictures_are_decoded_one_after_the_other():
    made = decoder("plain")
    rows = torch.cat([noise(64, 96), 0.5 * noise(64, 96)])
    alone = [made.pictures(row[None], 64, 96)[0] for row in rows]
    seen = []
    made._network, network = lambda x, **k: seen.append(len(x)) or network(x, **k), made._network
    both = made.pictures(rows, 64, 96)
    assert seen == [1, 1]
    assert all((got == expected).all() for got, expected in zip(both, alone, strict=True))
