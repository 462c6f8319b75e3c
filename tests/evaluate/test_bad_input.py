"""Everything that is wrong with the input is said before an engine is loaded, with exit code 2."""

import os
from pathlib import Path

import pytest
from PIL import Image

SMALL = ["--width", "256", "--height", "256", "--num-steps", "2"]


@pytest.fixture
def refused(evaluate, engine, report):
    """Run the command; what it says, after making sure that nothing was loaded or left."""

    def run(*flags, **places):
        done = evaluate(*flags, **places)
        assert done.exit_code == 2, done.output
        assert "Loading" not in done.stderr
        assert not engine.closed
        assert not (report / "results.csv").exists()
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--grid", "id_weight=0.8,9"], "id_weight must be a number from 0 to 3."),
        (["--grid", "num_steps=many"], "num_steps must be a whole number from 1 to 20."),
        (["--grid", "guidance=3"], "--grid has no parameter 'guidance'. It takes id_weight, start_step"),
        (["--grid", "prompt=a"], "--grid has no parameter 'prompt'."),
        (["--grid", "seed=1,2"], "--grid has no parameter 'seed'."),
        (["--grid", "id_weight"], "'id_weight' is not of the form NAME=VALUE,VALUE"),
        (["--grid", "id_weight="], "is not of the form"),
        (["--grid", "id_weight=1,,2"], "is not of the form"),
        (["--grid", "id_weight=1,1.0"], "names a value of id_weight twice"),
        (["--grid", "id_weight=1", "--grid", "id_weight=2"], "--grid names id_weight twice"),
        (
            ["--grid", "id_weight=1", "--id-weight", "2"],
            "id_weight is given twice: by --grid and by --id-weight",
        ),
        (["--width", "100"], "width must be a whole number from 256 to 1536."),
        (["--seed", "1", "--seeds", "2"], "Give either --seed or --seeds."),
        (["--seeds", "1,x"], "seed must be a whole number"),
        (["--seeds", "1,,2"], "A report needs its seeds"),
        (["--seed", "-1"], "A report needs its seeds"),
        (["--seeds", "3,3"], "--seeds names a seed twice"),
        (["--output-format", "gif"], "output_format must be one of png, jpg, webp."),
        (["--profile", "fast"], "profile = 'fast' (from the flag --profile) is not valid"),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
    ],
)
def test_a_wrong_flag(refused, flags, words):
    assert words in refused(*flags)


def test_every_wrong_value_is_named_once(refused):
    said = refused("--grid", "id_weight=8,9", "--grid", "start_step=0,70", "--height", "1")
    for name in ("id_weight", "start_step", "height"):
        assert said.count(f"{name} must be") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b"# only\n\n   \n#comments\n", "holds no prompt"),
        (b"caf\xe9\n", "is no UTF-8 text"),
        (b"a knight\n" + b"x" * 10_001, "Prompt 2 of the file: prompt must have at most 10000 characters."),
        (b"a\0b", "Prompt 1 of the file: prompt must not contain the NUL character."),
    ],
    ids=["empty", "comments", "latin-1", "too long", "nul"],
)
def test_a_wrong_file_of_prompts(refused, prompts, content, words):
    prompts.write_bytes(content)
    assert words in refused()


def test_a_file_of_prompts_that_is_not_there(refused, tmp_path):
    assert "cannot be read: No such file" in refused(prompts=tmp_path / "absent.txt")
    assert "cannot be read: Is a directory" in refused(prompts=tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(evaluate, engine, prompts, report):
    prompts.write_bytes("﻿# a comment\r\nein Ritter im Schnee, größer\r\n".encode())
    assert evaluate(*SMALL).exit_code == 0
    assert ",ein Ritter im Schnee, größer" in (report / "results.csv").read_text().replace('"', "")
    assert "a comment" not in (report / "results.csv").read_text()


def test_a_folder_of_faces_that_holds_none(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no photo")
    (empty / ".hidden.jpg").write_text("no photo")
    assert "holds no photo, that is no .jpg, .jpeg, .png" in refused(faces=empty)
    assert "No such file" in refused(faces=tmp_path / "absent")
    assert "Not a directory" in refused(faces=empty / "notes.txt")


def test_photos_of_which_none_can_be_read(refused, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.jpg").write_text("not a picture")
    assert "The first, a.jpg: The photo is in no format" in refused(faces=folder)


def test_a_file_name_that_cannot_be_shown(refused, faces):
    Path(os.fsdecode(bytes(faces) + b"/a\xff\n.jpg")).write_bytes((faces / "obama.jpg").read_bytes())
    assert "has characters that cannot be shown. Rename it." in refused()


def test_photos_without_a_face_leave_nothing_to_paint(evaluate, engine, tmp_path):
    """Only an engine can see that."""
    folder = tmp_path / "nobody"
    folder.mkdir()
    Image.new("RGB", (200, 200), "grey").save(folder / "a.png")
    done = evaluate(faces=folder)
    assert done.exit_code == 2
    assert "No photo can be used. a.png: No face found." in done.stderr
    assert engine.closed
    assert engine.painted == 0


def test_many_pictures_are_painted_only_when_that_is_agreed(refused, evaluate, engine, report, faces):
    weights = ",".join(str(number / 100) for number in range(51))
    said = refused("--grid", f"id_weight={weights}")
    assert "This is 204 pictures: 2 faces x 2 prompts x 51 points of the grid x 1 seeds." in said
    assert "add --yes" in said
    engine.stop_after = 1
    assert evaluate("--grid", f"id_weight={weights}", *SMALL, "--yes").exit_code == 130
    assert engine.painted == 1


def test_a_grid_of_billions_is_counted_and_not_built(refused):
    names = ("id_weight", "guidance_scale", "true_cfg")
    values = ",".join(str(1 + number / 1000) for number in range(1000))
    said = refused(*(word for name in names for word in ("--grid", f"{name}={values}")))
    assert "This is 4000000000 pictures" in said


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("absent/report", "does not exist"),
        ("faces", "is not empty and holds no report"),
        ("a.txt", "File exists"),
    ],
)
def test_a_wrong_place_for_the_report(refused, tmp_path, place, words):
    (tmp_path / "a.txt").write_text("a file")
    assert words in refused(out=tmp_path / place)


def test_a_report_whose_settings_were_edited_is_left_alone(evaluate, engine, report):
    assert evaluate(*SMALL).exit_code == 0
    (report / "evaluation.json").write_text("{")
    done = evaluate(*SMALL)
    assert done.exit_code == 2
    assert "evaluation.json is no longer what this command wrote" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("photos.json", "{"),
        ("photos.json", "[]"),
        ("results.csv", "a,b\n1,2\n"),
        ("results.csv", "cell,picture,cosine,seconds\np01-f01-g01-s0,a.png,high,1\n"),
        ("results.csv", "cell,picture,cosine,seconds\np01-f01-g01-s0\n"),
    ],
)
def test_a_report_whose_results_were_edited_is_left_alone(evaluate, engine, report, name, text):
    assert evaluate(*SMALL).exit_code == 0
    (report / name).write_text(text)
    done = evaluate(*SMALL)
    assert done.exit_code == 2
    assert "no longer what this command wrote" in done.stderr
    assert (report / name).read_text() == text
