"""`flux-pulid weights verify`, `convert` and `import`, as a person or a script sees them.

With BiSeNet's checkpoint at its real size (53 MB), random numbers in it.
"""

import json

import pytest
import torch
from typer.testing import CliRunner

from server.cli.main import app
from weights import lock
from weights.tables import table

NAME = "parsing_bisenet.pth"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder with a file that looks like BiSeNet's and is not the published one."""
    folder = tmp_path_factory.mktemp("ComfyUI") / "models/facedetection"
    folder.mkdir(parents=True)
    state = {
        key: torch.full(shape, 0.5) if "num_batches" not in key else torch.tensor(3)
        for key, shape in table("bisenet").items()
    }
    torch.save(state, folder / NAME)
    return folder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Runs a command on a weights folder of its own: the exit code, what it printed, the folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        command = ["weights", arguments[0], "--weights-dir", str(tmp_path / "home"), *arguments[1:]]
        done = CliRunner().invoke(app, command, env={"FLUX_PULID_PROFILE": "exact"})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, done.output

    run.home = tmp_path / "home"
    return run


@pytest.fixture
def adopted(weights, stranger):
    code, _ = weights("import", str(stranger), "--trust-first", "bisenet")
    assert code == 0
    return weights


def test_verify_tells_what_is_missing_and_fails(weights):
    code, output = weights("verify", "ae", "bisenet", "--quick")
    assert code == 1
    told = output.partition("Missing. Run `flux-pulid weights fetch`")[2].splitlines()
    assert told[1:3] == ["  FLUX.1-dev/ae.safetensors", f"  {NAME}"]
    assert output.count("weights fetch") == 1
    assert output.endswith(f"2 problems in {weights.home}.\n")
    assert not weights.home.exists()


def test_verify_without_names_looks_at_what_the_profile_needs(weights):
    code, output = weights("verify", "--quick", "--json", "--pulid-version", "v0.9.0")
    answer = json.loads(output)
    assert code == 1
    assert (answer["ok"], answer["thorough"]) == (False, False)
    checkpoints = {row["checkpoint"] for row in answer["files"]}
    assert {"flux1-dev", "pulid-v0.9.0", "antelopev2"} <= checkpoints
    assert "pulid-v0.9.1" not in checkpoints
    assert {(row["result"], row["size"]) for row in answer["files"]} == {("missing", None)}
    assert len(answer["problems"]) == 11  # a checkpoint each
    assert all(problem["what"] == "is missing" for problem in answer["problems"])


def test_verify_for_a_profile_without_files_says_so(weights):
    assert weights("verify", "--profile", "tiny") == (0, "The profile tiny needs no files.\n")


def test_verify_of_sound_files_succeeds_and_says_how_much_is_known(adopted):
    assert adopted("verify", "bisenet")[0] == 0
    code, output = adopted("verify", "bisenet", "--json")
    answer = json.loads(output)
    assert (code, answer["ok"], answer["thorough"], answer["problems"]) == (0, True, True, [])
    size = (adopted.home / NAME).stat().st_size
    assert answer["files"] == [{"checkpoint": "bisenet", "file": NAME, "size": size, "result": "accepted"}]
    assert "whole" in adopted("verify", "bisenet", "--quick")[1]


