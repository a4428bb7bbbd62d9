"""A SavedModel loaded for the highest throughput on CPU cores."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from serving import client, contract
from serving.client import Signature
from serving.client.photos import check_several
from serving.contract import PhotoRejection, Prediction
from serving.photos.converter import Converter
from serving.process import cores as cores
from serving.process import get_cpu_model, map_ahead
from serving.runtime.errors import RunError, make_signature_error

_log = logging.getLogger(__name__)

MICRO_BATCH = 8
"""Photos per call. For small photos 8 is 4 % faster than 4, and about as fast as 16 (tests/bench)."""

Value = NDArray[Any] | Sequence[bytes]


class Model:
    """A SavedModel whose signatures can be run from any number of threads; one subclass for each engine.

    Throughput is highest with `threads` callers and small batches; see `imap`.

    Args:
        path: directory of the SavedModel.
        threads: number of concurrent callers it is configured for.
        signatures: signatures by name.

    Attributes:
        engine: what runs the backbone, one of serving.contract.ENGINES but `auto`.
        cpu: name of the CPU that it runs on.
    """

    engine: str

    def __init__(self, path: Path, threads: int, signatures: Mapping[str, Signature]) -> None:
        self.path = path
        self.threads = threads
        self.cpu = get_cpu_model()
        self.signatures = signatures
        self._converter = Converter()

    def run(self, signature: str, inputs: Mapping[str, Value]) -> dict[str, NDArray[Any]]:
        """Run one signature. Strings are returned as object arrays of bytes.

        Args:
            signature: name of the signature.
            inputs: values by input name.

        Returns:
            Values by output name.

        Raises:
            BundleError: the model has no such signature.
            RunError: the inputs do not match the signature, or the engine failed.
        """
        described = self._find_signature(signature)
        if inputs.keys() != described.inputs.keys():
            raise RunError(
                f"Signature {signature} takes {sorted(described.inputs)}, not {sorted(inputs)}.",
                "INVALID_ARGUMENT",
            )
        return self._execute(signature, described, inputs)

    def prepare(self, signature: str) -> None:
        """Load and compile what a signature needs, which `run` otherwise does at its first call.

        A server calls this on a thread that other signatures do not wait for.

        Args:
            signature: name of the signature.

        Raises:
            BundleError: it cannot be loaded.
        """

    def warm_up(self, signature: str) -> None:
        """Make the first call with ordinary photos as fast as the later ones.

        What only unusual photos need is left to `prepare`, or to the first of them.

        Args:
            signature: name of a signature that takes photos.
        """
        self.run(signature, {contract.IMAGE_BYTES: [b""]})

    def _find_signature(self, name: str) -> Signature:
        if name not in self.signatures:
            raise make_signature_error(self.path, name, self.signatures)
        return self.signatures[name]

    def _execute(
        self, name: str, signature: Signature, inputs: Mapping[str, Value]
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for inputs that have the names of the signature."""
        raise NotImplementedError

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes], *, micro_batch: int = MICRO_BATCH
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Run any number of items through a signature with one input, on all cores.

        At most two micro-batches per thread are read ahead, so memory does not grow with the
        number of items.

        Args:
            signature: name of the signature.
            input_name: name of its input.
            items: encoded inputs.
            micro_batch: items per call.

        Returns:
            Iterator over the outputs by name, one dict per micro-batch, in the order of the items.
        """
        iterator = iter(items)
        chunks = iter(lambda: list(islice(iterator, micro_batch)), [])

        def run(chunk: list[bytes]) -> dict[str, NDArray[Any]]:
            return self.run(signature, {input_name: chunk})

        return map_ahead(run, chunks, self.threads, ahead=2 * self.threads - 1)

    def classify(self, photos: Iterable[bytes], *, convert: bool = True) -> list[Prediction]:
        """Classify encoded photos with a hubhead bundle, as the client does over gRPC.

        Args:
            photos: encoded photos.
            convert: whether to convert formats that the graph cannot decode (serving/photos/converter.py).

        Returns:
            One prediction for each photo, in order.

        Raises:
            InputError: a single photo was given in place of a list.
        """
        # For each photo, why it is not sent to the model, or None. Filled while `imap` consumes `images`.
        rejections: list[PhotoRejection | None] = []

        def images() -> Iterator[bytes]:
            for photo in check_several(photos):
                image = self._converter.convert_if_needed(photo) if convert else photo
                rejections.append(image if isinstance(image, PhotoRejection) else None)
                if not isinstance(image, PhotoRejection):
                    yield image

        predictions: list[Prediction] = []
        for outputs in self.imap(contract.SERVING_DEFAULT, contract.IMAGE_BYTES, images()):
            predictions.extend(client.predictions(outputs, len(outputs[contract.STATUS])))
        remaining = iter(predictions)
        return [
            Prediction.from_rejection(rejection) if rejection else next(remaining) for rejection in rejections
        ]


def load(path: str | os.PathLike[str], threads: int | None = None, engine: str = "auto") -> Model:
    """Load a SavedModel directory for the highest throughput.

    Args:
        path: directory of a version (`serving.bundle.resolve` finds the newest of a base path).
        threads: number of concurrent callers; by default the cores this process may use.
        engine: what runs the backbone, one of serving.contract.ENGINES; `auto` is TensorFlow if it has a GPU.

    Raises:
        BundleError: TensorFlow cannot load the directory as a SavedModel, or the bundle is not made for the
            engine.
        InputError: the engine is not installed.
    """
    from serving.runtime import onnx_model, tensorflow_model

    threads, start = threads or cores(), time.perf_counter()
    directory = Path(path)
    if onnx_model.is_selected(directory, engine):
        loaded: Model = onnx_model.OnnxModel(directory, threads)
    else:
        loaded = tensorflow_model.load(directory, threads)
    _log.debug("%s loaded in %.1f s: %s on %s", path, time.perf_counter() - start, loaded.engine, loaded.cpu)
    return loaded
