"""The geometry between a photo and a face crop: resizing, choosing a face, warping to a template.

Pure numpy and OpenCV. Pictures are uint8 BGR (height, width, 3), as OpenCV and both detectors want
them; boxes are (x1, y1, x2, y2) and landmarks (5, 2) in pixels: left eye, right eye, nose, left and
right corner of the mouth as seen in the picture. Knows no network and no file.
Constants and conventions: docs/spec/PULID_SPEC.md, section 3.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pulid.engine import FaceOrder
from pulid.errors import NoFaceFound

Picture = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating]

LONG_EDGE = 1024  # pixels
ARCFACE_SIZE = 112
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
CROP_SIZE = 512
CROP_TEMPLATE = np.array(  # facexlib's: FFHQ faces at 512x512
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
CROP_BORDER = (135, 133, 132)  # BGR, the gray facexlib fills the outside with


def shrink(photo: Picture) -> Picture:
    """Bring the long edge down to LONG_EDGE; the short one is truncated to whole pixels, at least 1."""
    height, width = photo.shape[:2]
    factor = LONG_EDGE / max(height, width)
    if factor >= 1:
        return photo
    size = max(1, int(width * factor)), max(1, int(height * factor))
    return cv2.resize(photo, size, interpolation=cv2.INTER_LANCZOS4)


def in_order(boxes: Points, order: FaceOrder, picture: Picture) -> npt.NDArray[np.intp]:
    """Indices of the boxes (n, 4). Of equally large ones the last comes first, else the first does."""
    if order == "largest":
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return areas.argsort(kind="stable")[::-1]
    centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
    if order == "left-to-right":
        return centres[:, 0].argsort(kind="stable")
    height, width = picture.shape[:2]
    return np.linalg.norm(centres - (width / 2, height / 2), axis=1).argsort(kind="stable")


def overlaps(box: Points, boxes: Points) -> Points:
    """Intersection over union of one box (4,) with each of (n, 4)."""
    corners = np.concatenate([np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:4])], axis=1)
    shared = _area(corners)
    return shared / np.maximum(_area(box[None]) + _area(boxes) - shared, 1e-9)


def _area(boxes: Points) -> Points:
    return (boxes[:, 2:4] - boxes[:, :2]).clip(0).prod(axis=1)


def arcface_crop(picture: Picture, landmarks: Points) -> Picture:
    """The face as ArcFace wants it: 112x112, five landmarks on the template, black outside."""
    matrix = similarity(landmarks, ARCFACE_TEMPLATE)
    return cv2.warpAffine(picture, matrix, (ARCFACE_SIZE, ARCFACE_SIZE), borderValue=0.0)


def face_crop(picture: Picture, landmarks: Points) -> Picture:
    """The face as facexlib aligns it: 512x512. Raises NoFaceFound when the landmarks coincide."""
    matrix = face_crop_matrix(landmarks)
    return cv2.warpAffine(picture, matrix, (CROP_SIZE, CROP_SIZE), borderValue=CROP_BORDER)


def face_crop_matrix(landmarks: Points) -> Points:
    """(2, 3) similarity by least median of squares, which one bad landmark of five cannot bend."""
    matrix, _ = cv2.estimateAffinePartial2D(landmarks, CROP_TEMPLATE, method=cv2.LMEDS)
    if matrix is None:
        raise NoFaceFound
    return matrix


def similarity(points: Points, template: Points) -> Points:
    """The rotation, scale and shift (2, 3) that bring `points` nearest to `template` in least squares.

    As complex numbers a similarity is z -> turn * z + shift, an ordinary linear regression.
    Raises NoFaceFound when the points coincide.
    """
    source, target = (xy.astype(np.float64) @ (1, 1j) for xy in (points, template))
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if spread == 0:
        raise NoFaceFound
    turn = np.vdot(centred, target) / spread
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
