"""From an aligned face and its label map to identity tokens, picture by picture, at real size."""

import numpy as np
import pytest
import torch

from golden import golden_fill, goldens
from pulid.identity.encoder import (
    IdentityEncoder,
    normalise_for_clip,
    resize_for_vision,
    white_background_gray_face,
)
from pulid.identity.face import FaceCrop

CASES = goldens.cases("modules", "id_embedding_tail")
FLOAT16 = 1e-3  # one picture is stored in half precision


@pytest.fixture(scope="module")
def encoder(real_eva, real_idformer):
    """Per case, since the way of resizing differs; they share the networks."""

    def of(case):
        return IdentityEncoder(
            real_eva, real_idformer, device="cpu", dtype=torch.float32, antialias=case["resize_antialias"]
        )

    return of


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_pictures_on_the_way_are_the_recorded_ones(case):
    face = recorded_face(case)
    aligned = torch.from_numpy(face.aligned).permute(2, 0, 1).unsqueeze(0) / 255
    gray = white_background_gray_face(aligned, torch.from_numpy(face.labels))
    small = resize_for_vision(gray, 336, antialias=case["resize_antialias"])
    normalised = normalise_for_clip(small)
    for name, image in (("face_features", gray), ("resized", small), ("eva_input", normalised)):
        want = goldens.expected(case, f"{name}_sub")
        goldens.assert_close(image[..., ::8, ::8], want, case["tol_images"], name)
    if "eva_input" in case["outputs"]:
        goldens.assert_close(normalised, goldens.expected(case, "eva_input").float(), FLOAT16)


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_condition_and_tokens_of_a_face_are_the_recorded_ones(case, encoder, real_idformer):
    seen = []
    with real_idformer.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        tokens = encoder(case).encode(recorded_face(case))
    goldens.assert_close(seen[0], goldens.expected(case, "id_cond"), case["tol"], "id_cond")
    goldens.assert_close(tokens, goldens.expected(case, "id_embedding"), case["tol"])


@pytest.mark.parametrize("case", CASES, ids=goldens.case_id)
def test_the_tokens_of_nobody_are_the_recorded_ones(case, encoder):
    goldens.assert_close(
        encoder(case).unconditional(), goldens.expected(case, "uncond_id_embedding"), case["tol"]
    )


def recorded_face(case):
    """What face analysis hands over in this case: the largest face's embedding, or the fallback's."""
    image, labels = case["aligned_bgr"], case["labels"]
    bgr = golden_fill.image_u8(image["name"], 512, 512, image["seed"])
    largest = max(case["faces"], key=lambda face: area(*face["bbox"]), default=None)
    embedding = case["fallback_feat"] if largest is None else largest["embedding"]
    seed, block = labels["seed"], labels["block"]
    return FaceCrop(
        face_embedding=goldens.tensor_input(embedding).reshape(512).numpy(),
        aligned=bgr[:, :, ::-1].copy(),
        labels=golden_fill.labels(labels["name"], 512, 512, labels["n"], seed, block).astype(np.uint8),
    )


def area(x1, y1, x2, y2):
    return (x2 - x1) * (y2 - y1)
