"""Engines for the backbone on one thread: does it convert, speed, differences, memory.

Run `python -m tests.bench.engines`. OpenVINO and LiteRT are no dependencies: they are skipped unless
`pip install openvino ai-edge-litert` was run. All compute in float32. Each engine has a process of its own,
and they take turns, so that other load slows all of them. Times are processor times.
"""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.process import cores, get_cpu_model
from tests.bench import results
from tests.bench.engine_backbones import BACKBONES, PHOTOS, build
from tests.bench.worker import Worker

BATCHES = (1, 8, 16)

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

PACKAGES = {
    "tensorflow": "tensorflow",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
}
"""Engine -> package."""

DIFFERENCE, MEMORY = "difference", "memory"
"""Measurements beside the times by batch size."""


def load_tensorflow(directory: Path) -> Embed:
    """Load the SavedModel."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(str(directory / "saved_model"))
    signature = loaded.signatures["embed"]

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert loaded is not None  # the signature does not keep it
        found: NDArray[np.float32] = signature(pixels=tf.constant(pixels))["embedding"].numpy()
        return found

    return embed


def load_onnx(directory: Path) -> Embed:
    """Load the ONNX file as bundles do."""
    from serving.runtime.onnx_model import OnnxBackbone

    return OnnxBackbone(str(directory / "model.onnx")).embed


def load_openvino(directory: Path) -> Embed:
    """Load the SavedModel with OpenVINO, which needs no TensorFlow."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on processors that have it
    }
    model = openvino.Core().read_model(directory / "saved_model")
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda pixels: next(iter(request.infer([pixels]).values())).copy()


def load_litert(directory: Path) -> Embed:
    """Load the TensorFlow Lite file with LiteRT and its XNNPACK kernels."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(directory / "model.tflite"), num_threads=1)
    [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    shape: list[int] = []

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal shape
        if shape != list(pixels.shape):
            shape = list(pixels.shape)
            interpreter.resize_tensor_input(taken["index"], shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], pixels)
        interpreter.invoke()
        found: NDArray[np.float32] = interpreter.get_tensor(given["index"])
        return found

    return embed


LOADERS = {
    "tensorflow": load_tensorflow,
    "onnx": load_onnx,
    "openvino": load_openvino,
    "litert": load_litert,
}


@functools.cache
def load(engine: str, directory: Path) -> Embed:
    """Load a backbone in an engine.

    Raises:
        RuntimeError: it was not converted.
    """
    failed = directory / f"model.{'onnx' if engine == 'onnx' else 'tflite'}.failed"
    if engine in ("onnx", "litert") and failed.exists():
        raise RuntimeError(failed.read_text())
    return LOADERS[engine](directory)


def prepare(name: str, setting: str) -> Callable[[], float]:
    """Return a function that measures: a batch size gives milliseconds per photo.

    Args:
        name: batch size, DIFFERENCE or MEMORY.
        setting: engine and directory.
    """
    engine, _, directory = setting.partition(":")
    if name == MEMORY:
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    embed, pixels = load(engine, Path(directory)), np.load(Path(directory) / "pixels.npy")
    if name == DIFFERENCE:
        expected = np.load(Path(directory) / "expected.npy")
        return lambda: float(np.abs(embed(pixels) - expected).max() / np.abs(expected).max())
    batch = int(name)
    count = max(batch, PHOTOS // 2)

    def run() -> float:
        embed(pixels[:batch])
        start = time.process_time()
        for first in range(0, count, batch):
            embed(pixels[first : first + batch])
        return 1000 * (time.process_time() - start) / count

    return run


def measure(backbone: str, engines: Sequence[str], top: Path, rounds: int) -> list[str]:
    """Return the rows of a backbone in a Markdown table."""
    workers = {engine: Worker(f"{engine}:{top / backbone}", prepare) for engine in engines}
    failures: dict[str, str] = {}
    differences: dict[str, float] = {}
    times: dict[tuple[str, int], list[float]] = {}
    for engine, worker in workers.items():
        try:
            differences[engine] = worker.run(DIFFERENCE)
        except RuntimeError as error:
            failures[engine] = str(error).rpartition("failed: ")[2]
    for _ in range(rounds):
        for batch in BATCHES:
            for engine in differences:
                times.setdefault((engine, batch), []).append(workers[engine].run(str(batch)))
    memory = {engine: workers[engine].run(MEMORY) for engine in differences}
    rows = [
        f"| {backbone} | {engine} | "
        + " | ".join(f"{statistics.median(times[engine, batch]):.1f}" for batch in BATCHES)
        + f" | {difference:.1e} | {memory[engine]:.0f} |"
        for engine, difference in differences.items()
    ]
    for engine, difference in differences.items():
        batches = {f"ms at batch {batch}": statistics.median(times[engine, batch]) for batch in BATCHES}
        figures = batches | {"largest relative difference": difference, "peak MiB": memory[engine]}
        results.add_row("One thread, float32", {"backbone": backbone, "engine": engine} | figures)
    for engine, reason in failures.items():
        rows.append(f"| {backbone} | {engine} | not converted: {reason} ||||")
        row = {"backbone": backbone, "engine": engine, "not converted": reason}
        results.add_row("One thread, float32", row)
    for worker in workers.values():
        worker.stop()
    return rows


def describe_packages() -> list[str]:
    """Return the rows of a table of the engines: version, installed size, licence; or why it is skipped."""
    rows = []
    for engine, package in PACKAGES.items():
        with suppress(metadata.PackageNotFoundError):
            found = metadata.distribution(package)
            size = sum(file.size or 0 for file in found.files or ()) / 1e6
            given: Any = found.metadata  # a Message, whose type in typeshed lacks `get`
            licence = given.get("License-Expression") or given.get("License") or "see its files"
            rows.append(
                f"| {engine} | {package} {found.version} | {size:.0f} MB | {licence.splitlines()[0]} |"
            )
            continue
        rows.append(f"| {engine} | skipped: pip install {package} |||")
    return rows


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.engines", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default 5)")
    parser.add_argument("--only", default="", help="measure only backbones whose name contains this text")
    results.add_output_option(parser)
    options = parser.parse_args()
    modules = {"tensorflow": "tensorflow", "onnx": "onnxruntime", "litert": "ai_edge_litert"}
    engines = [engine for engine in PACKAGES if find_spec(modules.get(engine, engine))]
    print(f"{get_cpu_model()}, {cores()} cores, {datetime.now(UTC).date()}; one thread, float32\n")
    print("| engine | package | installed | licence |\n|---|---|---|---|")
    print("\n".join(describe_packages()))
    print(f"\n| backbone | engine | {' | '.join(f'ms at batch {batch}' for batch in BATCHES)} |", end="")
    print(" largest relative difference | peak MiB |\n|---|---|" + "---|" * (len(BATCHES) + 2), flush=True)
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-engines-") as directory:
        for backbone in (name for name in BACKBONES if options.only in name):
            builder = Worker(directory, build)
            builder.run(backbone)
            builder.stop()
            print("\n".join(measure(backbone, engines, Path(directory), options.rounds)), flush=True)
    results.write(options.output, "engines")


if __name__ == "__main__":
    main()
