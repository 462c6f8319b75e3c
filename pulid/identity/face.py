"""A photo -> the face in it that is meant: ArcFace vector, aligned crop, what each of its pixels shows.

Four networks: InsightFace's detector and ArcFace recogniser, facexlib's RetinaFace (whose landmarks
align the crop) and BiSeNet (which labels it). The reference lets the two detectors choose a face
independently, the largest and the most central one, so two people can be mixed; mode "one-face"
makes InsightFace's choice count for both and also finds faces that fill the picture. On a photo of
one person the two modes agree, and where a caller names the face, it counts for both in either mode.

Does not know: files (`face_weights`), what becomes of the crop (`encoder`).
Specification: docs/spec/PULID_SPEC.md, section 3, steps 1 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from insightface.app import FaceAnalysis
from torch import Tensor

import pulid.torchvision_guard  # noqa: F401

# isort: split
from facexlib.detection.retinaface import RetinaFace
from facexlib.parsing.bisenet import BiSeNet

from pulid.engine import LARGEST_FACE, Box, FaceChoice, FaceFound, FaceMode, FaceOrder, RgbImage
from pulid.errors import NoFaceFound, SetupError, SeveralFaces
from pulid.identity import alignment
from pulid.identity.alignment import CROP_SIZE, Picture, Points
from pulid.identity.face_weights import (
    DETECTOR_SIZES,
    bisenet_from,
    load_analysis,
    retinaface_from,
    retinaface_on,
)
from pulid.state_files import read_state

MIN_SIDE = 16  # pixels after shrinking; narrower strips hold no face and upset the detectors
RETINAFACE_SCORE = 0.97  # strictly above
RETINAFACE_NMS = 0.4
# Two detectors' boxes of one face share well over half; those of neighbours next to nothing.
SAME_FACE_OVERLAP = 0.3

_NO_ROWS = np.empty((0, 15), np.float32)  # box, score, landmarks
_NO_LANDMARKS = np.empty((0, 5, 2), np.float32)

# ImageNet statistics, RGB
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, eq=False)
class FaceCrop:
    face_embedding: npt.NDArray[np.float32]  # (512,) ArcFace, raw: not L2-normalised
    aligned: RgbImage  # (512, 512, 3)
    labels: npt.NDArray[np.uint8]  # (512, 512) BiSeNet classes: 0 background, 1 skin, ... 17 hair, 18 hat


@dataclass(frozen=True, slots=True, eq=False)
class _Faces:
    """What one detector found in a picture; may be empty."""

    boxes: Points  # (n, 4)
    landmarks: Points  # (n, 5, 2)
    scores: Points  # (n,)
    picture: Picture
    # What the reference takes of this detector's faces; here it is the order "largest".
    default_order: FaceOrder

    def __len__(self) -> int:
        return len(self.boxes)

    def in_order(self, order: FaceOrder) -> npt.NDArray[np.intp]:
        order = self.default_order if order == "largest" else order
        return alignment.in_order(self.boxes, order, self.picture)

    def chosen(self, choice: FaceChoice) -> int:
        """Raises NoFaceFound or SeveralFaces."""
        if not self:
            raise NoFaceFound
        if choice.strict and len(self) > 1:
            raise SeveralFaces(
                f"The photo shows {len(self)} faces, and only photos of one person are accepted here."
                " Crop it to the face that is meant, or turn the strict check off."
            )
        if not 0 <= choice.index < len(self):
            raise NoFaceFound(
                f"The photo shows {_number_of_faces(len(self))}, and face {choice.index} was asked for,"
                " counted from 0. Choose another one, or leave the choice out."
            )
        return int(self.in_order(choice.order)[choice.index])


def _number_of_faces(count: int) -> str:
    return "1 face" if count == 1 else f"{count} faces"


class FaceReader:
    """Reads one photo at a time; not for use by several threads at once.

    `retinaface` None: InsightFace's own landmarks align the crop. `parsing_size` below 512 labels a
    reduced crop, faster and coarser; the published BiSeNet is meant for 512.
    """

    def __init__(
        self,
        analysis: FaceAnalysis,
        parser: BiSeNet,
        retinaface: RetinaFace | None,
        *,
        mode: FaceMode = "one-face",
        device: torch.device | str,
        parsing_size: int = CROP_SIZE,
    ) -> None:
        if mode == "reference" and retinaface is None:
            raise SetupError(
                "face_mode=reference needs RetinaFace, which the tiny profile does not have."
                " Set face_mode=one-face, or use a profile with the full weights."
            )
        self._detector = analysis.det_model
        self._recogniser = analysis.models["recognition"]
        self._parser = parser
        self._retinaface = retinaface
        self._mode = mode
        self._device = torch.device(device)
        self._parsing_size = parsing_size

    def to(self, device: torch.device | str) -> FaceReader:
        """Move what computes in torch. Detector and recogniser are onnxruntime's and stay on the CPU."""
        self._device = torch.device(device)
        self._parser.to(device)
        if self._retinaface is not None:
            retinaface_on(self._retinaface, device)
        return self

    @torch.inference_mode()
    def read(self, photo: RgbImage, choice: FaceChoice = LARGEST_FACE) -> FaceCrop:
        """A face of a uint8 photo (height, width, 3) of any size. Raises NoFaceFound or SeveralFaces."""
        picture = _shrunk_bgr(photo)
        faces = self._insightface_faces(picture)
        if faces:
            chosen = faces.chosen(choice)
            crop = alignment.face_crop(picture, self._crop_landmarks(faces, chosen, choice))
            arcface_input = alignment.arcface_crop(picture, faces.landmarks[chosen])
        else:
            candidates = self._retinaface_faces(picture)
            crop = alignment.face_crop(picture, candidates.landmarks[candidates.chosen(choice)])
            arcface_input = crop  # ArcFace sees the whole crop, plainly resized, as in the reference
        aligned = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        return FaceCrop(self._face_embedding(arcface_input), aligned, self._labels(aligned))

    @torch.inference_mode()
    def faces(self, photo: RgbImage) -> tuple[FaceFound, ...]:
        """Every face that `read` can choose from, in the order "largest"."""
        picture = _shrunk_bgr(photo)
        faces = self._insightface_faces(picture) or self._retinaface_faces(picture)
        height, width = picture.shape[:2]
        boxes = (faces.boxes / (width, height, width, height)).clip(0, 1)
        return tuple(
            FaceFound(box=_as_box(boxes[i]), score=float(faces.scores[i])) for i in faces.in_order("largest")
        )

    def face_embeddings(self, picture: RgbImage) -> npt.NDArray[np.float32]:
        """(n, 512): ArcFace of every face InsightFace finds, raw, in no order."""
        shrunk = _shrunk_bgr(picture)
        faces = self._insightface_faces(shrunk)
        crops = (alignment.arcface_crop(shrunk, landmarks) for landmarks in faces.landmarks)
        return np.array([self._face_embedding(crop) for crop in crops], np.float32).reshape(-1, 512)

    def _face_embedding(self, crop: Picture) -> npt.NDArray[np.float32]:
        return self._recogniser.get_feat(crop).reshape(-1)

    def _insightface_faces(self, picture: Picture) -> _Faces:
        rows, landmarks = _NO_ROWS, _NO_LANDMARKS
        sizes = DETECTOR_SIZES if self._mode == "one-face" else DETECTOR_SIZES[:1]
        for size in sizes if min(picture.shape[:2]) >= MIN_SIDE else ():
            rows, landmarks = self._detector.detect(picture, input_size=(size, size))
            if len(rows):
                break
        return _Faces(rows[:, :4], landmarks, rows[:, 4], picture, default_order="largest")

    def _retinaface_faces(self, picture: Picture) -> _Faces:
        rows = _NO_ROWS
        if self._retinaface is not None and min(picture.shape[:2]) >= MIN_SIDE:
            rows = self._retinaface.detect_faces(picture, RETINAFACE_SCORE, RETINAFACE_NMS)
        landmarks = rows[:, 5:].reshape(-1, 5, 2)
        return _Faces(rows[:, :4], landmarks, rows[:, 4], picture, default_order="central")

    def _crop_landmarks(self, faces: _Faces, chosen: int, choice: FaceChoice) -> Points:
        """The five points (5, 2) that align the crop."""
        candidates = self._retinaface_faces(faces.picture)
        if self._mode == "reference" and replace(choice, strict=False) == LARGEST_FACE:
            return candidates.landmarks[candidates.chosen(LARGEST_FACE)]
        if candidates:
            overlap = alignment.overlaps(faces.boxes[chosen], candidates.boxes)
            if overlap.max() >= SAME_FACE_OVERLAP:
                return candidates.landmarks[overlap.argmax()]
        return faces.landmarks[chosen]

    def _labels(self, aligned: RgbImage) -> npt.NDArray[np.uint8]:
        pixels = parsing_input(aligned).to(self._device)
        if self._parsing_size != CROP_SIZE:
            pixels = F.interpolate(pixels, size=(self._parsing_size,) * 2, mode="bilinear", antialias=True)
        logits = self._parser(pixels)[0]  # (1, 19, size, size); the other two outputs are for training
        labels = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        return cv2.resize(labels, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_NEAREST)


def _as_box(corners: Points) -> Box:
    left, top, right, bottom = corners.tolist()
    return Box(left=left, top=top, right=right, bottom=bottom)


def _shrunk_bgr(photo: RgbImage) -> Picture:
    return cv2.cvtColor(alignment.shrink(photo), cv2.COLOR_RGB2BGR)


def parsing_input(aligned: RgbImage) -> Tensor:
    """RGB uint8 (h, w, 3) -> normalised float32 (1, 3, h, w), as BiSeNet was trained."""
    pixels = torch.from_numpy(np.ascontiguousarray(aligned)).permute(2, 0, 1)[None].float() / 255
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def load_face_reader(
    *, antelopev2: Path, retinaface: Path, bisenet: Path, mode: FaceMode = "one-face"
) -> FaceReader:
    """The full-size reader, on the CPU.

    `antelopev2` is a directory of .onnx files, the others are checkpoint files. Reads local files only.
    Raises WeightsMissing.
    """
    return FaceReader(
        load_analysis(antelopev2),
        bisenet_from(read_state(bisenet), "cpu", file=bisenet),
        retinaface_from(read_state(retinaface), "cpu", file=retinaface),
        mode=mode,
        device="cpu",
    )
