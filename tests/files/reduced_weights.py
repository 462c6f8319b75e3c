"""A model small enough to be synthesized and loaded in a test, and the tables of its files.

The networks are those of the tiny profile, the vocabularies those of the real models. RetinaFace and
BiSeNet have one size only.
"""

import dataclasses
from functools import cache

import torch

from files import flux_layouts, tiny_files
from golden import flux_models
from pulid.flux.text import CLIP_LENGTH
from pulid.parts import build_networks, build_text_models
from pulid.seeded import SMALL
from pulid.strict_load import shapes_of
from weights.tables import table

REDUCED = dataclasses.replace(
    SMALL,
    t5={"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2},
    clip={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_LENGTH,
    },
)


@cache
def tables(name):
    """{key: shape} of a table of this model, under the published keys."""
    return table(name) if name in ("retinaface", "bisenet") else _REDUCED_TABLES[name]()


def _networks():
    return build_networks(REDUCED)


def _t5():
    shapes = shapes_of(build_text_models(REDUCED)[0].state_dict())
    del shapes["encoder.embed_tokens.weight"]
    return shapes


def _clip():
    shapes = shapes_of(build_text_models(REDUCED)[1].state_dict())
    return {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in shapes.items()}


def _bfl_transformer():
    return {key: tuple(shape) for key, shape in flux_models.bfl_shapes(_networks().transformer).items()}


def _eva():
    shapes = shapes_of(tiny_files.eva_state(_networks().eva_clip))
    return {key: shape for key, shape in shapes.items() if key.startswith("visual.")}


_REDUCED_TABLES = {
    "flux-transformer-bfl": _bfl_transformer,
    "flux-transformer-diffusers": lambda: shapes_of(_networks().transformer.state_dict()),
    "flux-autoencoder-bfl": lambda: shapes_of(
        flux_layouts.bfl_autoencoder(_networks().autoencoder.state_dict())
    ),
    "flux-autoencoder-diffusers": lambda: shapes_of(_networks().autoencoder.state_dict()),
    "t5-xxl": _t5,
    "clip-l": _clip,
    "pulid-flux": lambda: shapes_of(tiny_files.pulid_state(_networks())),
    "eva-clip": _eva,
}


def without_memory(name):
    """A state dict of a table, on the meta device."""
    return {key: torch.empty(shape, device="meta") for key, shape in tables(name).items()}
