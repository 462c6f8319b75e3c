"""`flux-pulid weights list` and `fetch` as an operator sees them."""

import json
import socket
from contextlib import closing
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fetching.processes import weights_command
from fetching.small_model import files_in, onnx, pickle, published, safetensors, unexpected, whole_model
from server.cli.main import app
from weights import lock
from weights.licences import APACHE, INSIGHTFACE
from weights.manifest import IN_FP8


@pytest.fixture
def knows(monkeypatch):
    """Make the command line know these checkpoints and no others."""

    def know(*checkpoints):
        monkeypatch.setattr("weights.manifest.MANIFEST", checkpoints)

    return know


@pytest.fixture
def weights(home):
    def run(*arguments):
        return CliRunner().invoke(app, ["weights", *arguments, f"--weights-dir={home}"])

    return run


def state_of(weights, name):
    described = json.loads(weights("list", "--json").stdout)["checkpoints"]
    return next(checkpoint["state"] for checkpoint in described if checkpoint["name"] == name)


# ---- fetch ----


def test_one_command_brings_everything_that_the_profile_needs(hub, home, tmp_path):
    with closing(weights_command(tmp_path, whole_model(hub), "fetch", f"--weights-dir={home}")) as fetching:
        assert fetching.wait() == 0, fetching.said()
    lines = fetching.said().splitlines()
    assert lines[0].startswith("Fetching 9 files, ")
    assert lines[1].startswith("Licence of ")
    assert sum(line.endswith(", verified") for line in lines) == 5
    assert sum(line.endswith(", pinned: its hash was not known before") for line in lines) == 4
    assert lines[-1] == f"All files are in {home}: ae, t5, eva, faces, retinaface."
    assert len(files_in(home)) == 9
    assert unexpected(hub) == []


def test_a_refusal_is_one_paragraph_on_standard_error_and_exit_code_2(hub, home, tmp_path):
    gated = published(hub, "ae", {"ae.safetensors": safetensors()}, gated=True)
    with closing(weights_command(tmp_path, [gated], "fetch", f"--weights-dir={home}")) as fetching:
        assert fetching.wait() == 2
    (line,) = fetching.said().splitlines()
    assert line.startswith("Error: black-forest-labs/FLUX.1-dev is gated: open https://huggingface.co/")


def test_named_checkpoints_are_fetched_and_no_others(hub, home, weights, knows):
    knows(*whole_model(hub))
    done = weights("fetch", "faces", "ae")
    assert done.exit_code == 0, done.output
    assert {*files_in(home)} == {"ae.safetensors", "faces/a.onnx", "faces/b.onnx"}


def test_a_layout_that_is_there_is_not_fetched_in_another_one(hub, home, weights, knows):
    """Folders from diffusers serve as well as the single files that a fetch would bring."""
    single = published(hub, "ae", {"ae.safetensors": safetensors()})
    folder = published(hub, "ae-diffusers", {"vae/ae.safetensors": safetensors()}, is_default=False)
    knows(single, folder)
    weights("fetch", "ae-diffusers")
    hub.seen.clear()
    assert weights("fetch").exit_code == 0
    assert hub.seen == []
    assert {*files_in(home)} == {"vae/ae.safetensors"}


def test_a_second_fetch_says_that_all_is_there(hub, home, weights, knows):
    knows(published(hub, "ae", {"ae.safetensors": safetensors()}))
    weights("fetch")
    done = weights("fetch")
    assert done.exit_code == 0
    assert done.output.strip() == f"All files are in {home}: ae."


def test_a_licence_that_is_narrow_is_told_once_before_the_first_byte(hub, weights, knows):
    knows(
        published(hub, "faces", {"faces/a.onnx": onnx(1), "faces/b.onnx": onnx(2)}, licence=INSIGHTFACE),
        published(hub, "eva", {"eva.pt": pickle()}, role="eva_clip", licence=APACHE),
    )
    said = weights("fetch").stderr
    assert said.count(INSIGHTFACE.name) == 1
    assert said.count(INSIGHTFACE.url) == 1
    assert said.index(INSIGHTFACE.name) < said.index("a.onnx")
    assert APACHE.name not in said


