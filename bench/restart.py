"""First runs of the compiled rows in processes of their own: once without a compile cache, once with it.

The parent (`measure_restarts`) makes an empty cache folder and starts the bench twice with it; the child
(`first_runs`) loads, runs each row twice, and tells in one line of JSON. So "warm" is what a server meets
that was started before on the same machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from bench.cases import Case
from bench.measure import Setup, Tell, timed

CHILD_S = 300.0
CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # kernels of Triton go there, too


def measure_restarts(command: Sequence[str], tell: Tell) -> dict[str, Any]:
    """`command` starts a child that tells its first runs."""
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="compile-cache-") as folder:
        for life in ("cold", "warm"):
            tell(f"a process with a {life} compile cache")
            told[life] = child(command, folder)
    return {
        "rows": {
            name: {
                **{f"{life}_first_s": told[life]["rows"][name]["first_s"] for life in told},
                "then_s": told["warm"]["rows"][name]["then_s"],
            }
            for name in told["cold"]["rows"]
        },
        "loaded_s": {life: told[life]["loaded_s"] for life in told},
    }


def child(command: Sequence[str], folder: str) -> dict[str, Any]:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, *command],
        env={**environment, CACHE_FOLDER: folder},
        stdout=subprocess.PIPE,
        text=True,
        timeout=CHILD_S,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def first_runs(case: Case, setup: Setup, started: float) -> dict[str, Any]:
    """In the child. `started` is when it began, by the monotonic clock."""
    loaded = time.monotonic() - started
    rows = {}
    for name, row in setup.taken(case).items():
        loop = row.loop(setup.request(case))
        first, then = (timed(loop, setup.device).seconds for _ in range(2))
        rows[name] = {"first_s": round(first, 3), "then_s": round(then, 3)}
    return {"loaded_s": round(loaded, 1), "rows": rows}
