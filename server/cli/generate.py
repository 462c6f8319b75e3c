"""`flux-pulid generate`: pictures of one person without a server.

The flags are the parameters of the HTTP contract, checked by the same schema; the photo takes the
same way as on the server. Drives the engine itself: one request, one loop.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pulid.engine import Engine, GenerationRequest, GenerationResult, RgbImage, StepEvent
from pulid.errors import EngineFailed, IdentityRejected, ImageRejected
from server.api.similarity import for_header
from server.api.v1_schemas import SOURCES, FluxPulidRequest
from server.app import devices_of, engine_factory, fetch_limits, settled
from server.cli.failures import clean_exit
from server.cli.flags import used, with_flags
from server.driving import run_alone
from server.errors import FieldProblem, InvalidParameters
from server.jobs.face_stage import is_url
from server.jobs.files import MAX_PHOTOS, OutputOptions, encode_images
from server.security.image_decode import decode_image
from server.security.image_fetch import public_fetcher
from server.settings import Settings, load_settings

_SUFFIXES = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
# By --face, --identity and --prompt; several people and base64 are for the wire.
_EXPLICIT = (*SOURCES, "prompt", "base64")
_STEPS_A_LINE = 5  # where there is no terminal to draw a bar on


@with_flags(FluxPulidRequest, skip=_EXPLICIT)
def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; its suffix chooses the format.")],
    face: Annotated[
        list[str] | None,
        typer.Option(
            "--face", help="Photo of the person: a file or an http(s) URL. Again for more photos of them."
        ),
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="Identity file of the person, instead of --face.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="As for serve.")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="As for serve.")] = None,
    weights_dir: Annotated[str | None, typer.Option("--weights-dir", help="As for serve.")] = None,
    face_mode: Annotated[str | None, typer.Option("--face-mode", help="As for serve.")] = None,
    turbo_threshold: Annotated[str | None, typer.Option("--turbo-threshold", help="As for serve.")] = None,
    **given: str | None,
) -> None:
    """Paint portraits of the person in a photo, without a server."""
    flags = {"profile": profile, "devices": devices, "weights_dir": weights_dir, "face_mode": face_mode}
    flags["turbo_threshold"] = turbo_threshold
    with clean_exit():
        settings = load_settings(flags=used(flags), config=config).settings
        values = {**source_of(face or [], identity), "prompt": prompt, **used(given)}
        wire = checked_parameters(values, out, settings)
        photos = tuple(read_photo(photo, settings) for photo in face or ())
        request = replace(wire.to_generation(), id_images=photos)
        settings = settled(settings, partial(typer.echo, err=True), first_device_only=True)
        create_engine = partial(engine_factory(settings, show_loading), devices_of(settings)[0])
        paint(create_engine, request, wire.to_output(), out)


def source_of(faces: Sequence[str], identity: Path | None) -> dict[str, Any]:
    """Whose face it is, in the fields of a request. Photos are read apart; here they only have to be there.

    Raises InvalidParameters or IdentityRejected.
    """
    if bool(faces) == (identity is not None):
        raise InvalidParameters([FieldProblem("face", "Give either --face, once or more, or --identity.")])
    if len(faces) > MAX_PHOTOS:
        raise InvalidParameters([FieldProblem("face", f"Give --face at most {MAX_PHOTOS} times.")])
    if identity is None:
        return {"face_images": ["-"] * len(faces)}
    try:
        return {"identity": base64.b64encode(identity.read_bytes()).decode("ascii")}
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "this is no file name"
        raise IdentityRejected(f"The identity file {identity} cannot be read: {why}.") from exc


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
        likeness = likeness_of(engine, request, result)
        notice = engine.info.notice
    finally:
        engine.close()
    files = encode_images(result.images, options)
    for path, file, seed, alike in zip(paths_of(out, len(files)), files, result.seeds, likeness, strict=True):
        write(path, file.data)
        typer.echo(f"Wrote {path} ({file.width}x{file.height}, seed {seed}{alike}).")
    if result.skipped_steps:
        typer.echo(f"Steps that were skipped: {result.skipped_steps}; the profile's threshold decides.")
    if notice:
        typer.echo(f"Note: {notice}")


def likeness_of(engine: Engine, request: GenerationRequest, result: GenerationResult) -> list[str]:
    """For each picture what is to be said of it; nothing where nobody asked."""
    if not request.measures_similarity:
        return [""] * len(result.images)
    people = [engine.likeness(image, result.reference_faces) for image in result.images]
    return [f", likeness {for_header((picture,))}" for picture in people]


def show_loading(device: str, part: str, percent: int) -> None:
    typer.echo(f"Loading {part} onto {device}, {percent} %", err=True)


def run_to_end(engine: Engine, request: GenerationRequest) -> GenerationResult:
    """Drive one request, showing its steps. Raises what made it fail."""
    with _progress() as progress:
        bar = progress.add_task("Painting", total=request.num_steps)

        def show(event: StepEvent) -> None:
            progress.update(bar, completed=event.step)
            if not progress.console.is_terminal and (event.step % _STEPS_A_LINE == 0 or event.is_last):
                typer.echo(f"Step {event.step} of {request.num_steps}", err=True)

        return run_alone(engine, request, show)


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
