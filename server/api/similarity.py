"""How much the people of the pictures look like their photos, in the words of the wire.

In JSON a list for each picture, with a number for each person; in the header `0.7123;none, 0.6882;0.4110`.
Only where the request asked for it. What the numbers are, the engine knows.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.jobs.job import Similarities

HEADER = "x-identity-similarity"
_DIGITS = 4
_NO_FACE = "none"

IdentitySimilarity = Annotated[
    list[list[float | None]] | None,
    Field(
        description="Only where asked for: for each picture, how much each person in it looks like their "
        "photo (ArcFace cosine); null where the picture shows no face.",
        exclude_if=lambda similarity: similarity is None,
    ),
]


def for_json(similarities: Similarities) -> list[list[float | None]] | None:
    """None where nobody asked."""
    if not similarities:
        return None
    return [[None if one is None else round(one, _DIGITS) for one in picture] for picture in similarities]


def for_header(similarities: Similarities) -> str:
    """Pictures are separated by commas, the people of one picture by semicolons."""
    return ", ".join(";".join(map(_number, picture)) or _NO_FACE for picture in similarities)


def _number(similarity: float | None) -> str:
    return _NO_FACE if similarity is None else f"{similarity:.{_DIGITS}f}"
