"""Whatever is wrong with a weights folder is found before a start, named, and said how to put right."""

import gzip
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from files import hostile_pickles, small_weights
from pulid.identity.face_weights import VECTRON_MODELS, vectron_models_dir
from weights import lock
from weights.errors import FilesMissing, WrongFile
from weights.onnx_files import onnx_problem
from weights.verify import FETCH, FETCH_AGAIN, check_quickly, check_thoroughly, examine, held_of, require


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every published layout, in a folder that stays as it is, and the checkpoints in it."""
    home = tmp_path_factory.mktemp("whole")
    checkpoints = {checkpoint.name: checkpoint for checkpoint in small_weights.make(home)}
    return home, checkpoints


@pytest.fixture
def copy(whole, tmp_path):
    """`copy(name, ...)`: those checkpoints in a folder of their own."""

    def copied(*names):
        for name in names:
            for file in whole[1][name].files:
                (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(whole[0] / file.path, tmp_path / file.path)
        return tmp_path, [whole[1][name] for name in names]

    return copied


def quick(checkpoints, home):
    return check_quickly(checkpoints, home, tables=small_weights.tables)


def thorough(checkpoints, home, **how):
    return check_thoroughly(checkpoints, home, tables=small_weights.tables, **how)


def only(problems):
    (problem,) = problems
    return problem


def record(home, *paths, trust="pinned"):
    entries = {
        path: lock.entry_of(home / path, sha256=lock.sha256_of(home / path), source="test", trust=trust)
        for path in paths
    }
    lock.record(home, entries)


def loosened(checkpoint):
    """As if neither size nor hash were known."""
    return replace(
        checkpoint, files=tuple(replace(file, size=None, sha256=None) for file in checkpoint.files)
    )


# ---- as it should be ----


def test_every_published_layout_is_found_right(whole):
    home, checkpoints = whole
    assert quick(checkpoints.values(), home) == []
    assert thorough(checkpoints.values(), home) == []
    require(list(checkpoints.values()), home, tables=small_weights.tables)


def test_a_check_writes_nothing(copy):
    home, checkpoints = copy("flux1-dev-diffusers", "eva-clip")
    before = {path: path.stat() for path in (home, *home.rglob("*"))}
    thorough(checkpoints, home)
    after = {path: path.stat() for path in (home, *home.rglob("*"))}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }


def test_a_thorough_check_reports_every_byte_it_reads(whole):
    home, checkpoints = whole
    seen = {}
    thorough(
        checkpoints.values(),
        home,
        on_bytes=lambda path, count: seen.update({path: seen.get(path, 0) + count}),
    )
    assert seen == {
        home / file.path: (home / file.path).stat().st_size for c in checkpoints.values() for file in c.files
    }


# ---- files that are not there ----


def test_a_missing_file_is_named_with_the_way_to_get_it(copy):
    home, checkpoints = copy("pulid-v0.9.1")
    (home / "pulid_flux_v0.9.1.safetensors").unlink()
    problem = only(quick(checkpoints, home))
    assert str(problem) == f"{home}/pulid_flux_v0.9.1.safetensors is missing. {FETCH}"
    assert problem.is_missing


def test_a_folder_of_which_nothing_is_there_is_one_problem(copy):
    home, checkpoints = copy("t5-xxl")
    shutil.rmtree(home / "FLUX.1-dev")
    problem = only(quick(checkpoints, home))
    assert (problem.file, problem.is_missing) == (home / "FLUX.1-dev/text_encoder_2", True)


def test_what_is_required_is_told_in_one_paragraph(copy):
    home, checkpoints = copy("pulid-v0.9.1", "ae", "bisenet")
    (home / "pulid_flux_v0.9.1.safetensors").unlink()
    (home / "FLUX.1-dev/ae.safetensors").unlink()
    with pytest.raises(FilesMissing) as caught:
        require(checkpoints, home, tables=small_weights.tables)
    assert str(caught.value) == (
        f"In the weights folder {home}: pulid_flux_v0.9.1.safetensors, "
        f"FLUX.1-dev/ae.safetensors are missing. {FETCH}"
    )
    (home / "parsing_bisenet.pth").write_bytes(b"<html>")
    with pytest.raises(WrongFile, match=r"parsing_bisenet\.pth is a web page.* are missing\. Run"):
        require(checkpoints, home, tables=small_weights.tables)


def test_antelopev2_one_folder_too_deep_is_told_with_the_command_that_moves_it(copy):
    home, checkpoints = copy("antelopev2")
    (home / "antelopev2/antelopev2").mkdir()
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"):
        (home / "antelopev2" / name).rename(home / "antelopev2/antelopev2" / name)
    problems = quick(checkpoints, home)
    assert [problem.what for problem in problems] == [
        f"is missing, but lies one folder too deep, in {home}/antelopev2/antelopev2"
    ] * 2
    assert all(problem.is_missing for problem in problems)
    for problem in problems:
        assert os.system(problem.remedy.split("`")[1]) == 0  # noqa: S605
    assert quick(checkpoints, home) == []


# ---- files that are something else ----


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("flux1-dev", "FLUX.1-dev/flux1-dev.safetensors"),
        ("flux1-dev-diffusers", "FLUX.1-dev/transformer/diffusion_pytorch_model-00002-of-00003.safetensors"),
        ("t5-tokenizer", "FLUX.1-dev/tokenizer_2/tokenizer.json"),
        ("t5-xxl", "FLUX.1-dev/text_encoder_2/model.safetensors.index.json"),
        ("eva-clip", "EVA02_CLIP_L_336_psz14_s6B.pt"),
        ("antelopev2", "antelopev2/glintr100.onnx"),
        ("bisenet", "parsing_bisenet.pth"),
    ],
)
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:-1].rstrip(b"}"), "cut short"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (lambda data: b"<!doctype html><title>404</title>", "is a web page"),
        (lambda data: b"", "is empty"),
        (lambda data: bytes(20_000), "begins with zeros"),
    ],
    ids=["half", "almost whole", "pointer", "page", "empty", "zeros"],
)
def test_every_kind_of_file_that_is_no_whole_one_is_named(copy, name, path, damage, what):
    home, checkpoints = copy(name)
    (home / path).write_bytes(damage((home / path).read_bytes()))
    for known in (checkpoints, [loosened(checkpoints[0])]):
        problem = only(quick(known, home))
        assert (problem.file, problem.remedy) == (home / path, FETCH_AGAIN)
        assert what in problem.what


def test_a_pickle_that_holds_code_is_refused_and_does_not_run(copy, tmp_path):
    home, checkpoints = copy("retinaface")
    mark = tmp_path / "it-ran"
    torch.save({"a": hostile_pickles.objects(mark)["os.system"]}, home / "detection_Resnet50_Final.pth")
    assert only(quick(checkpoints, home)).what.startswith("holds code or objects, not only tensors")
    assert only(thorough(checkpoints, home)).what.startswith("holds code")
    assert not mark.exists()


def test_tensors_that_are_missing_unknown_or_of_other_shapes_are_named(copy):
    home, checkpoints = copy("pulid-v0.9.1")
    path = home / "pulid_flux_v0.9.1.safetensors"
    state = small_weights.tensors("pulid-flux")
    for key in ("pulid_ca.0.norm1.bias", "pulid_ca.0.norm1.weight"):
        del state[key]
    save_file({**state, "stray": torch.zeros(1), "pulid_encoder.latents": torch.zeros(3)}, path)
    problem = only(quick([loosened(checkpoints[0])], home))
    assert problem.what == (
        "does not hold the tensors of pulid-v0.9.1: "
        "2 keys are missing (pulid_ca.0.norm1.bias, pulid_ca.0.norm1.weight); 1 keys are unknown (stray); "
        "1 shapes differ (pulid_encoder.latents is [3], expected [1, 2, 2])"
    )
    assert problem.remedy == FETCH_AGAIN


def test_a_file_of_another_checkpoint_is_called_by_its_name(copy):
    home, checkpoints = copy("flux1-dev", "clip-l")
    shutil.copy(home / "FLUX.1-dev/text_encoder/model.safetensors", home / "FLUX.1-dev/flux1-dev.safetensors")
    problem = only(quick([loosened(checkpoints[0])], home))
    assert problem.what.startswith(
        "does not hold the tensors of flux1-dev, but those of clip-l: 780 keys are"
    )


def test_a_file_of_another_size_is_another_version(whole, copy):
    home, checkpoints = copy("pulid-v0.9.1")
    known = replace(checkpoints[0].files[0], size=1_142_099_520)
    problem = only(quick([replace(checkpoints[0], files=(known,))], home))
    size = (home / known.path).stat().st_size
    assert problem.what == f"is another version: {size:,} bytes, expected 1,142,099,520"


def test_a_file_as_large_as_another_that_is_known_is_called_by_its_name(whole, copy, monkeypatch):
    home, checkpoints = copy("flux1-dev", "flux1-krea-dev")
    state = small_weights.tensors("flux-transformer-bfl")
    save_file(state, home / "FLUX.1-dev/flux1-dev.safetensors", metadata={"title": "Flux.1-Krea-dev"})
    size = (home / "FLUX.1-dev/flux1-dev.safetensors").stat().st_size
    krea = replace(checkpoints[1], files=(replace(checkpoints[1].files[0], size=size),))
    monkeypatch.setattr("weights.verify.MANIFEST", (krea,))
    what = only(quick(checkpoints[:1], home)).what
    assert what.endswith(", as FLUX.1-Krea-dev/flux1-krea-dev.safetensors has")


# ---- versions under a wrong name ----


def test_v090_under_the_name_of_v091_is_found_by_its_hash(whole, copy, monkeypatch):
    home, checkpoints = copy("pulid-v0.9.1", "pulid-v0.9.0")
    (home / "pulid_flux_v0.9.0.safetensors").replace(home / "pulid_flux_v0.9.1.safetensors")
    assert quick(checkpoints[:1], home) == []  # same size, same tensors
    monkeypatch.setattr("weights.verify.MANIFEST", tuple(whole[1].values()))
    problem = only(thorough(checkpoints[:1], home))
    assert problem.what.startswith("has SHA-256 ")
    assert problem.what.endswith("; it is pulid_flux_v0.9.0.safetensors under another name")
    assert problem.remedy == FETCH_AGAIN


def test_with_a_lock_entry_the_quick_check_finds_it_too(copy):
    home, checkpoints = copy("pulid-v0.9.1", "pulid-v0.9.0")
    record(home, "pulid_flux_v0.9.0.safetensors", "pulid_flux_v0.9.1.safetensors")
    shutil.copy(home / "pulid_flux_v0.9.0.safetensors", home / "pulid_flux_v0.9.1.safetensors")
    assert only(quick(checkpoints, home)).what == (
        "has changed since weights.lock.json recorded it; "
        "it is pulid_flux_v0.9.0.safetensors under another name"
    )


def test_a_changed_number_in_a_recorded_file_is_found(copy):
    home, checkpoints = copy("ae")
    path = home / "FLUX.1-dev/ae.safetensors"
    record(home, "FLUX.1-dev/ae.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert only(quick(checkpoints, home)).what == "has changed since weights.lock.json recorded it"


def test_a_file_recorded_as_another_version_is_found(copy):
    home, checkpoints = copy("ae")
    save_file(
        small_weights.tensors("flux-autoencoder-bfl", 9.0),
        home / "FLUX.1-dev/ae.safetensors",
        {"format": "pt"},
    )
    record(home, "FLUX.1-dev/ae.safetensors")
    assert only(quick(checkpoints, home)).what.startswith("is another version: SHA-256 ")


def test_the_operators_word_counts_more_than_the_manifests(copy):
    home, checkpoints = copy("ae")
    save_file(
        small_weights.tensors("flux-autoencoder-bfl", 9.0),
        home / "FLUX.1-dev/ae.safetensors",
        {"title": "my own autoencoder"},
    )
    assert only(quick(checkpoints, home)).what.startswith("is another version")
    record(home, "FLUX.1-dev/ae.safetensors", trust="operator")
    assert quick(checkpoints, home) == thorough(checkpoints, home) == []


def test_a_file_pinned_by_its_first_fetch_must_keep_its_hash(copy):
    """A change between the blocks of the fingerprint, which only the hash shows."""
    home, checkpoints = copy("clip-tokenizer")
    path = home / "FLUX.1-dev/tokenizer/vocab.json"
    path.write_bytes(b'{"a": "' + b"x" * 1_000_000 + b'"}')
    record(home, "FLUX.1-dev/tokenizer/vocab.json")
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    assert quick(checkpoints, home) == []
    assert only(thorough(checkpoints, home)).what.startswith("has SHA-256 ")


# ---- shards ----

SHARD = "FLUX.1-dev/transformer/diffusion_pytorch_model-0000{}-of-00003.safetensors"
INDEX = "FLUX.1-dev/transformer/diffusion_pytorch_model.safetensors.index.json"


def test_a_shard_of_another_set_is_named(copy):
    home, checkpoints = copy("flux1-dev-diffusers")
    shutil.copy(home / SHARD.format(1), home / SHARD.format(2))
    problem = only(quick([loosened(checkpoints[0])], home))
    assert problem.file == home / SHARD.format(2)
    assert problem.what.startswith(
        "is a shard of another set: it and diffusion_pytorch_model.safetensors.index.json"
    )
    assert "differ in 774 tensors (context_embedder.bias, " in problem.what


def test_an_index_that_lists_shards_that_are_not_there_is_named(copy):
    home, checkpoints = copy("flux1-dev-diffusers")
    index = json.loads((home / INDEX).read_text())
    index["weight_map"]["x_embedder.weight"] = "diffusion_pytorch_model-00004-of-00004.safetensors"
    (home / INDEX).write_text(json.dumps(index))
    problem = only(quick(checkpoints, home))
    assert problem.file == home / INDEX
    assert problem.what == (
        "lists shards that do not belong to this checkpoint "
        "(diffusion_pytorch_model-00004-of-00004.safetensors)"
    )


CURSOR = b'{"weight_map": {"\\u001b[2J": "diffusion_pytorch_model-00001-of-00003.safetensors"}}'


@pytest.mark.parametrize(
    "content", [b"[]}", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', b"{'}", CURSOR]
)
def test_an_index_that_is_none_is_named(copy, content):
    home, checkpoints = copy("flux1-dev-diffusers")
    (home / INDEX).write_bytes(content)
    assert only(quick(checkpoints, home)).what == "is damaged, or no index of shards"


def test_tensors_missing_from_all_shards_are_told_of_the_folder(copy):
    home, checkpoints = copy("t5-xxl")
    files = [home / f"FLUX.1-dev/text_encoder_2/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    state = small_weights.tensors("t5-xxl")
    del state["shared.weight"]
    small_weights.write_shards(files, state)
    problem = only(quick([loosened(checkpoints[0])], home))
    assert problem.file == home / "FLUX.1-dev/text_encoder_2"
    assert problem.what == "does not hold the tensors of t5-xxl: 1 keys are missing (shared.weight)"


# ---- copies, lock files, rights ----


def test_a_converted_copy_is_checked_in_the_place_of_its_pickle(copy):
    home, checkpoints = copy("bisenet")
    (home / "parsing_bisenet.pth").write_bytes(b"not looked at")
    save_file(small_weights.tensors("bisenet"), home / "parsing_bisenet.safetensors")
    assert quick(checkpoints, home) == thorough(checkpoints, home) == []
    save_file({"a": torch.zeros(1)}, home / "parsing_bisenet.safetensors")
    assert only(quick(checkpoints, home)).file == home / "parsing_bisenet.safetensors"


def test_a_lock_file_that_cannot_be_used_is_an_error(copy):
    home, checkpoints = copy("ae")
    (home / lock.NAME).write_text("{")
    with pytest.raises(WrongFile, match=r"weights\.lock\.json"):
        quick(checkpoints, home)


def test_a_file_that_this_user_may_not_read_is_named(copy):
    home, checkpoints = copy("ae")
    (home / "FLUX.1-dev/ae.safetensors").chmod(0)
    user = os.geteuid()
    if user == 0:  # may read everything
        os.seteuid(65534)
    try:
        assert only(check_of_one(checkpoints[0], home)).what == "cannot be read: Permission denied"
    finally:
        os.seteuid(user)


def check_of_one(checkpoint, home):
    return examine(checkpoint, held_of(checkpoint, home, {}), {}, tables=small_weights.tables)


# ---- onnx ----


def test_an_onnx_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.onnx"
    whole = small_weights.onnx(300)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert onnx_problem(path)
    path.write_bytes(whole)
    assert onnx_problem(path) == ""
    path.write_bytes(whole[:-7])
    assert onnx_problem(path) == "is cut short: 7 bytes are missing at its end"


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        gzip.compress(b"x" * 50),
        b"\x08\x08",
        b"\x08" + b"\xff" * 11,
        b"\x0b",
        b"\x08\x08" * 20_000,
        b"\x80" * 5,
    ],
)
def test_what_is_no_onnx_model_is_refused(tmp_path, data):
    (tmp_path / "x.onnx").write_bytes(data)
    assert onnx_problem(tmp_path / "x.onnx").startswith("is no ONNX model")


def test_a_real_model_is_one():
    assert [onnx_problem(vectron_models_dir() / name) for name in VECTRON_MODELS] == ["", ""]
