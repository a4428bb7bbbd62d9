"""A model that follows hubhead's contract without TensorFlow: it classifies photos by their main colour."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from serving import contract, protos

LABELS = ("red fruit", "green leaf", "blue sky <b>")


class ColourModel:
    """Model whose scores are the proportions of red, green and blue.

    It abstains if they are nearly equal, and rejects bytes that are not an image.
    """

    threads = 2
    engine = "tensorflow"

    def prepare(self, signature: str) -> None:
        """Do nothing, as all is loaded."""

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
        scores = pixels.reshape(-1, 3).sum(axis=0) / pixels.sum()
        order = np.argsort(-scores, kind="stable")
        names = [LABELS[index].encode() for index in order]
        best = names[0] if scores.max() > 0.36 else b""
        return best, names, scores[order].tolist(), b"ok"


def write_colour_model(directory: Path) -> Path:
    """Write a SavedModel directory that declares the signature of ColourModel."""
    saved = protos.SavedModel(saved_model_schema_version=1)
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def[contract.SERVING_DEFAULT]
    aliases = {"label": "DT_STRING", "classes": "DT_STRING", "scores": "DT_FLOAT", "status": "DT_STRING"}
    for infos, dtypes in (
        (signature.inputs, {contract.IMAGE_BYTES: "DT_STRING"}),
        (signature.outputs, aliases),
    ):
        for alias, dtype in dtypes.items():
            infos[alias].name, infos[alias].dtype = f"{alias}:0", protos.DataType.Value(dtype)
            infos[alias].tensor_shape.dim.add(size=-1)
    directory.mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).write_bytes(saved.SerializeToString())
    return directory


def draw_photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (1600, 1200)) -> Path:
    """Draw a picture of a round object on a table, and return its path."""
    width, height = size
    image = Image.new("RGB", size, (226, 214, 196))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * 0.62, width, height), fill=(150, 112, 80))
    middle, radius = (width / 2, height * 0.55), height * 0.36
    for step in range(60):
        fraction = step / 60
        light = tuple(round(part + (255 - part) * 0.75 * fraction**2) for part in colour)
        inner = radius * (1 - fraction)
        x, y = middle[0] - radius * 0.35 * fraction, middle[1] - radius * 0.35 * fraction
        pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=light)
    pen.line(
        (middle[0], middle[1] - radius * 0.9, middle[0] + 40, middle[1] - radius * 1.25), (80, 60, 30), 18
    )
    image.save(path, quality=90)
    return path
