"""A stand-in for the Hugging Face Hub, its storage host and a page of releases: real HTTP servers.

Speaks what huggingface_hub uses: HEAD and GET of /REPO/resolve/REVISION/PATH with the Hub's headers
and error codes, a redirect of large files to another host, byte ranges there, and releases whose
signed addresses are good for GET alone. Can be told to refuse, to lie, to dawdle and to hang up.

    with hub_server() as hub:
        hub.add("some/repo", "model.safetensors", data)
        os.environ["HF_ENDPOINT"] = hub.url
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_one_who_accepted"
LARGE = 512  # bytes; from here on a file is in the large-file storage
_BLOCK = 1024


@dataclass
class Published:
    """One file, and how it is served."""

    data: bytes
    etag: str = ""
    told_size: int | None = None  # by HEAD, where it lies
    cut_at: int | None = None  # the connection breaks after this byte of the file
    cuts: int = 0  # how often
    per_connection: int = 0  # bytes after which each connection breaks; 0: none does
    bytes_per_s: float = 0  # 0: as fast as it goes
    serves_parts: bool = True

    def __post_init__(self) -> None:
        self.etag = self.etag or hashlib.sha256(self.data).hexdigest()

    @property
    def is_large(self) -> bool:
        return len(self.data) >= LARGE


@dataclass(frozen=True)
class Seen:
    """A request that a server got."""

    host: str  # hub or storage
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    url: str = ""
    storage_url: str = ""
    files: dict[tuple[str, str], Published] = field(default_factory=dict)
    releases: dict[str, Published] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int | None = None  # answered to everything
    is_hub: bool = True  # else some web server that knows nothing of the Hub
    seen: list[Seen] = field(default_factory=list)

    def add(self, repo: str, path: str, data: bytes, **how: object) -> Published:
        self.files[repo, path] = Published(data, **how)  # type: ignore[arg-type]
        return self.files[repo, path]

    def add_release(self, name: str, data: bytes, **how: object) -> str:
        """The address."""
        self.releases[name] = Published(data, **how)  # type: ignore[arg-type]
        return f"{self.url}/releases/download/{name}"

    def ranges(self, name: str) -> list[str | None]:
        """What the storage host was asked of the file of that name, but for the look at its first byte."""
        asked = [one.range for one in self.seen if one.host == "storage" and one.path.endswith(name)]
        return [part for part in asked if part != "bytes=0-0"]


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, kind)) for kind in (_HubPages, _Storage)]
    hub.url = f"http://127.0.0.1:{servers[0].server_port}"
    hub.storage_url = f"http://localhost:{servers[1].server_port}"  # another host, also by name
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(hub: Hub, kind: type[_Answers]) -> type[BaseHTTPRequestHandler]:
    return type(kind.__name__, (kind,), {"hub": hub})


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    hub: Hub
    host: str

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `hub.seen`."""

    def do_HEAD(self) -> None:
        self._note()
        self.answer()

    def do_GET(self) -> None:
        self._note()
        self.answer()

    def answer(self) -> None:
        raise NotImplementedError

    def _note(self) -> None:
        headers = self.headers
        self.hub.seen.append(
            Seen(self.host, self.command, unquote(self.path), headers["Range"], headers["Authorization"])
        )

    def reply(self, status: int, headers: dict[str, object] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self, file: Published, headers: dict[str, object]) -> None:
        """All of a file, or the part that was asked for, as far as the connection holds."""
        begin = self._begin() if file.serves_parts else None
        end = len(file.data) if begin is None or self.headers["Range"].endswith("-") else begin + 1
        length = end - (begin or 0)
        if begin is not None:
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(file.data)}"}
        self.send_response(200 if begin is None else 206)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self._send(file, begin or 0, end)

    def _begin(self) -> int | None:
        wanted = self.headers["Range"]
        return None if wanted is None else int(wanted.removeprefix("bytes=").partition("-")[0])

    def _send(self, file: Published, at: int, end: int) -> None:
        if file.per_connection and end - at > file.per_connection:
            self.wfile.write(file.data[at : at + file.per_connection])
            self.close_connection = True
            return
        while at < end:
            is_cut = file.cuts > 0 and file.cut_at is not None and at <= file.cut_at < end
            stop = min(at + _BLOCK, end, file.cut_at if is_cut and file.cut_at is not None else end)
            self.wfile.write(file.data[at:stop])
            if is_cut and stop == file.cut_at:
                file.cuts -= 1
                self.close_connection = True
                return
            if file.bytes_per_s:
                time.sleep((stop - at) / file.bytes_per_s)
            at = stop


class _HubPages(_Answers):
    host = "hub"

    def answer(self) -> None:
        hub = self.hub
        if hub.status is not None:
            self.reply(hub.status, {"X-Error-Message": "so it was told"})
        elif not hub.is_hub:
            self.reply(200, {"Content-Type": "text/html"}, b"<!doctype html><p>Please log in.")
        elif self.path.startswith("/releases/download/"):
            name = unquote(self.path).removeprefix("/releases/download/")
            found = name in hub.releases
            self.reply(*((302, {"Location": f"{hub.storage_url}/release/{name}"}) if found else (404, {})))
        else:
            self._resolve()

    def _resolve(self) -> None:
        """As huggingface_hub's file_download.py and utils/_http.py expect it."""
        repo, _, rest = unquote(self.path).strip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        file = self.hub.files.get((repo, path))
        if token and token != TOKEN:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo not in {name for name, _ in self.hub.files}:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif repo in self.hub.gated and token != TOKEN:
            self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._offer(file, repo, path)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        self.reply(status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})

    def _offer(self, file: Published, repo: str, path: str) -> None:
        headers: dict[str, object] = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.etag}"'}
        if not file.is_large:
            self.serve(file, headers)
            return
        headers |= {
            "X-Linked-Size": len(file.data) if file.told_size is None else file.told_size,
            "X-Linked-Etag": f'"{file.etag}"',
            "Location": f"{self.hub.storage_url}/large/{repo}/-/{path}",
        }
        self.reply(302, headers)


class _Storage(_Answers):
    """Knows neither tokens nor repositories, only signed addresses."""

    host = "storage"

    def answer(self) -> None:
        kind, _, name = unquote(self.path).strip("/").partition("/")
        repo, _, path = name.partition("/-/")
        file = self.hub.releases.get(name) if kind == "release" else self.hub.files.get((repo, path))
        if self.headers["Authorization"]:
            self.reply(400, body=b"Only one auth mechanism allowed")
        elif file is None or self.command == "HEAD":
            self.reply(403)
        else:
            self.serve(file, {"ETag": f'"{hashlib.md5(file.data, usedforsecurity=False).hexdigest()}"'})
