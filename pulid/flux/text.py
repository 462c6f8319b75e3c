"""Prompt to text features: T5 tokens and CLIP's pooled vector, as FLUX wants them.

Padding is part of the input: FLUX attends to it, so the T5 length changes the picture.
Source: docs/spec/PULID_SPEC.md, section 7.5. Prompts never leave this file but as tensors.
"""

from __future__ import annotations

import pulid.torchvision_guard  # noqa: F401

# isort: split
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from pulid.cache import LruCache

CACHED_PROMPTS = 32  # at full size 1 MiB each, at 128 tokens
CLIP_LENGTH = 77


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
