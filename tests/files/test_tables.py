"""The tables of keys and shapes are those of the recorded layouts and of the classes that load them."""

import math

import pytest
from transformers import CLIPTextModel, T5EncoderModel

from files import published_tables
from golden import goldens
from pulid.parts import FLUX_DEV, build_networks
from weights.manifest import MANIFEST
from weights.pickles import TensorInfo
from weights.tables import differences, table

NAMES = sorted({checkpoint.table for checkpoint in MANIFEST if checkpoint.table})


@pytest.fixture(scope="module")
def published():
    return published_tables.published()


@pytest.fixture(scope="module")
def networks():
    return build_networks(FLUX_DEV)


def complete(name, dtype="F32"):
    return {key: TensorInfo(dtype, shape) for key, shape in table(name).items()}


def numbers(shapes):
    return {key: tuple(shape) for key, shape in shapes.items()}


def test_the_manifest_names_the_tables_that_there_are():
    assert sorted(path.name.removesuffix(".json.gz") for path in published_tables.TABLES.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_table_holds_what_is_published(published, name):
    kept = table(name)
    assert dict(kept) == numbers(published[name]["required"])
    assert kept.optional == numbers(published[name]["optional"])
    assert kept.dtypes == set(published[name]["dtypes"])
    assert all(kept.ignores(pattern.replace("*", "x")) for pattern in published[name]["ignored"])
    assert not any(kept.ignores(key) for key in kept)


def test_the_sizes_are_the_published_ones():
    elements = {name: sum(math.prod(shape) for shape in table(name).values()) for name in NAMES}
    assert elements["flux-transformer-bfl"] == elements["flux-transformer-diffusers"] == 11_901_408_320
    assert elements["flux-autoencoder-bfl"] == elements["flux-autoencoder-diffusers"] == 83_819_683
    assert elements["t5-xxl"] * 2 == 9_524_621_312  # bytes that the published index states
    assert elements["clip-l"] == 123_060_480
    assert elements["pulid-flux"] == 571_033_600


def test_the_loaders_networks_have_the_shapes_of_the_tables(networks):
    """Those whose file is in the layout of the class; test_flux_layouts shows the others converted."""
    for name, network in {
        "flux-transformer-diffusers": networks.transformer,
        "flux-autoencoder-diffusers": networks.autoencoder,
    }.items():
        assert dict(table(name)) == {key: tuple(t.shape) for key, t in network.state_dict().items()}


def test_the_autoencoders_two_layouts_are_one_by_the_recorded_map():
    bfl, diffusers = table("flux-autoencoder-bfl"), table("flux-autoencoder-diffusers")
    rules = goldens.shapes("ae_bfl_to_diffusers_map")
    assert {rule["bfl"] for rule in rules} == set(bfl)
    assert {rule["diffusers"] for rule in rules} == set(diffusers)
    assert all(math.prod(bfl[rule["bfl"]]) == math.prod(diffusers[rule["diffusers"]]) for rule in rules)


NARROW_T5 = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_heads": 2}
NARROW_CLIP = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "network", "published_config", "narrow", "prefix"),
    [
        ("t5-xxl", T5EncoderModel, published_tables.T5_XXL, NARROW_T5, ""),
        ("clip-l", CLIPTextModel, published_tables.CLIP_L, NARROW_CLIP, "text_model."),
    ],
)
def test_transformers_loads_the_published_keys_of_the_text_encoders(
    name, network, published_config, narrow, prefix
):
    """At the published depth, but narrow: what transformers itself calls the tensors may differ."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = type(published_config)(**published_config.to_dict() | narrow | ends)
    own = network(config).state_dict()
    state = {key: own[key.removeprefix(prefix)] for key in table(name)}
    _, report = network.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("name", NAMES)
def test_a_complete_checkpoint_does_not_differ(name):
    assert differences(complete(name), table(name)) == ""


def test_keys_of_other_parts_are_ignored_and_optional_ones_may_be_there():
    eva = complete("eva-clip", "F16")
    others = ("text.proj", "logit_scale", "visual.rope.freqs_cos", "visual.blocks.3.attn.rope.freqs_sin")
    assert differences(eva | dict.fromkeys(others, TensorInfo("I64", (7,))), table("eva-clip")) == ""
    t5 = complete("t5-xxl") | {"encoder.embed_tokens.weight": TensorInfo("BF16", (32128, 4096))}
    assert differences(t5, table("t5-xxl")) == ""
    clip = complete("clip-l") | {"text_model.embeddings.position_ids": TensorInfo("I64", (1, 77))}
    assert differences(clip, table("clip-l")) == ""


def test_an_optional_key_must_have_its_shape():
    t5 = complete("t5-xxl") | {"encoder.embed_tokens.weight": TensorInfo("BF16", (5, 4096))}
    assert differences(t5, table("t5-xxl")) == (
        "1 shapes differ (encoder.embed_tokens.weight is [5, 4096], expected [32128, 4096])"
    )


def test_each_difference_is_told_with_four_examples():
    tensors = complete("retinaface")
    for key in sorted(tensors)[:6]:
        del tensors[key]
    tensors["stray"] = TensorInfo("F32", (1,))
    tensors["body.layer4.2.bn3.bias"] = TensorInfo("F16", (3,))
    assert differences(tensors, table("retinaface")) == (
        "6 keys are missing (BboxHead.0.conv1x1.bias, BboxHead.0.conv1x1.weight, BboxHead.1.conv1x1.bias,"
        " BboxHead.1.conv1x1.weight, and 2 more); 1 keys are unknown (stray);"
        " 1 shapes differ (body.layer4.2.bn3.bias is [3], expected [2048]);"
        " 1 tensors have an unusable dtype (body.layer4.2.bn3.bias is F16)"
    )


def test_only_the_large_models_may_be_of_eight_bits():
    of_eight = {name for name in NAMES if not differences(complete(name, "F8_E4M3"), table(name))}
    assert of_eight == {"flux-transformer-bfl", "flux-transformer-diffusers", "t5-xxl"}


def test_an_unknown_table_is_an_error():
    with pytest.raises(FileNotFoundError):
        table("flux2")
