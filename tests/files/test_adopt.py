"""Files that other programs downloaded are recognised wherever they lie, and taken over unchanged."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from files import hostile_pickles, small_weights
from weights import adopt as adopt_module
from weights import lock
from weights.adopt import adopt
from weights.errors import FetchFailed, FetchInProgress, NotEnoughRoom, WrongFile
from weights.paths import model_paths
from weights.survey import Words, survey
from weights.verify import check_quickly, check_thoroughly


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All files of the manifest as they are published, and the checkpoints."""
    folder = tmp_path_factory.mktemp("published")
    return folder, {checkpoint.name: checkpoint for checkpoint in small_weights.make(folder)}


class Other:
    """Another program's folder, and ours."""

    def __init__(self, published, folder):
        self.published, self.checkpoints = published
        self.theirs, self.home = folder / "theirs", folder / "home"
        self.theirs.mkdir()

    def put(self, path, at):
        """A published file, under a name in their folder."""
        place = self.theirs / at
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.published / path, place)
        return place

    def look(self, place=None, *, only=None, **words):
        return survey(
            place or self.theirs,
            self.home,
            checkpoints=[self.checkpoints[name] for name in only or self.checkpoints],
            words=Words(**words),
            tables=small_weights.tables,
        )

    def take(self, **words):
        found = self.look(**words)
        adopt(found.finds, self.home)
        return found

    def wrong(self, *names):
        return check_thoroughly(
            [self.checkpoints[name] for name in names], self.home, tables=small_weights.tables
        )


@pytest.fixture
def other(published, tmp_path):
    return Other(published, tmp_path)


def taken(found):
    return {find.file.path: find.source for find in found.finds}


def snapshot(folder):
    return {
        path: (
            path.lstat().st_mtime_ns,
            path.lstat().st_size,
            path.is_symlink() or path.is_dir() or path.read_bytes(),
        )
        for path in (folder, *folder.rglob("*"))
    }


# ---- layouts of other programs ----


def test_comfyui(other):
    """Its folders, with names that people give; insightface's models one folder too deep."""
    other.put("FLUX.1-dev/flux1-dev.safetensors", "models/diffusion_models/FLUX/dev bf16.safetensors")
    other.put("FLUX.1-dev/flux1-dev-fp8.safetensors", "models/unet/flux1-dev-fp8.safetensors")
    other.put("FLUX.1-dev/ae.safetensors", "models/vae/ae.safetensors")
    other.put("flux_text_encoders/t5xxl_fp16.safetensors", "models/text_encoders/t5xxl_fp16.safetensors")
    other.put("flux_text_encoders/clip_l.safetensors", "models/clip/clip_l.safetensors")
    other.put("pulid_flux_v0.9.1.safetensors", "models/pulid/pulid_flux_v0.9.1.safetensors")
    other.put("pulid_flux_v0.9.0.safetensors", "models/pulid/pulid.safetensors")
    other.put("EVA02_CLIP_L_336_psz14_s6B.pt", "models/clip/EVA02_CLIP_L_336_psz14_s6B.pt")
    deep = "models/insightface/models/antelopev2/antelopev2"
    other.put("antelopev2/scrfd_10g_bnkps.onnx", f"{deep}/scrfd_10g_bnkps.onnx")
    other.put("antelopev2/glintr100.onnx", f"{deep}/glintr100.onnx")
    other.put("detection_Resnet50_Final.pth", "models/facexlib/detection_Resnet50_Final.pth")
    other.put("parsing_bisenet.pth", "models/facedetection/parsing_bisenet.pth")
    (other.theirs / "models/checkpoints").mkdir()
    save_file({"a": torch.zeros(3)}, other.theirs / "models/checkpoints/sd15.safetensors")
    found = other.take()
    names = [
        "flux1-dev",
        "flux1-dev-fp8",
        "ae",
        "t5-xxl-comfyui",
        "clip-l-comfyui",
        "pulid-v0.9.1",
        "pulid-v0.9.0",
    ]
    names += ["eva-clip", "antelopev2", "retinaface", "bisenet"]
    assert {find.checkpoint.name for find in found.finds} == set(names)
    assert found.refusals == []
    assert other.wrong(*names) == []
    assert {entry.trust for entry in lock.read(other.home).values()} == {"shipped"}


