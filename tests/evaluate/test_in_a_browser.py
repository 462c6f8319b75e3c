"""The report in a real Chromium, opened from the disk: dark and light, at desktop and phone width."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

TESTS = Path(__file__).parents[1]
AXE = TESTS / "clients" / "node" / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
LONG = "a very long prompt " * 20 + "W" * 200


@pytest.fixture(scope="module")
def report(with_faces, run_command, tmp_path_factory):
    """Two people with long names, one photo of nobody, a grid of two parameters, two seeds."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "faces").mkdir()
    for name in ("ardern", "obama"):
        shutil.copy(TESTS / "photos" / f"{name}.jpg", folder / "faces" / f"{name}{'_x' * 40}.jpg")
    Image.new("RGB", (200, 200), "grey").save(folder / "faces" / "nobody.png")
    (folder / "prompts.txt").write_text(f"<script>alert(1)</script>\n{LONG}")
    grid = ["--grid", "id_weight=0,1", "--grid", "start_step=0,1", "--seeds", "1,2"]
    small = ["--width", "256", "--height", "256", "--num-steps", "2"]
    with with_faces() as engine:
        engine.stop_after = 30  # of 32: two places are still empty
        run_command(folder / "faces", folder / "prompts.txt", folder / "report", *grid, *small)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    assert path, "Chromium is needed; .ci/apt-packages.txt names the Debian packages"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def viewport(request):
    return request.param


@pytest.fixture(params=["light", "dark"])
def page(request, chromium, viewport, report):
    """The report as a reader sees it; nothing may be on the console or come from the network."""
    context = chromium.new_context(viewport=viewport, color_scheme=request.param, offline=True)
    complaints = []
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    context.on("request", lambda asked: asked.url.startswith("file:") or complaints.append(asked.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert complaints == []


def test_every_picture_is_seen_and_the_page_is_never_wider_than_the_window(page):
    images = page.locator("img")
    assert images.count() == 30 + 2 + 2 * 2  # painted; by face; beside the pictures of each prompt
    for number in range(images.count()):
        images.nth(number).scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert page.get_by_text("not painted yet").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_axe_finds_no_grave_fault(page):
    assert AXE.is_file(), f"run `npm ci` in {AXE.parents[2]}"
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    grave = {
        fault["id"]: [node["html"] for node in fault["nodes"]]
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    }
    assert not grave, json.dumps(grave, indent=1)
    assert found["passes"], "axe has looked at nothing"


def test_a_wide_table_is_scrolled_with_the_keyboard_and_keeps_the_faces_in_view(page):
    table = page.get_by_role("region", name="Pictures of prompt 1")
    table.focus()
    face = table.locator("tbody th").first
    before = face.bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(frame) => frame.scrollLeft > 0", arg=table.element_handle())
    assert face.bounding_box()["x"] == pytest.approx(before, abs=2)
