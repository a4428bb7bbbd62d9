"""Drawn photos of fruit, for pictures in the documents: no file of anyone else is in them.

`write_dataset` draws labelled photos: five labels of fruit in random light, place and size, blurred and
partly behind leaves. Green apples look like pears and peaches like oranges, so that a model makes mistakes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

SIZE = (480, 360)
_SCALE = 2
"""Photos are drawn larger by this factor, for smooth edges."""


class _Canvas:
    """A photo that is being drawn, with a table as its background."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.width, self.height = (_SCALE * length for length in SIZE)
        wall, table = _vary(chance, (214, 206, 192), 40), _vary(chance, (150, 116, 84), 45)
        self.image = Image.new("RGB", (self.width, self.height), wall)
        self.pen = ImageDraw.Draw(self.image)
        self.horizon = chance.uniform(0.35, 0.7) * self.height
        self.pen.rectangle((0, self.horizon, self.width, self.height), fill=table)
        self.radius = chance.uniform(0.05, 0.3) * self.height
        self.x = chance.uniform(0.3, 0.7) * self.width
        self.y = min(self.horizon + chance.uniform(-0.3, 0.6) * self.radius, self.height - self.radius)

    def shade(self, x: float, y: float, across: float, up: float, colour: Colour) -> None:
        """Draw an ellipse that is lit from the upper left."""
        for step in range(24):
            part = step / 24
            lit = _mix(colour, (255, 255, 255), 0.6 * part**2)
            inner = 1 - part
            left, top = x - 0.35 * part * across, y - 0.35 * part * up
            self.pen.ellipse(
                (left - inner * across, top - inner * up, left + inner * across, top + inner * up), fill=lit
            )

    def cover(self) -> None:
        """Draw leaves in front of everything, as a photo taken in a garden has them."""
        for _ in range(self.chance.randrange(4)):
            x, y = (self.chance.uniform(-1.4, 1.4) * self.radius + middle for middle in (self.x, self.y))
            size = self.chance.uniform(0.4, 0.9) * self.radius
            colour = _vary(self.chance, (70, 110, 50), 30)
            self.shade(x, y, size, 0.45 * size, colour)

    def finish(self) -> Image.Image:
        """Return the photo: turned a little, in its light and with the noise of a sensor."""
        chance = self.chance
        image = self.image.rotate(chance.uniform(-8, 8), Image.Resampling.BILINEAR, fillcolor=(120, 100, 80))
        margin_x, margin_y = 0.07 * self.width, 0.09 * self.height  # the corners that the turn leaves empty
        image = image.crop(
            (round(margin_x), round(margin_y), round(self.width - margin_x), round(self.height - margin_y))
        )
        image = image.resize(SIZE).filter(ImageFilter.GaussianBlur(chance.uniform(0.2, 4.5)))
        image = image.point(
            [
                min(255, round(value * chance_light))
                for chance_light in _lights(chance)
                for value in range(256)
            ]
        )
        noise = np.random.default_rng(chance.randrange(2**32)).normal(
            0, chance.uniform(0.5, 3), (*SIZE[::-1], 1)
        )
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _draw_apple(canvas: _Canvas) -> None:
    green = canvas.chance.random() < 0.25
    colour = _vary(canvas.chance, (130, 165, 50) if green else (190, 30, 35), 25)
    for side in (-0.22, 0.22):
        canvas.shade(canvas.x + side * canvas.radius, canvas.y, 0.9 * canvas.radius, canvas.radius, colour)
    top = canvas.y - 0.85 * canvas.radius
    canvas.pen.line((canvas.x, top, canvas.x + 12, top - 0.4 * canvas.radius), (84, 60, 32), 8)


def _draw_orange(canvas: _Canvas) -> None:
    colour = _vary(canvas.chance, (236, 130, 20), 18)
    canvas.shade(canvas.x, canvas.y, canvas.radius, canvas.radius, colour)
    for _ in range(160):
        angle, distance = canvas.chance.uniform(0, 2 * math.pi), 0.95 * math.sqrt(canvas.chance.random())
        x = canvas.x + distance * canvas.radius * math.cos(angle)
        y = canvas.y + distance * canvas.radius * math.sin(angle)
        canvas.pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_mix(colour, (120, 60, 0), 0.35))


