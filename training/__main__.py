"""A whole training run, stage after stage, at one of four scales. Stopped and started again, it goes on.

    python -m training toy          under a minute, learns next to nothing: shows that every stage works
    python -m training cpu          two cores, under three hours: good up to 256 x 256
    python -m training cpu-large    goes on after `cpu`, two hours more, with larger sizes
    python -m training gpu          all sizes; with --minutes 8 in calls that each end in time

Where calls must end in time, it is the loops that do; drawing may be cut off anywhere. Each stage is a
command of its own, too: see `training/README.md`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence

from training import export
from training.learning import fit_patch_code, pool, train_decoder, train_identity, train_painter

Stage = tuple[Callable[[Sequence[str]], None], str]

_LOOPS = (train_identity.main, train_decoder.main, train_painter.main)

_ALL_SIZES = "256x256,256x320,320x256,512x640,896x1152,1024x1024"
SCALES: Mapping[str, Sequence[Stage]] = {
    "toy": (
        (fit_patch_code.main, "--drawings 3"),
        (pool.main, "--size 64x64 --count 1000 --processes 1"),
        (train_identity.main, "--steps 25"),
        (train_decoder.main, "--steps 25 --batch 4 --files 1 --judged-by 2 --processes 1"),
        (train_painter.main, "--sizes 64x64 --tokens 512 --steps 50 --rate 30"),
    ),
    "cpu": (
        (fit_patch_code.main, ""),
        (pool.main, "--size 128x128 --count 60000"),
        (pool.main, "--size 256x256 --count 12000"),
        (pool.main, "--size 256x320 --count 5000"),
        (train_identity.main, ""),
        (train_decoder.main, "--steps 6000"),
        (train_painter.main, "--sizes 128x128 --steps 5600 --until 2800"),
        (train_painter.main, "--sizes 256x256,256x320 --steps 5600"),
        (export.main, ""),
    ),
    "cpu-large": (
        (pool.main, "--size 512x640 --count 2500"),
        (pool.main, "--size 896x1152 --count 1600"),
        (train_painter.main, "--sizes 256x256,256x256,256x320,512x640,512x640,896x1152 --steps 12000"),
        (export.main, ""),
    ),
    "gpu": (
        (fit_patch_code.main, ""),
        (pool.main, "--size 128x128 --count 200000"),
        *(
            (pool.main, f"--size {size} --count {2000 if len(size) > 7 else 20000}")
            for size in _ALL_SIZES.split(",")
        ),
        (train_identity.main, "--steps 4000 --device cuda"),
        (train_decoder.main, "--steps 40000 --batch 64 --files 180 --device cuda"),
        (train_painter.main, "--sizes 128x128 --tokens 32768 --steps 40000 --until 12000 --device cuda"),
        (train_painter.main, f"--sizes {_ALL_SIZES} --tokens 32768 --steps 40000 --device cuda"),
        (export.main, ""),
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("scale", choices=sorted(SCALES))
    arguments.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after these; run again to go on"
    )
    given = arguments.parse_args()
    end = time.monotonic() + 60 * given.minutes
    for stage, words in SCALES[given.scale]:
        left = (end - time.monotonic()) / 60
        if left <= 0:
            print("The time is over; run the same command again to go on.")
            return
        print(f"{stage.__module__} {words}", flush=True)
        stage([*words.split(), *([f"--minutes={left:.2f}"] if stage in _LOOPS else [])])


if __name__ == "__main__":
    main()
