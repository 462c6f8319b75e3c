"""The two networks of the identity path at real size, filled as recorded, one of each per session.

Both are built on the meta device and given their tensors afterwards, as the loader of real files
does: 1.8 GB instead of twice that, and every golden test is also a test of that way of loading.
"""

import pytest
import torch

from golden import golden_fill, goldens
from pulid.identity.eva_clip import EvaClipVision, load_eva_state
from pulid.identity.idformer import IDFormer
from pulid.strict_load import load_strictly


@pytest.fixture(scope="session")
def real_eva():
    with torch.device("meta"):
        eva = EvaClipVision()
    shapes = goldens.shapes("eva02_clip_l_14_336_visual")["parameters"]
    load_eva_state(eva, filled(shapes, goldens.case_named("modules", "eva.real")["fill"]))
    return eva.requires_grad_(False)


@pytest.fixture(scope="session")
def real_idformer():
    with torch.device("meta"):
        idformer = IDFormer()
    shapes = {key: value.shape for key, value in idformer.state_dict().items()}
    fill = goldens.case_named("modules", "idformer.real")["fill"]
    load_strictly(idformer, filled(shapes, fill), "PuLID identity encoder")
    return idformer.requires_grad_(False)


def filled(shapes, fill):
    """The recorded tensors of one checkpoint part, proven to be the recorded ones."""
    state = golden_fill.fill_dict(shapes, fill["seed"], fill["prefix"])
    assert golden_fill.fingerprint(state, fill["prefix"]) == fill["crc32"], "the fill is not the recorded one"
    return state
