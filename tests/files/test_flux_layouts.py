"""Every published layout of FLUX loads strictly, by key and shape, without memory (meta device)."""

import pytest
import torch

from files import flux_layouts
from golden import goldens
from pulid.errors import WeightsMissing
from pulid.flux import checkpoint
from pulid.load import split_pulid
from pulid.parts import FLUX_DEV, build_networks
from pulid.strict_load import load_strictly
from pulid.tiny import tiny_networks


@pytest.fixture(scope="module")
def networks():
    """At full size, without weights."""
    return build_networks(FLUX_DEV)


def transformer_layout(state):
    return checkpoint.diffusers_layout(state, checkpoint.is_bfl_transformer, checkpoint.transformer_tensors)


def autoencoder_layout(state):
    return checkpoint.diffusers_layout(state, checkpoint.is_bfl_autoencoder, checkpoint.autoencoder_tensors)


@pytest.mark.parametrize(("layout", "keys"), [("bfl", 780), ("diffusers", 1160)])
def test_the_transformer_loads_from_both_layouts(networks, layout, keys):
    state = goldens.meta_state(goldens.shapes(f"flux1-dev_transformer_{layout}"))
    assert len(state) == keys
    load_strictly(networks.transformer, transformer_layout(state), "FLUX transformer")
    assert sum(p.numel() for p in networks.transformer.parameters()) == 11_901_408_320


def test_the_autoencoder_loads_from_both_layouts(networks):
    bfl = goldens.meta_state(goldens.shapes("flux1-dev_ae_bfl"))
    assert len(bfl) == 244
    diffusers = {
        rule["diffusers"]: bfl[rule["bfl"]].flatten(1) if rule["op"] != "copy" else bfl[rule["bfl"]]
        for rule in goldens.shapes("ae_bfl_to_diffusers_map")
    }
    for state in (bfl, diffusers):
        load_strictly(networks.autoencoder, autoencoder_layout(state), "FLUX autoencoder")
    assert sum(p.numel() for p in networks.autoencoder.parameters()) == 83_819_683


def test_pulid_loads_into_its_two_modules(networks):
    state = goldens.meta_state(goldens.shapes("pulid_flux_v0.9.1"))
    assert len(state) == 312
    encoder, attentions = split_pulid(state)
    assert (len(encoder), len(attentions)) == (172, 140)
    load_strictly(networks.idformer, encoder, "PuLID")
    load_strictly(networks.identity_attentions, attentions, "PuLID")


def test_a_checkpoint_that_is_not_pulid_is_named():
    with pytest.raises(WeightsMissing, match=r"unet\.weight"):
        split_pulid({"unet.weight": torch.empty(1)})


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: without(s, "img_in.bias"), r"1 keys are missing \(x_embedder\.bias\)"),
        (lambda s: {**s, "stray.key": s["img_in.bias"]}, r"1 keys are unknown \(stray\.key\)"),
        (
            lambda s: {**s, "img_in.bias": torch.empty(7, device="meta")},
            r"x_embedder\.bias is \(7,\), expected \(3072,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_damaged_transformer_is_refused_by_name(networks, damage, message):
    state = damage(goldens.meta_state(goldens.shapes("flux1-dev_transformer_bfl")))
    with pytest.raises(WeightsMissing, match=message):
        load_strictly(networks.transformer, transformer_layout(state), "FLUX transformer")


def test_values_survive_the_way_through_bfls_layout():
    """Every tensor lands where it belongs: halves swapped, fused matrices split, levels reversed."""
    tiny = tiny_networks()
    for network, to_bfl, from_bfl in (
        (tiny.transformer, flux_layouts.bfl_transformer, transformer_layout),
        (tiny.autoencoder, flux_layouts.bfl_autoencoder, autoencoder_layout),
    ):
        state = network.state_dict()
        again = from_bfl(to_bfl(state))
        assert set(again) == set(state)
        assert all(torch.equal(again[key], state[key]) for key in state)
