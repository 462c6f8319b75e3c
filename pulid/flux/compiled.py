"""FLUX's blocks under torch's compiler: one graph for each kind of block and batch, whatever the size.

A size of one is always a constant to the compiler, so a batch of one, several rows that share an
identity and several that do not have graphs of their own. All are made while the engine warms up, and
each is held against the plain form there (`held_against_plain`). Afterwards nothing is compiled any
more (`settled`): inputs that no graph fits are computed by the plain functions, a little slower and at
once, and `uncompiled_calls` counts them.

Knows torch's compiler. Does not know sizes of pictures, devices, requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pulid.flux.fused import PLAIN_BLOCKS, Blocks, FusedFlux, double_block, folded_attention, single_block
from pulid.flux.kernels.choice import PLAIN, Kernels
from pulid.flux.kernels.plain import LARGEST
from pulid.flux.packing import DoubleWeights, SingleWeights

Backend = str | Callable[..., Any]  # as torch.compile takes it
Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, Tensor])

BACKEND = "inductor"
# None but the compiler's own: each would change the generated code, and none has been timed here.
OPTIONS: Mapping[str, Any] = {}
GRAPHS = 32  # of one function; eight of the identity's are used
# Relative L2 of one block's result. Compiled, fewer intermediate values are rounded; 57 blocks in turn
# must stay within the noise of bfloat16, and what is computed wrongly is far off.
TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# The same of blocks that quantise. A value x that is rounded once less than in the plain form differs by n,
# a quarter of its precision's unit on average, and so goes to the neighbouring one of the eight-bit numbers,
# a step s away, in a share n / s of all cases: an error of sqrt(mean(n s) / mean(x x)). In bfloat16 and e4m3
# that is sqrt(2**-9 * 2**-3 / (7 / 3)) = 1.02e-2 of what a linear is given, and three such inputs meet in a
# block: times sqrt(3). In float32 the same with 2**-25. Measured in bfloat16: up to 1.2e-2.
QUANTISING: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 1.8e-2}

_uncompiled = 0  # calls


class ComputesOtherwise(Exception):
    """A compiled block gave other numbers than the plain one."""


# ---- making ----


def compiled_blocks(backend: Backend = BACKEND, options: Mapping[str, Any] = OPTIONS) -> Blocks:
    """The blocks for a compiler to compile at their first calls. `options` are inductor's."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, GRAPHS)

    def compiled(block: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(
            block, fullgraph=True, dynamic=True, backend=backend, options=dict(options) or None
        )

    return Blocks(
        double=compiled(_double), single=compiled(_single), identity=compiled(_identity), note="compiled"
    )


# A compiler's tables belong to a function: so each has one of its own here.


def _double(kernels: Kernels, weights: DoubleWeights, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    _enter(inputs)
    return double_block(kernels, weights, *inputs)


def _single(kernels: Kernels, weights: SingleWeights, *inputs: Tensor) -> Tensor:
    _enter(inputs)
    return single_block(kernels, weights, *inputs)


def _identity(_: Kernels, image: Tensor, *maps: Any) -> Tensor:
    """The softmax is the compiler's: to Triton's each number of identity tokens would be a graph more."""
    _enter((image,))
    return folded_attention(PLAIN, image, *maps)


def _enter(inputs: Sequence[Tensor]) -> None:
    """In a graph: widths are constants, so that only rows and tokens vary. Uncompiled: a call more."""
    global _uncompiled
    if torch.compiler.is_compiling():
        for x in inputs:
            torch._dynamo.mark_static(x, -1)
    else:
        _uncompiled += 1


# ---- proving ----


def proven(flux: FusedFlux, blocks: Blocks, run: Callable[[], None]) -> Blocks:
    """`blocks`, settled, if in `run` they compute what the plain ones do; else the plain ones, and why.

    `run` uses `flux` in all the ways that it will be used in. Raises torch.OutOfMemoryError.
    """
    for weights in flux.weights():
        torch._dynamo.mark_static(weights)
    quantises = any(weight.dtype in LARGEST for weight in flux.weights())
    before, flux.blocks = flux.blocks, held_against_plain(blocks, QUANTISING if quantises else TOLERANCES)
    try:
        run()
        flux.blocks = blocks  # so that each is compiled for what the one before it gives
        run()
    except Exception as exc:  # the compiler and what it calls raise what they like
        reason = getattr(exc, "inner_exception", exc)  # of a compiler's own wrapper
        if isinstance(reason, torch.OutOfMemoryError):
            raise reason from None
        return replace(PLAIN_BLOCKS, note=f"plain: {type(reason).__name__}")
    finally:
        flux.blocks = before
    return settled(blocks)


def held_against_plain(blocks: Blocks, tolerances: Mapping[torch.dtype, float] = TOLERANCES) -> Blocks:
    """The plain blocks, which run each compiled one beside them and raise ComputesOtherwise.

    `tolerances` are those of double and single blocks; the identity never quantises.
    """
    return replace(
        PLAIN_BLOCKS,
        double=_held(blocks.double, PLAIN_BLOCKS.double, tolerances),
        single=_held(blocks.single, PLAIN_BLOCKS.single, tolerances),
        identity=_held(blocks.identity, PLAIN_BLOCKS.identity, TOLERANCES),
    )


def _held(
    compiled: Callable[..., Outputs],
    plain: Callable[..., Outputs],
    tolerances: Mapping[torch.dtype, float],
) -> Callable[..., Outputs]:
    def both(*inputs: Any) -> Outputs:
        got, expected = compiled(*inputs), plain(*inputs)
        for one, other in zip(_tensors(got), _tensors(expected), strict=True):
            if not agrees(one, other, tolerances):
                raise ComputesOtherwise
        return expected

    return both


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def agrees(got: Tensor, expected: Tensor, tolerances: Mapping[torch.dtype, float] = TOLERANCES) -> bool:
    """Within the tolerance of its precision. NaN never agrees."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    return bool(error <= tolerances[expected.dtype])


# ---- using ----


def settled(blocks: Blocks) -> Blocks:
    """The same, with the graphs that there are by now: from here on nobody waits for a compiler."""
    run = torch._dynamo.run
    return replace(
        blocks, double=run(blocks.double), single=run(blocks.single), identity=run(blocks.identity)
    )


def graphs_made() -> int:
    """How many graphs this process has compiled, of whatever function."""
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


def uncompiled_calls() -> int:
    """How often in this process a function of `compiled_blocks` ran uncompiled."""
    return _uncompiled
