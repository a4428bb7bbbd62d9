"""Images of the corpus, and encoding by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32
"""Size of the images, small so that a thousand of them are fast on every path."""


def scene(width: int = 300, height: int = 200) -> Image.Image:
    """Return an image of smooth colours with edges and texture and four different corners."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    texture = np.sin(40 * x * y + 25 * x) * 20
    disc = ((x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.03) * 90.0
    channels = [200 * x + texture + disc, 180 * y + 40 - texture, 220 * (1 - x) * (1 - y) + disc]
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))


def small() -> Image.Image:
    """Return the scene in the size of the corpus."""
    return scene(WIDTH, HEIGHT)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image encoded by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def translucent(width: int = 300, height: int = 200) -> Image.Image:
    """Return the scene with alpha that fades out to the right."""
    image = scene(width, height)
    fade = np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(fade))
    return image