def test_on_a_terminal_there_are_bars_and_the_same_words(hub, home, weights, knows, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    knows(*whole_model(hub))
    done = weights("fetch")
    assert done.exit_code == 0, done.output
    assert "FLUX.1 [dev] Non-Commercial License" in done.stderr
    assert done.stderr.count(", verified") == 5
    assert len(files_in(home)) == 9


def test_a_log_hears_now_and_then_how_far_it_is(hub, weights, knows, monkeypatch):
    monkeypatch.setattr("server.cli.fetch_progress._EVERY_S", 0)
    knows(published(hub, "ae", {"ae.safetensors": safetensors(count=16)}))
    said = weights("fetch").stderr.splitlines()
    assert "66.6 kB of 66.6 kB" in said


def test_a_dry_run_shows_all_and_makes_no_file(hub, home, weights, knows):
    knows(*whole_model(hub))
    done = weights("fetch", "--dry-run")
    assert done.exit_code == 0, done.output
    assert sum(line.startswith("fetch ") for line in done.stdout.splitlines()) == 9
    assert f"would be fetched to {home}" in done.stdout
    assert not home.exists()
    assert hub.ranges("ae.safetensors") == []


def test_a_dry_run_tells_what_is_to_go_and_what_is_to_be_checked(hub, home, weights, knows):
    part = published(hub, "ae", {"ae.safetensors": safetensors()}, how={"cut_at": 5000, "cuts": 100})
    there = published(hub, "eva", {"eva.pt": pickle()}, role="eva_clip")
    knows(part, there)
    weights("fetch", "ae")
    (home / "eva.pt").write_bytes(pickle())
    said = weights("fetch", "--dry-run").stdout
    assert "11.7 kB to go" in said
    assert any(line.split() == ["check", "eva.pt"] for line in said.splitlines())


def test_a_dry_run_without_network_shows_the_plan_then_why_no_more_is_known(
    hub, home, weights, knows, monkeypatch
):
    knows(published(hub, "ae", {"ae.safetensors": safetensors()}))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    done = weights("fetch", "--dry-run")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].split()[::3] == ["fetch", "ae.safetensors"]
    assert f"would be fetched to {home}" in done.stdout
    assert "cannot be reached" in done.stderr
    assert not home.exists()


def test_what_trying_again_may_cure_is_exit_code_1(hub, home, weights, knows):
    """A refusal that a person must answer is 2: the tests above."""
    knows(published(hub, "ae", {"ae.safetensors": safetensors()}))
    with lock.fetching(home):
        assert weights("fetch").exit_code == 1


def test_what_no_profile_of_this_version_reads_is_marked_and_not_fetched(hub, home, weights, knows):
    fp8 = published(hub, "fp8", {"fp8.safetensors": safetensors()})
    knows(replace(fp8, profiles=("another",)), published(hub, "ae", {"ae.safetensors": safetensors()}))
    refused = weights("fetch", "fp8")
    assert refused.exit_code == 2
    assert "no profile of this version reads it" in refused.stderr
    assert not home.exists()
    lines = weights("list").stdout.splitlines()
    assert lines[1].split()[:2] == ["-", "fp8"]
    assert lines[-1] == "- is for a profile that does not exist yet: no profile of this version reads it."
    listed = json.loads(weights("list", "--json").stdout)["checkpoints"]
    assert [row["read_by"] for row in listed] == [[], ["exact", *IN_FP8]]


def test_a_person_s_word_is_given_by_name(hub, home, weights, knows):
    knows(published(hub, "eva", {"eva.pt": pickle()}, known=False))
    refused = weights("fetch")
    assert refused.exit_code == 2
    assert "--trust-first eva" in refused.stderr
    accepted = weights("fetch", "--trust-first", "eva")
    assert accepted.exit_code == 0
    assert ", accepted, as you said" in accepted.stderr
    assert lock.read(home)["eva.pt"].trust == "operator"


