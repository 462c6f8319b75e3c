"""FluxPulidPipeline: portraits from Python without the server, in the manner of diffusers.

    from pulid import FluxPulidPipeline
    pipe = FluxPulidPipeline.from_pretrained(profile="tiny")
    pipe("portrait of a wizard", Image.open("me.jpg"), seed=7).images[0].save("wizard.png")

Same engine, same pictures: a prompt, a photo and a seed give here what the server answers. Pictures
are PIL's at this border. Reads local files only. Does not know: HTTP, jobs, where weights come from.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from pulid.batch import Flight
from pulid.engine import (
    DEFAULT_NEGATIVE_PROMPT,
    LARGEST_FACE,
    FaceChoice,
    FaceMode,
    Fusion,
    GenerationRequest,
    GenerationResult,
    Person,
    RgbImage,
)
from pulid.errors import BadRequest, EngineFailed, WeightsMissing
from pulid.flux.latents import PIXELS_PER_TOKEN
from pulid.load import ModelPaths, load_engine
from pulid.pipeline import PulidFluxEngine
from pulid.profiles import profile_named
from pulid.tiny import tiny_engine

_JOB = "pipeline"
_TIMESTEPS = 1000  # diffusers counts from 1000 to 0 where the engine counts from 1 to 0

# (pipeline, step from 0, timestep, {"latents": packed latents}) -> None, or such a dict with new latents
StepCallback = Callable[["FluxPulidPipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxPulidOutput:
    images: list[Image.Image]
    seeds: list[int]  # one per image
    timings: Mapping[str, float]  # seconds by stage


class FluxPulidPipeline:
    """One engine, used by one thread. `engine` is the way to the rest: faces, identity files, likeness."""

    def __init__(self, engine: PulidFluxEngine) -> None:
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls,
        paths: ModelPaths | None = None,
        *,
        profile: str = "exact",
        device: str = "cuda",
        face_mode: FaceMode = "one-face",
    ) -> FluxPulidPipeline:
        """Load from local files; `weights.paths.model_paths(folder)` makes `paths`.

        The profile tiny needs none, and computes on the CPU. Raises UnknownProfile, WeightsMissing or
        DeviceUnavailable.
        """
        chosen = profile_named(profile)
        if chosen.name == "tiny":
            return cls(tiny_engine(face_mode=face_mode))
        if paths is None:
            raise WeightsMissing(
                f"The profile {profile!r} needs the paths of its checkpoints. To try it without, use tiny."
            )
        return cls(load_engine(chosen, paths, device, face_mode=face_mode))

    def __call__(
        self,
        prompt: str,
        id_image: Image.Image | Sequence[Image.Image] = (),
        *,
        negative_prompt: str = DEFAULT_NEGATIVE_PROMPT,
        height: int = 1152,
        width: int = 896,
        num_inference_steps: int = 20,
        guidance_scale: float = 4.0,
        true_cfg_scale: float = 1.0,
        id_weight: float = 1.05,
        start_step: int = 0,
        id_end_step: int | None = None,
        fusion: Fusion = "mean",
        face: FaceChoice = LARGEST_FACE,
        people: Sequence[Person] = (),
        num_images_per_prompt: int = 1,
        max_sequence_length: int = 128,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> FluxPulidOutput:
        """Paint. The parameters are those of `GenerationRequest`, by diffusers' names where it has one.

        `id_image`: photos of one person, or those that `people` refer to; none paints without an
        identity. Of a `generator` only the seed counts, not its state. `callback_on_step_end` may
        answer with other latents, and ends the run by raising. Raises BadRequest (NoFaceFound, ...),
        OutOfMemory or DeviceLost.
        """
        if min(num_inference_steps, num_images_per_prompt) < 1 or min(width, height) < PIXELS_PER_TOKEN:
            raise BadRequest(f"Ask for at least one step, one picture, and {PIXELS_PER_TOKEN} pixels a side.")
        photos = (id_image,) if isinstance(id_image, Image.Image) else id_image
        request = GenerationRequest(
            prompt=prompt,
            seed=_seed(seed, generator),
            id_images=tuple(as_rgb(photo) for photo in photos),
            people=tuple(people),
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_steps=num_inference_steps,
            start_step=start_step,
            id_end_step=id_end_step,
            guidance=guidance_scale,
            id_weight=id_weight,
            fusion=fusion,
            face=face,
            true_cfg=true_cfg_scale,
            timestep_to_start_cfg=start_step,  # as on the wire
            max_sequence_length=max_sequence_length,
            num_outputs=num_images_per_prompt,
        )
        result = self._run(request, callback_on_step_end)
        return FluxPulidOutput(
            images=[Image.fromarray(image) for image in result.images],
            seeds=list(result.seeds),
            timings=result.timings,
        )

    def _run(self, request: GenerationRequest, callback: StepCallback | None) -> GenerationResult:
        self.engine.admit(_JOB, request)
        if callback is not None:
            self.engine.flight(_JOB).on_step_end = self._told(callback)
        try:
            while events := self.engine.step():
                if events[-1].error is not None:
                    raise events[-1].error
                if events[-1].denoised is not None:
                    return self.engine.decode(events[-1].denoised)
        finally:
            self.engine.cancel(_JOB)
        raise EngineFailed("The engine stopped before the picture was done.")

    def _told(self, callback: StepCallback) -> Callable[[Flight], None]:
        def on_step_end(flight: Flight) -> None:
            step = flight.step - 1
            answer = callback(self, step, _TIMESTEPS * flight.times[step], {"latents": flight.latents})
            flight.latents = (answer or {}).get("latents", flight.latents)

        return on_step_end


def as_rgb(photo: Image.Image) -> RgbImage:
    """Upright, without transparency."""
    return np.array(ImageOps.exif_transpose(photo).convert("RGB"))


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise BadRequest("Give either a seed or a generator.")
    if generator is not None:
        return generator.initial_seed()
    return secrets.randbits(32) if seed is None else seed
