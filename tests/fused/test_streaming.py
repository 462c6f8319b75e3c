"""Weights that pass through two slots: in order, whole, and never replaced while they are read."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import nn

from pulid.flux.kernels.plain import Rows, as_rows
from pulid.flux.streaming import (
    HostLane,
    Parcel,
    Slots,
    leaves,
    module_in_slot,
    module_tensors,
    padded_size,
    piece_sizes,
    streamed,
    tuple_in_slot,
)

CPU = torch.device("cpu")


class Weights(NamedTuple):
    matrix: Rows
    bias: torch.Tensor


def weights(number):
    draw = torch.Generator().manual_seed(number)
    matrix = as_rows(torch.randn(5, 7, generator=draw))
    return Weights(matrix, torch.randn(5, generator=draw).bfloat16())


def size(item):
    return padded_size(tensor.nbytes for tensor in leaves(item))


def passes_of(count, chosen, lane=None):
    """`count` weights of which the chosen ones are streamed, and copies of what they were."""
    items = [weights(number) for number in range(count)]
    kept = [[tensor.clone() for tensor in leaves(item)] for item in items]
    slots = Slots(size(items[0]), CPU, lane)
    return streamed(items, chosen, slots, tuple_in_slot), kept, slots


def same(item, kept):
    return all(torch.equal(a.float(), b.float()) for a, b in zip(leaves(item), kept, strict=True))


# ---- parcels ----


def test_a_parcel_has_every_tensor_with_its_shape_and_precision():
    tensors = [torch.randn(3, 5), torch.randn(2, 2).bfloat16(), as_rows(torch.randn(4, 3)).values]
    parcel = Parcel([*tensors, torch.tensor(7)], pinned=False)
    slot = torch.zeros(parcel.nbytes + 9, dtype=torch.uint8)
    slot[: parcel.nbytes] = torch.cat(parcel.pieces)
    for view, tensor in zip(parcel.views(slot), [*tensors, torch.tensor(7)], strict=True):
        assert (view.shape, view.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(view.float(), tensor.float())
        assert (view.data_ptr() - slot.data_ptr()) % 256 == 0


@pytest.mark.parametrize("nbytes", [1, 2**20, 113_394_176, 226_825_216, 385_896_448])
def test_pinned_memory_comes_in_pieces_that_are_rounded_up_by_less_than_a_mebibyte(nbytes):
    pieces = list(piece_sizes(nbytes))
    assert sum(pieces) == nbytes
    rounded = sum(1 << (piece - 1).bit_length() for piece in pieces)
    assert rounded - nbytes < 2**20


# ---- passes ----


@pytest.mark.parametrize("chosen", [(), (0,), (3,), (1, 4), (0, 1, 2), (1, 2, 5), range(6)])
def test_each_pass_has_all_items_in_order(chosen):
    sequence, kept, _ = passes_of(6, chosen)
    assert (len(sequence), sequence.streamed) == (6, len(chosen))
    for _ in range(3):
        assert [same(item, expected) for item, expected in zip(sequence, kept, strict=True)] == [True] * 6


def test_a_pass_that_ends_early_leaves_nothing_to_the_next():
    sequence, kept, _ = passes_of(5, range(5))
    for stop in range(5):
        broken = iter(sequence)
        for _ in range(stop):
            next(broken)
        for item, expected in zip(sequence, kept, strict=True):
            assert same(item, expected)
        del broken


def test_two_passes_at_once_are_an_error_and_not_wrong_weights():
    sequence, _, _ = passes_of(4, range(4))
    one, other = iter(sequence), iter(sequence)
    next(one), next(other)
    with pytest.raises(RuntimeError, match="used the same slots at once"):
        next(one)


def test_a_copy_that_fails_leaves_the_next_pass_whole():
    class Full(HostLane):
        left = 3

        def copy(self, parcel, slot, after):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("no memory for a copy")
            super().copy(parcel, slot, after)

    sequence, kept, _ = passes_of(5, range(5), Full())
    with pytest.raises(torch.OutOfMemoryError):
        list(sequence)
    for item, expected in zip(sequence, kept, strict=True):
        assert same(item, expected)


# ---- order ----


class TwoStreams(HostLane):
    """Copies and reads are queued, and run afterwards in any order that the marks allow.

    `forgets` leaves out one kind of wait, as a mistake would.
    """

    def __init__(self, forgets=None):
        self.copies, self.reads = [], []  # (what to do, after how many of the other queue)
        self.forgets = forgets
        self._needed = 0  # copies, by what is computed from now on

    def copy(self, parcel, slot, after):
        after = 0 if self.forgets == "slot free" else after
        self.copies.append((lambda: HostLane.copy(self, parcel, slot, None), after))
        return len(self.copies)

    def wait(self, mark):
        if self.forgets != "slot full":
            self._needed = max(self._needed, mark)

    def mark(self):
        return len(self.reads)

    def read(self, look):
        self.reads.append((look, self._needed))

    def run(self, first):
        """`first` is a generator that says which queue goes on where both may."""
        done = {"copy": 0, "read": 0}
        queues = {"copy": (self.copies, "read"), "read": (self.reads, "copy")}
        while any(done[name] < len(queue) for name, (queue, _) in queues.items()):
            ready = [
                name
                for name, (queue, other) in queues.items()
                if done[name] < len(queue) and queue[done[name]][1] <= done[other]
            ]
            assert ready, "each waits for the other"
            name = ready[0] if len(ready) == 1 else ("copy", "read")[next(first)]
            queues[name][0][done[name]][0]()
            done[name] += 1


def all_right(forgets, orders, chosen=(0, 1, 3, 4, 5, 6), passes=2):
    """Whether every read saw its own weights; in passes one after the other."""
    lane = TwoStreams(forgets)
    sequence, kept, _ = passes_of(7, chosen, lane)
    seen = []
    for _ in range(passes):
        for item, expected in zip(sequence, kept, strict=True):
            lane.read(lambda item=item, expected=expected: seen.append(same(item, expected)))
    lane.run(orders)
    assert len(seen) == 7 * passes
    return all(seen)


def orders():
    """Copies as early as can be, as late, in turn, and by chance."""
    yield itertools.repeat(0)
    yield itertools.repeat(1)
    yield itertools.cycle((0, 1))
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        yield iter(torch.randint(0, 2, (1000,), generator=draw).tolist())


def test_whatever_runs_first_every_block_reads_its_own_weights():
    assert all(all_right(None, order) for order in orders())


@pytest.mark.parametrize("forgets", ["slot free", "slot full"])
def test_without_one_of_the_waits_it_would_not(forgets):
    assert not all(all_right(forgets, order) for order in orders())


def test_a_copy_may_run_beside_the_block_before():
    """Else nothing would be hidden: the third copy needs the first read only."""
    lane = TwoStreams()
    sequence, *_ = passes_of(4, range(4), lane)
    for _ in sequence:
        lane.read(lambda: None)
    assert [after for _, after in lane.copies] == [0, 0, 1, 2]
    assert [needed for _, needed in lane.reads] == [1, 2, 3, 4]


# ---- modules ----


def test_a_module_is_emptied_and_its_twin_computes_what_it_did():
    modules = [
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval().requires_grad_(False) for _ in range(5)
    ]
    x = torch.randn(3, 8)
    expected = [module(x) for module in modules]
    tensors = module_tensors(modules[0])
    slots = Slots(padded_size(tensor.nbytes for tensor in tensors), CPU)
    originals = list(modules)
    sequence = streamed(modules, (0, 1, 2, 4), slots, module_in_slot)
    for _ in range(2):
        for module, before in zip(sequence, expected, strict=True):
            assert torch.equal(module(x), before)
    assert [module[0].weight.is_meta for module in originals] == [True, True, True, False, True]
    assert all(parameter.requires_grad is False for module in sequence for parameter in module.parameters())
