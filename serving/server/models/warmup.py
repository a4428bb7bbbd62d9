"""Warm-up of a new version: run typical requests before it is served, so that no caller waits for it.

The requests are in the bundle's assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLog
protos, as for TensorFlow Serving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from serving import contract, protos
from serving.errors import BundleError
from serving.server.models.servable import Servable
from serving.server.status_error import StatusError
from serving.storage.tfrecord import read_records

MAX_RECORDS = 1000
"""Maximum number of requests in a warm-up file, as in TensorFlow Serving."""

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
