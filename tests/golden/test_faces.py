"""The face stage agrees with the recorded reference: geometry, both detectors, ArcFace's input, parsing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.model_zoo.scrfd import SCRFD

from golden import goldens
from golden.golden_fill import fill_dict, fingerprint, image_u8, normal
from pulid.identity import alignment
from pulid.identity.face import RETINAFACE_NMS, RETINAFACE_SCORE, parsing_input
from pulid.identity.face_weights import (
    DETECTOR_SCORE,
    DETECTOR_SIZES,
    bisenet_from,
    retinaface_from,
    vectron_models_dir,
)


def face_cases(kind):
    return pytest.mark.parametrize("case", goldens.cases("face", kind), ids=goldens.case_id)


def photo(spec):
    return image_u8(spec["name"], spec["h"], spec["w"], spec["seed"])


def assert_levels(got, want, tol):
    """Mean difference of two uint8 pictures, in levels: another OpenCV may round single pixels otherwise."""
    want = want.numpy().astype(int)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() <= tol


@pytest.fixture(scope="module")
def retinaface():
    return filled_network(retinaface_from, "facexlib_detection_Resnet50", "retinaface.open")


@pytest.fixture(scope="module")
def bisenet():
    return filled_network(bisenet_from, "facexlib_parsing_bisenet", "bisenet.open")


def filled_network(network_from, layout, case):
    fill = goldens.case_named("face", case)["fill"]
    state = fill_dict(goldens.shapes(layout), fill["seed"], fill["prefix"])
    assert fingerprint(state, fill["prefix"]) == fill["crc32"]
    counters = {key: torch.tensor(0) for key in goldens.shapes(layout).keys() - state.keys()}
    assert all(key.endswith("num_batches_tracked") for key in counters)
    return network_from(state | counters, "cpu")


# ---- geometry ----


@face_cases("resize_long_edge_1024")
def test_shrinking_to_the_long_edge_agrees(case):
    got = alignment.shrink(photo(case["photo"]))
    assert list(got.shape[:2]) == case["out_hw"]
    difference = np.abs(got[::16, ::16].astype(int) - goldens.expected(case, "sub").numpy())
    assert difference.max() <= case["tol_levels"]


@face_cases("center_face_align")
def test_the_most_central_face_is_aligned_as_recorded(case):
    picture = photo(case["photo"])
    rows = np.array(case["detections"], np.float32)
    chosen = alignment.in_order(rows[:, :4], "central", picture)[0]
    assert chosen == case["chosen"]
    landmarks = rows[chosen, 5:].reshape(5, 2)
    matrix = alignment.face_crop_matrix(landmarks)
    np.testing.assert_allclose(matrix, case["affine"], rtol=0, atol=case["tol_affine"])
    crop = alignment.face_crop(picture, landmarks)
    assert_levels(crop[::8, ::8], goldens.expected(case, "crop_sub"), case["tol_crop_mean_abs_levels"])


@face_cases("scrfd_detect")
def test_the_arcface_crop_agrees(case):
    recorded = case["arcface"]
    landmarks = np.array(recorded["landmarks"], np.float32)
    matrix = alignment.similarity(landmarks, alignment.ARCFACE_TEMPLATE)
    np.testing.assert_allclose(matrix, recorded["matrix"], rtol=0, atol=1e-6 * np.abs(matrix).max())
    crop = alignment.arcface_crop(photo(case["photo"]), landmarks)
    assert crop.shape == (112, 112, 3)
    assert_levels(crop[::2, ::2], goldens.expected(case, "arcface_crop_sub"), tol=0.5)


# ---- InsightFace ----


class RecordedSession:
    """Stands in for the ONNX runtime only: keeps what the network is fed, answers what was recorded."""

    def __init__(self, input_shape, outputs):
        self.inputs = [SimpleNamespace(name="input", shape=input_shape)]
        self.outputs = outputs
        self.fed = None

    def get_inputs(self):
        return self.inputs

    def get_outputs(self):
        return [SimpleNamespace(name=str(n), shape=list(o.shape)) for n, o in enumerate(self.outputs)]

    def run(self, names, feed):
        self.fed = torch.from_numpy(feed["input"])
        return self.outputs


def recorded_scrfd(case):
    index, seed = case["id"].rsplit(".", 1)[1], case["photo"]["seed"]
    scores, boxes, landmarks = [], [], []
    for level, n in enumerate(case["anchors"]):
        logit = 2.2 * normal(f"open.sc{index}.{level}", (n, 1), seed) - 7.4 + 1.2 * level
        scores.append((1 / (1 + np.exp(-logit))).astype(np.float32))
        boxes.append(3 * np.abs(normal(f"open.bb{index}.{level}", (n, 4), seed)) + 1)
        landmarks.append(2 * normal(f"open.kp{index}.{level}", (n, 10), seed))
    return RecordedSession([1, 3, "height", "width"], [*scores, *boxes, *landmarks])


@face_cases("scrfd_detect")
def test_the_detector_agrees_from_its_input_to_the_chosen_face(case):
    session = recorded_scrfd(case)
    detector = SCRFD(session=session)
    detector.prepare(0, det_thresh=DETECTOR_SCORE)
    picture = photo(case["photo"])
    rows, landmarks = detector.detect(picture, input_size=(DETECTOR_SIZES[0],) * 2)
    assert session.fed.shape == (1, 3, 640, 640)
    difference = session.fed[:, :, ::16, ::16] - goldens.expected(case, "blob_sub")
    assert difference.abs().mean() <= case["tol"]
    np.testing.assert_allclose(rows, case["boxes"], rtol=0, atol=case["tol"])
    np.testing.assert_allclose(landmarks, case["kps"], rtol=0, atol=case["tol"])
    assert alignment.in_order(rows[:, :4], "largest", picture)[0] == case["largest_index"]


@face_cases("scrfd_detect")
@pytest.mark.parametrize("which", ["aligned", "fallback"])
def test_what_arcface_is_fed_agrees(case, which):
    session = RecordedSession([1, 3, 112, 112], [np.zeros((1, 512), np.float32)])
    recogniser = ArcFaceONNX(str(vectron_models_dir() / "w600k_mbf.onnx"), session)
    assert recogniser.input_mean == case["arcface"]["input_mean"]
    if which == "aligned":
        landmarks = np.array(case["arcface"]["landmarks"], np.float32)
        recogniser.get_feat(alignment.arcface_crop(photo(case["photo"]), landmarks))
        want = goldens.expected(case, "arcface_blob_sub")
    else:  # no landmarks: the 512x512 crop, plainly resized
        recogniser.get_feat(photo(case["arcface"]["fallback_image"]))
        want = goldens.expected(case, "fallback_blob_sub")
    assert session.fed.shape == (1, 3, 112, 112)
    assert (session.fed[:, :, ::4, ::4] - want).abs().mean() <= case["tol"]


# ---- facexlib ----


@face_cases("retinaface_net")
def test_the_retinaface_network_agrees(case, retinaface):
    with torch.inference_mode():
        outputs = retinaface(goldens.inputs(case)["image"])
    for name, got in zip(("loc", "conf", "landms"), outputs, strict=True):
        goldens.assert_close(got, goldens.expected(case, name), case["tol"], name)


@face_cases("retinaface_decode")
def test_retinaface_detections_are_decoded_as_recorded(case, retinaface, monkeypatch):
    loc, logits, landmarks = (goldens.tensor_input(case[name]) for name in ("loc", "class_logits", "landms"))
    monkeypatch.setattr(retinaface, "forward", lambda image: (loc, logits.softmax(dim=-1), landmarks))
    picture = np.zeros((*case["image_hw"], 3), np.uint8)
    with torch.inference_mode():
        rows = retinaface.detect_faces(picture, RETINAFACE_SCORE, RETINAFACE_NMS)
    assert len(rows) == case["n"]
    np.testing.assert_allclose(rows, case["rows"], rtol=0, atol=case["tol"])


def test_retinaface_is_fed_the_picture_at_its_own_size_less_the_bgr_mean(retinaface, monkeypatch):
    fed = []

    def forward(image):
        fed.append(image)
        return torch.zeros(1, 12, 4), torch.zeros(1, 12, 2), torch.zeros(1, 12, 10)

    monkeypatch.setattr(retinaface, "forward", forward)
    picture = np.full((16, 16, 3), (104, 118, 125), np.uint8)
    with torch.inference_mode():
        assert len(retinaface.detect_faces(picture, RETINAFACE_SCORE, RETINAFACE_NMS)) == 0
    assert fed[0].shape == (1, 3, 16, 16)
    assert fed[0][0, :, 3, 5].tolist() == [0, 1, 2]


@face_cases("bisenet")
@torch.inference_mode()
def test_the_parser_agrees(case, bisenet):
    inputs = goldens.inputs(case)
    small = bisenet(inputs["image"])[0]
    goldens.assert_close(small[..., ::2, ::2], goldens.expected(case, "logits_sub"), case["tol"], "logits")
    large = bisenet(inputs["image512"])[0]
    goldens.assert_close(
        large[..., ::16, ::16], goldens.expected(case, "logits512_sub"), case["tol"], "logits512"
    )
    labels = large.argmax(dim=1)
    agreement = labels[:, ::4, ::4] == goldens.expected(case, "argmax512_sub")
    assert agreement.float().mean() > 0.9999
    histogram = torch.bincount(labels.flatten(), minlength=19) - torch.tensor(case["labels_hist_512"])
    assert histogram.abs().max() <= 8  # pixels; other processors may break near-ties otherwise


@pytest.mark.parametrize("case", goldens.cases("modules", "id_embedding_tail"), ids=goldens.case_id)
def test_what_the_parser_is_fed_agrees(case):
    aligned = photo(case["aligned_bgr"])[..., ::-1]
    got = parsing_input(aligned)
    assert got.shape == (1, 3, 512, 512)
    want = goldens.expected(case, "parse_input_sub")
    goldens.assert_close(got[..., ::16, ::16], want, case["tol_images"], "parse_input")
