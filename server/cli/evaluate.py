"""`flux-pulid evaluate`: faces x prompts x parameter grids, and how much the pictures look like the people.

Thin: flags, progress and exit codes. What is painted and how it is measured is in server/evaluation.
All input is checked before a model is loaded. Exit codes: 0 the report is complete, 2 the input is
wrong, 1 anything else, 130 Ctrl-C; then the report shows what was done, and the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import server
from pulid.engine import Engine
from server.api.v1_schemas import FluxPulidRequest
from server.app import devices_of, engine_factory, settled
from server.cli.failures import clean_exit
from server.cli.flags import used, with_flags
from server.cli.generate import show_loading
from server.engines import lpips_distance, profile_or_exact
from server.evaluation.comparison import Distance, OtherReport, open_other
from server.evaluation.folder import ReportFolder
from server.evaluation.inputs import read_photos, read_prompts, wrong
from server.evaluation.painting import Evaluation
from server.evaluation.plan import FIXED_NAMES, GRID_NAMES, make_plan
from server.evaluation.results import columns_of
from server.evaluation.summary import About
from server.settings import Settings, load_settings

_EVERY_S = 5.0  # between two lines where there is no terminal to draw a bar on
# Where they mean what they mean elsewhere; seed and format have other defaults here.
_FLAGS = {*GRID_NAMES, *FIXED_NAMES} - {"output_format"}


@with_flags(FluxPulidRequest, skip=FluxPulidRequest.model_fields.keys() - _FLAGS)
def evaluate(
    faces: Annotated[Path, typer.Argument(help="Folder of photos, one person each.", metavar="FACES_FOLDER")],
    prompts: Annotated[Path, typer.Argument(help="Text file: one prompt a line.", metavar="PROMPTS_FILE")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.", metavar="FOLDER")],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="Values to compare. May be given several times.", metavar="NAME=V,V,..."),
    ] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", help="The same for all pictures. Default: 0.", metavar="N")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Several, each for a picture of every cell.", metavar="N,N,..."),
    ] = None,
    output_format: Annotated[
        str | None, typer.Option("--output-format", help="Of the pictures. Default: png.", metavar="VALUE")
    ] = None,
    compare_with: Annotated[
        Path | None,
        typer.Option(
            "--compare-with", help="A report of the same pictures, painted otherwise.", metavar="REPORT"
        ),
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option("--lpips-weights", help="Folder of AlexNet and LPIPS's heads.", metavar="FOLDER"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Paint more than 200 pictures.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="As for serve.")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="As for serve; the first is used.")] = None,
    weights_dir: Annotated[str | None, typer.Option("--weights-dir", help="As for serve.")] = None,
    face_mode: Annotated[str | None, typer.Option("--face-mode", help="As for serve.")] = None,
    turbo_threshold: Annotated[str | None, typer.Option("--turbo-threshold", help="As for serve.")] = None,
    t5_int8: Annotated[str | None, typer.Option("--t5-int8", help="As for serve.")] = None,
    **given: str | None,
) -> None:
    """Paint every face with every prompt, and report how alike the pictures are."""
    flags = {"profile": profile, "devices": devices, "weights_dir": weights_dir, "face_mode": face_mode}
    flags |= {"turbo_threshold": turbo_threshold, "t5_int8": t5_int8}
    with clean_exit():
        settings = load_settings(flags=used(flags), config=config).settings
        plan = make_plan(
            read_photos(faces, max_megapixels=settings.max_image_mp),
            read_prompts(prompts),
            grid or [],
            seeds,
            used({"seed": seed, "output_format": output_format, **given}),
            agreed=yes,
            max_prompt_chars=settings.max_prompt_chars,
        )
        other = None if compare_with is None else open_other(compare_with, plan)
        distance = None if lpips_weights is None else lpips_of(lpips_weights, other)
        settings = settled(settings, partial(typer.echo, err=True), first_device_only=True)
        device = devices_of(settings)[0]
        about = about_of(settings)
        manifest = {**plan.manifest(), "profile": about.profile, "settings": about.settings}
        with ReportFolder.open(out, manifest, columns_of(plan)) as folder:
            evaluation = Evaluation(plan, folder, about, max_megapixels=settings.max_image_mp)
            if evaluation.needs_engine:
                run(evaluation, lambda: engine_factory(settings, show_loading)(device))
            evaluation.write_report()
            if other is not None:
                evaluation.compare(other, distance)
        tell(evaluation, about, out / "index.html")
        if other is not None:
            typer.echo(f"Compared with {other.root}: {out / 'comparison.json'}.")


def lpips_of(folder: Path, other: OtherReport | None) -> Distance:
    """Raises InvalidParameters or WeightsMissing."""
    if other is None:
        raise wrong("lpips_weights", "--lpips-weights is for two reports: add --compare-with.")
    return lpips_distance(folder)


def about_of(settings: Settings) -> About:
    profile = profile_or_exact(settings.profile)
    chosen: dict[str, Any] = {
        "base_model": settings.base_model,
        "pulid_version": settings.pulid_version,
        "face_mode": settings.face_mode,
        "lora": [f"{path}:{strength:g}" for path, strength in settings.loras],
    }
    if profile.skip_threshold is not None:
        own = settings.turbo_threshold
        chosen["turbo_threshold"] = profile.skip_threshold if own is None else own
    if settings.t5_int8:
        chosen["t5_int8"] = True
    # The tiny profile has weights of its own.
    decisive = {"face_mode": settings.face_mode} if profile.name == "tiny" else chosen
    return About(server.__version__, profile.name, profile.notice, decisive)


def run(evaluation: Evaluation, create_engine: Callable[[], Engine]) -> None:
    """Load, look, paint. Whatever ends it, the report shows what was done."""
    typer.echo("Loading the engine ...", err=True)
    engine = create_engine()
    try:
        typer.echo("Looking at the photos ...", err=True)
        evaluation.look_at_photos(engine)
        for name, why in evaluation.left_out.items():
            typer.echo(f"Left out: {name}. {why}", err=True)
        try:
            with shown_painting(evaluation.done, evaluation.total) as painted:
                for result in evaluation.paint(engine):
                    painted(result.seconds)
        finally:
            evaluation.write_report()
    finally:
        engine.close()


def tell(evaluation: Evaluation, about: About, page: Path) -> None:
    typer.echo(f"Wrote {page}: {evaluation.total} pictures.")
    if about.notice:
        typer.echo(f"Note: {about.notice}")


@contextmanager
def shown_painting(done: int, total: int) -> Iterator[Callable[[float], None]]:
    """Gives what is to be called after each picture with the seconds it took."""
    console = Console(stderr=True)
    if done:
        typer.echo(f"{done} of {total} pictures are there already.", err=True)
    if not console.is_terminal:
        yield _Lines(done, total).painted
        return
    columns: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        bar = progress.add_task("Painting", total=total, completed=done)
        yield lambda seconds: progress.advance(bar)


class _Lines:
    """For logs: a line now and then, and one for the last picture."""

    def __init__(self, done: int, total: int) -> None:
        self._done = self._before = done
        self._total = total
        self._began = self._said = time.monotonic()

    def painted(self, seconds: float) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= _EVERY_S or self._done == self._total:
            self._said = now
            rate = (now - self._began) / (self._done - self._before)
            left = (self._total - self._done) * rate
            typer.echo(
                f"Picture {self._done} of {self._total}, {seconds:.1f} s; {left:.0f} s left.", err=True
            )
