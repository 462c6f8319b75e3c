"""Debian's Chromium, real servers, and visitors who must be content when a test is over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from browser.visitor import AXE, REMEMBER_PROGRESS, REMEMBER_SHIFTS, Visitor
from fakes import Script, photo_of
from live_server import PHOTOS, ServerProcess, live_server

KEY = "SG_0123456789abcdef"
DESKTOP = {"width": 1280, "height": 860}
BROWSERS = ("chromium", "google-chrome")  # Debian's; what hosted runners have
ARGUMENTS = (
    "--no-sandbox",  # Chromium has none for root, whom containers run as
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Visit = Callable[..., Visitor]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """On the tiny profile, open to everybody on this machine; must also end well."""
    with live_server(tmp_path_factory.mktemp("browser") / "data", profile="tiny") as live:
        yield live


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Asks for a key, and takes requests of up to 60 kB. Its pictures are blank and take no time."""
    folder = tmp_path_factory.mktemp("keyed") / "data"
    with live_server(folder, instant=True, auth="keys", api_keys=f"tests:{KEY}", max_body_mb=0.06) as live:
        yield live


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its engine does what prompts say, and calls itself by another name than the tiny profile."""
    folder = tmp_path_factory.mktemp("scripted")
    with live_server(folder / "data", scripted=Script(folder)) as live:
        yield live


@pytest.fixture
def scripted_photo(tmp_path: Path) -> Path:
    """A photo in which the scripted engine finds one face."""
    Image.fromarray(photo_of(1)).save(tmp_path / "scripted.png")
    return tmp_path / "scripted.png"


@pytest.fixture
def couple(tmp_path: Path) -> Path:
    """One photo with two people, the larger face on the left."""
    photo = Image.new("RGB", (732, 512), "lightgrey")
    photo.paste(Image.open(PHOTOS / "ardern.jpg"), (0, 0))
    photo.paste(Image.open(PHOTOS / "obama.jpg").resize((320, 368)), (400, 90))
    photo.save(tmp_path / "couple.jpg")
    return tmp_path / "couple.jpg"


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """A photo without a face."""
    Image.new("RGB", (256, 256), (40, 90, 160)).save(tmp_path / "nobody.png")
    return tmp_path / "nobody.png"


@pytest.fixture(scope="session")
def api_key() -> str:
    return KEY


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser a file, no longer: while Playwright runs, no other test can have an event loop."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, "Chromium is needed; .ci/apt-packages.txt names the Debian packages"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, server: ServerProcess) -> Iterator[Visit]:
    """`visit()`: a visitor in a browser of their own; `visit(other_server)`; options as Playwright's."""
    visitors: list[Visitor] = []

    def arrive(live: ServerProcess = server, *, axe: bool = False, **options: object) -> Visitor:
        context = chromium.new_context(**{"viewport": DESKTOP} | options)  # type: ignore[arg-type]
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.add_init_script(REMEMBER_SHIFTS)
        context.add_init_script(REMEMBER_PROGRESS)
        if axe:
            assert AXE.is_file(), f"run `npm ci` in {AXE.parents[2]}"
            context.add_init_script(path=AXE)
        visitors.append(Visitor(context.new_page(), f"{live.url}/"))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.page.context.close()
    for visitor in visitors:
        visitor.must_be_content()


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    """On a desktop, with an empty list."""
    return visit()
