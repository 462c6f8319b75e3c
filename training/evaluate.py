"""The trained model's figures: does the picture belong to the face, does it follow the prompt?

    identity    the share of painted pictures that are nearest, at 32 x 32 pixels, to their own person's
                drawing among those of 20 people nobody trained on; chance is 0.05
    photos      the same for another photo of the person, beside what a perfect painter would reach
    style       the share of pictures in which a small classifier, taught on drawings, sees the style of the
                prompt
    negative    how much less it sees a style once a negative prompt names it, at true_cfg 3
    start_step  how far a picture is from the faceless one with the same seed
    decoder     PSNR of drawings coded and decoded, in dB

Run: python -m training.evaluate --size 256x256     (minutes; prints, and writes run/figures-SIZE.json)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from training.drawing.avatar import STYLES, Scene
from training.drawing.renderer import render_image
from training.learning.lessons import held_out_people
from training.learning.painting import Pictures, Studio, Wish
from training.learning.style_classifier import StyleClassifier
from training.learning.train_decoder import peak_signal_to_noise
from training.people.identity_map import avatar_of
from training.people.population import raw, two_photos
from training.prompts import STYLE_WORDS
from training.runs import RUN, size_of

CROWD = 20
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
COSINES = (0.95, 0.9, 0.75)
_THUMBNAIL = 32
_PROMPT = "portrait, flat, studio"
_SETTINGS_OF_PROMPTS = ("studio", "beach", "forest", "city")

Faces = npt.NDArray[np.float32]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--size", default="256x256")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--crowds", type=int, default=2, help="of 20 people, for each figure of identity")
    given = arguments.parse_args()
    width, height = size_of(given.size)
    evaluation = Evaluation(
        Studio.of_this_run(), Wish(width=width, height=height, steps=given.steps), given.crowds
    )
    figures = {
        "size": given.size,
        "steps": given.steps,
        "identity": evaluation.identity(),
        "photos": evaluation.photos(),
        "style": evaluation.style(),
        "negative": evaluation.negative(),
        "start_step": evaluation.start_step(),
        "decoder": {f"{side}": evaluation.decoder(side) for side in (256, 512)},
    }
    file = RUN / f"figures-{given.size}.json"
    file.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


class Evaluation:
    def __init__(self, studio: Studio, wish: Wish, crowds: int) -> None:
        self._studio, self._wish, self._crowds = studio, wish, crowds
        self._classifier = StyleClassifier.taught()

    def identity(self) -> Mapping[str, float]:
        """By id_weight."""
        found = {}
        for weight in track(WEIGHTS, description="identity"):
            hits = [
                self._hits(people, people, self._asked(id_weight=weight, seed=1000 * crowd))
                for crowd, people in enumerate(self._people())
            ]
            found[str(weight)] = _rounded(np.mean(hits))
        return found

    def photos(self) -> Mapping[str, Mapping[str, float]]:
        """By the cosine of the two photos' embeddings: this painter, and a perfect one."""
        found = {}
        for cosine in track(COSINES, description="photos"):
            own, perfect = [], []
            for crowd in range(self._crowds):
                drawn, shown = two_photos(CROWD, cosine, np.random.default_rng([7, crowd]))
                own.append(self._hits(drawn, shown, self._asked(seed=1000 * crowd)))
                perfect.append(_nearest_own(_drawings(drawn, self._wish), _drawings(shown, self._wish)))
            found[str(cosine)] = {"painted": _rounded(np.mean(own)), "perfect": _rounded(np.mean(perfect))}
        return found

    def style(self) -> Mapping[str, float]:
        """Recovered styles, each in several settings; and how often the classifier is right on drawings."""
        found: dict[str, float] = {}
        faces = _raw(held_out_people(5, seed=3))
        for style in track(STYLES, description="style"):
            seen = [
                self._classifier.styles(
                    self._studio.paint(faces, self._asked(prompt=f"portrait, {style}, {place}"))
                )
                for place in _SETTINGS_OF_PROMPTS
            ]
            found[style] = _rounded(np.mean([name == style for names in seen for name in names]))
        return {
            **found,
            "all": _rounded(np.mean(list(found.values()))),
            "drawings": self._classifier.accuracy(),
        }

    def negative(self) -> Mapping[str, Mapping[str, float]]:
        """The classifier's mean score of a style, without and with a negative prompt that names it."""
        faces = _raw(held_out_people(8, seed=4))
        found = {}
        for style in track(STYLES, description="negative"):
            asked = {"prompt": f"portrait, {style}", "negative": STYLE_WORDS[style][0]}
            scores = [
                self._classifier.scores(self._studio.paint(faces, self._asked(true_cfg=scale, **asked)))
                for scale in (1.0, 3.0)
            ]
            without, with_negative = (score[:, STYLES.index(style)].mean() for score in scores)
            found[style] = {"without": _rounded(without), "with": _rounded(with_negative)}
        return found

    def start_step(self) -> Mapping[str, float]:
        """Root mean square of the difference to the faceless picture, in levels of 255."""
        faces = _raw(held_out_people(8, seed=5))
        faceless = self._studio.paint(faces, self._asked(id_weight=0.0)).astype(float)
        found = {}
        for start in (0, 2, 4, 7, 10):
            painted = self._studio.paint(faces, self._asked(start_step=start)).astype(float)
            found[str(start)] = _rounded(np.sqrt(np.square(painted - faceless).mean()))
        return found

    def decoder(self, side: int) -> float:
        return _rounded(peak_signal_to_noise(self._studio.student.networks.autoencoder, side))

    def _people(self) -> list[Faces]:
        return [held_out_people(CROWD, seed=crowd) for crowd in range(self._crowds)]

    def _hits(self, drawn: Faces, shown: Faces, wish: Wish) -> float:
        """Painted from `shown`, looked for among the drawings of `drawn`."""
        return _nearest_own(_drawings(drawn, wish), _thumbnails(self._studio.paint(_raw(shown), wish)))

    def _asked(self, **changes: object) -> Wish:
        asked = {**vars_of(self._wish), "prompt": _PROMPT, **changes}
        return Wish(**asked)  # type: ignore[arg-type]


def vars_of(wish: Wish) -> dict[str, object]:
    return {name: getattr(wish, name) for name in wish.__dataclass_fields__}


def _raw(people: Faces) -> Faces:
    return raw(people, np.random.default_rng(9))


def _drawings(people: Faces, wish: Wish) -> npt.NDArray[np.float32]:
    """What the identity map draws of these people, as thumbnails."""
    drawn = [np.asarray(render_image(avatar_of(face), Scene(), wish.width, wish.height)) for face in people]
    return _thumbnails(np.stack(drawn))


def _thumbnails(pictures: Pictures) -> npt.NDArray[np.float32]:
    """(n, 32 * 32 * 3)"""
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(tensor, (_THUMBNAIL, _THUMBNAIL), mode="area")
    return small.flatten(1).numpy()


def _nearest_own(gallery: npt.NDArray[np.float32], queries: npt.NDArray[np.float32]) -> float:
    distances = np.square(gallery[None] - queries[:, None]).sum(-1)
    return float((distances.argmin(1) == np.arange(len(queries))).mean())


def _rounded(figure: float | np.floating) -> float:
    return round(float(figure), 3)


if __name__ == "__main__":
    main()
