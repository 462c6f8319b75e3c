"""What a fetch refuses: each time one paragraph that names the file or page and says what to do."""

import json
import re
import shutil
from contextlib import closing, suppress
from pathlib import Path

import pytest
from huggingface_hub import constants

from failures.hard_times import on_own_disk
from fetching.processes import weights_command
from fetching.small_model import REPO, files_in, onnx, pickle, published, safetensors, whole_model
from live_server import wait_until
from weights import lock
from weights.download import fetch
from weights.errors import (
    AccessDenied,
    FetchFailed,
    NotEnoughRoom,
    UntrustedFile,
    WeightsError,
    WrongFile,
)
from weights.tables import Table

NOTHING = re.compile("(?!)")


def refused(kind, checkpoints, home, watcher, **how):
    """The text of the refusal; it is one paragraph, and no file got a name by it."""
    before = files_in(home) if home.exists() else {}
    with pytest.raises(WeightsError) as caught:
        fetch(checkpoints, home, watcher, **how)
    assert type(caught.value) is kind or (kind is FetchFailed and isinstance(caught.value, FetchFailed))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    assert (files_in(home) if home.exists() else {}) == before
    return text


def parts_in(home):
    return [path for path in (home / ".fetch").rglob("*") if path.is_file()]


# ---- wrong files ----


def test_bytes_that_are_not_the_published_ones_are_deleted_and_named(hub, home, watcher):
    right, wrong = safetensors(), safetensors(seed=1)
    checkpoint = published(hub, "ae", {"ae.safetensors": right})
    hub.add(REPO, "ae.safetensors", wrong, etag=checkpoint.files[0].sha256)  # and the server swears they are
    text = refused(WrongFile, [checkpoint], home, watcher)
    assert "/ae.safetensors is not the file that this version of the server knows" in text
    assert "HF_ENDPOINT" in text
    assert parts_in(home) == []


def test_a_server_that_tells_another_hash_is_not_asked_for_a_byte(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()})
    hub.add(REPO, "ae.safetensors", safetensors(seed=1))
    refused(WrongFile, [checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == []


def test_a_server_that_tells_another_size_is_not_asked_for_a_byte(hub, home, watcher):
    how = {"told_size": 99}
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, how=how)
    assert "99 bytes" in refused(WrongFile, [checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == []


def test_a_file_that_grows_while_it_comes_is_refused(hub, home, watcher):
    how = {"told_size": 3000}
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, known=False, how=how)
    assert "more than 3000 bytes" in refused(WrongFile, [checkpoint], home, watcher)
    assert watcher.bytes <= 3000
    assert parts_in(home) == []


def test_the_hub_s_own_hash_counts_for_a_file_of_unknown_hash(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, known=False, how={"etag": "0" * 64})
    assert "SHA-256" in refused(WrongFile, [checkpoint], home, watcher)


def test_a_pinned_file_must_stay_the_same_ever_after(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, known=False)
    fetch([checkpoint], home, watcher)
    (home / "ae.safetensors").unlink()
    hub.add(REPO, "ae.safetensors", safetensors(seed=1))
    text = refused(WrongFile, [checkpoint], home, watcher)
    assert "is not what it was when it was first fetched" in text
    assert lock.NAME in text
    hub.add(REPO, "ae.safetensors", safetensors())
    fetch([checkpoint], home, watcher)
    assert files_in(home) == {"ae.safetensors": safetensors()}


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("ae.safetensors", safetensors()[:-100], "cut short"),
        ("ae.safetensors", b"<!doctype html>" + b" " * 600, "web page"),
        ("config.json", b"<!doctype html>" + b" " * 600, "web page"),
        ("eva.pt", b"no pickle at all" * 50, "cut short, damaged"),
        ("a.onnx", onnx()[:-100], "cut short"),
    ],
)
def test_a_file_of_unknown_hash_must_at_least_be_what_its_name_says(hub, home, watcher, name, data, what):
    checkpoint = published(hub, "it", {name: data}, known=False)
    text = refused(WrongFile, [checkpoint], home, watcher, trust_first=["it"])
    assert what in text
    assert parts_in(home) == []
    assert lock.read(home) == {}


def test_tensors_of_another_model_are_refused(hub, home, watcher, monkeypatch):
    table = Table(
        required={"0.0": (1024,), "0.1": (512, 2), "0.9": (3,)},
        optional={"0.2": (1024,)},
        ignored=NOTHING,
        dtypes=frozenset({"F32"}),
    )
    monkeypatch.setattr("weights.tables.table", {"small": table}.__getitem__)
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, known=False, table="small")
    text = refused(WrongFile, [checkpoint], home, watcher)
    assert "1 keys are missing (0.9)" in text
    assert "1 keys are unknown (0.3)" in text
    assert "0.1 is [1024], expected [512, 2]" in text