def _draw_banana(canvas: _Canvas) -> None:
    ripe = canvas.chance.random() < 0.8
    colour = _vary(canvas.chance, (238, 204, 62) if ripe else (168, 190, 70), 15)
    begin, turn = canvas.chance.uniform(0.1, 0.5), canvas.chance.choice((-1, 1))
    for step in range(120):
        angle = begin + step / 120 * 2.2
        thickness = canvas.radius * 0.32 * math.sin(math.pi * (0.08 + 0.84 * step / 120)) ** 0.6
        x = canvas.x + turn * canvas.radius * 1.3 * math.cos(angle)
        y = canvas.y - 0.7 * canvas.radius + canvas.radius * 1.1 * math.sin(angle)
        for part in (0.0, 0.5):
            lit = _mix(colour, (255, 255, 255), part * 0.7)
            inner = thickness * (1 - part)
            canvas.pen.ellipse(
                (x - inner, y - inner - part * thickness, x + inner, y + inner - part * thickness), fill=lit
            )


def _draw_peach(canvas: _Canvas) -> None:
    colour = _vary(canvas.chance, (232, 140, 90), 28)
    canvas.shade(canvas.x, canvas.y, canvas.radius, 0.95 * canvas.radius, colour)
    blush, side = _mix(colour, (190, 30, 50), 0.7), canvas.chance.choice((-1, 1))
    canvas.shade(
        canvas.x + side * 0.35 * canvas.radius, canvas.y, 0.5 * canvas.radius, 0.7 * canvas.radius, blush
    )


def _draw_pear(canvas: _Canvas) -> None:
    colour = _vary(canvas.chance, (168, 178, 58), 24)
    canvas.shade(canvas.x, canvas.y - 0.75 * canvas.radius, 0.5 * canvas.radius, 0.6 * canvas.radius, colour)
    canvas.shade(canvas.x, canvas.y, 0.85 * canvas.radius, 0.85 * canvas.radius, colour)
    top = canvas.y - 1.3 * canvas.radius
    canvas.pen.line((canvas.x, top, canvas.x - 10, top - 0.35 * canvas.radius), (84, 60, 32), 8)


FRUIT: dict[str, Callable[[_Canvas], None]] = {
    "apple": _draw_apple,
    "banana": _draw_banana,
    "orange": _draw_orange,
    "peach": _draw_peach,
    "pear": _draw_pear,
}
"""Functions that draw a label, by the label."""


def draw_fruit(label: str, seed: int) -> Image.Image:
    """Return a drawn photo; the same one for the same label and seed."""
    canvas = _Canvas(random.Random(f"{label} {seed}"))
    FRUIT[label](canvas)
    canvas.cover()
    return canvas.finish()


def write_dataset(directory: Path, per_label: int, *, first: int = 0, by_label: bool = True) -> Path:
    """Draw photos into a directory, and return it.

    Args:
        directory: directory to write to.
        per_label: number of photos of each label.
        first: seed of the first photo of each label.
        by_label: write one directory per label, as for a training; otherwise one directory of uploads.
    """
    for index, label in enumerate(FRUIT):
        for number in range(first, first + per_label):
            path = directory / (f"{label}/{number:04d}.jpg" if by_label else f"{number:04d}{index}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_fruit(label, number).save(path, quality=88)
    return directory


def _vary(chance: random.Random, colour: Colour, by: float) -> Colour:
    red, green, blue = (max(0, min(255, round(part + chance.uniform(-by, by)))) for part in colour)
    return red, green, blue


def _mix(colour: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _lights(chance: random.Random) -> tuple[float, float, float]:
    """Return factors of red, green and blue: bright or dark, warm or cold light."""
    bright, warm = chance.uniform(0.3, 1.2), chance.uniform(0.85, 1.15)
    return bright * warm, bright, bright / warm
