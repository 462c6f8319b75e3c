"""Seeded random tensors, written to checkpoint files without ever being in memory together.

Numbers are made in pieces by several threads, and written in order by one, which hashes them on the
way. Norms lie near 1, biases near 0, everything else is normal with a deviation of 0.02; never all
zeros, because they flatter a chip. The same seed gives the same file on any number of threads.
Does not know which tensors a checkpoint has.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from weights.lock import sha256_of
from weights.pickles import DTYPE_BITS

Shape = tuple[int, ...]
Bytes = npt.NDArray[np.uint8]
OnBytes = Callable[[int], None]

MATRIX, BIAS, NORM = (0.0, 0.02), (0.0, 0.01), (1.0, 0.02)  # mean and standard deviation
_PIECE = 4 << 20  # numbers made at once; a thread needs some fifteen bytes for each
_MAX_THREADS = 8  # more are no faster than a disk
_LEVELS = 1 << 16  # different values that a tensor has
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "I64": "int64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTensor:
    name: str
    dtype: str  # one of _TORCH
    shape: Shape
    seed: tuple[int, ...]  # of the numbers: tensors with the same one are the same
    means: tuple[float, ...] = ()  # one for each row, for a tensor whose rows are to differ

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def pieces(self) -> Iterator[Callable[[], Bytes]]:
        """Each makes the next of its bytes. They may run in any order and on any thread."""
        numbers = math.prod(self.shape)
        for index, first in enumerate(range(0, numbers, _PIECE)):
            yield partial(self._piece, index, min(_PIECE, numbers - first))

    def _piece(self, index: int, count: int) -> Bytes:
        if self.dtype == "I64":  # a counter of batches
            return np.ones(count, np.int64).view(np.uint8)
        draws = _draws([*self.seed, index], count)
        if self.means:
            rows = np.repeat(np.array(self.means, np.float32), count // len(self.means))
            return _as_bytes(_quantiles(*MATRIX)[draws] + rows, self.dtype)
        return np.take(_values(self.dtype, *_spread(self.name, self.shape)), draws, mode="clip").view(
            np.uint8
        )


def _spread(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and standard deviation, by what the tensor is."""
    if len(shape) > 1:
        return MATRIX
    return BIAS if name.endswith(("bias", "running_mean")) else NORM


def _draws(seed: Sequence[int], count: int) -> npt.NDArray[np.uint16]:
    """Which of the levels each number is."""
    generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed)))
    words = generator.integers(0, 2**64, size=-(-count // 4), dtype=np.uint64)
    return words.view(np.uint16)[:count]


@cache
def _quantiles(mean: float, deviation: float) -> npt.NDArray[np.float32]:
    """The middles of as many equally likely slices of a normal distribution."""
    normal = NormalDist(mean, deviation)
    return np.array([normal.inv_cdf((level + 0.5) / _LEVELS) for level in range(_LEVELS)], np.float32)


@cache
def _values(dtype: str, mean: float, deviation: float) -> npt.NDArray[np.generic]:
    """The quantiles in another dtype, as whole numbers of its width."""
    width = {1: np.uint8, 2: np.uint16, 4: np.uint32}[DTYPE_BITS[dtype] // 8]
    return _as_bytes(_quantiles(mean, deviation), dtype).view(width)


def _as_bytes(values: npt.NDArray[np.float32], dtype: str) -> Bytes:
    import torch

    return torch.from_numpy(values).to(getattr(torch, _TORCH[dtype])).view(torch.uint8).numpy()


# ---- files ----


def write_safetensors(tensors: Sequence[RandomTensor], path: Path, on_bytes: OnBytes) -> str:
    """Write a file; returns its SHA-256. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in chain([_header(tensors)], _in_order(chain.from_iterable(t.pieces() for t in tensors))):
            digest.update(block.data)
            file.write(block.data)
            on_bytes(len(block))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_torch(tensors: Sequence[RandomTensor], path: Path, on_bytes: OnBytes) -> str:
    """Write a .pt or .pth file, which is in memory first; returns its SHA-256. Raises OSError."""
    import torch

    state = {}
    for tensor in tensors:
        content = np.concatenate(list(_in_order(tensor.pieces())))
        state[tensor.name] = (
            torch.from_numpy(content).view(getattr(torch, _TORCH[tensor.dtype])).view(tensor.shape)
        )
        on_bytes(tensor.size)
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return sha256_of(path)


def _header(tensors: Sequence[RandomTensor]) -> Bytes:
    """Source: https://github.com/huggingface/safetensors#format."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (at, at + tensor.size),
        }
        at += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie at multiples of their size
    return np.frombuffer(struct.pack("<Q", len(text)) + text, np.uint8)


def _in_order(tasks: Iterable[Callable[[], Bytes]]) -> Iterator[Bytes]:
    """What the tasks make, in their order; only a few are made ahead."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    ahead: deque[Future[Bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
