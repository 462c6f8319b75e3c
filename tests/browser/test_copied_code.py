"""What "copy as" gives runs as it is and makes the same picture again; no key is in it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import expect

from browser.visitor import PHOTO, Visitor
from live_server import PHOTOS

PROMPT = """a painter's "portrait" of $HOME, `ls` and \\ 100 % — été"""
RUN = {"curl": ["bash"], "Python": [sys.executable], "JavaScript": ["node", "code.mjs"]}


def by_one_photo(visitor):
    visitor.asks_for_a_small_one(num_steps=2)
    return {"photo.jpg": PHOTO}


def by_more_photos(visitor):
    visitor.asks_for_a_small_one(num_steps=2)
    visitor.unfold_more()
    visitor.page.get_by_label("Add photos").set_input_files(PHOTOS / "collins.jpg")
    visitor.page.get_by_role("radio", name="Side by side").check()
    return {"photo.jpg": PHOTO, "photo-2.jpg": PHOTOS / "collins.jpg"}


def by_several_people(visitor):
    visitor.paints_several(PHOTO, PHOTOS / "obama.jpg")
    visitor.set(width=256, height=256, num_steps=2)
    return {"person-1.jpg": PHOTO, "person-2.jpg": PHOTOS / "obama.jpg"}


@pytest.fixture(scope="module", params=[by_one_photo, by_more_photos, by_several_people])
def copied(request, chromium, server):
    """The bytes of a picture made on the page, its request in each language, and the files that they read."""
    context = chromium.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor = Visitor(context.new_page(), f"{server.url}/")
    files = request.param(visitor)
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
    return httpx.get(address, trust_env=False).content, codes, files


@pytest.mark.parametrize("language", RUN)
def test_the_copied_code_makes_the_same_picture(copied, language, tmp_path):
    picture, codes, files = copied
    for name, photo in files.items():
        shutil.copy(photo, tmp_path / name)
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