def test_verify_finds_a_changed_file(adopted):
    path = adopted.home / NAME
    data = bytearray(path.read_bytes())
    path.unlink()  # it is linked to the stranger's
    data[len(data) // 2 + 5000] ^= 1
    path.write_bytes(data)
    code, output = adopted("verify", "bisenet")
    assert code == 1
    assert "Delete it and run `flux-pulid weights fetch`." in output
    assert json.loads(adopted("verify", "bisenet", "--json")[1])["files"][0]["result"] == "wrong"


def test_verify_writes_nothing(adopted):
    before = {path: path.stat().st_mtime_ns for path in (adopted.home, *adopted.home.rglob("*"))}
    adopted("verify", "bisenet", "ae")
    assert before == {path: path.stat().st_mtime_ns for path in (adopted.home, *adopted.home.rglob("*"))}


def test_an_unknown_name_is_told_with_those_there_are(weights):
    for command in (["verify", "flux2"], ["convert", "flux2"], ["import", ".", "--as", "flux2"]):
        code, output = weights(*command)
        assert code == 2
        assert "There is no checkpoint named flux2. There are: flux1-dev, " in output


def test_import_shows_what_it_would_take(weights, stranger):
    code, output = weights("import", str(stranger), "--trust-first", "bisenet", "--dry-run")
    assert code == 0
    assert f"would take {stranger / NAME} as {NAME}, 53." in output
    assert not weights.home.exists()


def test_import_links_and_says_what_is_still_missing(weights, stranger):
    code, output = weights("import", str(stranger.parents[1]), "--trust-first", "bisenet")
    assert code == 0
    assert f"linked     {stranger / NAME} as {NAME}, 53." in output
    assert "Still missing for the profile exact: FLUX.1-dev/flux1-dev.safetensors, " in output
    assert (weights.home / NAME).samefile(stranger / NAME)
    assert "1 file is in" in weights("import", str(stranger), "--trust-first", "bisenet")[1]


def test_import_of_an_unpublished_file_says_how_to_take_it(weights, stranger):
    code, output = weights("import", str(stranger))
    assert code == 1
    assert f"not taken  {stranger / NAME} looks like bisenet, but is not the published file." in output
    assert "take it with --trust-first bisenet" in output
    assert "No file of the model was recognised." in output


def test_import_of_named_checkpoints_only(weights, stranger):
    code, output = weights("import", str(stranger), "ae", "--trust-first", "bisenet")
    assert code == 1
    assert "linked" not in output


def test_convert_makes_the_copy_that_is_loaded_and_checked_from_then_on(adopted):
    code, output = adopted("convert", "bisenet")
    copy = adopted.home / "parsing_bisenet.safetensors"
    assert code == 0
    assert output == f"{copy}: {copy.stat().st_size / 1e6:.1f} MB; {NAME} may be deleted.\n"
    assert adopted("convert", "bisenet")[1] == "bisenet: its copy is there already.\n"
    (adopted.home / NAME).unlink()
    answer = json.loads(adopted("verify", "bisenet", "--json")[1])
    assert [(row["file"], row["result"]) for row in answer["files"]] == [(copy.name, "accepted")]


def test_convert_of_what_is_no_pickle_or_not_there_is_refused(weights):
    code, output = weights("convert", "ae")
    assert (code, output) == (2, "Error: Nothing to convert in ae: no .pt or .pth file.\n")
    code, output = weights("convert")
    assert code == 2
    assert "EVA02_CLIP_L_336_psz14_s6B.pt is missing" in output


def test_only_a_transformer_that_is_there_is_converted_to_eight_bits(weights):
    for names, form in ((["ae"], "fp8"), (["flux1-dev", "ae"], "int8")):
        code, output = weights("convert", *names, "--to", form)
        assert (code, output) == (
            2,
            f"Error: Only a transformer is converted to {form}: name one, or leave the name out.\n",
        )
    code, output = weights("convert", "--to", "int3")
    assert (code, output) == (2, "Error: There is no form int3. Choose fp8 or int8, or leave --to out.\n")
    code, output = weights("convert", "--to", "fp8")
    assert code == 2
    assert "flux1-dev.safetensors is missing" in output


@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_the_quantised_copy_lies_beside_its_original_and_is_made_once(weights, monkeypatch, form):
    """The original is a stand-in: a real one has 24 GB."""
    source = weights.home / "FLUX.1-dev/flux1-dev.safetensors"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"x" * 1000)
    monkeypatch.setattr("server.cli.weights.require", lambda checkpoints, home: None)
    made = []

    def quantise(source, copy, to, on_bytes):
        made.append((source, to))
        copy.write_bytes(b"x" * 600)
        on_bytes(1000)

    monkeypatch.setattr("server.cli.weights.quantise_transformer", quantise)
    copy = source.with_name(f"flux1-dev.{form}-rows.safetensors")
    code, output = weights("convert", "--to", form)
    assert code == 0
    assert f"{copy}: " in output
    assert output.endswith(f"profiles that compute in {form} read it. flux1-dev stays.\n")
    assert weights("convert", "--to", form) == (0, f"{copy} is there already. Delete it to make it anew.\n")
    assert made == [(source, form)]


def test_without_the_operators_word_the_file_is_another_version(adopted):
    (adopted.home / lock.NAME).unlink()
    code, output = adopted("verify", "bisenet", "--json")
    assert code == 1
    assert json.loads(output)["problems"][0]["what"].startswith("is another version: 53,")
