"""`flux-pulid doctor` as a person at a terminal sees it, and what every start of the server takes from it."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pulid.errors import WeightsMissing
from pulid.profiles import PROFILES
from server.checks.examination import quick, warnings_at_start
from server.cli import doctor
from server.cli.main import app
from server.jobs.data_dir import DataDir
from server.settings import Settings

ROOT = Path(__file__).parents[2]
FACE = ROOT / "tests" / "photos" / "obama.jpg"
TINY = ["--profile", "tiny", "--port", "0"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No setting or data of the machine the tests run on, and wide lines."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)
    monkeypatch.setenv("COLUMNS", "1000")
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def examine(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def states_of(done):
    """{check: state} of the lines; where a check has several findings, the last."""
    lines = re.findall(r"^(ok|warning|fault) +(\S+) +\S", done.stdout, re.MULTILINE)
    return {check: state for state, check in lines}


def test_on_a_machine_without_a_gpu_all_is_well_for_the_tiny_profile():
    done = examine(*TINY)
    assert done.exit_code == 0, done.output
    assert set(states_of(done).values()) == {"ok"}
    assert done.stdout.splitlines()[-1] == "No fault, 0 warnings: the profile tiny runs here."


def test_without_a_gpu_and_files_it_says_what_the_exact_profile_lacks():
    done = examine("--port", "0")
    assert done.exit_code == 1
    states = states_of(done)
    assert {states[check] for check in ("driver", "torch", "cards", "weights")} == {"fault"}
    for way_out in ("NVIDIA's driver", "--profile tiny", "flux-pulid weights fetch"):
        assert way_out in done.stdout
    assert re.search(r"^4 faults, \d warnings?: the profile exact does not run", done.stdout, re.MULTILINE)


def test_the_lines_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = examine("--port", "0", "--weights-dir", "/m", "--data-dir", "/d").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(" " * 22) for line in lines)


def test_for_programs_there_is_one_json_document():
    data_dir = Path(os.devnull) / "data"
    done = examine(*TINY, "--json", "--data-dir", data_dir)
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (report["profile"], report["state"]) == ("tiny", "fault")
    (finding,) = [finding for finding in report["findings"] if finding["state"] == "fault"]
    assert finding["check"] == "data"
    assert str(data_dir) in finding["text"]


def test_settings_come_from_the_same_places_as_for_serve(monkeypatch, tmp_path):
    config = tmp_path / "x.toml"
    config.write_text('profile = "tiny"\nport = 0\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("FLUX_PULID_API_KEYS", "alice:zebra-in-a-tutu")
    done = examine("--config", config)
    assert done.exit_code == 0, done.output
    assert "A free one on 127.0.0.2." in done.stdout
    assert "1 API key(s)" in done.stdout
    assert "zebra" not in done.output


def test_wrong_settings_are_bad_input():
    done = examine("--port", "x")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: port = 'x'")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--profile", "exact", "--devices", "cpu"], "needs a CUDA device, and devices names the CPU"),
        ([*TINY, "--devices", "0"], "computes on the CPU"),
        ([*TINY, "--lora", "film.safetensors"], "no LoRA file fits"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_settings_that_do_not_fit_each_other_are_bad_input(command, flags, words, tmp_path):
    done = CliRunner().invoke(app, [command, *flags, "--port", "0", "--data-dir", str(tmp_path)])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stdout == ""


def test_a_port_that_is_taken_is_a_fault():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = examine("--profile", "tiny", "--port", port)
    assert done.exit_code == 1
    assert states_of(done)["port"] == "fault"
    assert f"Cannot listen on 127.0.0.1, port {port}" in done.stdout


def test_a_caution_is_a_warning_and_no_failure():
    done = examine(*TINY, "--host", "0.0.0.0", "--auth", "none")  # noqa: S104
    assert done.exit_code == 0
    assert states_of(done)["access"] == "warning"
    assert done.stdout.splitlines()[-1] == "No fault, 1 warning: the profile tiny runs here."


# --generate


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr(doctor, "SAMPLE", doctor.SAMPLE | {"width": 256, "height": 256, "num_steps": 2})


def test_the_sample_is_the_public_pages():
    page = (ROOT / "docs/spec/flux-pulid-page.md").read_text()
    literal = re.search(r"^data = (\{.*?^\})", page, re.MULTILINE | re.DOTALL)[1]
    data = ast.literal_eval(literal)
    assert {key: data[key] for key in data.keys() - {"main_face_image", "output_format"}} == doctor.SAMPLE
    assert data["output_format"] == "webp"


def test_it_paints_the_sample_with_the_person_of_a_photo(small_sample, tmp_path):
    out = tmp_path / "sample.webp"
    done = examine(*TINY, "--generate", "--photo", FACE, "--out", out)
    assert done.exit_code == 0, done.output
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("WEBP", (256, 256))
    assert f"{out}, 256x256, seed 720558: loaded in " in done.stdout
    assert states_of(done)["likeness"] == "ok"
    assert "Cannot be judged: tiny profile" in done.stdout


def test_it_needs_a_photo_to_paint():
    done = examine(*TINY, "--generate")
    assert done.exit_code == 2
    assert "--photo FILE" in done.stderr


def test_a_photo_that_cannot_be_read_is_bad_input(small_sample, tmp_path):
    done = examine(*TINY, "--generate", "--photo", tmp_path / "none.jpg", "--out", tmp_path / "a.webp")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"Error: The photo --photo {tmp_path / 'none.jpg'} cannot be read")
    assert done.stdout == "", "before the checks, which take seconds"


def test_with_faults_nothing_is_painted(small_sample, tmp_path):
    out = tmp_path / "a.webp"
    faulty = [*TINY, "--data-dir", Path(os.devnull) / "data"]
    done = examine(*faulty, "--generate", "--photo", FACE, "--out", out)
    assert done.exit_code == 1
    assert "likeness" not in states_of(done)
    assert not out.exists()


@pytest.mark.parametrize(
    ("profile", "cosine", "state", "said"),
    [
        ("exact", 0.72, "ok", "0.72, at least 0.40"),
        ("exact", 0.4, "ok", "0.40"),
        ("exact", 0.12, "fault", "0.12, below 0.40"),
        ("exact", None, "fault", "No face was found"),
        ("tiny", None, "ok", "Cannot be judged"),
        ("tiny", 0.9, "ok", "Cannot be judged"),
    ],
)
def test_what_a_cosine_means(profile, cosine, state, said):
    found = doctor.judged(PROFILES[profile], cosine, doctor.MIN_LIKENESS)
    assert (found.check, found.state) == ("likeness", state)
    assert said in found.text


# at the start of the server


@pytest.mark.parametrize("profile", ["tiny", "exact"])
def test_the_quick_checks_load_no_heavy_library(profile):
    report = (
        "import sys; from server.settings import Settings; from server.checks.examination import quick; "
        f"quick(Settings(profile={profile!r})); "
        "print(*{'torch', 'onnxruntime', 'insightface', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_quick_checks_are_the_doctors_own(tmp_path):
    settings = Settings(profile="tiny", port=0, data_dir=tmp_path)
    found = {finding.check: finding.text for finding in quick(settings)}
    shown = json.loads(examine(*TINY, "--data-dir", tmp_path, "--json").stdout)["findings"]
    assert found.items() <= {finding["check"]: finding["text"] for finding in shown}.items()


def test_a_start_hears_every_fault_at_once_and_else_the_warnings(tmp_path):
    taken = DataDir(tmp_path)
    taken.open()
    with pytest.raises(WeightsMissing) as caught:
        warnings_at_start(Settings(data_dir=tmp_path, weights_dir=tmp_path / "none"))
    taken.close()
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == ["In", "Another"]
    open_to_all = Settings(profile="tiny", data_dir=tmp_path, host="192.168.1.5", auth="none")
    assert [text for text in warnings_at_start(open_to_all) if "whoever reaches the port" in text]


def test_a_fault_ends_serve_with_the_doctors_words(tmp_path):
    faulty = [*TINY, "--data-dir", Path(os.devnull) / "data"]
    done = CliRunner().invoke(app, ["serve", *map(str, faulty)])
    told = {
        finding["check"]: finding["text"]
        for finding in json.loads(examine(*faulty, "--json").stdout)["findings"]
    }
    assert done.exit_code == 1
    assert done.stderr.strip() == f"Error: {told['data']}"
    assert "Listening" not in done.stdout
