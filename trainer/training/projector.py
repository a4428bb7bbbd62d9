"""Files of TensorBoard's embedding projector: embeddings, labels and paths, and thumbnails."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.photos.thumbnails import make_thumbnails
from trainer.evaluation.training_record import TrainingData
from trainer.heads import Ints

POINTS = 5000
"""Photos in the projector; more are sampled. Each takes some 9 KB with 1,280 dimensions."""

MAX_SPRITES = 1500
"""Photos up to which the projector shows thumbnails, for which each photo is decoded once more."""

SPRITE_SIDE = 48
"""Width and height of a thumbnail, in pixels."""


def write_projector(directory: Path, data: TrainingData) -> None:
    """Write the projector's files: embeddings, metadata and, up to MAX_SPRITES photos, thumbnails.

    Raises:
        OSError: the directory cannot be written.
    """
    examples = data.examples
    rows = sample_rows(np.arange(len(examples)))
    with (directory / "embeddings.tsv").open("w", encoding="utf-8") as file:
        for row in rows.tolist():
            file.write("\t".join(f"{number:.5g}" for number in data.embeddings[row].tolist()) + "\n")
    with (directory / "metadata.tsv").open("w", encoding="utf-8", errors="replace") as file:
        file.write("label\tset\tpath\n")
        for row in rows.tolist():
            example = examples[row]
            cells = data.labels[example.label], str(data.subsets[row]), example.uri
            # Tabs and line breaks in a label or path would break the table.
            file.write("\t".join(" ".join(cell.split()) for cell in cells) + "\n")
    config = [
        "embeddings {",
        '  tensor_name: "embeddings"',
        '  tensor_path: "embeddings.tsv"',
        '  metadata_path: "metadata.tsv"',
    ]
    if len(rows) <= MAX_SPRITES:
        (directory / "sprite.png").write_bytes(_draw_sprites([examples[row].uri for row in rows.tolist()]))
        side = f"single_image_dim: {SPRITE_SIDE}"
        config += ["  sprite {", '    image_path: "sprite.png"', f"    {side}", f"    {side}", "  }"]
    (directory / "projector_config.pbtxt").write_text("\n".join([*config, "}", ""]), encoding="utf-8")


def _draw_sprites(uris: Sequence[str]) -> bytes:
    """Return one PNG with the thumbnails of all photos, row by row in a square; grey for those without."""
    from PIL import Image, ImageOps  # noqa: TID251  # decodes hubhead's own thumbnails, no photo

    columns, side = math.ceil(math.sqrt(len(uris))), SPRITE_SIDE
    sheet = Image.new("RGB", (columns * side, columns * side), (128, 128, 128))
    small = make_thumbnails(uris, side)
    for number, uri in enumerate(uris):
        if uri in small:
            down, right = divmod(number, columns)
            with Image.open(io.BytesIO(small[uri])) as picture:
                sheet.paste(ImageOps.fit(picture, (side, side)), (right * side, down * side))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def sample_rows(rows: Ints) -> Ints:
    """Return at most POINTS of the rows, sampled from a fixed seed."""
    if len(rows) <= POINTS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, POINTS, replace=False))
