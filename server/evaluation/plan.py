"""Which pictures an evaluation paints: faces x prompts x grid x seeds, all checked beforehand.

Every cell is one request, and every request has passed the schema of the HTTP contract. The plan also
says of itself what must be the same for a report to be continued (`manifest`). Knows no engine and no
files but the names of photos.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from pulid.engine import GenerationRequest
from server.api.v1_schemas import FluxPulidRequest
from server.errors import FieldProblem, InvalidParameters
from server.evaluation.inputs import Photo, wrong
from server.jobs.files import OutputOptions

# Parameters whose effect can be compared, by their names on the wire.
GRID_NAMES = (
    "id_weight",
    "start_step",
    "id_end_step",
    "guidance_scale",
    "true_cfg",
    "num_steps",
    "width",
    "height",
    "max_sequence_length",
)
# What else may be chosen, for all pictures alike. More pictures of a cell are more seeds.
FIXED_NAMES = (
    "negative_prompt",
    "face_index",
    "face_order",
    "strict_face",
    "output_format",
    "output_quality",
)
MAX_CELLS = 200  # more than that is asked for twice: hours on a small card
DEFAULT_SEED = 0  # a report without a seed of its own can be painted again

_NOT_YET_KNOWN = {"main_face_image": "-", "prompt": "-"}  # cells bring their own

Point = Mapping[str, Any]  # one value for each name of the grid


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture that is to be painted."""

    photo: Photo
    prompt: int  # from 1
    point: int  # of the grid, from 1
    seed: int

    @property
    def id(self) -> str:
        """Names the cell in the table of results, and its picture."""
        return f"p{self.prompt:02}-f{self.photo.number:02}-g{self.point:02}-s{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    photos: tuple[Photo, ...]
    prompts: tuple[str, ...]
    grid: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    wires: tuple[FluxPulidRequest, ...]  # one for each point of the grid; prompt and seed are to be put in

    @property
    def points(self) -> tuple[Point, ...]:
        """The grid, its last name changing fastest. Without a grid: one empty point."""
        return tuple(dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    @property
    def options(self) -> OutputOptions:
        return self.wires[0].to_output()

    def cells(self, left_out: Mapping[str, str] | None = None) -> Iterator[Cell]:
        """In the order in which they are painted: a prompt's table is filled before the next one's."""
        photos = [photo for photo in self.photos if not photo.problem and photo.name not in (left_out or {})]
        for prompt, photo in product(range(1, len(self.prompts) + 1), photos):
            for point, seed in product(range(1, len(self.wires) + 1), self.seeds):
                yield Cell(photo, prompt, point, seed)

    def request(self, cell: Cell) -> GenerationRequest:
        """Still without the photo."""
        wire = self.wires[cell.point - 1]
        fresh = {"prompt": self.prompts[cell.prompt - 1], "seed": cell.seed}
        return wire.model_copy(update=fresh).to_generation()

    def manifest(self) -> dict[str, Any]:
        """What decides about the pictures. Plain JSON."""
        common = self.wires[0].model_dump(include={*GRID_NAMES, *FIXED_NAMES} - self.grid.keys())
        return {
            "faces": {photo.name: photo.sha256 for photo in self.photos},
            "prompts": list(self.prompts),
            "grid": {name: list(values) for name, values in self.grid.items()},
            "seeds": list(self.seeds),
            "parameters": common,
        }


def make_plan(
    photos: tuple[Photo, ...],
    prompts: tuple[str, ...],
    grid: Sequence[str],
    seeds: str | None,
    given: Mapping[str, str],
    *,
    agreed: bool,
    max_prompt_chars: int,
) -> Plan:
    """Check everything that is asked for. `grid`, `seeds` and `given` as they were typed.

    `agreed`: also to more than MAX_CELLS pictures. Raises InvalidParameters.
    """
    body = {"output_format": "png", **given, **_NOT_YET_KNOWN}
    check = partial(_checked, max_prompt_chars=max_prompt_chars)
    axes = parse_grid(grid, given)
    check([body, *({**body, name: text} for name, texts in axes.items() for text in texts)])
    for number, prompt in enumerate(prompts, 1):
        _check_prompt(number, prompt, max_prompt_chars)
    numbers = parse_seeds(seeds, given.get("seed"), max_prompt_chars)
    faces = sum(not photo.problem for photo in photos)
    _require_agreed((faces, len(prompts), math.prod(map(len, axes.values())), len(numbers)), agreed)
    wires = check([{**body, **dict(zip(axes, texts, strict=True))} for texts in product(*axes.values())])
    return Plan(photos, prompts, {name: _values(name, axes[name], wires) for name in axes}, numbers, wires)


def parse_grid(grid: Sequence[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """`["id_weight=0.8,1"]` as `{"id_weight": ["0.8", "1"]}`, still text. Raises InvalidParameters."""
    axes: dict[str, list[str]] = {}
    for text in grid:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not all(value.strip() for value in values.split(",")):
            raise wrong("grid", f"--grid {text!r} is not of the form NAME=VALUE,VALUE,...")
        if name not in GRID_NAMES:
            raise wrong("grid", f"--grid has no parameter {name!r}. It takes {', '.join(GRID_NAMES)}.")
        if name in axes:
            raise wrong("grid", f"--grid names {name} twice. Give all its values at once.")
        if name in given:
            raise wrong("grid", f"{name} is given twice: by --grid and by --{name.replace('_', '-')}.")
        axes[name] = [value.strip() for value in values.split(",")]
    return axes


def parse_seeds(seeds: str | None, seed: str | None, max_prompt_chars: int) -> tuple[int, ...]:
    """Of --seeds or --seed. Raises InvalidParameters."""
    if seeds is not None and seed is not None:
        raise wrong("seeds", "Give either --seed or --seeds.")
    texts = (seeds if seeds is not None else seed or str(DEFAULT_SEED)).split(",")
    wires = _checked([{**_NOT_YET_KNOWN, "seed": text.strip()} for text in texts], max_prompt_chars)
    numbers = tuple(wire.seed for wire in wires if wire.seed is not None and wire.seed >= 0)
    if len(numbers) < len(texts):
        raise wrong("seeds", "A report needs its seeds: give numbers from 0 on, such as --seeds 1,2.")
    if len(set(numbers)) < len(numbers):
        raise wrong("seeds", "--seeds names a seed twice. Name each once.")
    return numbers


def _require_agreed(counts: tuple[int, int, int, int], agreed: bool) -> None:
    count = math.prod(counts)
    if count > MAX_CELLS and not agreed:
        faces, prompts, points, seeds = counts
        raise wrong(
            "yes",
            f"This is {count} pictures: {faces} faces x {prompts} prompts x {points} points of the grid "
            f"x {seeds} seeds. Above {MAX_CELLS}, add --yes to paint them all.",
        )


def _checked(bodies: Sequence[Mapping[str, Any]], max_prompt_chars: int) -> tuple[FluxPulidRequest, ...]:
    wires: list[FluxPulidRequest] = []
    problems: dict[FieldProblem, None] = {}  # each once, in order
    for body in bodies:
        try:
            wires.append(FluxPulidRequest.of(body, max_prompt_chars=max_prompt_chars))
        except InvalidParameters as exc:
            problems |= dict.fromkeys(exc.problems)
    if problems:
        raise InvalidParameters(list(problems))
    return tuple(wires)


def _check_prompt(number: int, prompt: str, max_prompt_chars: int) -> None:
    try:
        FluxPulidRequest.of({**_NOT_YET_KNOWN, "prompt": prompt}, max_prompt_chars=max_prompt_chars)
    except InvalidParameters as exc:
        raise wrong("prompts", f"Prompt {number} of the file: {exc}") from exc


def _values(name: str, texts: Sequence[str], wires: Sequence[FluxPulidRequest]) -> tuple[Any, ...]:
    values = tuple(dict.fromkeys(getattr(wire, name) for wire in wires))
    if len(values) < len(texts):
        raise wrong("grid", f"--grid names a value of {name} twice. Name each once.")
    return values
