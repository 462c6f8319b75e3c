"""A fetch that breaks goes on where it stopped, and half a file is never taken for a whole one."""

import re
import signal
from contextlib import closing

import pytest

from fetching.processes import weights_command
from fetching.small_model import REPO, Watcher, files_in, published, safetensors
from live_server import wait_until
from staged_weights import QUICK
from weights import lock
from weights.download import fetch
from weights.errors import FetchInProgress
from weights.remote import Interrupted

DATA = safetensors(count=16)  # 64 KB
CUT = 20_000


def part_of(home):
    """The one file that is on its way; None before it has a byte."""
    parts = [path for path in (home / ".fetch").rglob("*.*") if path.is_file()]
    assert len(parts) < 2
    return parts[0] if parts and parts[0].stat().st_size else None


def test_a_cut_connection_is_taken_up_at_the_next_byte(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, how={"cut_at": CUT, "cuts": 1})
    fetch([checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == [None, f"bytes={CUT}-"]
    assert files_in(home) == {"ae.safetensors": DATA}
    assert watcher.bytes == len(DATA)


def test_a_release_is_taken_up_at_the_next_byte_too(hub, home, watcher):
    checkpoint = published(hub, "r", {"r.safetensors": DATA}, release=True, how={"cut_at": CUT, "cuts": 1})
    fetch([checkpoint], home, watcher)
    assert hub.ranges("r.safetensors") == [None, f"bytes={CUT}-"]
    assert files_in(home) == {"r.safetensors": DATA}


def test_a_later_fetch_goes_on_where_an_earlier_one_gave_up(hub, home, watcher):
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, how={"cut_at": CUT, "cuts": 100})
    with pytest.raises(Interrupted, match="goes on where it stopped"):
        fetch([checkpoint], home, watcher)
    assert files_in(home) == {}
    assert part_of(home).read_bytes() == DATA[:CUT]
    hub.files[REPO, "ae.safetensors"].cuts = 0
    hub.seen.clear()
    fetch([checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == [f"bytes={CUT}-"]
    assert files_in(home) == {"ae.safetensors": DATA}


def test_a_line_that_breaks_again_and_again_is_enough_while_every_try_brings_something(hub, home, watcher):
    how = {"per_connection": 5000}
    fetch([published(hub, "ae", {"ae.safetensors": DATA}, how=how)], home, watcher)
    asked = hub.ranges("ae.safetensors")
    assert asked[1:] == [f"bytes={at}-" for at in range(5000, len(DATA), 5000)]
    assert len(asked) > len(QUICK) + 1
    assert files_in(home) == {"ae.safetensors": DATA}


def test_a_server_that_sends_only_wholes_is_asked_again_from_the_start(hub, home, watcher):
    how = {"cut_at": CUT, "cuts": 1, "serves_parts": False}
    fetch([published(hub, "ae", {"ae.safetensors": DATA}, how=how)], home, watcher)
    assert hub.ranges("ae.safetensors") == [None, f"bytes={CUT}-"]
    assert files_in(home) == {"ae.safetensors": DATA}
    assert watcher.bytes == len(DATA)


def test_a_part_of_older_content_is_not_continued(hub, home, watcher):
    how = {"cut_at": CUT, "cuts": 100}
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, known=False, how=how)
    with pytest.raises(Interrupted):
        fetch([checkpoint], home, watcher)
    newer = safetensors(seed=7, count=16)
    hub.add(REPO, "ae.safetensors", newer)
    hub.seen.clear()
    fetch([checkpoint], home, watcher)
    assert hub.ranges("ae.safetensors") == [None]
    assert files_in(home) == {"ae.safetensors": newer}
    assert part_of(home) is None


def test_a_broken_file_does_not_keep_the_finished_ones_from_their_names(hub, home, watcher):
    whole = published(hub, "small", {"small.safetensors": safetensors()})
    broken = published(hub, "ae", {"ae.safetensors": DATA}, how={"cut_at": CUT, "cuts": 100})
    fetch([whole], home, watcher)
    with pytest.raises(Interrupted):
        fetch([whole, broken], home, watcher)
    assert files_in(home) == {"small.safetensors": safetensors()}


def test_a_process_that_is_killed_leaves_a_part_that_the_next_one_continues(hub, home, tmp_path):
    file = hub.add(REPO, "ae.safetensors", DATA)
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, how={"bytes_per_s": 20_000})
    with closing(weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}")) as killed:
        wait_until(lambda: part_of(home) is not None, 20, killed.said)
        killed.process.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    had = part_of(home).stat().st_size
    assert 0 < had < len(DATA)
    assert part_of(home).read_bytes() == DATA[:had]
    assert files_in(home) == {}
    assert lock.read(home) == {}
    hub.files[REPO, "ae.safetensors"] = file
    hub.seen.clear()
    with closing(weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}")) as after:
        assert after.wait() == 0, after.said()
        assert re.search(r"Fetching 1 file, \d\d\.\d kB to go\.", after.said())
    assert hub.ranges("ae.safetensors") == [f"bytes={had}-"]
    assert files_in(home) == {"ae.safetensors": DATA}


def test_of_two_fetches_at_once_the_second_ends_in_words_and_disturbs_nothing(hub, home, tmp_path):
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, how={"bytes_per_s": 20_000})
    with closing(weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}")) as first:
        wait_until(lambda: part_of(home) is not None, 20, first.said)
        with pytest.raises(FetchInProgress, match="Wait until it has ended"):
            fetch([checkpoint], home, Watcher())
        hub.files[REPO, "ae.safetensors"].bytes_per_s = 0
        assert first.wait() == 0, first.said()
    assert files_in(home) == {"ae.safetensors": DATA}
    assert len(hub.ranges("ae.safetensors")) == 1


def test_ctrl_c_ends_a_fetch_and_keeps_what_came(hub, home, tmp_path):
    checkpoint = published(hub, "ae", {"ae.safetensors": DATA}, how={"bytes_per_s": 20_000})
    with closing(weights_command(tmp_path, [checkpoint], "fetch", f"--weights-dir={home}")) as stopped:
        wait_until(lambda: part_of(home) is not None, 20, stopped.said)
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.wait() == 130
        assert stopped.said().splitlines()[-1] == "Stopped."
    assert part_of(home).stat().st_size > 0
    assert files_in(home) == {}
