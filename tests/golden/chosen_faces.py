"""Chosen faces of a group photo: insightface's sample picture of six people, and who reads it."""

from pathlib import Path

import insightface
import numpy as np
from PIL import Image

from pulid.engine import FaceChoice
from pulid.identity.face import FaceReader
from pulid.seeded import seeded_face_parser

ORDERS = ("largest", "left-to-right", "central")


def crowd():
    path = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    return np.array(Image.open(path).convert("RGB"))


def tiny_reader(analysis):
    return FaceReader(analysis, seeded_face_parser(), None, mode="one-face", device="cpu", parsing_size=32)


def read_face(reader, picture, case):
    """What is recorded of one chosen face: its embedding (512,), and each 16th pixel of its crop."""
    face = reader.read(picture, FaceChoice(index=case["index"], order=case["order"]))
    return {"face_embedding": face.face_embedding, "aligned_sub": face.aligned[::16, ::16]}
