"""Several photos, several people and chosen faces: recorded here, and held against plain computation.

The plain computation knows nothing of folding, placing or summing: loops over people and heads in
float64, masks counted on a fine raster of the canvas, faces sorted by hand.
"""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from skimage.transform import SimilarityTransform

from golden import flux_models, golden_fill, goldens, people_loops
from golden.chosen_faces import crowd, read_face, tiny_reader
from pulid.flux import latents, sampling
from pulid.identity.alignment import ARCFACE_TEMPLATE, CROP_BORDER, CROP_TEMPLATE
from pulid.identity.attention import FoldedIdentity, ReferenceIdentity
from pulid.identity.face_weights import vectron_analysis
from pulid.identity.people import seen_together

LOOPS = goldens.cases("people", "people_loop")
FACES = goldens.cases("people", "face_choice")


# ---- recorded ----


@pytest.mark.parametrize("form", [ReferenceIdentity, FoldedIdentity])
@pytest.mark.parametrize("case", LOOPS, ids=goldens.case_id)
@torch.inference_mode()
def test_a_loop_with_people_is_the_recorded_one(case, form):
    packed = people_loops.denoise(case, form)
    goldens.assert_close(packed, goldens.expected(case, "latents_packed"), case["tol"])


@pytest.mark.parametrize("case", LOOPS, ids=goldens.case_id)
@torch.inference_mode()
def test_folded_equals_the_reference_form_within_1e_5(case):
    folded, reference = (people_loops.denoise(case, form) for form in (FoldedIdentity, ReferenceIdentity))
    goldens.assert_close(folded, reference, 1e-5)


def test_the_recorded_loops_differ_from_each_other():
    """Guided ones from guided ones; the smallest difference is a soft mask's or a late step's."""
    for guided in (True, False):
        packed = [
            goldens.expected(case, "latents_packed") for case in LOOPS if (case["true_cfg"] > 1) == guided
        ]
        for number, one in enumerate(packed):
            for other in packed[:number]:
                assert golden_fill.compare(one, other)[0] > 20 * LOOPS[0]["tol"]


# ---- the same, computed plainly ----


@pytest.mark.parametrize("case", LOOPS, ids=goldens.case_id)
@torch.inference_mode()
def test_a_recorded_loop_is_what_plain_loops_compute(case):
    x = goldens.inputs(case)
    packed = latents.pack(x["noise"])
    times = sampling.timesteps(case["num_steps"], packed.shape[1])
    for step, (now, after) in enumerate(pairwise(times)):
        velocity = plain_velocity(case, packed, now, step, x["txt"], x["vec"], nobody=False)
        if case["true_cfg"] != 1.0 and step >= case["timestep_to_start_cfg"]:
            negative = plain_velocity(case, packed, now, step, x["neg_txt"], x["neg_vec"], nobody=True)
            velocity = negative + case["true_cfg"] * (velocity - negative)
        packed = packed + (after - now) * velocity
    goldens.assert_close(goldens.expected(case, "latents_packed"), packed, 1e-5)


def plain_velocity(case, packed, time, step, text, pooled, *, nobody):
    """One forward pass: diffusers' blocks, and after every second and fourth of them the people."""
    identity_flux, modules = flux_models.model(case["model"])
    flux = identity_flux.transformer
    rotary = flux_models.rotary(identity_flux, case)
    image, text = flux.x_embedder(packed), flux.context_embedder(text)
    condition = flux.time_text_embed(torch.tensor([time * 1000]), torch.tensor([4000.0]), pooled)
    modules = iter(modules)
    for every, blocks in ((2, flux.transformer_blocks), (4, flux.single_transformer_blocks)):
        for number, block in enumerate(blocks):
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=condition, image_rotary_emb=rotary
            )
            if number % every == 0:
                image = image + plain_sum(case, next(modules), image, step, nobody=nobody)
    return flux.proj_out(flux.norm_out(image, condition))


def plain_sum(case, module, image, step, *, nobody):
    """What all people who are seen in a step add to the image tokens (1, tokens, dim)."""
    total = torch.zeros_like(image, dtype=torch.float64)
    for person in case["people"]:
        end = case["num_steps"] if person["end_step"] is None else person["end_step"]
        if person["start_step"] <= step < end:
            tokens = people_loops.tokens_of("nobody") if nobody else plain_tokens(person)
            added = person["weight"] * plain_attention(module, tokens.double(), image.double())
            total += plain_mask(case, person["region"])[:, None] * added
    return total.float()


def plain_tokens(person):
    photos = [people_loops.tokens_of(name) for name in person["photos"]]
    return torch.cat(photos, dim=1) if person["fusion"] == "concat" else sum(photos) / len(photos)


def plain_attention(module, tokens, image):
    """The reference's form, head by head: softmax(q k / sqrt(d)) v, projected and summed."""
    width, out = module.dim_head, torch.zeros_like(image)
    seen, shown = normed(module.norm1, tokens), normed(module.norm2, image)
    w_k, w_v = module.to_kv.weight.double().chunk(2)
    for head in range(module.heads):
        own = slice(head * width, (head + 1) * width)
        query = shown @ module.to_q.weight[own].double().T
        attention = (query @ (seen @ w_k[own].T).transpose(1, 2) / math.sqrt(width)).softmax(-1)
        out += attention @ (seen @ w_v[own].T) @ module.to_out.weight[:, own].double().T
    return out


