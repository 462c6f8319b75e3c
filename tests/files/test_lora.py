"""LoRA files of every style change the weights by scale * alpha / rank * B @ A, and nothing else is taken."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from files import flux_layouts, tiny_files
from files.tiny_files import BFLOAT16, FLOAT32, TINY_FILES
from golden import golden_fill
from model.portraits import difference, picture
from pulid.errors import WeightsMissing
from pulid.flux.lora import merged, read_lora
from pulid.load import load_engine
from pulid.seeded import seeded_engine, seeded_networks
from pulid.strict_load import shapes_of

RANK = 4
WIDTH = 128

# What the LoRA of these tests changes, in Black Forest Labs' names: rows and columns of each change.
CHANGES = {
    "double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.1.txt_attn.qkv": (3 * WIDTH, WIDTH),
    "double_blocks.1.img_attn.proj": (WIDTH, WIDTH),
    "double_blocks.0.txt_attn.proj": (WIDTH, WIDTH),
    "single_blocks.1.linear1": (3 * WIDTH, WIDTH),  # the first three of seven parts: query, key, value
    "single_blocks.0.linear2": (WIDTH, 5 * WIDTH),
}


def matrices(stem):
    """(B, A) of one change, large enough to be seen in a picture."""
    rows, columns = CHANGES[stem]
    return (
        golden_fill.tensor(f"{stem}.up", (rows, RANK)),
        golden_fill.tensor(f"{stem}.down", (RANK, columns), scale=0.3),
    )


# ---- the same LoRA in each style ----


def bfl_pairs():
    """{stem: (B, A)} in BFL's names, rows of the MLP filled up with zeros."""
    pairs = {stem: matrices(stem) for stem in CHANGES}
    up, down = pairs["single_blocks.1.linear1"]
    pairs["single_blocks.1.linear1"] = torch.cat((up, torch.zeros(4 * WIDTH, RANK))), down
    return pairs


def diffusers_pairs():
    """{stem: (B, A)}; a fused change is three, which have the same A."""
    names = {
        "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        "double_blocks.1.txt_attn.qkv": [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"],
        "double_blocks.1.img_attn.proj": ["transformer_blocks.1.attn.to_out.0"],
        "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
        "single_blocks.1.linear1": [f"single_transformer_blocks.1.attn.to_{x}" for x in "qkv"],
        "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
    }
    pairs = {}
    for stem, targets in names.items():
        up, down = matrices(stem)
        pairs |= dict(zip(targets, [(rows, down) for rows in up.chunk(len(targets))], strict=True))
    return pairs


def written(pairs, prefix, down, up, *, alpha=None, dots="."):
    """A LoRA's tensors under one style's names."""
    state = {}
    for stem, (b, a) in pairs.items():
        name = prefix + stem.replace(".", dots)
        state[f"{name}.{down}.weight"], state[f"{name}.{up}.weight"] = a.clone(), b.contiguous()
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def xlabs(alpha=None):
    names = {
        "double_blocks.0.img_attn.qkv": "double_blocks.0.processor.qkv_lora1",
        "double_blocks.1.txt_attn.qkv": "double_blocks.1.processor.qkv_lora2",
        "double_blocks.1.img_attn.proj": "double_blocks.1.processor.proj_lora1",
        "double_blocks.0.txt_attn.proj": "double_blocks.0.processor.proj_lora2",
        "single_blocks.1.linear1": "single_blocks.1.processor.qkv_lora",
        "single_blocks.0.linear2": "single_blocks.0.processor.proj_lora",
    }
    pairs = {names[stem]: matrices(stem) for stem in CHANGES}
    return written(pairs, "", "down", "up", alpha=alpha)


