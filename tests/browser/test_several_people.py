"""Several people in one picture: a photo and a place for each, by keyboard, mouse and finger."""

from __future__ import annotations

import base64
import json
import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from browser.visitor import PHONE, PHOTO, PICTURE_MS
from live_server import PHOTOS

OTHER = PHOTOS / "obama.jpg"
SIDES = ("Left %", "Top %", "Width %", "Height %")


def drawn(visitor, number):
    """Where a person's box is drawn: left, top, width and height in percent of the plane."""
    plane = visitor.page.locator("#plane").bounding_box()
    box = visitor.page.locator(f"#plane .person-{number}").bounding_box()
    return (
        100 * (box["x"] - plane["x"]) / plane["width"],
        100 * (box["y"] - plane["y"]) / plane["height"],
        100 * box["width"] / plane["width"],
        100 * box["height"] / plane["height"],
    )


def written(visitor, number):
    """What the fields of a person say."""
    return tuple(int(visitor.person(number).get_by_label(side).input_value()) for side in SIDES)


def write(visitor, number, **percents):
    """By keyboard alone."""
    for side, percent in percents.items():
        visitor.person(number).get_by_label(f"{side.capitalize()} %").focus()
        visitor.page.keyboard.press("Control+A")
        visitor.page.keyboard.type(str(percent))
        visitor.page.keyboard.press("Tab")


def small_one(visitor):
    visitor.say("two people, a woman on the left, a man on the right")
    visitor.set(width=512, height=256, num_steps=2)


def test_two_people_are_placed_by_keyboard_and_painted(visitor):
    visitor.button("Several people in one picture").focus()
    visitor.page.keyboard.press("Enter")
    visitor.choose_for(1, PHOTO)
    visitor.choose_for(2, OTHER)
    small_one(visitor)
    write(visitor, 1, height=90, left=5, top=10, width=40)
    write(visitor, 2, width=40, left=60, height=80)
    assert (written(visitor, 1), written(visitor, 2)) == ((5, 10, 40, 90), (60, 0, 40, 80))
    assert drawn(visitor, 1) == pytest.approx((5, 10, 40, 90), abs=1)
    assert drawn(visitor, 2) == pytest.approx((60, 0, 40, 80), abs=1)
    first, second = visitor.make()["faces"]
    assert first.keys() == second.keys() == {"photo", "box"}
    assert base64.b64decode(first["photo"].partition(",")[2]) == PHOTO.read_bytes()
    assert base64.b64decode(second["photo"].partition(",")[2]) == OTHER.read_bytes()
    assert (first["box"], second["box"]) == ([0.05, 0.1, 0.45, 1], [0.6, 0, 1, 0.8])
    visitor.gets_a_picture()
    visitor.page.get_by_text("Parameters").click()
    expect(visitor.page.locator(".facts")).to_contain_text("60 to 100 % across, 0 to 80 % down")


def test_arrow_keys_move_a_side_by_one_percent_and_nothing_leaves_the_picture(visitor):
    visitor.paints_several()
    visitor.person(1).get_by_label("Width %").focus()
    visitor.page.keyboard.press("ArrowDown")
    assert written(visitor, 1) == (0, 0, 49, 100)
    write(visitor, 2, left=150)
    assert written(visitor, 2) == (50, 0, 50, 100)
    write(visitor, 2, width=30, left=99, height=0)
    assert written(visitor, 2) == (70, 0, 30, 5)


def drag(visitor, place, across, down):
    """With the mouse; in percent of the plane."""
    plane, box = visitor.page.locator("#plane").bounding_box(), place.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visitor.page.mouse.move(x, y)
    visitor.page.mouse.down()
    visitor.page.mouse.move(x + plane["width"] * across / 100, y + plane["height"] * down / 100, steps=5)
    visitor.page.mouse.up()


def test_boxes_are_moved_and_resized_with_the_mouse(visitor):
    visitor.paints_several()
    box = visitor.page.locator("#plane .person-1")
    drag(visitor, box.locator(".se"), -20, -30)
    assert written(visitor, 1) == pytest.approx((0, 0, 30, 70), abs=1)
    drag(visitor, box, 25, 50)
    assert written(visitor, 1) == pytest.approx((25, 30, 30, 70), abs=1)  # it stays inside
    drag(visitor, box.locator(".nw"), -10, 20)
    assert written(visitor, 1) == pytest.approx((15, 50, 40, 50), abs=1)
    assert drawn(visitor, 1) == pytest.approx(written(visitor, 1), abs=1)
    assert written(visitor, 2) == (50, 0, 50, 100)


