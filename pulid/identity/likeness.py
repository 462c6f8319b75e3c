"""How much two faces are alike: the cosine of their ArcFace embeddings.

1 is the same picture of a face; with a good recogniser two photos of one person are usually above
0.4 and two people below 0.3. Pure numpy. Does not know: photos, detectors, who asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pulid.engine import FaceEmbedding


def unit(face_embedding: npt.NDArray[np.floating]) -> FaceEmbedding:
    """The same direction at length 1. ArcFace means directions only."""
    exact = face_embedding.astype(np.float64)
    return (exact / np.linalg.norm(exact)).astype(np.float32)


def mean_face(faces: Sequence[FaceEmbedding]) -> FaceEmbedding | None:
    """The direction between embeddings of length 1; None where there are none."""
    return unit(np.mean(faces, axis=0, dtype=np.float64)) if faces else None


def similarities(
    found: npt.NDArray[np.float32], references: Sequence[FaceEmbedding | None]
) -> tuple[float | None, ...]:
    """For each reference the cosine with the nearest of the faces found (n, 512).

    None for a reference that is not known, and for all of them where n is 0.
    """
    if not len(found):
        return (None,) * len(references)
    directions = np.stack([unit(face) for face in found])
    return tuple(None if face is None else float((directions @ unit(face)).max()) for face in references)
