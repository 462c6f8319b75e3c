"""What "copy as" gives runs as it is and makes the same picture again; no key is in it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import expect

from browser.visitor import PHOTO, Visitor

PROMPT = """a painter's "portrait" of $HOME, `ls` and \\ 100 % — été"""
RUN = {"curl": ["bash"], "Python": [sys.executable], "JavaScript": ["node", "code.mjs"]}


@pytest.fixture(scope="module")
def picture_and_codes(chromium, server):
    """The bytes of a picture made on the page, and its request in each language."""
    context = chromium.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor = Visitor(context.new_page(), f"{server.url}/")
    visitor.asks_for_a_small_one(num_steps=2)
    visitor.say(PROMPT)
    visitor.make()
    address = visitor.gets_a_picture().get_attribute("src")
    codes = {}
    for language in RUN:
        visitor.page.get_by_role("group", name="Copy the request").get_by_text(language).click()
        expect(visitor.page.locator("#announcer")).to_have_text(f"Copied as {language}.")
        codes[language] = visitor.page.evaluate("navigator.clipboard.readText()")
    context.close()
    visitor.must_be_content()
    return httpx.get(address, trust_env=False).content, codes


@pytest.mark.parametrize("language", RUN)
def test_the_copied_code_makes_the_same_picture(picture_and_codes, language, tmp_path):
    picture, codes = picture_and_codes
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    (tmp_path / "code.mjs").write_text(codes[language])
    done = subprocess.run(
        RUN[language], input=codes[language], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    [made] = tmp_path.glob("*.webp")
    assert made.read_bytes() == picture


def test_a_key_is_never_copied(visit, keyed_server, api_key):
    visitor = visit(keyed_server)
    visitor.page.evaluate("key => sessionStorage.setItem('flux-pulid-api-key', key)", api_key)
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.make()
    visitor.gets_a_picture()
    for language in RUN:
        visitor.page.get_by_role("group", name="Copy the request").get_by_text(language).click()
        expect(visitor.page.locator("#announcer")).to_have_text(f"Copied as {language}.")
        code = visitor.page.evaluate("navigator.clipboard.readText()")
        assert "YOUR_API_KEY" in code
        assert api_key not in code


def test_where_the_browser_does_not_copy_the_text_is_shown_to_be_copied(visit):
    visitor = visit()
    visitor.page.context.clear_permissions()
    visitor.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.make()
    visitor.gets_a_picture()
    visitor.page.get_by_role("group", name="Copy the request").get_by_text("curl").click()
    dialog = visitor.page.get_by_role("dialog")
    expect(dialog.get_by_label("Code")).to_be_focused()
    assert "curl --fail-with-body" in dialog.get_by_label("Code").input_value()
