"""The Dockerfile and compose.yaml, read. Nothing is built here: tests/deployment runs the steps."""

import re

import pytest
import yaml

from docs.dockerfile import read_dockerfile, words_of
from docs.project_files import ROOT, project_files
from pulid.profiles import PROFILES
from server.settings import Settings

MODEL_SUFFIXES = ("safetensors", "onnx", "pt", "pth", "gguf")
TINY_MODEL = "pulid/data/tiny.safetensors"
DEVICES = {"cpu": "tiny", "gpu": "exact"}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def dockerfile(device):
    return read_dockerfile(DEVICE=device)


def test_what_is_built_without_arguments_is_the_gpu_image():
    assert read_dockerfile().arguments["DEVICE"] == "gpu"
    assert list(read_dockerfile().stages)[-1] == "server", "the last stage is what a build makes"


def test_each_image_stands_on_its_device_and_starts_its_profile(dockerfile, device):
    bottom = dockerfile.chain("server")[0]
    assert bottom.name == f"{device}-base"
    profile = dockerfile.environment_of("server")["FLUX_PULID_PROFILE"]
    assert profile == DEVICES[device]
    assert PROFILES[profile].device == {"cpu": "cpu", "gpu": "cuda"}[device]


def test_images_from_outside_have_a_version():
    images = {name: image for name, image in read_dockerfile().arguments.items() if name.endswith("_IMAGE")}
    assert set(images) == {"CPU_IMAGE", "GPU_IMAGE"}
    assert all(
        re.fullmatch(r"[\w./-]+:[\w.-]*(bookworm|ubuntu24\.04)[\w.-]*", image) for image in images.values()
    )
    assert images["GPU_IMAGE"].startswith("nvidia/cuda:")


def test_the_last_stage_has_the_environment_of_the_builder_and_not_its_tools(dockerfile):
    assert dockerfile.stages["server"].base == "system"
    assert dockerfile.stages["builder"].base == "system"
    assert dockerfile.arguments_of("server", "COPY") == ["--from=builder /opt/venv /opt/venv"]
    assert not [line for line in dockerfile.arguments_of("server", "RUN") if "pip install" in line]
    assert dockerfile.environment_of("server")["PATH"].startswith("/opt/venv/bin:")


def test_the_image_runs_as_an_ordinary_user_known_by_number(dockerfile):
    users = dockerfile.arguments_of("server", "USER")
    assert users == ["10001:10001"]
    assert any("--uid 10001" in line for line in dockerfile.arguments_of("server", "RUN"))


def test_what_is_written_lies_on_volumes(dockerfile):
    volumes = [path for line in dockerfile.arguments_of("server", "VOLUME") for path in words_of(line)]
    environment = dockerfile.environment_of("server")
    assert volumes == ["/models", "/data"]
    assert environment["FLUX_PULID_WEIGHTS_DIR"] == "/models"
    assert environment["FLUX_PULID_DATA_DIR"].startswith("/data/")
    assert environment["HOME"] == "/data"


def test_the_certificates_that_are_installed_are_those_that_every_library_looks_at(dockerfile):
    named = dockerfile.environment_of("server")["SSL_CERT_FILE"]
    assert named == "/etc/ssl/certs/ca-certificates.crt"  # what Debian's package and Ubuntu's make
    assert any("ca-certificates" in line for line in dockerfile.arguments_of("server", "RUN"))


def test_the_install_uses_the_constraints(dockerfile):
    (install,) = [line for line in dockerfile.arguments_of("builder", "RUN") if "pip install" in line]
    assert "-c configs/constraints.txt" in install


def test_the_torch_that_is_installed_without_arguments_is_the_pinned_one():
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "configs/constraints.txt").read_text(), re.MULTILINE))
    defaults = dict(line.split("=", 1) for line in read_dockerfile().arguments_of("builder", "ARG"))
    assert defaults["TORCH_VERSION"] == pins["torch"]
    assert defaults["TORCHVISION_VERSION"] == pins["torchvision"]
    assert defaults["TORCH_INDEX"] == ""


def test_another_torch_takes_the_place_of_the_pinned_one():
    (install,) = [line for line in read_dockerfile().arguments_of("builder", "RUN") if "pip install" in line]
    for package, argument in (("torch", "TORCH_VERSION"), ("torchvision", "TORCHVISION_VERSION")):
        assert f"s/^{package}==.*/{package}==${{{argument}}}/" in install


