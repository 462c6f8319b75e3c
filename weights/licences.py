"""What the licence of each checkpoint allows, in a sentence. A reading aid: the publishers' texts count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    name: str
    commercial_use: Literal["yes", "no"]
    summary: str
    url: str


FLUX_DEV = Licence(
    name="FLUX.1 [dev] Non-Commercial License",
    commercial_use="no",
    summary="Commercial or production use of the model needs a licence from Black Forest Labs.",
    url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
)
INSIGHTFACE = Licence(
    name="InsightFace models: non-commercial research only",
    commercial_use="no",
    summary="A commercial service needs a licence from InsightFace.",
    url="https://github.com/deepinsight/insightface#license",
)
APACHE = Licence(
    name="Apache-2.0",
    commercial_use="yes",
    summary="Free to use, with the notice kept.",
    url="https://www.apache.org/licenses/LICENSE-2.0",
)
MIT = Licence(
    name="MIT",
    commercial_use="yes",
    summary="Free to use, with the notice kept.",
    url="https://opensource.org/license/mit",
)