DIFFUSERS = ["flux1-dev-diffusers", "ae-diffusers", "t5-xxl", "t5-tokenizer", "clip-l", "clip-tokenizer"]


def put_diffusers(other, at):
    for name in DIFFUSERS:
        for file in other.checkpoints[name].files:
            other.put(file.path, f"{at}/{file.path.removeprefix('FLUX.1-dev/')}")


def test_a_diffusers_folder(other):
    put_diffusers(other, "FLUX.1-dev")
    found = other.take()
    assert found.refusals == []
    assert other.wrong(*DIFFUSERS) == []
    entries = lock.read(other.home)
    assert entries["FLUX.1-dev/tokenizer/vocab.json"].trust == "pinned"
    assert entries["FLUX.1-dev/vae/diffusion_pytorch_model.safetensors"].trust == "shipped"


def test_the_hubs_cache(other):
    """Names are links to blobs. The blobs are taken, not the links."""
    put_diffusers(other, "plain")
    hub = other.theirs / "hub/models--black-forest-labs--FLUX.1-dev"
    (hub / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted((other.theirs / "plain").rglob("*.*"))):
        name = hub / "snapshots/0ef5fff" / path.relative_to(other.theirs / "plain")
        name.parent.mkdir(parents=True, exist_ok=True)
        blob = hub / "blobs" / f"{number:040x}"
        path.rename(blob)
        name.symlink_to(os.path.relpath(blob, name.parent))
    shutil.rmtree(other.theirs / "plain")
    (hub / "snapshots/0ef5fff/gone.safetensors").symlink_to("../../blobs/gone")
    found = other.take()
    assert other.wrong(*DIFFUSERS) == []
    assert all(find.source.parent.name == "blobs" for find in found.finds)
    assert not any(path.is_symlink() for path in other.home.rglob("*"))


def test_the_reference_repository(other):
    other.put("pulid_flux_v0.9.1.safetensors", "PuLID/models/pulid_flux_v0.9.1.safetensors")
    other.put("antelopev2/scrfd_10g_bnkps.onnx", "PuLID/models/antelopev2/scrfd_10g_bnkps.onnx")
    other.put("antelopev2/glintr100.onnx", "PuLID/models/antelopev2/glintr100.onnx")
    other.put("parsing_bisenet.pth", "PuLID/facexlib/weights/parsing_bisenet.pth")
    other.take()
    assert other.wrong("pulid-v0.9.1", "antelopev2", "bisenet") == []


def test_one_file_may_be_named_too(other):
    path = other.put("FLUX.1-dev/ae.safetensors", "x/vae.safetensors")
    assert taken(other.look(path)) == {"FLUX.1-dev/ae.safetensors": path}


def test_the_weights_folder_itself_is_searched_for_what_lies_too_deep(other):
    other.theirs = other.home
    other.put("antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/antelopev2/scrfd_10g_bnkps.onnx")
    other.put("antelopev2/glintr100.onnx", "antelopev2/antelopev2/glintr100.onnx")
    other.put("FLUX.1-dev/ae.safetensors", "FLUX.1-dev/ae.safetensors")
    found = other.take()
    assert set(taken(found)) == {"antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/glintr100.onnx"}
    assert other.wrong("antelopev2") == []


def test_only_the_checkpoints_that_are_asked_for_are_looked_for(other):
    other.put("pulid_flux_v0.9.1.safetensors", "a.safetensors")
    other.put("FLUX.1-dev/ae.safetensors", "b.safetensors")
    assert set(taken(other.look(only=["ae"]))) == {"FLUX.1-dev/ae.safetensors"}


def test_links_in_a_circle_are_walked_once(other):
    path = other.put("FLUX.1-dev/ae.safetensors", "a/b/ae.safetensors")
    (other.theirs / "a/b/up").symlink_to(other.theirs)
    assert taken(other.look()) == {"FLUX.1-dev/ae.safetensors": path}


# ---- what is done with the files ----


