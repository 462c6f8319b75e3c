"""Every published layout of FLUX loads strictly, by key and shape, without memory (meta device)."""

import pytest
import torch

from files import flux_layouts
from golden import goldens
from pulid.errors import WeightsMissing
from pulid.flux import checkpoint
from pulid.flux.text import load_clip, load_t5
from pulid.load import pulid_modules
from pulid.parts import FLUX_DEV, build_networks, build_text_models
from pulid.seeded import SMALL, seeded_networks
from pulid.strict_load import load_strictly, shapes_of
from weights.tables import table


@pytest.fixture(scope="module")
def networks():
    """At full size, without weights."""
    return build_networks(FLUX_DEV)


def load_transformer(network, state):
    wanted = shapes_of(network.state_dict())
    load_strictly(network, checkpoint.diffusers_transformer(state, wanted), "FLUX transformer")


def load_autoencoder(network, state):
    wanted = shapes_of(network.state_dict())
    load_strictly(network, checkpoint.diffusers_autoencoder(state, wanted), "FLUX autoencoder")


@pytest.mark.parametrize(("layout", "keys"), [("bfl", 780), ("diffusers", 1160)])
def test_the_transformer_loads_from_both_layouts(networks, layout, keys):
    state = goldens.meta_state(goldens.shapes(f"flux1-dev_transformer_{layout}"))
    assert len(state) == keys
    load_transformer(networks.transformer, state)
    assert sum(p.numel() for p in networks.transformer.parameters()) == 11_901_408_320


def test_the_autoencoder_loads_from_both_layouts(networks):
    bfl = goldens.meta_state(goldens.shapes("flux1-dev_ae_bfl"))
    assert len(bfl) == 244
    diffusers = {
        rule["diffusers"]: bfl[rule["bfl"]].flatten(1) if rule["op"] != "copy" else bfl[rule["bfl"]]
        for rule in goldens.shapes("ae_bfl_to_diffusers_map")
    }
    for state in (bfl, diffusers):
        load_autoencoder(networks.autoencoder, state)
    assert sum(p.numel() for p in networks.autoencoder.parameters()) == 83_819_683


@pytest.mark.parametrize(
    ("network", "recorded", "shapes_in_file"),
    [
        ("transformer", "flux1-dev_transformer_bfl", checkpoint.bfl_transformer_shapes),
        ("autoencoder", "flux1-dev_ae_bfl", checkpoint.bfl_autoencoder_shapes),
    ],
)
def test_what_bfls_files_hold_is_known_from_the_network_alone(networks, network, recorded, shapes_in_file):
    wanted = shapes_in_file(shapes_of(getattr(networks, network).state_dict()))
    assert wanted == {key: tuple(shape) for key, shape in goldens.shapes(recorded).items()}


def test_pulid_loads_into_its_two_modules(networks):
    state = goldens.meta_state(goldens.shapes("pulid_flux_v0.9.1"))
    assert len(state) == 312
    modules = pulid_modules(networks)
    load_strictly(modules, state, "PuLID-FLUX")
    assert sum(p.numel() for p in networks.idformer.parameters()) == 151_398_400
    assert sum(p.numel() for p in modules.parameters()) == 571_033_600


def test_a_checkpoint_that_is_not_pulid_is_named(networks):
    with pytest.raises(WeightsMissing, match=r"PuLID-FLUX.*1 keys are unknown \(unet\.weight\)"):
        load_strictly(pulid_modules(networks), {"unet.weight": torch.empty(1)}, "PuLID-FLUX")


@pytest.mark.parametrize(
    ("name", "load", "parameters"),
    [("t5-xxl", load_t5, 4_762_310_656), ("clip-l", load_clip, 123_060_480)],
)
def test_text_models_load_from_the_published_layouts(name, load, parameters):
    model = dict(zip(("t5-xxl", "clip-l"), build_text_models(FLUX_DEV), strict=True))[name]
    load(model, goldens.meta_state(table(name)))
    assert sum(p.numel() for p in model.parameters()) == parameters


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: without(s, "img_in.bias"), r"1 keys are missing \(img_in\.bias\)"),
        (lambda s: {**s, "stray.key": s["img_in.bias"]}, r"1 keys are unknown \(stray\.key\)"),
        (
            lambda s: {**s, "single_blocks.3.linear1.weight": torch.empty(7, 3072, device="meta")},
            r"single_blocks\.3\.linear1\.weight is \(7, 3072\), expected \(21504, 3072\)",
        ),
        (
            lambda s: {**s, "double_blocks.0.img_attn.qkv.weight": torch.empty((), device="meta")},
            r"double_blocks\.0\.img_attn\.qkv\.weight is \(\), expected \(9216, 3072\)",
        ),
        (
            lambda s: {**s, "txt_in.weight": s["txt_in.weight"].to(torch.int8)},
            r"1 tensors are of a kind that is not read \(txt_in\.weight is int8\)",
        ),
    ],
    ids=["missing", "unknown", "shape", "no-dimensions", "integers"],
)
def test_a_damaged_transformer_is_refused_by_the_names_in_its_file(networks, damage, message):
    state = damage(goldens.meta_state(goldens.shapes("flux1-dev_transformer_bfl")))
    with pytest.raises(WeightsMissing, match=message):
        load_transformer(networks.transformer, state)


@pytest.mark.parametrize("scales", ["scaled_fp8", "double_blocks.0.img_attn.qkv.scale_weight"])
def test_a_quantised_file_with_scales_beside_its_weights_is_refused_in_words(networks, scales):
    state = goldens.meta_state(goldens.shapes("flux1-dev_transformer_bfl"))
    state[scales] = torch.empty(1, device="meta")
    with pytest.raises(WeightsMissing, match=f"quantised in a form.*{scales}.*only plain casts"):
        load_transformer(networks.transformer, state)


def test_values_survive_the_way_through_bfls_layout():
    """Every tensor lands where it belongs: halves swapped, fused matrices split, levels reversed."""
    tiny, built = seeded_networks(), build_networks(SMALL)
    for name, to_bfl, load in (
        ("transformer", flux_layouts.bfl_transformer, load_transformer),
        ("autoencoder", flux_layouts.bfl_autoencoder, load_autoencoder),
    ):
        state = getattr(tiny, name).state_dict()
        load(getattr(built, name), to_bfl(state))
        again = getattr(built, name).state_dict()
        assert set(again) == set(state)
        assert all(torch.equal(again[key], state[key]) for key in state)
