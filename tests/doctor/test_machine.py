"""What is said about drivers, builds of torch and cards, for machines that are not this one."""

import dataclasses
import os
import stat

import pytest

from pulid.probe import Card, TorchFacts, has_kernels
from pulid.profiles import PROFILES
from server.checks.machine import (
    Driver,
    available_memory,
    check_card,
    check_cards,
    check_driver,
    check_memory,
    check_torch,
    read_driver,
)

EXACT, TINY = PROFILES["exact"], PROFILES["tiny"]
UUID = "GPU-4b0c3cb0-5a1f-4a6b-9e0e-000000000000"
DRIVER = Driver(version="580.95.05", cuda="13.0", free={UUID: 143 * 10**9})
H200 = Card(
    number=0, name="NVIDIA H200", uuid=UUID, memory=150_754_820_096, capability=(9, 0), has_kernels=True
)
FACTS = TorchFacts(version="2.13.0+cu130", cuda="13.0", cards=(H200,), why_no_cards="")

REPORT = f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
	<driver_version>580.95.05</driver_version>
	<cuda_version>13.0</cuda_version>
	<attached_gpus>1</attached_gpus>
	<gpu id="00000000:19:00.0">
		<product_name>NVIDIA H200</product_name>
		<uuid>{UUID}</uuid>
		<fb_memory_usage>
			<total>143771 MiB</total>
			<reserved>613 MiB</reserved>
			<used>2 MiB</used>
			<free>143157 MiB</free>
		</fb_memory_usage>
	</gpu>
	<gpu id="00000000:1a:00.0">
		<product_name>NVIDIA H200</product_name>
		<uuid>GPU-other</uuid>
		<fb_memory_usage><free>[N/A]</free></fb_memory_usage>
	</gpu>
</nvidia_smi_log>
"""


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name on an otherwise empty PATH."""

    def put(script):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return put


def without_cards(**changes):
    said = {
        "version": "2.13.0+cu130",
        "cuda": "13.0",
        "cards": (),
        "why_no_cards": "No CUDA GPUs are available",
    }
    return TorchFacts(**(said | changes))


# the driver


def test_the_drivers_report_is_read(nvidia_smi):
    nvidia_smi(f"cat <<'END'\n{REPORT}END")
    assert read_driver() == Driver(version="580.95.05", cuda="13.0", free={UUID: 143157 * 2**20})


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9",
            "has failed",
        ),
        ("echo unknown flag >&2; exit 2", "unknown flag"),
        ("exit 3", "3"),
        ("echo not XML", "unknown form"),
    ],
)
def test_a_driver_that_does_not_work_says_why(nvidia_smi, script, said):
    nvidia_smi(script)
    assert said in read_driver().problem


def test_without_nvidia_smi_there_is_no_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_driver(EXACT, read_driver(), sees_cards=False)
    assert found.state == "fault"
    assert "nvidia-smi is not installed" in found.text
    assert "--gpus all" in found.text
    assert "--profile tiny" in found.text


def test_a_driver_that_only_its_own_program_cannot_reach_is_no_fault():
    found = check_driver(EXACT, Driver(problem="nvidia-smi is not installed"), sees_cards=True)
    assert found.state == "warning"
    assert "compute,utility" in found.text


def test_a_profile_of_the_cpu_needs_no_driver():
    assert check_driver(TINY, Driver(problem="nvidia-smi is not installed"), sees_cards=False).state == "ok"
    assert check_torch(TINY, Driver(), without_cards(cuda=None)).state == "ok"
    assert list(check_cards(TINY, Driver(), without_cards(cuda=None), "all")) == []


# torch


def test_a_torch_for_the_cpu_alone_is_a_fault_where_a_card_is_needed():
    found = check_torch(EXACT, DRIVER, without_cards(version="2.13.0+cpu", cuda=None))
    assert found.state == "fault"
    assert "built for the CPU alone" in found.text
    assert "pip install --force-reinstall -c configs/constraints.txt torch torchvision" in found.text


def test_a_driver_older_than_torchs_cuda_is_a_fault():
    old = Driver(version="535.274.02", cuda="12.2")
    found = check_torch(EXACT, old, without_cards())
    assert found.state == "fault"
    assert "built for CUDA 13.0" in found.text
    assert "up to 12.2" in found.text


def test_a_driver_of_the_same_cuda_generation_will_do():
    assert (
        check_torch(
            EXACT,
            Driver(version="550.1", cuda="12.4"),
            TorchFacts(version="2.9.0+cu128", cuda="12.8", cards=(H200,), why_no_cards=""),
        ).state
        == "ok"
    )


