"""Which weights stay on a card of little memory, and which lie in the host's and come in turn.

Four kinds of weights can come in turn. What is read most often stays longest: T5's blocks leave first, read
once for a new prompt; then the linears that give the modulation, read once for a request; then FLUX's single
blocks; last its double blocks, which have half the work for each byte to hide a copy behind.

A plain computation from sizes, the same on the meta device and on a card. Moves nothing.
Decision: docs/decisions/0019-lowvram.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from pulid.flux.modulation import modulation_linears
from pulid.flux.packing import block_without_modulation
from pulid.flux.quantised import SCALE, block_linears
from pulid.flux.streaming import NUM_SLOTS, module_tensors, padded_size
from pulid.parts import FluxStreams, Networks
from pulid.profiles import SpeedProfile

FACE_NETS = 170 * 10**6  # bytes of RetinaFace and BiSeNet in float32, which are the same at any size
SCALE_BYTES = 4  # of each output of a quantised linear


@dataclass(frozen=True, slots=True)
class Group:
    """Weights of one kind, in the order in which a pass reads them."""

    sizes: Sequence[int]  # bytes in a slot
    away: tuple[int, ...] = ()  # which of them come in turn

    @property
    def staying(self) -> int:
        """Bytes."""
        return sum(self.sizes) - self.coming

    @property
    def coming(self) -> int:
        """Bytes."""
        return sum(self.sizes[number] for number in self.away)

    @property
    def slot(self) -> int:
        """Bytes of a slot that takes any that come in turn."""
        return max((self.sizes[number] for number in self.away), default=0)

    def within(self, room: int) -> Group:
        """As many stay as fit into so many bytes, even if all were of the largest size."""
        stay = min(len(self.sizes), max(0, room) // max(self.sizes))
        return Group(self.sizes, spread(len(self.sizes), len(self.sizes) - stay))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each weight of an engine is."""

    always: int  # bytes of what never leaves the device
    doubles: Group
    singles: Group
    modulation: Group
    t5: Group

    @property
    def flux(self) -> FluxStreams | None:
        groups = (self.doubles, self.singles, self.modulation)
        if not any(group.away for group in groups):
            return None
        return FluxStreams(
            doubles=self.doubles.away,
            singles=self.singles.away,
            modulation=self.modulation.away,
            slot=max(group.slot for group in groups),
        )

    @property
    def on_device(self) -> int:
        """Bytes of weights and slots."""
        slot = 0 if self.flux is None else self.flux.slot
        return (
            self.always + sum(group.staying for group in self._groups()) + NUM_SLOTS * (slot + self.t5.slot)
        )

    @property
    def on_host(self) -> int:
        """Bytes of pinned memory."""
        return sum(group.coming for group in self._groups())

    def _groups(self) -> tuple[Group, ...]:
        return (self.doubles, self.singles, self.modulation, self.t5)


def placement(
    profile: SpeedProfile, networks: Networks, t5: T5EncoderModel, clip: CLIPTextModel
) -> Placement | None:
    """Where the profile's limit lets the weights be; None where it has no limit.

    The networks may be on the meta device, in any precision, quantised or not. Where nothing but slots and
    what never leaves has room, and not even that, all kinds come in turn: loading then ends with the error
    of too little memory.
    """
    if not profile.memory_limit:
        return None
    bytes_each = getattr(torch, profile.dtype).itemsize
    sizes = Sizes(networks.transformer, bytes_each, quantised=profile.linears != "full")
    transformer = networks.transformer
    doubles = Group([sizes.of_block(block) for block in transformer.transformer_blocks])
    singles = Group([sizes.of_block(block) for block in transformer.single_transformer_blocks])
    modulation = Group([sizes.of_all(linear) for linear in modulation_linears(transformer)])
    texts = Group([sizes.of_all(block) for block in t5.encoder.block])
    groups = (doubles, singles, modulation, texts)
    others = (networks.idformer, networks.identity_attentions, networks.eva_clip, transformer, t5, clip)
    always = FACE_NETS + sum(sizes.of_all(network) for network in others) - sum(sum(g.sizes) for g in groups)
    always += Sizes(transformer, torch.float32.itemsize, quantised=False).of_all(networks.autoencoder.decoder)
    room = profile.memory_limit - profile.working_memory - always - NUM_SLOTS * max(texts.sizes)
    return Placement(
        always=always,
        **dict(zip(("doubles", "singles", "modulation", "t5"), _filled(groups, room), strict=True)),
    )


def _filled(groups: Sequence[Group], room: int) -> Iterator[Group]:
    """Each of the groups in turn takes what room the ones before it have left."""
    doubles, singles, modulation, _ = groups
    small = NUM_SLOTS * max(*singles.sizes, *modulation.sizes)
    if sum(doubles.sizes) <= room - small:
        room -= small
    else:
        room -= max(small, NUM_SLOTS * max(doubles.sizes))
    for group in groups:
        placed = group.within(room)
        room -= placed.staying
        yield placed


def spread(total: int, count: int) -> tuple[int, ...]:
    """`count` of the numbers below `total`, as far from each other as can be, and late rather than early."""
    return tuple((place + 1) * total // count - 1 for place in range(count))


class Sizes:
    """Bytes of a transformer's weights in the precisions that a profile gives them."""

    def __init__(self, transformer: FluxTransformer2DModel, bytes_each: int, *, quantised: bool) -> None:
        self._bytes = bytes_each
        linears = (linear for _, linear in block_linears(transformer)) if quantised else ()
        self._outputs = {id(linear.weight): linear.out_features for linear in linears}
        self._scales = {id(linear.weight_scale) for linear in transformer.modules() if hasattr(linear, SCALE)}

    def of_all(self, module: nn.Module) -> int:
        return self._of(module_tensors(module))

    def of_block(self, block: nn.Module) -> int:
        """Without the linears that give its modulation."""
        return self.of_all(block_without_modulation(block))

    def _of(self, tensors: Iterable[Tensor]) -> int:
        return padded_size(size for tensor in tensors for size in self._each(tensor))

    def _each(self, tensor: Tensor) -> Iterator[int]:
        if id(tensor) in self._outputs:
            yield tensor.numel()
            yield SCALE_BYTES * self._outputs[id(tensor)]
        elif id(tensor) not in self._scales:  # they count with their weights
            yield tensor.numel() * self._bytes
