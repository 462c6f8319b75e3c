"""What goes wrong is told in words, in the place where it can be mended."""

from __future__ import annotations

import base64

import pytest
from playwright.sync_api import expect

from browser.visitor import PHOTO, PICTURE_MS
from live_server import form_and_size


def test_a_photo_without_a_face_is_told_beside_the_photo(visitor, nobody):
    visitor.expected = {400}  # where the faces of a photo are listed, that is where it comes out first
    visitor.asks_for_a_small_one()
    visitor.choose(nobody)
    visitor.make()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible(timeout=PICTURE_MS)
    for place in (visitor.problem_with("main_face_image"), visitor.alert(), visitor.page.locator("#stage")):
        expect(place).to_contain_text("No face found.")
    expect(visitor.button("Change")).to_be_focused()
    expect(visitor.portraits()).to_have_count(0)
    visitor.choose()
    expect(visitor.problem_with("main_face_image")).to_be_empty()


def test_the_focus_is_not_taken_from_somebody_who_writes(visitor, nobody):
    visitor.expected = {400}
    visitor.asks_for_a_small_one()
    visitor.choose(nobody)
    visitor.make()
    visitor.page.get_by_label("Prompt", exact=True).focus()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible(timeout=PICTURE_MS)
    expect(visitor.problem_with("main_face_image")).to_contain_text("No face found.")
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_be_focused()
    visitor.button("Show what to change").click()
    expect(visitor.button("Change")).to_be_focused()


def test_an_empty_form_says_what_is_missing_and_sends_nothing(visitor):
    visitor.button("Make the portrait").click()
    expect(visitor.problem_with("main_face_image")).to_have_text("Choose a photo first.")
    expect(visitor.problem_with("prompt")).to_have_text("Say what to paint.")
    expect(visitor.page.get_by_label("Choose a photo")).to_be_focused()
    expect(visitor.portraits()).to_have_count(0)


def test_a_photo_that_is_still_being_read_is_missing_until_then_and_not_for_longer(visitor):
    visitor.page.evaluate(
        """() => {
            const read = createImageBitmap;
            const held = new Promise((done) => (window.letGo = done));
            window.createImageBitmap = async (file) => (await held, read(file));
        }"""
    )
    visitor.page.get_by_label("Choose a photo").set_input_files(PHOTO)
    visitor.button("Make the portrait").click()
    expect(visitor.problem_with("main_face_image")).to_have_text("Choose a photo first.")
    visitor.page.evaluate("letGo()")
    expect(visitor.page.locator("#photo-image")).to_be_visible()
    expect(visitor.problem_with("main_face_image")).to_be_empty()


def test_a_value_out_of_range_is_told_beside_its_field_as_the_server_would_tell_it(visitor, server):
    visitor.asks_for_a_small_one(width=20, seed="12x")
    visitor.page.get_by_text("All settings").click()
    visitor.button("Make the portrait").click()
    expect(visitor.control("width")).to_be_focused()
    expect(visitor.control("width")).to_have_attribute("aria-invalid", "true")
    mistaken = {"main_face_image": "x", "prompt": "x", "width": 20, "seed": "12x"}
    refusal = server.client.post("/v1/flux-pulid", json=mistaken).json()
    for problem in refusal["fields"]:
        title = visitor.page.locator(f"label[for=control-{problem['field']}]").inner_text()
        message = problem["message"].replace(problem["field"], f"“{title}”", 1)
        expect(visitor.problem_with(problem["field"])).to_have_text(message)
    assert len(refusal["fields"]) == 2
    visitor.control("width").fill("256")
    expect(visitor.problem_with("width")).to_be_empty()


def test_what_only_the_server_finds_wrong_is_told_beside_its_field(visitor):
    visitor.asks_for_a_small_one()
    visitor.say("x" * 10_001)
    visitor.make()
    expect(visitor.problem_with("prompt")).to_have_text("“Prompt” must have at most 10000 characters.")
    expect(visitor.alert()).to_have_text("“Prompt” must have at most 10000 characters.")
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_be_focused()


