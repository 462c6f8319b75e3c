"""From a photo to a picture, in a real browser at a real server: the page's own path, and what it keeps."""

from __future__ import annotations

import base64
import re

from playwright.sync_api import expect

from browser.visitor import PHOTO, PICTURE_MS, is_result
from live_server import PHOTOS, form_and_size


def test_a_photo_and_a_prompt_become_a_picture_with_its_seed(visitor):
    visitor.asks_for_a_small_one()
    with visitor.page.expect_response(is_result, timeout=PICTURE_MS) as answer:
        sent = visitor.make()
        visitor.gets_a_picture()
    result = answer.value.json()
    assert sent.keys() == {"main_face_image", "prompt", "width", "height", "num_steps"}
    head, _, photo = sent["main_face_image"].partition(",")
    assert (head, base64.b64decode(photo)) == ("data:image/jpeg;base64", PHOTO.read_bytes())
    assert visitor.picture().get_attribute("alt") == "Picture 1 of 1: portrait, candle light"
    expect(visitor.page.get_by_text(f"Seed {result['seed']}")).to_be_visible()
    visitor.page.get_by_text("Parameters").click()
    expect(visitor.page.locator(".facts")).to_contain_text("256 × 256")
    assert {"Steps", "Width"} <= set(visitor.page.locator(".facts dt").all_inner_texts())  # as in the form


def test_progress_is_told_step_by_step_with_the_time_that_is_left(visitor):
    visitor.asks_for_a_small_one(width=384, height=384, num_steps=12)
    visitor.make()
    visitor.gets_a_picture()
    told = visitor.page.evaluate("window.told")
    steps = [int(found[1]) for text in told if (found := re.match(r"Step (\d+) of 12", text))]
    assert len(steps) >= 4
    assert steps == sorted(set(steps))
    assert any(re.fullmatch(r"Step \d+ of 12, about \d+ s left", text) for text in told)


def test_the_picture_comes_up_in_previews(visitor):
    visitor.asks_for_a_small_one(width=384, height=384, num_steps=12)
    visitor.make()
    preview = visitor.page.locator("img.preview")
    expect(preview).to_have_attribute("alt", re.compile(r"Preview of the picture after step \d+ of 12"))
    visitor.gets_a_picture()
    expect(preview).to_have_count(0)
    previews = visitor.page.evaluate("window.previews")
    assert len(set(previews)) >= 4
    assert all(preview.startswith("data:image/jpeg;base64,") for preview in previews)


def test_who_wants_calm_sees_a_preview_a_quarter_at_most(visit):
    visitor = visit(reduced_motion="reduce")
    visitor.asks_for_a_small_one(width=384, height=384, num_steps=20)
    visitor.make()
    visitor.gets_a_picture()
    assert 1 <= len(visitor.page.evaluate("window.previews")) <= 5


def test_a_portrait_that_takes_too_long_can_be_cancelled(visitor):
    visitor.asks_for_a_small_one(width=768, height=768, num_steps=20)
    visitor.make()
    expect(visitor.page.locator(".progress-text")).to_contain_text("Step ", timeout=PICTURE_MS)
    visitor.button("Cancel").click()
    expect(visitor.page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=PICTURE_MS)
    expect(visitor.page.locator("#stage").get_by_text("cancelled")).to_have_count(1)
    expect(visitor.button("Show what to change")).to_have_count(0)
    expect(visitor.portraits()).to_have_count(0)
    expect(visitor.alert()).to_be_empty()


def test_the_second_in_line_is_told_how_many_are_before_it(visitor):
    visitor.asks_for_a_small_one(width=768, height=768, num_steps=20)
    visitor.make()
    expect(visitor.portraits()).to_have_count(1)
    expect(visitor.page.locator(".progress-text")).to_contain_text("Step ", timeout=PICTURE_MS)
    visitor.make()
    visitor.make()
    expect(visitor.portraits()).to_have_count(3)
    expect(visitor.page.locator(".progress-text")).to_have_text("Waiting, 1 before this one")
    for number in range(3):
        expect(visitor.portraits()).to_have_count(3 - number)
        visitor.portraits().first.click()
        visitor.button("Cancel").click()
        expect(visitor.page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=PICTURE_MS)


def test_several_pictures_have_consecutive_seeds_and_their_own_downloads(visitor, tmp_path):
    visitor.asks_for_a_small_one(seed=2**63 - 2)
    visitor.page.get_by_role("radio", name="3").check()
    assert visitor.make()["num_outputs"] == 3
    visitor.gets_a_picture()
    for number, seed in ((1, 2**63 - 2), (2, 2**63 - 1), (3, 0)):
        figure = visitor.page.get_by_role("figure").nth(number - 1)
        expect(figure).to_contain_text(f"Seed {seed}")
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("link", name="Download picture 2").click()
    file = tmp_path / "picture"
    download.value.save_as(file)
    assert download.value.suggested_filename == f"portrait-{2**63 - 1}.webp"
    assert form_and_size(file.read_bytes()) == ("WEBP", (256, 256))


