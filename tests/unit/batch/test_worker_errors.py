"""Errors and log lines of workers, which Beam passes on to the engine and the driver with all causes."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest

from batch.beam import runner
from batch.shards.shard import PlannedShard
from serving.errors import StorageError

SECRET = "hunter2"
ADDRESS = f"s3://key:{SECRET}@bucket/a.jpg"


class FailingWorker:
    """A worker whose storage fails, with the address in the error and in its cause."""

    def load_models(self, _meter: object) -> list[Any]:
        logging.getLogger("worker").warning("Retrying %s", ADDRESS)
        return []

    def process(self, _planned: object, _models: object) -> None:
        try:
            raise OSError(f"no answer from {ADDRESS}")
        except OSError as error:
            raise StorageError(f"Cannot read {ADDRESS}.", remedy=f"Check {ADDRESS}.") from error


class Handle:
    """Beam's Shared, without sharing."""

    def acquire(self, create: Any) -> Any:
        return create()


def test_workers_pass_no_secrets_of_addresses_on(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    planned: Any = PlannedShard.__new__(PlannedShard)
    try:
        with pytest.raises(StorageError) as caught:
            runner._process_shard(planned, FailingWorker(), Handle())  # type: ignore[arg-type]
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == ["Retrying s3://***@bucket/a.jpg"]
    text = "".join(traceback.format_exception(caught.value))
    assert "Cannot read s3://***@bucket/a.jpg. Check s3://***@bucket/a.jpg." in text
    assert SECRET not in text