def test_boxes_are_moved_with_a_finger(visit):
    visitor = visit(**PHONE)
    visitor.paints_several()
    box = visitor.page.locator("#plane .person-2")
    box.scroll_into_view_if_needed()
    place, plane = box.bounding_box(), visitor.page.locator("#plane").bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 3
    touch = visitor.page.context.new_cdp_session(visitor.page)

    def finger(kind, *points):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    finger("touchStart", {"x": x, "y": y})
    for part in (0.1, 0.2, 0.3):
        finger("touchMove", {"x": x - plane["width"] * part, "y": y})
    finger("touchEnd")
    assert written(visitor, 2) == pytest.approx((20, 0, 50, 100), abs=1)


def test_people_stand_side_by_side_until_somebody_is_placed(visitor):
    visitor.paints_several()
    visitor.button("Add a person").click()
    expect(visitor.page.get_by_label("Choose a photo of person 3")).to_be_focused()
    assert [written(visitor, number)[0] for number in (1, 2, 3)] == [0, 33, 67]
    visitor.button("Remove person 1").click()
    assert [written(visitor, number)[0] for number in (1, 2)] == [0, 50]
    write(visitor, 1, left=10)
    visitor.button("Add a person").click()
    assert written(visitor, 1)[0] == 10
    visitor.button("Add a person").click()
    expect(visitor.button("Add a person")).to_be_hidden()
    expect(visitor.page.locator("#plane .region")).to_have_count(4)


def test_who_is_added_after_boxes_were_placed_gets_a_free_place_of_their_own(visitor):
    visitor.paints_several()
    drag(visitor, visitor.page.locator("#plane .person-1 .se"), -20, -10)
    for _ in range(2):
        visitor.button("Add a person").click()
    assert len({written(visitor, number) for number in range(1, 5)}) == 4
    assert written(visitor, 3) == pytest.approx((30, 0, 20, 100), abs=1)


def test_the_largest_free_part_is_taken(visitor):
    visitor.paints_several()
    write(visitor, 1, width=30, height=30)
    visitor.button("Remove person 2").click()
    visitor.button("Add a person").click()
    assert written(visitor, 2) == (30, 0, 70, 100)
    visitor.button("Add a person").click()
    assert written(visitor, 3) == (0, 30, 30, 70)


def test_the_plane_has_the_shape_of_the_picture(visitor):
    visitor.paints_several()
    for shape, ratio in (("Portrait", 896 / 1152), ("Landscape", 1152 / 896), ("Square", 1)):
        visitor.page.get_by_role("radio", name=shape).check()
        plane = visitor.page.locator("#plane").bounding_box()
        assert plane["width"] / plane["height"] == pytest.approx(ratio, rel=0.02)


def test_each_has_a_face_of_their_own_photo_and_a_weight(visitor, couple):
    visitor.paints_several(couple, couple)
    small_one(visitor)
    person = visitor.person(2)
    person.get_by_role("radio", name="Face 2 of 2").check()
    expect(visitor.person(1).get_by_role("radio", name="Face 1 of 2")).to_be_checked()
    person.get_by_text("Weight and steps").click()
    person.get_by_label("Weight", exact=True).fill("0.8")
    visitor.page.get_by_role("radio", name="Photo-real").check()
    first, second = visitor.make()["faces"]
    assert "face_index" not in first
    assert second["face_index"] == 1
    assert second["weight"] == 0.8
    assert first["start_step"] == second["start_step"] == 4
    visitor.gets_a_picture()


def test_what_is_missing_or_wrong_is_told_beside_the_person(visitor):
    visitor.paints_several(PHOTO)
    small_one(visitor)
    visitor.person(1).get_by_text("Weight and steps").click()
    visitor.person(1).get_by_label("Weight", exact=True).fill("7")
    visitor.button("Make the portrait").click()
    expect(visitor.person(1)).to_contain_text("“Weight” must be a number from 0 to 3.")
    expect(visitor.person(1).get_by_label("Weight", exact=True)).to_be_focused()
    expect(visitor.person(2)).to_contain_text("Choose a photo first.")
    expect(visitor.portraits()).to_have_count(0)


