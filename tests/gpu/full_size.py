"""An engine of any size with random weights, made on its device. Never zeros: they flatter a chip."""

import types

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from pulid.flux.quantised import PRECISIONS, block_linears, quantise
from pulid.flux.text import TextEncoder
from pulid.parts import Parts, build_networks, build_text_models
from pulid.pipeline import PulidFluxEngine
from pulid.seeded import END, PAD, START, fill_randomly, with_marks, word_tokenizer

# Of the tokenizer here, where the published one has the end of a text at its largest id.
MARKS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 1}


def random_engine(architecture, profile, device):
    """Two networks' worth of memory at most beside the model: everything is filled where it will stay.

    The architecture's CLIP has the marks MARKS.
    """
    dtype = getattr(torch, profile.dtype)
    networks = build_networks(architecture)
    for number, name in enumerate(
        ("transformer", "autoencoder", "idformer", "identity_attentions", "eva_clip")
    ):
        network = getattr(networks, name)
        network.to(torch.float32 if name == "autoencoder" else dtype).to_empty(device=device)
        fill_randomly(network, number)
    if profile.linears != "full":
        for _, linear in block_linears(networks.transformer):
            quantise(linear, linear.weight.data, PRECISIONS[profile.linears])
    networks.eva_clip.reset_computed_buffers(device, dtype)
    text = random_text_encoder(architecture, dtype, device)
    return PulidFluxEngine(Parts(networks=networks, text=text, faces=random_faces()), profile, device)


def random_text_encoder(architecture, dtype, device):
    words = word_tokenizer()
    t5, clip = build_text_models(architecture)
    for model in (t5, clip):
        fill_randomly(model.to(dtype).to_empty(device=device), 7)
    positions = clip.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[-1])[None])
    return TextEncoder(
        t5=t5,
        t5_tokenizer=PreTrainedTokenizerFast(tokenizer_object=with_marks(words, f"$A {END}"), pad_token=PAD),
        clip=clip,
        clip_tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=with_marks(words, f"{START} $A {END}"), pad_token=END
        ),
        device=device,
    )


def random_faces():
    """Stands where FaceReader stands: the face stage runs on the CPU and has its own tests."""

    def read(photo, choice):
        numbers = np.random.default_rng(int(photo.sum()))
        return types.SimpleNamespace(
            face_embedding=numbers.standard_normal(512, np.float32),
            aligned=numbers.integers(0, 256, (512, 512, 3), np.uint8),
            labels=np.full((512, 512), 1, np.uint8),
        )

    return types.SimpleNamespace(read=read)
