"""What the identity encoder shows to its networks, and in which order: the classic mistakes, caught small.

Small random networks, no recorded numbers. Each expectation is written down again here, from
PULID_SPEC.md section 3, rather than taken from the code under test.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from golden import golden_fill
from pulid.identity.encoder import (
    IdentityEncoder,
    identity_condition,
    normalise_for_clip,
    resize_for_vision,
    white_background_gray_face,
)
from pulid.identity.eva_clip import EvaClipVision, tap_indices
from pulid.identity.face import FaceCrop
from pulid.identity.idformer import IDFormer

HAIR, SKIN = 17, 1
BACKGROUND_EARS_NECK_CLOTHES_HAT = {0, 7, 8, 9, 14, 15, 16, 18}


def small_networks():
    eva = EvaClipVision(image_size=42, patch_size=14, width=32, depth=12, heads=2, embed_dim=16)
    idformer = IDFormer(
        dim=32,
        depth=5,
        dim_head=16,
        heads=2,
        num_id_token=2,
        num_queries=4,
        output_dim=24,
        ff_mult=2,
        id_dim=512 + 16,
        vision_dim=32,
    )
    return golden_fill.fill_(eva).requires_grad_(False), golden_fill.fill_(idformer).requires_grad_(False)


def small_encoder(**how):
    return IdentityEncoder(*small_networks(), **{"device": "cpu", "dtype": torch.float32, **how})


@pytest.fixture(scope="module")
def encoder():
    return small_encoder()


def face(name="anna"):
    return FaceCrop(
        face_embedding=golden_fill.normal(name, (512,)),
        aligned=golden_fill.image_u8(name, 512, 512),
        labels=golden_fill.labels(name, 512, 512, 19).astype(np.uint8),
    )


@pytest.fixture
def anna():
    return face("anna")


def test_a_face_is_encoded_as_the_specification_says(encoder, anna):
    """All of section 3, steps 5 to 12, in NumPy where possible."""
    gray = anna.aligned / 255.0 @ np.array([0.299, 0.587, 0.114])
    gray[np.isin(anna.labels, list(BACKGROUND_EARS_NECK_CLOTHES_HAT))] = 1.0
    shown = torch.from_numpy(gray).float().expand(1, 3, 512, 512)
    shown = torch.nn.functional.interpolate(shown, size=(42, 42), mode="bicubic", antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pooled, hidden_states = encoder.eva((shown - mean) / std)
    condition = torch.cat([torch.from_numpy(anna.face_embedding)[None], pooled / pooled.norm()], dim=1)
    tokens = encoder.encode(anna)
    assert tokens.shape == (1, 4, 24)
    torch.testing.assert_close(tokens, encoder.idformer(condition, hidden_states), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", range(19))
def test_everything_but_the_head_and_its_hair_turns_white(label):
    image = torch.full((1, 3, 4, 4), 0.5)
    shown = white_background_gray_face(image, torch.full((4, 4), label))
    expected = 1.0 if label in BACKGROUND_EARS_NECK_CLOTHES_HAT else 0.5
    torch.testing.assert_close(shown, torch.full((1, 3, 4, 4), expected))


def test_hair_stays():
    dark = torch.zeros(1, 3, 4, 4)
    assert white_background_gray_face(dark, torch.full((4, 4), HAIR)).max() == 0


@pytest.mark.parametrize(("channel", "luma"), [(0, 0.299), (1, 0.587), (2, 0.114)])
def test_colours_never_reach_the_vision_tower(channel, luma):
    image = torch.zeros(1, 3, 4, 4)
    image[:, channel] = 1
    shown = white_background_gray_face(image, torch.full((4, 4), SKIN))
    torch.testing.assert_close(shown, torch.full((1, 3, 4, 4), luma))


def test_the_first_channel_of_a_crop_is_red(encoder):
    """A crop in BGR would look darker here: red has more luma than blue."""
    red = np.zeros((512, 512, 3), np.uint8)
    red[..., 0] = 255
    skin = np.full((512, 512), SKIN, np.uint8)
    shown = encoder.vision_pixels(
        FaceCrop(face_embedding=np.zeros(512, np.float32), aligned=red, labels=skin)
    )
    torch.testing.assert_close(shown, normalise_for_clip(torch.full((1, 3, 42, 42), 0.299)))


def test_a_batch_of_label_maps_belongs_to_its_pictures():
    image = torch.zeros(2, 3, 4, 4)
    labels = torch.stack([torch.full((4, 4), SKIN), torch.full((4, 4), 0)])
    first, second = white_background_gray_face(image, labels)
    assert first.max() == 0
    assert second.min() == 1


def checkerboard(size=512):
    cells = torch.arange(size)
    return ((cells[:, None] + cells) % 2).float().expand(1, 3, size, size)


def test_shrinking_is_antialiased_unless_told_otherwise():
    """A board of single pixels is an even gray to an antialiased resize, and noise to the other."""
    assert resize_for_vision(checkerboard(), 336).std() < 0.05
    assert resize_for_vision(checkerboard(), 336, antialias=False).std() > 0.2


def test_an_encoder_is_antialiased_unless_told_otherwise(encoder, anna):
    with_it, without = small_encoder(antialias=True), small_encoder(antialias=False)
    torch.testing.assert_close(encoder.vision_pixels(anna), with_it.vision_pixels(anna), rtol=0, atol=0)
    assert (with_it.vision_pixels(anna) - without.vision_pixels(anna)).abs().max() > 0.1


def test_the_overshoot_of_the_bicubic_resize_is_kept():
    step = torch.zeros(1, 3, 512, 512)
    step[..., 200:] = 1
    resized = resize_for_vision(step, 336)
    assert resized.max() > 1.01
    assert resized.min() < -0.01


def test_arcface_comes_first_and_as_it_is_and_the_pooled_vector_at_length_one():
    face_embedding, pooled = torch.full((1, 512), 7.0), torch.full((1, 16), 3.0)
    condition = identity_condition(face_embedding, pooled)
    torch.testing.assert_close(condition[:, :512], face_embedding)
    torch.testing.assert_close(condition[:, 512:], torch.full((1, 16), 0.25))


def test_the_taps_are_the_streams_entering_the_blocks_after_them():
    eva, _ = small_networks()
    entering = {}
    for index, block in enumerate(eva.tower.blocks):
        block.register_forward_pre_hook(lambda _, args, index=index: entering.update({index: args[0]}))
    _, hidden_states = eva(golden_fill.tensor("pixels", (1, 3, 42, 42)))
    assert [state.shape for state in hidden_states] == [(1, 10, 32)] * 5
    for index, state in zip((2, 4, 6, 8, 10), hidden_states, strict=True):
        assert torch.equal(state, entering[index]), f"tap before block {index}"


@pytest.mark.parametrize(
    ("depth", "taps"), [(24, [3, 7, 11, 15, 19]), (12, [1, 3, 5, 7, 9]), (6, [0, 1, 2, 3, 4])]
)
def test_taps_are_spread_over_a_tower_of_any_depth(depth, taps):
    assert tap_indices(depth) == taps


def test_a_tower_too_shallow_for_five_taps_is_refused():
    with pytest.raises(ValueError, match="5 blocks"):
        tap_indices(5)


def test_nobody_is_idformer_of_zeros_and_not_zero(encoder):
    zeros = torch.zeros(1, 10, 32)  # class token and 3x3 patches, as of a real face
    expected = encoder.idformer(torch.zeros(1, 528), [zeros] * 5)
    assert encoder.unconditional().abs().max() > 0.1
    torch.testing.assert_close(encoder.unconditional(), expected)


def test_nobody_is_computed_once_and_is_no_face(encoder, anna):
    nobody = encoder.unconditional()
    tokens = encoder.encode(anna)
    assert encoder.unconditional() is nobody
    assert (tokens - nobody).abs().max() > 0.1


def test_pictures_are_made_in_float32_and_cast_last(anna):
    exact, rounded = small_encoder(), small_encoder(dtype=torch.bfloat16)
    assert torch.equal(rounded.vision_pixels(anna), exact.vision_pixels(anna).bfloat16())
    assert rounded.encode(anna).dtype == torch.bfloat16
    assert rounded.eva.tower.rope.pos_embed.dtype == torch.bfloat16  # as the reference casts it
    error = (rounded.encode(anna).float() - exact.encode(anna)).norm() / exact.encode(anna).norm()
    assert error < 0.05


def test_arrays_may_be_read_only_and_reversed(encoder, anna):
    bgr = np.ascontiguousarray(anna.aligned[:, :, ::-1])
    for array in (bgr, anna.labels, anna.face_embedding):
        array.setflags(write=False)
    seen = FaceCrop(anna.face_embedding, aligned=bgr[:, :, ::-1], labels=anna.labels)
    assert torch.equal(encoder.encode(seen), encoder.encode(anna))


def test_threads_may_share_an_encoder(encoder):
    faces = [face(name) for name in ("anna", "bert", "carl", "dora")]
    one_by_one = [encoder.encode(each) for each in faces]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(encoder.encode, faces * 4))
    for index, tokens in enumerate(together):
        torch.testing.assert_close(tokens, one_by_one[index % 4])


def test_encoding_leaves_nothing_on_the_networks_and_no_graph(anna):
    eva, idformer = small_networks()
    for parameter in (*eva.parameters(), *idformer.parameters()):
        parameter.requires_grad_(True)
    encoder = IdentityEncoder(eva, idformer, device="cpu", dtype=torch.float32)
    attributes = [set(vars(module)) for module in (*eva.modules(), *idformer.modules())]
    assert not encoder.encode(anna).requires_grad
    assert not encoder.unconditional().requires_grad
    assert [set(vars(module)) for module in (*eva.modules(), *idformer.modules())] == attributes


def test_several_photos_of_one_person_share_one_set_of_tokens(encoder):
    hidden_states = [golden_fill.tensor(f"hidden{i}", (1, 10, 32)) for i in range(5)]
    photos = golden_fill.tensor("photos", (1, 3, 528))
    together = encoder.idformer(photos, hidden_states)
    assert together.shape == (1, 4, 24)
    assert (together - encoder.idformer(photos[:, 0], hidden_states)).abs().max() > 0.01


def test_the_feed_forward_has_the_exact_gelu(encoder):
    """The tanh form is off by less than the recorded numbers' tolerance, so they do not see it."""
    _, feed_forward = encoder.idformer.layers[0]
    norm, widen, _, narrow = feed_forward
    latents = golden_fill.tensor("latents", (1, 6, 32), scale=3)
    x = widen(norm(latents))
    expected = narrow(x * (1 + torch.erf(x / 2**0.5)) / 2)
    torch.testing.assert_close(feed_forward(latents), expected, rtol=1e-5, atol=1e-5)


def test_a_depth_that_does_not_divide_by_the_scales_is_refused():
    with pytest.raises(ValueError, match="multiple of 5"):
        IDFormer(depth=7)


@pytest.mark.parametrize("count", [4, 6])
def test_any_other_number_of_hidden_states_is_refused(encoder, count):
    with pytest.raises(ValueError, match="zip"):
        encoder.idformer(torch.zeros(1, 528), [torch.zeros(1, 10, 32)] * count)
