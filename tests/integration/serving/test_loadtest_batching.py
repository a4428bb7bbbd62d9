"""hubhead loadtest --batching_file: measurements, derived parameters, and a file that servers accept."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf import text_format

from serving import contract, protos
from serving.client import AsyncClient, ClientConfig, Retry
from serving.commands.common.command import COMMON
from serving.commands.loadtest import loadtest
from serving.commands.serve import serve
from serving.errors import ServerError
from serving.loadtest.batching import (
    Capacity,
    choose,
    derive_parameters,
    format_file,
    measure_capacity,
    required_threads,
)
from serving.server.config.files import read_batching
from serving.server.config.flags import build_settings
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server

pytestmark = pytest.mark.server


class Device:
    """A device that runs `at_once` batches of up to `largest` photos, each in the same time."""

    def __init__(self, seconds: float, at_once: int, largest: int = 32) -> None:
        self._seconds, self._largest = seconds, largest
        self._slots = threading.Semaphore(at_once)

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        if len(images) > self._largest:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory")
        with self._slots:
            time.sleep(self._seconds)
        return answer_for(images)


def measure(device: Answer) -> list[Capacity]:
    async def run(address: str) -> list[Capacity]:
        config = ClientConfig(address, model="food", retry=Retry(attempts=1))
        async with AsyncClient(config) as client:
            return await measure_capacity(client, [b"photo"], 0.3)

    with fake_grpc_server({protos.PREDICT: device}, threads=32) as address:
        return asyncio.run(run(address))


def test_a_device_that_takes_as_long_for_a_full_batch_gets_full_batches() -> None:
    best = choose(measure(Device(0.02, at_once=2)))
    assert best.size == contract.WARMUP_BATCH_SIZES[-1]
    assert best.batches >= 2


def test_sizes_that_the_server_cannot_run_are_left_out() -> None:
    measured = measure(Device(0.02, at_once=1, largest=4))
    assert {one.size for one in measured} == {1, 2, 4}
    assert choose(measured).size == 4


def test_a_server_that_rejects_a_single_photo_is_an_error() -> None:
    with pytest.raises(ServerError, match="out of memory"):
        measure(Device(0.0, at_once=1, largest=0))


# --- Derivation ------------------------------------------------------------------------------------------

CPU = [
    Capacity(1, 1, 0.040, 25.0),
    Capacity(1, 2, 0.041, 49.0),
    Capacity(1, 4, 0.080, 50.0),
    Capacity(2, 2, 0.080, 50.0),
    Capacity(32, 2, 1.250, 51.0),
]
"""Two cores: two batches at once, and size is of no use."""

GPU = [
    Capacity(1, 1, 0.010, 100.0),
    Capacity(1, 4, 0.012, 330.0),
    Capacity(8, 4, 0.032, 1000.0),
    Capacity(16, 4, 0.050, 1300.0),
    Capacity(32, 2, 0.055, 1150.0),
    Capacity(32, 4, 0.097, 1320.0),
]
"""A GPU: larger batches are faster up to 16 photos."""


def test_the_fastest_response_near_the_best_throughput_is_chosen() -> None:
    assert choose(CPU) == CPU[1]
    assert choose(GPU) == GPU[3]


def test_parameters_of_a_cpu_are_batches_of_one_photo_on_each_core(tmp_path: Path) -> None:
    parameters = derive_parameters(CPU)
    (tmp_path / "file").write_text(format_file(parameters, ["measured", "two cores"]))
    read = read_batching(tmp_path / "file")
    assert (read.num_batch_threads, read.batch_rows, read.batch_timeout_micros) == (2, 1, 0)
    assert (read.max_batch_size, read.allowed_batch_sizes) == (32, contract.WARMUP_BATCH_SIZES)
    assert read.enable_large_batch_splitting
    assert read.max_enqueued_batches == 49  # one second of batches
    assert required_threads(parameters) == 2 + 49


def test_parameters_of_a_gpu_wait_a_tenth_of_a_photo_for_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(format_file(derive_parameters(GPU), []))
    read = read_batching(tmp_path / "file")
    assert (read.num_batch_threads, read.batch_rows, read.batch_timeout_micros) == (4, 16, 1000)
    assert read.max_enqueued_batches == 81
    full = derive_parameters([Capacity(1, 1, 0.010, 100.0), Capacity(32, 1, 0.020, 1600.0)])
    assert not full.HasField("max_execution_batch_size")  # requests are not split
    assert full.max_enqueued_batches.value == 50


def test_a_queue_holds_a_batch_per_thread_however_slow_the_server_is() -> None:
    slow = derive_parameters([Capacity(1, 4, 8.0, 0.5)])
    assert slow.max_enqueued_batches.value == 4


# --- The command -----------------------------------------------------------------------------------------


def run(*arguments: str, address: str) -> Any:
    server = ["--server", address, "--model_name", "food"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(loadtest, [*arguments, *server])


def test_loadtest_writes_a_batching_file_and_prints_the_flags(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    file = tmp_path / "batching.txt"
    flags = [str(tmp_path / "a.jpg"), "--seconds", "0.1", "--batching_file", str(file)]
    with fake_grpc_server({protos.PREDICT: Device(0.01, at_once=2)}, threads=32) as address:
        as_json = run(*flags, "--json", address=address)
        done = run(*flags, address=address)
        missing = run(*flags[:-1], str(tmp_path / "no" / "file"), address=address)
    assert done.exit_code == 0, done.output
    parameters = protos.BatchingParameters()
    record = json.loads(as_json.stdout)
    assert record["grpc_max_threads"] > 0
    assert {one["size"] for one in record["measured"]} == set(contract.WARMUP_BATCH_SIZES)
    printed = next(line for line in done.stdout.splitlines() if line.startswith("Set "))
    with serve.make_context("serve", ["--model_base_path", str(tmp_path), *printed.split()[1:]]) as context:
        others = {"version", "engine", *COMMON}
        values = {name: value for name, value in context.params.items() if name not in others}
        accepted = build_settings(values)
    assert accepted.batching == read_batching(file)
    assert accepted.grpc_max_threads == required_threads(text_format.Parse(file.read_text(), parameters))
    assert file.read_text().count("\n# ") > len(contract.WARMUP_BATCH_SIZES)  # the measurements
    assert "cannot be written" in str(missing.exception)


def test_loadtest_without_a_rate_or_a_batching_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    done = run(str(tmp_path / "a.jpg"), address="localhost:1")
    assert done.exit_code == 2
    assert "Give --rate, --batching_file, or both" in done.output
    flags = ["--output", str(tmp_path / "load.html"), "--batching_file", str(tmp_path / "file")]
    done = run(str(tmp_path / "a.jpg"), *flags, address="localhost:1")
    assert done.exit_code == 2
    assert "--output needs --rate" in done.output
