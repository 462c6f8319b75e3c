"""What a drawn portrait is of: a person in numbers, and the scene the person is in.

`Avatar` is all that a face decides; every number is continuous, because two photos of one person never
give the same embedding and a yes/no would flip between them. `Scene` is all that a prompt decides.
Does not know: how either is drawn (`renderer`), where the numbers come from (`identity_map`, `prompts`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

STYLES = ("flat", "comic", "sketch", "neon", "watercolour")
SETTINGS = ("studio", "beach", "forest", "night", "city", "mountain", "snow", "space", "sunset", "garden")
HEADWEAR = ("none", "hat", "beanie", "crown", "wizard", "helmet")
LIGHTS = ("plain", "cinematic", "warm", "cold", "mono")


@dataclass(frozen=True, slots=True, kw_only=True)
class Avatar:
    """Each number is in [-1, 1]; 0 is the middle of what people look like here."""

    skin_tone: float = 0.0  # light .. dark
    skin_warmth: float = 0.0  # olive .. rosy
    hair_lightness: float = 0.0  # black .. platinum
    hair_warmth: float = 0.0  # ash .. ginger
    hair_tint: float = 0.0  # teal .. natural .. pink
    hair_volume: float = 0.0
    hair_length: float = 0.0  # cropped .. over the shoulders
    hair_wave: float = 0.0  # straight .. curly
    fringe: float = 0.0  # high forehead .. to the brows
    parting: float = 0.0  # left .. right
    face_width: float = 0.0
    face_length: float = 0.0
    jaw: float = 0.0  # pointed .. square
    eye_size: float = 0.0
    eye_spacing: float = 0.0
    eye_tilt: float = 0.0
    eye_colour: float = 0.0  # brown .. green .. blue
    brow_thickness: float = 0.0
    brow_height: float = 0.0
    nose: float = 0.0  # small .. large
    mouth_width: float = 0.0
    lips: float = 0.0  # thin .. full
    beard: float = -1.0  # none up to 0, then stubble .. full
    glasses: float = -1.0  # none up to 0, then thin .. bold
    age: float = -1.0  # lines, and gray in the hair
    clothes_red: float = 0.0  # with clothes_gold a plane of colours around gray
    clothes_gold: float = 0.0
    shirt_red: float = 0.0  # the same, of what is worn under the jacket
    shirt_gold: float = 0.0


TRAITS = tuple(field.name for field in fields(Avatar))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    style: str = "flat"
    setting: str = "studio"
    headwear: str = "none"
    light: str = "plain"
    smile: float = 0.3  # 0 .. 1

    def __post_init__(self) -> None:
        for value, known in (
            (self.style, STYLES),
            (self.setting, SETTINGS),
            (self.headwear, HEADWEAR),
            (self.light, LIGHTS),
        ):
            if value not in known:
                raise ValueError(f"Unknown {value!r}; choose one of: {', '.join(known)}.")
