"""An engine of any size with random weights, made on its device. Never zeros: they flatter a chip."""

import types

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pulid.flux.text import TextEncoder
from pulid.parts import Parts, build_networks
from pulid.pipeline import PulidFluxEngine
from pulid.tiny import END, PAD, START, fill_randomly, with_marks, word_tokenizer

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def random_engine(architecture, profile, device, *, t5=T5_XXL, clip=CLIP_L):
    """Two networks' worth of memory at most beside the model: everything is filled where it will stay."""
    dtype = getattr(torch, profile.dtype)
    networks = build_networks(architecture)
    for number, name in enumerate(
        ("transformer", "autoencoder", "idformer", "identity_attentions", "eva_clip")
    ):
        network = getattr(networks, name)
        network.to(torch.float32 if name == "autoencoder" else dtype).to_empty(device=device)
        fill_randomly(network, number)
    networks.eva_clip.reset_computed_buffers(device, dtype)
    parts = Parts(networks=networks, text=random_text_encoder(t5, clip, dtype, device), faces=random_faces())
    return PulidFluxEngine(parts, profile, device)


def random_text_encoder(t5_sizes, clip_sizes, dtype, device):
    words = word_tokenizer()
    with torch.device(device):
        t5 = T5EncoderModel(T5Config(**t5_sizes)).to(dtype)
        clip = CLIPTextModel(CLIPTextConfig(**clip_sizes)).to(dtype)
    for model in (t5, clip):
        fill_randomly(model.requires_grad_(False).eval(), 7)
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

    def read(photo):
        numbers = np.random.default_rng(int(photo.sum()))
        return types.SimpleNamespace(
            face_embedding=numbers.standard_normal(512, np.float32),
            aligned=numbers.integers(0, 256, (512, 512, 3), np.uint8),
            labels=np.full((512, 512), 1, np.uint8),
        )

    return types.SimpleNamespace(read=read)
