"""Fits the patch code to drawings of several sizes, once, before anything is drawn for the pool.

Run: python -m training.learning.fit_patch_code
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from training.learning.lessons import Tokenizers, draw_lessons
from training.learning.patch_code import PatchCode, as_tensor
from training.learning.words import tokenizer
from training.runs import PATCH_CODE

SIDES = (128, 256, 384, 512)
_FIRST_LESSON = 900_000_000  # far from those of any pool


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--drawings", type=int, default=40, help="of each size")
    count = arguments.parse_args(argv).drawings
    if PATCH_CODE.exists():
        print(f"{PATCH_CODE} is there already; what was drawn for the pool is coded with it.")
        return
    words = Tokenizers(tokenizer())
    pictures = [_drawings(side, count, words) for side in SIDES]
    code = PatchCode.fitted([picture for drawn in pictures for picture in drawn])
    PATCH_CODE.parent.mkdir(parents=True, exist_ok=True)
    code.save(PATCH_CODE)
    for side, drawn in zip(SIDES, pictures, strict=True):
        original = as_tensor(drawn)
        error = (code.decode(code.encode(original)).clamp(-1, 1) - original).square().mean((1, 2, 3))
        print(f"{side:4d} px: {(10 * (4 / error).log10()).mean():.1f} dB by the linear code alone")


def _drawings(side: int, count: int, words: Tokenizers) -> np.ndarray:
    return draw_lessons(_FIRST_LESSON + side, count, side, side, words).pictures


if __name__ == "__main__":
    main()
