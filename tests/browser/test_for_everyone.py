"""The page works by keyboard, for screen readers, in the dark, on a phone, and stays where it is."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from browser.visitor import PHONE


@pytest.mark.parametrize(
    ("scheme", "device"), [("light", {}), ("dark", PHONE)], ids=["light on a desktop", "dark on a phone"]
)
def test_axe_finds_no_grave_fault(visit, scheme, device):
    visitor = visit(axe=True, color_scheme=scheme, reduced_motion="reduce", **device)
    visitor.axe_finds_nothing_grave()
    visitor.button("Make the portrait").click()
    visitor.page.get_by_text("All settings").click()
    expect(visitor.alert()).not_to_be_empty()
    visitor.axe_finds_nothing_grave()
    visitor.asks_for_a_small_one()
    visitor.make()
    visitor.gets_a_picture()
    visitor.page.get_by_text("Parameters").click()
    visitor.axe_finds_nothing_grave()
    visitor.button("Clear the list").click()
    expect(visitor.page.get_by_role("dialog")).to_be_visible()
    visitor.axe_finds_nothing_grave()


def test_the_keyboard_alone_is_enough(visitor, request):
    page = visitor.page
    keys = page.keyboard

    def tab_to(name):
        for _ in range(60):
            keys.press("Tab")
            focused = page.evaluate(
                "() => [document.activeElement.textContent, document.activeElement.id].join(' ')"
            )
            if name in focused:
                return
        raise AssertionError(f"Tab never comes to {name}")

    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to the pictures")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the pictures")).to_be_in_viewport()
    tab_to("photo-file")
    # The dialog that Enter opens is the browser's own; headless, it does not always come.
    page.locator("#photo-file").set_input_files(request.config.rootpath / "tests" / "photos" / "collins.jpg")
    expect(page.locator("#photo-image")).to_be_visible()
    tab_to("prompt")
    keys.type("portrait, candle light")
    tab_to("All settings")
    keys.press("Enter")
    for name, value in (("width", "256"), ("height", "256"), ("num_steps", "2")):
        tab_to(f"control-{name}")
        keys.press("Control+A")
        keys.type(value)
    keys.press("Control+Enter")
    visitor.gets_a_picture()
    tab_to("Same again")
    keys.press("Enter")
    expect(visitor.portraits()).to_have_count(2)


def test_arrow_keys_choose_a_look_and_the_focus_is_seen(visitor):
    looks = visitor.page.get_by_role("radio", name="Closest face")
    looks.focus()
    visitor.page.keyboard.press("ArrowDown")
    photo_real = visitor.page.get_by_role("radio", name="Photo-real")
    expect(photo_real).to_be_checked()
    expect(photo_real).to_be_focused()
    seen = photo_real.evaluate("radio => getComputedStyle(radio.closest('label')).outlineStyle")
    assert seen == "solid"


def test_nothing_is_wider_than_the_screen(visitor):
    visitor.asks_for_a_small_one(num_steps=1, width=768, height=256)
    visitor.make()
    visitor.gets_a_picture()
    visitor.page.get_by_text("Parameters").click()
    for width in (360, 768, 1280):
        visitor.page.set_viewport_size({"width": width, "height": 740})
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_moves_by_itself_while_the_page_loads_and_a_picture_is_made(visitor):
    visitor.asks_for_a_small_one(width=384, height=512, num_steps=8)
    visitor.make()
    visitor.gets_a_picture()
    assert sum(visitor.page.evaluate("window.shifts")) < 0.01


def test_a_screen_reader_hears_quarters_and_the_end_and_not_every_step(visitor):
    visitor.page.evaluate(
        """() => {
            window.heard = [];
            const announcer = document.getElementById("announcer");
            const hear = () => window.heard.push(announcer.textContent);
            new MutationObserver(hear).observe(announcer, { childList: true });
        }"""
    )
    visitor.asks_for_a_small_one(num_steps=20)
    visitor.make()
    visitor.gets_a_picture()
    expect(visitor.page.locator("#announcer")).to_have_text("The portrait is done.")
    heard = visitor.page.evaluate("window.heard")
    assert heard[0] == "Photo ardern.jpg chosen."
    assert len([text for text in heard if text.startswith("Step ")]) <= 5


def test_who_wants_calm_sees_nothing_move(visit):
    visitor = visit(reduced_motion="reduce")
    running = "() => document.getAnimations().length"
    visitor.asks_for_a_small_one(width=512, height=512, num_steps=20)
    visitor.make()
    expect(visitor.page.locator(".progress-text")).to_contain_text("Step ", timeout=60_000)
    assert visitor.page.evaluate(running) == 0
    visitor.button("Cancel").click()
    expect(visitor.page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=60_000)


def test_the_tiny_profile_says_what_its_pictures_are(visitor, server):
    notice = server.client.get("/ready").json()["notice"]
    expect(visitor.page.get_by_role("note")).to_contain_text(notice, ignore_case=True)
    expect(visitor.page.get_by_role("note")).to_be_in_viewport()