STYLES = {
    "diffusers": lambda alpha=None: written(
        diffusers_pairs(), "transformer.", "lora_A", "lora_B", alpha=alpha
    ),
    "diffusers-old": lambda alpha=None: written(
        diffusers_pairs(), "transformer.", "lora.down", "lora.up", alpha=alpha
    ),
    "diffusers-down-up": lambda alpha=None: written(
        diffusers_pairs(), "transformer.", "lora_down", "lora_up", alpha=alpha
    ),
    "peft": lambda alpha=None: written(
        diffusers_pairs(), "base_model.model.", "lora_A.default", "lora_B.default", alpha=alpha
    ),
    "onetrainer": lambda alpha=None: written(
        diffusers_pairs(), "lora_transformer_", "lora_down", "lora_up", alpha=alpha, dots="_"
    ),
    "kohya": lambda alpha=None: written(
        bfl_pairs(), "lora_unet_", "lora_down", "lora_up", alpha=alpha, dots="_"
    ),
    "comfyui": lambda alpha=None: written(bfl_pairs(), "diffusion_model.", "lora_A", "lora_B", alpha=alpha),
    "bfl": lambda alpha=None: written(bfl_pairs(), "", "lora_A", "lora_B", alpha=alpha),
    "xlabs": xlabs,
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return tiny_files.save_all(seeded_engine(), tmp_path_factory.mktemp("weights"), "single files")


@pytest.fixture(scope="module")
def transformer():
    """The weights that the files of `paths` hold."""
    return seeded_networks().transformer.state_dict()


@pytest.fixture(scope="module")
def shapes(transformer):
    return shapes_of(transformer)


@pytest.fixture(scope="module")
def plain(transformer):
    """The same in Black Forest Labs' layout."""
    return flux_layouts.bfl_transformer(transformer)


def file_of(folder, state, name="x.safetensors", metadata=None):
    save_file(state, folder / name, metadata=metadata)
    return folder / name


def load(paths, *loras, profile=FLOAT32):
    return load_engine(profile, paths, "cpu", architecture=TINY_FILES, loras=loras)


def bfl_state(engine):
    return flux_layouts.bfl_transformer(engine.parts.networks.transformer.state_dict())


def with_changes(state, factor):
    """BFL's weights with every change added, computed here in float64."""
    changed = {key: tensor.double() for key, tensor in state.items()}
    for stem, (up, down) in bfl_pairs().items():
        changed[f"{stem}.weight"] += factor * up.double() @ down.double()
    return changed


# ---- what is added ----


@pytest.mark.parametrize("style", STYLES)
def test_every_style_adds_scale_times_alpha_over_rank_times_b_a(shapes, tmp_path, style):
    """Checked without an engine: the changes of all weights, put together in BFL's layout."""
    lora = read_lora(file_of(tmp_path, STYLES[style](alpha=2.0)), 0.7, shapes)
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, changes in lora.changes.items():
        for change in changes:
            state[name] += change.factor * change.up @ change.down
    expected = with_changes(
        {key: torch.zeros_like(t) for key, t in flux_layouts.bfl_transformer(state).items()}, 0.7 * 2.0 / RANK
    )
    for key, tensor in flux_layouts.bfl_transformer(state).items():
        torch.testing.assert_close(tensor.double(), expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["single files", "folders"])
def test_loaded_weights_are_the_base_plus_the_change(plain, tmp_path, layout):
    paths = tiny_files.save_all(seeded_engine(), tmp_path / "weights", layout)
    loaded = bfl_state(load(paths, (file_of(tmp_path, STYLES["kohya"](alpha=2.0)), 0.7)))
    for key, tensor in with_changes(plain, 0.7 * 2.0 / RANK).items():
        torch.testing.assert_close(loaded[key].double(), tensor, rtol=0, atol=1e-6)


def test_the_change_is_added_in_float32_before_the_weight_is_rounded(paths, plain, tmp_path):
    file = file_of(tmp_path, STYLES["comfyui"]())
    loaded = bfl_state(load(paths, (file, 0.01), profile=BFLOAT16))
    expected = with_changes(plain, 0.01)
    for stem in CHANGES:
        exact = expected[f"{stem}.weight"]
        rounding = (exact.bfloat16().double() - exact).abs().max()
        assert (loaded[f"{stem}.weight"].double() - exact).abs().max() <= 1.01 * rounding


def test_every_matrix_of_bfls_layout_can_be_changed(shapes, tmp_path):
    """Also those of which diffusers swaps the halves, and the ones outside the blocks."""
    zeros = flux_layouts.bfl_transformer({name: torch.zeros(shape) for name, shape in shapes.items()})
    stems = {key.removesuffix(".weight"): tuple(t.shape) for key, t in zeros.items() if t.ndim == 2}
    pairs = {
        stem: (golden_fill.tensor(stem, (rows, 2)), golden_fill.tensor(stem, (2, columns)))
        for stem, (rows, columns) in stems.items()
    }
    assert len(pairs) == 2 * 10 + 2 * 3 + 10
    file = file_of(tmp_path, written(pairs, "lora_unet_", "lora_down", "lora_up", dots="_"))
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name, changes in read_lora(file, 1.0, shapes).changes.items():
        state[name] = merged(state[name], changes)
    together = flux_layouts.bfl_transformer(state)
    for stem, (up, down) in pairs.items():
        torch.testing.assert_close(together[f"{stem}.weight"], up @ down, rtol=0, atol=1e-5)


def test_without_alpha_the_rank_cancels_out(shapes, tmp_path):
    lora = read_lora(file_of(tmp_path, STYLES["xlabs"]()), 0.5, shapes)
    assert {change.factor for changes in lora.changes.values() for change in changes} == {0.5}


def test_alpha_may_stand_in_diffusers_metadata(shapes, tmp_path):
    record = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"attn.to_k": 8}}
    file = file_of(tmp_path, STYLES["diffusers"](), metadata={"lora_adapter_metadata": json.dumps(record)})
    factors = {name: change.factor for name, (change,) in read_lora(file, 1.0, shapes).changes.items()}
    assert factors["transformer_blocks.0.attn.to_q.weight"] == 2 / RANK
    assert factors["transformer_blocks.0.attn.to_k.weight"] == 8 / RANK


