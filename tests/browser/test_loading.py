"""While the engine is loaded the page can be used, and says how far the loading is."""

from __future__ import annotations

from playwright.sync_api import expect

from fakes import Script
from live_server import live_server


def test_the_page_waits_with_the_person_until_the_engine_is_loaded(visit, tmp_path, scripted_photo):
    script = Script(tmp_path / "script", slow_to_load=True)
    script.folder.mkdir()
    with live_server(tmp_path / "data", scripted=script, ready=False) as server:
        visitor = visit(server)
        visitor.expected = {503}
        banner = visitor.page.locator("#loading")
        expect(banner).to_contain_text("The engine is still loading")
        expect(visitor.page.locator("#server-state")).to_have_text("Not ready: the engine is still loading")
        visitor.choose(scripted_photo)
        visitor.say("portrait")
        expect(visitor.page.locator("#photo-problem")).to_be_empty()
        script.let_load()
        expect(banner).to_be_hidden(timeout=20_000)
        expect(visitor.page.locator("#announcer")).to_have_text("The server is ready.")
        expect(visitor.page.locator("#server-state")).to_have_text("scripted on cpu")
        visitor.set(width=256, height=256, num_steps=1)
        assert visitor.make()["identity_similarity"] is True
        visitor.gets_a_picture()
        visitor.page.context.close()


def test_it_is_told_how_far_the_loading_is(visit):
    visitor = visit(axe=True)
    visitor.expected = {503}
    reason = "the engine is still loading: FLUX transformer, 43 percent"
    body = {"error": f"Not ready: {reason}.", "request_id": "0" * 32, "reason": reason}
    visitor.page.route("**/ready", lambda route: route.fulfill(status=503, json=body))
    visitor.open()
    banner = visitor.page.locator("#loading")
    expect(banner).to_contain_text("The engine is still loading: FLUX transformer, 43 percent.")
    expect(banner.get_by_role("progressbar")).to_have_js_property("value", 43)
    visitor.axe_finds_nothing_grave()
    visitor.page.unroute("**/ready")
    expect(banner).to_be_hidden()