def test_the_list_outlives_a_reload_holds_no_photo_and_can_be_cleared(visitor):
    visitor.asks_for_a_small_one(seed=11)
    visitor.make()
    visitor.gets_a_picture()
    kept = visitor.everything_kept()
    assert "portrait, candle light" in kept
    assert "data:image" not in kept
    assert base64.b64encode(PHOTO.read_bytes()).decode()[:60] not in kept
    visitor.open()
    expect(visitor.portraits()).to_have_count(1)
    visitor.gets_a_picture()
    expect(visitor.page.get_by_text("Seed 11", exact=True)).to_be_visible()
    visitor.button("Clear the list").click()
    visitor.button("Clear").click()
    expect(visitor.portraits()).to_have_count(0)
    visitor.open()
    expect(visitor.portraits()).to_have_count(0)


def test_a_reload_in_the_middle_goes_on_watching(visitor):
    visitor.asks_for_a_small_one(width=768, height=768, num_steps=20)
    visitor.make()
    expect(visitor.page.locator(".progress-text")).to_contain_text("Step ", timeout=PICTURE_MS)
    visitor.open()
    expect(visitor.page.locator(".progress-text")).to_contain_text("Step ", timeout=PICTURE_MS)
    visitor.button("Cancel").click()
    expect(visitor.page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=PICTURE_MS)


def test_the_same_again_has_everything_but_the_seed(visitor):
    visitor.asks_for_a_small_one(seed=5)
    first = visitor.make()
    visitor.gets_a_picture()
    with visitor.page.expect_request("**/v2/flux-pulid") as sent:
        visitor.button("Same again, another seed").click()
    again = sent.value.post_data_json
    assert first.pop("seed") == 5
    assert again == first
    expect(visitor.portraits()).to_have_count(2)
    visitor.gets_a_picture()


def test_the_settings_of_a_portrait_can_be_used_again(visitor):
    visitor.asks_for_a_small_one(seed=5)
    visitor.make()
    visitor.gets_a_picture()
    visitor.button("Back to the defaults").click()
    visitor.say("something else")
    visitor.button("Use these settings").click()
    expect(visitor.page.get_by_label("Prompt", exact=True)).to_have_value("portrait, candle light")
    expect(visitor.control("width")).to_have_value("256")
    expect(visitor.control("seed")).to_have_value("5")


def test_a_deleted_portrait_is_gone_here_and_on_the_server(visitor, server):
    visitor.asks_for_a_small_one()
    visitor.make()
    address = visitor.gets_a_picture().get_attribute("src")
    assert server.client.get(address).status_code == 200
    visitor.button("Delete").click()
    expect(visitor.portraits()).to_have_count(0)
    assert server.client.get(address).status_code == 404


def test_a_picture_that_the_server_no_longer_has_is_told_and_its_thumbnail_stays(visitor, server):
    visitor.asks_for_a_small_one()
    with visitor.page.expect_response(is_result, timeout=PICTURE_MS) as answer:
        visitor.make()
        visitor.gets_a_picture()
    assert server.client.delete(f"/v2/requests/{answer.value.json()['request_id']}").json()["deleted"]
    visitor.page.context.new_cdp_session(visitor.page).send("Network.clearBrowserCache")
    visitor.expected = {404}
    visitor.open()
    expect(visitor.page.get_by_text("The server no longer has this picture")).to_be_visible()
    expect(visitor.picture()).to_have_js_property("naturalWidth", 256)


def test_a_look_sets_what_the_authors_of_the_model_advise(visitor):
    advice = {
        "Photo-real": {"start_step": 4},
        "Stylised": {"start_step": 1},
        "Strong style": {"start_step": 1, "guidance_scale": 1, "true_cfg": 5},
        "Closest face": {},
    }
    visitor.asks_for_a_small_one(num_steps=1, id_weight=1.2)
    for number, (look, values) in enumerate(advice.items(), start=1):
        visitor.page.get_by_role("radio", name=look).check()
        sent = visitor.make()
        assert {
            name: sent[name] for name in ("start_step", "guidance_scale", "true_cfg") if name in sent
        } == values
        assert sent["id_weight"] == 1.2
        expect(visitor.portraits()).to_have_count(number)
    visitor.set(start_step=3)
    expect(visitor.page.get_by_role("radio", name="Closest face")).not_to_be_checked()


def test_a_photo_can_be_dropped(visitor):
    photo = visitor.page.evaluate_handle(
        """(bytes) => {
            const photo = new DataTransfer();
            photo.items.add(new File([Uint8Array.from(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            return photo;
        }""",
        list((PHOTOS / "obama.jpg").read_bytes()),
    )
    visitor.page.dispatch_event("body", "drop", {"dataTransfer": photo})
    expect(visitor.page.locator("#photo-name")).to_have_text("dropped.jpg445 × 512, 42 kB")
    visitor.button("Remove").click()
    expect(visitor.page.locator("#photo-image")).to_be_hidden()


def test_a_photo_can_be_pasted(visitor):
    visitor.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(300, 200);
            canvas.getContext("2d").fillRect(0, 0, 300, 200);
            const picture = await canvas.convertToBlob();
            await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }"""
    )
    visitor.page.keyboard.press("Control+V")
    expect(visitor.page.locator("#photo-name")).to_contain_text("300 × 200")
