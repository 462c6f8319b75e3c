"""The loader reads a complete set of files, in either layout, and paints what the originals paint."""

import bisect
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5EncoderModel

from files import tiny_files
from files.tiny_files import BFLOAT16, FLOAT32, TINY_FILES
from model.portraits import picture, within_one_level
from pulid.errors import DeviceUnavailable, WeightsMissing
from pulid.flux.kernels.plain import as_rows
from pulid.load import load_engine, put_on_device, read_model, require_all
from pulid.profiles import PROFILES, on_card
from pulid.quantise import quantise_file
from pulid.seeded import seeded_engine
from server.engines import create_engine, paths_for
from weights.manifest import Choice
from weights.paths import ModelPaths, model_paths

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original():
    return seeded_engine()


@pytest.fixture(scope="module")
def paths(original, tmp_path_factory):
    return tiny_files.save_all(original, tmp_path_factory.mktemp("weights"), "single files")


@pytest.fixture(scope="module")
def parts(paths):
    """As they are loaded into bfloat16, for tests that change nothing."""
    return load(paths, BFLOAT16).parts


def load(paths, profile=FLOAT32, **options):
    return load_engine(profile, paths, "cpu", architecture=TINY_FILES, **options)


def read(paths, **changes):
    return read_model(dataclasses.replace(paths, **changes), TINY_FILES, "one-face")


@pytest.mark.parametrize("layout", ["folders", "single files"])
def test_an_engine_from_files_paints_the_same_picture(original, tmp_path, layout):
    loaded = load(tiny_files.save_all(original, tmp_path, layout))
    # Mapped files are aligned differently in memory, which moves the last bit of some sums.
    assert within_one_level(picture(loaded, true_cfg=2.0), picture(original, true_cfg=2.0))


def test_networks_are_cast_and_the_autoencoder_stays_float32(parts):
    dtypes = {
        field.name: {p.dtype for p in getattr(parts.networks, field.name).parameters()}
        for field in dataclasses.fields(parts.networks)
    }
    assert dtypes.pop("autoencoder") == {torch.float32}
    assert set(map(frozenset, dtypes.values())) == {frozenset({torch.bfloat16})}
    for model in (parts.text._t5, parts.text._clip):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in parts.faces._parser.parameters()} == {torch.float32}
    assert parts.networks.eva_clip.tower.rope.pos_embed.dtype == torch.bfloat16


def test_nothing_of_a_network_is_left_without_memory_nor_in_training(parts):
    for module in (*vars_of(parts.networks), parts.text._t5, parts.text._clip):
        assert not any(t.is_meta or t.requires_grad for t in (*module.parameters(), *module.buffers()))
        assert not module.training


def vars_of(networks):
    return [getattr(networks, field.name) for field in dataclasses.fields(networks)]


# ---- text models ----


