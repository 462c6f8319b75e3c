"""A portrait from Python, without the server.

    python examples/portrait.py me.jpg wizard.png

By default this is the profile tiny: it runs on any CPU in seconds and draws a portrait
that depends on face and prompt. With the weights of docs/weights-and-licences.md and a CUDA card:

    python examples/portrait.py me.jpg wizard.png --profile exact --weights-dir ~/weights
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from pulid import FluxPulidPipeline
from weights.paths import model_paths


def main() -> None:
    wanted = arguments()
    paths = model_paths(wanted.weights_dir) if wanted.weights_dir else None
    pipe = FluxPulidPipeline.from_pretrained(paths, profile=wanted.profile)

    def show(pipe: FluxPulidPipeline, step: int, timestep: float, state: dict) -> None:
        print(f"step {step + 1}, timestep {timestep:.0f}")

    portrait = pipe(
        wanted.prompt,
        [Image.open(photo) for photo in wanted.photos],
        width=wanted.size,
        height=wanted.size,
        num_inference_steps=wanted.steps,
        seed=wanted.seed,
        callback_on_step_end=show,
    )
    portrait.images[0].save(wanted.out)
    print(f"{wanted.out}: seed {portrait.seeds[0]}. {pipe.engine.info.notice}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A portrait of the person in one or more photos.")
    parser.add_argument("photos", nargs="+", type=Path, help="photos of one person")
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--prompt", default="portrait of a wizard in the forest, cinematic")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--weights-dir", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
