"""Identity files: as good as the photo they were made from, and refused when they are anything else."""

import json
import re
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.portraits import difference, generate, photo, picture, portrait
from pulid.engine import Box, FaceChoice, Person
from pulid.errors import BadRequest, IdentityRejected, NoFaceFound, SeveralFaces
from pulid.identity.identity_file import (
    MAX_BYTES,
    fingerprint,
    metadata_of,
    read_identity,
    write_identity,
)
from pulid.identity.people import Identity
from pulid.seeded import SMALL, fill_randomly, seeded_networks

CHECKPOINT = "c" * 64
TOKENS, WIDTH = 8, 64  # of the tiny profile, for each photo


@pytest.fixture(scope="module")
def obama(engine):
    return engine.embed((photo("obama"),))


def by_identity(data, **changes):
    person = {name: changes.pop(name) for name in ("weight", "region", "start_step") if name in changes}
    return portrait(None, people=(Person(identity=data, **person),), **changes)


def small_file(**changes):
    """A valid file of one photo, or one with other tensors or metadata."""
    tensors = {"id_embedding": torch.linspace(-2, 2, TOKENS * WIDTH).reshape(1, TOKENS, WIDTH)}
    tensors |= {name: value for name, value in changes.items() if not isinstance(value, str)}
    words = {name: value for name, value in changes.items() if isinstance(value, str)}
    return safetensors.torch.save(tensors, metadata_of(tensors, CHECKPOINT) | words)


def read(data):
    return read_identity(data, checkpoint=CHECKPOINT, tokens_per_photo=TOKENS, token_width=WIDTH)


# ---- round trip ----


@pytest.mark.parametrize("changes", [{}, {"true_cfg": 2.0, "start_step": 1}, {"weight": 2.0}], ids=str)
def test_an_identity_file_paints_the_bytes_that_its_photo_paints(engine, obama, changes):
    plain = {"id_weight" if name == "weight" else name: value for name, value in changes.items()}
    from_file = generate(engine, by_identity(obama, **changes)).images[0]
    assert np.array_equal(from_file, picture(engine, "obama", **plain))


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_a_file_of_several_photos_paints_the_bytes_that_they_paint(engine, fusion):
    photos = (photo("obama"), photo("ardern"))
    data = engine.embed(photos, fusion=fusion)
    from_file = generate(engine, by_identity(data, true_cfg=2.0)).images[0]
    assert np.array_equal(from_file, picture(engine, id_images=photos, fusion=fusion, true_cfg=2.0))


def test_a_file_may_stand_beside_a_photo(engine, obama):
    left, right = (Box(left=x, top=0, right=x + 0.5, bottom=1) for x in (0, 0.5))
    images = (photo("collins"), photo("obama"))
    people = [Person(photos=(0,), region=left), Person(photos=(1,), region=right)]
    from_photos = generate(engine, portrait(None, id_images=images, people=tuple(people))).images[0]
    people[1] = Person(identity=obama, region=right)
    from_file = generate(engine, portrait(None, id_images=images[:1], people=tuple(people))).images[0]
    assert np.array_equal(from_file, from_photos)
    assert difference(from_file, picture(engine)) > 4


def test_a_file_made_of_a_chosen_face_is_that_face(engine):
    crop = np.concatenate([photo("obama"), photo("obama")[:, ::-1]], axis=1)
    assert engine.embed((crop,), face=FaceChoice(index=0)) != engine.embed((crop,), face=FaceChoice(index=1))
    with pytest.raises(SeveralFaces):
        engine.embed((crop,), face=FaceChoice(strict=True))
    with pytest.raises(NoFaceFound):
        engine.embed((np.full((200, 200, 3), 128, np.uint8),))
    with pytest.raises(BadRequest, match="at least one photo"):
        engine.embed(())


def test_a_file_says_what_it_is_and_is_small(engine, obama):
    header = json.loads(obama[8 : 8 + int.from_bytes(obama[:8], "little")])
    assert header["__metadata__"] == {
        "format": "flux-pulid-identity",
        "version": "1",
        "checkpoint": engine.info.details["identity_checkpoint"],
        "sha256": header["__metadata__"]["sha256"],
    }
    tensors = safetensors.torch.load(obama)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "id_embedding": (torch.float32, (1, TOKENS, WIDTH)),
        "face_embedding": (torch.float32, (512,)),
    }
    assert tensors["face_embedding"].norm() == pytest.approx(1)
    assert len(obama) < 8000


def test_bfloat16_tokens_come_back_as_they_went():
    tokens = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    data = write_identity(Identity(tokens, None), CHECKPOINT, tokens_per_photo=TOKENS)
    back = read(data)
    assert torch.equal(back.tokens.bfloat16(), tokens)
    assert back.face_embedding is None


def test_more_photos_side_by_side_than_a_file_holds_are_refused_when_it_is_made(engine):
    with pytest.raises(BadRequest, match="at most 12 photos"):
        engine.embed((photo("obama"),) * 13, fusion="concat")
    assert len(engine.embed((photo("obama"),) * 12, fusion="concat")) < MAX_BYTES
    assert engine.embed((photo("obama"),) * 13) is not None


# ---- refused ----