@torch.inference_mode()
def test_text_models_compute_what_transformers_own_loader_makes_of_the_files(paths):
    model = read(paths)
    ids = torch.tensor([[5, 9, 40, 1, 0, 0]])
    for ours, kind, path in ((model.t5, T5EncoderModel, paths.t5), (model.clip, CLIPTextModel, paths.clip)):
        theirs = kind.from_pretrained(path, dtype=torch.float32)
        for mine, other in zip(ours(ids).to_tuple(), theirs(ids).to_tuple(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_t5s_embedding_is_one_matrix_in_the_model(parts):
    t5 = parts.text._t5
    assert t5.encoder.embed_tokens.weight is t5.shared.weight


@pytest.mark.parametrize(
    "names",
    [["shared.weight"], ["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]],
    ids="+".join,
)
@torch.inference_mode()
def test_t5s_embedding_may_have_either_name_in_the_file_or_both(paths, tmp_path, names):
    state = load_file(only_safetensors(paths.t5))
    embedding = state.pop("shared.weight")
    save_file(state | {name: embedding.clone() for name in names}, tmp_path / "model.safetensors")
    model = read(paths, t5=tmp_path).t5
    assert torch.equal(model.shared.weight, embedding)
    assert torch.equal(model.encoder.embed_tokens.weight, embedding)


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_clips_names_may_have_the_published_prefix_and_a_table_of_positions(paths, tmp_path, prefix):
    state = load_file(only_safetensors(paths.clip))
    state = {prefix + key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, tmp_path / "clip_l.safetensors")  # one file, as others publish it
    file = tmp_path / "clip_l.safetensors"
    model = read(paths, clip=file).clip
    assert model.embeddings.position_ids.tolist() == [list(range(77))]
    assert torch.equal(model.final_layer_norm.weight, state[f"{prefix}final_layer_norm.weight"])


def only_safetensors(folder):
    (file,) = folder.glob("*.safetensors")
    return file


def test_a_tokenizer_in_the_place_of_the_other_is_refused(paths):
    with pytest.raises(WeightsMissing, match=r"text_encoder holds no tokenizer"):
        read(paths, t5_tokenizer=paths.clip)
    wrong = dataclasses.replace(TINY_FILES, t5={**TINY_FILES.t5, "eos_token_id": 7})
    with pytest.raises(
        WeightsMissing, match=r"tokenizer_2 is the tokenizer of another model.*with 1, expected"
    ):
        read_model(paths, wrong, "one-face")


# ---- precision of the files ----


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16], ids=str)
def test_a_transformer_in_another_precision_is_cast(original, paths, tmp_path, dtype):
    tensors = original.parts.networks.transformer.state_dict()
    state = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
    save_file(state, tmp_path / "cast.safetensors")
    cast = dataclasses.replace(paths, transformer=tmp_path / "cast.safetensors")
    loaded = load(cast, BFLOAT16).parts.networks.transformer.state_dict()
    assert all(torch.equal(loaded[key], state[key].bfloat16()) for key in state)


def test_eva_loads_alike_from_its_pickle_and_from_a_converted_copy(paths, tmp_path):
    save_file(torch.load(paths.eva_clip, weights_only=True), tmp_path / "eva.safetensors")
    one, other = (
        read(paths, eva_clip=file).networks.eva_clip.state_dict()
        for file in (paths.eva_clip, tmp_path / "eva.safetensors")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


# ---- in eight bits ----

IN_FP8 = dataclasses.replace(PROFILES["fp8"], dtype="float32")
IN_INT8 = dataclasses.replace(IN_FP8, linears="int8")


def quantised_to(form, paths, folder):
    """The same files, with the transformer's quantised copy."""
    copy = folder / f"flux1-dev.{form}-rows.safetensors"
    quantise_file(paths.transformer, copy, form, made_from="a test", architecture=TINY_FILES)
    return dataclasses.replace(paths, transformer=copy)


@pytest.fixture(scope="module")
def quantised(paths, tmp_path_factory):
    return quantised_to("fp8", paths, tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def in_int8(paths, tmp_path_factory):
    return quantised_to("int8", paths, tmp_path_factory.mktemp("int8"))


def test_a_transformer_quantised_while_loading_paints_what_its_quantised_copy_paints(paths, quantised):
    while_loading, before = load(paths, IN_FP8), load(quantised, IN_FP8)
    one, other = (engine.parts.networks.transformer.state_dict() for engine in (while_loading, before))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].float(), other[name].float()) for name in one)
    assert {x.dtype for x in one.values()} == {torch.float8_e4m3fn, torch.float32}
    assert while_loading.info.details["linears"] == before.info.details["linears"] == "fp8"
    assert within_one_level(picture(while_loading), picture(before))


def test_in_int8_it_is_the_same(paths, in_int8):
    while_loading, before = load(paths, IN_INT8), load(in_int8, IN_INT8)
    one, other = (engine.parts.networks.transformer.state_dict() for engine in (while_loading, before))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert {x.dtype for x in one.values()} == {torch.int8, torch.float32}
    assert while_loading.info.details["linears"] == before.info.details["linears"] == "int8"
    assert within_one_level(picture(while_loading), picture(before))


def test_turbo_reads_what_fp8_reads_and_says_what_it_skips(quantised):
    engine = load(quantised, dataclasses.replace(PROFILES["turbo"], dtype="float32"))
    assert engine.info.details["linears"] == "fp8"
    assert engine.info.details["step_cache"] == "threshold 0.1, at most 3 steps in a row"


def test_in_fp8_scales_stay_in_float32_where_the_rest_is_bfloat16(quantised):
    state = load(quantised, PROFILES["fp8"]).parts.networks.transformer.state_dict()
    kinds = {name.rpartition(".")[2]: set() for name in state}
    for name, tensor in state.items():
        kinds[name.rpartition(".")[2]].add(tensor.dtype)
    assert kinds["weight_scale"] == {torch.float32}
    assert kinds["weight"] == {torch.float8_e4m3fn, torch.bfloat16}
    assert kinds["bias"] == {torch.bfloat16}


def test_a_lora_is_added_before_weights_are_quantised(paths, tmp_path):
    name = "transformer_blocks.0.attn.to_q.weight"
    plain = load(paths).parts.networks.transformer.state_dict()[name]
    up, down = torch.randn(plain.shape[0], 2), torch.randn(2, plain.shape[1])
    stem = f"transformer.{name.removesuffix('.weight')}"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    loras = [(tmp_path / "lora.safetensors", 0.5)]
    state = load(paths, IN_FP8, loras=loras).parts.networks.transformer.state_dict()
    expected = as_rows(plain + 0.5 * up @ down)
    torch.testing.assert_close(state[f"{name}_scale"], expected.scale)
    got = state[name].float() * state[f"{name}_scale"]
    assert (got - expected.values.float() * expected.scale).norm() < 1e-2 * got.norm()


def test_a_quantised_copy_takes_no_lora_and_serves_no_other_profile(quantised, in_int8, tmp_path):
    with pytest.raises(WeightsMissing, match="LoRA files are added before that"):
        load(quantised, IN_FP8, loras=[(tmp_path / "any.safetensors", 1.0)])
    with pytest.raises(WeightsMissing, match="'tiny' computes in full precision"):
        load(quantised)
    with pytest.raises(WeightsMissing, match="is quantised to int8, and the profile 'fp8' computes in fp8"):
        load(in_int8, IN_FP8)
    with pytest.raises(WeightsMissing, match="is quantised already"):
        quantise_file(quantised.transformer, tmp_path / "again.safetensors", "int8", made_from="a test")


def test_the_server_takes_the_copy_in_its_own_form_unless_something_is_merged(tmp_path):
    home = tmp_path / "FLUX.1-dev"
    home.mkdir()
    (home / "flux1-dev.safetensors").touch()
    fp8, exact = PROFILES["fp8"], PROFILES["exact"]
    assert paths_for(fp8, tmp_path, Choice(), ()).transformer.name == "flux1-dev.safetensors"
    (home / "flux1-dev.fp8-rows.safetensors").touch()
    assert paths_for(fp8, tmp_path, Choice(), ()).transformer.name == "flux1-dev.fp8-rows.safetensors"
    assert paths_for(exact, tmp_path, Choice(), ()).transformer.name == "flux1-dev.safetensors"
    loras = [(tmp_path / "lora.safetensors", 1.0)]
    assert paths_for(fp8, tmp_path, Choice(), loras).transformer.name == "flux1-dev.safetensors"
    on_ampere = on_card(PROFILES["lowvram-24g"], (8, 6))
    assert paths_for(on_ampere, tmp_path, Choice(), ()).transformer.name == "flux1-dev.safetensors"
    (home / "flux1-dev.int8-rows.safetensors").touch()
    assert paths_for(on_ampere, tmp_path, Choice(), ()).transformer.name == "flux1-dev.int8-rows.safetensors"


def test_a_card_is_asked_what_it_can_before_its_files_are_chosen(tmp_path, monkeypatch):
    """The first that names the copy in int8 is what reads it: it is empty."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    seen = []
    monkeypatch.setattr("pulid.load.load_engine", lambda profile, paths, *rest, **more: seen.append(paths))
    monkeypatch.setattr("server.engines.require_checkpoints", lambda checkpoints, home: None)
    home = tmp_path / "FLUX.1-dev"
    home.mkdir()
    for form in ("fp8", "int8"):
        (home / f"flux1-dev.{form}-rows.safetensors").touch()
    create_engine("cuda:0", profile="lowvram-16g", weights_dir=tmp_path, face_mode="one-face")
    assert [paths.transformer.name for paths in seen] == ["flux1-dev.int8-rows.safetensors"]


# ---- memory ----


class Mappings:
    """Which file each part of this process's memory is mapped from."""

    def __init__(self):
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        self.files = [line[5] if len(line) > 5 and line[5].startswith("/") else "" for line in lines]
        self.ends = [int(line[0].split("-")[1], 16) for line in lines]

    def file_of(self, tensor):
        """Empty where its memory is its own."""
        return self.files[bisect.bisect_right(self.ends, tensor.data_ptr())]


def test_before_anything_is_put_on_a_device_every_weight_lies_in_its_file(paths):
    """But for the one matrix whose halves change places, and what is computed."""
    model = read(paths)
    mappings = Mappings()
    for network, path in (
        (model.networks.transformer, paths.transformer),
        (model.networks.autoencoder, paths.autoencoder),
        (model.networks.idformer, paths.pulid),
        (model.networks.eva_clip, paths.eva_clip),
        (model.t5, paths.t5 / "model.safetensors"),
        (model.clip, paths.clip / "model.safetensors"),
        (model.faces._parser, paths.bisenet),
        (model.faces._retinaface, paths.retinaface),
    ):
        elsewhere = [name for name, p in network.named_parameters() if mappings.file_of(p) != str(path)]
        assert [name for name in elsewhere if not name.startswith("norm_out.")] == []


def test_on_the_cpu_a_tensor_that_keeps_its_precision_stays_in_its_file(paths):
    model = read(paths)
    put_on_device(model, CPU, torch.float32)
    mappings = Mappings()
    assert {mappings.file_of(p) for p in model.networks.idformer.parameters()} == {str(paths.pulid)}


def test_no_tensor_that_was_cast_keeps_its_file_open(parts):
    """On a device each tensor has memory of its own: parts of a fused matrix do not keep the whole."""
    mappings = Mappings()
    for parameter in parts.networks.transformer.parameters():
        assert mappings.file_of(parameter) == ""
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


# ---- progress ----


def test_progress_names_each_part_and_ends_with_all_bytes(paths):
    told = []
    load(paths, progress=told.append)
    assert [p.part for p in told if p.part] == [
        "FLUX transformer",
        "T5-XXL",
        "PuLID",
        "EVA-CLIP",
        "CLIP-L",
        "FLUX autoencoder",
    ]
    done = [p.done_bytes for p in told]
    assert done == sorted(done)
    assert len({p.total_bytes for p in told}) == 1
    assert told[-1].done_bytes == told[-1].total_bytes > 5_000_000


def test_progress_is_told_often_within_a_large_part(paths, monkeypatch):
    monkeypatch.setattr("pulid.load.PROGRESS_BYTES", 100_000)
    told = []
    load(paths, progress=told.append)
    steps = [b.done_bytes - a.done_bytes for a, b in itertools.pairwise(told)]
    assert len(steps) > 20
    assert max(steps) < 100_000 + 600_000  # at most one tensor more than what was asked for


# ---- what is missing ----


def test_every_missing_checkpoint_is_named_with_its_path(tmp_path):
    absent = model_paths(tmp_path)
    with pytest.raises(WeightsMissing) as raised:
        require_all(absent)
    for field in dataclasses.fields(ModelPaths):
        assert f"{field.name}: {getattr(absent, field.name)}" in str(raised.value)
    assert "profile tiny" in str(raised.value)


def test_a_cuda_profile_never_falls_back_to_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="needs a CUDA device"):
        load_engine(PROFILES["exact"], model_paths(tmp_path), "cuda")


def test_too_little_memory_on_the_device_is_said_with_what_is_needed(paths, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pulid.load.put", full)
    with pytest.raises(DeviceUnavailable, match=r"cpu has too little free memory.*'tiny' take 0 GiB"):
        load(paths)
