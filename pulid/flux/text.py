"""Prompt to text features: T5 tokens and CLIP's pooled vector, as FLUX wants them.

Padding is part of the input: FLUX attends to it, so the T5 length changes the picture.
Also knows how the checkpoints of the two models name their tensors.
Source: docs/spec/PULID_SPEC.md, section 7.5. Prompts never leave this file but as tensors.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from pulid.cache import LruCache
from pulid.flux.streaming import Slots, module_in_slot, streamed
from pulid.strict_load import check_strictly, load_strictly, shapes_of

CACHED_PROMPTS = 32  # at full size 1 MiB each, at 128 tokens
CLIP_LENGTH = 77

_T5_EMBEDDING, _T5_TIED = "shared.weight", "encoder.embed_tokens.weight"  # one matrix, two names
_CLIP_PREFIX = "text_model."  # in the files; transformers has dropped it from the model's own names
_CLIP_COMPUTED = "position_ids"  # a table that some files have and the model makes itself


@dataclass(frozen=True, slots=True)
class TextFeatures:
    tokens: Tensor  # (1, max_sequence_length, 4096), T5's last hidden state
    pooled: Tensor  # (1, 768), CLIP's state at the end token


class TextEncoder:
    """Both text models and their tokenizers. Encoded prompts are kept by text."""

    def __init__(
        self,
        *,
        t5: T5EncoderModel,
        t5_tokenizer: PreTrainedTokenizerBase,
        clip: CLIPTextModel,
        clip_tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        self._t5 = t5
        self._t5_tokenizer = t5_tokenizer
        self._clip = clip
        self._clip_tokenizer = clip_tokenizer
        self._device = device
        self._cache: LruCache[tuple[str, int], TextFeatures] = LruCache(CACHED_PROMPTS)

    def encode(self, prompt: str, max_sequence_length: int) -> TextFeatures:
        """Features of a prompt, padded or cut to `max_sequence_length` T5 tokens and 77 CLIP tokens."""
        return self._cache.get_or_make(
            (prompt, max_sequence_length), lambda: self._encode(prompt, max_sequence_length)
        )

    def knows(self, prompt: str, max_sequence_length: int) -> bool:
        """Whether `encode` would answer from memory."""
        return (prompt, max_sequence_length) in self._cache

    @torch.inference_mode()
    def _encode(self, prompt: str, max_sequence_length: int) -> TextFeatures:
        t5_ids = self._ids(self._t5_tokenizer, prompt, max_sequence_length)
        clip_ids = self._ids(self._clip_tokenizer, prompt, CLIP_LENGTH)
        return TextFeatures(
            tokens=self._t5(input_ids=t5_ids).last_hidden_state,
            pooled=self._clip(input_ids=clip_ids).pooler_output,
        )

    def _ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> Tensor:
        """(1, length) token ids. No attention mask goes with them: FLUX was trained seeing the padding."""
        encoded = tokenizer(
            prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return encoded.input_ids.to(self._device)


def stream_t5(model: T5EncoderModel, chosen: Collection[int], slots: Slots) -> None:
    """From now on these blocks come from the host in each pass. The slots must hold any of them.

    One thread at a time may encode.
    """
    blocks = list(model.encoder.block)
    del model.encoder.block  # a module's place takes nothing else
    model.encoder.block = streamed(blocks, chosen, slots, module_in_slot)


def load_t5(model: T5EncoderModel, state: Mapping[str, Tensor], *, file: Path | None = None) -> None:
    """Assign a T5 checkpoint. The published one has the embedding once, others under both its names.

    Raises WeightsMissing.
    """
    embedding = {name: state[name] for name in (_T5_TIED, _T5_EMBEDDING) if name in state}
    both = dict.fromkeys((_T5_EMBEDDING, _T5_TIED), list(embedding.values())[-1]) if embedding else {}
    load_strictly(model, {**state, **both}, "T5-XXL encoder", file=file)
    model.encoder.embed_tokens = model.shared  # assigned twice, it was two parameters of one matrix


def load_clip(model: CLIPTextModel, state: Mapping[str, Tensor], *, file: Path | None = None) -> None:
    """Assign a checkpoint of CLIP's text model, and make the table that no checkpoint needs to have.

    Raises WeightsMissing.
    """
    wanted = shapes_of(model.state_dict())
    prefix = _CLIP_PREFIX if any(key.startswith(_CLIP_PREFIX) for key in state) else ""
    names = {prefix + name.removeprefix(_CLIP_PREFIX): name for name in wanted}
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(_CLIP_COMPUTED)}
    check_strictly({key: wanted[name] for key, name in names.items()}, kept, "CLIP-L text", file=file)
    model.load_state_dict({names[key]: tensor for key, tensor in kept.items()}, strict=True, assign=True)
    for module in model.modules():
        if _CLIP_COMPUTED in module._buffers:
            module.position_ids = torch.arange(module.position_ids.shape[-1], device="cpu")[None]
