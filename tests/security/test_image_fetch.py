"""A picture URL never reaches anything but a public host or an allow-listed one."""

import asyncio
import contextlib
import gzip
import http.server
import socket
import threading
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PATIENCE_S
from pulid.errors import ImageRejected
from server.security.image_fetch import (
    FetchLimits,
    fetch_image,
    is_public,
    public_fetcher,
    system_resolver,
)

PUBLIC = "93.184.215.14"
OTHER_PUBLIC = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
PICTURE = b"the bytes of a picture"
REFUSAL = (
    "The photo at main_face_image could not be fetched. Use a public http(s) address of an image "
    "up to 20 MB, or send the photo as base64."
)

# Everything that is not the internet, in the forms a resolver gives.
PRIVATE = [
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.9.10",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:0808:0808::1",
    "2606:4700::5efe:127.0.0.1",
    "2606:4700::200:5efe:10.0.0.1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


class Pieces(httpx.AsyncByteStream):
    """A body that is read piece by piece, as from a socket."""

    def __init__(self, pieces):
        self._pieces = pieces

    async def __aiter__(self):
        for piece in self._pieces:
            yield piece


def page_of(content=PICTURE, **headers):
    return lambda request: httpx.Response(200, stream=Pieces([content]), headers=headers)


class Internet:
    """A resolver and servers in memory, remembering who was asked and who was dialled."""

    def __init__(self, names=None, pages=None):
        self.names = {"photos.example": [PUBLIC], **(names or {})}
        self.pages = pages or {}
        self.looked_up = []
        self.requests = []

    async def resolve(self, host, port):
        self.looked_up.append(host)
        answers = self.names.get(host, [])
        return answers.pop(0) if answers and isinstance(answers[0], list) else answers

    def answer(self, request):
        self.requests.append(request)
        page = self.pages.get(str(request.url.copy_with(host=request.headers["host"].partition(":")[0])))
        return (page or page_of())(request)

    def fetch(self, url, **limits):
        return asyncio.run(
            fetch_image(
                url,
                limits=FetchLimits(**limits),
                resolve=self.resolve,
                open_transport=lambda: httpx.MockTransport(self.answer),
            )
        )

    @property
    def dialled(self):
        return [request.url.host for request in self.requests]

    def refuses(self, url, **limits):
        with pytest.raises(ImageRejected) as caught:
            self.fetch(url, **limits)
        assert str(caught.value) == REFUSAL
        return True


def redirect(location, status=302):
    return lambda request: httpx.Response(status, headers={"location": location})


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_the_internet_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, OTHER_PUBLIC, "8.8.8.8", "1.1.1.1", "2a00:1450:4001::2004"])
def test_the_internet_is_public(address):
    assert is_public(address)


def test_a_public_picture_is_fetched_from_the_judged_address_for_its_host():
    internet = Internet()
    assert internet.fetch("https://photos.example/a%20b.png?size=1&x=%2F#part") == PICTURE
    (request,) = internet.requests
    assert internet.looked_up == ["photos.example"]
    assert request.url.host == PUBLIC
    assert request.headers["host"] == "photos.example"
    assert request.extensions["sni_hostname"] == "photos.example"
    assert request.url.raw_path == b"/a%20b.png?size=1&x=%2F"
    assert request.method == "GET"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "x-api-key", "referer"} & set(request.headers)


def test_an_ipv6_answer_is_dialled_in_brackets():
    internet = Internet({"six.example": [OTHER_PUBLIC]})
    assert internet.fetch("http://six.example/") == PICTURE
    assert internet.dialled == [OTHER_PUBLIC]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_with_a_private_address_is_never_dialled(address):
    internet = Internet({"evil.example": [address]})
    assert internet.refuses("http://evil.example/")
    assert internet.dialled == []


@pytest.mark.parametrize(
    "answers", [[PUBLIC, "10.0.0.1"], ["::1", PUBLIC], [PUBLIC, OTHER_PUBLIC, "127.0.0.1"]]
)
def test_one_private_answer_among_public_ones_spoils_them_all(answers):
    internet = Internet({"evil.example": answers})
    assert internet.refuses("https://evil.example/")
    assert internet.dialled == []


def test_a_name_is_looked_up_once_so_rebinding_has_no_second_answer():
    internet = Internet({"rebind.example": [[PUBLIC], ["127.0.0.1"]]})
    assert internet.fetch("http://rebind.example/") == PICTURE
    assert internet.looked_up == ["rebind.example"]
    assert internet.dialled == [PUBLIC]


def test_a_redirect_back_to_a_rebound_name_is_judged_again():
    pages = {"http://rebind.example/": redirect("http://rebind.example/again")}
    internet = Internet({"rebind.example": [[PUBLIC], ["127.0.0.1"]]}, pages)
    assert internet.refuses("http://rebind.example/")
    assert internet.dialled == [PUBLIC]