def test_a_shard_needs_some_of_the_keys_and_no_others(hub, home, watcher, monkeypatch):
    info = {f"{n}.{index}": (1024,) for n in (1, 2) for index in range(4)}
    table = Table(required=info, optional={}, ignored=NOTHING, dtypes=frozenset({"F32"}))
    monkeypatch.setattr("weights.tables.table", {"small": table}.__getitem__)
    files = {f"t5/model-0000{n}-of-00002.safetensors": safetensors(seed=n) for n in (1, 2)}
    fetch([published(hub, "t5", files, known=False, table="small")], home, watcher)
    assert files_in(home) == files
    wrong = {f"t6/model-0000{n}-of-00002.safetensors": safetensors(seed=3) for n in (1, 2)}
    text = refused(WrongFile, [published(hub, "t6", wrong, known=False, table="small")], home / "2", watcher)
    assert "4 keys are unknown" in text


# ---- files that could hold code ----


@pytest.mark.parametrize(("name", "data"), [("eva.pt", pickle()), ("r.pth", pickle()), ("a.onnx", onnx())])
def test_a_file_that_could_hold_code_needs_a_person_s_word_if_its_hash_is_unknown(
    hub, home, watcher, name, data
):
    checkpoint = published(hub, "it", {name: data}, known=False)
    text = refused(UntrustedFile, [checkpoint], home, watcher, trust_first=["another"])
    assert text.startswith(f"{name}: ")
    assert "--trust-first it" in text
    assert hub.seen == []
    fetch([checkpoint], home, watcher, trust_first=["it"])
    assert lock.read(home)[name].trust == "operator"


def test_a_person_s_word_is_for_that_very_file(hub, home, watcher):
    checkpoint = published(hub, "eva", {"eva.pt": pickle()}, known=False)
    fetch([checkpoint], home, watcher, trust_first=["eva"])
    (home / "eva.pt").unlink()
    fetch([checkpoint], home, watcher)  # nobody has to say it twice
    (home / "eva.pt").unlink()
    hub.add(REPO, "eva.pt", pickle(1))
    refused(WrongFile, [checkpoint], home, watcher, trust_first=["eva"])


# ---- files that are there ----


def test_a_file_that_changed_after_its_fetch_is_not_touched_and_named(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()})
    fetch([checkpoint], home, watcher)
    (home / "ae.safetensors").write_bytes(safetensors(seed=1))
    text = refused(WrongFile, [checkpoint], home, watcher)
    assert text.startswith(str(home / "ae.safetensors"))
    assert "Delete it" in text


