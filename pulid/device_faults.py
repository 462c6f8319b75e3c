"""Errors of the device, told apart: one request was too large, or the whole device is lost.

Knows torch's exceptions and the texts of CUDA's. Does not know what was computed or for whom.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from pulid.errors import DeviceLost, OutOfMemory

# In the texts of RuntimeErrors by which CUDA and its libraries say that they are broken.
FAULTS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error")

Call = TypeVar("Call", bound=Callable[..., Any])


def device_faults_named(call: Call) -> Call:
    """Let the device's errors leave a function as OutOfMemory or DeviceLost, and others as they are."""

    @functools.wraps(call)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except torch.OutOfMemoryError:
            pass  # answered below, outside this frame: the traceback would keep the tensors alive
        except RuntimeError as exc:
            if not is_device_fault(exc):
                raise
            raise device_lost(exc) from exc
        raise out_of_memory()

    return named  # type: ignore[return-value]


def is_device_fault(exc: RuntimeError) -> bool:
    """After such an error every later call in this process fails as well."""
    return isinstance(exc, torch.AcceleratorError) or any(words in str(exc) for words in FAULTS)


def device_lost(exc: RuntimeError) -> DeviceLost:
    first_line = next(iter(str(exc).splitlines()), "no text")
    return DeviceLost(
        f"The device reported a fault ({first_line}). Start again; if it comes back, "
        "look for the device in the system's log."
    )


def out_of_memory() -> OutOfMemory:
    """What the caller is told. Memory that nothing uses any more goes back to the device."""
    torch.cuda.empty_cache()
    return OutOfMemory(
        "The device ran out of memory for this request. Ask for a smaller size or fewer outputs."
    )
