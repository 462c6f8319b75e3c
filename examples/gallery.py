"""Makes the pictures of docs/gallery.md: what each parameter does, drawn by the profile tiny.

    python examples/gallery.py docs/pictures

On the CPU in some minutes. Each picture is one call of the library; the sheets are put together with Pillow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pulid import FluxPulidPipeline
from pulid.engine import Box, Person

SIDE = 256
MARGIN = 22  # pixels above each picture, for its label
QUALITY = 82
PHOTOS = Path(__file__).parents[1] / "tests" / "photos"
PEOPLE = ("collins", "obama", "ardern")
PROMPTS = (
    "portrait, flat",
    "portrait, comic, beach, smiling",
    "portrait, neon, city",
    "pencil sketch, serious",
    "watercolour, forest, hat",
)
Row = Sequence[tuple[str, Image.Image]]  # label and picture


def main() -> None:
    arguments = argparse.ArgumentParser(description="Make the pictures of docs/gallery.md.")
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pipe = FluxPulidPipeline.from_pretrained(profile="tiny")
    for name, rows in SHEETS.items():
        file = folder / f"{name}.webp"
        sheet(rows(pipe)).save(file, quality=QUALITY)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def people_and_prompts(pipe: FluxPulidPipeline) -> list[Row]:
    """A person a row, a prompt a column; the photo first."""
    return [
        [
            ("the photo", square(photo(name))),
            *((prompt, paint(pipe, prompt, photo(name))) for prompt in PROMPTS),
        ]
        for name in PEOPLE
    ]


def identity_weight(pipe: FluxPulidPipeline) -> list[Row]:
    weights = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
    return [
        [
            (f"id_weight {weight:g}", paint(pipe, PROMPTS[0], photo(name), id_weight=weight))
            for weight in weights
        ]
        for name in PEOPLE[:2]
    ]


def start_step(pipe: FluxPulidPipeline) -> list[Row]:
    steps = (0, 2, 4, 6, 8, 10)
    return [
        [(f"start_step {step}", paint(pipe, PROMPTS[1], photo(name), start_step=step)) for step in steps]
        for name in PEOPLE[1:]
    ]


def negative_prompt(pipe: FluxPulidPipeline) -> list[Row]:
    """Without a setting the seed chooses one; a negative prompt takes one away."""
    return [
        [
            (label, paint(pipe, "portrait, comic", photo("ardern"), seed=seed, **changes))
            for seed in (1, 2, 3)
            for label, changes in (
                ("true_cfg 1", {}),
                ('true_cfg 3, not "city"', {"true_cfg_scale": 3.0, "negative_prompt": "city, street"}),
            )
        ]
    ]


def several(pipe: FluxPulidPipeline) -> list[Row]:
    """Two photos in one person, and two people side by side in one picture."""
    two = [photo("collins"), photo("obama")]
    halves = [
        Person(photos=(0,), region=Box(left=0, top=0, right=0.5, bottom=1)),
        Person(photos=(1,), region=Box(left=0.5, top=0, right=1, bottom=1)),
    ]
    return [
        [
            ("the first photo", paint(pipe, PROMPTS[0], two[0])),
            ("the second photo", paint(pipe, PROMPTS[0], two[1])),
            ("both in one person", paint(pipe, PROMPTS[0], two)),
            ("left half, right half", paint(pipe, PROMPTS[0], two, people=halves)),
        ]
    ]


SHEETS: Mapping[str, Callable[[FluxPulidPipeline], list[Row]]] = {
    "people-and-prompts": people_and_prompts,
    "id-weight": identity_weight,
    "start-step": start_step,
    "negative-prompt": negative_prompt,
    "several": several,
}


def paint(
    pipe: FluxPulidPipeline,
    prompt: str,
    photos: Image.Image | list[Image.Image],
    seed: int = 7,
    **changes: object,
) -> Image.Image:
    given = {"height": SIDE, "width": SIDE, "seed": seed, **changes}
    return pipe(prompt, photos, **given).images[0]  # type: ignore[arg-type]


def photo(name: str) -> Image.Image:
    return Image.open(PHOTOS / f"{name}.jpg").convert("RGB")


def square(picture: Image.Image) -> Image.Image:
    """The upper middle, where the face is."""
    side = min(picture.size)
    left = (picture.width - side) // 2
    return picture.crop((left, 0, left + side, side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Rows of labelled pictures on white."""
    gap, columns = 6, max(map(len, rows))
    found = Image.new("RGB", (columns * (SIDE + gap) - gap, len(rows) * (SIDE + MARGIN)), "white")
    draw, font = ImageDraw.Draw(found), ImageFont.load_default(13)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            corner = (x * (SIDE + gap), y * (SIDE + MARGIN))
            draw.text((corner[0] + 2, corner[1] + 3), label, "#444", font)
            found.paste(picture, (corner[0], corner[1] + MARGIN))
    return found


if __name__ == "__main__":
    main()
