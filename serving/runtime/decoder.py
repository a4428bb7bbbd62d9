"""Decoding of photos by the graph of a bundle, one by one on the caller's thread where that is possible.

The signature `decode` maps a function over the photos of a call by tf.data, so that no photo can affect
another. TensorFlow instantiates that function anew in every call, which takes longer than decoding a small
photo. Here the function is called directly; it stays instantiated. Where it fails, or leaves a photo to the
other attempts of the signature (trainer/preprocessing/decode.py), the signature decodes that photo. So pixels
and statuses are those of the signature.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.contract import Status
from serving.protos import tensors
from serving.runtime.errors import RunError
from serving.runtime.subgraph import Subgraph

PHOTO_FUNCTION = "decode_ordinary_photo"
"""Name of the function in the graph; bundles that were exported before it had this name use the signature."""

DECODE_PHOTO = "hubhead_decode_photo"
"""Name of the signature that `add_signature` adds to a loaded graph."""

_PREFIX = f"__inference_{PHOTO_FUNCTION}_"
"""TensorFlow's prefix of the name, which ends with a number."""

_OUTPUTS = {
    contract.PIXELS: tensors.find_dtype_number(np.dtype(np.uint8)),
    **dict.fromkeys(
        (contract.STATUS, contract.HEIGHT, contract.WIDTH), tensors.find_dtype_number(np.dtype(np.int32))
    ),
}
"""Outputs of the function and their types, in their order."""

_DECODED = 0
"""Status of a photo that the function has decoded completely (trainer/preprocessing/settings.py)."""


def add_signature(graph: protos.Message) -> bool:
    """Add the signature DECODE_PHOTO to a MetaGraphDef; return False if it does not have the function.

    The signature takes one photo, string [], and returns pixels uint8 [H,W,3], and status, height and width,
    int32 [].
    """
    library = graph.graph_def.library.function
    functions = [one.signature for one in library if one.signature.name.startswith(_PREFIX)]
    for function in functions:
        types = [[arg.type for arg in args] for args in (function.input_arg, function.output_arg)]
        if types == [[tensors.DT_STRING], list(_OUTPUTS.values())]:
            photo, call = (f"{DECODE_PHOTO}/{name}" for name in ("photo", "call"))
            nodes = graph.graph_def.node
            nodes.add(name=photo, op="Placeholder").attr["dtype"].type = tensors.DT_STRING
            nodes.add(name=call, op="PartitionedCall", input=[photo]).attr["f"].func.name = function.name
            signature = graph.signature_def[DECODE_PHOTO]
            signature.inputs[contract.IMAGE_BYTES].name = f"{photo}:0"
            for index, output in enumerate(_OUTPUTS):
                signature.outputs[output].name = f"{call}:{index}"
            return True
    return False


class PhotoDecoder:
    """The signature `decode` of a bundle. Thread-safe.

    Args:
        path: directory of the bundle, from which the signature is loaded when a photo first needs it.
        threads: number of concurrent callers.
        one: its signature DECODE_PHOTO, loaded; None if `add_signature` returned False.
    """

    def __init__(self, path: Path, threads: int, one: Subgraph | None) -> None:
        self._path, self._threads, self._one = path, threads, one
        self._loading = threading.Lock()

    @property
    def has_photo_function(self) -> bool:
        """True if ordinary JPEGs are decoded without the signature `decode`."""
        return self._one is not None

    def load(self) -> None:
        """Load the signature now.

        Raises:
            BundleError: it cannot be loaded.
        """
        self._get_signature()

    def _get_signature(self) -> Subgraph:
        with self._loading:  # or concurrent first calls would each load it
            return self._signature

    @cached_property
    def _signature(self) -> Subgraph:
        return Subgraph(self._path, [contract.DECODE], self._threads)

    def decode(self, photos: NDArray[np.object_]) -> dict[str, NDArray[Any]]:
        """Return the outputs of the signature, for photos as bytes [N]."""
        found = [self._decode_one(photo) for photo in photos]
        left = np.array([index for index, one in enumerate(found) if one is None], np.int64)
        if len(left) == len(photos):
            return self._decode_by_signature(photos)
        decoded = [one for one in found if one is not None]
        outputs = {name: np.stack([one[name] for one in decoded]) for name in _OUTPUTS}
        outputs[contract.STATUS] = np.full(len(decoded), Status.OK.value.encode(), object)
        if not len(left):
            return outputs
        rest = self._decode_by_signature(photos[left])
        rows = np.delete(np.arange(len(photos)), left)
        whole = {}
        for name, values in outputs.items():
            whole[name] = np.empty((len(photos), *values.shape[1:]), values.dtype)
            whole[name][rows], whole[name][left] = values, rest[name]
        return whole

    def _decode_one(self, photo: Any) -> Mapping[str, NDArray[Any]] | None:
        """Decode an ordinary JPEG; return None for another photo, and for one that fails."""
        if self._one is None:
            return None
        try:
            found = self._one.run(DECODE_PHOTO, {contract.IMAGE_BYTES: np.array(photo, object)})
        except RunError:
            return None
        return found if found[contract.STATUS] == _DECODED else None

    def _decode_by_signature(self, photos: NDArray[np.object_]) -> dict[str, NDArray[Any]]:
        return self._get_signature().run(contract.DECODE, {contract.IMAGE_BYTES: photos})