def test_both_images_can_share_jobs_and_only_the_cpu_image_has_the_models_of_the_tiny_profile():
    extras = {
        device: read_dockerfile(DEVICE=device).environment_of("builder")["EXTRAS"] for device in DEVICES
    }
    assert extras == {"cpu": "[tiny,cluster]", "gpu": "[cluster]"}


def test_health_is_asked_of_the_server(dockerfile):
    (check,) = dockerfile.arguments_of("server", "HEALTHCHECK")
    (port,) = dockerfile.arguments_of("server", "EXPOSE")
    assert f"http://127.0.0.1:{port}/health" in check
    assert int(port) == Settings.model_fields["port"].default


def test_the_image_sets_only_settings_that_exist(dockerfile):
    named = {name for name in dockerfile.environment_of("server") if name.startswith("FLUX_PULID_")}
    assert named <= setting_names()


def test_every_copied_source_is_in_the_repository_and_let_through_by_dockerignore():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignore if line.startswith("!")} - {TINY_MODEL}  # inside pulid
    sources = {
        word for line in read_dockerfile().arguments_of("builder", "COPY") for word in line.split()[:-1]
    }
    assert sources == let_through
    assert all((ROOT / source).exists() for source in sources)


def test_no_model_file_but_the_tiny_profiles_can_enter_the_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored.pop() == f"!{TINY_MODEL}", "the last line that fits a file decides"
    assert ignored.index("*") < min(ignored.index(f"**/*.{suffix}") for suffix in MODEL_SUFFIXES)
    last_let_through = max(index for index, line in enumerate(ignored) if line.startswith("!"))
    assert last_let_through < min(ignored.index(f"**/*.{suffix}") for suffix in MODEL_SUFFIXES)
    assert not [
        name for name in project_files() if name.startswith("weights/") and name.endswith(MODEL_SUFFIXES)
    ]


def test_an_unknown_instruction_would_be_noticed(monkeypatch, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM a:1 AS b\nADD x y\n")
    monkeypatch.setattr("docs.dockerfile.ROOT", tmp_path)
    with pytest.raises(ValueError, match="ADD"):
        read_dockerfile()


# compose


@pytest.fixture
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.fixture(params=["flux-pulid", "fetch"])
def service(compose, request):
    return compose["services"][request.param]


def setting_names():
    return {f"FLUX_PULID_{name.upper()}" for name in Settings.model_fields}


def test_up_starts_the_server_alone(compose):
    started = [name for name, service in compose["services"].items() if "profiles" not in service]
    assert started == ["flux-pulid"]


def test_each_service_has_walls_around_it(service):
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_each_service_is_the_gpu_image_and_sets_only_what_exists(service):
    assert service["build"]["args"] == {"DEVICE": "gpu"}
    assert set(service["environment"]) - {"HF_TOKEN"} <= setting_names()


def test_only_the_fetching_service_may_write_model_files(compose):
    mounts = {
        name: [volume.rsplit(":/", 1)[1] for volume in service["volumes"]]
        for name, service in compose["services"].items()
    }
    assert mounts == {"flux-pulid": ["models:ro", "data"], "fetch": ["models"]}


def test_the_keys_come_from_a_secret(compose):
    service = compose["services"]["flux-pulid"]
    assert service["secrets"] == ["api_keys"]
    assert service["environment"]["FLUX_PULID_API_KEYS_FILE"] == "/run/secrets/api_keys"
    assert set(compose["secrets"]) == {"api_keys"}


def test_the_service_asks_for_one_gpu(compose):
    (device,) = compose["services"]["flux-pulid"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])


def test_the_container_is_given_longer_to_stop_than_the_server_takes_to_drain(compose):
    grace = compose["services"]["flux-pulid"]["stop_grace_period"]
    seconds = int(re.fullmatch(r"(\d+)s", grace)[1])
    assert seconds > Settings.model_fields["drain_s"].default
    assert compose["services"]["flux-pulid"]["init"] is True


def test_the_port_is_open_to_this_machine_alone(compose):
    (port,) = compose["services"]["flux-pulid"]["ports"]
    assert port == "127.0.0.1:8000:8000"
