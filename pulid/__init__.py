"""PuLID identity in FLUX.1-dev: a photo of a face and a prompt in, a picture of that person out.

Start reading at `pipeline.py` (the engine) and `engine.py` (what a caller may ask of it).
Importing this package loads no torch; `pulid.FluxPulidPipeline` (for Python without the server) does,
when it is first asked for. Paper: https://arxiv.org/abs/2404.16022
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulid.library import FluxPulidPipeline

__all__ = ["FluxPulidPipeline"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pulid import library

    return getattr(library, name)