@pytest.fixture(scope="module")
def with_lora(paths, tmp_path_factory):
    return load(paths, (file_of(tmp_path_factory.mktemp("lora"), STYLES["kohya"]()), 1.0))


@pytest.fixture(scope="module")
def pictures(paths, with_lora, tmp_path_factory):
    """By style, with an identity."""
    folder = tmp_path_factory.mktemp("loras")
    pictures = {"kohya": picture(with_lora)}
    for style in ("diffusers", "xlabs"):
        file = file_of(folder, STYLES[style](), f"{style}.safetensors")
        pictures[style] = picture(load(paths, (file, 1.0)))
    return pictures


def test_all_styles_paint_the_same_picture_of_a_face(paths, pictures):
    plain = picture(load(paths))
    assert difference(pictures["kohya"], plain) > 4
    assert np.array_equal(pictures["diffusers"], pictures["kohya"])
    assert np.array_equal(pictures["xlabs"], pictures["kohya"])


def test_the_identity_still_shows_beside_a_lora(with_lora, pictures):
    assert difference(picture(with_lora, "obama"), pictures["kohya"]) >= 8
    assert difference(picture(with_lora, None), pictures["kohya"]) >= 4


def test_several_files_add_up(paths, plain, tmp_path):
    file = file_of(tmp_path, STYLES["kohya"]())
    other = file_of(tmp_path, STYLES["xlabs"](), "other.safetensors")
    twice = bfl_state(load(paths, (file, 0.25), (other, 0.5)))
    for key, tensor in with_changes(plain, 0.75).items():
        torch.testing.assert_close(twice[key].double(), tensor, rtol=0, atol=2e-6)


def test_a_scale_of_zero_changes_nothing_bit_for_bit(paths, plain, tmp_path):
    file = file_of(tmp_path, STYLES["kohya"]())
    zero = bfl_state(load(paths, (file, 0.0), profile=BFLOAT16))
    assert all(torch.equal(zero[key], tensor.bfloat16()) for key, tensor in plain.items())


# ---- what is said ----


def test_parts_for_text_encoders_are_not_applied_and_that_is_told(paths, tmp_path):
    text = {
        f"{name}.{part}.weight": torch.ones(2, 2)
        for name in (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder.layers.0",
            "text_encoders.t5xxl.a",
        )
        for part in ("lora_down", "lora_up")
    }
    file = file_of(tmp_path, STYLES["kohya"]() | text)
    engine = load(paths, (file, 0.8), (file, 0.0))
    assert engine.info.details["loras"] == (
        "x.safetensors at 0.8 (without its 6 tensors for text encoders), "
        "x.safetensors at 0 (without its 6 tensors for text encoders)"
    )
    plain = load(paths).info.details
    assert {*engine.info.details} - {*plain} == {"loras"}


