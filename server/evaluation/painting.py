"""An evaluation on its way: looks at the photos, paints cell after cell, measures, and writes the report.

Everything that is done lies in the report's folder at once, so an evaluation that was stopped, however
it was, goes on where it stood. Drives an engine that somebody else has loaded; knows no terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from pulid.engine import Engine, FaceEmbedding, GenerationRequest, GenerationResult, RgbImage
from pulid.errors import BadRequest, EngineFailed, NoFaceFound
from server.driving import run_alone
from server.evaluation.comparison import Distance, OtherReport, comparison_of, pairs_of, table_of
from server.evaluation.folder import ReportFolder
from server.evaluation.inputs import Photo, load_photo
from server.evaluation.page import page, thumbnail_of
from server.evaluation.plan import Cell, Plan
from server.evaluation.results import Result, results_of, row_of
from server.evaluation.summary import About, PhotoFacts, left_out, summary_of
from server.jobs.files import OutputOptions, encode_image

_REPORT_EVERY_S = 30.0  # while painting: a kill costs the page no more than that, the pictures nothing
_THUMBNAIL = 320  # pixels, the longer side


class Evaluation:
    def __init__(self, plan: Plan, folder: ReportFolder, about: About, *, max_megapixels: float) -> None:
        self._plan = plan
        self._folder = folder
        self._about = about
        self._max_megapixels = max_megapixels
        with folder.as_written():
            self._results = results_of(plan, folder.rows())
            known = folder.photo_facts()
            self._facts = None if known is None else PhotoFacts.from_json(known)

    @property
    def needs_engine(self) -> bool:
        return self._facts is None or bool(self.remaining())

    @property
    def facts(self) -> PhotoFacts:
        return self._facts or PhotoFacts()

    @property
    def left_out(self) -> dict[str, str]:
        """Photos that nothing is painted of, and why."""
        return left_out(self._plan, self.facts)

    @property
    def total(self) -> int:
        return sum(1 for _ in self._plan.cells(self.facts.left_out))

    @property
    def done(self) -> int:
        return len(self._results)

    def remaining(self) -> list[Cell]:
        return [cell for cell in self._plan.cells(self.facts.left_out) if cell.id not in self._results]

    def look_at_photos(self, engine: Engine) -> None:
        """Which photos have a face, and how alike they are; once for each report.

        Raises NoFaceFound where nothing is left to paint.
        """
        if self._facts is not None:
            return
        faces: dict[str, FaceEmbedding] = {}
        faceless: dict[str, str] = {}
        for photo in self._plan.photos:
            if not photo.problem:
                try:
                    faces[photo.name] = self._face_of(engine, photo)
                except BadRequest as exc:
                    faceless[photo.name] = str(exc)
        if not faces:
            why = "; ".join(f"{name}: {problem}" for name, problem in faceless.items())
            raise NoFaceFound(f"No photo can be used. {why}")
        self._facts = PhotoFacts(faceless, _cosines(faces))
        self._folder.write_photo_facts(self._facts.as_json())

    def paint(self, engine: Engine) -> Iterator[Result]:
        """Paint and measure what remains, each picture safe on the disk when it is yielded."""
        written = time.monotonic()
        for cell in self.remaining():
            result = self._paint(engine, cell)
            self._results[cell.id] = result
            if time.monotonic() - written > _REPORT_EVERY_S:
                self.write_report()
                written = time.monotonic()
            yield result

    def write_report(self, comparison: Mapping[str, Any] | None = None) -> None:
        """summary.json and index.html of what is done so far; with a comparison, where there is one."""
        results = self._results.values()
        summary = summary_of(self._plan, self.facts, results, self._about)
        self._folder.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False))
        text = page(self._plan, self._about, summary, self._results, comparison)
        self._folder.write("index.html", text)

    def compare(self, other: OtherReport, distance: Distance | None) -> None:
        """With a report of the same cells, painted otherwise: comparison.json, comparison.csv, the page."""
        pairs = pairs_of(self._folder.root, self._results, other, distance)
        comparison = comparison_of(self._plan, self._about.profile, other, pairs)
        self._folder.write("comparison.csv", table_of(self._plan, pairs))
        self._folder.write("comparison.json", json.dumps(comparison, indent=2, ensure_ascii=False))
        self.write_report(comparison)

    def _paint(self, engine: Engine, cell: Cell) -> Result:
        started = time.monotonic()
        painted, face = self._run(engine, cell.photo, self._plan.request(cell))
        seconds = time.monotonic() - started
        (image,) = painted.images
        (cosine,) = engine.likeness(image, (face,))
        file = encode_image(image, self._plan.options)
        name = f"pictures/{cell.id}.{file.format}"
        self._folder.write(name, file.data)
        result = Result.measured(cell, name, cosine, seconds)
        self._folder.add_row(row_of(self._plan, result))
        return result

    def _face_of(self, engine: Engine, photo: Photo) -> FaceEmbedding:
        first = Cell(photo, prompt=1, point=1, seed=self._plan.seeds[0])
        # The least that brings a reference face: one step of a small picture.
        request = replace(self._plan.request(first), num_steps=1, width=256, height=256)
        _, face = self._run(engine, photo, request)
        self._folder.write(thumbnail_of(photo), _small(self._load(photo)))
        return face

    def _run(
        self, engine: Engine, photo: Photo, request: GenerationRequest
    ) -> tuple[GenerationResult, FaceEmbedding]:
        """What was painted, and the face to compare it with."""
        with_photo = replace(request, id_images=(self._load(photo),), measures_similarity=True)
        result = run_alone(engine, with_photo)
        for face in result.reference_faces:
            if face is not None:
                return result, face
        raise EngineFailed("The engine does not tell which face it read, so nothing can be compared.")

    def _load(self, photo: Photo) -> RgbImage:
        return load_photo(photo, max_megapixels=self._max_megapixels)


def _cosines(faces: dict[str, FaceEmbedding]) -> list[tuple[str, str, float]]:
    """Reference faces have length 1."""
    pairs = combinations(faces.items(), 2)
    return [(one, other, round(float(face @ face_2), 6)) for (one, face), (other, face_2) in pairs]


def _small(photo: RgbImage) -> bytes:
    image = Image.fromarray(photo)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return encode_image(np.asarray(image), OutputOptions(format="jpg", quality=85)).data
