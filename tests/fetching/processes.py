"""`flux-pulid weights ...` as a process of its own, with the checkpoints of a test."""

import subprocess
import sys
from pathlib import Path

from live_server import clean_environment
from staged_weights import write_manifest

TESTS = Path(__file__).parents[1]
END_S = 30.0


class Command:
    def __init__(self, arguments, log):
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                start_new_session=True,  # a Ctrl-C of the tests is none of its business
            )

    def wait(self):
        """The exit code; negative: the signal that ended it."""
        return self.process.wait(END_S)

    def said(self):
        return self._log.read_text()

    def close(self):
        self.process.kill()
        self.process.wait()


def weights_command(folder, checkpoints, *arguments, before=()):
    """Start it; `before` is put before it on the command line, such as a limit on resources."""
    manifest = write_manifest(folder / "manifest.json", checkpoints)
    staged = [sys.executable, str(TESTS / "staged_weights.py"), str(manifest), "weights"]
    return Command([*before, *staged, *arguments], folder / "said.log")
