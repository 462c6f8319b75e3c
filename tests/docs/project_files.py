"""The files of the repository, as git sees them: tracked, or new and not ignored. Knows no content."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("server", "pulid", "weights")


@cache
def project_files() -> tuple[str, ...]:
    """Paths relative to the root, sorted. Files deleted but still tracked are left out."""
    # A checkout that belongs to another user (a container, a build machine) is fine to list.
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(sorted(name for name in set(listing.split("\0")) if name and (ROOT / name).is_file()))


def text_of(name: str) -> str | None:
    """The text of a project file, or None for a binary one."""
    try:
        return (ROOT / name).read_bytes().decode()
    except UnicodeDecodeError:
        return None


def documents() -> list[str]:
    """The project's Markdown files."""
    return [name for name in project_files() if name.endswith(".md")]
