"""`flux-pulid doctor`: is everything there for the server to run, and does a picture show the person?

Reads the settings as `serve` does and tells of each thing whether it is all right, worth knowing or
in the way, and then what to do. Exit codes: 0 nothing in the way, 1 faults, 2 wrong settings.
What is looked at is in server/checks.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from pulid.engine import RgbImage
from pulid.errors import DeviceUnavailable, SetupError
from pulid.profiles import SpeedProfile
from server.app import devices_of, engine_factory, settled
from server.checks.examination import thorough
from server.checks.finding import Finding, State, fault, ok, worst
from server.cli.failures import FAILED, clean_exit
from server.cli.flags import used, with_flags
from server.cli.generate import checked_parameters, read_photo, run_to_end, show_loading, write
from server.cli.serve import listen
from server.engines import profile_or_exact
from server.jobs.files import encode_images
from server.settings import Settings, SettingsError, load_settings

# The sample of the public page; its photo is the caller's.
SAMPLE = {
    "prompt": "portrait of woman, neon color, cinematic",
    "seed": 720558,
    "width": 896,
    "height": 1152,
    "num_steps": 20,
    "start_step": 0,
    "id_weight": 1.05,
    "guidance_scale": 4,
    "true_cfg": 1,
}
# Photos of one person agree at 0.5 or more, strangers' at 0.15 or less (docs/doctor.md); paint costs some.
MIN_LIKENESS = 0.4

_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "fault": "red"}
_CHECK_WIDTH, _STATE_WIDTH = 13, 9  # characters


@with_flags(Settings)
def doctor(
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as one JSON document.")] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Paint the public page's sample and measure the likeness.")
    ] = False,
    photo: Annotated[
        str | None, typer.Option("--photo", help="Photo of a person for --generate: a file or a URL.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where --generate writes its picture.")] = Path(
        "doctor.webp"
    ),
    min_likeness: Annotated[
        float, typer.Option("--min-likeness", help="Cosine below which --generate is a fault.")
    ] = MIN_LIKENESS,
    **given: str | None,
) -> None:
    """Say what keeps the server from running here, or would, and what to do about it."""
    with clean_exit():
        asked = load_settings(flags=used(given), config=config).settings
        settings, chosen = with_a_profile(asked)
        if generate and photo is None:
            raise SettingsError("--generate needs --photo FILE: a photo with one clear, front-facing face.")
        # Before the checks, which take seconds.
        person = read_photo(photo, settings, flag="--photo") if generate and photo is not None else None
        findings = [*chosen, *thorough(settings), check_port(settings)]
        if not as_json:
            show(findings)
        if person is not None and worst(findings) != "fault":
            painted = paint_sample(settings, person, out, min_likeness)
            findings += painted
            if not as_json:
                show(painted)
    profile = profile_or_exact(settings.profile)
    typer.echo(document(profile, findings) if as_json else summary(profile, findings))
    if worst(findings) == "fault":
        raise typer.Exit(FAILED)


def with_a_profile(asked: Settings) -> tuple[Settings, list[Finding]]:
    """What auto means here is a finding; where it means nothing, all else is told of exact."""
    said: list[Finding] = []
    try:
        settings = settled(asked, lambda why: said.append(ok("profile", why)))
    except DeviceUnavailable as exc:
        return asked.model_copy(update={"profile": None, "t5_int8": False}), [fault("profile", str(exc))]
    return settings, said


def check_port(settings: Settings) -> Finding:
    try:
        listen(settings.host, settings.port).close()
    except SetupError as exc:
        return fault("port", str(exc))
    where = f"{settings.host}, port {settings.port}"
    return ok("port", f"{where}, is free." if settings.port else f"A free one on {settings.host}.")


def show(findings: Sequence[Finding]) -> None:
    """A line for each, broken to the width of the terminal."""
    indent = " " * (_STATE_WIDTH + _CHECK_WIDTH)
    width = max(shutil.get_terminal_size((110, 24)).columns, len(indent) + 40)
    for finding in findings:
        state = typer.style(f"{finding.state:<{_STATE_WIDTH}}", fg=_COLOURS[finding.state])
        lines = textwrap.wrap(
            finding.text, width - len(indent), break_long_words=False, break_on_hyphens=False
        )
        typer.echo(f"{state}{finding.check:<{_CHECK_WIDTH}}" + f"\n{indent}".join(lines))


def document(profile: SpeedProfile, findings: Sequence[Finding]) -> str:
    return json.dumps(
        {"profile": profile.name, "state": worst(findings), "findings": [asdict(one) for one in findings]},
        indent=2,
    )


def summary(profile: SpeedProfile, findings: Sequence[Finding]) -> str:
    states = [finding.state for finding in findings]
    warnings, faults = (_counted(states.count(state), state) for state in ("warning", "fault"))
    if "fault" in states:
        return f"{faults}, {warnings}: the profile {profile.name} does not run here as it is."
    return f"No fault, {warnings}: the profile {profile.name} runs here."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def paint_sample(settings: Settings, id_image: RgbImage, out: Path, floor: float) -> list[Finding]:
    """Paint the sample with the person of the photo, write it to `out`, and compare the faces."""
    wire = checked_parameters({"main_face_image": "-", **SAMPLE}, out, settings)  # the photo is read apart
    typer.echo("Loading the engine ...", err=True)
    started = time.monotonic()
    engine = engine_factory(settings, show_loading)(devices_of(settings)[0])
    loaded = time.monotonic()
    try:
        request = replace(wire.to_generation(), id_images=(id_image,), measures_similarity=True)
        result = run_to_end(engine, request)
        painted = time.monotonic()
        (cosine,) = engine.likeness(result.images[0], result.reference_faces)
    finally:
        engine.close()
    (file,) = encode_images(result.images, wire.to_output())
    write(out, file.data)
    seconds = f"loaded in {loaded - started:.1f} s, painted in {painted - loaded:.1f} s"
    return [
        ok("picture", f"{out}, {file.width}x{file.height}, seed {result.seeds[0]}: {seconds}."),
        judged(profile_or_exact(settings.profile), cosine, floor),
    ]


def judged(profile: SpeedProfile, cosine: float | None, floor: float) -> Finding:
    """What the cosine of the two faces says. `cosine` None: the picture shows no face."""
    if profile.notice:
        return ok("likeness", f"Cannot be judged: {profile.notice}.")
    again = "Run `flux-pulid weights verify`, and try a photo with one clear, front-facing face."
    if cosine is None:
        return fault("likeness", f"No face was found in the picture. {again}")
    said = f"ArcFace cosine between photo and picture: {cosine:.2f}"
    if cosine < floor:
        return fault("likeness", f"{said}, below {floor:.2f}: not taken for the same person. {again}")
    return ok("likeness", f"{said}, at least {floor:.2f} is asked for.")
