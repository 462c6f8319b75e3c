"""The tokenizer that the model learns with: every word of the prompt grammar is one token."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer

from pulid.seeded import word_tokenizer
from training.prompts import vocabulary

# What people write besides; the grammar does not use it, and it means nothing.
_OTHER_WORDS = """
an and by for on over standing looking ultra realistic photorealistic abstract art style light dark lighting
man boy child young old eyes hair suit dress red orange yellow green blue purple pink gold silver black white
sky rain day background close up doctor robot pilot chef warrior superhero dancer painter 8k hd , .
"""


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    return word_tokenizer(" ".join([*vocabulary(), *_OTHER_WORDS.split()]))
