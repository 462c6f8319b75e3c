"""`flux-pulid generate`: pictures of one person without a server.

The flags are the parameters of the HTTP contract, checked by the same schema; the photo takes the
same way as on the server. Drives the engine itself: one request, one loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pulid.engine import Engine, GenerationRequest, GenerationResult, RgbImage
from pulid.errors import EngineFailed, ImageRejected
from server.api.v1_schemas import FluxPulidRequest
from server.app import devices_of, engine_factory, fetch_limits
from server.cli.failures import clean_exit
from server.cli.flags import used, with_flags
from server.errors import FieldProblem, InvalidParameters
from server.jobs.face_stage import is_url
from server.jobs.files import OutputOptions, encode_images
from server.security.image_decode import decode_image
from server.security.image_fetch import public_fetcher
from server.settings import Settings, load_settings

_SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
_EXPLICIT = ("main_face_image", "prompt", "base64")  # by --face and --prompt; base64 is for the wire
_JOB = "generate"
_STEPS_A_LINE = 5  # where there is no terminal to draw a bar on


@with_flags(FluxPulidRequest, skip=_EXPLICIT)
def generate(
    face: Annotated[str, typer.Option("--face", help="Photo of the person: a file or an http(s) URL.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; its suffix chooses the format.")],
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="As for serve: exact or tiny.")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="As for serve.")] = None,
    weights_dir: Annotated[str | None, typer.Option("--weights-dir", help="As for serve.")] = None,
    face_mode: Annotated[str | None, typer.Option("--face-mode", help="As for serve.")] = None,
    **given: str | None,
) -> None:
    """Paint portraits of the person in a photo, without a server."""
    flags = {"profile": profile, "devices": devices, "weights_dir": weights_dir, "face_mode": face_mode}
    with clean_exit():
        settings = load_settings(flags=used(flags), config=config).settings
        # The photo is read apart; here it only has to be there.
        values = {"main_face_image": face or "-", "prompt": prompt, **used(given)}
        wire = checked_parameters(values, out, settings)
        request = replace(wire.to_generation(), id_images=(read_photo(face, settings),))
        create_engine = partial(engine_factory(settings, show_loading), devices_of(settings)[0])
        paint(create_engine, request, wire.to_output(), out)


def checked_parameters(values: dict[str, Any], out: Path, settings: Settings) -> FluxPulidRequest:
    """Check everything that can be wrong before a model is loaded. Raises InvalidParameters."""
    if not out.parent.is_dir():
        raise _wrong_out(f"The folder {out.parent} of --out does not exist.")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise _wrong_out(f"--out {out} cannot be written: it is a folder, or lies in a protected one.")
    by_suffix = _SUFFIXES.get(out.suffix.lower())
    if by_suffix is None and "output_format" not in values:
        raise _wrong_out("Give --out a name that ends in .webp, .png or .jpg, or add --output-format.")
    wire = FluxPulidRequest.of(
        {"output_format": by_suffix, **values}, max_prompt_chars=settings.max_prompt_chars
    )
    if by_suffix not in (None, wire.output_format):
        raise _wrong_out(f"--out ends in {out.suffix}, and --output-format says {wire.output_format}.")
    return wire


def _wrong_out(message: str) -> InvalidParameters:
    return InvalidParameters([FieldProblem("out", message)])


def read_photo(face: str, settings: Settings, *, flag: str = "--face") -> RgbImage:
    """The photo that the flag names. Raises ImageRejected."""
    if is_url(face):
        data = asyncio.run(_fetch(face, settings))
    else:
        try:
            data = Path(face).read_bytes()
        except (OSError, ValueError) as exc:
            shown = face if len(face) <= 80 else f"{face[:80]}..."
            why = exc.strerror if isinstance(exc, OSError) else "this is no file name"
            raise ImageRejected(f"The photo {flag} {shown} cannot be read: {why}.") from exc
    return decode_image(data, max_megapixels=settings.max_image_mp)


async def _fetch(url: str, settings: Settings) -> bytes:
    return await public_fetcher(fetch_limits(settings))(url)


def paint(
    create_engine: Callable[[], Engine], request: GenerationRequest, options: OutputOptions, out: Path
) -> None:
    """Load, run, write, and say what was written."""
    typer.echo("Loading the engine ...", err=True)
    engine = create_engine()
    try:
        result = run_to_end(engine, request)
        notice = engine.info.notice
    finally:
        engine.close()
    files = encode_images(result.images, options)
    for path, file, seed in zip(paths_of(out, len(files)), files, result.seeds, strict=True):
        write(path, file.data)
        typer.echo(f"Wrote {path} ({file.width}x{file.height}, seed {seed}).")
    if notice:
        typer.echo(f"Note: {notice}")


def show_loading(device: str, part: str, percent: int) -> None:
    typer.echo(f"Loading {part} onto {device}, {percent} %", err=True)


def run_to_end(engine: Engine, request: GenerationRequest) -> GenerationResult:
    """Drive one request, showing its steps. Raises what made it fail."""
    engine.admit(_JOB, request)
    with _progress() as progress:
        bar = progress.add_task("Painting", total=request.num_steps)
        while events := engine.step():
            last = events[-1]
            progress.update(bar, completed=last.step)
            if not progress.console.is_terminal and (last.step % _STEPS_A_LINE == 0 or last.is_last):
                typer.echo(f"Step {last.step} of {request.num_steps}", err=True)
            if last.error is not None:
                raise last.error
            if last.result is not None:
                return last.result
    raise EngineFailed("The engine stopped before the picture was done.")


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def paths_of(out: Path, count: int) -> list[Path]:
    """`out` itself for one picture; out-0.webp, out-1.webp, ... for several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


def write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as exc:
        raise EngineFailed(f"{path} cannot be written: {exc.strerror}.") from exc
