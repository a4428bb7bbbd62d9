"""A model of hubhead's contract without TensorFlow: which of three colours a photo has most of."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from serving import contract, protos

LABELS = ("red fruit", "green leaf", "blue sky <b>")


class Colours:
    """Scores are the colours' shares; abstains where they are even; refuses what is no image."""

    threads = 2

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        rows = [self._row(photo) for photo in inputs[contract.IMAGE_BYTES]]
        label, classes, scores, status = zip(*rows, strict=True)
        return {
            contract.LABEL: np.array(label, object),
            contract.CLASSES: np.array(classes, object),
            contract.SCORES: np.array(scores, np.float32),
            contract.STATUS: np.array(status, object),
        }

    def _row(self, photo: bytes) -> tuple[bytes, list[bytes], list[float], bytes]:
        try:
            pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"), np.float64)
        except UnidentifiedImageError:
            return b"", [b""] * 3, [0.0] * 3, b"not_an_image"
        shares = pixels.reshape(-1, 3).sum(axis=0) / pixels.sum()
        order = np.argsort(-shares, kind="stable")
        names = [LABELS[place].encode() for place in order]
        best = names[0] if shares.max() > 0.36 else b""
        return best, names, shares[order].tolist(), b"ok"


def write_colours(directory: Path) -> Path:
    """A SavedModel directory that says what Colours takes."""
    saved = protos.SavedModel(saved_model_schema_version=1)
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def[contract.SERVING_DEFAULT]
    aliases = {"label": "DT_STRING", "classes": "DT_STRING", "scores": "DT_FLOAT", "status": "DT_STRING"}
    for infos, named in (
        (signature.inputs, {contract.IMAGE_BYTES: "DT_STRING"}),
        (signature.outputs, aliases),
    ):
        for alias, dtype in named.items():
            infos[alias].name, infos[alias].dtype = f"{alias}:0", protos.DataType.Value(dtype)
            infos[alias].tensor_shape.dim.add(size=-1)
    directory.mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).write_bytes(saved.SerializeToString())
    return directory


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (1600, 1200)) -> Path:
    """A photo of a round thing on a table, made here."""
    width, height = size
    image = Image.new("RGB", size, (226, 214, 196))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * 0.62, width, height), fill=(150, 112, 80))
    middle, radius = (width / 2, height * 0.55), height * 0.36
    for step in range(60):
        share = step / 60
        light = tuple(round(part + (255 - part) * 0.75 * share**2) for part in colour)
        shrunk = radius * (1 - share)
        x, y = middle[0] - radius * 0.35 * share, middle[1] - radius * 0.35 * share
        pen.ellipse((x - shrunk, y - shrunk, x + shrunk, y + shrunk), fill=light)
    pen.line(
        (middle[0], middle[1] - radius * 0.9, middle[0] + 40, middle[1] - radius * 1.25), (80, 60, 30), 18
    )
    image.save(path, quality=90)
    return path
