"""The Dockerfile and compose.yaml, read. Nothing is built: the tests have no container engine."""

import re

import pytest
import yaml
from docs.project_files import ROOT, project_files

from server.settings import Settings

MODEL_SUFFIXES = ("safetensors", "onnx", "pt", "pth", "gguf")


def stages():
    """{stage: [(instruction, arguments), ...]}, where a stage begins with those of the stage it builds on."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found, current = {}, None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, current = re.split(r"\s+", arguments, maxsplit=2)
            found[current] = list(found.get(base, []))
        found[current].append((instruction, arguments))
    return found


def arguments_of(stage, instruction):
    return [arguments for name, arguments in stages()[stage] if name == instruction]


def environment_of(stage):
    return dict(pair for line in arguments_of(stage, "ENV") for pair in re.findall(r"(\w+)=(\S+)", line))


def compose_service():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert len(services) == 1
    return next(iter(services.values()))


def setting_names():
    return {f"FLUX_PULID_{name.upper()}" for name in Settings.model_fields}


def test_the_stages_are_base_cpu_and_gpu():
    assert list(stages()) == ["base", "cpu", "gpu"]


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_image_runs_as_an_ordinary_user(stage):
    name, user = stages()[stage][-1]
    assert name == "USER"
    assert user not in ("root", "0")


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_install_uses_the_constraints(stage):
    installs = [line for line in arguments_of(stage, "RUN") if "pip install" in line]
    assert installs
    assert all("-c configs/constraints.txt" in line for line in installs)


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_health_is_asked_of_the_server(stage):
    assert any("/health" in line for line in arguments_of(stage, "HEALTHCHECK"))


def test_every_copied_source_is_in_the_repository_and_let_through_by_dockerignore():
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = {word for line in arguments_of("gpu", "COPY") for word in line.split()[:-1]}
    assert sources == let_through
    assert all((ROOT / source).exists() for source in sources)


def test_no_model_file_can_enter_the_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {f"**/*.{suffix}" for suffix in MODEL_SUFFIXES} <= set(ignored)
    assert not [
        name for name in project_files() if name.startswith("weights/") and name.endswith(MODEL_SUFFIXES)
    ]


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_image_sets_only_settings_that_exist(stage):
    named = {name for name in environment_of(stage) if name.startswith("FLUX_PULID_")}
    assert "FLUX_PULID_WEIGHTS_DIR" in named
    assert named <= setting_names()


def test_the_service_has_a_read_only_root_and_two_volumes():
    service = compose_service()
    assert service["read_only"] is True
    assert {volume.split(":/", 1)[1].split(":")[0] for volume in service["volumes"]} == {"models", "data"}
    assert set(service["environment"]) <= setting_names()


def test_the_service_asks_for_one_gpu_of_the_gpu_stage():
    service = compose_service()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["build"]["target"] in stages()