def test_a_file_that_is_no_picture_is_refused_before_it_is_sent(visitor, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    visitor.page.get_by_label("Choose a photo").set_input_files(text)
    expect(visitor.problem_with("main_face_image")).to_contain_text("cannot be read as a picture")


def test_a_server_that_is_gone_is_told_and_the_form_stays_usable(visitor):
    visitor.asks_for_a_small_one()
    visitor.page.context.set_offline(True)
    visitor.button("Make the portrait").click()
    expect(visitor.alert()).to_contain_text("The server does not answer.")
    visitor.page.context.set_offline(False)
    visitor.make()
    visitor.gets_a_picture()
    expect(visitor.alert()).to_be_empty()
    assert [line for line in visitor.complaints if "ERR_INTERNET_DISCONNECTED" in line]
    visitor.complaints.clear()


def test_a_key_is_asked_for_once_and_kept_in_the_tab_only(visit, keyed_server, api_key):
    visitor = visit(keyed_server)
    visitor.expected = {401}
    dialog = visitor.page.get_by_role("dialog")
    visitor.choose()
    expect(dialog).to_contain_text("This server asks for an API key.")
    dialog.get_by_label("Your key").fill("SG_wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("not valid here")
    dialog.get_by_label("Your key").fill(api_key)
    dialog.get_by_label("Your key").press("Enter")
    expect(dialog).to_be_hidden()
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.make()
    visitor.gets_a_picture()
    expect(dialog).to_be_hidden()
    visitor.button("Same again, another seed").click()
    expect(visitor.portraits()).to_have_count(2)
    assert visitor.page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert api_key in visitor.page.evaluate("JSON.stringify(sessionStorage)")


def test_without_a_key_nothing_is_made_and_the_page_says_why(visit, keyed_server):
    visitor = visit(keyed_server)
    visitor.expected = {401}
    choose_without_a_key(visitor)
    visitor.say("portrait")
    visitor.make()
    expect(visitor.page.get_by_role("dialog")).to_be_visible()
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.get_by_role("dialog")).to_be_hidden()
    expect(visitor.alert()).to_contain_text("No API key.")
    expect(visitor.portraits()).to_have_count(0)


def choose_without_a_key(visitor):
    visitor.choose()
    expect(visitor.page.get_by_role("dialog")).to_be_visible()
    visitor.page.keyboard.press("Escape")
    expect(visitor.page.get_by_role("dialog")).to_be_hidden()


def test_faces_are_looked_for_again_once_there_is_a_key(visit, keyed_server, api_key):
    visitor = visit(keyed_server)
    visitor.expected = {401}
    choose_without_a_key(visitor)
    found = "No face was found in this photo."  # the engine of this server finds none anywhere
    expect(visitor.problem_with("main_face_image")).not_to_contain_text(found)
    visitor.say("portrait")
    visitor.make()
    visitor.page.get_by_label("Your key").fill(api_key)
    visitor.button("Use this key").click()
    expect(visitor.problem_with("main_face_image")).to_contain_text(found)
    visitor.gets_a_picture()


def test_a_photo_above_the_servers_limit_is_sent_as_a_smaller_copy_and_the_page_says_so(
    visit, keyed_server, api_key
):
    visitor = visit(keyed_server)
    visitor.expected = {401}
    visitor.choose()
    visitor.page.get_by_label("Your key").fill(api_key)
    visitor.button("Use this key").click()
    visitor.say("portrait")
    expect(visitor.page.locator("#photo-faces")).to_contain_text("takes 60 kB in one request, so a copy of")
    sent = visitor.make()
    photo = base64.b64decode(sent["main_face_image"].partition(",")[2])
    form, (width, height) = form_and_size(photo)
    assert form == "JPEG"
    assert 256 < height < 512
    assert width / height == pytest.approx(392 / 512, rel=0.01)
    visitor.gets_a_picture()
