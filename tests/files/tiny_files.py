"""A weights folder in the published layouts, with the tiny profile's tensors in it."""

import dataclasses
import warnings

import torch
from facexlib.detection.retinaface import RetinaFace
from safetensors.torch import save_file

from files import flux_layouts
from pulid.flux.text import CLIP_LENGTH
from pulid.identity.eva_clip import EvaClipVision, _AsPublished
from pulid.identity.face_weights import VECTRON_MODELS, vectron_models_dir
from pulid.profiles import PROFILES
from pulid.seeded import END, SMALL, START, seeded_face_parser, word_tokenizer
from weights.paths import model_paths

_WORDS = word_tokenizer()
# The tiny profile makes its text models itself; this is how the loader is told their sizes.
TINY_FILES = dataclasses.replace(
    SMALL,
    t5={
        "vocab_size": _WORDS.get_vocab_size(),
        "d_model": 64,
        "d_kv": 32,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 2,
    },
    clip={
        "vocab_size": _WORDS.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": _WORDS.token_to_id(START),
        "eos_token_id": _WORDS.token_to_id(END),
        "pad_token_id": _WORDS.token_to_id(END),
    },
)
FLOAT32 = PROFILES["tiny"]
BFLOAT16 = dataclasses.replace(PROFILES["tiny"], dtype="bfloat16")


def save_all(engine, home, layout):
    """Every checkpoint of a tiny engine, transformer and autoencoder in `layout`. Returns the paths."""
    flux = home / "FLUX.1-dev"
    flux.mkdir(parents=True)
    networks, text = engine.parts.networks, engine.parts.text
    if layout == "folders":
        networks.transformer.save_pretrained(flux / "transformer", max_shard_size="1MB")
        networks.autoencoder.save_pretrained(flux / "vae")
    else:
        transformer = flux_layouts.bfl_transformer(networks.transformer.state_dict())
        save_file(contiguous(transformer), flux / "flux1-dev.safetensors")
        autoencoder = flux_layouts.bfl_autoencoder(networks.autoencoder.state_dict())
        save_file(contiguous(autoencoder), flux / "ae.safetensors")
    text._t5.save_pretrained(flux / "text_encoder_2")
    text._t5_tokenizer.save_pretrained(flux / "tokenizer_2")
    text._clip.save_pretrained(flux / "text_encoder")
    text._clip_tokenizer.save_pretrained(flux / "tokenizer")
    save_file(contiguous(pulid_state(networks)), home / "pulid_flux_v0.9.1.safetensors")
    torch.save(eva_state(networks.eva_clip), home / "EVA02_CLIP_L_336_psz14_s6B.pt")
    torch.save(seeded_face_parser().state_dict(), home / "parsing_bisenet.pth")
    torch.save(blind_retinaface().state_dict(), home / "detection_Resnet50_Final.pth")
    (home / "antelopev2").mkdir()
    for name in VECTRON_MODELS:
        (home / "antelopev2" / name).symlink_to(vectron_models_dir() / name)
    flux_names = (
        ("transformer", "vae") if layout == "folders" else ("flux1-dev.safetensors", "ae.safetensors")
    )
    return dataclasses.replace(
        model_paths(home), transformer=flux / flux_names[0], autoencoder=flux / flux_names[1]
    )


def pulid_state(networks):
    return {
        **{f"pulid_encoder.{k}": v for k, v in networks.idformer.state_dict().items()},
        **{f"pulid_ca.{k}": v for k, v in networks.identity_attentions.state_dict().items()},
    }


def eva_state(eva: EvaClipVision):
    """The tower under the names of the EVA-CLIP `.pt` file, with its text tower and tables beside it."""
    state = _AsPublished(eva.tower, "visual.").state_dict()
    return {**state, "text.proj": torch.zeros(2), "logit_scale": torch.zeros(())}


def blind_retinaface():
    """Sees no face, so that the other detector's landmarks align the crop, as in the tiny profile."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = RetinaFace(network_name="resnet50", device="cpu")
    for head in network.ClassHead:
        torch.nn.init.zeros_(head.conv1x1.weight)
        torch.nn.init.zeros_(head.conv1x1.bias)
    return network


def contiguous(state):
    return {key: tensor.contiguous() for key, tensor in state.items()}
