"""Ask a fresh version what it will be asked, before anybody waits for the answer.

A bundle brings its requests along in assets.extra/tf_serving_warmup_requests, a TFRecord file
of PredictionLog, as for TensorFlow Serving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from serving import contract, protos
from serving.errors import BundleError
from serving.server.models.servable import Servable
from serving.server.status_error import Refusal

MAX_RECORDS = 1000
"""TensorFlow Serving refuses a file with more."""

_log = logging.getLogger(__name__)


def warm_up(servable: Servable, directory: Path, times: int = 1) -> None:
    """Run the warm-up requests of a version's directory, if it has any, each so many times.

    The first that is a PredictRequest becomes the probe of the version's health.

    Records of streamed predictions and of SessionRun are left out: this server does not have those RPCs.

    Raises:
        BundleError: the file is broken or too long, or a request in it fails.
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
    for number, record in enumerate(records(path), 1):
        if number > MAX_RECORDS:
            raise BundleError(f"{path} holds more than {MAX_RECORDS} warm-up requests.")
        try:
            entry = protos.PredictionLog.FromString(record)
            kind = entry.WhichOneof("log_type")
            if kind not in answers:
                _log.info("%s: record %d is a %s, not run here", path, number, kind)
                continue
            request = getattr(entry, kind).request  # whatever model's name it was written for
            for _ in range(times):
                answers[kind](request)
            if kind == "predict_log":
                servable.probe = servable.probe or request
        except (DecodeError, Refusal) as error:
            raise BundleError(
                f"Warm-up request {number} of {path} failed: {error}.", remedy="Export the bundle again."
            ) from error


def records(path: Path) -> Iterator[bytes]:
    """The serialized PredictionLogs of a warm-up file.

    Raises:
        BundleError: it is no TFRecord file, or a broken one.
    """
    import tensorflow as tf

    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.OpError as error:
        raise BundleError(
            f"{path} is no TFRecord file, or a broken one: {error.message}.",
            remedy="Export the bundle again.",
        ) from error