def test_a_photo_that_only_the_server_refuses_is_told_beside_its_person(visitor, tmp_path):
    visitor.expected = {400}
    Image.new("RGB", (64, 64)).save(tmp_path / "logo.ico")  # browsers read it
    visitor.paints_several(PHOTO, tmp_path / "logo.ico")
    small_one(visitor)
    visitor.make()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible(timeout=PICTURE_MS)
    expect(visitor.person(2).locator(".problem").first).to_have_text(re.compile("^Person 2: "))
    expect(visitor.alert()).to_have_text(re.compile("^Person 2: "))
    expect(visitor.person(1).locator(".person-photo")).not_to_have_class("wrong")
    expect(visitor.person(2).get_by_role("button", name="Change")).to_be_focused()


@pytest.fixture
def no_identity(tmp_path):
    """A file by the name of an identity file that is none."""
    (tmp_path / "other.safetensors").write_bytes(b"no identity at all")
    return tmp_path / "other.safetensors"


def test_an_identity_file_that_is_refused_is_told_with_the_name_of_its_person(visitor, no_identity):
    visitor.paints_several(PHOTO, no_identity)
    small_one(visitor)
    visitor.make()
    stage = visitor.page.locator("#stage .outcome")
    expect(stage).to_contain_text("Person 2: This is no identity file", timeout=PICTURE_MS)
    expect(visitor.alert()).to_have_text(re.compile("^Person 2: This is no identity file"))
    expect(visitor.person(2)).to_contain_text("This is no identity file")
    expect(visitor.person(1)).not_to_contain_text("This is no identity file")


def test_of_two_identity_files_both_are_looked_at_where_one_is_refused(visitor, no_identity):
    visitor.paints_several(no_identity, no_identity)
    small_one(visitor)
    visitor.make()
    expect(visitor.alert()).to_have_text(re.compile("^Person 1 or Person 2: "), timeout=PICTURE_MS)


def test_the_only_photo_beside_an_identity_file_is_told_with_the_name_of_its_person(
    visitor, no_identity, nobody
):
    visitor.expected = {400}
    visitor.paints_several(no_identity, nobody)
    small_one(visitor)
    failed = {"status": "FAILED", "code": "no_face", "error": "No face found."}
    visitor.page.route(
        "**/v2/requests/*/events*",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(failed)}\n\n"),
    )
    visitor.make()
    expect(visitor.alert()).to_have_text("Person 2: No face found.")
    expect(visitor.person(1)).not_to_contain_text("No face found.")


def test_places_are_remembered_and_photos_are_not(visitor):
    visitor.paints_several(PHOTO, OTHER)
    small_one(visitor)
    write(visitor, 1, left=10, width=30)
    first = visitor.make()
    visitor.gets_a_picture()
    for photo in (PHOTO, OTHER):
        assert base64.b64encode(photo.read_bytes()).decode()[:60] not in visitor.everything_kept()
    with visitor.page.expect_request("**/v2/flux-pulid") as sent:
        visitor.button("Same again, another seed").click()
    assert sent.value.post_data_json == first
    expect(visitor.portraits()).to_have_count(2)
    visitor.gets_a_picture()
    visitor.open()
    visitor.button("Same again, another seed").click()
    for number in (1, 2):
        expect(visitor.person(number)).to_contain_text("Choose the photo again: this browser does not keep")
    expect(visitor.alert()).to_have_text("Choose what is marked above, then make the portrait.")
    expect(visitor.page.get_by_label("Choose a photo of person 1")).to_be_focused()
    assert written(visitor, 1) == (10, 0, 30, 100)
    visitor.choose_for(1, PHOTO)
    visitor.choose_for(2, OTHER)
    with visitor.page.expect_request("**/v2/flux-pulid") as sent:
        visitor.button("Same again, another seed").click()
    assert json.dumps(sent.value.post_data_json, sort_keys=True) == json.dumps(first, sort_keys=True)
    expect(visitor.portraits()).to_have_count(3)
    visitor.gets_a_picture()


