"""One request through an engine that nobody else drives, for commands without a server.

The engine's calls in their order: admit, step until the last event, cancel whatever is left, decode. Knows
no terminal and no files.
"""

from __future__ import annotations

from collections.abc import Callable

from pulid.engine import Engine, GenerationRequest, GenerationResult, StepEvent
from pulid.errors import EngineFailed

_JOB = "command"


def run_alone(
    engine: Engine, request: GenerationRequest, told: Callable[[StepEvent], None] = lambda event: None
) -> GenerationResult:
    """Paint it; `told` hears of every step. Raises what made it fail; the engine is free afterwards."""
    engine.admit(_JOB, request)
    try:
        while events := engine.step():
            last = events[-1]
            told(last)
            if last.error is not None:
                raise last.error
            if last.denoised is not None:
                return engine.decode(last.denoised)
    finally:
        engine.cancel(_JOB)
    raise EngineFailed("The engine stopped before the picture was done.")
