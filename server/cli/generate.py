"""`flux-pulid generate`: pictures of one person without a server.

The flags are the parameters of the HTTP contract, checked by the same schema; the photo takes the
same way as on the server. Drives the engine itself: one request, one loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pulid.engine import Engine, GenerationRequest, GenerationResult, RgbImage
from pulid.errors import EngineFailed, ImageRejected
from server.api.v1_schemas import FluxPulidRequest
from server.app import engine_factory, fetch_limits
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
        wire = checked_parameters({"main_face_image": face, "prompt": prompt, **used(given)}, out, settings)
        request = replace(wire.to_generation(), id_image=read_photo(face, settings))
        paint(engine_factory(settings), request, wire.to_output(), out)


def checked_parameters(values: dict[str, Any], out: Path, settings: Settings) -> FluxPulidRequest:
    """Check everything that can be wrong before a model is loaded. Raises InvalidParameters."""
    if not out.parent.is_dir():
        raise _wrong_out(f"The folder {out.parent} of --out does not exist.")
    if "output_format" not in values:
        if out.suffix.lower() not in _SUFFIXES:
            raise _wrong_out("Give --out a name that ends in .webp, .png or .jpg, or add --output-format.")
        values["output_format"] = _SUFFIXES[out.suffix.lower()]
    return FluxPulidRequest.of(values, max_prompt_chars=settings.max_prompt_chars)


def _wrong_out(message: str) -> InvalidParameters:
    return InvalidParameters([FieldProblem("out", message)])


def read_photo(face: str, settings: Settings) -> RgbImage:
    """The photo behind --face. Raises ImageRejected."""
    if is_url(face):
        data = asyncio.run(_fetch(face, settings))
    else:
        try:
            data = Path(face).read_bytes()
        except OSError as exc:
            raise ImageRejected(f"The photo {face} cannot be read: {exc.strerror}.") from exc
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


def run_to_end(engine: Engine, request: GenerationRequest) -> GenerationResult:
    """Drive one request, showing its steps. Raises what made it fail."""
    engine.admit(_JOB, request)
    with _progress() as progress:
        bar = progress.add_task("Painting", total=request.num_steps)
        while events := engine.step():
            last = events[-1]
            progress.update(bar, completed=last.step)
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
