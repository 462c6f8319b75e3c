"""A converted copy holds the published numbers; it is made from proven files only, and appears whole."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from files import hostile_pickles, small_weights
from weights import convert as convert_module
from weights import lock
from weights.convert import convert, is_convertible
from weights.errors import FetchFailed, FetchInProgress, FilesMissing, NotEnoughRoom, UntrustedFile, WrongFile
from weights.manifest import MANIFEST, named
from weights.paths import path_of
from weights.tables import table
from weights.verify import check_thoroughly

NAMES = ["eva-clip", "retinaface", "bisenet"]


def varied(name):
    """No two numbers alike, in the dtypes of the published file."""
    numbers = torch.Generator().manual_seed(3)
    dtype = torch.float16 if name == "eva-clip" else torch.float32
    return {
        key: torch.randn(shape, generator=numbers).to(dtype if "num_batches" not in key else torch.int64)
        for key, shape in small_weights.tables(name).items()
    }


@pytest.fixture(params=["zip", "legacy"])
def made(request, tmp_path):
    """`made(name)`: the checkpoint, its pickle in the folder, and the state dict in that."""

    def make(name):
        checkpoint = named(name)
        state = varied(name)
        path = tmp_path / checkpoint.path
        everything = {f"module.{k}": v for k, v in state.items()} if name == "retinaface" else state
        torch.save(
            {**everything, **small_weights.others_in(path)},
            path,
            _use_new_zipfile_serialization=request.param == "zip",
        )
        file = replace(checkpoint.files[0], size=path.stat().st_size, sha256=lock.sha256_of(path))
        return replace(checkpoint, files=(file,)), tmp_path, state

    return make


def run(checkpoint, home, **how):
    return convert(checkpoint, home, tables=small_weights.tables, **how)


def test_what_is_published_as_a_pickle_is_convertible():
    assert [checkpoint.name for checkpoint in MANIFEST if is_convertible(checkpoint)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_holds_the_names_values_and_dtypes_of_the_table(made, name):
    checkpoint, home, state = made(name)
    copy = run(checkpoint, home)
    assert copy == path_of(checkpoint, home)
    assert copy.suffix == ".safetensors"
    loaded = load_file(copy)
    assert loaded.keys() == state.keys() == table(name).keys()
    for key, tensor in state.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)
    assert check_thoroughly([checkpoint], home, tables=small_weights.tables) == []


def test_a_copy_is_recorded_with_what_it_was_made_from(made):
    checkpoint, home, _ = made("bisenet")
    run(checkpoint, home)
    entry = lock.read(home)["parsing_bisenet.safetensors"]
    assert entry.source == f"parsing_bisenet.pth, SHA-256 {checkpoint.files[0].sha256}"
    assert entry.sha256 == lock.sha256_of(home / "parsing_bisenet.safetensors")
    assert entry.trust == "pinned"


def test_converting_again_does_nothing_unless_the_copy_changed(made):
    checkpoint, home, _ = made("bisenet")
    copy = run(checkpoint, home)
    before = copy.stat().st_mtime_ns
    assert run(checkpoint, home) is None
    assert copy.stat().st_mtime_ns == before
    copy.write_bytes(copy.read_bytes()[:-1])
    assert run(checkpoint, home) == copy
    assert check_thoroughly([checkpoint], home, tables=small_weights.tables) == []


def test_the_pickle_may_be_deleted_afterwards(made):
    checkpoint, home, _ = made("bisenet")
    run(checkpoint, home)
    (home / "parsing_bisenet.pth").unlink()
    assert run(checkpoint, home) is None
    assert check_thoroughly([checkpoint], home, tables=small_weights.tables) == []


def test_tensors_that_share_memory_or_lie_crosswise_keep_their_values(made):
    checkpoint, home, state = made("bisenet")
    keys = [key for key in state if tuple(state[key].shape) == (2, 2, 1, 1)][:2]
    square = torch.randn(2, 2, 1, 1)
    state |= {keys[0]: square.transpose(0, 1), keys[1]: square}
    torch.save(state, home / checkpoint.path)
    loose = replace(
        checkpoint,
        files=(replace(checkpoint.files[0], size=None, sha256=lock.sha256_of(home / checkpoint.path)),),
    )
    loaded = load_file(run(loose, home))
    assert torch.equal(loaded[keys[0]], square.transpose(0, 1))
    assert torch.equal(loaded[keys[1]], square)


# ---- what is not converted ----


def only_the_pickle(home):
    return {path.name for path in home.iterdir()} <= {"parsing_bisenet.pth", ".fetch.lock"}


def test_a_pickle_of_another_hash_is_not_converted(made):
    checkpoint, home, state = made("bisenet")
    torch.save({key: tensor + 1 for key, tensor in state.items()}, home / checkpoint.path)
    loose = replace(checkpoint, files=(replace(checkpoint.files[0], size=None),))
    with pytest.raises(WrongFile, match=r"parsing_bisenet\.pth has SHA-256 .* expected .* Delete it and run"):
        run(loose, home)
    assert only_the_pickle(home)


def test_a_pickle_with_other_tensors_or_code_is_not_converted(made, tmp_path_factory):
    checkpoint, home, state = made("bisenet")
    mark = tmp_path_factory.mktemp("mark") / "it-ran"
    loose = replace(checkpoint, files=(replace(checkpoint.files[0], size=None, sha256="0" * 64),))
    torch.save({"a": torch.zeros(1)}, home / checkpoint.path)
    with pytest.raises(WrongFile, match="does not hold the tensors of bisenet"):
        run(loose, home)
    torch.save({**state, "x": hostile_pickles.objects(mark)["eval"]}, home / checkpoint.path)
    with pytest.raises(WrongFile, match="holds code or objects"):
        run(loose, home)
    assert not mark.exists()
    assert only_the_pickle(home)


def test_a_pickle_of_which_nobody_knows_the_hash_is_not_converted(made):
    checkpoint, home, _ = made("bisenet")
    loose = replace(checkpoint, files=(replace(checkpoint.files[0], size=None, sha256=None),))
    with pytest.raises(UntrustedFile, match="fetch bisenet --trust-first bisenet"):
        run(loose, home)
    entry = lock.entry_of(
        home / checkpoint.path, sha256=checkpoint.files[0].sha256, source="test", trust="operator"
    )
    lock.record(home, {checkpoint.path: entry})
    assert run(loose, home)
    assert lock.read(home)["parsing_bisenet.safetensors"].trust == "operator"


def test_a_pickle_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FilesMissing, match=r"parsing_bisenet\.pth is missing"):
        run(named("bisenet"), tmp_path)


# ---- what goes wrong on the way ----


def test_without_room_nothing_is_written(made, monkeypatch):
    checkpoint, home, _ = made("bisenet")
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(NotEnoughRoom, match=r"may take 0\.1 GB, and its disk has 0\.0 GB free"):
        run(checkpoint, home)
    assert only_the_pickle(home)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_copy_that_could_not_be_finished_leaves_nothing(made, monkeypatch, failing):
    checkpoint, home, _ = made("bisenet")

    def fail(*_):
        raise OSError(28, "No space left on device")

    target = os if failing == "fsync" else convert_module.Path
    monkeypatch.setattr(target, failing, fail)
    with pytest.raises(FetchFailed, match=r"parsing_bisenet\.safetensors cannot be written: No space left"):
        run(checkpoint, home)
    assert only_the_pickle(home)


def test_a_copy_that_a_killed_command_left_half_done_is_made_anew(made):
    checkpoint, home, _ = made("bisenet")
    (home / ".parsing_bisenet.safetensors.part.safetensors").write_bytes(b"half")
    assert run(checkpoint, home)
    assert not list(home.glob(".*part*"))


def test_two_commands_at_once_are_one_too_many(made):
    checkpoint, home, _ = made("bisenet")
    with lock.fetching(home), pytest.raises(FetchInProgress):
        run(checkpoint, home)
