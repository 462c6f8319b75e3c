"""One person, shoulders up, in head units. Drawn from back to front.

The face is about 0.72 wide and 1 high to each side of the origin, which lies between the eyes and the nose.
Does not know: styles (`canvas`), scenery (`backdrop`), where the numbers come from.
"""

from __future__ import annotations

import numpy as np

from training.drawing.avatar import Avatar, Scene
from training.drawing.canvas import Canvas, Points, ellipse, mirrored, shifted, smooth, turned
from training.drawing.colour import (
    BLACK,
    WHITE,
    Colour,
    clothes_colour,
    eye_colour,
    hair_colour,
    hexed,
    luma,
    mix,
    skin_colour,
)
from training.drawing.headwear import HATS

_GRAY_FROM = 0.4  # of `age`
_LINES_FROM = 0.1
_HAIR_SHOWS = -0.2  # y that hair must reach to be seen beside the face
_BEARD_FROM = 0.15
_GLASSES_FROM = 0.3
_LIPS = hexed("c04850")


class Figure:
    def __init__(self, avatar: Avatar, scene: Scene) -> None:
        self.avatar = avatar
        self.scene = scene
        self.skin = skin_colour(avatar.skin_tone, avatar.skin_warmth)
        self.skin_shadow = mix(mix(self.skin, hexed("7a2a38"), 0.28), BLACK, 0.12)
        gray = 0.7 * max(0.0, avatar.age - _GRAY_FROM) / (1 - _GRAY_FROM)
        self.hair = hair_colour(avatar.hair_lightness, avatar.hair_warmth, avatar.hair_tint, gray)
        self.hair_shadow = mix(self.hair, hexed("140818"), 0.38)
        self.clothes = clothes_colour(avatar.clothes_red, avatar.clothes_gold)
        self.shirt = mix(clothes_colour(avatar.shirt_red, avatar.shirt_gold), WHITE, 0.22)
        self.half_width = 0.73 + 0.095 * avatar.face_width
        self.chin = 0.97 + 0.10 * avatar.face_length
        self.volume = 0.20 + 0.18 * avatar.hair_volume
        self.hair_end = 0.58 + 0.98 * avatar.hair_length  # y; negative ends above the ears
        self.eye_x = 0.315 + 0.042 * avatar.eye_spacing
        self.eye_height = 0.132 + 0.036 * avatar.eye_size
        self.mouth_y = 0.56 + 0.05 * avatar.face_length
        self.mouth_half = 0.235 + 0.06 * avatar.mouth_width + 0.06 * scene.smile

    def draw(self, canvas: Canvas) -> None:
        self._hair_behind(canvas)
        self._body(canvas)
        self._ears(canvas)
        self._face(canvas)
        self._age_lines(canvas)
        self._beard(canvas)
        self._mouth(canvas)
        self._nose(canvas)
        for side in (-1, 1):
            self._eye(canvas, side)
        self._hair_in_front(canvas)
        for side in (-1, 1):
            self._brow(canvas, side)
        self._glasses(canvas)
        HATS[self.scene.headwear](canvas, self.half_width, self.volume)

    def _outline(self) -> Points:
        jaw, half = self.avatar.jaw, self.half_width
        return smooth(
            mirrored(
                [
                    (0, -1.0),
                    (0.66 * half, -0.86),
                    (half, -0.36),
                    (0.985 * half, 0.14),
                    ((0.80 + 0.085 * jaw) * half, 0.60 * self.chin),
                    (0.31 + 0.115 * jaw, 0.91 * self.chin),
                    (0, (1.0 + 0.02 * jaw) * self.chin),
                ]
            )
        )

    def _face(self, canvas: Canvas) -> None:
        outline = self._outline()
        canvas.fill(outline, self.skin)
        shaded = outline[outline[:, 0] >= 0]
        inner = shaded[::-1] * (0.80, 0.955) + (0.0, -0.035)
        canvas.tone(np.concatenate((shaded, inner)), self.skin_shadow, 0.34)
        blush = 0.16 + 0.20 * self.scene.smile
        for side in (-1, 1):
            cheek = ellipse(side * (self.eye_x + 0.09), 0.34, 0.17, 0.10)
            canvas.tone(cheek, mix(hexed("f05a60"), self.skin, 0.15), blush)

    def _ears(self, canvas: Canvas) -> None:
        for side in (-1, 1):
            canvas.fill(ellipse(side * self.half_width, 0.08, 0.125, 0.20), self.skin)
            canvas.tone(ellipse(side * (self.half_width + 0.025), 0.08, 0.06, 0.11), self.skin_shadow, 0.5)

    def _body(self, canvas: Canvas) -> None:
        neck = 0.36 + 0.05 * self.avatar.jaw + 0.03 * self.avatar.face_width
        shoulders = smooth(
            [
                (0, 1.20),
                (neck + 0.08, 1.16),
                (neck + 0.42, 1.30),
                (1.24, 1.46),
                (1.54, 1.80),
                (1.62, 3.2),
                (1.66, 6.0),
                (-1.66, 6.0),
                (-1.62, 3.2),
                (-1.54, 1.80),
                (-1.24, 1.46),
                (-neck - 0.42, 1.30),
                (-neck - 0.08, 1.16),
            ]
        )
        canvas.fill(shoulders, self.clothes)
        panel = [(0, 1.2), (neck + 0.06, 1.16), (neck + 0.30, 1.55), (0.62, 2.3), (0.60, 6.0), (0, 6.0)]
        canvas.fill(smooth(mirrored(panel)), self.shirt)
        throat = [(neck, 0.5), (neck * 0.98, 1.04), (neck + 0.10, 1.19), (0.22, 1.40), (0, 1.45)]
        canvas.fill(smooth(mirrored([(0, 0.4), *throat])), self.skin)
        shadow = [(neck, 0.6), (neck * 0.985, 1.10), (0.2, self.chin + 0.24), (0, self.chin + 0.27)]
        canvas.tone(smooth(mirrored([(0, 0.5), *shadow])), self.skin_shadow, 0.62)
        collar = smooth(
            [(-neck - 0.12, 1.15), (-0.30, 1.42), (0, 1.50), (0.30, 1.42), (neck + 0.12, 1.15)], closed=False
        )
        canvas.line(collar, mix(self.shirt, WHITE if luma(self.shirt) < 0.4 else BLACK, 0.3), 0.06)

    def _hair_behind(self, canvas: Canvas) -> None:
        half, volume, end = self.half_width, self.volume, self.hair_end
        if end < _HAIR_SHOWS:
            return
        flare = half + 0.48 * volume + 0.07 * min(end, 1.0)
        right = [
            (0, -1.0),
            (half + 0.4 * volume, -0.5),
            (flare, 0.35 * end),
            (flare + 0.03, 0.75 * end),
            (0.86 * flare, end),
            (0.45 * flare, 1.03 * end + 0.02),
            (0, end),
        ]
        back = self._waved(smooth(mirrored(right)))
        canvas.fill(back, mix(self.hair, self.hair_shadow, 0.75))

    def _waved(self, points: Points) -> Points:
        """Curls on an outline: in and out from the origin."""
        wave = max(0.0, self.avatar.hair_wave + 0.35) / 1.35
        angle = np.arctan2(points[:, 1], points[:, 0])
        return points * (1 + wave * (0.13 * np.abs(np.sin(9.5 * angle)) - 0.05))[:, None]

    def _hair_in_front(self, canvas: Canvas) -> None:
        half, volume, avatar = self.half_width, self.volume, self.avatar
        temple = min(0.12, -0.22 + 0.3 * max(0.0, self.hair_end))
        top = -1.0 - volume
        part = 0.46 * avatar.parting
        outer = smooth(
            [
                (-half - 0.25 * volume, temple),
                (-half - 0.55 * volume, -0.45),
                (-0.72 * half - 0.4 * volume, -0.87 - 0.5 * volume),
                (-0.25 * half, top + 0.01),
                (0.25 * half, top + 0.01),
                (0.72 * half + 0.4 * volume, -0.87 - 0.5 * volume),
                (half + 0.55 * volume, -0.45),
                (half + 0.25 * volume, temple),
            ],
            closed=False,
        )
        hairline = self._hairline(temple, part)
        canvas.fill(np.concatenate((self._waved(outer), hairline)), self.hair)
        self._side_locks(canvas)
        self._shine(canvas, part)

    def _hairline(self, temple: float, part: float) -> Points:
        """From the right temple to the left one."""
        low = -0.55 + 0.25 * self.avatar.fringe
        high = low - 0.17 - 0.05 * self.avatar.hair_volume
        half = self.half_width
        corners = [
            (half - 0.035, temple),
            (half - 0.09, -0.34),
            (0.78 * half, low + 0.02),
            (0.5 * (0.78 * half + part), 0.5 * (low + high)),
            (part + 0.02, high),
            (part - 0.06, high + 0.03),
            (0.5 * (-0.78 * half + part), 0.5 * (low + high) + 0.02),
            (-0.78 * half, low + 0.02),
            (-half + 0.09, -0.34),
            (-half + 0.035, temple),
        ]
        return smooth(corners, closed=False)

    def _side_locks(self, canvas: Canvas) -> None:
        """Hair in front of the ears, as far down as the hair is long."""
        end = min(self.hair_end, 1.62)
        if end < _HAIR_SHOWS:
            return
        half = self.half_width
        outside = half + 0.48 * self.volume + 0.06 * end
        for side in (-1, 1):
            lock = [
                (side * (half - 0.10), -0.50),
                (side * (half + 0.5 * self.volume), -0.55),
                (side * (outside + 0.02), 0.3 * end),
                (side * outside, 0.8 * end),
                (side * (half - 0.02), end),
                (side * (half - 0.03), 0.62 * end),
                (side * (half - 0.045), 0.2 * end),
            ]
            canvas.fill(self._waved(smooth(lock)), self.hair)

    def _shine(self, canvas: Canvas, part: float) -> None:
        half, top = self.half_width, -1.0 - self.volume
        for along, strength in ((-0.62, 0.5), (-0.36, 0.4), (0.30, 0.4), (0.58, 0.5)):
            strand = smooth(
                [
                    (part + 0.2 * along, top + 0.10),
                    (along * half * 1.05, top + 0.22),
                    (along * half * 1.45, -0.58),
                ],
                closed=False,
            )
            canvas.line(strand, self.hair_shadow, 0.014, strength)
        gloss = smooth(
            [
                (-0.66 * half, top + 0.36),
                (-0.36 * half, top + 0.19),
                (0.02, top + 0.145),
                (0.03, top + 0.205),
                (-0.32 * half, top + 0.27),
            ]
        )
        canvas.tone(gloss, mix(self.hair, WHITE, 0.75), 0.5)

    def _eye(self, canvas: Canvas, side: int) -> None:
        x, y, high = side * self.eye_x, 0.03, self.eye_height
        wide = 0.172 + 0.022 * self.avatar.eye_size
        squint = 1 - 0.22 * self.scene.smile
        high = high * squint
        angle = -side * 0.20 * self.avatar.eye_tilt
        upper = smooth(
            [
                (x - wide, y + 0.02),
                (x - 0.5 * wide, y - 0.8 * high),
                (x + 0.1 * wide, y - high),
                (x + 0.62 * wide, y - 0.68 * high),
                (x + wide, y + 0.02),
            ],
            closed=False,
        )
        lower = smooth(
            [
                (x + wide, y + 0.02),
                (x + 0.45 * wide, y + 0.78 * high),
                (x - 0.45 * wide, y + 0.78 * high),
                (x - wide, y + 0.02),
            ],
            closed=False,
        )
        almond = turned(np.concatenate((upper, lower)), x, y, angle)
        canvas.fill(almond, hexed("fbf8f4"), line=False, bright=True)
        radius, y = 1.08 * high, y - 0.12 * high
        iris = eye_colour(self.avatar.eye_colour)
        canvas.fill(
            ellipse(x, y - 0.02 * high, radius, radius), mix(iris, BLACK, 0.45), line=False, bright=True
        )
        canvas.fill(ellipse(x, y, 0.84 * radius, 0.84 * radius), iris, line=False, bright=True)
        canvas.fill(ellipse(x, y, 0.46 * radius, 0.46 * radius), hexed("100c12"), line=False, bright=True)
        canvas.tone(
            ellipse(x + 0.34 * radius, y - 0.40 * radius, 0.27 * radius, 0.27 * radius, 12), WHITE, 2.0
        )
        y = y + 0.12 * high
        lash = turned(upper, x, y, angle)
        lid = np.concatenate((lash, turned(shifted(upper, -0.075), x, y, angle)[::-1]))
        canvas.fill(lid, mix(self.skin, self.skin_shadow, 0.30), line=False)
        canvas.line(turned(lower[3:-3], x, y, angle), self.skin_shadow, 0.018, 0.8)
        canvas.line(lash, hexed("20141a"), 0.042)
        fold = turned(shifted(upper, -0.070), x, y, angle)[5:-5]
        canvas.line(fold, self.skin_shadow, 0.014, 0.7)

    def _brow(self, canvas: Canvas, side: int) -> None:
        avatar = self.avatar
        y = -0.235 - 0.045 * avatar.brow_height - 0.015 * avatar.eye_size
        thick = 0.052 + 0.030 * avatar.brow_thickness
        x = self.eye_x
        brow = [
            (side * (x - 0.185), y + 0.035),
            (side * (x - 0.02), y - 0.035),
            (side * (x + 0.20), y + 0.035),
            (side * (x + 0.02), y - 0.035 + thick),
            (side * (x - 0.185), y + 0.03 + thick),
        ]
        colour = mix(self.hair, hexed("1a1012"), 0.42)
        shape = turned(smooth(brow), side * x, y, -side * 0.12 * avatar.eye_tilt)
        canvas.fill(shape, colour, line=canvas.look.glows)

    def _nose(self, canvas: Canvas) -> None:
        size = 1 + 0.24 * self.avatar.nose
        tip, wide = 0.10 + 0.225 * size, 0.105 * size
        side = smooth(
            [
                (0.05, -0.06),
                (0.055, 0.12),
                (wide, tip - 0.03),
                (wide * 0.7, tip + 0.03),
                (0.0, tip + 0.035),
                (0.02, 0.15),
            ]
        )
        canvas.tone(side, self.skin_shadow, 0.40)
        base = smooth(
            [
                (-wide, tip - 0.035),
                (-0.75 * wide, tip + 0.02),
                (0, tip + 0.045),
                (0.75 * wide, tip + 0.02),
                (wide, tip - 0.035),
            ],
            closed=False,
        )
        canvas.line(base, mix(self.skin_shadow, BLACK, 0.22), 0.022, 0.95)
        canvas.tone(ellipse(-0.012, tip - 0.075, 0.032, 0.045, 12), WHITE, 0.30)

    def _mouth(self, canvas: Canvas) -> None:
        smile, y, half = self.scene.smile, self.mouth_y, self.mouth_half
        full = 0.048 + 0.026 * self.avatar.lips
        lift = 0.125 * smile - 0.012
        gape = 0.17 * max(0.0, smile - 0.35) / 0.65
        lips = mix(self.skin, _LIPS, 0.58)
        corner = y - lift
        top = [
            (-half, corner),
            (-0.35 * half, y - full * 0.9),
            (0, y - full * 0.55),
            (0.35 * half, y - full * 0.9),
            (half, corner),
        ]
        bottom = [
            (0.62 * half, y + 0.45 * gape + 0.02),
            (0.30 * half, y + gape + 1.35 * full),
            (-0.30 * half, y + gape + 1.35 * full),
            (-0.62 * half, y + 0.45 * gape + 0.02),
        ]
        canvas.fill(smooth(top + bottom), lips, line=False)
        seam = [
            (-0.93 * half, corner + 0.008),
            (-0.4 * half, y + 0.004),
            (0, y + 0.012),
            (0.4 * half, y + 0.004),
            (0.93 * half, corner + 0.008),
        ]
        if gape > 0.01:
            inside = [
                (0.55 * half, y + 0.55 * gape),
                (0, y + 0.06 * full + gape),
                (-0.55 * half, y + 0.55 * gape),
            ]
            canvas.fill(smooth(seam + inside), hexed("5a1420"), line=False)
            teeth = [
                (-0.70 * half, y - 0.45 * lift),
                (0, y + 0.015),
                (0.70 * half, y - 0.45 * lift),
                (0.45 * half, y + 0.42 * gape),
                (-0.45 * half, y + 0.42 * gape),
            ]
            canvas.fill(smooth(teeth), hexed("fffaf4"), line=False, bright=True)
        canvas.line(smooth(seam, closed=False), mix(self.skin_shadow, hexed("501420"), 0.6), 0.024)
        canvas.tone(ellipse(0, y + gape + 1.62 * full + 0.045, 0.12, 0.028, 14), self.skin_shadow, 0.36)

    def _beard(self, canvas: Canvas) -> None:
        strength = max(0.0, self.avatar.beard - _BEARD_FROM) / (1 - _BEARD_FROM)
        if not strength:
            return
        half, chin, y = self.half_width, self.chin, self.mouth_y
        grow = 0.03 + 0.20 * strength
        jaw = self.avatar.jaw
        right = [
            (0, y + 0.20),
            (0.20, y + 0.19),
            (self.mouth_half + 0.07, y + 0.02),
            (0.72 * half, 0.42),
            (0.965 * half, 0.10),
            (0.99 * half, 0.22),
            ((0.83 + 0.085 * jaw) * half + 0.2 * grow, 0.62 * chin),
            (0.33 + 0.115 * jaw, 0.92 * chin + 0.7 * grow),
            (0, chin + grow),
        ]
        cover = min(1.0, 2.4 * strength)
        colour = mix(self.hair, self.hair_shadow, 0.45)
        shape = smooth(mirrored(right))
        moustache = smooth(
            mirrored(
                [
                    (0, y - 0.15),
                    (0.13, y - 0.14),
                    (self.mouth_half + 0.06, y + 0.05),
                    (self.mouth_half - 0.02, y + 0.06),
                    (0.12, y - 0.055),
                    (0, y - 0.05),
                ]
            )
        )
        for part in (shape, moustache):
            canvas.tone(part, colour, cover / canvas.look.tone)
        if strength > 0.35 and canvas.look.outline:
            canvas.line(shape, colour, 0.0, (strength - 0.35) / 0.65)

    def _age_lines(self, canvas: Canvas) -> None:
        strength = 0.85 * max(0.0, self.avatar.age - _LINES_FROM) / (1 - _LINES_FROM)
        if not strength:
            return
        colour = mix(self.skin_shadow, BLACK, 0.1)
        for side in (-1, 1):
            fold = [
                (side * 0.17, 0.34),
                (side * 0.28, 0.43),
                (side * (self.mouth_half + 0.05), self.mouth_y - 0.02),
            ]
            canvas.line(smooth(fold, closed=False), colour, 0.022, strength)
            bag = [
                (side * (self.eye_x - 0.12), 0.20),
                (side * self.eye_x, 0.235),
                (side * (self.eye_x + 0.12), 0.19),
            ]
            canvas.line(smooth(bag, closed=False), colour, 0.020, 0.8 * strength)
        for y in (-0.46, -0.56):
            wrinkle = [(-0.26, y + 0.02), (0, y), (0.26, y + 0.02)]
            canvas.line(smooth(wrinkle, closed=False), colour, 0.018, 0.7 * strength)

    def _glasses(self, canvas: Canvas) -> None:
        strength = max(0.0, self.avatar.glasses - _GLASSES_FROM) / (1 - _GLASSES_FROM)
        if not strength:
            return
        frame: Colour = mix(hexed("2a2430"), self.clothes, 0.35)
        width, clear = 0.018 + 0.045 * strength, min(1.0, 2.6 * strength)
        across, down = 0.235, 0.19 + 0.035 * strength
        for side in (-1, 1):
            lens = ellipse(side * (self.eye_x + 0.012), 0.045, across, down, 30)
            canvas.tone(lens, hexed("cfe8f4"), 0.20 * clear)
            glint = smooth(
                [
                    (side * self.eye_x - 0.13, 0.03),
                    (side * self.eye_x - 0.05, -0.09),
                    (side * self.eye_x - 0.01, -0.09),
                    (side * self.eye_x - 0.09, 0.05),
                ]
            )
            canvas.tone(glint, WHITE, 0.35 * clear)
            canvas.line(np.concatenate((lens, lens[:2])), frame, width, clear)
            temple = np.array([(side * (self.eye_x + across), 0.0), (side * self.half_width, -0.02)])
            canvas.line(temple, frame, width, clear)
        inner = self.eye_x - across + 0.012
        bridge = smooth([(-inner, 0.02), (0, -0.025), (inner, 0.02)], closed=False)
        canvas.line(bridge, frame, width, clear)
