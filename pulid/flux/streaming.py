"""Weights that lie in the host's memory and pass through two slots on the device while others compute.

    slot 0   | block 1 computes      | block 3 is copied   | block 3 computes | ...
    slot 1   | block 2 is copied     | block 2 computes    | block 4 is copied | ...

A slot is filled when what read it is done, and read when it is full; both are waits of streams, not of the
host. A streamed block computes what it computes anywhere: same bytes, shapes, strides and kernels. On the
CPU the same code runs with copies that are done at once.

Knows: tensors, modules, slots, streams. Does not know: which weights are streamed, and what they are for.
Decision: docs/decisions/0019-lowvram.md
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes, of each tensor in a slot: as torch's own allocator on a card
# torch rounds each piece of pinned memory up to a power of two; so there are several, of powers of two.
SMALLEST_PIECE = 2**20
NUM_SLOTS = 2

Item = TypeVar("Item")
Mark = Any  # a torch.cuda.Event, or None where nothing has to be waited for


# ---- what is streamed ----


class Parcel:
    """Tensors as bytes in the host's memory, pinned for a card: what one slot takes at once."""

    def __init__(self, tensors: Sequence[Tensor], *, pinned: bool) -> None:
        """Copies them, from wherever they are."""
        self._layout = list(_laid_out(tensors))
        self.nbytes = padded_size(tensor.nbytes for tensor in tensors)
        self.pieces = self._filled(tensors, pinned)

    @torch.inference_mode(False)
    def views(self, slot: Tensor) -> list[Tensor]:
        """The tensors, as they will be when the bytes are in `slot` (at least nbytes,)."""
        return [
            slot[start : start + like.nbytes].view(like.dtype).view(like.shape)
            for start, like in self._layout
        ]

    @torch.inference_mode(False)
    def _filled(self, tensors: Sequence[Tensor], pinned: bool) -> list[Tensor]:
        whole = torch.empty(self.nbytes, dtype=torch.uint8)
        for view, tensor in zip(self.views(whole), tensors, strict=True):
            view.copy_(tensor.data)
        pieces = []
        for part in whole.split(list(piece_sizes(self.nbytes))):
            pieces.append(torch.empty(len(part), dtype=torch.uint8, pin_memory=pinned).copy_(part))
        return pieces