# ---- what is refused ----

GOOD = STYLES["kohya"](alpha=2.0)
STEM = "lora_unet_single_blocks_0_linear2"
A_TENSOR = torch.ones(1)


def changed(**changes):
    return {**GOOD, **{f"{STEM}.{key.replace('__', '.')}": value for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (GOOD | {"lora_unet_down_blocks_0.lora_down.weight": A_TENSOR}, r"no LoRA .* has \(lora_unet_down_"),
        (GOOD | {f"{STEM}.lokr_w1": A_TENSOR}, r"no LoRA for FLUX\.1-dev has \(.*lokr_w1\)"),
        (GOOD | {f"{STEM}.dora_scale": A_TENSOR}, r"no LoRA for FLUX\.1-dev has \(.*dora_scale\)"),
        ({f"a.{i}": torch.ones(1) for i in range(9)}, r"\(a\.0, a\.1, a\.2, a\.3, and 5 more\)"),
        (changed(lora_up__weight=torch.ones(128, 5)), r"linear2 has matrices \(128, 5\) and \(4, 640\)"),
        (changed(lora_down__weight=torch.ones(4, 128)), r"expected \(128, rank\) and \(rank, 640\)"),
        (changed(lora_down__weight=torch.ones(4, 640, 1, 1)), r"does not fit"),
        (changed(lora_down__weight=torch.ones(0, 640), lora_up__weight=torch.ones(128, 0)), r"does not fit"),
        (changed(lora_down__weight=torch.ones(4, 640, dtype=torch.int32)), r"of a kind that is not read"),
        (changed(alpha=torch.ones(2)), r"alpha for .*linear2 that is not one number"),
        (changed(alpha=torch.tensor(float("nan"))), r"alpha for .*linear2 that is not one number"),
        ({k: v for k, v in GOOD.items() if k != f"{STEM}.lora_up.weight"}, r"linear2 has no up matrix"),
        (GOOD | {f"{STEM}.lora_A.weight": torch.ones(4, 640)}, r"names the same matrix twice"),
        ({"lora_te1_x.lora_down.weight": A_TENSOR}, r"has nothing for the FLUX transformer"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(shapes, tmp_path, state, message):
    with pytest.raises(WeightsMissing, match=rf"The LoRA .*x\.safetensors .*{message}"):
        read_lora(file_of(tmp_path, state), 1.0, shapes)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"transformer.use_rslora": true}', "rank-stabilised"),
        ('{"transformer.lora_alpha": "4"}', "alpha is no number"),
        ('{"transformer.alpha_pattern": [1]}', "alpha is no number"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_metadata_that_cannot_be_used_are_refused(shapes, tmp_path, record, message):
    file = file_of(tmp_path, STYLES["diffusers"](), metadata={"lora_adapter_metadata": record})
    with pytest.raises(WeightsMissing, match=message):
        read_lora(file, 1.0, shapes)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt"])
def test_a_pickled_file_is_refused(shapes, tmp_path, name):
    torch.save(GOOD, tmp_path / name)
    with pytest.raises(WeightsMissing, match=r"is no \.safetensors file"):
        read_lora(tmp_path / name, 1.0, shapes)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(shapes, tmp_path, scale):
    with pytest.raises(WeightsMissing, match="cannot be added at the scale"):
        read_lora(file_of(tmp_path, GOOD), scale, shapes)


def test_a_wrong_file_is_refused_before_anything_is_put_on_the_device(paths, tmp_path, monkeypatch):
    put = []
    monkeypatch.setattr("pulid.load.put", lambda *args: put.append(args))
    with pytest.raises(WeightsMissing, match="does not exist"):
        load(paths, (tmp_path / "absent.safetensors", 1.0))
    with pytest.raises(WeightsMissing, match="no LoRA for FLUX"):
        load(paths, (file_of(tmp_path, {"a.weight": torch.ones(1)}), 1.0))
    assert put == []
