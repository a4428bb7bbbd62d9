"""Metadata of a TensorFlow Lite file: labels and tensor descriptions for MediaPipe and the Task Library.

A flatbuffer (schema: mediapipe/tasks/metadata/metadata_schema.fbs, version 1.5.0) describes the tensors.
It is stored in the model's metadata under the name TFLITE_METADATA. The files that it refers to are in a
zip archive appended to the model.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serving import contract
from serving.bundle import BundleMetadata

LABELS_FILE = "labels.txt"
METADATA_FILE = "hubhead.json"

_NAME = "TFLITE_METADATA"
_SCHEMA = b"M001"
_PARSER = "1.0.0"  # oldest parser version that knows all fields used here

# Values of the schema's enums and unions.
_TENSOR_AXIS_LABELS = 2
_IMAGE_PROPERTIES = 2
_RGB = 1
_SCORE_THRESHOLDING = 3

_Table = Mapping[int, Any]
"""A table of the schema, by field number. An int is stored as int8, a float as float32."""


def add_metadata(model: bytes, metadata: BundleMetadata) -> bytes:
    """Return the TensorFlow Lite model with labels, threshold and hubhead.json added."""
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    schema = flatbuffer_utils.schema_fb
    described = schema.BufferT()
    described.data = list(describe_model(metadata))
    entry = schema.MetadataT()
    entry.name, entry.buffer = _NAME.encode(), len(content.buffers)
    content.buffers.append(described)
    content.metadata = [*(content.metadata or []), entry]
    file = io.BytesIO()
    file.write(bytes(flatbuffer_utils.convert_object_to_bytearray(content)))
    # Not compressed, since readers map the archive's files into memory.
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(LABELS_FILE, "".join(f"{label}\n" for label in metadata.labels))
        archive.writestr(METADATA_FILE, json.dumps(asdict(metadata), ensure_ascii=False))
    return file.getvalue()


def describe_model(metadata: BundleMetadata) -> bytes:
    """Return the flatbuffer that describes the model's tensors: table ModelMetadata of the schema."""
    import flatbuffers

    photo = {
        0: contract.PIXELS,
        1: "One photo, upright and resized; red, green and blue from 0 to 255.",
        3: {0: _IMAGE_PROPERTIES, 1: {0: _RGB}},
    }
    output: dict[int, Any] = {
        0: contract.PROBABILITIES,
        1: "Calibrated probabilities of the labels.",
        6: [{0: LABELS_FILE, 1: "One label per line.", 2: _TENSOR_AXIS_LABELS}],
    }
    if threshold := metadata.threshold:
        output[4] = [{0: _SCORE_THRESHOLDING, 1: {0: threshold}}]
    root: _Table = {
        0: "hubhead",
        1: "Classifies a photo. hubhead.json, packed with the model, records how it was trained.",
        3: [{2: [photo], 3: [output]}],
        7: _PARSER,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write_value(builder, root), file_identifier=_SCHEMA)
    return bytes(builder.Output())


def _write_value(builder: Any, value: Any) -> int:
    """Write a string, a vector of tables or a table, and return its offset.

    Flatbuffers are written from the leaves up: the parts of a value come before the value itself.
    """
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, list):
        offsets = [_write_value(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())
    scalars = {slot: item for slot, item in value.items() if isinstance(item, int | float)}
    parts = {slot: _write_value(builder, item) for slot, item in value.items() if slot not in scalars}
    builder.StartObject(max(value) + 1)
    for slot, offset in parts.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in scalars.items():
        if isinstance(number, float):
            builder.PrependFloat32Slot(slot, number, 0.0)
        else:
            builder.PrependInt8Slot(slot, number, 0)
    return int(builder.EndObject())
