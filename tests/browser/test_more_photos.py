"""More photos of one person, and the identity file of their face: saved, and used in the place of photos."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import httpx
import insightface
import pytest
from PIL import Image
from playwright.sync_api import expect

from browser.visitor import PHOTO, PICTURE_MS
from live_server import PHOTOS

CROWD = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"  # six people at a table


def text_of(photo):
    """As the page sends a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"


def add(visitor, *photos):
    visitor.page.get_by_label("Add photos").set_input_files(photos)


def added(visitor):
    return visitor.page.locator("#more-list li")


def test_the_simple_case_shows_nothing_of_it(visitor):
    for text in ("Add photos", "Use an identity file"):
        expect(visitor.page.get_by_label(text)).to_be_hidden()
    expect(visitor.page.locator("#people-list")).to_be_hidden()


def test_more_photos_are_added_removed_and_sent_in_order(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.unfold_more()
    add(visitor, PHOTOS / "collins.jpg", PHOTOS / "obama.jpg", PHOTO)
    expect(added(visitor)).to_have_count(3)
    visitor.button("Remove obama.jpg").click()
    expect(visitor.button("Remove ardern.jpg")).to_be_focused()
    sent = visitor.make()
    assert sent["main_face_image"] == text_of(PHOTO)
    assert sent["face_images"] == [text_of(PHOTOS / "collins.jpg"), text_of(PHOTO)]
    assert "face_fusion" not in sent
    visitor.gets_a_picture()
    visitor.page.get_by_text("Parameters").click()
    expect(visitor.page.locator(".facts")).to_contain_text("Photos3")


def test_the_same_again_has_the_same_photos_and_after_a_reload_asks_for_as_many(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.unfold_more()
    add(visitor, PHOTOS / "collins.jpg", PHOTOS / "obama.jpg")
    expect(added(visitor)).to_have_count(2)
    first = visitor.make()
    visitor.gets_a_picture()
    visitor.button("Remove obama.jpg").click()
    again = visitor.button("Same again, another seed")
    with visitor.page.expect_request("**/v2/flux-pulid") as sent:
        again.click()
    assert sent.value.post_data_json == first
    expect(visitor.portraits()).to_have_count(2)
    visitor.gets_a_picture()
    visitor.open()
    again.click()
    expect(visitor.problem_with("main_face_image")).to_contain_text("Choose the photo again")
    problem = visitor.page.locator("#more-problem")
    expect(problem).to_have_text(
        "Add 2 more photos of the same person again: this browser does not keep photos."
    )
    expect(visitor.page.get_by_label("Choose a photo")).to_be_focused()
    visitor.choose()
    add(visitor, PHOTOS / "collins.jpg")
    expect(added(visitor)).to_have_count(1)
    again.click()
    expect(problem).to_contain_text("Add 1 more photo of the same person")
    expect(visitor.page.get_by_label("Add photos")).to_be_focused()
    add(visitor, PHOTOS / "obama.jpg")
    expect(added(visitor)).to_have_count(2)
    assert visitor.make() == first
    visitor.gets_a_picture()


def test_the_same_again_of_one_photo_is_not_made_from_two(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.make()
    visitor.gets_a_picture()
    visitor.open()
    visitor.choose()
    visitor.unfold_more()
    add(visitor, PHOTO)
    expect(added(visitor)).to_have_count(1)
    visitor.button("Same again, another seed").click()
    expect(visitor.page.locator("#more-problem")).to_contain_text("That portrait had 1 photo fewer")
    expect(visitor.portraits()).to_have_count(1)


def test_how_they_become_one_face_can_be_chosen(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.unfold_more()
    choice = visitor.page.get_by_role("radio", name="Side by side")
    expect(choice).to_be_hidden()
    add(visitor, PHOTOS / "collins.jpg")
    choice.check()
    assert visitor.make()["face_fusion"] == "concat"
    visitor.gets_a_picture()


def test_there_may_be_eight_photos_altogether(visitor):
    visitor.choose()
    visitor.unfold_more()
    add(visitor, *[PHOTO] * 8)
    expect(added(visitor)).to_have_count(7)
    expect(visitor.page.locator("#more-problem")).to_have_text("There may be 8 photos altogether.")
    expect(visitor.page.get_by_label("Add photos")).to_be_disabled()


def faces_of(server, photo):
    """Of a photo in bytes or as the page sends it, the largest first."""
    image = photo if isinstance(photo, str) else base64.b64encode(photo).decode()
    answer = server.client.post("/v1/faces", json={"image": image}).json()
    return [
        (round((right - left) * answer["width"]), round((bottom - top) * answer["height"]))
        for left, top, right, bottom in (face["box"] for face in answer["faces"])
    ]


@pytest.mark.parametrize("number", range(2, 7))
def test_of_a_group_only_the_chosen_face_is_sent_beside_more_photos(visitor, server, number):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.choose(CROWD)
    visitor.unfold_more()
    add(visitor, PHOTO)
    visitor.page.get_by_role("radio", name=f"Face {number} of 6").check()
    expect(visitor.page.locator("#more-note")).to_contain_text("only the part around the chosen face is sent")
    sent = visitor.make()
    assert "face_index" not in sent
    assert sent["face_images"] == [text_of(PHOTO)]
    [size] = faces_of(server, sent["main_face_image"])
    assert size == pytest.approx(faces_of(server, CROWD.read_bytes())[number - 1], rel=0.15)
    visitor.gets_a_picture()


def test_a_chosen_face_beside_another_photo_is_saved_as_a_file(visitor, couple):
    visitor.choose(couple)
    visitor.unfold_more()
    add(visitor, PHOTO)
    visitor.page.get_by_role("radio", name="Face 2 of 2").check()
    with visitor.page.expect_request("**/v1/identities") as asked, visitor.page.expect_download():
        visitor.button("Save this face as a file").click()
    assert asked.value.post_data_json.keys() == {"main_face_image", "face_images"}


def test_which_of_several_photos_shows_no_face_is_told_and_marked(visitor, nobody):
    visitor.expected = {400}
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.unfold_more()
    add(visitor, PHOTO, nobody)
    expect(added(visitor).locator(".number")).to_have_text(["2", "3"])
    visitor.make()
    expect(visitor.page.locator("#more-problem")).to_have_text(
        re.compile("^Photo 3: No face found."), timeout=PICTURE_MS
    )
    expect(visitor.alert()).to_have_text(re.compile("^Photo 3: No face found."))
    expect(visitor.page.locator("#stage .outcome")).to_contain_text("Photo 3: No face found.")
    expect(added(visitor).nth(0)).not_to_have_class("wrong")
    expect(added(visitor).nth(1)).to_have_class("wrong")
    expect(visitor.button("Remove nobody.png")).to_be_focused()
    visitor.button("Remove ardern.jpg").click()
    expect(added(visitor).locator(".number")).to_have_text(["2"])
    expect(added(visitor)).not_to_have_class("wrong")


def test_photos_that_are_too_large_together_are_reduced_and_the_page_says_so(
    visit, keyed_server, api_key, tmp_path
):
    visitor = visit(keyed_server)
    visitor.page.evaluate("key => sessionStorage.setItem('flux-pulid-api-key', key)", api_key)
    small = tmp_path / "small.jpg"
    Image.open(PHOTO).resize((300, 392)).save(small, quality=90)
    assert 22_000 < small.stat().st_size < 43_000
    visitor.choose(small)
    visitor.say("portrait")
    visitor.unfold_more()
    note = visitor.page.locator("#more-note")
    expect(note).to_be_empty()
    add(visitor, small)
    expect(note).to_contain_text("above the 60 kB this server takes in one request: smaller copies are sent")
    sent = visitor.make()
    assert len(sent["main_face_image"]) + len(sent["face_images"][0]) < 60_000
    visitor.gets_a_picture()


def test_under_an_identity_file_nothing_speaks_of_photos_that_are_sent(visitor, tmp_path):
    visitor.choose()
    visitor.unfold_more()
    add(visitor, PHOTO)
    expect(visitor.page.locator("#more-count")).to_have_text("2 photos")
    (tmp_path / "some.safetensors").write_bytes(b"any")
    visitor.page.get_by_label("Use an identity file").set_input_files(tmp_path / "some.safetensors")
    expect(visitor.page.locator("#more-note")).to_contain_text(
        "the identity file takes the place of all photos"
    )
    expect(visitor.page.locator("#more-count")).to_be_empty()
    for hint in ("One clear face, from the front.", "From other sides, evenly lit"):
        expect(visitor.page.get_by_text(hint)).to_be_hidden()
    visitor.button("Remove").click()
    expect(visitor.page.get_by_text("One clear face, from the front.")).to_be_visible()


@pytest.mark.parametrize("photos", [[], [PHOTOS / "collins.jpg"]], ids=["one photo", "two photos"])
def test_an_identity_file_paints_what_its_photos_paint(visitor, tmp_path, photos):
    visitor.asks_for_a_small_one(num_steps=2, seed=7)
    visitor.unfold_more()
    if photos:
        add(visitor, *photos)
        expect(added(visitor)).to_have_count(1)
    visitor.make()
    by_photo = visitor.gets_a_picture().get_attribute("src")
    with visitor.page.expect_download() as download:
        visitor.button("Save this face as a file").click()
    assert download.value.suggested_filename == "identity.safetensors"
    file = tmp_path / "identity.safetensors"
    download.value.save_as(file)
    expect(visitor.page.get_by_text("Saved as identity.safetensors.")).to_be_visible()
    visitor.page.get_by_label("Use an identity file").set_input_files(file)
    expect(visitor.page.locator("#photo-name")).to_contain_text("identity.safetensors")
    expect(visitor.button("Save this face as a file")).to_be_disabled()
    sent = visitor.make()
    assert base64.b64decode(sent["identity"]) == file.read_bytes()
    assert not sent.keys() & {"main_face_image", "face_images", "face_index", "face_fusion"}
    expect(visitor.portraits()).to_have_count(2)
    by_file = visitor.gets_a_picture().get_attribute("src")
    assert by_file != by_photo
    assert httpx.get(by_file, trust_env=False).content == httpx.get(by_photo, trust_env=False).content
    assert sent["identity"][:60] not in visitor.everything_kept()


def test_a_file_that_is_no_identity_is_told_beside_it(visitor, tmp_path):
    visitor.asks_for_a_small_one(num_steps=1)
    (tmp_path / "other.safetensors").write_bytes(b"no identity at all")
    visitor.unfold_more()
    visitor.page.get_by_label("Use an identity file").set_input_files(tmp_path / "other.safetensors")
    visitor.make()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible(timeout=PICTURE_MS)
    expect(visitor.problem_with("main_face_image")).to_contain_text("identity")
    expect(visitor.button("Change")).to_be_focused()


def test_a_face_that_cannot_be_read_is_told_where_it_was_to_be_saved(visitor, nobody):
    visitor.expected = {400}
    visitor.choose(nobody)
    visitor.unfold_more()
    visitor.button("Save this face as a file").click()
    expect(visitor.problem_with("main_face_image")).to_contain_text("No face found.")
    expect(visitor.button("Save this face as a file")).to_be_enabled()
