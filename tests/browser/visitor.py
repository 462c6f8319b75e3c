"""A person at the page: what can be done there, in the words of its labels; and what they mind.

Knows Playwright and the page. Nothing here waits for a time: `expect` waits for conditions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response, expect

from live_server import PHOTOS

PHOTO = PHOTOS / "ardern.jpg"
AXE = Path(__file__).parents[1] / "clients" / "node" / "node_modules" / "axe-core" / "axe.min.js"
PICTURE_MS = 60_000  # for a small picture, beside other work on the machine

PHONE = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}

# Run in every page before its own scripts.
REMEMBER_SHIFTS = """
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry.value);
    }).observe({ type: "layout-shift", buffered: true });
"""
REMEMBER_PROGRESS = """
    window.told = [];
    window.previews = [];
    const remember = (list, text) => text && text !== list.at(-1) && list.push(text);
    new MutationObserver(() => {
        remember(window.told, document.querySelector(".progress-text")?.textContent);
        remember(window.previews, document.querySelector("img.preview")?.src);
    }).observe(document, { attributes: true, childList: true, subtree: true, characterData: true });
"""

# Everything that the browser keeps, as one text.
KEPT = """async () => {
    const opening = indexedDB.open("flux-pulid");
    await new Promise((done) => (opening.onsuccess = done));
    const reading = opening.result.transaction("portraits").objectStore("portraits").getAll();
    await new Promise((done) => (reading.onsuccess = done));
    opening.result.close();
    return JSON.stringify([reading.result, { ...localStorage }, { ...sessionStorage }]);
}"""


class Visitor:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.expected: set[int] = set()  # statuses above 399 that this test means to see
        self.expects_outages = False
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.context.on("request", self._watch)
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        expect(self.page.locator("#app")).to_be_visible()

    # the form

    def choose(self, photo: Path = PHOTO) -> None:
        self.page.get_by_label("Choose a photo").set_input_files(photo)
        expect(self.page.locator("#photo-image")).to_be_visible()

    def unfold_more(self) -> None:
        """More photos, identity files."""
        self.page.locator("#more > summary").click()

    def paints_several(self, *photos: Path) -> None:
        """Each person by one photo."""
        self.button("Several people in one picture").click()
        for number, photo in enumerate(photos, start=1):
            if number > 2:
                self.button("Add a person").click()
            self.choose_for(number, photo)

    def choose_for(self, number: int, photo: Path) -> None:
        self.page.get_by_label(f"Choose a photo of person {number}").set_input_files(photo)
        expect(self.person(number).locator(".photo-name")).to_contain_text(photo.name)

    def person(self, number: int) -> Locator:
        return self.page.get_by_role("group", name=f"Person {number}", exact=True)

    def say(self, prompt: str) -> None:
        self.page.get_by_label("Prompt", exact=True).fill(prompt)

    def control(self, name: str) -> Locator:
        return self.page.locator(f"#control-{name}")

    def set(self, **parameters: object) -> None:
        """Those under "All settings", by their names on the wire."""
        settings = self.page.locator("details.settings")
        if settings.get_attribute("open") is None:
            settings.locator("summary").click()
        for name, value in parameters.items():
            self.control(name).fill(str(value))

    def asks_for_a_small_one(self, **more: object) -> None:
        self.choose()
        self.say("portrait, candle light")
        self.set(**{"width": 256, "height": 256, "num_steps": 4} | more)

    def make(self) -> dict[str, Any]:
        """Press the button; what was sent, as the server reads it."""
        with self.page.expect_request("**/v2/flux-pulid") as sent:
            self.button("Make the portrait").click()
        return dict(sent.value.post_data_json)

    def problem_with(self, field: str) -> Locator:
        """What is said beside a field."""
        name = {"main_face_image": "#photo-problem", "prompt": "#prompt-problem"}
        return self.page.locator(name.get(field, f"#control-{field}-problem"))

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    # pictures

    def picture(self, number: int = 1) -> Locator:
        return self.page.get_by_role("img", name=f"Picture {number} of ")

    def gets_a_picture(self) -> Locator:
        """The first picture, once it is there and loaded, and is in the list."""
        picture = self.picture()
        expect(picture).to_be_visible(timeout=PICTURE_MS)
        expect(picture).to_have_js_property("complete", True)
        expect(self.portraits().locator("img").first).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 0
        return picture

    def portraits(self) -> Locator:
        """The entries of the list, the newest first."""
        return self.page.locator("#history-list button")

    def alert(self) -> Locator:
        return self.page.locator("#form-problem")

    def everything_kept(self) -> str:
        """By the browser, as one text."""
        return str(self.page.evaluate(KEPT))

    # what they mind

    def must_be_content(self) -> None:
        """Nothing on the console, no exception, no breach of the policy, no request to anywhere else."""
        # Chromium writes a line for every answer above 399 and every request without one, whatever
        # the page makes of it.
        known = [f"the server responded with a status of {status}" for status in self.expected]
        known += ["error: Failed to load resource: net::ERR_"] if self.expects_outages else []
        found = [line for line in self.complaints if not any(text in line for text in known)]
        assert not found, "\n".join(found)

    def axe_finds_nothing_grave(self) -> None:
        """In the page as it is now."""
        report = self.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        grave = {
            fault["id"]: [node["html"] for node in fault["nodes"]]
            for fault in report["violations"]
            if fault["impact"] in ("serious", "critical")
        }
        assert not grave, json.dumps(grave, indent=1)
        assert report["passes"], "axe has looked at nothing"

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _watch(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", f"blob:{self.url}")):
            self.complaints.append(f"a request to {request.url}")


def is_result(answer: Response) -> bool:
    """Is it the answer with the pictures of a job?"""
    return answer.request.method == "GET" and "/requests/" in answer.url and "/events" not in answer.url