def test_cards_that_torch_does_not_see_are_a_fault_with_torchs_reason(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = check_torch(EXACT, DRIVER, without_cards())
    assert found.state == "fault"
    assert "No CUDA GPUs are available" in found.text
    assert "CUDA_VISIBLE_DEVICES is '7'" in found.text


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),  # of the same generation, and older
        ((9, 0), ["sm_80", "sm_86"], False),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 1), ["sm_90", "compute_90"], True),  # compiled by the driver at first use
        ((10, 0), ["sm_100a"], True),
        ((9, 0), [], False),
    ],
)
def test_a_build_has_code_for_a_card_or_not(capability, built_for, runs):
    assert has_kernels(capability, built_for) is runs


# cards


def test_a_card_with_room_says_what_fits():
    found = check_card(EXACT, H200, DRIVER.free[UUID])
    assert (found.check, found.state) == ("cuda:0", "ok")
    assert "150.8 GB, 143.0 GB free" in found.text
    assert "exact" in found.text


@pytest.mark.parametrize(
    ("card", "free", "state", "said"),
    [
        (
            Card(number=1, name="L4", uuid="", memory=24 * 10**9, capability=(8, 9), has_kernels=True),
            None,
            "fault",
            "needs 45.0 GB",
        ),
        (
            Card(number=1, name="P100", uuid="", memory=80 * 10**9, capability=(6, 0), has_kernels=False),
            None,
            "fault",
            "no code",
        ),
        (
            Card(number=1, name="A100", uuid="", memory=80 * 10**9, capability=(8, 0), has_kernels=True),
            9 * 10**9,
            "warning",
            "9.0 GB are free",
        ),
        (
            Card(number=1, name="A100", uuid="", memory=80 * 10**9, capability=(8, 0), has_kernels=True),
            None,
            "ok",
            "80.0 GB",
        ),
    ],
)
def test_a_card_without_room_or_code_says_what_to_do(card, free, state, said):
    found = check_card(EXACT, card, free)
    assert (found.check, found.state) == ("cuda:1", state)
    assert said in found.text


def test_a_card_without_fp8_is_told_so_and_what_fits_is_named():
    a100 = Card(number=1, name="A100", uuid="", memory=80 * 10**9, capability=(8, 0), has_kernels=True)
    found = check_card(PROFILES["fp8"], a100, None)
    assert found.state == "fault"
    assert "compute capability 8.0, and the profile fp8 needs 8.9" in found.text
    assert check_card(EXACT, a100, None).text.endswith(
        "What fits: exact, lowvram-24g, lowvram-16g, lowvram-12g."
    )
    rtx3060 = dataclasses.replace(a100, memory=12_600_000_000, capability=(8, 6))
    found = check_card(PROFILES["lowvram-12g"], rtx3060, None)
    assert (found.state, found.text.endswith(" lowvram-12g computes in int8 there, not fp8.")) == ("ok", True)
    l40 = dataclasses.replace(a100, memory=40 * 10**9, capability=(8, 9))
    assert "--profile fp8 fits." in check_card(EXACT, l40, None).text


def test_where_no_card_is_the_finding_names_the_profile_without_one():
    (found,) = check_cards(EXACT, DRIVER, without_cards(), "all")
    assert found.state == "fault"
    assert "--profile tiny" in found.text


# memory


@pytest.mark.parametrize(("workers", "state"), [(1, "ok"), (10**6, "warning")])
def test_the_hosts_memory_is_compared_with_what_all_workers_need(workers, state):
    assert check_memory(TINY, workers=workers).state == state


def test_weights_that_come_from_the_hosts_memory_count_there(monkeypatch):
    monkeypatch.setattr("server.checks.machine.available_memory", lambda: 20 * 10**9)
    assert check_memory(PROFILES["fp8"], workers=2).state == "ok"
    found = check_memory(PROFILES["lowvram-12g"], workers=1)
    assert found.state == "warning"
    assert "lowvram-12g wants 29.0 GB" in found.text


def test_small_cards_are_told_which_profile_fits():
    card = Card(number=0, name="L4", uuid="", memory=23_670_000_000, capability=(8, 9), has_kernels=True)
    for memory, name in (
        (card.memory, "lowvram-24g"),
        (17 * 10**9, "lowvram-16g"),
        (12 * 10**9, "lowvram-12g"),
    ):
        found = check_card(PROFILES["fp8"], dataclasses.replace(card, memory=memory), None)
        assert f"--profile {name} fits" in found.text
    found = check_card(PROFILES["fp8"], dataclasses.replace(card, memory=8 * 10**9), None)
    assert "No profile for smaller cards" in found.text


def test_the_limit_of_a_container_counts(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   16000000 kB\n")
    assert available_memory(tmp_path, tmp_path / "none") == 16_000_000 * 1024
    for name, content in (
        ("memory.max", "4000000000"),
        ("memory.current", "1500000000"),
        ("memory.stat", "anon 1\nfile 500000000\n"),
    ):
        (tmp_path / name).write_text(content)
    assert available_memory(tmp_path, tmp_path) == 3_000_000_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory(tmp_path, tmp_path) == 16_000_000 * 1024


def test_where_nothing_tells_the_memory_nothing_is_claimed(tmp_path):
    assert available_memory(tmp_path, tmp_path) is None
