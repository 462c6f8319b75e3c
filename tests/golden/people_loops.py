"""Recorded requests with several photos or people, run through the project's own step.

What the manifest calls people becomes `pulid.engine.Person`; their tokens and all other inputs come
from `golden_fill`. The small FLUX model is that of the reference's own cases.
"""

import numpy as np
import torch

from golden import flux_models, golden_fill, goldens
from pulid.batch import Branch, Flight
from pulid.engine import Box, GenerationRequest, Mask, Person
from pulid.flux import latents, sampling
from pulid.flux.text import TextFeatures
from pulid.identity.people import Identity, fuse, like_nobody, place
from pulid.pipeline import denoise_step


def tokens_of(name):
    return golden_fill.tensor(f"people.{name}", (1, 32, 96), seed=50)


def mask_levels(spec):
    """(h, w) uint8: fields of 4x4 pixels of level 0, 85, 170 or 255."""
    fields = golden_fill.labels(f"people.{spec['name']}", spec["h"], spec["w"], 4, block=4)
    return (85 * fields).astype(np.uint8)


def region_of(spec):
    if spec is None:
        return None
    if "box" in spec:
        return Box(**dict(zip(("left", "top", "right", "bottom"), spec["box"], strict=True)))
    return Mask(mask_levels(spec["mask"]))


def people_of(case):
    """Each person, with the fused tokens of their photos."""
    for spec in case["people"]:
        photos = [Identity(tokens_of(name), None) for name in spec["photos"]]
        person = Person(
            region=region_of(spec["region"]),
            weight=spec["weight"],
            start_step=spec["start_step"],
            end_step=spec["end_step"],
        )
        yield person, fuse(photos, spec["fusion"]).tokens


def flight(modules, case, form, device=flux_models.CPU):
    x = {name: tensor.to(device) for name, tensor in goldens.inputs(case).items()}
    packed = latents.pack(x["noise"])
    people = [(person, tokens.to(device)) for person, tokens in people_of(case)]
    nobody = tokens_of("nobody").to(device)
    unseen = [(person, like_nobody(nobody, tokens)) for person, tokens in people]

    def branch(text, pooled, who):
        def fold(tokens, weight):
            return form.of(list(modules), tokens, weight, torch.float32)

        grid = latents.token_grid(case["height"], case["width"])
        placed = place(who, fold, grid=grid, num_steps=case["num_steps"])
        return Branch(text=TextFeatures(tokens=x[text], pooled=x[pooled]), people=placed)

    guided = sampling.true_cfg_is_on(case["true_cfg"])
    return Flight(
        job_id=case["id"],
        request=GenerationRequest(
            prompt="",
            seed=0,
            **{name: case[name] for name in ("width", "height", "num_steps", "guidance", "true_cfg")},
            timestep_to_start_cfg=case["timestep_to_start_cfg"],
            max_sequence_length=case["txt_len"],
        ),
        seeds=(0,),
        latents=packed,
        times=sampling.timesteps(case["num_steps"], packed.shape[1]),
        positive=branch("txt", "vec", people),
        negative=branch("neg_txt", "neg_vec", unseen) if guided else None,
    )


def denoise(case, form, device=flux_models.CPU):
    """Packed latents after the last step."""
    flux, modules = flux_models.model(case["model"])
    row = flight(modules, case, form, device)
    tables = flux_models.rotary(flux, case, device)
    while not row.is_done:
        denoise_step(flux, [row], tables)
    return row.latents
