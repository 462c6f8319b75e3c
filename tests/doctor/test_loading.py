"""What people hear while an engine is loaded."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from pulid.engine import LoadProgress
from pulid.profiles import PROFILES, with_t5_in_int8
from server.app import engine_factory
from server.cli.generate import show_loading
from server.loading import EVERY_S, LoadingReport
from server.settings import Settings


class Listener:
    def __init__(self, **how):
        self.said = []
        self.now = 0.0
        self.report = LoadingReport(lambda *words: self.said.append(words), clock=lambda: self.now, **how)

    def hear(self, part, done, *, after_s=0.5):
        self.now += after_s
        self.report("cuda:1", LoadProgress(part=part, done_bytes=done, total_bytes=1000))


def test_each_part_is_said_once_and_the_end():
    listener = Listener()
    for part, done in (
        ("FLUX transformer", 100),
        ("FLUX transformer", 150),
        ("T5", 800),
        ("T5", 900),
        ("T5", 1000),
    ):
        listener.hear(part, done)
    assert listener.said == [
        ("cuda:1", "FLUX transformer", 10),
        ("cuda:1", "T5", 80),
        ("cuda:1", "T5", 100),
    ]


def test_a_part_that_takes_long_is_said_again_every_ten_seconds():
    listener = Listener()
    for done in range(0, 990, 10):
        listener.hear("FLUX transformer", done, after_s=0.5)
    assert [percent for _, _, percent in listener.said] == [0, 20, 40, 60, 80]
    assert EVERY_S == 10


def test_another_time_between_two_reports_may_be_chosen():
    listener = Listener(every_s=0.25)
    for done in range(0, 100, 10):
        listener.hear("FLUX transformer", done, after_s=0.125)
    assert [percent for _, _, percent in listener.said] == [0, 2, 4, 6, 8]


def test_a_person_at_a_terminal_reads_it(capsys):
    show_loading("cuda:0", "T5", 80)
    assert capsys.readouterr().err == "Loading T5 onto cuda:0, 80 %\n"


def test_an_engine_tells_it_with_its_device_and_is_made_of_what_the_settings_choose(monkeypatch, tmp_path):
    """Between the settings and the loader; the loader itself is in tests/files."""
    given = {}

    def load(profile, paths, device, *, progress, **rest):
        given.update(rest, transformer=paths.transformer, pulid=paths.pulid, device=device)
        progress(LoadProgress(part="T5", done_bytes=1, total_bytes=2))

    monkeypatch.setattr("pulid.load.load_engine", load)
    monkeypatch.setattr("server.engines.require_checkpoints", lambda checkpoints, home: None)
    monkeypatch.setattr("server.engines.require_loras", lambda profile, loras: None)
    settings = Settings(
        weights_dir=tmp_path,
        base_model="flux1-krea-dev",
        pulid_version="v0.9.0",
        lora="a.safetensors:0.5",
        face_mode="reference",
    )
    heard = []
    engine_factory(settings, lambda *words: heard.append(words))("cuda:1")
    assert heard == [("cuda:1", "T5", 50)]
    assert given == {
        "device": "cuda:1",
        "transformer": tmp_path / "FLUX.1-Krea-dev" / "flux1-krea-dev.safetensors",
        "pulid": tmp_path / "pulid_flux_v0.9.0.safetensors",
        "loras": ((Path("a.safetensors"), 0.5),),
        "face_mode": "reference",
    }


@pytest.mark.parametrize(
    ("given", "used"), [({}, 0.1), ({"turbo_threshold": 0.3}, 0.3), ({"turbo_threshold": 0}, 0)]
)
def test_turbo_is_loaded_with_the_threshold_of_the_settings_or_its_own(monkeypatch, tmp_path, given, used):
    loaded = []
    monkeypatch.setattr("pulid.load.load_engine", lambda profile, *rest, **options: loaded.append(profile))
    monkeypatch.setattr("server.engines.require_checkpoints", lambda checkpoints, home: None)
    engine_factory(Settings(profile="turbo", weights_dir=tmp_path, **given))("cuda:0")
    assert loaded == [replace(PROFILES["turbo"], skip_threshold=used)]


@pytest.mark.parametrize("profile", ["fp8", "turbo", "lowvram-16g"])
def test_t5_is_in_int8_where_the_settings_say_so(monkeypatch, tmp_path, profile):
    loaded = []
    monkeypatch.setattr("pulid.load.load_engine", lambda profile, *rest, **options: loaded.append(profile))
    monkeypatch.setattr("server.engines.require_checkpoints", lambda checkpoints, home: None)
    for asked in (False, True):
        settings = Settings(profile=profile, weights_dir=tmp_path, t5_int8=asked)
        pickle.loads(pickle.dumps(engine_factory(settings)))("cuda:0")  # noqa: S301 - as a worker gets it
    assert loaded == [PROFILES[profile], with_t5_in_int8(PROFILES[profile])]


def test_the_factory_of_the_server_travels_to_a_worker_which_says_it_in_its_own_way():
    factory = engine_factory(Settings(profile="tiny"))
    assert pickle.loads(pickle.dumps(factory)).keywords == factory.keywords  # noqa: S301
    assert factory.keywords["progress"] is None