def _laid_out(tensors: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Where each tensor begins, and one like it without memory."""
    start = 0
    for tensor in tensors:
        yield start, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        start += padded_size([tensor.nbytes])


def padded_size(sizes: Iterable[int]) -> int:
    """Bytes of tensors of these sizes in a slot."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def piece_sizes(nbytes: int) -> Iterator[int]:
    """Powers of two, large ones first, and a small rest."""
    while nbytes >= SMALLEST_PIECE:
        piece = 1 << (nbytes.bit_length() - 1)
        yield piece
        nbytes -= piece
    if nbytes:
        yield nbytes


# ---- how it moves ----


class Lane(Protocol):
    """Copies beside what is computed, and who waits for whom."""

    def copy(self, parcel: Parcel, slot: Tensor, after: Mark) -> Mark:
        """Begin to fill the slot `after` that; the answer says when it is full."""
        ...

    def wait(self, mark: Mark) -> None:
        """What is computed from now on waits for the mark."""
        ...

    def mark(self) -> Mark:
        """All that has been given to compute so far."""
        ...


class CudaLane:
    """Copies in a stream of its own; what is computed is in the current stream of whoever calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def copy(self, parcel: Parcel, slot: Tensor, after: Mark) -> Mark:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            _copy_pieces(parcel, slot)
            return self._stream.record_event()

    def wait(self, mark: Mark) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def mark(self) -> Mark:
        return torch.cuda.current_stream(self._device).record_event()


class HostLane:
    """On the CPU everything is done at once."""

    def copy(self, parcel: Parcel, slot: Tensor, after: Mark) -> Mark:
        _copy_pieces(parcel, slot)

    def wait(self, mark: Mark) -> None:
        pass

    def mark(self) -> Mark:
        return None


def lane_for(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else HostLane()


def _copy_pieces(parcel: Parcel, slot: Tensor) -> None:
    start = 0
    for piece in parcel.pieces:
        slot[start : start + len(piece)].copy_(piece, non_blocking=True)
        start += len(piece)


class Slots:
    """Two places on the device, and when each was filled and read last. For one thread at a time."""

    @torch.inference_mode(False)
    def __init__(self, nbytes: int, device: torch.device, lane: Lane | None = None) -> None:
        self._lane = lane or lane_for(device)
        self.buffers = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(NUM_SLOTS)]
        # The memory may just have been somebody else's, whose work is not done yet.
        self._read: list[Mark] = [self._lane.mark()] * NUM_SLOTS
        self._full: list[Mark] = [None] * NUM_SLOTS
        self.turn: object = None  # whose pass it is

    def fill(self, number: int, parcel: Parcel) -> None:
        self._full[number] = self._lane.copy(parcel, self.buffers[number], self._read[number])

    def take(self, number: int) -> None:
        """What is computed from now on may read the slot."""
        self._lane.wait(self._full[number])

    def release(self, number: int) -> None:
        """What was computed so far was the last to read it."""
        self._read[number] = self._lane.mark()


@dataclass(frozen=True, slots=True)
class InSlot(Generic[Item]):
    """Something made of a slot's memory: what it should be when the parcel is there."""

    number: int
    parcel: Parcel
    item: Item


class Streamed(Generic[Item]):
    """Items in order, some of which are on the device and some on their way.

    A loop over it is a pass: each item is good until the next one is asked for. A pass that ends early, with
    an error say, leaves nothing that the next pass needs to know: the copies of both are in one order, and
    what the broken one computed is nobody's. Two passes over the same slots at once are a RuntimeError.
    """

    def __init__(self, items: Sequence[Item | InSlot[Item]], slots: Slots) -> None:
        self._items = items
        self._slots = slots

    def __len__(self) -> int:
        return len(self._items)

    @property
    def streamed(self) -> int:
        """How many come anew in each pass."""
        return sum(isinstance(one, InSlot) for one in self._items)

    def __iter__(self) -> Iterator[Item]:
        slots, turn = self._slots, object()
        slots.turn = turn
        coming = iter([one for one in self._items if isinstance(one, InSlot)])
        for first in itertools.islice(coming, NUM_SLOTS):
            slots.fill(first.number, first.parcel)
        for one in self._items:
            if not isinstance(one, InSlot):
                yield one
                continue
            slots.take(one.number)
            yield one.item
            if slots.turn is not turn:
                raise RuntimeError(
                    "Two passes used the same slots at once: the weights of one were replaced."
                )
            slots.release(one.number)
            following = next(coming, None)  # of the same slot: the numbers take turns
            if following is not None:
                slots.fill(following.number, following.parcel)


def streamed(
    items: list[Any],
    chosen: Iterable[int],
    slots: Slots,
    in_slot: Callable[[Any, Slots, int], InSlot[Any]],
) -> Streamed[Any]:
    """The items at the places `chosen` go to the host by `in_slot(item, slots, number)`, one after the other.

    Takes the list over, so that no item is in memory twice for long.
    """
    for count, place in enumerate(sorted(chosen)):
        items[place] = in_slot(items[place], slots, count % NUM_SLOTS)
    return Streamed(items, slots)


# ---- named tuples of tensors, and modules ----


def tuple_in_slot(item: Any, slots: Slots, number: int) -> InSlot[Any]:
    """A named tuple of tensors, or of such tuples."""
    buffer = slots.buffers[number]
    parcel = _parcel_for(buffer, list(leaves(item)))
    return InSlot(number, parcel, rebuilt(item, iter(parcel.views(buffer))))


def _parcel_for(buffer: Tensor, tensors: Sequence[Tensor]) -> Parcel:
    with torch.cuda.device_of(buffer):  # pinning makes CUDA's context on the current device
        return Parcel(tensors, pinned=buffer.is_cuda)


def leaves(item: Any) -> Iterator[Tensor]:
    """All tensors of a named tuple, however deep."""
    if isinstance(item, Tensor):
        yield item
    else:
        for part in item:
            yield from leaves(part)


def rebuilt(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The same named tuple of other tensors."""
    if isinstance(like, Tensor):
        return next(tensors)
    return type(like)(*(rebuilt(part, tensors) for part in like))


def module_in_slot(module: Any, slots: Slots, number: int) -> InSlot[Any]:
    """A module. It is emptied (meta device): its twin over the slot computes in its place."""
    buffer = slots.buffers[number]
    tensors = module_tensors(module)
    parcel = _parcel_for(buffer, tensors)
    memo: dict[int, Any] = {
        id(old): nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        for old, new in zip(tensors, parcel.views(buffer), strict=True)
    }
    twin = copy.deepcopy(module, memo)
    module.to("meta")
    return InSlot(number, parcel, twin)


def module_tensors(module: nn.Module) -> list[Tensor]:
    """Its parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]
