"""A training run from scratch, as `python -m training toy` does it: each stage learns something."""

import json
import os
import subprocess
import sys

import pytest

from docs.project_files import ROOT
from training.__main__ import main

# Of the loss at the first step, how much may be left at the end; what is written down is smoothed.
LEFT = {"identity": 0.95, "decoder": 0.9, "painter": 0.95}


def train(folder):
    return subprocess.run(
        [sys.executable, "-m", "training", "toy"],
        cwd=ROOT,
        # One thread: on cores that others use, two that wait for each other take many times as long.
        env={**os.environ, "TRAINING_RUN": os.fspath(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def lines_of(folder, part):
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]


def drawings_of(folder):
    files = [*folder.glob("pool/*/*.npz"), *folder.glob("crops/*.npy"), folder / "patch_code.npz"]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_without_time_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", "toy", "--minutes", "0"])
    main()
    assert capsys.readouterr().out == "The time is over; run the same command again to go on.\n"


@pytest.mark.release  # half a minute and more
@pytest.mark.parametrize(("part", "left"), LEFT.items())
def test_the_loss_falls(run, part, left):
    first, *_, last = lines_of(run, part)
    assert last["step"] > first["step"] == 1
    assert last["loss"] < left * first["loss"]


@pytest.mark.release
def test_the_same_command_again_does_nothing_more(run):
    before = {part: lines_of(run, part) for part in LEFT}
    drawings = drawings_of(run)
    assert len(drawings) == 3
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert drawings_of(run) == drawings
    for part, lines in before.items():
        # It says once more how far it is, without a loss: no step was done.
        assert lines_of(run, part) == [*lines, {"step": lines[-1]["step"]}]
