"""What `--profile auto` chooses, for cards that are not in this machine; and what it says without one."""

import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from docs.project_files import ROOT
from pulid.errors import DeviceUnavailable
from pulid.probe import Card, TorchFacts
from pulid.profiles import AUTO, PROFILES, chosen_for, fits
from server.app import settled
from server.cli.main import app
from server.settings import Settings, SettingsError

H200 = Card(number=0, name="H200", uuid="", memory=150 * 10**9, capability=(9, 0), has_kernels=True)


def card(name, gigabytes, capability, number=0):
    return replace(H200, name=name, memory=int(gigabytes * 1e9), capability=capability, number=number)


CARDS = {
    "exact": [H200, card("A100", 85, (8, 0)), card("L40S", 47.8, (8, 9)), card("A40", 47.6, (8, 6))],
    "fp8": [card("unknown", 40, (8, 9))],
    "lowvram-24g": [
        card("L4", 23.6, (8, 9)),
        card("RTX 4090", 25.2, (8, 9)),
        card("RTX 5090", 34, (12, 0)),
        card("RTX 3090", 25.4, (8, 6)),
        card("A100 40 GB", 42.4, (8, 0)),
    ],
    "lowvram-16g": [card("RTX 4080", 16.8, (8, 9)), card("RTX A4000", 16.9, (8, 6))],
    "lowvram-12g": [card("RTX 4070", 12.4, (8, 9)), card("RTX 3060", 12.6, (8, 6))],
}


@pytest.fixture
def machine(monkeypatch):
    """Put cards into it."""

    def put(*cards):
        facts = TorchFacts(version="2", cuda="13", cards=cards, why_no_cards="")
        monkeypatch.setattr("pulid.probe.torch_facts", lambda: facts)

    return put


@pytest.mark.parametrize(("profile", "its"), [(name, one) for name, cards in CARDS.items() for one in cards])
def test_the_most_exact_profile_that_fits_is_chosen_and_the_others_are_told(profile, its):
    chosen, why = chosen_for([its])
    assert chosen.name == profile
    assert its.name in why
    assert fits(chosen, its)
    for passed in list(CARDS)[: list(CARDS).index(profile)]:
        assert f"{passed}, which needs {PROFILES[passed].device_memory / 1e9:.0f} GB" in why
    in_int8 = profile.startswith("lowvram") and its.capability < (8, 9)
    assert (", in int8 on cuda:0 for want of fp8;" in why) == in_int8


def test_cards_that_serve_together_get_the_profile_of_the_weakest():
    chosen, why = chosen_for([H200, card("RTX 4080", 16.8, (8, 9), number=1)])
    assert chosen.name == "lowvram-16g"
    assert "cuda:0 (H200" in why
    assert "cuda:1 (RTX 4080" in why
    assert why.endswith(" All cards of a server take one profile, that of the weakest.")
    assert "weakest" not in chosen_for([H200, replace(H200, number=1)])[1]


def test_of_cards_that_compute_differently_the_ones_in_int8_are_named():
    _, why = chosen_for([card("RTX 4090", 25.2, (8, 9)), card("RTX 3090", 25.4, (8, 6), number=1)])
    assert ", in int8 on cuda:1 for want of fp8;" in why


def test_a_card_for_which_torch_has_no_code_fits_nothing():
    with pytest.raises(DeviceUnavailable, match="for which this build of torch has no code"):
        chosen_for([replace(H200, has_kernels=False)])


def test_no_step_is_skipped_and_no_cpu_computes_unless_somebody_asks_for_it(monkeypatch):
    monkeypatch.setattr("pulid.profiles.PROFILES", {name: PROFILES[name] for name in ("turbo", "tiny")})
    with pytest.raises(DeviceUnavailable):
        chosen_for([H200])


@pytest.mark.parametrize("its", [card("T4", 15.8, (7, 5)), card("RTX 4060", 8.3, (8, 9))])
def test_a_card_that_no_profile_fits_is_refused_with_what_they_need(its):
    with pytest.raises(
        DeviceUnavailable, match=r"exact, which needs 45 GB; fp8, which needs 36 GB and .* 8\.9"
    ):
        chosen_for([its])


def test_only_the_cards_that_devices_names_are_asked(machine):
    machine(H200, card("RTX 4080", 16.8, (8, 9), number=1))
    said = []
    assert settled(Settings(profile=AUTO, devices="0"), said.append).profile == "exact"
    assert settled(Settings(profile=AUTO, devices="all"), said.append).profile == "lowvram-16g"
    one = settled(Settings(profile=AUTO, devices="all"), said.append, first_device_only=True)
    assert one.profile == "exact"
    assert [text.startswith("Profile auto: ") for text in said] == [True, True, True]


