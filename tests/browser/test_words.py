"""What people read is in their words: settings, parameters of a portrait, and errors of the server."""

from __future__ import annotations

import json
import re

from playwright.sync_api import expect

WIRE = re.compile(r"\b[a-z]+_[a-z_]+\b|\w\[\d|\bnull\b|\babsent\b|\btrue:|\bfield\b", re.IGNORECASE)
# Without what is there for those who call the server themselves.
READ = """(element) => {
    const it = element.cloneNode(true);
    it.querySelector("code")?.remove();
    return it.textContent;
}"""
EARLIER = """async () => {
    const opening = indexedDB.open("flux-pulid");
    await new Promise((done) => (opening.onsuccess = done));
    const store = opening.result.transaction("portraits", "readwrite").objectStore("portraits");
    const faces = [{ photo: "person-1.jpg" }, { photo: "person-2.jpg" }];
    const sent = { prompt: "two people", faces };
    const portrait = { id: "0".repeat(32), at: 1, sent, state: "QUEUED", step: 0, steps: 0, pictures: [] };
    await new Promise((done) => (store.put(portrait).onsuccess = done));
    opening.result.close();
}"""


def test_settings_have_words_for_people_and_their_name_on_the_wire_in_small(visitor):
    visitor.page.get_by_text("All settings").click()
    settings = visitor.page.locator("#controls .control").all()
    assert len(settings) > 12
    for setting in settings:
        assert not WIRE.search(setting.evaluate(READ))
        expect(setting.locator("code")).to_have_text(setting.get_attribute("data-field"))


def test_settings_of_a_person_are_explained_without_words_of_the_wire(visitor):
    visitor.paints_several()
    texts = [setting.evaluate(READ) for setting in visitor.person(1).locator(".control").all()]
    assert len(texts) == 3
    assert not [text for text in texts if WIRE.search(text)]


def test_an_earlier_visits_portrait_that_fails_is_told_in_words_too(visitor):
    visitor.page.evaluate(EARLIER)
    failed = {"status": "FAILED", "code": "no_face", "error": "faces[1].photo: No face found."}
    answer = {"content_type": "text/event-stream", "body": f"data: {json.dumps(failed)}\n\n"}
    visitor.page.route("**/v2/requests/*/events*", lambda route: route.fulfill(**answer))
    visitor.open()
    expect(visitor.page.locator("#announcer")).to_have_text("Person 2: No face found.")