def test_files_are_linked_and_their_folder_stays_as_it_is(other):
    put_diffusers(other, "FLUX.1-dev")
    before = snapshot(other.theirs)
    found = other.look()
    assert not other.home.exists()  # a survey writes nothing
    linked = []
    adopt(found.finds, other.home, on_done=lambda find, link: linked.append(link))
    assert all(linked)
    assert len(linked) == len(found.finds) == sum(len(other.checkpoints[name].files) for name in DIFFUSERS)
    assert all((other.home / find.file.path).samefile(find.source) for find in found.finds)
    assert snapshot(other.theirs) == before


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_is_possible_files_are_copied(other, monkeypatch, reason):
    path = other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")

    def refuse(*_):
        raise OSError(reason, "no")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    adopt(other.look().finds, other.home, on_done=lambda find, linked: None)
    copy = other.home / "FLUX.1-dev/ae.safetensors"
    assert copy.read_bytes() == path.read_bytes()
    assert not copy.samefile(path)
    assert other.wrong("ae") == []


def test_files_on_another_disk_need_room_there(other, monkeypatch):
    other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1))
    found = other.look()
    adopt(found.finds, other.home)  # a link needs none
    (other.home / "FLUX.1-dev/ae.safetensors").unlink()
    other_disk = replace(found.finds[0], source=Path("/proc/self/status"))
    with pytest.raises(NotEnoughRoom, match=r"0\.0 GB are to be copied .* Nothing was copied"):
        adopt([other_disk], other.home)
    assert not (other.home / "FLUX.1-dev/ae.safetensors").exists()


def test_a_copy_that_the_disk_does_not_take_leaves_nothing(other, monkeypatch):
    other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adopt_module, "_linked", lambda source, target: False)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(FetchFailed, match="No space left"):
        adopt(other.look().finds, other.home)
    assert list((other.home / "FLUX.1-dev").iterdir()) == []
    assert lock.read(other.home) == {}


def test_a_file_that_changes_after_it_was_recognised_is_not_taken(other):
    path = other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    found = other.look()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WrongFile, match="changed while it was taken over"):
        adopt(found.finds, other.home)
    assert list((other.home / "FLUX.1-dev").iterdir()) == []


def test_taking_over_twice_finds_everything_there(other):
    put_diffusers(other, "FLUX.1-dev")
    first = other.take()
    again = other.look()
    assert again.finds == []
    assert {file.path for file in again.there} == set(taken(first))


def test_what_a_stopped_command_linked_and_did_not_record_is_recorded(other):
    other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    other.take()
    (other.home / lock.NAME).unlink()
    (other.home / "FLUX.1-dev/.ae.safetensors.part.safetensors").write_bytes(b"half")
    other.take()
    assert set(lock.read(other.home)) == {"FLUX.1-dev/ae.safetensors"}


def test_another_file_in_its_place_is_not_replaced(other):
    path = other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    (other.home / "FLUX.1-dev").mkdir(parents=True)
    (other.home / "FLUX.1-dev/ae.safetensors").write_bytes(b"mine")
    found = other.take()
    assert found.finds == []
    assert [(r.source, r.why) for r in found.refusals] == [
        (
            path,
            "is FLUX.1-dev/ae.safetensors, but another file has its place: "
            f"delete {other.home}/FLUX.1-dev/ae.safetensors first",
        )
    ]
    assert (other.home / "FLUX.1-dev/ae.safetensors").read_bytes() == b"mine"


def test_while_another_command_changes_the_folder_nothing_is_taken(other):
    other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    with lock.fetching(other.home), pytest.raises(FetchInProgress):
        other.take()


# ---- what needs a person's word ----


def refusal(found):
    assert found.finds == []
    (one,) = found.refusals
    return one.why


def unpublished(other, table, at, dtype=torch.float32):
    (other.theirs / at).parent.mkdir(parents=True, exist_ok=True)
    save_file(small_weights.tensors(table, 77.0, dtype), other.theirs / at, metadata={"by": "a stranger"})
    return other.theirs / at


def test_tensors_that_fit_several_checkpoints_need_the_word_of_a_person(other):
    unpublished(other, "flux-transformer-bfl", "flux1-dev.safetensors")
    assert refusal(other.look()) == (
        "looks like flux1-dev or flux1-krea-dev, but is not the published file. If you know where it comes "
        "from, take it with --as flux1-dev or --as flux1-krea-dev"
    )
    found = other.take(taken_as="flux1-krea-dev")
    assert set(taken(found)) == {"FLUX.1-Krea-dev/flux1-krea-dev.safetensors"}
    assert other.wrong("flux1-krea-dev") == []
    assert {entry.trust for entry in lock.read(other.home).values()} == {"operator"}


