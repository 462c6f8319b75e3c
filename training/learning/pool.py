"""A pool of lessons on disk, drawn once, coded as latents, and looked at many times with other noise.

Drawing costs about a third of what learning from a drawing costs, so each is used a few times. Files of
1,000 lessons (100 of large ones), named by the first one's number: what is there already is not drawn again.

Run: python -m training.learning.pool --size 128x128 --count 60000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from training.learning.lessons import Tokenizers, draw_lessons
from training.learning.patch_code import PatchCode, as_tensor
from training.learning.words import tokenizer
from training.runs import PATCH_CODE, POOL, size_of

_PIXELS_IN_A_FILE = 100_000_000


@dataclass(frozen=True)
class Pool:
    """All lessons of one size, in memory."""

    latents: Tensor  # (n, 16, h / 8, w / 8), float16
    faces: Tensor  # (n, 512)
    t5_ids: Tensor  # (n, tokens)
    clip_ids: Tensor

    @classmethod
    def load(cls, size: str) -> Pool:
        """Raises FileNotFoundError, with the command that draws it."""
        files = sorted((POOL / size).glob("*.npz"))
        if not files:
            raise FileNotFoundError(f"Nothing drawn: python -m training.learning.pool --size {size}")
        parts = [np.load(file) for file in files]
        return cls(
            *(
                torch.from_numpy(np.concatenate([part[name] for part in parts]))
                for name in ("latents", "faces", "t5_ids", "clip_ids")
            )
        )

    def __len__(self) -> int:
        return len(self.latents)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--size", default="128x128", help="width x height")
    arguments.add_argument("--count", type=int, default=60_000)
    arguments.add_argument("--first", type=int, default=0, help="number of the first lesson")
    arguments.add_argument("--processes", type=int, default=os.cpu_count())
    given = arguments.parse_args(argv)
    wanted = list(_wanted(given.size, given.first, given.count))
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(given.processes, mp_context=context) as processes:
        done = processes.map(_draw, [given.size] * len(wanted), wanted)
        for _ in track(done, total=len(wanted), description=f"drawing {given.size}"):
            pass


def _wanted(size: str, first: int, count: int) -> Iterator[int]:
    for number in range(first, first + count, _in_a_file(size)):
        if not _file(size, number).exists():
            yield number


def _draw(size: str, first: int) -> None:
    torch.set_num_threads(1)
    width, height = size_of(size)
    lessons = draw_lessons(first, _in_a_file(size), width, height, Tokenizers(tokenizer()))
    code = PatchCode.load(PATCH_CODE)
    latents = [
        code.encode(as_tensor(picture[None])).numpy().astype(np.float16) for picture in lessons.pictures
    ]
    file = _file(size, first)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part.npz")
    np.savez(
        unfinished,
        latents=np.concatenate(latents),
        faces=lessons.faces,
        t5_ids=lessons.t5_ids,
        clip_ids=lessons.clip_ids,
    )
    unfinished.replace(file)


def _in_a_file(size: str) -> int:
    width, height = size_of(size)
    return 1000 if 1000 * width * height < _PIXELS_IN_A_FILE else 100


def _file(size: str, first: int) -> Path:
    return POOL / size / f"{first:08d}.npz"


if __name__ == "__main__":
    main()
