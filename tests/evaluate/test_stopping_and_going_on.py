"""An evaluation that was stopped goes on where it stood, and never mixes with another one."""

import contextlib
import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from evaluate.conftest import PHOTOS

from server.cli.evaluate import about_of
from server.settings import Settings

SMALL = ["--width", "256", "--height", "256", "--num-steps", "2"]
GRID = ["--grid", "id_weight=0.5,1"]  # with two faces and two prompts: 8 pictures
CELLS = 8
PATIENCE_S = 120.0


def rows_of(report):
    path = report / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary_of(report):
    return json.loads((report / "summary.json").read_text())


def contents(report):
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (report / "pictures").iterdir()
    }


# ---- kill -9 ----


def started(faces, prompts, report, *more):
    words = ["evaluate", faces, prompts, "--out", report, "--profile", "tiny", *GRID, *more]
    command = [sys.executable, "-m", "server", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.release
def test_after_a_kill_in_the_middle_the_rest_is_painted_and_nothing_twice(faces, prompts, report):
    large = ["--width", "448", "--height", "448", "--num-steps", "4"]
    first = started(faces, prompts, report, *large)
    deadline = time.monotonic() + PATIENCE_S
    while len(rows_of(report)) < 3 and time.monotonic() < deadline:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=PATIENCE_S)
    before = {row["cell"]: row for row in rows_of(report)}
    assert 3 <= len(before) < CELLS
    pictures = contents(report)

    second = started(faces, prompts, report, *large)
    _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said
    assert f"{len(before)} of {CELLS} pictures are there already." in said
    after = {row["cell"]: row for row in rows_of(report)}
    assert len(after) == len(rows_of(report)) == CELLS
    assert {cell: after[cell] for cell in before} == before
    now = contents(report)
    kept = {name for row in before.values() for name in pictures if row["picture"].endswith(name)}
    assert len(kept) == len(before)
    assert {name: now[name] for name in kept} == {name: pictures[name] for name in kept}
    assert not list(report.rglob("*.tmp"))
    assert summary_of(report)["complete"]


# ---- in this process ----


@pytest.fixture
def run(engine, evaluate):
    return lambda *flags: evaluate(*SMALL, *GRID, *flags)


@pytest.fixture(scope="module")
def painted(with_faces, run_command, tmp_path_factory):
    """A complete report, to be copied."""
    folder = tmp_path_factory.mktemp("painted")
    (folder / "faces").mkdir()
    for name in ("ardern.jpg", "obama.jpg"):
        shutil.copy(PHOTOS / name, folder / "faces")
    (folder / "prompts.txt").write_text("portrait, neon color\na knight in the snow\n")
    with with_faces():
        done = run_command(folder / "faces", folder / "prompts.txt", folder / "report", *SMALL, *GRID)
    assert done.exit_code == 0, done.output
    return folder / "report"


@pytest.fixture
def complete(painted, report):
    """The report of `run`, complete."""
    return shutil.copytree(painted, report)


def test_ctrl_c_leaves_a_report_of_what_is_done(run, engine, tiny, report):
    engine.stop_after = 5
    done = run()
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "Stopped."
    assert tiny.step() == []  # nothing was left in flight
    assert engine.closed
    assert len(rows_of(report)) == 5
    assert (summary_of(report)["painted"], summary_of(report)["complete"]) == (5, False)
    page = (report / "index.html").read_text()
    assert page.count("not painted yet") == CELLS - 5
    assert f"5 of {CELLS} pictures are painted." in page


def test_the_same_command_goes_on(run, engine, report):
    engine.stop_after = 5
    run()
    engine.stop_after = None
    done = run()
    assert done.exit_code == 0, done.output
    assert f"5 of {CELLS} pictures are there already." in done.stderr
    assert engine.painted == len(rows_of(report)) == CELLS
    assert "not painted yet" not in (report / "index.html").read_text()


def test_a_stopped_report_ends_up_like_one_that_was_not(run, engine, report, evaluate, tmp_path):
    engine.stop_after = 7
    run()
    engine.stop_after = None
    run()
    whole = tmp_path / "whole"
    assert evaluate(*SMALL, *GRID, out=whole).exit_code == 0

    def without_seconds(folder):
        return [{**row, "seconds": ""} for row in rows_of(folder)]

    assert without_seconds(report) == without_seconds(whole)
    one, other = (
        {**summary_of(folder), "seconds_per_picture": 0, "program": ""} for folder in (report, whole)
    )
    assert one == other


