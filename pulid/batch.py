"""The requests now in flight, and which rows share a denoising step.

A row is one picture in the making (or its negative twin, under true CFG). Rows of one request are
stepped together; rows of different requests only where the profile allows it, and only when their
pictures and texts have the same size. Knows no model and no face; predicts nothing.
A request with regions, several people or photos side by side always steps alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pulid.engine import FaceEmbedding, GenerationRequest
from pulid.flux import sampling
from pulid.flux.latents import token_grid
from pulid.flux.modulation import ModulationTable
from pulid.flux.step_cache import StepCache, Turn
from pulid.flux.text import TextFeatures
from pulid.identity.attention import PreparedIdentity
from pulid.identity.people import PlacedIdentity, acting, seen_together


@dataclass(slots=True, kw_only=True)
class Branch:
    """What a request's rows are conditioned on: its prompt and people, or their negative."""

    text: TextFeatures
    people: tuple[PlacedIdentity, ...] = ()
    modulation: ModulationTable | None = None  # of all steps, where the transformer's form takes one
    cache: StepCache | None = None  # where the profile skips steps


@dataclass(slots=True, kw_only=True)
class Flight:
    """One admitted request on its way from noise to pictures."""

    job_id: str
    request: GenerationRequest
    seeds: tuple[int, ...]
    latents: Tensor  # (num_outputs, image tokens, 64), packed
    times: Sequence[float]  # num_steps + 1, from 1 to 0
    positive: Branch
    negative: Branch | None  # None: true CFG is off
    steps_alone: bool = False  # never beside rows of other requests
    reference_faces: tuple[FaceEmbedding | None, ...] = ()  # for the result
    step: int = 0  # steps done
    timings: dict[str, float] = field(default_factory=dict)
    is_watched: bool = False  # whether `predicted_latents` is kept
    predicted_latents: Tensor | None = None  # where the velocity of the last step leads to
    on_step_end: Callable[[Flight], None] | None = None  # may change the latents
    _scalars: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def is_done(self) -> bool:
        return self.step == self.request.num_steps

    @property
    def skipped_steps(self) -> int:
        """So far, by the step cache; those of both branches together."""
        caches = (branch.cache for branch in (self.positive, self.negative) if branch is not None)
        return sum(cache.skipped for cache in caches if cache is not None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows and columns of image tokens, and text tokens: what rows must share to share a step."""
        return (*token_grid(self.request.height, self.request.width), self.request.max_sequence_length)

    def branches(self) -> list[Branch]:
        """The branches of the coming step: one, or two from the step at which true CFG starts."""
        guided = self.negative is not None and self.step >= self.request.timestep_to_start_cfg
        return [self.positive, self.negative] if guided and self.negative else [self.positive]

    def time_and_guidance(self) -> tuple[Tensor, Tensor]:
        """Of the coming step, (1,) each, where the latents are and as precise: one transfer a request."""
        if self._scalars is None:
            self._scalars = torch.tensor([*self.times[:-1], self.request.guidance]).to(self.latents)
        return self._scalars[self.step : self.step + 1], self._scalars[-1:]

    def advance(self, velocity: Tensor) -> None:
        """Take one Euler step. `velocity` holds the rows of each branch in turn."""
        predicted, *negative = velocity.chunk(len(self.branches()))
        if negative:
            predicted = sampling.guide(predicted, negative[0], self.request.true_cfg)
        t_now, t_next = self.times[self.step], self.times[self.step + 1]
        self.predicted_latents = (
            sampling.euler_step(self.latents, predicted, t_now, 0.0) if self.is_watched else None
        )
        self.latents = sampling.euler_step(self.latents, predicted, t_now, t_next)
        self.step += 1
        if self.on_step_end is not None:
            self.on_step_end(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """The tensors of one forward pass. Rows: per flight, per branch, per picture."""

    latents: Tensor  # (rows, image tokens, 64)
    text: Tensor  # (rows, text tokens, 4096)
    pooled: Tensor  # (rows, 768)
    timestep: Tensor  # (rows,)
    guidance: Tensor  # (rows,)
    identity: PreparedIdentity | None
    modulation: Tensor | None  # (rows, width)
    turns: tuple[Turn, ...] | None  # of all runs of rows, where steps may be skipped


def step_input(flights: Sequence[Flight]) -> StepInput:
    """Put the rows of flights of one shape side by side."""
    runs = [(flight, branch, len(flight.seeds)) for flight in flights for branch in flight.branches()]
    scalars = [flight.time_and_guidance() for flight, _, _ in runs]
    counts = [count for _, _, count in runs]
    return StepInput(
        latents=_beside([flight.latents for flight, _, _ in runs]),
        text=_rows([branch.text.tokens for _, branch, _ in runs], counts),
        pooled=_rows([branch.text.pooled for _, branch, _ in runs], counts),
        timestep=_rows([time for time, _ in scalars], counts),
        guidance=_rows([guidance for _, guidance in scalars], counts),
        identity=_side_by_side(
            [(seen_together(branch.people, flight.step), count) for flight, branch, count in runs]
        ),
        modulation=_modulation(runs),
        turns=_turns(runs),
    )


def _modulation(runs: Sequence[tuple[Flight, Branch, int]]) -> Tensor | None:
    """Of the coming step, a row each; None where it is left to the transformer."""
    rows = [branch.modulation.at(flight.step) for flight, branch, _ in runs if branch.modulation is not None]
    return _rows(rows, [count for _, _, count in runs]) if len(rows) == len(runs) else None


def _turns(runs: Sequence[tuple[Flight, Branch, int]]) -> tuple[Turn, ...] | None:
    """None where the profile computes every step whole."""
    turns = tuple(
        Turn(
            cache=branch.cache,
            rows=count,
            identity=seen_together(branch.people, flight.step),
            seen=acting(branch.people, flight.step),
            is_last=flight.step + 1 == flight.request.num_steps,
        )
        for flight, branch, count in runs
        if branch.cache is not None
    )
    return turns or None


def _rows(of_runs: list[Tensor], counts: Sequence[int]) -> Tensor:
    """What each run has once, (1, ...), for each of its rows: (rows, ...)."""
    return _beside([x.expand(count, *x.shape[1:]) for x, count in zip(of_runs, counts, strict=True)])


def _beside(of_runs: list[Tensor]) -> Tensor:
    """The rows of all runs, without gaps in memory; of a single run no copy where it has none."""
    return of_runs[0].contiguous() if len(of_runs) == 1 else torch.cat(of_runs)


def _side_by_side(runs: Sequence[tuple[PreparedIdentity | None, int]]) -> PreparedIdentity | None:
    """One identity for all rows. Runs without one get a silent one: a residual of exactly zero."""
    present = next((identity for identity, _ in runs if identity is not None), None)
    if present is None:
        return None
    identities = [(present.silent() if identity is None else identity, count) for identity, count in runs]
    if len(identities) == 1:
        return present
    if len({count for _, count in identities}) > 1:  # groups must be equal: one for each row, then
        identities = [(identity, 1) for identity, count in identities for _ in range(count)]
    first, *others = (identity for identity, _ in identities)
    return first.beside(others)


class Batch:
    """The flights of one engine, served in turn."""

    def __init__(self, *, shares_steps: bool) -> None:
        self._shares_steps = shares_steps
        self._flights: deque[Flight] = deque()

    @property
    def rows(self) -> int:
        """Pictures in the making."""
        return sum(len(flight.seeds) for flight in self._flights)

    def flight(self, job_id: str) -> Flight:
        """Raises KeyError when there is none."""
        for flight in self._flights:
            if flight.job_id == job_id:
                return flight
        raise KeyError(job_id)

    def join(self, flight: Flight) -> None:
        self._flights.append(flight)

    def leave(self, job_id: str) -> None:
        """Take a flight out. Unknown ids are fine."""
        self._flights = deque(f for f in self._flights if f.job_id != job_id)

    def next_group(self) -> list[Flight]:
        """Whose turn it is: one flight, or all of its shape where steps are shared."""
        if not self._flights:
            return []
        first = self._flights[0]
        group = [first]
        if self._shares_steps and not first.steps_alone:
            group = [f for f in self._flights if f.shape == first.shape and not f.steps_alone]
        for flight in group:
            self._flights.remove(flight)
            self._flights.append(flight)
        return group
