"""Chooses the directions of the identity map once, and writes `directions.npy`.

Everything happens among the principal directions of embeddings, each scaled to vary by 1. How dark skin is
and whether there is a beard are laid where a ridge fit to some tens of labelled photos puts them; the other
traits take the first principal directions, where people differ most and photos of one person a little less
than elsewhere, the traits that cover most pixels first.

The photos in tests/photos take part, because everybody meets them first. On people it has not seen the fit
is weak; the program prints how weak. For hair, age and glasses it was next to nothing, so they are not
fitted. Labels name what is visible in those photos, nothing else.
Run: python -m training.people.choose_directions [folders of photos]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.drawing.avatar import TRAITS
from training.people.identity_map import FILE
from training.people.photos import TEST_PHOTOS, FacePhoto, faces_in, photo_files, photo_reader
from training.people.population import principal_directions

Matrix = npt.NDArray[np.float64]

SUBSPACE = 384  # the rest of the 512 carries nothing
_RIDGE = 60.0

# What covers most of a picture of 32 x 32 pixels comes first.
SALIENT = (
    "skin_tone",
    "hair_lightness",
    "hair_length",
    "beard",
    "age",
    "clothes_red",
    "clothes_gold",
    "hair_tint",
    "shirt_red",
    "shirt_gold",
    "hair_warmth",
    "hair_volume",
    "skin_warmth",
    "face_width",
    "fringe",
    "face_length",
    "hair_wave",
    "glasses",
    "parting",
    "jaw",
    "eye_colour",
    "mouth_width",
    "brow_thickness",
    "eye_size",
    "lips",
    "nose",
    "eye_spacing",
    "brow_height",
    "eye_tilt",
)

# Of a photo, from -1 to 1; photos that are not named have the trait's second value.
LABELS: Mapping[str, tuple[Mapping[str, float], float]] = {
    "skin_tone": (
        {
            "gdp#2": 0.75,
            "gdp#1": 0.35,
            "obama#0": 0.4,
            "obama2#0": 0.4,
            "obama3#0": 0.4,
            "impostor_2#0": 0.35,
        },
        -0.5,
    ),
    "beard": (
        {
            "breakingbad#0": 0.8,
            "gdp#2": 0.7,
            "gdp#1": 0.5,
            "gdp#0": 0.5,
            "breakingbad#1": 0.4,
            "einstein#0": 0.5,
            "tongue#0": 0.5,
        },
        -0.5,
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description="Choose the directions of the identity map.")
    arguments.add_argument("folders", nargs="*", type=Path)
    reader = photo_reader()
    files = photo_files([TEST_PHOTOS, *arguments.parse_args().folders])
    photos = [photo for path in files for photo in faces_in(reader, path)]
    places = np.stack([photo.embedding for photo in photos]) @ basis()
    for trait, correlation in held_out(photos, places).items():
        print(f"{trait}: correlation {correlation:+.2f} on photos left out of the fit, {len(photos)} photos")
    np.save(FILE, chosen(photos, places).astype(np.float32))
    print(f"wrote {FILE}")


def basis() -> Matrix:
    """(512, SUBSPACE): along each column embeddings of people vary by 1."""
    variances, columns = principal_directions()
    return columns[:, :SUBSPACE] / np.sqrt(variances[:SUBSPACE])


def chosen(photos: Sequence[FacePhoto], places: Matrix) -> Matrix:
    """(traits, 512), in the order of TRAITS."""
    fitted = {trait: fit(places, values(trait, photos)) for trait in LABELS}
    rest = [trait for trait in SALIENT if trait not in fitted]
    columns = [*fitted.values(), *np.eye(SUBSPACE)[: len(rest)]]
    orthogonal = independent(np.stack(columns))
    rows = dict(zip([*fitted, *rest], orthogonal @ basis().T, strict=True))
    return np.stack([rows[trait] for trait in TRAITS])


def values(trait: str, photos: Sequence[FacePhoto]) -> Matrix:
    named, other = LABELS[trait]
    return np.array([named.get(photo.name, other) for photo in photos])


def fit(places: Matrix, wanted: Matrix) -> Matrix:
    """(SUBSPACE,), by ridge regression. Not about the mean: 0 is to be the middle of all people."""
    within = places.T @ places + _RIDGE * np.eye(places.shape[1])
    return np.linalg.solve(within, places.T @ wanted).astype(np.float64)


def independent(rows: Matrix) -> Matrix:
    """Gram and Schmidt: each row keeps what the rows before it leave, at length 1."""
    columns, triangle = np.linalg.qr(rows.T)
    return (columns * np.sign(np.diag(triangle))).T.astype(np.float64)


def held_out(photos: Sequence[FacePhoto], places: Matrix) -> dict[str, float]:
    """How well the fit tells the trait of a photo it was not shown, nor another of that person."""
    alike = np.stack([photo.embedding for photo in photos])
    strangers = alike @ alike.T < 0.4
    found = {}
    for trait in LABELS:
        wanted = values(trait, photos)
        told = [places[i] @ fit(places[others], wanted[others]) for i, others in enumerate(strangers)]
        found[trait] = float(np.corrcoef(told, wanted)[0, 1])
    return found


if __name__ == "__main__":
    main()
