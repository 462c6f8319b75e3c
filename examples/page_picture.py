"""Makes the picture of the page in docs/page.md: a real server of the profile tiny, a real browser.

    python examples/page_picture.py docs/pictures/page.webp

Needs the extra `dev`, Chromium, and nothing that runs already.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

PHOTO = Path(__file__).parents[1] / "tests" / "photos" / "collins.jpg"
PROMPT = "portrait, comic, beach, smiling"
SETTINGS = {"width": 512, "height": 640, "seed": 7}
VIEW = {"width": 1180, "height": 960}
PATIENCE_S = 120.0
QUALITY = 80


def main() -> None:
    arguments = argparse.ArgumentParser(description="Make the picture of the page in docs/page.md.")
    arguments.add_argument("file", type=Path)
    file = arguments.parse_args().file
    with running_server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=VIEW)
        page.goto(url)
        paint(page)
        shown = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    shown.convert("RGB").save(file, quality=QUALITY)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def paint(page: Page) -> None:
    """As a visitor: a photo, a prompt, the button, and wait."""
    page.get_by_label("Choose a photo").set_input_files(PHOTO)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    settings = page.locator("details.settings > summary")
    settings.click()
    for name, value in SETTINGS.items():
        page.locator(f"#control-{name}").fill(str(value))
    settings.click()
    page.get_by_role("button", name="Make the portrait", exact=True).click()
    page.get_by_role("img", name="Picture 1 of ").wait_for(timeout=1000 * PATIENCE_S)
    page.evaluate("window.scrollTo(0, 0)")


@contextmanager
def running_server() -> Iterator[str]:
    """Its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("flux-pulid"), "serve", "--profile", "tiny"]
        server = subprocess.Popen([*command, "--port", str(port), "--data-dir", folder])
        try:
            wait_until_ready(url)
            yield url
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"The server was not ready after {PATIENCE_S:.0f} s.")


if __name__ == "__main__":
    main()
