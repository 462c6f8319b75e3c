"""What a finished report holds: pictures, numbers and the page, for an engine whose pictures show faces."""

import csv
import json
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pulid.engine import GenerationRequest
from pulid.seeded import seeded_engine
from server.cli.main import app
from server.driving import run_alone
from server.security.image_decode import decode_image

PHOTOS = Path(__file__).parents[1] / "photos"
GRID = ["--grid", "id_weight=0,0.5,1.05", "--seeds", "3,4"]
SMALL = ["--width", "256", "--height", "256", "--num-steps", "2"]
HOSTILE = '<script>alert(1)</script> "quoted" & <b>bold</b>'
VOID = {"meta", "img", "br", "link", "hr", "input"}


def rows_of(report):
    with (report / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary_of(report):
    return json.loads((report / "summary.json").read_text())


def cosines(rows, **wanted):
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return [float(row["cosine"]) for row in chosen if row["cosine"]]


class Page(HTMLParser):
    """The tags and texts of a page; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []  # (name, attributes)
        self.texts = []
        self._open = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two people, one photo of nobody, one broken file, and one that is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("ardern.jpg", "obama.jpg"):
        shutil.copy(PHOTOS / name, folder)
    Image.new("RGB", (200, 200), "grey").save(folder / "nobody.png")
    (folder / "broken.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def finished(with_faces, run_command, photos, tmp_path_factory):
    """A complete report. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("evaluation")
    prompts = folder / "prompts.txt"
    prompts.write_text(f"# portraits\nportrait, neon color\n\n  {HOSTILE}  \n")
    with with_faces() as engine:
        done = run_command(photos, prompts, folder / "report", *GRID, *SMALL)
    assert done.exit_code == 0, done.output
    assert engine.closed
    return folder / "report"


def test_there_is_a_row_and_a_picture_for_every_cell(finished):
    rows = rows_of(finished)
    assert len(rows) == 2 * 2 * 3 * 2  # faces, prompts, weights, seeds
    assert len({row["cell"] for row in rows}) == len(rows)
    assert {row["face"] for row in rows} == {"ardern.jpg", "obama.jpg"}
    assert {row["prompt"] for row in rows} == {"portrait, neon color", HOSTILE}
    assert {(row["id_weight"], row["seed"]) for row in rows} == {
        (weight, seed) for weight in ("0.0", "0.5", "1.05") for seed in ("3", "4")
    }
    for row in rows:
        assert decode_image((finished / row["picture"]).read_bytes()).shape == (256, 256, 3)
        assert float(row["seconds"]) > 0


def test_the_cosines_are_those_of_the_engine_for_the_saved_pictures(finished, tiny, photos):
    references = {}
    for name in ("ardern.jpg", "obama.jpg"):
        photo = decode_image((photos / name).read_bytes())
        request = GenerationRequest(
            prompt="",
            seed=0,
            id_images=(photo,),
            width=256,
            height=256,
            num_steps=1,
            measures_similarity=True,
        )
        references[name] = run_alone(tiny, request).reference_faces
    for row in rows_of(finished):
        saved = decode_image((finished / row["picture"]).read_bytes())
        (expected,) = tiny.likeness(saved, references[row["face"]])
        assert expected is not None
        assert float(row["cosine"]) == pytest.approx(expected, abs=1e-5)


def test_a_stranger_scores_low_and_the_person_high(finished):
    rows = rows_of(finished)
    assert max(cosines(rows, id_weight="0.0")) < 0.3
    assert min(cosines(rows, id_weight="1.05")) > 0.5


def test_the_summary_says_what_the_rows_say(finished):
    rows, summary = rows_of(finished), summary_of(finished)
    assert (summary["planned"], summary["painted"], summary["complete"]) == (24, 24, True)
    groups = [(summary["cosine"], {})]
    groups += [(found, {"id_weight": str(found["value"])}) for found in summary["by_grid"]["id_weight"]]
    groups += [(found, {"face": found["face"]}) for found in summary["by_face"]]
    groups += [(found, {"prompt": found["prompt"]}) for found in summary["by_prompt"]]
    assert len(groups) == 1 + 3 + 2 + 2
    for found, wanted in groups:
        numbers = cosines(rows, **wanted)
        assert found["pictures"] == len(numbers)
        assert found["mean"] == pytest.approx(statistics.fmean(numbers), abs=1e-6)
        assert found["median"] == pytest.approx(statistics.median(numbers), abs=1e-6)
        assert found["min"] == pytest.approx(min(numbers), abs=1e-6)
        assert found["without_face"] == 0


def test_photos_that_cannot_be_used_are_reported_and_the_rest_is_painted(finished):
    left_out = summary_of(finished)["left_out"]
    assert left_out.keys() == {"broken.jpg", "nobody.png"}
    assert left_out["nobody.png"].startswith("No face found.")
    assert "in no format" in left_out["broken.jpg"]
    page = (finished / "index.html").read_text()
    assert all(name in page for name in left_out)


def test_how_alike_the_photos_are_is_the_yardstick(finished):
    summary = summary_of(finished)
    (pair,) = summary["photo_to_photo"]
    assert {pair["one"], pair["other"]} == {"ardern.jpg", "obama.jpg"}
    assert pair["cosine"] < 0.3
    assert summary["by_face"][0]["nearest_other"] == {"photo": "obama.jpg", "cosine": pair["cosine"]}


def test_two_photos_of_one_person_are_seen_to_be_alike(engine, evaluate, faces, report):
    same = decode_image((faces / "obama.jpg").read_bytes())[:, ::-1]
    Image.fromarray(same).save(faces / "same.png")
    assert evaluate(*SMALL).exit_code == 0
    by_face = {row["face"]: row["nearest_other"] for row in summary_of(report)["by_face"]}
    assert by_face["same.png"]["photo"] == "obama.jpg"
    assert by_face["same.png"]["cosine"] > 0.8


def test_the_page_is_well_formed_and_holds_every_picture(finished):
    page = Page((finished / "index.html").read_text())
    sources = {image["src"] for image in page.all("img")}
    photos = {f"photos/{file.name}" for file in (finished / "photos").iterdir()}
    assert len(photos) == 2
    assert sources == photos | {row["picture"] for row in rows_of(finished)}
    assert all((finished / source).is_file() for source in sources)
    assert {link["href"] for link in page.all("a")} >= {row["picture"] for row in rows_of(finished)}


def test_the_page_needs_no_network_and_no_script(finished):
    page = Page((finished / "index.html").read_text())
    assert not page.all("script")
    assert not page.all("link")
    addresses = [value for _, attributes in page.tags for value in attributes.values() if value]
    assert not [address for address in addresses if "//" in address]
    assert "url(" not in (finished / "index.html").read_text()


def test_a_prompt_is_text_on_the_page_and_never_markup(finished):
    source = (finished / "index.html").read_text()
    assert "<script" not in source
    assert "<b>bold" not in source
    assert any(HOSTILE in text for text in Page(source).texts)


def test_the_name_of_a_photo_is_never_markup(engine, evaluate, faces, report):
    (faces / "obama.jpg").rename(faces / "a\"><img src=x onerror='x'>.jpg")
    assert evaluate(*SMALL).exit_code == 0
    page = Page((report / "index.html").read_text())
    assert not [image for image in page.all("img") if "onerror" in image or image["src"] == "x"]


def test_pictures_have_alternative_texts_and_tables_have_headers(finished):
    page = Page((finished / "index.html").read_text())
    alternatives = [image["alt"] for image in page.all("img") if image["src"].startswith("pictures/")]
    assert "Picture of obama.jpg, prompt 2, id_weight 0.5, seed 4" in alternatives
    assert len(set(alternatives)) == len(alternatives)
    assert len(page.all("caption")) == len(page.all("table")) > 4
    assert {header.get("scope") for header in page.all("th")} == {"col", "row"}
    assert page.all("html") == [{"lang": "en"}]
    assert all(frame["tabindex"] == "0" for frame in page.all("div") if frame.get("role") == "region")


def test_the_page_says_what_the_profile_says_of_its_pictures(finished):
    source = (finished / "index.html").read_text()
    assert "a small model trained on drawings; shows how the server behaves, not what FLUX paints" in source
    assert "These pictures say nothing about likeness." in source


def test_a_picture_without_a_face_has_no_cosine_and_is_counted(evaluate, report, monkeypatch):
    """Random weights paint patterns."""
    monkeypatch.setattr("server.engines.create_engine", lambda device, **choice: seeded_engine())
    done = evaluate("--width", "256", "--height", "256", "--num-steps", "1")
    assert done.exit_code == 0, done.output
    assert [row["cosine"] for row in rows_of(report)] == [""] * 4
    numbers = {"pictures": 4, "without_face": 4, "mean": None, "median": None, "min": None}
    assert summary_of(report)["cosine"] == numbers
    assert (report / "index.html").read_text().count("no face found") == 4


def test_the_pictures_are_those_that_generate_paints(evaluate, faces, prompts, report, tmp_path):
    small = ["--width", "256", "--height", "256", "--num-steps", "2", "--seed", "9"]
    assert evaluate(*small, "--grid", "id_weight=0.7,1.4").exit_code == 0
    (row,) = (
        row
        for row in rows_of(report)
        if (row["face"], row["prompt_number"], row["id_weight"]) == ("obama.jpg", "2", "1.4")
    )
    out = tmp_path / "alone.png"
    words = ["generate", "--face", str(faces / "obama.jpg"), "--prompt", "a knight in the snow"]
    words += ["--out", str(out), "--profile", "tiny", "--id-weight", "1.4", *small]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (report / row["picture"]).read_bytes() == out.read_bytes()


def test_two_grids_are_crossed(engine, evaluate, report):
    done = evaluate(
        *SMALL, "--grid", "id_weight=0.5,1", "--grid", "start_step=0,1,2", "--output-format", "webp"
    )
    assert done.exit_code == 0, done.output
    rows, summary = rows_of(report), summary_of(report)
    assert len({(row["id_weight"], row["start_step"]) for row in rows}) == 6
    assert summary["by_grid"].keys() == {"id_weight", "start_step"}
    assert [found["pictures"] for found in summary["by_point"]] == [4] * 6
    assert {row["picture"].rpartition(".")[2] for row in rows} == {"webp"}


def test_one_photo_alone_has_no_other_to_compare_with(engine, evaluate, faces, report):
    (faces / "ardern.jpg").unlink()
    assert evaluate(*SMALL).exit_code == 0
    assert summary_of(report)["photo_to_photo"] == []
    Page((report / "index.html").read_text())


def test_the_report_may_lie_anywhere(finished, tmp_path):
    """Its links are relative."""
    moved = shutil.copytree(finished, tmp_path / "elsewhere")
    page = Page((moved / "index.html").read_text())
    links = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert not [link for link in links if link.startswith("/") or not (moved / link).is_file()]
