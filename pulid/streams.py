"""Work beside the steps: on CUDA in streams of its own, so that neither waits for the other's kernels.

Who waits for whom:

    steps       run in the current stream of the thread that drives the engine
    side work   runs in a SideStream, `after` a mark that the steps left where it reads what they made.
                When it ends, the host has waited for all of it: what it made may be used in any stream,
                and nothing that it read is read any more
    caches      of what side work made are asked and filled within one SideStream only. So an entry that
                another thread has just left there is in order, and what leaves the side work is complete

Memory is another matter: torch gives that of a freed tensor to the next one made in the same stream, at
once, whatever other streams still do with it. `lend` tells it who else reads: the steps read identity
tokens and text that were made beside them. Latents on their way to pixels do not need it: whoever
decodes them holds them to the end.

On the CPU there are no streams, and nothing here does anything. Does not know: what is computed, and in which
thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """Make it when the weights are on their way to the device or there: its work comes after them."""

    def __init__(self, device: torch.device) -> None:
        self._stream = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def work(self, after: torch.cuda.Event | None = None) -> Iterator[None]:
        """What is launched within runs here, and is done at the end, also where that is an error."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            try:
                yield
            finally:
                self._stream.synchronize()


def mark(device: torch.device) -> torch.cuda.Event | None:
    """For `SideStream.work`: all that the current stream has been given so far."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def lend(tensors: Iterable[Tensor]) -> None:
    """Keep the memory of what another stream made until the current one has done what it was given by then.

    By then: when the last holder lets go of the tensor, not now.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
