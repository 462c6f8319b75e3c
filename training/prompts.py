"""Prompt words <-> scenes: the small language the tiny model is taught, in both directions.

`scene_of` reads a prompt as a person may write it; what it does not know it passes over. `sampled` writes one
for training, with the same words and many ways to put them. A setting is at times left unsaid, so that a
prompt without one leaves it to the seed; everything else unsaid is as in `Scene()`. A word decides one thing
and the first one that decides it counts; "no hat", and everything in a negative prompt, is left out of what
is read.
Does not know: pictures, tokens, the face (which is never described in words).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from training.drawing.avatar import HEADWEAR, LIGHTS, SETTINGS, STYLES, Scene

DEFAULT_NEGATIVE = "bad quality, worst quality, text, signature, watermark"

T = TypeVar("T")
Synonyms = Mapping[str, tuple[str, ...]]

STYLE_WORDS: Synonyms = {
    "flat": ("flat", "flat style", "illustration", "poster", "avatar", "vector art", "simple drawing"),
    "comic": ("comic", "cartoon", "anime", "comic book style", "pop art"),
    "sketch": ("sketch", "pencil drawing", "pencil", "drawing", "charcoal", "pen drawing"),
    "neon": ("neon", "neon color", "neon colour", "neon lights", "cyberpunk", "glowing"),
    "watercolour": ("watercolour", "watercolor", "painting", "watercolour painting", "aquarelle", "painted"),
}
SETTING_WORDS: Synonyms = {
    "studio": ("studio", "plain background", "gray background", "white background", "photo studio"),
    "beach": ("beach", "sea", "at the seaside", "ocean", "tropical island", "palm"),
    "forest": ("forest", "in the woods", "woods", "trees", "jungle"),
    "night": ("night", "moon", "moonlight", "night sky", "at midnight"),
    "city": ("city", "street", "skyline", "downtown", "skyscrapers"),
    "mountain": ("mountain", "mountains", "alps", "peaks"),
    "snow": ("snow", "winter", "snowy", "snowfall"),
    "space": ("space", "stars", "planet", "galaxy", "outer space"),
    "sunset": ("sunset", "sunrise", "dusk", "dawn", "golden hour"),
    "garden": ("garden", "flowers", "meadow", "park", "spring"),
}
HEADWEAR_WORDS: Synonyms = {
    "hat": ("hat", "wearing a hat", "fedora", "cowboy", "detective"),
    "beanie": ("beanie", "wool cap", "wearing a beanie", "cap", "woolly hat"),
    "crown": ("crown", "king", "queen", "wearing a crown", "prince", "princess"),
    "wizard": ("wizard", "witch", "wizard hat", "pointed hat", "magician"),
    "helmet": ("astronaut", "helmet", "spacesuit", "cosmonaut"),
}
LIGHT_WORDS: Synonyms = {
    "cinematic": ("cinematic", "dramatic lighting", "film", "cinematic lighting", "moody"),
    "warm": ("warm", "warm light", "warm colours", "warm colors"),
    "cold": ("cold", "cold light", "cold colours", "cool tones"),
    "mono": ("black and white", "monochrome", "grayscale"),
}
SMILES: Mapping[float, tuple[str, ...]] = {
    0.0: ("serious", "stern", "not smiling", "earnest", "neutral expression"),
    0.65: ("smile", "smiling", "friendly", "with a smile", "kind"),
    1.0: ("laughing", "big smile", "happy", "joyful", "grinning", "laugh"),
}
_SMILE_UNSAID = Scene().smile

_OPENINGS = (
    "portrait",
    "a portrait",
    "portrait of a person",
    "portrait of woman",
    "portrait of a man",
    "a picture of a person",
    "portrait of a woman",
    "picture",
    "a person",
    "a face",
    "close up portrait",
    "portrait of a girl",
    "photo of a person",
)
_FILLERS = (
    "high quality",
    "detailed",
    "sharp focus",
    "soft",
    "vivid",
    "bright",
    "4k",
    "color",
    "beautiful",
    "best quality",
    "colorful",
    "highly detailed",
    "masterpiece",
    "professional",
)
_QUALITY = (
    "bad quality",
    "worst quality",
    "text",
    "signature",
    "watermark",
    "blurry",
    "low resolution",
    "deformed",
)
_SETTING_SAID = 0.75  # else it may be any, and the seed decides
_NEGATIONS = {"no", "without", "not"}
_PLACES = {
    "beach": "at the",
    "city": "in the",
    "space": "in",
    "snow": "in the",
    "night": "at",
    "sunset": "at",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    prompt: str
    negative: str  # names what the scene has not, or quality alone
    scene: Scene


def scene_of(prompt: str) -> Scene:
    """What a prompt asks for; what it does not say is as in `Scene()`."""
    return Scene(
        style=_first(prompt, STYLE_WORDS) or "flat",
        setting=_first(prompt, SETTING_WORDS) or "studio",
        headwear=_first(prompt, HEADWEAR_WORDS) or "none",
        light=_first(prompt, LIGHT_WORDS) or "plain",
        smile=_smile(prompt),
    )


def sampled(seed: int) -> Sample:
    """The same for the same seed."""
    random = np.random.default_rng(seed)
    scene = sampled_scene(random)
    negative = _negative(scene, random) if random.random() < 0.5 else DEFAULT_NEGATIVE
    return Sample(prompt=_prompt(scene, random), negative=negative, scene=scene)


def sampled_scene(random: np.random.Generator) -> Scene:
    """Styles and settings evenly; a hat, a light and a smile in some."""
    return Scene(
        style=_one(random, STYLES),
        setting=_one(random, SETTINGS),
        headwear=_one(random, HEADWEAR[1:]) if random.random() < 0.3 else "none",
        light=_one(random, LIGHTS[1:]) if random.random() < 0.3 else "plain",
        smile=_one(random, (*SMILES, _SMILE_UNSAID)),
    )


def _prompt(scene: Scene, random: np.random.Generator) -> str:
    """Words for everything that is not as unsaid, in any order after the opening, between fillers."""
    parts = _said(scene, random)
    parts += [_one(random, _FILLERS) for _ in range(random.integers(0, 3))]
    shuffled = [parts[index] for index in random.permutation(len(parts))]
    words = ", ".join([_one(random, _OPENINGS), *shuffled])
    may_be_unsaid = _first(words, SETTING_WORDS) or scene.setting
    understood = replace(scene_of(words), setting=may_be_unsaid)
    return words if understood == scene else _plain_prompt(scene)


def _said(scene: Scene, random: np.random.Generator) -> list[str]:
    plain = Scene()
    parts = []
    if scene.style != plain.style or random.random() < 0.6:
        parts.append(_one(random, STYLE_WORDS[scene.style]))
    if random.random() < (_SETTING_SAID if scene.setting != plain.setting else 0.4):
        parts.append(_placed(scene.setting, _one(random, SETTING_WORDS[scene.setting]), random))
    if scene.headwear != "none":
        parts.append(_one(random, HEADWEAR_WORDS[scene.headwear]))
    if scene.light != "plain":
        parts.append(_one(random, LIGHT_WORDS[scene.light]))
    if scene.smile != plain.smile:
        parts.append(_one(random, SMILES[scene.smile]))
    return parts


def _placed(setting: str, word: str, random: np.random.Generator) -> str:
    return f"{_PLACES.get(setting, 'in the')} {word}" if word == setting and random.random() < 0.6 else word


def _plain_prompt(scene: Scene) -> str:
    """For words that would be taken for something else beside each other ("golden hour", "film")."""
    words = ["portrait", scene.style, scene.setting]
    words += [scene.headwear] if scene.headwear not in ("none", "helmet") else []
    words += ["helmet"] if scene.headwear == "helmet" else []
    words += [LIGHT_WORDS[scene.light][0]] if scene.light != "plain" else []
    words += [SMILES[scene.smile][0]] if scene.smile in SMILES else []
    return ", ".join(words)


def _negative(scene: Scene, random: np.random.Generator) -> str:
    """Another value of one thing than the scene has, before or after what everybody writes."""
    vocabulary, own = (
        (STYLE_WORDS, scene.style),
        (SETTING_WORDS, scene.setting),
        (HEADWEAR_WORDS, scene.headwear),
        (LIGHT_WORDS, scene.light),
    )[random.integers(0, 4)]
    other = _one(random, tuple(value for value in vocabulary if value != own))
    parts = [_one(random, vocabulary[other]), _one(random, _QUALITY)]
    return ", ".join(parts[index] for index in random.permutation(2))


def named_alone(scene: Scene, random: np.random.Generator) -> str:
    """A negative prompt that names one thing of this scene, and nothing else of it."""
    said = [(STYLE_WORDS, scene.style), (SETTING_WORDS, scene.setting)]
    if scene.headwear != "none":
        said.append((HEADWEAR_WORDS, scene.headwear))
    if scene.light != "plain":
        said.append((LIGHT_WORDS, scene.light))
    vocabulary, value = said[random.integers(0, len(said))]
    parts = [_one(random, vocabulary[value]), _one(random, _QUALITY)]
    return ", ".join(parts[index] for index in random.permutation(2))


def without(scene: Scene, negative: str) -> Scene:
    """What is left of a scene when a negative prompt names it: that thing goes back to what is unsaid."""
    plain = Scene()
    named = scene_of(negative)
    for thing in ("style", "setting", "headwear", "light"):
        if getattr(named, thing) == getattr(scene, thing):
            scene = replace(scene, **{thing: getattr(plain, thing)})
    return scene


def _smile(prompt: str) -> float:
    if re.search(r"\bnot smiling\b", prompt.lower()):
        return 0.0
    words = {str(value): phrases for value, phrases in SMILES.items()}
    found = _first(prompt, words)
    return _SMILE_UNSAID if found is None else float(found)


def _first(prompt: str, vocabulary: Synonyms) -> str | None:
    """The value whose phrase comes first; of phrases that start together, the longest."""
    text = " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))
    best: tuple[int, int] | None = None
    value = None
    for phrase, meant in _phrases(vocabulary):
        for match in re.finditer(rf"\b{phrase}\b", text):
            before = text[: match.start()].split()[-2:]
            place = (match.start(), -len(phrase))
            if _NEGATIONS.isdisjoint(before) and (best is None or place < best):
                best, value = place, meant
    return value


def _phrases(vocabulary: Synonyms) -> list[tuple[str, str]]:
    return [(phrase, value) for value, phrases in vocabulary.items() for phrase in phrases]


def _one(random: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(random.integers(0, len(choices)))]


def vocabulary() -> list[str]:
    """Every word that a prompt of `sampled` may hold, in alphabetical order."""
    synonyms = (STYLE_WORDS, SETTING_WORDS, HEADWEAR_WORDS, LIGHT_WORDS)
    phrases = [phrase for kind in synonyms for said in kind.values() for phrase in said]
    phrases += [phrase for said in SMILES.values() for phrase in said]
    phrases += [*_OPENINGS, *_FILLERS, *_QUALITY, *_PLACES.values(), "in the"]
    return sorted({word for phrase in phrases for word in phrase.split()})
