"""How much of a person a perfect painter could keep: the figures that chose the identity map.

A perfect painter draws exactly what the map says. Two photos of one person give two embeddings and so
two drawings; counted is how often the second drawing is nearest, at 32 x 32 pixels, to the first drawing
of its own person among those of 20 people. No model trained on these drawings can be expected to do better.

Run: python -m training.people.measure_identity [folders of photos]
The same figures each time; about a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.drawing.avatar import SETTINGS, STYLES, TRAITS, Scene
from training.drawing.renderer import render_image
from training.people.choose_directions import SALIENT
from training.people.identity_map import avatar_from, squashed, traits
from training.people.photos import (
    CHANGES,
    TEST_PHOTOS,
    FacePhoto,
    embedded,
    faces_in,
    photo_files,
    photo_reader,
)
from training.people.population import people, principal_directions, two_photos

Matrix = npt.NDArray[np.floating]
Traits = Callable[[Matrix], Matrix]

CROWD = 20
COSINES = (0.9, 0.75, 0.65, 0.5)
BANDS = ((0, 16), (16, 64), (64, 128), (128, 256), (256, 384))
SAME_PERSON = 0.4  # cosine; strangers among these photos stay below 0.36
_SIDE = 32
_SEED = 7


def main() -> None:
    arguments = argparse.ArgumentParser(description="Figures of the identity map.")
    arguments.add_argument("folders", nargs="*", type=Path)
    arguments.add_argument("--crowds", type=int, default=12, help="of 20 people, per figure")
    given = arguments.parse_args()
    reader = photo_reader()
    files = photo_files([TEST_PHOTOS, *given.folders])
    photos = [photo for path in files for photo in faces_in(reader, path)]
    changed = {
        name: [embedded(reader, change(photo.picture), photo.embedding) for photo in photos]
        for name, change in CHANGES.items()
    }
    print(f"{len(photos)} photos of {len(strangers(photos))} people")
    report_spread(photos)
    report_steadiness(photos, changed)
    report_maps(given.crowds)
    report_styles(given.crowds)
    report_photos(photos, changed)


def report_spread(photos: Sequence[FacePhoto]) -> None:
    variances, columns = principal_directions()
    real = np.stack([photos[index].embedding for index in strangers(photos)])
    print("\nvariance of real people over what the recogniser's last layer says, by principal directions")
    for first, last in BANDS:
        share = np.square(real @ columns[:, first:last]).mean() / variances[first:last].mean()
        print(f"  {first:3d}..{last:3d}  {share:.2f}")


def report_steadiness(photos: Sequence[FacePhoto], changed: Mapping[str, Sequence[Matrix | None]]) -> None:
    """Within people over between people, of one number of the map (0: the photo does not matter)."""
    print("\nnoise over spread of a trait, and cosine of the embeddings, by what happens to a photo")
    for name, embeddings in changed.items():
        pairs = [(p.embedding, e) for p, e in zip(photos, embeddings, strict=True) if e is not None]
        print(f"  {name:12s} {noise(pairs):.3f}  {cosine(pairs):.2f}  ({len(pairs)} photos)")
    pairs = [(photos[i].embedding, photos[j].embedding) for i, j in same_person(photos)]
    if pairs:
        print(f"  {'two photos':12s} {noise(pairs):.3f}  {cosine(pairs):.2f}  ({len(pairs)} pairs)")


def report_maps(crowds: int) -> None:
    columns = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((512, 512))).Q[:, : len(TRAITS)]
    maps: Mapping[str, Traits] = {
        "chosen": traits,
        "random directions": lambda x: squashed(x @ columns * np.sqrt(512)),
        "yes or no": lambda x: np.sign(traits(x)),
        "only 12 traits vary": lambda x: traits(x) * (directions_rank() < 12),
    }
    print(f"\nown person nearest among {CROWD}, flat studio, by cosine of two photos: {COSINES}")
    for name, told in maps.items():
        print(f"  {name:20s}", *(f"{ceiling(told, Scene(), c, crowds):.2f}" for c in COSINES))


def report_styles(crowds: int) -> None:
    print(f"\nthe same by style, chosen map: {COSINES}")
    for style, setting in zip(STYLES, SETTINGS, strict=False):
        scene = Scene(style=style, setting=setting)
        print(f"  {style:20s}", *(f"{ceiling(traits, scene, c, crowds):.2f}" for c in COSINES))


def report_photos(photos: Sequence[FacePhoto], changed: Mapping[str, Sequence[Matrix | None]]) -> None:
    print(f"\nreal photos: own person nearest among {CROWD}, flat studio")
    random = np.random.default_rng(_SEED)
    embeddings = np.stack([photo.embedding for photo in photos])
    drawn = thumbnails(traits(embeddings), Scene())
    crowd = strangers(photos)
    for name, others in changed.items():
        known = {index: found for index in crowd if (found := others[index]) is not None}
        queries = thumbnails(traits(np.stack([*known.values()])), Scene())
        hits = [hit(drawn, q, i, around(i, crowd, random)) for q, i in zip(queries, known, strict=True)]
        print(f"  {name:12s} {np.mean(hits):.2f}  ({len(hits)} photos)")
    alike = embeddings @ embeddings.T
    hits = []
    for i, j in same_person(photos):
        rest = [k for k in crowd if alike[i, k] < SAME_PERSON]
        for one, other in ((i, j), (j, i)):
            hits += [hit(drawn, drawn[one], other, around(other, rest, random)) for _ in range(10)]
    if hits:
        print(f"  {'two photos':12s} {np.mean(hits):.2f}  ({len(same_person(photos))} pairs)")


def ceiling(told: Traits, scene: Scene, likeness: float, crowds: int) -> float:
    """The share of people found again, over `crowds` crowds of sampled people."""
    random = np.random.default_rng(_SEED)
    found = []
    for _ in range(crowds):
        one, other = two_photos(CROWD, likeness, random)
        gallery, queries = thumbnails(told(one), scene), thumbnails(told(other), scene)
        found += [hit(gallery, query, own, range(CROWD)) for own, query in enumerate(queries)]
    return float(np.mean(found))


def thumbnails(values: Matrix, scene: Scene) -> Matrix:
    """(n, pixels)"""
    images = (render_image(avatar_from(row), scene, 4 * _SIDE, 4 * _SIDE).reduce(4) for row in values)
    return np.stack([np.asarray(image, np.float32).ravel() for image in images])


def hit(gallery: Matrix, query: Matrix, own: int, crowd: Sequence[int]) -> bool:
    members = list(crowd)
    return members[int(np.square(gallery[members] - query).sum(1).argmin())] == own


def around(own: int, crowd: Sequence[int], random: np.random.Generator) -> list[int]:
    """`own` and as many others as a crowd takes."""
    others = [index for index in crowd if index != own]
    return [own, *random.permutation(others)[: CROWD - 1].tolist()]


def strangers(photos: Sequence[FacePhoto]) -> list[int]:
    """One photo of each person."""
    kept: list[int] = []
    for index, photo in enumerate(photos):
        if all(float(photo.embedding @ photos[other].embedding) < SAME_PERSON for other in kept):
            kept.append(index)
    return kept


def same_person(photos: Sequence[FacePhoto]) -> list[tuple[int, int]]:
    """Pairs of different photos; two copies of one file are none."""
    return [
        (i, j)
        for j in range(len(photos))
        for i in range(j)
        if SAME_PERSON < float(photos[i].embedding @ photos[j].embedding) < 0.9
    ]


def noise(pairs: Sequence[tuple[Matrix, Matrix]]) -> float:
    one, other = (traits(np.stack(side)) for side in zip(*pairs, strict=True))
    spread = traits(people(2000, np.random.default_rng(_SEED))).var()
    return float(np.square(one - other).mean() / 2 / spread)


def cosine(pairs: Sequence[tuple[Matrix, Matrix]]) -> float:
    return float(np.mean([one @ other for one, other in pairs]))


def directions_rank() -> npt.NDArray[np.intp]:
    """Of each trait: how many are drawn over more pixels."""
    return np.array([SALIENT.index(trait) for trait in TRAITS])


if __name__ == "__main__":
    main()
