"""The simulated queue against closed forms, and the sums of the capacity bench.

The queue is the server's own code; that a decision takes at most a millisecond with 10,000 jobs waiting is
held by tests/jobs/test_scheduler.py.
"""

import json
import math
import re
import sys

import pytest

from bench import capacity
from bench.capacity import (
    BASIS,
    DEFAULT,
    HOSTED_USD,
    Limits,
    break_even_per_hour,
    demands,
    per_hour,
    rate_of,
    seconds_of,
    usd_per_thousand,
)
from bench.flops import forward
from bench.simulator import Arrival, Kind, one_line, poisson, simulate
from docs.project_files import ROOT, text_of

ONE_KIND = [Kind(1.0, 896, 1152, 2.0)]  # seconds
JOBS = 20_000


def simulated(load, devices=1, *, seed=1, spread=False, jobs=JOBS):
    per_second = load * devices / ONE_KIND[0].seconds
    return simulate(poisson(per_second, ONE_KIND, jobs, seed, spread=spread), devices)


# closed forms


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_device_and_exponential_times_wait_as_m_m_1_says(load):
    outcome = simulated(load, spread=True)
    service = ONE_KIND[0].seconds
    assert outcome.mean == pytest.approx(load * service / (1 - load), rel=0.08)
    # P(wait > t) = load x exp(-(1 - load) t / service)
    p95 = math.log(load / 0.05) * service / (1 - load)
    assert outcome.quantile(0.95) == pytest.approx(p95, rel=0.08)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_device_and_constant_times_wait_as_m_d_1_says(load):
    outcome = simulated(load)
    assert outcome.mean == pytest.approx(load * ONE_KIND[0].seconds / (2 * (1 - load)), rel=0.08)


