"""The loader reads a complete set of files, in either layout, and paints what the originals paint."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from files import flux_layouts
from model.portraits import picture, within_one_level
from pulid.errors import DeviceUnavailable, WeightsMissing
from pulid.identity.eva_clip import EvaClipVision
from pulid.load import load_engine, load_networks, load_text_encoder, require_all
from pulid.parts import Parts
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES
from pulid.tiny import TINY, tiny_engine
from weights.paths import model_paths

CPU = torch.device("cpu")


def contiguous(state):
    return {key: tensor.contiguous() for key, tensor in state.items()}


def published_eva_state(eva: EvaClipVision):
    """The tower under the names of the EVA-CLIP `.pt` file, with its text tower and tables beside it."""
    from pulid.identity.eva_clip import _AsPublished

    state = _AsPublished(eva.tower, "visual.").state_dict()
    return {**state, "text.proj": torch.zeros(2), "logit_scale": torch.zeros(())}


@pytest.fixture(scope="module")
def original():
    return tiny_engine()


@pytest.fixture(scope="module", params=["folders", "single files"])
def weights_home(request, original, tmp_path_factory):
    """A weights folder in the real layouts, with the tiny profile's tensors in it."""
    home = tmp_path_factory.mktemp("weights")
    flux = home / "FLUX.1-dev"
    flux.mkdir()
    networks, text = original.parts.networks, original.parts.text
    if request.param == "folders":
        networks.transformer.save_pretrained(flux / "transformer", max_shard_size="1MB")
        networks.autoencoder.save_pretrained(flux / "vae")
    else:
        transformer = flux_layouts.bfl_transformer(networks.transformer.state_dict())
        save_file(contiguous(transformer), flux / "flux1-dev.safetensors")
        autoencoder = flux_layouts.bfl_autoencoder(networks.autoencoder.state_dict())
        save_file(contiguous(autoencoder), flux / "ae.safetensors")
    text._t5.save_pretrained(flux / "text_encoder_2")
    text._t5_tokenizer.save_pretrained(flux / "tokenizer_2")
    text._clip.save_pretrained(flux / "text_encoder")
    text._clip_tokenizer.save_pretrained(flux / "tokenizer")
    pulid = {
        **{f"pulid_encoder.{k}": v for k, v in networks.idformer.state_dict().items()},
        **{f"pulid_ca.{k}": v for k, v in networks.identity_attentions.state_dict().items()},
    }
    save_file(contiguous(pulid), home / "pulid_flux_v0.9.1.safetensors")
    torch.save(published_eva_state(networks.eva_clip), home / "EVA02_CLIP_L_336_psz14_s6B.pt")
    return home


def test_an_engine_from_files_paints_the_same_picture(original, weights_home):
    paths = model_paths(weights_home)
    loaded = PulidFluxEngine(
        Parts(
            networks=load_networks(TINY, paths, torch.float32, CPU),
            text=load_text_encoder(paths, torch.float32, CPU),
            faces=original.parts.faces,
        ),
        PROFILES["tiny"],
        CPU,
    )
    # Mapped files are aligned differently in memory, which moves the last bit of some sums.
    assert within_one_level(picture(loaded, true_cfg=2.0), picture(original, true_cfg=2.0))


def test_networks_are_cast_and_the_autoencoder_stays_float32(weights_home):
    networks = load_networks(TINY, model_paths(weights_home), torch.bfloat16, CPU)
    dtypes = {
        field.name: {p.dtype for p in getattr(networks, field.name).parameters()}
        for field in dataclasses.fields(networks)
    }
    assert dtypes.pop("autoencoder") == {torch.float32}
    assert set(map(frozenset, dtypes.values())) == {frozenset({torch.bfloat16})}


def test_every_missing_checkpoint_is_named_with_its_path(tmp_path):
    paths = model_paths(tmp_path)
    with pytest.raises(WeightsMissing) as raised:
        require_all(paths)
    for field in dataclasses.fields(paths):
        assert f"{field.name}: {getattr(paths, field.name)}" in str(raised.value)
    assert "profile tiny" in str(raised.value)


def test_a_cuda_profile_never_falls_back_to_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="needs a CUDA device"):
        load_engine(PROFILES["exact"], model_paths(tmp_path), "cuda")
