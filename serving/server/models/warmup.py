"""Warm-up of a new version: run typical requests before it is served, so that no caller waits for it.

The requests are in the bundle's assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLog
protos, as for TensorFlow Serving.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from serving import contract, protos
from serving.errors import BundleError
from serving.server.models.servable import Servable
from serving.server.status_error import StatusError

MAX_RECORDS = 1000
"""Maximum number of requests in a warm-up file, as in TensorFlow Serving."""

_CHECKSUM_BYTES = 4
_HEADER_BYTES = 8 + _CHECKSUM_BYTES
_MASK_DELTA = 0xA282EAD8
"""Constant by which TensorFlow masks checksums (tsl/lib/hash/crc32c.h of TensorFlow)."""

_log = logging.getLogger(__name__)


def warm_up(servable: Servable, directory: Path, times: int = 1) -> None:
    """Run the warm-up requests in a version's directory, if there are any.

    The first PredictRequest becomes the version's health probe. Records of streamed predictions and of
    SessionRun are skipped: this server does not have those RPCs.

    Args:
        servable: version to warm up.
        directory: directory of the version.
        times: number of times that each request runs.

    Raises:
        BundleError: the file is corrupt or too long, or a request in it fails.
    """
    path = directory / contract.WARMUP_FILE
    if not path.is_file():
        return
    answers: dict[str | None, Callable[[protos.Message], protos.Message]] = {
        "predict_log": servable.predict,
        "classify_log": servable.classify,
        "regress_log": servable.regress,
        "multi_inference_log": servable.multi_inference,
    }
    for number, record in enumerate(read_records(path), 1):
        if number > MAX_RECORDS:
            raise BundleError(f"{path} has more than {MAX_RECORDS} warm-up requests.")
        try:
            entry = protos.PredictionLog.FromString(record)
            kind = entry.WhichOneof("log_type")
            if kind not in answers:
                _log.info("%s: skipping record %d, a %s", path, number, kind)
                continue
            request = getattr(
                entry, kind
            ).request  # the model name in it is ignored, as in TensorFlow Serving
            for _ in range(times):
                answers[kind](request)
            if kind == "predict_log":
                servable.health_probe.request = servable.health_probe.request or request
        except (DecodeError, StatusError) as error:
            raise BundleError(
                f"Warm-up request {number} of {path} failed: {error}.", remedy="Export the bundle again."
            ) from error


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the serialized PredictionLogs of a warm-up file.

    A record is the length of its data, 8 bytes, and the data, each followed by a checksum of 4 bytes
    (tensorflow/core/lib/io/record_writer.h of TensorFlow).

    Raises:
        BundleError: the file is not a TFRecord file, or is corrupt.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER_BYTES):
            [length] = struct.unpack("<Q", _verify(path, header, _HEADER_BYTES))
            # The length is verified, so this does not ask for more than was written.
            yield _verify(path, file.read(length + _CHECKSUM_BYTES), length + _CHECKSUM_BYTES)


def _verify(path: Path, content: bytes, size: int) -> bytes:
    """Return content without the checksum at its end, which must be right."""
    import google_crc32c

    data, stored = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    checksum = google_crc32c.value(data)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    expected = struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)
    if len(content) != size or stored != expected:
        raise BundleError(f"{path} is not a TFRecord file, or is corrupt.", remedy="Export the bundle again.")
    return data
