"""Steps of which only the first block is computed: the others add what they added in the last full step.

What the first double block adds to the image tokens, the identity behind it included, tells how far a step
is from the last one that was computed whole. Where it is near, what all other blocks and identities added
then is added again, and they are not run.

Knows what one branch of one request keeps (`StepCache`), and when it must not be used. Does not know
blocks, people, requests: callers say whose turn it is, and a forward's rows are those of one request.
Decision: docs/decisions/0018-step-cache.md
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pulid.flux.transformer import IdentityResidual

MAX_SKIPPED = 3  # steps in a row; then one is computed whole

# Takes these rows of the image tokens from behind the first block through all others, with the identity of
# these rows: (all rows, tokens, dim) -> (rows, tokens, dim).
Others = Callable[[slice, IdentityResidual | None], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class FullStep:
    """What is kept of a step that was computed whole; at full size 25 MB a tensor and row of a megapixel."""

    by_first: Tensor  # (rows, image tokens, dim): what the first block added to the image tokens
    by_others: Tensor  # alike: what all others did, and the identities between them
    seen: Hashable  # whose identities acted


class StepCache:
    """What one branch of one request keeps from step to step."""

    def __init__(self, threshold: float) -> None:
        """A step nearer to the last full one than `threshold`, a relative distance, is skipped."""
        self.threshold = threshold
        self.kept: FullStep | None = None
        self.skipped_in_a_row = 0
        self.skipped = 0  # steps, in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One branch in one forward, and what the step is computed under."""

    cache: StepCache
    rows: int
    identity: IdentityResidual | None  # of these rows by themselves
    seen: Hashable  # whose identities act; where that changes, a step is computed whole
    is_last: bool  # step of the request: always whole, and nothing is kept of it

    @property
    def usable(self) -> FullStep | None:
        """What this step may be near to. None: it is computed whole, whatever its first block says."""
        last = self.cache.kept
        if self.is_last or last is None or last.seen != self.seen:
            return None
        return last if self.cache.skipped_in_a_row < MAX_SKIPPED else None


def carry_on(
    turns: Sequence[Turn],
    before: Tensor,  # (rows, image tokens, dim), image tokens before the first block; rows by turn
    image: Tensor,  # alike, behind it
    others: Others,
    identity: IdentityResidual | None,  # of all rows
) -> Tensor:
    """The image tokens behind the last block, as (rows, image tokens, dim).

    Waits for the device once, and not at all in a step that no turn may skip.
    """
    places = list(_places(turns))
    by_first = [image[own] - before[own] for own in places]
    near = _near(turns, by_first)
    for turn, last in zip(turns, near, strict=True):
        _count(turn.cache, skips=last is not None)
    if all(last is None for last in near):
        final = others(slice(None), identity)
    else:
        final = torch.cat(
            [
                others(own, turn.identity) if last is None else image[own] + last.by_others
                for turn, own, last in zip(turns, places, near, strict=True)
            ]
        )
    for turn, own, last, first in zip(turns, places, near, by_first, strict=True):
        if last is None and not turn.is_last:
            turn.cache.kept = FullStep(first, final[own] - image[own], turn.seen)
    return final


def distance(by_first: Tensor, last: Tensor) -> Tensor:
    """Mean absolute difference from the last full step, relative to that step's mean; of the furthest row.

    (rows, tokens, dim) twice -> (), float32. Infinite or NaN where the last step's are zeros.
    """
    apart = (by_first - last).abs_().mean(dim=(1, 2), dtype=torch.float32)
    return (apart / last.abs().mean(dim=(1, 2), dtype=torch.float32)).max()


def _places(turns: Sequence[Turn]) -> Iterator[slice]:
    start = 0
    for turn in turns:
        yield slice(start, start + turn.rows)
        start += turn.rows


def _near(turns: Sequence[Turn], by_first: Sequence[Tensor]) -> list[FullStep | None]:
    """Of each turn what is added again; None where the step is computed whole. NaN is never near."""
    usable = [turn.usable for turn in turns]
    distances = [
        distance(first, last.by_first)
        for first, last in zip(by_first, usable, strict=True)
        if last is not None
    ]
    told = iter(torch.stack(distances).tolist() if distances else ())
    return [
        last if last is not None and next(told) < turn.cache.threshold else None
        for turn, last in zip(turns, usable, strict=True)
    ]


def _count(cache: StepCache, *, skips: bool) -> None:
    """Before the blocks run: what a full step replaces is free by then."""
    if skips:
        cache.skipped += 1
        cache.skipped_in_a_row += 1
    else:
        cache.skipped_in_a_row = 0
        cache.kept = None
