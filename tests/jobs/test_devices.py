"""From the settings `profile` and `devices` to the devices of the workers, and to an engine."""

import pytest

from pulid.errors import DeviceUnavailable, UnknownProfile
from pulid.profiles import PROFILES
from server.engines import create_engine, devices_for
from server.settings import SettingsError

EXACT, TINY = PROFILES["exact"], PROFILES["tiny"]


@pytest.fixture
def cards(monkeypatch):
    """Give the machine some CUDA cards."""
    return lambda count: monkeypatch.setattr("pulid.probe.cuda_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("all", ["cuda:0", "cuda:1", "cuda:2"]),
        ("0", ["cuda:0"]),
        ("2", ["cuda:2"]),
        ("0,1", ["cuda:0", "cuda:1"]),
        ("2,00", ["cuda:2", "cuda:0"]),
    ],
)
def test_exact_computes_on_every_card_or_on_those_that_were_named(cards, asked, meant):
    cards(3)
    assert devices_for(EXACT, asked) == meant


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("all", ["cpu"]), ("cpu", ["cpu"]), ("cpu,cpu", ["cpu:0", "cpu:1"])],
)
def test_tiny_computes_on_the_cpu_and_two_engines_there_have_two_names(asked, meant):
    assert devices_for(TINY, asked) == meant


@pytest.mark.parametrize("asked", ["all", "0", "0,1", "cpu", "cpu,cpu"])
def test_without_a_card_exact_is_refused_and_tiny_is_named(cards, asked):
    cards(0)
    kind = SettingsError if "cpu" in asked else DeviceUnavailable
    with pytest.raises(kind, match="--profile tiny"):
        devices_for(EXACT, asked)


@pytest.mark.parametrize("asked", ["cpu", "cpu,0"])
def test_with_a_card_exact_does_not_fall_back_to_the_cpu(cards, asked):
    cards(1)
    with pytest.raises(SettingsError, match="names the CPU"):
        devices_for(EXACT, asked)


@pytest.mark.parametrize(
    ("asked", "words"), [("2", "GPU 2, and this machine has 2"), ("0,7", "GPU 7"), ("999", "GPU 999")]
)
def test_a_card_that_is_not_there_is_refused(cards, asked, words):
    cards(2)
    with pytest.raises(DeviceUnavailable, match=words):
        devices_for(EXACT, asked)


def test_tiny_refuses_a_card(cards):
    cards(2)
    with pytest.raises(SettingsError, match="computes on the CPU"):
        devices_for(TINY, "0")


def test_the_machine_these_tests_run_on_is_counted_as_torch_sees_it():
    import torch

    from pulid.probe import cuda_count

    assert cuda_count() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownProfile, match="one of: exact, fp8, turbo, lowvram-24g"):
        create_engine("cpu", profile="fast", weights_dir=tmp_path, face_mode="one-face")
