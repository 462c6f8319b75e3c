"""A server that is out of reach for a while loses no portrait, and the page says how things stand."""

from __future__ import annotations

import os
import re
import signal

import httpx
import pytest
from playwright.sync_api import expect

from browser.visitor import PICTURE_MS
from fakes import Script
from live_server import live_server

LOST = "Connection lost, trying again"
JOBS = re.compile(r"/v2/requests/")
RESULT = re.compile(r"/v2/requests/[^/]+$")
AWAY = "No connection to the server"


@pytest.fixture
def script(tmp_path):
    """Its engine does a step when the test lets it, and can be loaded."""
    script = Script(tmp_path / "script", gated=True, slow_to_load=True)
    script.folder.mkdir()
    script.let_load()
    return script


def state_of(visitor):
    return visitor.page.locator("#server-state")


def progress_of(visitor):
    return visitor.page.locator(".progress-text")


def make_a_scripted_one(visitor, photo):
    visitor.choose(photo)
    visitor.say("portrait")
    visitor.set(width=256, height=256, num_steps=2)
    visitor.make()
    expect(visitor.portraits()).to_have_count(1)


def test_a_portrait_outlives_a_failed_request_at_its_very_end(visitor):
    visitor.expects_outages = True
    visitor.asks_for_a_small_one()
    visitor.page.route(RESULT, lambda route: route.abort(), times=1)
    visitor.make()
    visitor.gets_a_picture()
    assert LOST in visitor.page.evaluate("window.told")
    visitor.open()
    expect(visitor.portraits()).to_have_count(1)
    assert [line for line in visitor.complaints if "ERR_FAILED" in line]


def test_an_answer_from_between_that_says_nothing_of_the_job_does_not_end_it(visitor):
    visitor.expected = {502}
    visitor.asks_for_a_small_one()
    visitor.page.route(RESULT, lambda route: route.fulfill(status=502, body="Bad gateway"), times=1)
    visitor.make()
    visitor.gets_a_picture()
    assert "The server answered with status 502. Trying again" in visitor.page.evaluate("window.told")


def test_an_outage_longer_than_any_patience_ends_with_the_picture_as_soon_as_the_browser_is_online(visitor):
    visitor.expects_outages = True
    visitor.page.clock.install()
    visitor.asks_for_a_small_one()
    visitor.page.route(JOBS, lambda route: route.abort())
    visitor.make()
    expect(progress_of(visitor)).to_have_text(LOST)
    for _ in range(15):  # a quarter of an hour
        visitor.page.clock.run_for(60_000)
    expect(progress_of(visitor)).to_have_text(LOST)
    expect(visitor.portraits()).to_have_count(1)
    expect(visitor.button("Show what to change")).to_have_count(0)
    visitor.page.unroute(JOBS)
    visitor.page.evaluate("dispatchEvent(new Event('online'))")
    visitor.gets_a_picture()


def test_a_reload_during_an_outage_keeps_the_portrait_and_looks_again(visitor):
    visitor.expects_outages = True
    visitor.asks_for_a_small_one()
    visitor.page.route(JOBS, lambda route: route.abort())
    visitor.make()
    expect(progress_of(visitor)).to_have_text(LOST)
    visitor.open()
    expect(progress_of(visitor)).to_have_text(LOST)
    visitor.page.unroute(JOBS)
    visitor.open()
    visitor.gets_a_picture()


def test_a_server_that_is_killed_and_started_again_still_brings_the_picture(
    visit, tmp_path, script, scripted_photo
):
    data = tmp_path / "data"
    with live_server(data, scripted=script, undisturbed=False) as first:
        visitor = visit(first)
        visitor.expects_outages = True
        visitor.expected = {503}
        make_a_scripted_one(visitor, scripted_photo)
        script.run_steps(1)
        expect(progress_of(visitor)).to_contain_text("Step 1 of 2")
        first.kill()
        expect(progress_of(visitor)).to_have_text(LOST)
        expect(state_of(visitor)).to_have_text(AWAY)
        expect(state_of(visitor)).to_have_class("state is-away")
        port = httpx.URL(first.url).port
    script.open_gate()
    with live_server(data, scripted=script, port=port):
        visitor.gets_a_picture()
        expect(state_of(visitor)).to_have_class("state is-ready")
        visitor.page.context.close()


