"""The forward of a denoising step, recorded once for each shape and replayed from then on.

As a CUDA graph the thousand kernels of a step are one launch. A recording reads what it is given from
tensors that never move: each call's inputs are copied there, and its answer is copied out. It is used
only where its first replay had the bits of the same call made directly; what cannot be recorded is
called as ever. For one thread, in inference mode, and one call at a time.

Knows: which calls are alike, and what the tensors hold that never move.
Does not know: what a forward computes, people, requests, steps.
Decision: docs/decisions/0012-captured-steps.md
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pulid.flux.fused import FoldedResidual
from pulid.flux.transformer import IdentityResidual, Rotary

RECORDINGS = 16  # kept; the one that was used least recently goes
RECORDED_AFTER = 20  # calls: recording costs about three more, which a size asked for once never earns back
COUNTED = 256  # shapes whose calls are counted
REFUSALS = 4  # shapes that could not be recorded; after so many no other is tried
IDENTITY_BYTES = 2**29  # of one recording: at full size the maps of four people

Forward = Callable[..., Tensor]  # IdentityFlux or FusedFlux
Replay = Callable[[], Tensor]  # computes again; the answer is good until the next replay of any recording


class Recorder(Protocol):
    """What can repeat a computation that reads tensors which never move."""

    @property
    def name(self) -> str: ...

    def record(self, compute: Callable[[], Tensor]) -> Replay:
        """Raises whatever `compute` and the device raise."""
        ...


class CudaRecorder:
    """Repeats a computation as a CUDA graph."""

    name = "CUDA graphs"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One for all: a pool hands memory from one recording on to the next on the same stream only.
        self._stream = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, compute: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        # The stream is entered here too: a capture that fails does not come back from its own.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            compute()  # makes what no capture can: cuBLAS' workspace of this stream, loaded modules, plans
            with torch.cuda.graph(
                graph,
                pool=self._pool(),
                stream=self._stream,
                capture_error_mode="thread_local",  # photos and prompts are read beside, in other threads
            ):
                output = compute()
        outside.wait_stream(self._stream)
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _pool(self) -> Any:  # torch's handle of a pool has no public name
        """The graphs' memory, one for all. A pool whose last graph has gone cannot be asked for again."""
        return next((graph.pool() for graph in self._graphs), None)


class Rerun:
    """Repeats a computation by computing again. Its answer has one place, as a graph's has."""

    name = "computed again"

    def record(self, compute: Callable[[], Tensor]) -> Replay:
        output = compute()

        def replay() -> Tensor:
            return output.copy_(compute())

        return replay


@runtime_checkable
class FoldedIdentity(FoldedResidual, Protocol):
    """Identities side by side as matrices, of which `silent` gives others of the same shape."""

    def residual(self, index: int, image: Tensor) -> Tensor: ...
    def silent(self) -> Self: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one forward is given; shapes as `IdentityFlux` and `FusedFlux` take them."""

    latents: Tensor
    text: Tensor
    pooled: Tensor
    timestep: Tensor
    guidance: Tensor
    rotary: Rotary
    identity: FoldedIdentity | None
    modulation_rows: Tensor | None

    def of(self, forward: Forward) -> Tensor:
        table = {} if self.modulation_rows is None else {"modulation_rows": self.modulation_rows}
        return forward(
            self.latents,
            text=self.text,
            pooled=self.pooled,
            timestep=self.timestep,
            guidance=self.guidance,
            rotary=self.rotary,
            identity=self.identity,
            **table,
        )

    def small(self) -> list[Tensor]:
        """Up to a few MB together, and some of it new in each step."""
        each = (self.latents, self.text, self.pooled, self.timestep, self.guidance, self.modulation_rows)
        return [x for x in each if x is not None]

    def key(self) -> Hashable:
        """What calls share that one recording serves."""
        has_table = self.modulation_rows is not None
        return has_table, _layouts(self.small()), _layouts(self.rotary), _kind(self.identity)

    def emptied(self, identity: FoldedIdentity | None) -> Call:
        """The same shapes in memory of its own, with another identity."""
        cos, sin = self.rotary
        return Call(
            latents=torch.empty_like(self.latents),
            text=torch.empty_like(self.text),
            pooled=torch.empty_like(self.pooled),
            timestep=torch.empty_like(self.timestep),
            guidance=torch.empty_like(self.guidance),
            rotary=(torch.empty_like(cos), torch.empty_like(sin)),
            identity=identity,
            modulation_rows=None if self.modulation_rows is None else torch.empty_like(self.modulation_rows),
        )


def _layouts(tensors: Sequence[Tensor]) -> Hashable:
    """Strides too: they choose a GEMM's kernel, and that its last bits."""
    return tuple((x.shape, x.stride(), x.dtype) for x in tensors)


def _kind(identity: FoldedIdentity | None) -> Hashable:
    if identity is None:
        return None
    return type(identity), tuple(a.heads for a in identity.attentions), _layouts(_maps(identity))


def _maps(identity: FoldedIdentity) -> list[Tensor]:
    """At full size 126 MB a person, and the same in most steps of a request."""
    return [x for a in identity.attentions for x in (a.query_map, a.query_offset, a.value_map)]


