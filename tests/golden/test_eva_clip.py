"""timm's tower, loaded under the published names, against the reference's own EVA-CLIP."""

import pytest

from golden import golden_fill, goldens
from pulid.identity.eva_clip import EvaClipVision, load_eva_state

CASES = goldens.cases("modules", "eva_visual")


@pytest.fixture(scope="module")
def tiny_eva():
    """Built with values of its own, which loading must replace; the file's names have the prefix."""
    case = goldens.case_named("modules", "eva.tiny")
    model = case["model"]
    eva = EvaClipVision(
        image_size=model["image_size"],
        patch_size=model["patch_size"],
        width=model["width"],
        depth=model["layers"],
        heads=model["heads"],
        embed_dim=model["embed_dim"],
    )
    state = golden_fill.fill_dict(published_shapes(model), case["fill"]["seed"], case["fill"]["prefix"])
    assert golden_fill.fingerprint(state, case["fill"]["prefix"]) == case["fill"]["crc32"]
    load_eva_state(eva, {f"visual.{name}": tensor for name, tensor in state.items()})
    return eva.requires_grad_(False)


@pytest.fixture(scope="module")
def outputs(real_eva, tiny_eva):
    """Of each case, computed once: pooled vector and five hidden states."""
    towers = {"eva.real": real_eva, "eva.tiny": tiny_eva}
    return {case["id"]: towers[case["id"]](goldens.inputs(case)["pixels"]) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_pooled_vector_is_the_recorded_one(case, outputs):
    pooled, _ = outputs[case["id"]]
    goldens.assert_close(pooled, goldens.expected(case, "pooled"), case["tol"])


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
@pytest.mark.parametrize("index", range(5))
def test_each_hidden_state_is_the_recorded_one(case, index, outputs):
    _, hidden_states = outputs[case["id"]]
    hidden = hidden_states[index]
    rows = slice(None) if case["hidden_rows"] == "all" else case["hidden_rows"]
    name = f"hidden{index}"
    goldens.assert_close(hidden[:, rows], goldens.expected(case, name), case["tol"], name)
    norms = goldens.expected(case, f"{name}_token_norms")
    goldens.assert_close(hidden.norm(dim=-1), norms, case["tol"], f"{name} norms")


def test_the_published_shapes_of_this_test_are_those_of_the_real_file():
    real = goldens.case_named("modules", "eva.real")["model"]
    recorded = goldens.shapes("eva02_clip_l_14_336_visual")["parameters"]
    assert published_shapes(real) == {name: tuple(shape) for name, shape in recorded.items()}


def published_shapes(model):
    """The checkpoint's names and shapes for a tower of any size (PULID_SPEC.md, section 1.2)."""
    width, hidden, patch = model["width"], model["mlp_hidden"], model["patch_size"]
    patches = (model["image_size"] // patch) ** 2
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **norm("norm", width),
        **linear("head", width, model["embed_dim"]),
    }
    for block in range(model["layers"]):
        of_block = {
            **norm("norm1", width),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            **{f"attn.{x}_proj.weight": (width, width) for x in "qkv"},
            **norm("attn.inner_attn_ln", width),
            **linear("attn.proj", width, width),
            **norm("norm2", width),
            **linear("mlp.w1", width, hidden),
            **linear("mlp.w2", width, hidden),
            **norm("mlp.ffn_ln", hidden),
            **linear("mlp.w3", hidden, width),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in of_block.items()}
    return shapes


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name, dim_in, dim_out):
    return {f"{name}.weight": (dim_out, dim_in), f"{name}.bias": (dim_out,)}
