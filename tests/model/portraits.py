"""Requests for tests, and how to run them through an engine."""

from pathlib import Path

import numpy as np
from PIL import Image

from pulid.engine import GenerationRequest

PHOTOS = Path(__file__).parents[1] / "photos"


def photo(name):
    return np.array(Image.open(PHOTOS / f"{name}.jpg").convert("RGB"))


def portrait(person="collins", **changes):
    """A small request; `person` None paints without a photo."""
    defaults = {
        "prompt": "portrait of woman, neon color, cinematic",
        "seed": 720558,
        "id_images": () if person is None else (photo(person),),
        "width": 256,
        "height": 256,
        "num_steps": 4,
    }
    return GenerationRequest(**{**defaults, **changes})


def results(engine, requests):
    """Run requests side by side to their end: {job id: result}. Decoded at the very end."""
    for job_id, request in requests.items():
        engine.admit(job_id, request)
    done = {}
    while events := engine.step():
        done.update({event.job_id: event.denoised for event in events if event.is_last})
    return {job_id: engine.decode(denoised) for job_id, denoised in done.items()}


def generate(engine, request):
    return results(engine, {"job": request})["job"]


def picture(engine, person="collins", **changes):
    return generate(engine, portrait(person, **changes)).images[0]


def difference(one, other):
    """Mean absolute difference in levels of 255."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def within_one_level(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1