def test_a_complete_report_is_written_again_without_an_engine(run, engine, complete):
    (complete / "index.html").unlink()
    done = run()
    assert done.exit_code == 0
    assert "Loading" not in done.stderr
    assert not engine.closed
    assert (complete / "index.html").is_file()
    assert summary_of(complete)["complete"]


def test_a_row_that_was_cut_is_painted_again(run, engine, report):
    engine.stop_after = 4
    run()
    results = report / "results.csv"
    results.write_bytes(results.read_bytes()[:-10])  # in the middle of the fourth row
    engine.stop_after = None
    assert run().exit_code == 0
    rows = rows_of(report)
    assert len({row["cell"] for row in rows}) == len(rows) == CELLS
    assert engine.painted == CELLS + 1


@pytest.mark.parametrize(
    ("flags", "different"),
    [
        (["--grid", "start_step=0"], "grid"),
        (["--guidance-scale", "3"], "parameters"),
        (["--output-format", "webp"], "parameters"),
        (["--face-mode", "reference"], "settings"),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused(run, complete, flags, different):
    before = contents(complete), rows_of(complete)
    done = run(*flags)
    assert done.exit_code == 2
    assert f"holds a report of other settings; different: {different}" in done.stderr
    assert "another folder with --out" in done.stderr
    assert "Loading" not in done.stderr
    assert (contents(complete), rows_of(complete)) == before


@pytest.mark.parametrize(
    ("given", "threshold"), [({}, 0.1), ({"turbo_threshold": 0.0}, 0.0), ({"turbo_threshold": 0.3}, 0.3)]
)
def test_pictures_of_turbo_are_of_its_threshold_and_others_have_none(given, threshold):
    assert about_of(Settings(profile="turbo", **given)).settings["turbo_threshold"] == threshold
    assert "turbo_threshold" not in about_of(Settings(profile="fp8")).settings


def test_pictures_with_t5_in_int8_are_another_evaluation_and_others_are_what_they_were():
    assert about_of(Settings(profile="fp8", t5_int8=True)).settings["t5_int8"] is True
    assert "t5_int8" not in about_of(Settings(profile="fp8")).settings


def test_other_photos_prompts_or_seeds_are_another_evaluation(run, complete, faces, prompts):
    assert "different: seeds" in run("--seed", "5").stderr
    prompts.write_text("another prompt")
    assert "different: prompts" in run().stderr
    (faces / "obama.jpg").write_bytes((faces / "ardern.jpg").read_bytes())
    assert "different: faces, prompts" in run().stderr


def test_two_commands_never_write_one_report(run, complete):
    with (complete / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run()
    assert done.exit_code == 2
    assert "Another command is writing the report" in done.stderr


def test_a_photo_that_changes_on_the_way_ends_the_command(run, engine, faces, report):
    engine.stop_after = 1
    run()
    engine.stop_after = None
    admit = engine.admit

    def admit_and_change(job_id, request):
        admit(job_id, request)
        (faces / "obama.jpg").write_bytes((faces / "ardern.jpg").read_bytes())

    engine.admit = admit_and_change
    done = run()
    assert done.exit_code == 2
    assert "has changed since the evaluation began" in done.stderr
    assert summary_of(report)["painted"] == len(rows_of(report)) > 1


def test_a_picture_that_cannot_be_written_is_one_message_and_the_report_stays(run, engine, report):
    engine.stop_after = 2
    run()
    engine.stop_after = None
    (report / "pictures").rename(report / "moved")
    (report / "pictures").write_text("in the way")
    done = run()
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {report / 'pictures'}")
    assert "cannot be written" in done.stderr
    assert engine.closed
    assert summary_of(report)["painted"] == len(rows_of(report)) == 2


# ---- progress ----


def test_without_a_terminal_the_last_picture_has_a_line(run, engine):
    done = run()
    assert f"Picture {CELLS} of {CELLS}, " in done.stderr
    assert "0 s left." in done.stderr


@pytest.mark.release
def test_on_a_terminal_a_bar_shows_the_time_left(faces, prompts, report):
    """A real terminal: the other end of a pty."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    words = ["evaluate", faces, prompts, "--out", report, "--profile", "tiny", *SMALL]
    command = [sys.executable, "-m", "server", *map(str, words)]
    process = subprocess.Popen(command, env=environment, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # what Linux answers once the other end is closed
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert process.wait(timeout=PATIENCE_S) == 0
    assert b"Painting" in said
    assert b"4/4" in said
    assert b"0:00:00" in said
