"""One report beside another of the same cells: PSNR, LPIPS and the change of the cosine; refusals by name."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from evaluate.conftest import PHOTOS
from PIL import Image

from pulid.errors import WeightsMissing
from pulid.lpips import BACKBONE, HEADS, WIDTHS, Lpips, load_lpips
from server.evaluation.comparison import psnr

SMALL = ["--width", "256", "--height", "256", "--num-steps", "2", "--grid", "id_weight=0.5,1"]
CELLS = 4  # with two faces and one prompt

# ---- LPIPS ----


def filled(shape, number):
    """The same on any machine."""
    values = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(values * 0.37 + number) * 0.1).float().reshape(shape)


def pictures(height, width):
    places = np.arange(height * width * 3).reshape(height, width, 3)
    one = (places * 37 % 256).astype(np.uint8)
    return one, (one.astype(int) + places * 11 % 41 - 20).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files as they are published, with numbers of our own."""
    folder = tmp_path_factory.mktemp("lpips")
    layers = {f"features.{n}": layer for n, layer in Lpips().features.items()}
    shapes = {
        f"{name}.{part}": getattr(layer, part).shape
        for name, layer in layers.items()
        for part in ("weight", "bias")
    }
    shapes["classifier.1.weight"] = (2, 2)
    torch.save({name: filled(shape, n) for n, (name, shape) in enumerate(shapes.items())}, folder / BACKBONE)
    heads = {f"lin{n}.model.1.weight": filled((1, width, 1, 1), n).abs() for n, width in enumerate(WIDTHS)}
    torch.save(heads, folder / HEADS)
    return folder


RECORDED = {(64, 64): 0.03304040804505348, (96, 128): 0.005201066378504038, (256, 224): 0.012912122532725334}


@pytest.mark.parametrize("size", RECORDED)
def test_the_distance_is_that_of_the_package_lpips(weights, size):
    """Recorded with lpips 0.1.4 and torchvision 0.28.0 on these very weights: `LPIPS(net="alex")`, a CPU."""
    one, other = pictures(*size)
    network = load_lpips(weights)
    assert network.distance(one, other) == pytest.approx(RECORDED[size], rel=1e-4)
    assert network.distance(one, one) == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / HEADS).unlink(), "lacks alex.pth"),
        (lambda folder: shutil.copy(folder / BACKBONE, folder / HEADS), "holds no heads of LPIPS"),
        (lambda folder: shutil.copy(folder / HEADS, folder / BACKBONE), "is no AlexNet"),
    ],
    ids=["no heads", "other heads", "another backbone"],
)
def test_other_files_are_refused(weights, tmp_path, spoil, words):
    folder = shutil.copytree(weights, tmp_path / "weights")
    spoil(folder)
    with pytest.raises(WeightsMissing, match=words):
        load_lpips(folder)


def test_psnr_is_that_of_the_definition():
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(grey, grey) is None
    assert psnr(grey, grey + 1) == pytest.approx(20 * math.log10(255), abs=1e-3)


# ---- two reports ----


@pytest.fixture(scope="module")
def painted(with_faces, run_command, tmp_path_factory):
    """A complete report, to be copied."""
    folder = tmp_path_factory.mktemp("painted")
    (folder / "faces").mkdir()
    for name in ("ardern.jpg", "obama.jpg"):
        shutil.copy(PHOTOS / name, folder / "faces")
    (folder / "prompts.txt").write_text("portrait\n")
    with with_faces():
        done = run_command(folder / "faces", folder / "prompts.txt", folder / "report", *SMALL)
    assert done.exit_code == 0, done.output
    return folder / "report"


@pytest.fixture
def other(painted, tmp_path):
    """The same report, each picture one level brighter where it can be."""
    folder = shutil.copytree(painted, tmp_path / "other")
    for file in (folder / "pictures").iterdir():
        pixels = np.asarray(Image.open(file))
        Image.fromarray(pixels + (pixels < 255)).save(file)
    return folder


@pytest.fixture
def compare(evaluate, painted, report, prompts, engine):
    """The command, in a folder that holds the complete report already."""
    prompts.write_text("portrait\n")
    shutil.copytree(painted, report)
    return lambda *flags: evaluate(*SMALL, *flags)


def test_each_pair_is_measured_and_no_engine_is_loaded(compare, report, other, weights):
    done = compare("--compare-with", other, "--lpips-weights", weights)
    assert done.exit_code == 0, done.output
    assert "Loading" not in done.stderr
    told = json.loads((report / "comparison.json").read_text())
    assert (told["pairs"], told["equal"]) == (CELLS, 0)
    assert told["psnr_db"]["worst"] == pytest.approx(20 * math.log10(255), abs=0.2)
    assert 0 < told["lpips"]["mean"] <= told["lpips"]["worst"]
    assert told["cosine_change"] == {"mean": 0, "median": 0, "worst": 0}
    assert [row["pairs"] for row in told["by_point"]] == [CELLS // 2] * 2
    with (report / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["cell"] for row in rows}) == CELLS
    assert all(float(row["psnr_db"]) > 48 and float(row["lpips"]) > 0 for row in rows)
    page = (report / "index.html").read_text()
    assert "Compared with another report" in page
    assert "LPIPS" in page


def test_equal_pictures_are_counted_and_without_weights_there_is_no_lpips(compare, report, painted):
    assert compare("--compare-with", painted).exit_code == 0
    told = json.loads((report / "comparison.json").read_text())
    assert (told["equal"], told["psnr_db"], told["lpips"]) == (CELLS, None, None)
    assert f"of which {CELLS} are equal" in (report / "index.html").read_text()


def test_the_change_of_the_cosine_is_ours_less_theirs(compare, report, other):
    results = other / "results.csv"
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["cosine"] = str(round(float(rows[0]["cosine"]) + 0.25, 6))
    rows[1]["cosine"] = ""  # no face: no change either
    with results.open("w", newline="") as file:
        lines = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
    assert compare("--compare-with", other).exit_code == 0
    told = json.loads((report / "comparison.json").read_text())
    assert told["cosine_change"] == {"mean": round(-0.25 / 3, 6), "median": 0, "worst": -0.25}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seed", "3"], "different: seeds"),
        (["--guidance-scale", "2"], "different: parameters"),
        (["--output-format", "webp"], "needs pictures without loss"),
    ],
)
def test_a_report_of_other_pictures_is_refused_before_anything_is_painted(
    evaluate, engine, prompts, other, report, flags, words
):
    prompts.write_text("portrait\n")
    done = evaluate(*SMALL, *flags, "--compare-with", other)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not report.exists()


def test_what_is_no_complete_report_is_refused(compare, other, tmp_path):
    assert "holds no report of this command" in compare("--compare-with", tmp_path).stderr
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "complete": False}))
    assert "is not complete" in compare("--compare-with", other).stderr


def test_weights_without_a_report_to_compare_with_are_refused(compare, weights):
    done = compare("--lpips-weights", weights)
    assert done.exit_code == 2
    assert "add --compare-with" in done.stderr


def test_a_picture_that_is_gone_or_of_another_size_is_named(compare, other):
    file = sorted((other / "pictures").iterdir())[0]
    Image.new("RGB", (64, 64)).save(file)
    assert f"{file} has another size" in compare("--compare-with", other).stderr
    file.unlink()
    assert f"The picture {file} cannot be read" in compare("--compare-with", other).stderr
