"""The server's own command line, with other checkpoints to know of, little patience and no reserve.

    python tests/staged_weights.py CHECKPOINTS.json weights fetch --weights-dir=...

The file is what `write_manifest` made of checkpoints. Everything else is the code that `flux-pulid`
runs; a mirror of the Hub is named by HF_ENDPOINT, as in life.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import weights.download
import weights.manifest
from server.cli.main import app as command_line
from weights.licences import Licence
from weights.manifest import Checkpoint, HubFile, ReleaseFile, WeightFile

QUICK = (0.01, 0.01, 0.01)  # seconds between tries


def write_manifest(path: Path, checkpoints: Sequence[Checkpoint]) -> Path:
    path.write_text(json.dumps([asdict(checkpoint) for checkpoint in checkpoints]))
    return path


def read_manifest(path: Path) -> tuple[Checkpoint, ...]:
    return tuple(_checkpoint(**content) for content in json.loads(path.read_text()))


def _checkpoint(files: list[dict[str, Any]], licence: dict[str, Any], **rest: Any) -> Checkpoint:
    return Checkpoint(files=tuple(_file(**file) for file in files), licence=Licence(**licence), **rest)


def _file(source: dict[str, Any], **rest: Any) -> WeightFile:
    return WeightFile(source=ReleaseFile(**source) if "url" in source else HubFile(**source), **rest)


def main() -> None:
    weights.manifest.MANIFEST = read_manifest(Path(sys.argv[1]))
    weights.download.RETRY_AFTER_S = QUICK
    weights.download.SPARE = 0
    command_line(args=sys.argv[2:], prog_name="flux-pulid")


if __name__ == "__main__":
    sys.exit(main())
