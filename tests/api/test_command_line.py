"""`flux-pulid generate` and `flux-pulid serve` as a person at a terminal sees them."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import server
from fakes import PATIENCE_S, ScriptedEngine, colour_of, own_part
from pulid.engine import Person
from pulid.errors import DeviceUnavailable, EngineFailed, NoFaceFound, WeightsMissing
from pulid.profiles import PROFILES
from server.api.v1_schemas import FluxPulidRequest
from server.cli.main import app
from server.jobs.data_dir import DataDir
from server.settings import Settings

FACE = Path(__file__).parents[1] / "photos" / "obama.jpg"
SMALL = ["--width", "256", "--height", "256", "--num-steps", "2"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No setting or data of the machine the tests run on; help pages wide enough not to break lines."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLUX_PULID_{name.upper()}", raising=False)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def engine(monkeypatch):
    """The engine behind the commands of this test."""
    scripted = ScriptedEngine(notice="abstract pictures")
    monkeypatch.setattr("server.engines.devices_for", lambda profile, devices: ["none"])
    monkeypatch.setattr("server.engines.create_engine", lambda device, **choice: scripted)
    return scripted


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.png"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def opened(path):
    return Image.open(BytesIO(path.read_bytes()))


def generate(out, *more, face=FACE):
    return run("generate", "--face", face, "--prompt", "a knight", "--out", out, *SMALL, *more)


def test_generate_paints_a_person_with_the_tiny_profile(tmp_path):
    out = tmp_path / "out.webp"
    done = generate(out, "--profile", "tiny", "--seed", "7")
    assert done.exit_code == 0, done.output
    image = opened(out)
    assert (image.format, image.size) == ("WEBP", (256, 256))
    assert np.asarray(image).std() > 1, "a picture, not a flat colour"
    assert f"Wrote {out} (256x256, seed 7)." in done.stdout
    assert PROFILES["tiny"].notice in done.stdout


def test_a_photo_without_a_face_is_bad_input_for_the_tiny_profile_too(tmp_path):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (200, 200), "grey").save(blank)
    done = generate(tmp_path / "out.webp", "--profile", "tiny", face=blank)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("Error: No face found.")
    assert not (tmp_path / "out.webp").exists()


def test_generate_hands_every_parameter_to_the_engine(engine, out):
    flags = {
        "--negative-prompt": "fog",
        "--width": "272",
        "--height": "288",
        "--num-steps": "7",
        "--start-step": "2",
        "--guidance-scale": "3.5",
        "--id-weight": "0.8",
        "--true-cfg": "2",
        "--max-sequence-length": "256",
        "--seed": "11",
        "--num-outputs": "1",
    }
    words = [word for pair in flags.items() for word in pair]
    done = run("generate", "--face", FACE, "--prompt", "a knight", "--out", out, *words)
    assert done.exit_code == 0, done.output
    request = engine.last_request
    assert (request.prompt, request.negative_prompt) == ("a knight", "fog")
    assert (request.width, request.height, request.num_steps) == (272, 288, 7)
    assert (request.start_step, request.timestep_to_start_cfg) == (2, 2)
    assert (request.guidance, request.id_weight, request.true_cfg) == (3.5, 0.8, 2.0)
    assert (request.max_sequence_length, request.seed) == (256, 11)
    assert request.id_images[0].ndim == 3
    assert engine.closed


def test_several_photos_of_a_person_reach_the_engine(engine, out):
    collins = FACE.with_name("collins.jpg")
    done = generate(out, "--face", collins, "--face-fusion", "concat")
    assert done.exit_code == 0, done.output
    request = engine.last_request
    assert request.fusion == "concat"
    assert [photo.shape for photo in request.id_images] == [
        np.asarray(Image.open(f)).shape for f in (FACE, collins)
    ]


def test_an_identity_file_takes_the_place_of_a_photo(engine, out, tmp_path):
    file = tmp_path / "identity.safetensors"
    file.write_bytes(b"an identity")
    words = ["generate", "--prompt", "a knight", "--out", out, *SMALL, "--id-weight", "0.8"]
    done = run(*words, "--identity", file)
    assert done.exit_code == 0, done.output
    request = engine.last_request
    assert (request.id_images, request.everyone) == ((), (Person(identity=b"an identity", weight=0.8),))


def test_what_is_no_source_of_one_face_is_bad_input(engine, out, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    for words, why in (
        ([], "Give either --face, once or more, or --identity."),
        (["--face", FACE, "--identity", empty], "Give either --face"),
        (["--face", FACE] * 9, "at most 8 times"),
        (["--identity", tmp_path / "absent"], "absent cannot be read"),
        (["--identity", tmp_path], "cannot be read"),
        (["--identity", empty], "identity must be the base64 text of an identity file."),
    ):
        done = run("generate", "--prompt", "a knight", "--out", out, *words)
        assert (done.exit_code, why in done.stderr) == (2, True), done.stderr
    assert not engine.threads


def test_generate_tells_the_likeness_where_it_is_asked_for(engine, out):
    flags = ("--num-outputs", "2", "--seed", "20", "--identity-similarity", "true")
    done = run("generate", "--face", FACE, "--prompt", "alike 0.7 none", "--out", out, *SMALL, *flags)
    assert done.exit_code == 0, done.output
    for number, seed in enumerate((20, 21)):
        alike = 0.7 + own_part(colour_of(seed))
        path = out.with_name(f"out-{number}.png")
        assert f"Wrote {path} (256x256, seed {seed}, likeness {alike:.4f};none)." in done.stdout


def test_generate_tells_how_many_steps_were_skipped(engine, out):
    flags = ("--profile", "turbo", "--turbo-threshold", "0.2")
    done = run("generate", "--face", FACE, "--prompt", "skips 3 steps", "--out", out, *SMALL, *flags)
    assert done.exit_code == 0, done.output
    assert "Steps that were skipped: 3; the profile's threshold decides.\n" in done.stdout
    assert "skipped" not in run("generate", "--face", FACE, "--prompt", "x", "--out", out, *SMALL).stdout


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_t5_in_int8_is_refused_by_a_profile_in_full_precision(command, tmp_path):
    given = {
        "generate": ["--prompt", "x", "--face", FACE, "--out", tmp_path / "out.png"],
        "evaluate": [tmp_path, tmp_path / "prompts.txt", "--out", tmp_path / "report"],
    }
    done = run(command, *given[command], "--profile", "tiny", "--t5-int8", "true")
    assert done.exit_code == 2
    assert "t5_int8 = true is for profiles that compute in 8 bits: tiny does not." in done.stderr


def test_several_pictures_get_numbered_files(engine, out):
    done = generate(out, "--num-outputs", "3", "--seed", "20")
    assert done.exit_code == 0, done.output
    for number in range(3):
        path = out.with_name(f"out-{number}.png")
        assert f"Wrote {path} (256x256, seed {20 + number})." in done.stdout
        assert tuple(np.asarray(opened(path))[0, 0]) == colour_of(20 + number)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "flags", "kind"),
    [
        ("a.webp", [], "WEBP"),
        ("a.PNG", [], "PNG"),
        ("a.jpeg", [], "JPEG"),
        ("a.jpg", [], "JPEG"),
        ("a.jpeg", ["--output-format", "jpg"], "JPEG"),
        ("a", ["--output-format", "png"], "PNG"),
    ],
)
def test_the_name_of_the_file_chooses_the_format_unless_a_flag_does(engine, tmp_path, name, flags, kind):
    assert generate(tmp_path / name, *flags).exit_code == 0
    assert opened(tmp_path / name).format == kind


def test_without_a_seed_the_drawn_one_is_told(engine, out):
    done = generate(out)
    assert f"seed {engine.last_request.seed})" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width", "100"], "width must be a whole number from 256 to 1536."),
        (["--num-steps", "many", "--id-weight", "9"], "id_weight must be a number from 0 to 3."),
        (["--output-format", "gif"], "output_format must be one of png, jpg, webp."),
        (["--profile", "fast"], "profile = 'fast' (from the flag --profile) is not valid"),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
    ],
)
def test_a_wrong_flag_is_bad_input_and_nothing_is_loaded(engine, out, flags, words):
    done = generate(out, *flags)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Loading" not in done.stderr
    assert not engine.threads


def test_a_wrong_place_for_the_picture_is_noticed_before_the_work(engine, tmp_path):
    for out, flags, words in (
        (tmp_path / "none" / "a.png", [], "does not exist"),
        (tmp_path, [], "is a folder"),
        (tmp_path / "a", [], "--output-format"),
        (tmp_path / "a.png", ["--output-format", "jpeg"], "--out ends in .png"),
    ):
        done = generate(out, *flags)
        assert done.exit_code == 2
        assert words in done.stderr
    assert not engine.threads


def test_a_photo_that_cannot_be_read_is_bad_input(engine, out, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    data_uri = "data:image/png;base64," + "A" * 5000
    absent, text = tmp_path / "absent.jpg", tmp_path / "text.jpg"
    for face in (absent, text, tmp_path, "", "a\0b", data_uri, "http://127.0.0.1/a.png"):
        done = generate(out, face=face)
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr) < 300


def test_a_photo_may_come_from_an_address(engine, out, photo_host, monkeypatch):
    monkeypatch.setenv("FLUX_PULID_FETCH_ALLOW", photo_host)
    assert generate(out, face=f"http://{photo_host}/photo.png").exit_code == 0
    assert engine.last_request.id_images[0].shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("fault", "code"), [(NoFaceFound(), 2), (EngineFailed("The engine failed."), 1)], ids=["input", "engine"]
)
@pytest.mark.parametrize("where", ["fail_admit", "fail_step", "report_error"])
def test_an_engines_error_is_one_message_and_an_exit_code(engine, out, where, fault, code):
    getattr(engine, where)["a knight"] = fault
    done = generate(out)
    assert done.exit_code == code
    assert done.stderr.splitlines()[-1] == f"Error: {fault}"
    assert engine.closed
    assert not out.exists()


def test_ctrl_c_stops_cleanly(engine, out):
    engine.fail_step["a knight"] = KeyboardInterrupt()
    done = generate(out)
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "Stopped."
    assert engine.closed
    assert not out.exists()


def test_every_parameter_and_every_setting_has_a_flag():
    parameters = run("generate", "--help").output
    for name in FluxPulidRequest.model_fields.keys() - {"main_face_image", "face_images", "faces", "base64"}:
        assert f"--{name.replace('_', '-')} " in parameters
    settings = run("serve", "--help").output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in settings
    assert "a whole number from 256 to 1536. Default: 896." in parameters


def test_the_program_tells_its_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"flux-pulid {server.__version__}\n")


# serve


@pytest.mark.parametrize("kind", [DeviceUnavailable, WeightsMissing])
def test_a_start_without_what_it_needs_names_the_command_that_lists_it(kind, tmp_path):
    def no_app(*args, **kwargs):
        raise kind("It is not there.")

    flags = ["serve", "--profile", "tiny", "--port", "0", "--data-dir", str(tmp_path)]
    done = CliRunner().invoke(app, flags, obj=no_app)
    assert done.exit_code == 1
    said = "Error: It is not there. `flux-pulid doctor` lists everything that is missing."
    assert done.stderr.splitlines() == [said]


def test_print_settings_shows_values_and_places_and_ends(tmp_path):
    config = tmp_path / "x.toml"
    config.write_text("credits = 5")
    done = run("serve", "--print-settings", "--port", "81", "--config", config)
    assert done.exit_code == 0
    assert re.search(r"^port +81 +the flag --port$", done.stdout, re.MULTILINE)
    assert re.search(rf"^credits +5 +the key credits in {config}$", done.stdout, re.MULTILINE)


def test_print_settings_masks_keys(monkeypatch):
    monkeypatch.setenv("FLUX_PULID_API_KEYS", "alice:zebra-in-a-tutu")
    done = run("serve", "--print-settings", "--host", "0.0.0.0")  # noqa: S104
    assert done.exit_code == 0
    assert re.search(r"^api_keys +\*+ +the environment variable", done.stdout, re.MULTILINE)
    assert "zebra" not in done.output


def test_serve_refuses_a_file_of_keys_that_it_cannot_read(tmp_path):
    done = run(
        "serve",
        "--port",
        "0",
        "--profile",
        "tiny",
        "--data-dir",
        tmp_path,
        "--api-keys-file",
        tmp_path / "keys",
    )
    assert done.exit_code == 2
    assert "flux-pulid keys add NAME" in done.stderr
    assert "Listening" not in done.stdout


def test_keys_are_made_and_listed_by_the_same_program(tmp_path):
    assert run("keys", "add", "alice", "--file", tmp_path / "keys").exit_code == 0
    assert run("keys", "list", "--file", tmp_path / "keys").stdout == "alice\n"


def test_serve_refuses_bad_settings_in_one_message():
    done = run("serve", "--host", "192.168.1.5", "--port", "x")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: port = 'x' (from the flag --port) is not valid")
    assert "no API keys" in done.stderr


def test_serve_says_that_its_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", port)
    assert done.exit_code == 1
    assert f"Cannot listen on 127.0.0.1, port {port}: Address already in use. Choose" in done.stderr


def process(*arguments):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_serve_ends_with_a_message_when_its_engine_cannot_be_made():
    with process("serve", "--profile", "exact", "--devices", "cpu", "--port", "0") as server:
        stdout, stderr = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 2
    assert "Ready" not in stdout
    assert "--profile tiny" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_serve_ends_with_a_message_when_another_server_has_its_data_folder(tmp_path):
    other = DataDir(tmp_path / "taken")
    other.open()
    with process("serve", "--profile", "tiny", "--port", "0", "--data-dir", other.root) as server:
        _, stderr = server.communicate(timeout=PATIENCE_S)
    other.close()
    assert server.returncode == 1
    assert "Another server uses the data folder" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_serve_answers_logs_nothing_private_and_stops_on_ctrl_c():
    with process("serve", "--profile", "tiny", "--port", "0") as server:
        url = server.stdout.readline().split()[2]
        assert server.stdout.readline().startswith("Ready: POST http://127.0.0.1:")
        assert PROFILES["tiny"].notice in server.stdout.readline()
        body = {
            "main_face_image": base64.b64encode(FACE.read_bytes()).decode(),
            "prompt": "a very secret knight",
            "width": 256,
            "height": 256,
            "num_steps": 2,
            "output_format": "png",
        }
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
            answer = client.post("/v1/flux-pulid?secret=query", json=body)
            refusal = client.post("/v1/flux-pulid", json=body | {"main_face_image": "http://secret/"})
        server.send_signal(signal.SIGINT)
        _, stderr = server.communicate(timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert answer.headers["x-flux-pulid-notice"] == PROFILES["tiny"].notice
    assert Image.open(BytesIO(answer.content)).size == (256, 256)
    assert refusal.status_code == 400
    assert server.returncode == 130
    assert "secret" not in stderr
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    requests = [event for event in events if event["event"] == "request"]
    assert [(event["route"], event["status"]) for event in requests] == [
        ("/v1/flux-pulid", 200),
        ("/v1/flux-pulid", 400),
    ]
    assert requests[0]["request_id"] == answer.headers["x-request-id"]