class Kept:
    """Tensors that never move, filled from others that seldom change."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self._source: list[tuple[weakref.ref[Tensor], int | None]] = []

    def fill(self, source: Sequence[Tensor]) -> None:
        """Copy, unless the very same tensors were copied last.

        Told by weak references and not by addresses or ids, which a freed tensor leaves to the next
        one. Tensors made in inference mode count no writes: they must not be written to once made.
        """
        if len(self._source) == len(source) and all(
            last() is now and version == _version(now)
            for (last, version), now in zip(self._source, source, strict=True)
        ):
            return
        self._source = []  # while they are copied, and if that fails
        _copy(self.tensors, source)
        self._source = [(weakref.ref(x), _version(x)) for x in source]


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    for into, x in zip(to, source, strict=True):
        into.copy_(x)


class KeptIdentity:
    """An identity that never moves. Pictures of all sizes share it: maps know no size."""

    def __init__(self, like: FoldedIdentity) -> None:
        self.identity = like.silent()
        self._maps = Kept(_maps(self.identity))

    def fill(self, source: FoldedIdentity) -> None:
        self._maps.fill(_maps(source))


class Recording:
    """One shape's forward, and the tensors that it reads."""

    def __init__(self, call: Call, forward: Forward, recorder: Recorder, kept: KeptIdentity | None) -> None:
        self._kept = kept
        self._inputs = inputs = call.emptied(None if kept is None else kept.identity)
        self._rotary = Kept(inputs.rotary)
        self._fill(call)
        self._replay = recorder.record(lambda: inputs.of(forward))

    def run(self, call: Call) -> Tensor:
        self._fill(call)
        return self._replay().clone()

    def _fill(self, call: Call) -> None:
        _copy(self._inputs.small(), call.small())
        self._rotary.fill(call.rotary)
        if self._kept is not None and call.identity is not None:
            self._kept.fill(call.identity)


class CapturedFlux:
    """A transformer's forward, called as it is itself, from recordings where there are any."""

    def __init__(self, forward: Forward, recorder: Recorder, recorded_after: int = RECORDED_AFTER) -> None:
        self._forward = forward
        self._recorder = recorder
        self._recorded_after = recorded_after
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._identities: weakref.WeakValueDictionary[Hashable, KeptIdentity] = weakref.WeakValueDictionary()
        self._calls: OrderedDict[Hashable, int] = OrderedDict()  # direct ones, of shapes not recorded
        self._refused: dict[Hashable, str] = {}  # with the reason
        self.replays = 0

    @torch.inference_mode()
    def __call__(
        self,
        latents: Tensor,
        *,
        text: Tensor,
        pooled: Tensor,
        timestep: Tensor,
        guidance: Tensor,
        rotary: Rotary,
        identity: IdentityResidual | None = None,
        modulation_rows: Tensor | None = None,
    ) -> Tensor:
        """Arguments and answer are those of `IdentityFlux` and `FusedFlux`."""
        folded = identity if isinstance(identity, FoldedIdentity) else None
        call = Call(
            latents=latents,
            text=text,
            pooled=pooled,
            timestep=timestep,
            guidance=guidance,
            rotary=rotary,
            identity=identity,  # type: ignore[arg-type]  # another kind only goes to `_directly`
            modulation_rows=modulation_rows,
        )
        if folded is not identity:
            return self._directly(call)
        key = call.key()
        if key in self._recordings:
            self._recordings.move_to_end(key)
            self.replays += 1
            return self._recordings[key].run(call)
        answer = self._directly(call)
        if self._is_due(key, call):
            self._record(key, call, answer)
        return answer

    @property
    def form(self) -> str:
        """How recordings are repeated."""
        return self._recorder.name

    @property
    def recorded(self) -> int:
        """How many shapes are recorded now."""
        return len(self._recordings)

    def described(self) -> str:
        """One line on what has been done so far."""
        counts = f"{self.form}: {self.recorded} recorded, {self.replays} replays"
        reasons = ", ".join(sorted(set(self._refused.values())))
        return f"{counts}, {len(self._refused)} refused ({reasons})" if reasons else counts

    def forget(self) -> None:
        """Give the memory of all recordings back. They are made anew when their shapes have come up again."""
        self._recordings.clear()

    def _directly(self, call: Call) -> Tensor:
        try:
            return call.of(self._forward)
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        self.forget()  # here, where no traceback keeps tensors alive
        return call.of(self._forward)

    def _is_due(self, key: Hashable, call: Call) -> bool:
        """Whether this shape, called once more, is to be recorded now."""
        if key in self._refused or len(self._refused) >= REFUSALS:
            return False
        if call.identity is not None and sum(x.nbytes for x in _maps(call.identity)) > IDENTITY_BYTES:
            return False
        self._calls[key] = self._calls.pop(key, 0) + 1
        if len(self._calls) > COUNTED:
            self._calls.popitem(last=False)
        return self._calls[key] > self._recorded_after

    def _record(self, key: Hashable, call: Call, answer: Tensor) -> None:
        del self._calls[key]
        while len(self._recordings) >= RECORDINGS:  # now: no graph may end while another is captured
            self._recordings.popitem(last=False)
        made = self._proven(call, answer)
        if isinstance(made, Recording):
            self._recordings[key] = made
        else:
            self._refused[key] = made
            self.forget()  # a capture that wants for memory fails in many ways

    def _proven(self, call: Call, answer: Tensor) -> Recording | str:
        """A recording that gave this call's answer, bit for bit, or why there is none."""
        try:
            kept = self._kept_identity(call.identity)
            recording = Recording(call, self._forward, self._recorder, kept)
            return recording if torch.equal(recording.run(call), answer) else "it computed something else"
        except Exception as exc:  # torch, Triton, its compiler and the driver raise what they like
            return type(exc).__name__

    def _kept_identity(self, like: FoldedIdentity | None) -> KeptIdentity | None:
        if like is None:
            return None
        kept = self._identities.get(_kind(like))
        if kept is None:
            kept = self._identities[_kind(like)] = KeptIdentity(like)
        return kept


def captured(forward: Forward, device: torch.device) -> CapturedFlux:
    """With CUDA graphs, or on the CPU with what shows the same mistakes and saves no time."""
    return CapturedFlux(forward, CudaRecorder(device) if device.type == "cuda" else Rerun())