# Numbers for 127.0.0.1, 169.254.169.254 and 10.0.0.1 in every spelling the system's resolver knows.
SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "169.254.169.254",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "10.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:0:0:1]",
    "[64:ff9b::7f00:1]",
    "[fe80::1%25lo]",
    "localhost",
    "LOCALHOST",
    "１２７.０.０.１",
    "127。0。0。1",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_odd_spellings_of_inside_lead_nowhere(host):
    internet = Internet()
    internet.resolve = system_resolver()
    assert internet.refuses(f"http://{host}/latest/meta-data/")
    assert internet.dialled == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "photos.example/a.png",
        "//photos.example/a.png",
        "ftp://photos.example/a.png",
        "file:///etc/passwd",
        "gopher://photos.example/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///a.png",
        "http://photos.example:22/",
        "http://photos.example:8080/",
        "http://photos.example:0/",
        "http://photos.example:99999/",
        "http://photos.example:-1/",
        "http://user:pass@photos.example/",
        "http://photos.example@127.0.0.1/",
        "http://127.0.0.1#@photos.example/",
        "http://127.0.0.1\\@photos.example/",
        "http://photos.example\r\nx: y/",
        "http://photos.example\x00/",
        "http://" + "a" * 70_000 + "/",
        "http://" + "a" * 64 + ".example/",
        "http://nowhere.example/",
        "http://ex ample/",
        "http://[::1/",
        "http://-.example/",
    ],
)
def test_what_is_no_plain_public_address_is_refused_without_a_dial(url):
    internet = Internet({"127.0.0.1": ["127.0.0.1"]})
    assert internet.refuses(url)
    assert internet.dialled == []


@given(st.text(max_size=60))
def test_any_text_is_refused_or_fetched_and_nothing_else(text):
    internet = Internet()
    for url in (text, f"http://{text}", f"http://photos.example/{text}", f"http://photos.example:{text}/"):
        with contextlib.suppress(ImageRejected):
            assert internet.fetch(url) == PICTURE
    assert set(internet.dialled) <= {PUBLIC}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_hop_by_hop(status):
    pages = {
        "http://photos.example/1": redirect("/2", status),
        "http://photos.example/2": redirect("https://cdn.example/3", status),
    }
    internet = Internet({"cdn.example": ["8.8.8.8"]}, pages)
    assert internet.fetch("http://photos.example/1") == PICTURE
    assert internet.looked_up == ["photos.example", "photos.example", "cdn.example"]
    assert internet.dialled == [PUBLIC, PUBLIC, "8.8.8.8"]
    assert [request.headers["host"] for request in internet.requests][-1] == "cdn.example"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://inside.example/",
        "http://photos.example:6379/",
        "file:///etc/passwd",
        "ftp://photos.example/",
        "//inside.example/",
        "http://user@photos.example/",
        "http://[",
        "\x7f",
    ],
)
def test_a_redirect_inside_is_judged_like_the_first_address(location):
    names = {"inside.example": ["10.0.0.1"], "127.0.0.1": ["127.0.0.1"], "::1": ["::1"]}
    internet = Internet(names, {"http://photos.example/": redirect(location)})
    internet.pages["http://photos.example/%7F"] = lambda request: httpx.Response(404)
    assert internet.refuses("http://photos.example/")
    assert set(internet.dialled) == {PUBLIC}


@pytest.mark.parametrize("hops", [5, 6])
def test_five_redirects_are_followed_and_no_more(hops):
    pages = {f"http://photos.example/{n}": redirect(f"/{n + 1}") for n in range(hops)}
    internet = Internet(pages=pages)
    if hops == 5:
        assert internet.fetch("http://photos.example/0") == PICTURE
    else:
        assert internet.refuses("http://photos.example/0")
    assert len(internet.requests) == 6


def test_cookies_of_one_hop_do_not_reach_the_next():
    def first(request):
        return httpx.Response(302, headers={"location": "/2", "set-cookie": "session=1; path=/"})

    internet = Internet(pages={"http://photos.example/": first})
    assert internet.fetch("http://photos.example/") == PICTURE
    assert "cookie" not in internet.requests[1].headers


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 401, 403, 404, 500, 503])
def test_anything_but_success_is_refused_in_the_same_words(status):
    internet = Internet(pages={"http://photos.example/": lambda request: httpx.Response(status)})
    assert internet.refuses("http://photos.example/")


def test_a_body_is_counted_while_it_comes_and_cut_off():
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b"x" * 100_000

    page = {"http://photos.example/": lambda request: httpx.Response(200, content=endless())}
    assert Internet(pages=page).refuses("http://photos.example/")
    assert len(sent) <= 202


def test_a_body_at_the_limit_is_taken():
    page = {"http://photos.example/": page_of(b"x" * 1_000_000)}
    assert len(Internet(pages=page).fetch("http://photos.example/", max_mb=1)) == 1_000_000


def test_a_compressed_body_is_refused_since_none_was_asked_for():
    bomb = gzip.compress(bytes(1_000_000))
    page = {"http://photos.example/": page_of(bomb, **{"content-encoding": "gzip"})}
    assert Internet(pages=page).refuses("http://photos.example/")