def erlang_c(load, devices):
    """The share of arrivals that find all of so many devices busy."""
    offered = load * devices
    blocked = 1.0
    for number in range(1, devices + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def test_several_devices_wait_as_m_m_c_says():
    """A job that is prepared beside another does not wait for it where a device is idle."""
    load, devices, service = 0.7, 4, ONE_KIND[0].seconds
    outcome = simulated(load, devices, spread=True)
    assert outcome.mean == pytest.approx(erlang_c(load, devices) * service / (devices * (1 - load)), rel=0.08)


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_eight_devices_wait_as_long_as_with_one_line(load):
    arrivals = list(poisson(load * 8 / 2.0, ONE_KIND, 6000, 1))
    ours, ideal = simulate(arrivals, 8), one_line(arrivals, 8)
    assert ours.mean == pytest.approx(ideal.mean, rel=0.02)
    assert ours.quantile(0.95) == pytest.approx(ideal.quantile(0.95), rel=0.02)


def test_preparing_costs_a_job_its_time_once_and_a_busy_device_nothing():
    alone = simulate([Arrival(10.0 * number, "a", 896, 1152, 2.0) for number in range(10)], 1, prepare_s=0.5)
    assert set(alone.waits) == {0.5}
    in_turn = simulate([Arrival(0.0, "a", 896, 1152, 2.0) for _ in range(10)], 1, prepare_s=0.5)
    assert in_turn.until_s == 0.5 + 10 * 2.0
    load = list(poisson(0.9 * 8 / 2.0, ONE_KIND, 6000, 1))
    assert simulate(load, 8, prepare_s=0.2).mean < one_line(load, 8).mean + 0.2 + 0.02


def test_one_line_for_several_devices_waits_as_m_m_c_says():
    load, devices, service = 0.7, 4, ONE_KIND[0].seconds
    arrivals = poisson(load * devices / service, ONE_KIND, 6 * JOBS, 1, spread=True)
    expected = erlang_c(load, devices) * service / (devices * (1 - load))
    assert one_line(arrivals, devices).mean == pytest.approx(expected, rel=0.08)


def test_with_one_device_the_servers_queue_is_one_line():
    arrivals = list(poisson(0.4, ONE_KIND, 2000, 1))
    assert simulate(arrivals, 1).waits == pytest.approx(one_line(arrivals, 1).waits)


def test_devices_are_as_busy_as_the_load_says():
    outcome = simulated(0.6, 2)
    assert outcome.busy_s / (2 * outcome.until_s) == pytest.approx(0.6, rel=0.03)


# the simulator


def test_the_same_seed_gives_the_same_waits_and_another_seed_others():
    first, again, other = (simulated(0.8, 2, seed=seed, jobs=500).waits for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_without_anything_before_it_a_job_does_not_wait():
    alone = [Arrival(10.0 * number, "a", 896, 1152, 2.0) for number in range(20)]
    outcome = simulate(alone, 1)
    assert outcome.waits == [0.0] * 18, "a tenth is warm-up"
    assert outcome.until_s == 192.0


def test_jobs_that_find_the_queue_full_are_refused_and_counted():
    """One runs, one is chosen ahead, two wait, and of ten at once six are refused. The first is warm-up."""
    at_once = [Arrival(0.0, "a", 896, 1152, 2.0) for _ in range(10)]
    outcome = simulate(at_once, 1, max_queued=2)
    assert (outcome.refused, outcome.offered, len(outcome.waits)) == (6, 9, 3)


def test_a_key_that_asks_seldom_is_not_held_up_by_one_that_floods():
    flood = [Arrival(0.001 * number, "flood", 896, 1152, 1.0) for number in range(300)]
    seldom = [Arrival(50.5 + 20 * number, "seldom", 896, 1152, 1.0) for number in range(10)]
    arrivals = sorted(flood + seldom, key=lambda arrival: arrival.at)
    outcome = simulate(arrivals, 1)
    assert max(outcome.waits_by_key["seldom"]) <= 3.0
    assert max(outcome.waits_by_key["flood"]) > 250


def test_jobs_of_one_shape_are_painted_one_after_the_other():
    """The scheduler's affinity is in the simulation: the second small job passes a large one."""
    sizes = [(512, 512), (512, 512), (1024, 1024), (512, 512)]
    outcome = simulate([Arrival(0.0, "a", *size, 1.0) for size in sizes], 1)
    assert outcome.waits == [0.0, 1.0, 2.0, 3.0]  # in the order of their starts
    assert outcome.order == ["0", "1", "3", "2"]


# the sums


def test_published_times_mean_the_rates_that_are_quoted():
    assert forward(4096, 512).plain / 1e12 == pytest.approx(74.4, abs=0.05)
    assert [round(rate_of(system) / 1e12) for system in capacity.PUBLISHED_S] == [377, 489, 605]


def test_a_picture_takes_its_steps_and_what_lies_around_them():
    rate = rate_of(BASIS)
    assert seconds_of(*DEFAULT, rate) == pytest.approx(20 * 67.9e12 / rate + 0.0581, rel=1e-3)
    assert seconds_of(*DEFAULT, rate, steps=10) < 0.52 * seconds_of(*DEFAULT, rate)


def test_at_the_break_even_a_thousand_pictures_cost_what_they_cost_elsewhere():
    seconds = 3.0
    busy = break_even_per_hour(3.0) / per_hour(seconds)
    assert usd_per_thousand(3.0, seconds, busy) == pytest.approx(1000 * HOSTED_USD)
    assert usd_per_thousand(3.0, 3.6) == pytest.approx(3.0), "a thousand pictures an hour"


def test_what_is_asked_for_grows_with_the_gpus():
    ten, hundred = (demands(gpus, 2.0, Limits(commits=150, calls=100)) for gpus in (10, 100))
    assert ten["jobs_per_s"] == 5
    assert ten["commits_per_s"] == 15
    assert ten["of_one_database"] == 0.1
    assert ten["photos_in_gbit_s"] == pytest.approx(0.11)
    assert hundred["pictures_a_week_tb"] == pytest.approx(10 * ten["pictures_a_week_tb"], rel=0.05)


def test_the_database_and_the_hand_out_are_measured(tmp_path):
    assert capacity.measured_commits(tmp_path, 20) > 0
    assert 0 < capacity.measured_hand_out(2, 20) < 10


def test_the_script_runs_to_its_end_and_keeps_what_it_printed(monkeypatch, capsys, tmp_path):
    flags = ["--jobs=60", "--commits=5", f"--folder={tmp_path}", f"--results={tmp_path}"]
    monkeypatch.setattr(capacity, "FLEETS", (10,))
    monkeypatch.setattr(capacity, "HAND_OUTS", (2,))
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    assert capacity.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    [file] = tmp_path.glob("capacity-*.json")
    assert json.loads(file.read_text()) == line
    assert set(line["p95_wait_in_service_times"]) == {"1", "2", "4", "8", "8, one line", "8, 0.1 to prepare"}


# the page


def kept():
    return json.loads(max((ROOT / "bench" / "results").glob("capacity-*.json")).read_text())


def row_of(page, name):
    """The cells of a table's row after its first one."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_page_has_the_waits_that_were_kept():
    page = text_of("docs/scaling.md").split("## How long callers wait", 1)[1]
    for devices, waits in kept()["p95_wait_in_service_times"].items():
        assert row_of(page, devices) == [f"{wait:.1f}" for wait in waits.values()]


def test_the_page_has_the_throughput_that_is_computed():
    page = text_of("docs/scaling.md")
    for width, height in capacity.SIZES:
        hours = [per_hour(seconds_of(width, height, rate_of(system))) for system in capacity.PUBLISHED_S]
        assert row_of(page, f"{width}x{height}") == [f"{round(hour, -1):.0f}" for hour in hours]


def test_the_page_has_the_costs_that_are_computed():
    page = text_of("docs/scaling.md").split("## What a picture costs", 1)[1]
    for usd in capacity.USD_PER_GPU_HOUR:
        seconds = [seconds_of(*DEFAULT, rate_of(system)) for system in capacity.PUBLISHED_S]
        cells = [f"{usd_per_thousand(usd, each):.2f}" for each in seconds]
        cells += [f"{usd_per_thousand(usd, seconds[1], 0.2):.2f}", f"{break_even_per_hour(usd):.0f}"]
        assert row_of(page, f"{usd:.2f}") == cells


def test_the_page_has_what_many_gpus_ask_for():
    page = text_of("docs/scaling.md").split("## What breaks first", 1)[1]
    measured, fleets = kept()["measured"], kept()["fleets"]
    assert row_of(page, "pictures a second") == [f"{fleet['jobs_per_s']:g}" for fleet in fleets.values()]
    assert row_of(page, "commits a second") == [f"{fleet['commits_per_s']:g}" for fleet in fleets.values()]
    assert f"{measured['commits_per_s']} commits a second" in " ".join(page.split())
