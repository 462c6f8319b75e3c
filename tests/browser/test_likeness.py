"""How alike the faces of photo and picture are: measured where pictures show faces, shown and explained."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

EXPLAINED = "Likeness compares the faces: about 0 for strangers, 1 for the same photo."


@pytest.fixture
def scripted(visit, scripted_server, scripted_photo):
    """A visitor of the scripted server, with a photo chosen."""
    visitor = visit(scripted_server)
    visitor.choose(scripted_photo)
    visitor.set(width=256, height=256, num_steps=1)
    return visitor


def test_the_likeness_is_on_the_picture_and_in_the_list(scripted):
    scripted.say("alike 0.7")
    assert scripted.make()["identity_similarity"] is True
    scripted.gets_a_picture()
    expect(scripted.page.get_by_role("figure")).to_contain_text("Likeness 0.7")
    expect(scripted.page.get_by_text(EXPLAINED)).to_be_visible()
    expect(scripted.portraits().locator(".likeness")).to_contain_text("0.7")
    expect(scripted.page.get_by_text("A number on a picture is its likeness.")).to_be_visible()
    expect(scripted.page.get_by_role("button", name="alike 0.7. Likeness 0.7")).to_have_count(1)


def test_each_of_several_people_has_a_number_of_their_own(scripted):
    scripted.say("alike 0.6 none 0.4")
    scripted.make()
    scripted.gets_a_picture()
    caption = scripted.page.get_by_role("figure")
    expect(caption).to_contain_text("Likeness 1: 0.6")
    expect(caption).to_contain_text(", 2: none, 3: 0.4")


def test_it_outlives_a_reload(scripted):
    scripted.say("alike 0.7")
    scripted.make()
    scripted.gets_a_picture()
    scripted.open()
    expect(scripted.page.get_by_role("figure")).to_contain_text("Likeness 0.7")


def test_it_can_be_turned_off_and_is_not_counted_as_changed_before(scripted):
    scripted.button("Back to the defaults").click()
    expect(scripted.page.locator("#changed")).to_be_empty()
    scripted.control("identity_similarity").uncheck()
    expect(scripted.page.locator("#changed")).to_have_text("1 changed")
    scripted.say("alike 0.7")
    scripted.set(num_steps=1)
    assert "identity_similarity" not in scripted.make()
    scripted.gets_a_picture()
    expect(scripted.page.get_by_role("figure")).not_to_contain_text("Likeness")
    expect(scripted.page.get_by_text(EXPLAINED)).to_have_count(0)
    scripted.button("Back to the defaults").click()
    expect(scripted.control("identity_similarity")).to_be_checked()
    scripted.button("Use these settings").click()
    expect(scripted.control("identity_similarity")).not_to_be_checked()


def test_drawn_pictures_are_not_measured_unless_asked(visitor):
    visitor.asks_for_a_small_one(num_steps=1)
    expect(visitor.control("identity_similarity")).not_to_be_checked()
    visitor.control("identity_similarity").check()
    assert visitor.make()["identity_similarity"] is True
    visitor.gets_a_picture()
    expect(visitor.page.get_by_role("figure")).to_contain_text("Likeness")
    expect(visitor.page.get_by_text(EXPLAINED)).to_be_visible()