def test_a_profile_that_is_named_stays_and_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr("pulid.probe.torch_facts", lambda: pytest.fail("looked at the cards"))
    for profile in (None, "tiny", "turbo"):
        settings = Settings(profile=profile)
        assert settled(settings, pytest.fail) is settings


@pytest.mark.parametrize(
    ("devices", "kind", "words"),
    [
        ("all", DeviceUnavailable, "no CUDA device was found"),
        ("cpu", SettingsError, "devices names the CPU"),
    ],
)
def test_without_a_card_there_is_an_error_that_names_tiny(machine, devices, kind, words):
    machine()
    with pytest.raises(kind, match=f"auto profile needs a CUDA device, and {words}.*--profile tiny"):
        settled(Settings(profile=AUTO, devices=devices), pytest.fail)


def test_a_card_that_is_not_there_is_refused(machine):
    machine(H200)
    with pytest.raises(DeviceUnavailable, match="GPU 3"):
        settled(Settings(profile=AUTO, devices="3"), pytest.fail)


def test_the_dial_of_turbo_is_refused_beside_it():
    with pytest.raises(ValueError, match="auto skips no steps"):
        Settings(profile=AUTO, turbo_threshold=0.1)


def test_t5_in_int8_is_for_a_profile_that_is_named(machine):
    """Else the choice would be another one, or a setting would be dropped without a word."""
    machine(card("RTX 5090", 33.6, (12, 0)))
    said = []
    settings = settled(Settings(profile=AUTO, t5_int8=True), said.append)
    assert (settings.profile, settings.t5_int8) == ("lowvram-24g", False)
    assert said[0].endswith(" It leaves T5 in bfloat16: t5_int8 goes with a profile that is named.")
    settled(Settings(profile=AUTO), said.append)
    assert "T5" not in said[1]


def test_the_doctor_tells_what_it_chooses_and_judges_by_that(machine, tmp_path):
    machine(card("RTX 4080", 16.8, (8, 9)))
    done = doctor(tmp_path)
    assert "Profile auto: lowvram-16g for cuda:0 (RTX 4080" in done.stdout
    assert "the profile lowvram-16g does not run here as it is" in done.stdout  # it has no weights


@pytest.mark.parametrize("t5_int8", ["false", "true"])
def test_where_nothing_fits_the_doctor_says_so_and_goes_on(machine, tmp_path, t5_int8):
    machine()
    done = doctor(tmp_path, "--t5-int8", t5_int8)
    assert done.exit_code == 1
    assert "The auto profile needs a CUDA device" in done.stdout
    assert "weights" in done.stdout


def test_the_doctor_judges_a_card_by_what_t5_in_int8_leaves(machine, monkeypatch, tmp_path):
    machine(card("RTX 5090", 33.6, (12, 0)))
    monkeypatch.setattr("pulid.probe.cuda_count", lambda: 1)
    said = "RTX 5090, 33.6 GB: fp8 needs 36.0 GB"
    assert said in doctor(tmp_path, profile="fp8").stdout
    done = doctor(tmp_path, "--t5-int8", "true", profile="fp8").stdout
    assert said not in done
    assert "What fits: fp8, turbo" in done


def doctor(folder, *more, profile=AUTO):
    flags = ["--profile", profile, "--port", "0", "--data-dir", str(folder), "--weights-dir", str(folder)]
    return CliRunner().invoke(app, ["doctor", *flags, *more], env={"COLUMNS": "400"})


@pytest.mark.parametrize("command", ["serve", "generate", "evaluate"])
def test_what_computes_ends_without_a_card_and_says_what_runs(machine, command, tmp_path):
    machine()
    photo = ROOT / "tests" / "photos" / "collins.jpg"
    (tmp_path / "faces").mkdir()
    shutil.copy(photo, tmp_path / "faces")
    (tmp_path / "prompts.txt").write_text("portrait\n")
    given = {
        "serve": ["--port", "0", "--data-dir", str(tmp_path / "data")],
        "generate": ["--prompt", "portrait", "--face", str(photo), "--out", str(tmp_path / "out.png")],
        "evaluate": [
            str(tmp_path / "faces"),
            str(tmp_path / "prompts.txt"),
            "--out",
            str(tmp_path / "report"),
        ],
    }
    done = CliRunner().invoke(app, [command, *given[command], "--profile", "auto"])
    assert done.exit_code == 1, done.output
    assert "choose --profile tiny" in " ".join(done.stderr.split())
    assert not [name for name in ("data", "out.png", "report") if (tmp_path / name).exists()]


def test_the_files_it_may_need_are_those_of_exact(tmp_path):
    def listed(profile):
        flags = ["--profile", profile, "--weights-dir", str(tmp_path)]
        return CliRunner().invoke(app, ["weights", "list", *flags]).stdout

    assert listed("auto") == listed("exact")