def test_the_time_limit_is_for_the_whole_fetch_not_for_each_byte():
    async def drip():
        while True:
            await asyncio.sleep(0.02)
            yield b"x"

    page = {"http://photos.example/": lambda request: httpx.Response(200, content=drip())}
    started = time.monotonic()
    assert Internet(pages=page).refuses("http://photos.example/", timeout_s=0.2)
    assert time.monotonic() - started < 2


def test_a_lookup_that_hangs_is_given_up():
    internet = Internet()

    async def hang(host, port):
        await asyncio.sleep(60)

    internet.resolve = hang
    assert internet.refuses("http://photos.example/", timeout_s=0.1)


def test_look_ups_that_hang_are_few_however_many_callers_have_given_up(monkeypatch):
    may_end, running, most = threading.Event(), 0, 0
    counting = threading.Lock()

    def hang(host, port, **hints):
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        may_end.wait(PATIENCE_S)
        with counting:
            running -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port))]

    async def give_up_soon(resolve):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await resolve("slow.example", 80)

    async def scenario():
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        resolve = system_resolver()
        for _ in range(4):
            await asyncio.gather(*(give_up_soon(resolve) for _ in range(16)))
        assert most == 16
        may_end.set()
        assert await resolve("slow.example", 80) == [PUBLIC], "those that end make room"

    asyncio.run(scenario())


def test_the_next_public_address_is_tried_when_one_takes_no_connection():
    internet = Internet({"two.example": [OTHER_PUBLIC, PUBLIC]})
    answer = internet.answer

    def one_is_down(request):
        if request.url.host == OTHER_PUBLIC:
            raise httpx.ConnectError("down")
        return answer(request)

    internet.answer = one_is_down
    assert internet.fetch("http://two.example/") == PICTURE
    assert internet.dialled == [PUBLIC]


def test_when_no_address_takes_a_connection_the_words_are_the_same():
    internet = Internet()

    def down(request):
        raise httpx.ConnectError("down")

    internet.answer = down
    assert internet.refuses("http://photos.example/")


@pytest.mark.parametrize(
    ("allow", "url", "fine"),
    [
        ("inside.example:8080", "http://inside.example:8080/", True),
        ("inside.example:8080", "http://INSIDE.example:8080/", True),
        ("inside.example:80", "http://inside.example/", True),
        ("inside.example:443", "https://inside.example/", True),
        ("[fd00::5]:9000", "http://[fd00::5]:9000/", True),
        ("inside.example:8080", "http://inside.example:8081/", False),
        ("inside.example:8080", "http://inside.example/", False),
        ("inside.example:8080", "http://a.inside.example:8080/", False),
        ("inside.example:8080", "http://10.0.0.1:8080/", False),
    ],
)
def test_the_allow_list_matches_host_and_port_exactly(allow, url, fine):
    private = {name: ["10.0.0.1"] for name in ("inside.example", "a.inside.example", "10.0.0.1")}
    internet = Internet({**private, "fd00::5": ["fd00::5"]})
    if fine:
        assert internet.fetch(url, allow=frozenset({allow})) == PICTURE
        assert internet.dialled[0] in ("10.0.0.1", "fd00::5")
    else:
        assert internet.refuses(url, allow=frozenset({allow}))
        assert internet.dialled == []


def test_a_redirect_from_an_allowed_host_to_another_inside_is_refused():
    names = {"inside.example": ["10.0.0.1"], "db.example": ["10.0.0.2"]}
    internet = Internet(names, {"http://inside.example:8080/": redirect("http://db.example/")})
    internet.pages["http://inside.example/"] = internet.pages["http://inside.example:8080/"]
    assert internet.refuses("http://inside.example:8080/", allow=frozenset({"inside.example:8080"}))
    assert internet.dialled == ["10.0.0.1"]


# With real sockets


@pytest.fixture(scope="module")
def local_host():
    """A real server on this machine; yields host:port, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["host"]))
            status = 302 if self.path == "/moved" else 200
            self.send_response(status)
            if status == 302:
                self.send_header("location", "/picture")
            self.end_headers()
            self.wfile.write(PICTURE if status == 200 else b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"localhost:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_real_fetch_from_an_allowed_host_follows_its_redirect(local_host):
    host, asked = local_host
    fetch = public_fetcher(FetchLimits(allow=frozenset({host})))
    assert asyncio.run(fetch(f"http://{host}/moved")) == PICTURE
    assert asked[-2:] == [("/moved", host), ("/picture", host)]


def test_proxies_of_the_environment_are_not_used(local_host, monkeypatch):
    host, _ = local_host
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fetch = public_fetcher(FetchLimits(allow=frozenset({host})))
    assert asyncio.run(fetch(f"http://{host}/picture")) == PICTURE


def test_without_permission_the_real_fetch_dials_nothing(local_host):
    host, asked = local_host
    before = len(asked)
    with pytest.raises(ImageRejected):
        asyncio.run(public_fetcher(FetchLimits())(f"http://{host}/picture"))
    assert len(asked) == before
