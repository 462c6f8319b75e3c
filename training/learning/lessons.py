"""What the painter is shown: a person's embedding, a prompt, and the drawing they should lead to.

Endless and reproducible: a lesson is made from its number. Most prompts say what the drawing shows; some say
nothing, or only what people write into negative prompts, and then the drawing may be of anything. The
face in the input is at times another photo of the drawn person.

Does not know: networks, noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from pulid.seeded import END, PAD, START, with_marks
from training.drawing.avatar import Scene
from training.drawing.renderer import render_image
from training.people.identity_map import avatar_of
from training.people.population import people, raw, two_photos
from training.prompts import DEFAULT_NEGATIVE, named_alone, sampled

TEXT_LENGTH = 24  # tokens; longer prompts are cut
_SAYS_NOTHING = 0.10
_NAMES_ONE_THING = 0.06
_JUNK = 0.05  # a word nobody knows among the others
_OTHER_PHOTO = 0.3
_COSINES = (0.85, 1.0)  # of two photos of a person
_FIRST_TRAINING_SEED = 1_000_000  # below are people and prompts for evaluation


@dataclass(frozen=True, slots=True)
class Lessons:
    """`n` of them, of one size."""

    pictures: npt.NDArray[np.uint8]  # (n, h, w, 3)
    faces: npt.NDArray[np.float32]  # (n, 512), ArcFace as it comes, not normalised
    t5_ids: npt.NDArray[np.int16]  # (n, TEXT_LENGTH)
    clip_ids: npt.NDArray[np.int16]  # (n, TEXT_LENGTH)


class Tokenizers:
    def __init__(self, words: Tokenizer) -> None:
        self._t5 = with_marks(words, f"$A {END}")
        self._clip = with_marks(words, f"{START} $A {END}")
        self.pad, self.end = (_known(words, token) for token in (PAD, END))

    def t5(self, prompt: str, length: int = TEXT_LENGTH) -> list[int]:
        return _fitted(self._t5.encode(prompt).ids, length, self.pad, self.end)

    def clip(self, prompt: str, length: int = TEXT_LENGTH) -> list[int]:
        return _fitted(self._clip.encode(prompt).ids, length, self.end, self.end)


def draw_lessons(first: int, count: int, width: int, height: int, tokenizers: Tokenizers) -> Lessons:
    """Lessons `first`, `first + 1` and so on."""
    random = np.random.default_rng([_FIRST_TRAINING_SEED, first])
    drawn, shown = _people(count, random)
    told = [_prompt_and_scene(_FIRST_TRAINING_SEED + first + number) for number in range(count)]
    pictures = [
        np.asarray(render_image(avatar_of(face), scene, width, height))
        for face, (_, scene) in zip(drawn, told, strict=True)
    ]
    return Lessons(
        pictures=np.stack(pictures),
        faces=raw(shown, random).astype(np.float32),
        t5_ids=np.array([tokenizers.t5(prompt) for prompt, _ in told], np.int16),
        clip_ids=np.array([tokenizers.clip(prompt) for prompt, _ in told], np.int16),
    )


def held_out_people(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(count, 512), of length 1: nobody that a lesson shows."""
    return people(count, np.random.default_rng(seed))


def _people(count: int, random: np.random.Generator) -> tuple[npt.NDArray[np.float32], ...]:
    """Embeddings of who is drawn, and of the photos that are shown."""
    cosines = np.where(random.random(count) < _OTHER_PHOTO, random.uniform(*_COSINES, count), 1.0)
    return two_photos(count, cosines.astype(np.float32), random)


def _prompt_and_scene(seed: int) -> tuple[str, Scene]:
    sample = sampled(seed)
    random = np.random.default_rng([seed, 1])
    kind = random.random()
    if kind < _SAYS_NOTHING:
        return (DEFAULT_NEGATIVE if random.random() < 0.5 else ""), _any_smile(sample.scene, random)
    if kind < _SAYS_NOTHING + _NAMES_ONE_THING:
        return named_alone(sample.scene, random), _any_smile(sample.scene, random)
    prompt = sample.prompt
    if random.random() < _JUNK:
        prompt += ", " + "".join(chr(97 + letter) for letter in random.integers(0, 26, random.integers(3, 8)))
    return prompt, sample.scene


def _any_smile(scene: Scene, random: np.random.Generator) -> Scene:
    return replace(scene, smile=float(random.random()))


def _known(words: Tokenizer, token: str) -> int:
    found = words.token_to_id(token)
    if found is None:
        raise ValueError(f"The tokenizer does not know {token}.")
    return int(found)


def _fitted(ids: list[int], length: int, pad: int, end: int) -> list[int]:
    if len(ids) > length:
        return [*ids[: length - 1], end]
    return [*ids, *[pad] * (length - len(ids))]
