"""Throughput over several workers of one server: the bench, run to its end."""

import json
import sys

import pytest

from bench import workers


@pytest.mark.release
def test_each_worker_adds_nearly_as_much_as_one_does_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench", f"--results={tmp_path}"])
    assert workers.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    [file] = tmp_path.glob("workers-*.json")
    assert json.loads(file.read_text()) == line
    assert list(line["jobs_per_s"]) == ["1", "2", "4"]
    assert all(share >= 0.95 for share in line["each_of_one_alone"].values())
    assert line["jobs_per_s"]["1"] > 0.7 / (line["steps"] * line["step_s"])


def test_shares_are_of_what_one_worker_does():
    assert workers.shares({1: 2.0, 2: 4.0, 4: 6.0}) == {1: 1.0, 2: 1.0, 4: 0.75}
