"""A bundle whose backbone runs on ONNX Runtime, and the rest on TensorFlow.

Photos are decoded by the graph (serving.runtime.decoder) and classified by its signature
`classify_embedding`, which are loaded without the backbone's weights. So there is one way to decode a photo,
whatever the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import bundle, contract
from serving.client import Signature, TensorInfo
from serving.client.responses import decode_signatures
from serving.contract import Status
from serving.errors import BundleError, InputError
from serving.protos import tensors
from serving.runtime import decoder, subgraph
from serving.runtime.c_api import find_tensorflow
from serving.runtime.errors import RunError
from serving.runtime.model import Model, Value
from serving.runtime.onnxruntime_import import import_onnxruntime
from serving.runtime.tensorflow_import import import_tensorflow

_MAX_FLOAT16 = 65504.0

_ROWS = 4
"""Photos that the backbone takes at a time: some 5 % less time than 8 (docs/decisions/0002).

Decoding takes all photos of a call, since it is faster the more there are.
"""


_LONE_THREADS = 2
"""Threads within an operation for a photo that is alone in the process (docs/decisions/0002)."""


class OnnxBackbone:
    """A backbone in ONNX Runtime. Thread-safe.

    Args:
        model: content of the ONNX file, or its path.
        threads: number of threads of a call. With a caller for each core, 1 is the fastest; the outputs are
            the same bits.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """

    def __init__(self, model: bytes | str, threads: int = 1) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that wait for each other in a loop take the processor from other processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no other base
            name = model if isinstance(model, str) else "The ONNX model"
            raise BundleError(
                f"{name} cannot be loaded by ONNX Runtime: {str(error).rstrip('.')}.",
                remedy="Export the bundle again, or give --engine tensorflow.",
            ) from error
        self._input = self._session.get_inputs()[0].name

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the outputs of the backbone, float32 [N,D], for pixels uint8 [N,H,W,3]."""
        if not len(pixels):
            # Some operations reject an empty batch.
            return self.embed(np.zeros((1, *pixels.shape[1:]), np.uint8))[:0]
        starts = range(0, len(pixels), _ROWS)
        return np.concatenate([self._run(pixels[start : start + _ROWS]) for start in starts])

    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self._session.run(None, {self._input: pixels})[0]
        return embedding


