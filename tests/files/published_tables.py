"""What weights/tables/*.json.gz must hold, made from the recorded layouts and the real classes.

The tests compare; `python tests/files/published_tables.py` writes the files anew.
"""

import gzip
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import pulid.torchvision_guard  # noqa: F401

# isort: split
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from golden import goldens
from pulid.parts import _FLUX_AUTOENCODER

TABLES = Path(__file__).parents[2] / "weights" / "tables"
# google/t5-v1_1-xxl and openai/clip-vit-large-patch14, as published.
T5_XXL = T5Config(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)
CLIP_L = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    projection_dim=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
)
FLOATS = ["BF16", "F16", "F32"]
FLOATS_AND_FP8 = [*FLOATS, "F8_E4M3", "F8_E5M2"]
WITH_COUNTERS = ["F32", "I64"]  # of batches, in batch norms
FORMAT = {"separators": (",", ":"), "sort_keys": True}


def published():
    """{name: table} of every checkpoint that holds tensors."""
    return {
        "flux-transformer-bfl": table(recorded("flux1-dev_transformer_bfl"), dtypes=FLOATS_AND_FP8),
        "flux-transformer-diffusers": table(
            recorded("flux1-dev_transformer_diffusers"), dtypes=FLOATS_AND_FP8
        ),
        "flux-autoencoder-bfl": table(recorded("flux1-dev_ae_bfl")),
        "flux-autoencoder-diffusers": table(shapes_of(AutoencoderKL, _FLUX_AUTOENCODER)),
        "t5-xxl": t5(),
        "clip-l": clip(),
        "pulid-flux": table(recorded("pulid_flux_v0.9.1")),
        "eva-clip": table(
            {f"visual.{k}": v for k, v in recorded("eva02_clip_l_14_336_visual")["parameters"].items()},
            ignored=["text.*", "logit_scale", "visual.*rope.freqs_cos", "visual.*rope.freqs_sin"],
        ),
        "retinaface": table(recorded("facexlib_detection_Resnet50"), dtypes=WITH_COUNTERS),
        "bisenet": table(recorded("facexlib_parsing_bisenet"), dtypes=WITH_COUNTERS),
    }


def t5():
    """The embedding is one tensor under two names, of which files hold the first or both."""
    shapes = shapes_of(T5EncoderModel, {"config": T5_XXL})
    twice = {"encoder.embed_tokens.weight": shapes.pop("encoder.embed_tokens.weight")}
    assert twice.keys() == T5EncoderModel._tied_weights_keys.keys()
    return table(shapes, optional=twice, dtypes=FLOATS_AND_FP8)


def clip():
    """Published under `text_model.`, which transformers 5 leaves out of its own names."""
    shapes = {f"text_model.{k}": v for k, v in shapes_of(CLIPTextModel, {"config": CLIP_L}).items()}
    positions = {"text_model.embeddings.position_ids": [1, CLIP_L.max_position_embeddings]}
    return table(shapes, optional=positions, dtypes=[*FLOATS, "I64"])


def table(required, *, optional=(), ignored=(), dtypes=FLOATS):
    return {
        "required": required,
        "optional": dict(optional),
        "ignored": list(ignored),
        "dtypes": dtypes,
    }


def recorded(name):
    return goldens.shapes(name)


def shapes_of(network, arguments):
    with torch.device("meta"):
        return {key: list(tensor.shape) for key, tensor in network(**arguments).state_dict().items()}


if __name__ == "__main__":
    for name, content in published().items():
        text = json.dumps(content, **FORMAT).encode()
        (TABLES / f"{name}.json.gz").write_bytes(gzip.compress(text, mtime=0))
