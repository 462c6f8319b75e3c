"""A real server process for tests that look from outside: started, waited for, asked, ended.

Knows the command line, the lines it prints, the data folder and the process tree. Does not know
routes beyond `/ready`, and imports nothing of the server: what it sees, any operator sees.

    with live_server(tmp_path / "data", profile="tiny", max_queued_jobs=4) as server:
        server.post("/v1/flux-pulid", json=...)

What is to be another than in life (engine, photo hosts) is replaced by `staged_server.py`.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from PIL import Image

from fakes import Script

HERE = Path(__file__).parent
PHOTOS = HERE / "photos"
START_S = 60.0  # until the engine is loaded; the tiny one takes about 6 s alone on two cores
END_S = 30.0  # from SIGTERM to the end of the process

_ERROR = re.compile(r'"level": "(error|critical)"|^Traceback ')
_LISTENING = re.compile(r"^Listening on (http://\S+)", re.MULTILINE)


class ServerProcess:
    """One life of a server. Its output is in the file `log`, logs and all."""

    def __init__(
        self,
        command: list[str],
        *,
        data_dir: Path,
        log: Path,
        stdin: int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment or clean_environment(),
                cwd=HERE.parent,
                start_new_session=True,  # a Ctrl-C of the tests is none of the server's
            )
        self.url = ""
        self.client = httpx.Client()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def errors(self) -> list[str]:
        """Lines of the log that an operator would have to look into."""
        return [line for line in self.output().splitlines() if _ERROR.search(line)]

    def wait_until_listening(self) -> None:
        wait_until(lambda: self._said(_LISTENING), START_S, self.explain)
        self.url = _LISTENING.findall(self.output())[-1]
        self.client = self.new_client()

    def wait_until_ready(self, timeout_s: float = START_S) -> None:
        wait_until(self.is_ready, timeout_s, self.explain)

    def is_ready(self) -> bool:
        try:
            return self.client.get("/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def new_client(self, key: str | None = None) -> httpx.Client:
        """A client of its own connections. `key` is sent with every call."""
        headers = {} if key is None else {"x-api-key": key}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def tell(self, line: str) -> None:
        """A line of input, for a program that reads any."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def end_input(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = END_S) -> int:
        """The exit code. Fails the test when the process does not end."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end in {timeout_s} s. {self.explain()}") from None

    def terminate(self, timeout_s: float = END_S) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the server alone; its workers find out by themselves."""
        self._process.kill()
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """The server and its descendants: workers, and what multiprocessing needs."""
        server = psutil.Process(self.pid)
        return [server, *server.children(recursive=True)]

    def memory_mb(self) -> float:
        """Resident memory of all of them."""
        return sum(process.memory_info().rss for process in self.processes()) / 1e6

    def explain(self) -> str:
        return f"Exit code {self.exit_code}; the end of its output:\n{self.output()[-3000:]}"

    def clean_up(self) -> None:
        """Leave no process behind, however the test went."""
        self.client.close()
        if self.exit_code is not None:
            return
        left = self.processes()
        for process in left:
            process.kill()
        self._process.wait()
        psutil.wait_procs(left, timeout=5)

    def _said(self, line: re.Pattern[str]) -> bool:
        assert self.exit_code is None, self.explain()
        return line.search(self.output()) is not None


def still_running(processes: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Those that have not ended by then; what has, is collected by its parent in its own time."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return [process for process in alive if process.is_running() and not is_zombie(process)]


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def live_server(
    data_dir: Path,
    *,
    scripted: Script | None = None,
    instant: bool = False,
    photo_hosts: Mapping[str, str] | None = None,
    ready: bool = True,
    undisturbed: bool = True,
    **settings: object,
) -> Iterator[ServerProcess]:
    """A server process on a free port with its own data folder; later ones may take that over.

    With `scripted` or `instant` there is another engine than the model (`fakes`, `instant_engine`).
    With `photo_hosts`, the names in it have a public address, where a local server answers.
    At the end of the block an `undisturbed` server gets SIGTERM, and must end with 0 and without a
    single error in its log. Any other is the test's own business, and killed if it still runs.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    staging = staging_flags(scripted, instant=instant, photo_hosts=photo_hosts or {})
    if scripted is not None or instant:  # such an engine needs no model files
        settings = {"profile": "tiny", **settings}
    command = command_line(staging, {"port": 0, "data_dir": data_dir, **settings})
    log = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.log")
    server = ServerProcess(command, data_dir=data_dir, log=log)
    try:
        server.wait_until_listening()
        if ready:
            server.wait_until_ready()
        yield server
        if undisturbed:
            assert server.terminate() == 0, server.explain()
            assert server.errors() == []
    finally:
        server.clean_up()


def staging_flags(scripted: Script | None, *, instant: bool, photo_hosts: Mapping[str, str]) -> list[str]:
    """What `staged_server.py` is to replace; empty for a server that is just itself."""
    flags = [f"--photo-host={name}={address}" for name, address in photo_hosts.items()]
    if instant:
        flags.append("--instant")
    if scripted is not None:
        flags.append(f"--script={scripted.folder}")
        flags += ["--gated"] if scripted.gated else []
        flags += ["--slow-to-load"] if scripted.slow_to_load else []
    return flags


def command_line(staging: list[str], settings: Mapping[str, object]) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={text_of(value)}" for name, value in settings.items()]
    if staging:
        return [sys.executable, str(HERE / "staged_server.py"), *staging, "serve", *flags]
    return [sys.executable, "-m", "server", "serve", *flags]


def text_of(value: object) -> str:
    """How the command line spells a setting."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def clean_environment() -> dict[str, str]:
    """Ours, without settings; one thread for sums, so that tests beside it get on."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("FLUX_PULID_")}
    return ours | {"OMP_NUM_THREADS": "1"}


def wait_until(condition: Callable[[], bool], timeout_s: float, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {timeout_s} s. {explain()}"
        time.sleep(0.02)


def portrait(name: str = "ardern") -> str:
    """A photo with one face, as base64 text."""
    return base64.b64encode((PHOTOS / f"{name}.jpg").read_bytes()).decode()


def faceless() -> str:
    """A photo of nobody, as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (256, 256), (40, 90, 160)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def form_and_size(data: bytes) -> tuple[str | None, tuple[int, int]]:
    """Of a picture file that can be read to its end: its format, width and height."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.format, image.size
