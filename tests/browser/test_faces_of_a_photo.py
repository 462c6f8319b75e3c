"""Which faces were found is drawn over the photo, and one of them can be picked."""

from __future__ import annotations

from pathlib import Path

import insightface
import pytest
from PIL import Image
from playwright.sync_api import expect

from browser.visitor import PHONE

CROWD = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"  # six people at a table
MIDDLE_PIXEL = "canvas => Object.values(canvas.getContext('2d').getImageData(56, 56, 1, 1).data)"


def face(visitor, number, count=2):
    return visitor.page.get_by_role("radio", name=f"Face {number} of {count}")


def box_of(visitor, number):
    """Of a face, over the photo."""
    return visitor.page.locator("#photo-frame .boxes label").nth(number - 1)


def middle(visitor, number):
    """Where a box is, as fractions of the shown photo."""
    photo = visitor.page.locator("#photo-image").bounding_box()
    box = box_of(visitor, number).bounding_box()
    return (
        (box["x"] + box["width"] / 2 - photo["x"]) / photo["width"],
        (box["y"] + box["height"] / 2 - photo["y"]) / photo["height"],
    )


def test_each_face_has_its_box_over_it(visitor, couple):
    visitor.choose(couple)
    expect(visitor.page.get_by_text("2 faces found: choose one.")).to_be_visible()
    assert middle(visitor, 1) == pytest.approx((0.25, 0.35), abs=0.06)
    assert middle(visitor, 2) == pytest.approx((0.75, 0.45), abs=0.06)


def test_each_of_six_people_can_be_chosen_and_is_painted(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.choose(CROWD)
    expect(visitor.page.get_by_text("6 faces found: choose one.")).to_be_visible()
    places = {middle(visitor, number) for number in range(1, 7)}
    assert len(places) == 6
    assert all(0 < x < 1 and 0 < y < 1 for x, y in places)
    face(visitor, 6, 6).check()
    assert visitor.make()["face_index"] == 5
    visitor.gets_a_picture()


def test_on_a_phone_each_of_six_faces_is_large_enough_for_a_finger(visit):
    visitor = visit(**PHONE)
    visitor.choose(CROWD)
    for number in range(1, 7):
        box = face(visitor, number, 6).bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    face(visitor, 4, 6).tap()
    expect(face(visitor, 4, 6)).to_be_checked()
    expect(box_of(visitor, 4)).to_have_class("meant")
    box_of(visitor, 5).tap()
    expect(face(visitor, 5, 6)).to_be_checked()
    face(visitor, 5, 6).press("ArrowRight")
    expect(face(visitor, 6, 6)).to_be_checked()
    expect(visitor.page.locator("#photo-frame .meant")).to_have_count(1)
    expect(box_of(visitor, 6)).to_have_class("meant")


def test_faces_below_show_the_people_and_say_where_they_are(visitor, couple):
    visitor.choose(couple)
    for number, from_the_left in ((1, 1), (2, 2)):
        radio = visitor.page.get_by_role(
            "radio", name=f"Face {number} of 2, number {from_the_left} from the left", exact=True
        )
        expect(radio).to_have_count(1)
    shown = visitor.page.locator("#photo-chosen .faces canvas")
    expect(shown.first).to_have_js_property("width", 112)
    colours = [canvas.evaluate(MIDDLE_PIXEL) for canvas in shown.all()]
    assert len({tuple(colour) for colour in colours}) == 2
    assert all(colour[3] == 255 for colour in colours)


def test_one_face_is_marked_and_leaves_nothing_to_choose(visitor):
    visitor.choose()
    expect(visitor.page.get_by_text("1 face found.")).to_be_visible()
    expect(box_of(visitor, 1)).to_have_class("meant")
    expect(visitor.page.locator("#photo-chosen").get_by_role("radio")).to_have_count(0)


def test_a_photo_of_nobody_is_told_at_once(visitor, tmp_path):
    Image.new("RGB", (256, 256), (40, 90, 160)).save(tmp_path / "nobody.png")
    visitor.choose(tmp_path / "nobody.png")
    expect(visitor.problem_with("main_face_image")).to_have_text(
        "No face was found in this photo. Choose another one."
    )


def test_a_group_is_refused_where_only_one_face_may_be_there(visitor, couple):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.control("strict_face").check()
    visitor.choose(couple)
    assert visitor.make()["strict_face"] is True
    expect(visitor.page.get_by_text("The photo shows 2 faces").first).to_be_visible()


def test_the_largest_is_taken_unless_another_is_picked_with_the_mouse_or_the_keyboard(visitor, couple):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.choose(couple)
    expect(face(visitor, 1)).to_be_checked()
    assert "face_index" not in visitor.make()
    expect(visitor.portraits()).to_have_count(1)
    face(visitor, 2).check()
    assert visitor.make()["face_index"] == 1
    expect(visitor.portraits()).to_have_count(2)
    face(visitor, 2).press("ArrowLeft")
    expect(face(visitor, 1)).to_be_checked()
    face(visitor, 1).press("ArrowRight")
    assert visitor.make()["face_index"] == 1
    expect(visitor.portraits()).to_have_count(3)


def test_the_focus_stays_where_it_is_seen_when_a_photo_is_chosen_by_keyboard(visitor, couple):
    visitor.page.keyboard.press("Tab")
    files = visitor.page.get_by_label("Choose a photo")
    for _ in range(2):
        files.focus()
        files.set_input_files(couple)
        expect(visitor.button("Change")).to_be_focused()
        assert visitor.button("Change").evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
        expect(face(visitor, 2)).to_be_visible()
        visitor.button("Remove").press("Enter")
        expect(files).to_be_focused()


def test_another_photo_taken_from_the_change_button_keeps_the_focus_there(visitor, couple):
    visitor.choose(couple)
    visitor.button("Change").focus()
    visitor.page.get_by_label("Choose a photo").set_input_files(couple)
    expect(face(visitor, 2)).to_be_visible()
    expect(visitor.button("Change")).to_be_focused()


def test_another_photo_forgets_the_choice(visitor, couple):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.choose(couple)
    face(visitor, 2).check()
    visitor.choose(couple)
    expect(face(visitor, 1)).to_be_checked()
    assert "face_index" not in visitor.make()


def test_the_same_again_after_a_reload_means_the_same_face(visitor, couple):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.choose(couple)
    face(visitor, 2).check()
    first = visitor.make()
    visitor.gets_a_picture()
    visitor.open()
    visitor.button("Same again, another seed").click()
    visitor.choose(couple)
    expect(face(visitor, 2)).to_be_checked()
    assert visitor.make() == first
    visitor.gets_a_picture()
