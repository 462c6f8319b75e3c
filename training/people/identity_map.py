"""A face embedding -> the numbers of an avatar. Fixed: the file `directions.npy` beside this one.

Each trait is the embedding's place along one direction, squashed so that every value in [-1, 1] is
equally common among people. The directions are those along which embeddings differ most between people
(`choose_directions`), scaled so that they vary by 1 and independent of each other. Nothing is rounded to
yes or no: between two photos of one person a continuous number moves a little, a yes would become a no.

Does not know: photos, pictures. Is no likeness: which direction became which trait is close to chance.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from training.drawing.avatar import TRAITS, Avatar

FILE = Path(__file__).with_name("directions.npy")


@lru_cache(maxsize=1)
def directions() -> npt.NDArray[np.float32]:
    """(traits, 512), in the order of TRAITS."""
    found: npt.NDArray[np.float32] = np.load(FILE)
    if found.shape != (len(TRAITS), 512):
        raise ValueError(f"{FILE.name} holds {found.shape}; choose_directions.py makes it anew.")
    return found


def traits(embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(n, 512) of any length but 0 -> (n, traits) in [-1, 1]."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return squashed(unit @ directions().T)


def squashed(places: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Normal numbers to even ones in [-1, 1]."""
    found: npt.NDArray[np.float64] = erf(places / np.sqrt(2))
    return found


def avatar_of(embedding: npt.NDArray[np.floating]) -> Avatar:
    """(512,), of any length but 0."""
    return avatar_from(traits(embedding[None])[0])


def avatar_from(values: npt.NDArray[np.floating]) -> Avatar:
    """(traits,)"""
    return Avatar(**dict(zip(TRAITS, map(float, values), strict=True)))
