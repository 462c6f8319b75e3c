"""A training loop that is stopped, by the clock or from outside, goes on where it stood."""

import json
import os
import signal

import pytest
import torch

from training.learning.checkpoints import Checkpoint

ENDLESS = 600.0


@pytest.fixture(autouse=True)
def signals_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Loop:
    """Counts its steps in a parameter, as the one thing that is learned."""

    def __init__(self, folder, minutes=ENDLESS):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.file = folder / "loop.pt"
        self.checkpoint = Checkpoint(self.file, {"model": self.model}, minutes)
        self.done = []

    def run(self, total, stopped_at=None):
        for step in self.checkpoint.steps(total, "loop"):
            if step == stopped_at:
                os.kill(os.getpid(), signal.SIGTERM)
            self.model.weight.data += 1
            self.done.append(step)
            self.checkpoint.note(loss=torch.tensor(1.0 / (step + 1)))
        return self

    @property
    def counted(self):
        return self.model.weight.item()

    def lines(self):
        return [json.loads(line) for line in self.file.with_suffix(".jsonl").read_text().splitlines()]


def test_all_steps_are_done_and_written_down(tmp_path):
    loop = Loop(tmp_path).run(5)
    assert loop.done == [0, 1, 2, 3, 4]
    assert [line["step"] for line in loop.lines()] == [1, 5]
    assert loop.lines()[0]["loss"] == 1.0


def test_when_the_time_is_over_it_stops_and_the_next_run_goes_on(tmp_path):
    assert Loop(tmp_path, minutes=0).run(4).done == [0]
    second = Loop(tmp_path).run(4)
    assert second.done == [1, 2, 3]
    assert second.counted == 4


def test_a_finished_run_does_nothing_more(tmp_path):
    Loop(tmp_path).run(3)
    again = Loop(tmp_path).run(3)
    assert again.done == []
    assert again.counted == 3


def test_told_to_end_it_saves_what_was_done(tmp_path):
    with pytest.raises(SystemExit) as ended:
        Loop(tmp_path).run(10, stopped_at=6)
    assert ended.value.code == 128 + signal.SIGTERM
    after = Loop(tmp_path)
    assert after.counted == 6
    assert after.run(8).done == [6, 7]


def test_a_run_that_goes_on_draws_other_numbers_than_the_first(tmp_path):
    drawn = []
    for _ in range(3):
        torch.manual_seed(123)  # a new process always begins with the same seed
        loop = Loop(tmp_path, minutes=0).run(4)
        drawn.append(torch.rand(()).item())
    assert loop.done == [2]
    assert len(set(drawn)) == 3


def test_figures_are_smoothed(tmp_path):
    lines = Loop(tmp_path).run(2).lines()
    assert lines[-1]["loss"] == pytest.approx(0.98 * 1.0 + 0.02 * 0.5)
