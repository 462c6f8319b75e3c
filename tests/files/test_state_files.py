"""Checkpoint files as state dicts: what is read, and the words for what cannot be."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from pulid.errors import WeightsMissing
from pulid.state_files import metadata_of, read_state

A, B = torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16)


def save_shards(folder, shards, weight_map=None):
    """A folder of shards, with an index that is right unless another is given."""
    folder.mkdir()
    for name, state in shards.items():
        save_file(state, folder / name)
    right = {key: name for name, state in shards.items() for key in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": right | (weight_map or {})}))
    return folder


def same(state, wanted):
    return state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted)


# ---- what is read ----


def test_a_safetensors_file_is_read_with_its_metadata(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "x.safetensors", metadata={"rank": "4"})
    assert same(read_state(tmp_path / "x.safetensors"), {"a": A, "b": B})
    assert metadata_of(tmp_path / "x.safetensors") == {"rank": "4"}


def test_a_folder_of_shards_is_read_by_its_index_and_files_beside_them_are_left_alone(tmp_path):
    folder = save_shards(tmp_path / "x", {"m-1-of-2.safetensors": {"a": A}, "m-2-of-2.safetensors": {"b": B}})
    save_file({"a": A + 1}, folder / "model.fp16.safetensors")
    assert same(read_state(folder), {"a": A, "b": B})


def test_a_folder_with_one_file_needs_no_index(tmp_path):
    (tmp_path / "x").mkdir()
    save_file({"a": A}, tmp_path / "x" / "model.safetensors")
    assert same(read_state(tmp_path / "x"), {"a": A})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "of before torch 1.6"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_both_formats_of_torch_are_read_without_the_prefix_of_parallel_training(tmp_path, zipped, suffix):
    file = tmp_path / f"x{suffix}"
    torch.save({"module.a": A, "b.module.c": B}, file, _use_new_zipfile_serialization=zipped)
    assert same(read_state(file), {"a": A, "b.module.c": B})


# ---- what is not ----


class RunsCode:
    def __reduce__(self):
        return (print, ("this must not run",))


class Grows:
    """A pickle of a few bytes that wants memory for a gigabyte."""

    def __reduce__(self):
        return (bytearray, (1 << 30,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "of before torch 1.6"])
@pytest.mark.parametrize("bomb", [RunsCode, Grows])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_run(tmp_path, capsys, bomb, zipped):
    torch.save({"a": bomb()}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsMissing, match=r"x\.pth holds more than tensors.*nothing of it was run.*weights fetch"
    ):
        read_state(tmp_path / "x.pth")
    assert capsys.readouterr().out == ""


def test_an_archive_that_grows_when_it_is_unpacked_is_refused(tmp_path):
    torch.save({"a": A}, tmp_path / "right.pth")
    with (
        zipfile.ZipFile(tmp_path / "right.pth") as right,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in right.namelist():
            packed.writestr(name, right.read(name))
    with pytest.raises(WeightsMissing, match=r"x\.pth is damaged, cut short, or no checkpoint of torch"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", pickle.dumps([1, 2], protocol=2)[:4], b"PK\x03\x04" * 50]
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsMissing, match=rf"{name} is damaged.*weights fetch"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_half_downloaded_file_is_refused(tmp_path, name):
    file = tmp_path / name
    (torch.save if name == "x.pth" else save_file)({"a": torch.zeros(10_000)}, file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsMissing, match=rf"{name} is damaged"):
        read_state(file)


def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused(tmp_path, capsys):
    torch.save({"a": RunsCode()}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsMissing, match=r"x\.safetensors is damaged"):
        read_state(tmp_path / "x.safetensors")
    assert capsys.readouterr().out == ""


def test_a_header_that_claims_to_be_endless_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(WeightsMissing, match=r"x\.safetensors is damaged"):
        read_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "held", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}], ids=["tensor", "list", "int"]
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(WeightsMissing, match=r"x\.pth holds no state dict"):
        read_state(tmp_path / "x.pth")


def test_a_training_checkpoint_is_refused_with_what_is_no_tensor(tmp_path):
    torch.save({"state_dict": {"a": A}, "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsMissing, match=r"no tensors \(state_dict\)"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["bisenet.pth", "bisenet.safetensors"])
def test_an_absent_file_is_named(tmp_path, name):
    with pytest.raises(WeightsMissing, match=rf"{name} does not exist"):
        read_state(tmp_path / name)


# ---- folders ----


def test_a_missing_shard_is_named(tmp_path):
    folder = save_shards(tmp_path / "x", {"m-1-of-2.safetensors": {"a": A}, "m-2-of-2.safetensors": {"b": B}})
    (folder / "m-2-of-2.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"m-2-of-2\.safetensors does not exist"):
        read_state(folder)


@pytest.mark.parametrize("change", [{"a": A, "stray": B}, {"stray": A}], ids=["too many", "another"])
def test_a_shard_of_another_version_than_its_index_is_refused(tmp_path, change):
    folder = save_shards(tmp_path / "x", {"m-1-of-2.safetensors": {"a": A}, "m-2-of-2.safetensors": {"b": B}})
    save_file(change, folder / "m-1-of-2.safetensors")
    with pytest.raises(
        WeightsMissing, match=r"m-1-of-2\.safetensors and model.* do not belong together.*differ in (a|stray)"
    ):
        read_state(folder)


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}', b"[" * 100_000]
)
def test_a_damaged_index_is_refused(tmp_path, index):
    folder = save_shards(tmp_path / "x", {"m.safetensors": {"a": A}})
    (folder / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(WeightsMissing, match=r"index\.json is damaged"):
        read_state(folder)


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    save_file({"a": A}, tmp_path / "secret.safetensors")
    folder = save_shards(tmp_path / "x", {"m.safetensors": {"b": B}}, {"a": "../secret.safetensors"})
    with pytest.raises(WeightsMissing, match="names files outside its folder"):
        read_state(folder)


def test_several_files_without_an_index_are_refused(tmp_path):
    folder = save_shards(tmp_path / "x", {"m-1.safetensors": {"a": A}, "m-2.safetensors": {"b": B}})
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsMissing, match=r"has m-1\.safetensors and m-2\.safetensors, and no index"):
        read_state(folder)


def test_two_indices_are_refused(tmp_path):
    folder = save_shards(tmp_path / "x", {"m.safetensors": {"a": A}})
    (folder / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsMissing, match=r"two indices, model\.safetensors\.index\.json and other"):
        read_state(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="has no safetensors file"):
        read_state(tmp_path)