def test_eight_bits_are_never_taken_for_an_exact_checkpoint(other):
    unpublished(other, "flux-transformer-bfl", "x.safetensors", torch.float8_e4m3fn)
    assert "looks like flux1-dev-fp8, but" in refusal(other.look())
    assert set(taken(other.look(taken_as="flux1-dev"))) == set()
    assert set(taken(other.look(taken_as="flux1-dev-fp8"))) == {"FLUX.1-dev/flux1-dev-fp8.safetensors"}


def test_a_checkpoint_of_which_no_hash_is_known_is_known_by_its_name(other):
    path = unpublished(other, "pulid-flux", "pulid_flux_v0.9.0.safetensors")
    for name in ("pulid-v0.9.0", "pulid-v0.9.1"):
        loose = other.checkpoints[name]
        file = replace(loose.files[0], size=None, sha256=None)
        other.checkpoints = {**other.checkpoints, name: replace(loose, files=(file,))}
    found = other.take()
    assert taken(found) == {"pulid_flux_v0.9.0.safetensors": path}
    assert lock.read(other.home)["pulid_flux_v0.9.0.safetensors"].trust == "pinned"
    path.rename(path.with_name("pulid.safetensors"))
    shutil.rmtree(other.home)
    assert "looks like pulid-v0.9.1 or pulid-v0.9.0, but" in refusal(other.look())


def test_pickles_and_onnx_files_of_unknown_hash_need_the_operators_trust(other):
    bisenet = other.theirs / "face.pth"
    torch.save(small_weights.tensors("bisenet", 77.0), bisenet)
    assert refusal(other.look()) == (
        "looks like bisenet, but is not the published file. If you know where it comes from, "
        "take it with --trust-first bisenet"
    )
    assert other.look(taken_as="bisenet").finds == []
    assert set(taken(other.take(trust_first=["bisenet"]))) == {"parsing_bisenet.pth"}
    assert other.wrong("bisenet") == []
    bisenet.unlink()
    (other.theirs / "glintr100.onnx").write_bytes(small_weights.onnx(7000))
    assert refusal(other.look()).endswith("take it with --trust-first antelopev2")
    assert set(taken(other.take(trust_first=["antelopev2"]))) == {"antelopev2/glintr100.onnx"}


def test_a_pickle_with_code_is_not_taken_on_anybodys_word(other, tmp_path):
    mark = tmp_path / "it-ran"
    torch.save(
        {**small_weights.tensors("bisenet"), "x": hostile_pickles.objects(mark)["eval"]},
        other.theirs / "parsing_bisenet.pth",
    )
    assert refusal(other.look(trust_first=["bisenet"])).startswith("holds code or objects")
    assert not mark.exists()


def test_a_safetensors_copy_of_a_pickle_is_not_taken_for_the_pickle(other):
    path = unpublished(other, "bisenet", "parsing_bisenet.safetensors")
    found = other.look(taken_as="bisenet", trust_first=["bisenet"])
    assert (found.finds, found.refusals) == ([], [])
    assert path.exists()


def test_a_whole_folder_is_taken_on_a_persons_word(other):
    """Shards of a fine-tune, in the published layout."""
    put_diffusers(other, "tuned")
    shards = sorted((other.theirs / "tuned/transformer").glob("*.safetensors"))
    small_weights.write_shards(shards, small_weights.tensors("flux-transformer-diffusers", 77.0))
    why = {refused.source: refused.why for refused in other.look(only=["flux1-dev-diffusers"]).refusals}
    assert why == {
        other.theirs
        / "tuned/transformer": "looks like flux1-dev-diffusers, but is not the published file. If "
        "you know where it comes from, take it with --as flux1-dev-diffusers"
    }
    found = other.take(taken_as="flux1-dev-diffusers")
    assert found.refusals == []
    assert other.wrong(*DIFFUSERS) == []


# ---- what is refused ----


