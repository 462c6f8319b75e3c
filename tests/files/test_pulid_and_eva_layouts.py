"""The published files' layouts load strictly; anything else is refused by name. No memory: meta tensors."""

import re

import pytest
import torch

from golden import golden_fill, goldens
from pulid.errors import WeightsMissing
from pulid.identity.eva_clip import EvaClipVision, load_eva_state
from pulid.identity.idformer import IDFormer
from pulid.strict_load import load_strictly

PULID_PART = "pulid_encoder."
A_BLOCK_BIAS = "visual.blocks.7.attn.q_bias"  # named otherwise in timm


@pytest.fixture
def pulid_part():
    """PuLID v0.9.1's `pulid_encoder.` tensors, under the module's names."""
    state = goldens.meta_state(goldens.shapes("pulid_flux_v0.9.1"))
    return {k.removeprefix(PULID_PART): v for k, v in state.items() if k.startswith(PULID_PART)}


@pytest.fixture
def eva_file():
    """The whole `.pt`: visual tower with its rotary tables, text tower, logit scale."""
    layout = goldens.shapes("eva02_clip_l_14_336_visual")
    visual = layout["parameters"] | layout["computed_buffers_in_state_dict"]
    text = {
        "logit_scale": [],
        "text.positional_embedding": [77, 768],
        "text.text_projection": [768, 768],
        "text.token_embedding.weight": [49408, 768],
        "text.transformer.resblocks.0.attn.in_proj_weight": [2304, 768],
        "text.ln_final.weight": [768],
    }
    return goldens.meta_state({f"visual.{name}": shape for name, shape in visual.items()} | text)


@pytest.fixture(scope="module")
def idformer():
    with torch.device("meta"):
        return IDFormer()


@pytest.fixture
def eva():
    with torch.device("meta"):
        return EvaClipVision()


def load_idformer(idformer, state):
    load_strictly(idformer, state, "PuLID identity encoder")


def test_pulids_part_is_exactly_the_idformer(idformer, pulid_part):
    assert len(pulid_part) == 172
    assert sum(tensor.numel() for tensor in pulid_part.values()) == 151_398_400
    load_idformer(idformer, pulid_part)


def test_a_key_missing_from_pulids_file_is_named(idformer, pulid_part):
    del pulid_part["mapping_3.4.bias"]
    with pytest.raises(WeightsMissing, match=r"mapping_3\.4\.bias"):
        load_idformer(idformer, pulid_part)


def test_a_key_too_many_in_pulids_file_is_named(idformer, pulid_part):
    pulid_part["layers.10.0.norm1.weight"] = torch.empty(1024, device="meta")
    with pytest.raises(WeightsMissing, match=r"layers\.10\.0\.norm1\.weight"):
        load_idformer(idformer, pulid_part)


def test_a_wrong_shape_in_pulids_file_is_named(idformer, pulid_part):
    pulid_part["proj_out"] = torch.empty(1024, 768, device="meta")
    with pytest.raises(WeightsMissing, match=r"proj_out.*1024, 768.*1024, 2048"):
        load_idformer(idformer, pulid_part)


def test_the_whole_eva_file_loads(eva, eva_file):
    load_eva_state(eva, eva_file)
    assert sum(parameter.numel() for parameter in eva.parameters()) == 304_432_832


def test_the_visual_part_alone_loads_with_and_without_its_prefix(eva, eva_file):
    visual = {name: tensor for name, tensor in eva_file.items() if name.startswith("visual.")}
    load_eva_state(eva, visual)
    load_eva_state(eva, {name.removeprefix("visual."): tensor for name, tensor in visual.items()})


def test_a_key_missing_from_the_eva_file_is_named_as_in_the_file(eva, eva_file):
    del eva_file[A_BLOCK_BIAS]
    with pytest.raises(WeightsMissing, match=f"missing.*{re.escape(A_BLOCK_BIAS)}"):
        load_eva_state(eva, eva_file)


@pytest.mark.parametrize(
    "name", ["visual.blocks.24.norm1.weight", "visual.blocks.7.attn.q_proj.bias", "cls_token"]
)
def test_a_key_too_many_in_the_eva_file_is_named(eva, eva_file, name):
    """Also a name that only timm knows, and a visual name without the prefix the others have."""
    eva_file[name] = torch.empty(1024, device="meta")
    with pytest.raises(WeightsMissing, match=f"unknown.*{re.escape(name)}"):
        load_eva_state(eva, eva_file)


