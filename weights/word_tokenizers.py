"""Small tokenizers of our own, in the files of the two that FLUX.1-dev is published with.

Synthesized weights need tokenizers, and the real ones cannot be made from nothing. These know a few
dozen words and spell the rest; ids of marks and padding are the real ones, so the models read them
as they would read the real tokenizers' output. Plain text and JSON; imports no tokenizer library.
"""

from __future__ import annotations

import json
from typing import Any

_TEXT = """
a an and at by for from in looking of on over the to wearing with without portrait photo picture
painting drawing man woman person face eyes hair smile neon color cinematic light dark bright soft
black white red green blue gold studio street city beach forest bad quality worst text signature
watermark low resolution deformed blurry
"""
WORDS = _TEXT.split()

CLIP_TOKENS = 49408
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_SPACE = "▁"  # how SentencePiece writes the beginning of a word
_READABLE = [chr(code) for code in range(33, 127)]


def t5_files() -> dict[str, bytes]:
    """By file name: a Unigram tokenizer, which puts </s> behind each text."""
    marks = {"eos_token": _END, "pad_token": _PAD, "unk_token": _UNKNOWN}
    return {
        "special_tokens_map.json": _json(marks),
        "spiece.model": b"made by flux-pulid weights synthesize; the vocabulary is in tokenizer.json\n",
        "tokenizer.json": _json(_t5_tokenizer()),
        "tokenizer_config.json": _json(
            {**marks, "extra_ids": 0, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
        ),
    }


def clip_files() -> dict[str, bytes]:
    """By file name: byte-level BPE with as many tokens as the model has; its last is the end of a text."""
    merges = _merges()
    marks = {"bos_token": _CLIP_START, "eos_token": _CLIP_END, "pad_token": _CLIP_END, "unk_token": _CLIP_END}
    return {
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode(),
        "special_tokens_map.json": _json(marks),
        "tokenizer_config.json": _json({**marks, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}),
        "vocab.json": _json(_clip_vocabulary(merges)),
    }


def _t5_tokenizer() -> dict[str, Any]:
    pieces = [(_PAD, 0.0), (_END, 0.0), (_UNKNOWN, 0.0), (_SPACE, -3.0)]
    pieces += [(_SPACE + word, -5.0) for word in WORDS]
    pieces += [(character, -9.0) for character in _READABLE]  # to spell the other words
    at_start = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_mark(number, text) for number, text in enumerate((_PAD, _END, _UNKNOWN))],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, at_start]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": _END, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {_END: {"id": _END, "ids": [1], "tokens": [_END]}},
        },
        "decoder": at_start,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }


def _mark(number: int, text: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **plain, "special": True}


def _merges() -> list[tuple[str, str]]:
    """Pairs that put together the words, letter by letter; </w> marks the end of a word."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for length in range(1, len(letters)):
            merges["".join(letters[:length]), letters[length]] = None
    return list(merges)


def _clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    unused = [f"<unused_{number}>" for number in range(CLIP_TOKENS - 2 - len(tokens))]
    return {token: number for number, token in enumerate([*tokens, *unused, _CLIP_START, _CLIP_END])}


def _byte_letters() -> list[str]:
    """One printable letter for each byte, as in GPT-2's byte-level alphabet."""
    readable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in readable]
    return [chr(byte) for byte in readable] + [chr(256 + number) for number in range(len(others))]


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"
