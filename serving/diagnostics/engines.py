"""TensorFlow, ONNX Runtime and GPUs, and the engine that `--engine auto` chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from serving.diagnostics.finding import Finding, Level
from serving.diagnostics.installation import find_version
from serving.diagnostics.processes import run_python
from serving.process import get_cpu_model

_TENSORFLOW = """
import json, os, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
start = time.perf_counter()
from serving.runtime.tensorflow_import import import_tensorflow
tf = import_tensorflow()
seconds = time.perf_counter() - start
total = float(tf.reduce_sum(tf.linalg.matmul(tf.ones((64, 64)), tf.ones((64, 64)))))
assert total == 64.0 ** 3, f"a product of matrices is wrong: {total}"
gpus = [device.name for device in tf.config.list_physical_devices("GPU")]
print(json.dumps({"version": tf.__version__, "seconds": seconds, "gpus": gpus}))
"""

_ONNX_RUNTIME = """
import json, time
start = time.perf_counter()
from serving.runtime.onnxruntime_import import import_onnxruntime
onnxruntime = import_onnxruntime()
seconds = time.perf_counter() - start
providers = onnxruntime.get_available_providers()
assert "CPUExecutionProvider" in providers, f"it cannot run on CPUs, only by {providers}"
print(json.dumps({"version": onnxruntime.__version__, "seconds": seconds}))
"""


@dataclass(frozen=True)
class Library:
    """State of a library that runs models.

    Attributes:
        version: installed version; None if it is not installed.
        result: what its process printed.
        problem: why it cannot be used, or "".
    """

    version: str | None
    result: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def usable(self) -> bool:
        """True if it is installed and works."""
        return self.version is not None and not self.problem


def check_engines() -> Iterator[Finding]:
    """Import both libraries in processes of their own, and say which engine `auto` chooses."""
    tensorflow = _probe("tensorflow", _TENSORFLOW)
    onnx = _probe("onnxruntime", _ONNX_RUNTIME)
    yield describe_tensorflow(tensorflow)
    yield describe_onnx(onnx, needed=tensorflow.version is not None)
    yield describe_gpus(tensorflow)
    yield describe_choice(tensorflow, onnx)


def _probe(package: str, code: str) -> Library:
    version = find_version(package)
    return Library(None) if version is None else Library(version, *run_python(code))


def describe_tensorflow(library: Library) -> Finding:
    """Return the finding about TensorFlow."""
    if library.version is None:
        found = "not installed; the client, promote, rollback and models do not need it"
        return Finding("TensorFlow", Level.OK, found, "pip install 'hubhead[serve]'")
    if library.problem:
        remedy = "Install it again: pip install --force-reinstall tensorflow"
        if "SIGILL" in library.problem:
            remedy = (
                "This CPU lacks instructions that the wheel of TensorFlow needs (AVX): use another machine."
            )
        return Finding("TensorFlow", Level.ERROR, f"{library.version} fails: {library.problem}", remedy)
    return Finding(
        "TensorFlow", Level.OK, f"{library.version}, imported in {library.result['seconds']:.1f} s"
    )


def describe_onnx(library: Library, *, needed: bool) -> Finding:
    """Return the finding about ONNX Runtime.

    Args:
        library: its state.
        needed: True if models run here, which it makes faster.
    """
    if library.version is None:
        level = Level.WARNING if needed else Level.OK
        found = "not installed" + ("; TensorFlow runs the backbone, which takes longer" if needed else "")
        return Finding("ONNX Runtime", level, found, "pip install 'hubhead[serve]'")
    if library.problem:
        return Finding(
            "ONNX Runtime",
            Level.ERROR,
            f"{library.version} fails: {library.problem}",
            "Install it again (pip install --force-reinstall onnxruntime), or give --engine tensorflow.",
        )
    return Finding(
        "ONNX Runtime", Level.OK, f"{library.version}, imported in {library.result['seconds']:.1f} s"
    )


def describe_gpus(tensorflow: Library) -> Finding:
    """Return the finding about GPUs."""
    if not tensorflow.usable:
        return Finding("GPU", Level.OK, "not checked, since TensorFlow does not run here")
    gpus = tensorflow.result["gpus"]
    return Finding(
        "GPU", Level.OK, f"TensorFlow uses {', '.join(gpus)}" if gpus else "none that TensorFlow can use"
    )


def describe_choice(tensorflow: Library, onnx: Library) -> Finding:
    """Return the finding about the engine that `--engine auto` chooses, with the CPU."""
    cpu = get_cpu_model()
    if tensorflow.version is None:
        return Finding("engine auto", Level.OK, f"none: no models run in this installation; CPU {cpu}")
    if not tensorflow.usable:
        return Finding(
            "engine auto",
            Level.ERROR,
            f"none on {cpu}: photos are decoded by TensorFlow, which fails",
            "See TensorFlow above.",
        )
    if gpus := tensorflow.result["gpus"]:
        return Finding("engine auto", Level.OK, f"tensorflow, on {len(gpus)} GPUs; CPU {cpu}")
    if onnx.version is not None:  # chosen even if it fails
        level = Level.OK if onnx.usable else Level.ERROR
        found = f"onnx on {cpu}, for bundles that contain the backbone for it; tensorflow for others"
        return Finding("engine auto", level, found, "" if onnx.usable else "See ONNX Runtime above.")
    return Finding("engine auto", Level.OK, f"tensorflow on {cpu}")