def normed(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


FINE = 20  # points of the raster along a token; the edges of the recorded boxes lie between them


def plain_mask(case, region):
    """(tokens,) float64: the share of each token's raster points inside, or their mean level."""
    rows, columns = math.ceil(case["height"] / 16), math.ceil(case["width"] / 16)
    if region is None:
        return torch.ones(rows * columns, dtype=torch.float64)
    if "box" in region:
        left, top, right, bottom = region["box"]
        y, x = np.mgrid[: rows * FINE, : columns * FINE] + 0.5
        y, x = y / (rows * FINE), x / (columns * FINE)
        raster = ((left < x) & (x < right) & (top < y) & (y < bottom)).astype(float)
    else:
        levels = people_loops.mask_levels(region["mask"]) / 255
        raster = np.kron(levels, np.ones((rows, columns)))  # the height of both grids divides this one's
    return torch.from_numpy(block_means(raster, rows, columns).ravel())


def block_means(raster, rows, columns):
    height, width = raster.shape
    return raster.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3))


# ---- outside a region nothing is added ----


class Watched:
    """An identity that notes the image tokens before and after each addition."""

    def __init__(self, inner):
        self.inner = inner
        self.seen = []

    def residual(self, index, image):
        residual = self.inner.residual(index, image)
        self.seen.append((image, image + residual))
        return residual


@pytest.mark.parametrize("form", [ReferenceIdentity, FoldedIdentity])
@pytest.mark.parametrize("name", ["people.boxes", "people.mask.guided"])
@torch.inference_mode()
def test_outside_their_region_a_person_leaves_every_hidden_state_as_it_is(name, form):
    case = goldens.case_named("people", name)
    case = {**case, "people": case["people"][:1]}  # alone
    flux, modules = flux_models.model(case["model"])
    row = people_loops.flight(modules, case, form)
    (person,) = row.positive.people
    outside = (person.region[0, :, 0] == 0).nonzero().flatten()
    assert 4 <= len(outside) < row.latents.shape[1]
    watched = Watched(seen_by(row))
    x = goldens.inputs(case)
    flux_models.velocity(
        flux, row.latents, case, text=x["txt"], pooled=x["vec"], timestep=[1.0], identity=watched
    )
    assert len(watched.seen) == 6
    inside = (person.region[0, :, 0] > 0).nonzero().flatten()
    for before, after in watched.seen:
        assert torch.equal(before[:, outside], after[:, outside])
        assert (before[:, inside] != after[:, inside]).any(dim=-1).all()


@torch.inference_mode()
def test_outside_a_region_the_states_are_those_of_the_run_without_that_person():
    """After the first attention, that is: from the next block on the image tokens look at each other."""
    case = goldens.case_named("people", "people.boxes")
    flux, modules = flux_models.model(case["model"])
    x = goldens.inputs(case)
    seen = {}
    for name, people in (("both", case["people"]), ("second alone", case["people"][1:])):
        row = people_loops.flight(modules, {**case, "people": people}, FoldedIdentity)
        watched = Watched(seen_by(row))
        flux_models.velocity(
            flux, row.latents, case, text=x["txt"], pooled=x["vec"], timestep=[1.0], identity=watched
        )
        seen[name] = watched.seen[0][1]
    region = plain_mask(case, case["people"][0]["region"])
    assert torch.equal(seen["both"][:, region == 0], seen["second alone"][:, region == 0])
    assert (seen["both"][:, region > 0] != seen["second alone"][:, region > 0]).any(dim=-1).all()


def seen_by(row):
    return seen_together(row.positive.people, row.step)


# ---- chosen faces ----


@pytest.fixture(scope="module")
def analysis():
    return vectron_analysis()


@pytest.fixture(scope="module")
def reader(analysis):
    return tiny_reader(analysis)


@pytest.mark.parametrize("case", FACES, ids=goldens.case_id)
def test_a_chosen_face_is_the_recorded_one(case, reader):
    got = read_face(reader, crowd(), case)
    recorded = goldens.expected(case, "face_embedding")
    goldens.assert_close(torch.from_numpy(got["face_embedding"]), recorded, case["tol"])
    want = goldens.expected(case, "aligned_sub").numpy().astype(int)
    assert np.abs(got["aligned_sub"] - want).mean() < 0.5  # levels: another OpenCV may round otherwise


@pytest.mark.parametrize("case", FACES, ids=goldens.case_id)
def test_a_recorded_face_is_the_one_that_sorting_by_hand_chooses(case, analysis):
    height, width = crowd().shape[:2]
    size = int(width * 1024 / width), int(height * 1024 / width)
    picture = cv2.resize(crowd(), size, interpolation=cv2.INTER_LANCZOS4)[..., ::-1].copy()
    rows, landmarks = analysis.det_model.detect(picture, input_size=(640, 640))
    height, width = picture.shape[:2]

    def rank(number):
        left, top, right, bottom = rows[number, :4]
        x, y = (left + right) / 2, (top + bottom) / 2
        return {
            "largest": -(right - left) * (bottom - top),
            "left-to-right": x,
            "central": math.hypot(x - width / 2, y - height / 2),
        }[case["order"]]

    points = landmarks[sorted(range(len(rows)), key=rank)[case["index"]]]
    turn = SimilarityTransform.from_estimate(points, ARCFACE_TEMPLATE).params[:2]
    face = cv2.warpAffine(picture, turn, (112, 112), borderValue=0.0)
    embedding = analysis.models["recognition"].get_feat(face)[0]
    goldens.assert_close(torch.from_numpy(embedding), goldens.expected(case, "face_embedding"), case["tol"])
    turn, _ = cv2.estimateAffinePartial2D(points, CROP_TEMPLATE, method=cv2.LMEDS)
    crop = cv2.warpAffine(picture, turn, (512, 512), borderValue=CROP_BORDER)[::16, ::16, ::-1]
    assert np.abs(crop - goldens.expected(case, "aligned_sub").numpy().astype(int)).mean() < 0.5