def test_files_of_our_names_that_are_cut_short_are_named(other):
    path = other.put("FLUX.1-dev/flux1-dev.safetensors", "flux1-dev.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(other.look()) == "is cut short: 100 bytes are missing at its end"
    path.unlink()
    path = other.put("antelopev2/glintr100.onnx", "glintr100.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(other.look(trust_first=["antelopev2"])) == "is cut short: 100 bytes are missing at its end"


def test_a_file_of_our_name_with_other_tensors_is_named(other):
    save_file({"a": torch.zeros(1)}, other.theirs / "ae.safetensors")
    assert refusal(other.look()).startswith("does not hold the tensors of ae: 244 keys are missing (")


def test_a_shard_of_another_version_is_not_taken_beside_published_ones(other):
    put_diffusers(other, "FLUX.1-dev")
    shard = other.theirs / "FLUX.1-dev/text_encoder_2/model-00002-of-00002.safetensors"
    save_file({"a": torch.zeros(1)}, shard)
    found = other.look(only=["t5-xxl"])
    assert [(r.source, r.why) for r in found.refusals] == [
        (shard, "is not the published file, which the others in its folder are")
    ]
    assert "FLUX.1-dev/text_encoder_2/model-00001-of-00002.safetensors" in taken(found)


def test_an_index_that_does_not_fit_the_shards_is_refused(other):
    put_diffusers(other, "FLUX.1-dev")
    index = other.theirs / "FLUX.1-dev/text_encoder_2/model.safetensors.index.json"
    small_weights.write_index(index, {"shared.weight": "model-00007-of-00007.safetensors"})
    found = other.look(only=["t5-xxl"])
    assert [r.source for r in found.refusals] == [index]
    assert set(taken(found)) == {
        f"FLUX.1-dev/text_encoder_2/model-0000{n}-of-00002.safetensors" for n in (1, 2)
    }


def test_a_part_of_a_folder_is_taken_and_the_rest_is_left_to_a_fetch(other):
    put_diffusers(other, "FLUX.1-dev")
    (other.theirs / "FLUX.1-dev/transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    found = other.take()
    assert found.refusals == []
    (problem,) = check_quickly(
        [other.checkpoints["flux1-dev-diffusers"]], other.home, tables=small_weights.tables
    )
    assert problem.is_missing


def test_tokenizers_of_other_models_are_left_alone(other):
    """Their files have our names, and nothing about them is known but that."""
    for file in other.checkpoints["clip-tokenizer"].files:
        other.put(file.path, f"stable-diffusion/tokenizer/{Path(file.path).name}")
    found = other.look()
    assert (found.finds, found.refusals) == ([], [])


def test_common_names_say_nothing(other):
    """`model.safetensors` of any model whatever, cut short or not."""
    for folder in ("bert", "text_encoder", "unet"):
        path = other.theirs / folder / "model.safetensors"
        path.parent.mkdir()
        save_file({"a": torch.zeros(1)}, path)
    (other.theirs / "broken").mkdir()
    (other.theirs / "broken/diffusion_pytorch_model.safetensors").write_bytes(b"half")
    found = other.look()
    assert (found.finds, found.refusals) == ([], [])


def test_a_file_that_may_not_be_read_is_named(other, monkeypatch):
    path = other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    assert [(r.source, r.why) for r in other.look().refusals] == [(path, "may not be read by this user")]


def test_a_disk_that_fails_is_told(other, monkeypatch):
    path = other.put("FLUX.1-dev/ae.safetensors", "ae.safetensors")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(lock, "sha256_of", fail)
    with pytest.raises(WrongFile, match=r"ae\.safetensors cannot be read: Input/output error"):
        other.look()


def test_an_empty_folder_has_nothing(other):
    found = other.look()
    assert (found.finds, found.there, found.refusals) == ([], [], [])


def test_what_was_taken_over_is_what_the_model_loads(other):
    put_diffusers(other, "FLUX.1-dev")
    other.take()
    paths = model_paths(other.home)
    assert paths.transformer == other.home / "FLUX.1-dev/transformer"
    assert paths.clip_tokenizer == other.home / "FLUX.1-dev/tokenizer"


def test_text_encoders_of_one_file_are_loaded_where_there_are_no_folders(other):
    other.put("flux_text_encoders/t5xxl_fp16.safetensors", "models/text_encoders/t5xxl_fp16.safetensors")
    other.take()
    assert model_paths(other.home).t5 == other.home / "flux_text_encoders/t5xxl_fp16.safetensors"
    assert model_paths(other.home).clip == other.home / "FLUX.1-dev/text_encoder"  # what a fetch brings