FLOATS = torch.zeros(1, TOKENS, WIDTH)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no identity file"),
        (b"\xff" * 100, "no identity file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "no identity file"),
        (small_file()[:-1], "no identity file"),
        (small_file() + b"x", "no identity file"),
        (small_file()[:40], "no identity file"),
        (struct.pack("<Q", 4000) + b"[" * 4000, "no identity file"),
        (struct.pack("<Q", 2) + b"[]", "no identity file"),
        (struct.pack("<Q", 2) + b"{}", "no identity file"),
        (struct.pack("<Q", 2**63) + b"{}", "no identity file"),
        (small_file(format="another"), "no identity file"),
        (small_file(version="2"), "another version than 1"),
        (small_file(checkpoint="d" * 64), "another checkpoint"),
        (small_file(extra=torch.zeros(3)), "no identity file"),
        (small_file(id_embedding=FLOATS[0]), "no identity file"),
        (small_file(id_embedding=FLOATS.double()), "no identity file"),
        (small_file(id_embedding=FLOATS.to(torch.float8_e4m3fn)), "no identity file"),
        (small_file(id_embedding=torch.zeros(1, TOKENS, WIDTH - 1)), "no identity file"),
        (small_file(id_embedding=torch.zeros(2, TOKENS, WIDTH)), "no identity file"),
        (small_file(id_embedding=torch.zeros(1, TOKENS + 1, WIDTH)), "no identity file"),
        (small_file(id_embedding=torch.zeros(1, 0, WIDTH)), "no identity file"),
        (small_file(id_embedding=torch.zeros(1, 13 * TOKENS, WIDTH)), "no identity file"),
        (small_file(id_embedding=FLOATS + float("nan")), "no identity file"),
        (small_file(id_embedding=FLOATS + float("inf")), "no identity file"),
        (small_file(id_embedding=FLOATS + 1e20), "no identity file"),
        (small_file(face_embedding=torch.zeros(512)), "no identity file"),
        (small_file(face_embedding=torch.full((512,), float("nan"))), "no identity file"),
        (small_file(face_embedding=torch.ones(511) / 511**0.5), "no identity file"),
        (bytes(MAX_BYTES + 1), "at most 4 MB"),
    ],
)
def test_anything_else_is_refused_and_says_what_to_do(data, says):
    with pytest.raises(IdentityRejected, match=says) as caught:
        read(data)
    assert caught.value.code == "identity_rejected"
    assert re.search("Make it again from the photos|at most", str(caught.value))


def test_the_small_file_itself_is_fine():
    assert read(small_file()).tokens.shape == (1, TOKENS, WIDTH)
    face = torch.ones(512) / 512**0.5
    assert read(small_file(face_embedding=face)).face_embedding.shape == (512,)
    assert read(small_file(id_embedding=torch.ones(1, 12 * TOKENS, WIDTH))).tokens.shape[1] == 96


def test_an_engine_refuses_a_foreign_file_before_anything_is_in_flight(engine):
    with pytest.raises(IdentityRejected, match="another checkpoint"):
        engine.admit("job", by_identity(small_file()))
    assert engine.step() == []


def refused_or_sound(data):
    try:
        identity = read(data)
    except IdentityRejected:
        return
    assert identity.tokens.isfinite().all()
    assert identity.tokens.shape[1] % TOKENS == 0


NO_DEADLINE = settings(deadline=None)  # how long an example takes is the machine's business


def test_a_flipped_bit_anywhere_is_noticed(obama):
    start = 8 + int.from_bytes(obama[:8], "little")
    for place in np.random.default_rng(0).integers(start, len(obama), 200):
        damaged = bytearray(obama)
        damaged[place] ^= 1 << int(place) % 8
        with pytest.raises(IdentityRejected):
            read_identity(
                bytes(damaged),
                checkpoint=json.loads(obama[8:start])["__metadata__"]["checkpoint"],
                tokens_per_photo=TOKENS,
                token_width=WIDTH,
            )


@NO_DEADLINE
@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(IdentityRejected):
        read(data)


@NO_DEADLINE
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_file_with_changed_bytes_is_refused_or_sound(changes):
    """Most of the changed bytes are the header's."""
    data = bytearray(small_file())
    for place, value in changes:
        data[place] = value
    refused_or_sound(bytes(data))


@NO_DEADLINE
@given(st.dictionaries(st.sampled_from(["id_embedding", "face_embedding", "x"]), st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "F16", "BOOL", "F4", "nonsense"]),
    "shape": st.lists(st.integers(-1, 2**40), max_size=4),
    "data_offsets": st.lists(st.integers(-1, 2**40), min_size=1, max_size=3),
})), st.binary(max_size=64))  # fmt: skip
def test_a_header_that_lies_is_refused(entries, content):
    metadata = {"format": "flux-pulid-identity", "version": "1", "checkpoint": CHECKPOINT}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    with pytest.raises(IdentityRejected):
        read(struct.pack("<Q", len(header)) + header + content)


# ---- fingerprint ----


def test_a_checkpoint_has_one_fingerprint_in_either_precision():
    networks = seeded_networks()
    pair = (networks.idformer, networks.eva_clip)
    exact = fingerprint(pair)
    assert re.fullmatch("[0-9a-f]{64}", exact)
    assert fingerprint(tiny_pair()) == exact
    assert fingerprint(reversed(pair)) == exact
    assert fingerprint([network.bfloat16() for network in pair]) == exact


@pytest.mark.parametrize("which", [0, 1])
def test_another_checkpoint_has_another_fingerprint(which):
    pair = tiny_pair()
    before = fingerprint(pair)
    fill_randomly(pair[which], 77)
    assert fingerprint(pair) != before


def tiny_pair():
    assert SMALL.idformer["num_queries"] == TOKENS
    networks = seeded_networks()
    return networks.idformer, networks.eva_clip