def test_a_photo_is_dropped_on_whom_it_is_of(visitor):
    visitor.paints_several()
    photo = visitor.page.evaluate_handle(
        """(bytes) => {
            const photo = new DataTransfer();
            photo.items.add(new File([Uint8Array.from(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            return photo;
        }""",
        list(OTHER.read_bytes()),
    )
    visitor.person(2).dispatch_event("drop", {"dataTransfer": photo})
    expect(visitor.person(2).locator(".photo-name")).to_contain_text("dropped.jpg")
    visitor.page.dispatch_event("body", "drop", {"dataTransfer": photo})
    expect(visitor.person(1).locator(".photo-name")).to_contain_text("dropped.jpg")


def test_a_photo_that_was_chosen_already_is_the_first_persons(visitor, couple):
    visitor.choose(couple)
    visitor.page.get_by_role("radio", name="Face 2 of 2").check()
    visitor.button("Several people in one picture").click()
    expect(visitor.person(1).locator(".photo-name")).to_contain_text("couple.jpg")
    expect(visitor.person(1).get_by_role("radio", name="Face 2 of 2")).to_be_checked()
    visitor.choose_for(2, OTHER)
    small_one(visitor)
    first, second = visitor.make()["faces"]
    assert base64.b64decode(first["photo"].partition(",")[2]) == couple.read_bytes()
    assert first["face_index"] == 1
    assert "face_index" not in second
    visitor.gets_a_picture()


def test_one_person_again_is_the_simple_form(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    visitor.button("Several people in one picture").click()
    expect(visitor.page.locator("#drop")).to_be_hidden()
    visitor.button("Back to one person").click()
    assert "faces" not in visitor.make()
    visitor.gets_a_picture()


@pytest.mark.parametrize(
    ("scheme", "device"),
    [("light", {}), ("dark", {}), ("light", PHONE), ("dark", PHONE)],
    ids=["light on a desktop", "dark on a desktop", "light on a phone", "dark on a phone"],
)
def test_axe_finds_no_grave_fault_and_nothing_is_too_wide(visit, scheme, device, couple):
    visitor = visit(axe=True, color_scheme=scheme, reduced_motion="reduce", **device)
    visitor.choose(couple)
    visitor.unfold_more()
    visitor.page.get_by_label("Add photos").set_input_files([PHOTO, OTHER])
    expect(visitor.page.locator("#more-list li")).to_have_count(2)
    must_be_fine(visitor)
    visitor.paints_several(PHOTO, couple)
    expect(visitor.person(2)).to_contain_text("2 faces found")
    visitor.button("Add a person").click()
    visitor.button("Add a person").click()
    for number in range(1, 5):
        visitor.person(number).get_by_text("Weight and steps").click()
    visitor.button("Make the portrait").click()
    expect(visitor.alert()).not_to_be_empty()
    must_be_fine(visitor)


@pytest.mark.parametrize(
    ("scheme", "device"),
    [
        pytest.param("light", {}, id="light on a desktop", marks=pytest.mark.release),
        pytest.param("dark", PHONE, id="dark on a phone"),
    ],
)
def test_axe_finds_no_grave_fault_while_it_is_painted_when_it_is_done_and_when_it_fails(
    visit, scheme, device, nobody
):
    visitor = visit(axe=True, color_scheme=scheme, **device)
    visitor.expected = {400}
    visitor.paints_several(PHOTO, OTHER)
    visitor.say("two people")
    visitor.set(width=768, height=768, num_steps=20)
    visitor.control("identity_similarity").check()
    visitor.make()
    expect(visitor.page.locator("img.preview")).to_be_visible(timeout=PICTURE_MS)
    must_be_fine(visitor)
    visitor.gets_a_picture()
    must_be_fine(visitor)
    visitor.choose_for(2, nobody)
    visitor.make()
    expect(visitor.page.get_by_role("heading", name="No picture this time")).to_be_visible(timeout=PICTURE_MS)
    expect(visitor.person(2)).to_contain_text("No face found.")
    must_be_fine(visitor)


def must_be_fine(visitor):
    visitor.axe_finds_nothing_grave()
    width = visitor.page.viewport_size["width"]
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
