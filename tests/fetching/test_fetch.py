"""Everything arrives, is proven, and is recorded; and nobody is asked for what is there."""

import hashlib

from fetching.small_model import REPO, files_in, onnx, pickle, published, safetensors, shards, whole_model
from hub_server import TOKEN
from weights import lock
from weights.download import fetch
from weights.verify import require


def test_every_kind_of_file_arrives_whole_and_passes_the_check_before_a_start(hub, home, watcher):
    model = whole_model(hub)
    fetch(model, home, watcher)
    wanted = {
        "ae.safetensors": safetensors(),
        **shards(),
        "eva.pt": pickle(),
        "faces/a.onnx": onnx(1),
        "faces/b.onnx": onnx(2),
        "retinaface.pth": pickle(1),
    }
    assert files_in(home) == wanted
    require(model, home)
    assert watcher.bytes == sum(map(len, wanted.values()))
    assert {*watcher.finished} == {*wanted}


def test_the_lock_file_says_what_each_file_is_and_who_vouches_for_it(hub, home, watcher):
    fetch(whole_model(hub), home, watcher)
    entries = lock.read(home)
    assert entries == watcher.finished
    data = safetensors()
    ae = entries["ae.safetensors"]
    assert (ae.sha256, ae.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert ae.source.startswith(f"https://huggingface.co/{REPO}/resolve/")
    assert {path for path, entry in entries.items() if entry.trust == "pinned"} == {*shards()}
    assert {entry.trust for path, entry in entries.items() if path not in shards()} == {"shipped"}
    assert (home / lock.NAME).stat().st_mode & 0o777 == 0o644


def test_nothing_is_left_of_the_way_there(hub, home, watcher):
    fetch(whole_model(hub), home, watcher)
    assert not (home / ".fetch").exists()


def test_what_is_there_is_not_asked_for_again_even_offline(hub, home, watcher, monkeypatch):
    model = whole_model(hub)
    fetch(model, home, watcher)
    hub.seen.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    fetch(model, home, watcher)
    assert hub.seen == []
    assert watcher.announced == []


def test_only_the_file_that_is_missing_is_fetched(hub, home, watcher):
    model = whole_model(hub)
    fetch(model, home, watcher)
    (home / "faces/b.onnx").unlink()
    hub.seen.clear()
    fetch(model, home, watcher)
    assert watcher.announced == ["faces/b.onnx"]
    assert {one.path.rpartition("/")[2] for one in hub.seen} == {"b.onnx"}
    assert files_in(home)["faces/b.onnx"] == onnx(2)


def test_nothing_is_written_when_all_is_there(hub, home, watcher):
    """So a folder that is mounted read-only will do."""
    model = whole_model(hub)
    fetch(model, home, watcher)
    (home / ".fetch.lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    fetch(model, home, watcher)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub, home, watcher, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    gated = published(hub, "ae", {"ae.safetensors": safetensors()}, gated=True)
    release = published(hub, "retinaface", {"retinaface.pth": pickle()}, release=True)
    fetch([gated, release], home, watcher)
    on_the_hub = [one for one in hub.seen if "/resolve/" in one.path]
    assert {one.authorization for one in on_the_hub} == {f"Bearer {TOKEN}"}
    assert {one.authorization for one in hub.seen if one not in on_the_hub} == {None}
    assert {one.host for one in hub.seen if one not in on_the_hub} == {"hub", "storage"}


def test_a_stored_log_in_is_as_good_as_the_variable(hub, home, watcher, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)
    fetch([published(hub, "ae", {"ae.safetensors": safetensors()}, gated=True)], home, watcher)
    assert files_in(home) == {"ae.safetensors": safetensors()}


def test_a_file_that_is_there_already_is_checked_and_recorded_without_a_server(home, watcher, hub):
    model = whole_model(hub)
    fetch(model, home, watcher)
    (home / lock.NAME).unlink()
    hub.seen.clear()
    fetch(model, home, watcher)
    assert hub.seen == []
    assert {entry.source for entry in lock.read(home).values()} == {"found in the folder"}
    require(model, home)


def test_a_converted_copy_stands_for_a_pickle(hub, home, watcher):
    checkpoint = published(hub, "eva", {"eva.pt": pickle()})
    home.mkdir()
    (home / "eva.safetensors").write_bytes(safetensors())
    fetch([checkpoint], home, watcher)
    assert hub.seen == []