@pytest.mark.parametrize("known", [True, False])
def test_half_a_file_from_elsewhere_is_not_taken_and_not_deleted(hub, home, watcher, known):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()}, known=known)
    home.mkdir()
    (home / "ae.safetensors").write_bytes(safetensors()[:-1])
    text = refused(WrongFile, [checkpoint], home, watcher)
    assert text.startswith("ae.safetensors in the weights folder is not the file of that name")
    assert lock.read(home) == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": {}}}']
)
def test_a_damaged_lock_file_is_named_and_kept(hub, home, watcher, text):
    home.mkdir()
    (home / lock.NAME).write_text(text)
    said = refused(WrongFile, [published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    assert str(home / lock.NAME) in said
    assert (home / lock.NAME).read_text() == text


# ---- servers that refuse ----


def test_a_gated_page_is_named_to_one_without_a_token(hub, home, watcher):
    others = published(hub, "eva", {"eva.pt": pickle()}, repo="QuanSun/EVA-CLIP")
    gated = published(hub, "ae", {"ae.safetensors": safetensors()}, gated=True)
    text = refused(AccessDenied, [others, gated], home, watcher)
    assert f"open https://huggingface.co/{REPO} in a browser" in text
    assert "HF_TOKEN" in text
    assert "hf auth login" in text
    assert hub.ranges("eva.pt") == [], "nothing is fetched when something else cannot be"


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_without_access_is_told_from_none(hub, home, watcher, monkeypatch, status):
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    hub.status = status
    text = refused(
        AccessDenied, [published(hub, "ae", {"ae.safetensors": safetensors()}, gated=True)], home, watcher
    )
    assert text.startswith(f"The token has no access to {REPO} (HTTP {status}). Open https://huggingface.co/")
    assert "hf_of_another" not in text


def test_a_token_that_is_not_valid_is_no_help_with_open_repositories(hub, home, watcher, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    checkpoint = published(hub, "eva", {"eva.pt": pickle()}, repo="QuanSun/EVA-CLIP")
    text = refused(AccessDenied, [checkpoint], home, watcher)
    assert "unset HF_TOKEN" in text
    assert "https://huggingface.co/QuanSun/EVA-CLIP" in text


def test_a_repository_that_is_gone_is_named(hub, home, watcher):
    checkpoint = published(hub, "eva", {"eva.pt": pickle()}, repo="QuanSun/EVA-CLIP")
    hub.files.clear()
    assert "eva.pt of QuanSun/EVA-CLIP" in refused(AccessDenied, [checkpoint], home, watcher)


@pytest.mark.parametrize("release", [False, True])
def test_a_file_that_is_gone_is_named(hub, home, watcher, release):
    files = {"a.safetensors": safetensors(), "b.safetensors": safetensors(1)}
    checkpoint = published(hub, "ae", files, release=release)
    hub.files.pop((REPO, "b.safetensors"), None)
    hub.releases.pop("b.safetensors", None)
    text = refused(FetchFailed, [checkpoint], home, watcher)
    assert "b.safetensors" in text
    assert "HTTP 404" in text
    assert "weights import" in text


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_with_troubles_is_to_be_asked_later(hub, home, watcher, status):
    hub.status = status
    text = refused(FetchFailed, [published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    assert f"cannot answer now (HTTP {status})" in text


def test_offline_says_how_files_come_in_without_a_network(hub, home, watcher, monkeypatch):
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors()})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    text = refused(FetchFailed, [checkpoint], home, watcher)
    assert text.startswith("127.0.0.1:9 cannot be reached")
    assert "weights import" in text


def test_the_hub_client_s_offline_switch_is_obeyed(hub, home, watcher, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = refused(FetchFailed, [published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    assert "HF_HUB_OFFLINE" in text
    assert hub.seen == []


def test_a_log_in_page_in_between_is_not_taken_for_the_hub(hub, home, watcher):
    hub.is_hub = False
    text = refused(FetchFailed, [published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    assert "does not answer as the Hub does" in text


# ---- disks ----


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(hub, home, watcher, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    text = refused(NotEnoughRoom, whole_model(hub), home, watcher)
    assert "Nothing was fetched" in text
    assert "--weights-dir" in text
    assert hub.ranges("ae.safetensors") == []


def test_a_disk_that_fills_on_the_way_is_told_and_the_rest_comes_later(hub, home, tmp_path, watcher):
    data = safetensors(count=64)  # 256 KB
    checkpoint = published(hub, "ae", {"ae.safetensors": data})
    limited = ["prlimit", "--fsize=100000"]
    fetching = weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}", before=limited)
    with closing(fetching) as full:
        assert full.wait() == 2
        assert "Error: The disk of" in full.said()
        assert "goes on where it stopped" in full.said()
    assert files_in(home) == {}
    hub.seen.clear()
    fetch([checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == ["bytes=100000-"]
    assert files_in(home) == {"ae.safetensors": data}


@pytest.mark.release  # mounts a small disk, which not every machine allows
def test_a_disk_that_others_fill_on_the_way_is_told(hub, home, tmp_path):
    how = {"bytes_per_s": 100_000}
    checkpoint = published(hub, "ae", {"ae.safetensors": safetensors(count=256)}, how=how)  # 1 MB
    home.mkdir()
    own_disk = on_own_disk(home, 2, [])
    fetching = weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}", before=own_disk)
    with closing(fetching) as full:
        seen = Path(f"/proc/{full.process.pid}/root{home}")
        wait_until(lambda: any(parts_in(seen)), 20, full.said)
        with (seen / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(b"\0" * 2**16):
                pass
        assert full.wait() == 2
    assert "took no more (No space left on device)" in full.said()


def test_a_folder_that_is_a_file_is_named(hub, home, watcher):
    home.write_text("not a folder")
    with pytest.raises(FetchFailed, match="cannot be written") as caught:
        fetch([published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    assert str(home) in str(caught.value)


# ---- a lock file that others read ----


def test_the_lock_file_is_plain_json(hub, home, watcher):
    fetch([published(hub, "ae", {"ae.safetensors": safetensors()})], home, watcher)
    content = json.loads((home / lock.NAME).read_text())
    assert content["version"] == 1
    assert {*content["files"]["ae.safetensors"]} == {"sha256", "size", "fingerprint", "source", "trust"}