@pytest.mark.parametrize("flag", [["nonsense"], ["--trust-first", "nonsense"]])
def test_an_unknown_name_is_answered_with_the_known_ones(hub, weights, knows, flag):
    knows(*whole_model(hub))
    refused = weights("fetch", *flag)
    assert refused.exit_code == 2
    assert "There are: ae, t5, eva, faces, retinaface." in refused.stderr


def test_the_tiny_profile_needs_no_files(weights):
    done = weights("fetch", "--profile", "tiny")
    assert done.exit_code == 0
    assert done.stdout.strip() == "The profile tiny needs no files."


def test_the_folder_and_the_choice_come_from_the_settings_too(hub, home, knows, monkeypatch, tmp_path):
    older = published(hub, "pulid-v0.9.0", {"a.safetensors": safetensors()}, role="pulid", variant="v0.9.0")
    newer = published(hub, "pulid-v0.9.1", {"b.safetensors": safetensors()}, role="pulid", variant="v0.9.1")
    knows(older, newer)
    monkeypatch.setenv("FLUX_PULID_WEIGHTS_DIR", str(home))
    config = tmp_path / "config.toml"
    config.write_text('pulid_version = "v0.9.0"\n')
    assert CliRunner().invoke(app, ["weights", "fetch", f"--config={config}"]).exit_code == 0
    assert {*files_in(home)} == {"a.safetensors"}
    assert CliRunner().invoke(app, ["weights", "fetch", "--pulid=v0.9.1"]).exit_code == 0
    assert {*files_in(home)} == {"a.safetensors", "b.safetensors"}


# ---- list ----


def test_list_shows_what_everything_is_and_how_it_stands(hub, weights, knows):
    knows(
        published(hub, "faces", {"faces/a.onnx": onnx(1), "faces/b.onnx": onnx(2)}, licence=INSIGHTFACE),
        published(hub, "eva", {"eva.pt": pickle()}, role="eva_clip", repo="a/b", gated=True, licence=APACHE),
    )
    weights("fetch", "faces")
    head, faces, eva, total = weights("list").stdout.splitlines()
    assert head.split() == ["name", "for", "size", "state", "commercial", "use", "licence", "where"]
    assert faces.split()[:7] == ["*", "faces", "autoencoder", "6.0", "kB", "verified", "no"]
    assert faces.rstrip().endswith("faces")
    assert "eva clip" in eva
    assert "missing" in eva
    assert "Apache-2.0, gated" in eva
    assert total.startswith("* is what the profile exact needs: ")


def test_list_for_programs_has_the_same(hub, home, weights, knows):
    knows(*whole_model(hub))
    weights("fetch", "ae", "t5")
    content = json.loads(weights("list", "--json").stdout)
    assert content["weights_dir"] == str(home)
    ae, t5, eva, *_ = content["checkpoints"]
    assert (ae["name"], ae["role"], ae["state"], ae["needed"]) == ("ae", "autoencoder", "verified", True)
    assert ae["size"] == len(safetensors())
    assert ae["licence"]["commercial_use"] == "no"
    assert ae["files"][0]["source"].startswith("https://huggingface.co/")
    assert t5["state"] == "pinned"
    assert len(t5["files"]) == 4
    assert eva["state"] == "missing"


def test_list_tells_every_state(hub, home, weights, knows):
    knows(*whole_model(hub))
    weights("fetch")
    (home / "faces/a.onnx").unlink()
    (home / "ae.safetensors").write_bytes(b"changed")
    entries = json.loads((home / lock.NAME).read_text())
    del entries["files"]["eva.pt"]
    (home / lock.NAME).write_text(json.dumps(entries))
    names = ("ae", "t5", "eva", "faces", "retinaface")
    told = {name: state_of(weights, name) for name in names}
    assert told == {
        "ae": "changed",
        "t5": "pinned",
        "eva": "unchecked",
        "faces": "incomplete",
        "retinaface": "verified",
    }


def test_list_asks_no_server(weights):
    """Here it is the real table, and there is no stand-in."""
    done = weights("list")
    assert done.exit_code == 0
    assert "FLUX.1 [dev] Non-Commercial License, gated" in done.stdout