def test_a_portrait_that_the_server_no_longer_knows_is_given_up(visitor):
    visitor.expected = {404}
    visitor.asks_for_a_small_one()
    missing = {"error": "No such request.", "request_id": "0" * 32}
    visitor.page.route(JOBS, lambda route: route.fulfill(status=404, json=missing))
    visitor.make()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible()
    expect(visitor.page.locator("#stage")).to_contain_text("The server no longer knows this portrait")
    expect(visitor.button("Show what to change")).to_have_count(0)
    expect(visitor.portraits()).to_have_count(0)


def test_a_picture_that_does_not_load_is_no_lost_one_and_comes_when_the_server_does(visitor):
    visitor.expects_outages = True
    visitor.asks_for_a_small_one()
    visitor.page.route("**/outputs/**", lambda route: route.abort())
    visitor.make()
    caption = visitor.page.locator("figcaption")
    expect(caption).to_contain_text(
        "This picture did not load. The server does not answer.", timeout=PICTURE_MS
    )
    expect(caption).not_to_contain_text("no longer has")
    visitor.button("Try again").click()
    expect(caption).to_contain_text("This picture did not load.")
    visitor.page.unroute("**/outputs/**")
    visitor.page.evaluate("dispatchEvent(new Event('online'))")
    expect(visitor.picture()).to_have_js_property("naturalWidth", 256)
    expect(caption).to_contain_text("Seed ")


def test_what_a_button_of_the_picture_cannot_do_is_told_beside_it(visitor):
    visitor.expects_outages = True
    visitor.asks_for_a_small_one()
    visitor.make()
    visitor.gets_a_picture()
    visitor.page.route(re.compile("/outputs/|/v2/requests/"), lambda route: route.abort())
    told = visitor.page.locator("#stage [role=alert]")
    for button in (visitor.page.get_by_role("link", name="Download picture 1"), visitor.button("Delete")):
        told.evaluate("told => (told.textContent = '')")
        button.click()
        expect(told).to_contain_text("The server does not answer.")
    expect(visitor.alert()).to_be_empty()


def test_a_key_that_is_refused_keeps_the_portrait_until_there_is_another(visit, keyed_server, api_key):
    visitor = visit(keyed_server)
    visitor.expected = {401}
    visitor.page.evaluate("key => sessionStorage.setItem('flux-pulid-api-key', key)", api_key)
    visitor.open()
    visitor.asks_for_a_small_one(num_steps=1)
    refusal = {"error": "This API key is not valid here.", "request_id": "0" * 32}
    visitor.page.route(JOBS, lambda route: route.fulfill(status=401, json=refusal))
    visitor.make()
    expect(visitor.page.get_by_role("dialog")).to_be_visible()
    visitor.page.keyboard.press("Escape")
    expect(progress_of(visitor)).to_have_text("Waiting for an API key")
    visitor.page.unroute(JOBS)
    visitor.button("API key").click()
    visitor.page.get_by_label("Your key").fill(api_key)
    visitor.button("Use this key").click()
    visitor.gets_a_picture()


def test_the_page_tells_that_the_engine_is_started_again(visit, tmp_path, script, scripted_photo):
    with live_server(tmp_path / "data", scripted=script, undisturbed=False) as server:
        visitor = visit(server)
        visitor.expected = {503}
        make_a_scripted_one(visitor, scripted_photo)
        expect(state_of(visitor)).to_have_class("state is-ready")
        expect(progress_of(visitor)).to_have_text("Reading the face and the prompt")
        (script.folder / "load").unlink()
        os.kill(script.pids[0], signal.SIGKILL)
        expect(state_of(visitor)).to_have_text("Not ready: the engine is being started again")
        expect(state_of(visitor)).to_have_class("state is-waiting")
        script.let_load()
        script.open_gate()
        visitor.gets_a_picture()
        expect(state_of(visitor)).to_have_class("state is-ready")
        visitor.page.context.close()


def test_a_page_without_a_portrait_looks_now_and_then(visitor):
    visitor.expects_outages = True
    visitor.page.clock.install()
    visitor.open()
    visitor.page.route("**/ready", lambda route: route.abort())
    visitor.page.clock.run_for(25_000)
    expect(state_of(visitor)).to_have_text("tiny on cpu")
    visitor.page.clock.run_for(10_000)
    expect(state_of(visitor)).to_have_text(AWAY)
    visitor.page.unroute("**/ready")
    visitor.page.clock.run_for(3_000)
    expect(state_of(visitor)).to_have_text("tiny on cpu")
