"""Where a training run keeps what it makes: one folder, not in git. Known to every command of training."""

from __future__ import annotations

import os
from pathlib import Path

RUN = Path(os.environ.get("TRAINING_RUN", Path(__file__).parent / "run"))
PATCH_CODE = RUN / "patch_code.npz"
POOL = RUN / "pool"
CROPS = RUN / "crops"
DECODER = RUN / "decoder.pt"
IDENTITY = RUN / "identity.pt"
PAINTER = RUN / "painter.pt"


def size_of(text: str) -> tuple[int, int]:
    """`256x320` -> width and height."""
    width, height = map(int, text.split("x"))
    return width, height