class OnnxModel(Model):
    """A bundle whose backbone ONNX Runtime runs, between TensorFlow, which decodes photos, and the head.

    Signatures that it does not know itself, such as `classify`, run on TensorFlow alone, which loads the
    whole SavedModel when one is first used.

    Args:
        path: directory of the bundle.
        threads: number of concurrent callers.

    Raises:
        BundleError: it cannot be loaded.
        InputError: TensorFlow is not installed.
    """

    engine = "onnx"

    def __init__(self, path: Path, threads: int) -> None:
        graph = subgraph.read_graph(path)
        super().__init__(path, threads, decode_signatures(graph.signature_def))
        self._metadata = bundle.read(path).metadata
        self._backbone = self._load_backbone(1)
        parts = {contract.CLASSIFY_EMBEDDING} & self.signatures.keys()
        if decodes_one := decoder.add_signature(graph):
            parts.add(decoder.DECODE_PHOTO)
        # Both are small: on the caller's thread they take half of the time that a thread pool costs.
        self._graph = subgraph.Subgraph(path, parts, 0, graph)
        self._decoder = decoder.PhotoDecoder(path, threads, self._graph if decodes_one else None)
        self._loading = threading.Lock()
        self._prepared: set[str] = set()
        self._lone_backbone: OnnxBackbone | None = None  # of servers, which call `prepare`
        self._calls, self._counting = 0, threading.Lock()

    def _execute(
        self, name: str, signature: Signature, inputs: Mapping[str, Value]
    ) -> dict[str, NDArray[Any]]:
        function = self._find_function(name)
        if function is None:
            with self._loading:  # or concurrent first calls would each load it
                whole = self._whole
            return whole.run(name, inputs)
        [(key, info)] = signature.inputs.items()
        with self._count_call():
            found = function(_make_array(key, info, inputs[key]))
        return {output: found[output] for output in signature.outputs}

    @contextmanager
    def _count_call(self) -> Iterator[None]:
        """Count a call in `_calls` within a `with` block."""
        with self._counting:
            self._calls += 1
        try:
            yield
        finally:
            with self._counting:
                self._calls -= 1

    def _find_function(self, name: str) -> Callable[[Any], Mapping[str, NDArray[Any]]] | None:
        """Return the signature as a function of its input; None for one that TensorFlow runs alone."""
        # Not an attribute: functions that refer to this object would keep its memory after its last use.
        functions: dict[str, Callable[[Any], Mapping[str, NDArray[Any]]]] = {
            contract.DECODE: self._decode,
            contract.EMBED: lambda photos: self._embed(self._decode(photos)),
            contract.CLASSIFY_EMBEDDING: self._run_head,
            contract.PROBABILITIES: lambda photos: self._classify(self._decode(photos)),
            contract.SERVING_DEFAULT: lambda photos: self._answer(self._decode(photos)),
            contract.CLASSIFY_PIXELS: lambda pixels: self._answer(_mark_usable(pixels)),
        }
        return functions.get(name)

    def prepare(self, signature: str) -> None:
        if signature not in self.signatures:
            return
        if self._find_function(signature):
            if contract.IMAGE_BYTES in self.signatures[signature].inputs:
                self._decoder.load()
            if self._lone_backbone is None and self.threads >= _LONE_THREADS:
                with self._loading:
                    self._lone_backbone = self._lone_backbone or self._load_backbone(_LONE_THREADS)
            return
        with self._loading:
            if signature not in self._prepared:
                inputs = self.signatures[signature].inputs  # photos or examples: strings
                nothing = {
                    key: np.empty([size or 0 for size in info.shape or ()], object)
                    for key, info in inputs.items()
                }
                with suppress(RunError):  # `run` reports it
                    self._whole.run(signature, nothing)
                self._prepared.add(signature)

    def _load_backbone(self, threads: int) -> OnnxBackbone:
        return OnnxBackbone(str(self.path / contract.ONNX_FILE), threads)

    def warm_up(self, signature: str) -> None:
        # The backbone and the decoder of ordinary photos are ready when they are loaded. The signature that
        # decodes the others takes a second.
        if not (self._find_function(signature) and self._decoder.has_photo_function):
            super().warm_up(signature)

    @cached_property
    def _whole(self) -> Model:
        from serving.runtime import tensorflow_model

        return tensorflow_model.load(self.path, self.threads)

    def _decode(self, photos: Any) -> dict[str, NDArray[Any]]:
        return self._decoder.decode(photos)

    def _run_head(self, embedding: Any) -> dict[str, NDArray[Any]]:
        return self._graph.run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embedding})

    def _embed(self, decoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        pixels, rejected = decoded[contract.PIXELS], np.flatnonzero(~find_usable(decoded[contract.STATUS]))
        # All rejected photos are the same grey picture, so one of them is embedded for all.
        chosen = np.delete(np.arange(len(pixels)), rejected[1:])
        # A photo with no other beside it would leave all cores but one idle.
        is_alone = len(pixels) == 1 and self._calls == 1
        backbone = self._lone_backbone if is_alone and self._lone_backbone else self._backbone
        found = backbone.embed(pixels[chosen] if len(chosen) < len(pixels) else pixels)
        embedding = np.empty((len(pixels), *found.shape[1:]), np.float32)
        embedding[chosen] = found
        embedding[rejected[1:]] = embedding[rejected[:1]]
        return {**decoded, contract.EMBEDDING: round_embeddings(embedding)}

    def _classify(self, decoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        embedded = self._embed(decoded)
        return embedded | self._run_head(embedded[contract.EMBEDDING])

    def _answer(self, decoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of `serving_default`, as the graph does (trainer.export.signatures).

        Raises:
            BundleError: the metadata has another number of labels than the graph.
        """
        found = self._classify(decoded)
        usable = find_usable(found[contract.STATUS])
        decisions = contract.decide(
            found[contract.PROBABILITIES],
            usable,
            threshold=float(np.float32(self._metadata.threshold)),
            top_k=self._metadata.top_k,
            known=found.get(contract.KNOWN),
        )
        count = found[contract.PROBABILITIES].shape[1]
        if count != len(self._metadata.labels):
            raise BundleError(
                f"{self.path} has {len(self._metadata.labels)} labels in {contract.METADATA_FILE}, and "
                f"{count} in its graph.",
                remedy="Export the bundle again.",
            )
        labels = np.array([*(label.encode() for label in self._metadata.labels), b""], object)
        classes = labels[decisions.top]
        classes[~usable] = b""
        return found | {
            contract.LABEL: labels[decisions.label],  # -1 is the empty label at the end
            contract.CLASSES: classes,
            contract.SCORES: np.where(usable[:, None], decisions.scores, np.float32(0)),
        }


def _make_array(name: str, info: TensorInfo, value: Value) -> NDArray[Any]:
    """Return an input as an array of the dtype and the shape that the signature declares.

    Raises:
        RunError: it is of another kind or shape.
    """
    array = value if isinstance(value, np.ndarray) else tensors.make_string_array(value)
    is_text = array.dtype.kind in "OS"
    try:
        found = "string" if is_text else tensors.dtype_name(tensors.find_dtype_number(array.dtype))
    except InputError as error:
        raise RunError(f"Input {name}: {error.what}", "INVALID_ARGUMENT") from error
    shape = info.shape or ()
    has_shape = len(shape) == array.ndim and all(
        size is None or size == count for size, count in zip(shape, array.shape, strict=True)
    )
    if found != info.dtype or not has_shape:
        raise RunError(
            f"Input {name} is {TensorInfo(found, array.shape)}, not {info}.",
            "INVALID_ARGUMENT",
        )
    return array


def find_usable(status: NDArray[Any]) -> NDArray[np.bool_]:
    """Return bool [N], True where a status (bytes, object [N]) is that of a photo with an embedding."""
    return np.array([Status(name.decode()).usable for name in status], bool)


def _mark_usable(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    status = np.full(len(pixels), Status.OK.value.encode(), object)
    return {contract.PIXELS: pixels, contract.STATUS: status}


def is_selected(path: Path, engine: str) -> bool:
    """Return whether a bundle is to run on ONNX Runtime.

    Args:
        path: directory of the bundle.
        engine: one of serving.contract.ENGINES; `auto` is ONNX Runtime where it can run and there is no GPU.

    Raises:
        BundleError: it has to, but does not contain the backbone in ONNX.
        InputError: ONNX Runtime has to be used, but is not installed.
    """
    if engine == "tensorflow" or (engine == "auto" and is_gpu_visible()):
        return False
    is_made, is_installed = (path / contract.ONNX_FILE).is_file(), bool(find_spec("onnxruntime"))
    if engine != "auto" and not is_made:
        raise BundleError(
            f"{path} has no {contract.ONNX_FILE}.",
            remedy="Give --engine auto, or export the bundle again; a backbone that cannot be converted has"
            " none.",
        )
    if engine != "auto" and not is_installed:
        raise InputError("onnxruntime is not installed.", remedy="Install it: pip install 'hubhead[serve]'.")
    return is_made and is_installed


def is_gpu_visible() -> bool:
    """Return whether TensorFlow would use a GPU. It is imported to tell only where there may be one."""
    if not any(path.exists() for path in list_gpu_paths()):
        return False
    return bool(import_tensorflow().config.list_physical_devices("GPU"))


def list_gpu_paths() -> list[Path]:
    """Return paths one of which exists where there is a GPU: devices, and the directory of plugins."""
    plugins = find_tensorflow().parent / "tensorflow-plugins"
    return [*Path("/dev").glob("nvidia[0-9]*"), Path("/dev/kfd"), Path("/dev/dxg"), plugins]


def round_embeddings(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to float16, the precision of the embedding store, as the graph of a bundle does."""
    return np.clip(embedding, -_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16).astype(np.float32)