def test_the_file_of_another_image_size_is_refused_and_not_resampled(eva, eva_file):
    """timm's own filter would stretch the position table of the 224-pixel tower to fit."""
    eva_file["visual.pos_embed"] = torch.empty(1, 257, 1024, device="meta")
    with pytest.raises(WeightsMissing, match=r"visual\.pos_embed.*257.*577"):
        load_eva_state(eva, eva_file)


def test_another_checkpoint_altogether_is_refused_with_a_short_message(eva, pulid_part):
    with pytest.raises(WeightsMissing) as refused:
        load_eva_state(eva, pulid_part)
    assert "172" in str(refused.value)
    assert len(str(refused.value)) < 1000


# A small tower, with numbers: what the loader leaves behind must also compute.

SMALL = {"image_size": 42, "patch_size": 14, "width": 32, "depth": 6, "heads": 2, "embed_dim": 16}


def small_file(dtype=torch.float32):
    """A filled tower, and the file that it would have been loaded from."""
    eva = golden_fill.fill_(EvaClipVision(**SMALL))
    return eva, {published(key): tensor.to(dtype) for key, tensor in eva.tower.state_dict().items()}


def published(key):
    for timm, name in {
        "q_proj.bias": "q_bias",
        "v_proj.bias": "v_bias",
        "attn.norm.": "attn.inner_attn_ln.",
        "mlp.norm.": "mlp.ffn_ln.",
        "mlp.fc1_g.": "mlp.w1.",
        "mlp.fc1_x.": "mlp.w2.",
        "mlp.fc2.": "mlp.w3.",
    }.items():
        key = key.replace(timm, name)
    return f"visual.{key}"


@torch.no_grad()
def test_a_tower_built_without_memory_computes_what_one_built_with_memory_does():
    expected, file = small_file()
    with torch.device("meta"):
        loaded = EvaClipVision(**SMALL)
        load_eva_state(loaded, file)  # inside somebody's meta context too
    pixels = golden_fill.tensor("pixels", (1, 3, 42, 42))
    torch.testing.assert_close(loaded(pixels), expected(pixels), rtol=0, atol=0)
    assert not any(buffer.is_meta for buffer in loaded.buffers())


@torch.no_grad()
def test_a_half_precision_file_can_be_cast_and_the_rotary_table_is_rounded_only_once():
    expected, file = small_file(torch.float16)
    with torch.device("meta"):
        loaded = EvaClipVision(**SMALL)
    load_eva_state(loaded, file)
    loaded.to(torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.tower.rope.pos_embed, expected.tower.rope.pos_embed.bfloat16())
    pooled, _ = loaded(golden_fill.tensor("pixels", (1, 3, 42, 42)).bfloat16())
    assert pooled.isfinite().all()


@torch.no_grad()
def test_computed_buffers_come_back_after_the_memory_was_taken_anew():
    expected, _ = small_file()
    with torch.device("meta"):
        emptied = EvaClipVision(**SMALL)
    emptied.to_empty(device="cpu")
    emptied.load_state_dict(expected.state_dict())
    emptied.tower.rope.pos_embed.fill_(float("nan"))  # whatever was in that memory
    emptied.reset_computed_buffers("cpu")
    pixels = golden_fill.tensor("pixels", (1, 3, 42, 42))
    torch.testing.assert_close(emptied(pixels), expected(pixels), rtol=0, atol=0)


def test_the_rotary_table_is_that_of_the_specification():
    """PULID_SPEC.md, section 3.1: positions i/side*16, 4 frequencies here, rows first, pairs adjacent."""
    eva = EvaClipVision(**SMALL)
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = (torch.arange(3) / 3 * 16)[:, None] * frequencies
    angles = angles.repeat_interleave(2, dim=1)
    rows, columns = angles[:, None].expand(3, 3, 8), angles[None].expand(3, 3, 8)
    table = torch.cat([rows, columns], dim=-1).reshape(9, 16)
    torch.testing.assert_close(eva.tower.rope.pos_embed, torch.cat([table.sin(), table.cos()], dim=-1))
