"""Graphs run by TensorFlow's C library, without its Python package.

`import tensorflow` takes seconds and hundreds of MB, which a process that only runs a finished graph can do
without. The library in TensorFlow's wheels has a stable C interface, declared in tensorflow/c/c_api.h and
tensorflow/c/tf_tensor.h; its kernels are the same that Python calls.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import protos
from serving.errors import InputError
from serving.protos import tensors
from serving.runtime.errors import RunError
from serving.runtime.tensorflow_import import captured_stderr

_STRING_BYTES = 24
"""Size of a TF_TString (tensorflow/core/platform/ctstring_internal.h)."""


class _Output(ctypes.Structure):
    """TF_Output: one output of an operation."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


_Outputs, _Tensors = POINTER(_Output), POINTER(c_void_p)

_FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (c_void_p, ()),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_NewBufferFromString": (c_void_p, (c_char_p, c_size_t)),
    "TF_DeleteBuffer": (None, (c_void_p,)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_DeleteGraph": (None, (c_void_p,)),
    "TF_NewImportGraphDefOptions": (c_void_p, ()),
    "TF_DeleteImportGraphDefOptions": (None, (c_void_p,)),
    "TF_GraphImportGraphDef": (None, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_DeleteSessionOptions": (None, (c_void_p,)),
    "TF_SetConfig": (None, (c_void_p, c_char_p, c_size_t, c_void_p)),
    "TF_NewSession": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "TF_DeleteSession": (None, (c_void_p, c_void_p)),
    "TF_SessionRun": (
        None,
        (c_void_p, c_void_p)
        + (_Outputs, _Tensors, c_int) * 2  # fed and fetched
        + (POINTER(c_void_p), c_int, c_void_p, c_void_p),
    ),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorType": (c_int, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_TensorByteSize": (c_size_t, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_StringInit": (None, (c_void_p,)),
    "TF_StringCopy": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringGetDataPointer": (c_void_p, (c_void_p,)),
    "TF_StringGetSize": (c_size_t, (c_void_p,)),
}
"""Result and arguments of each function that is used, by name."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load TensorFlow's C library, which takes half a second, and declare its functions.

    Raises:
        InputError: TensorFlow is not installed, or has no such library.
    """
    directory = find_tensorflow()
    extension = "2.dylib" if sys.platform == "darwin" else "so.2"
    names = [f"libtensorflow_{part}.{extension}" for part in ("framework", "cc")]
    try:
        with captured_stderr():  # it reports missing GPU drivers
            framework, library = (_open_library(directory / name) for name in names)
    except OSError as error:
        raise InputError(
            f"TensorFlow's library cannot be loaded: {error}.",
            remedy="Install the package tensorflow of PyPI again, or give --engine tensorflow.",
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        source = library if hasattr(library, name) else framework
        function = getattr(source, name)
        function.restype, function.argtypes = result, arguments
        setattr(library, name, function)
    return library


def _open_library(path: Path) -> ctypes.CDLL:
    """Load a shared library, whose functions are bound when they are first called.

    ctypes binds all functions of a library at once, which takes a third of the loading of TensorFlow's.

    Raises:
        OSError: it cannot be loaded.
    """
    process = ctypes.CDLL(None)
    process.dlopen.restype, process.dlopen.argtypes = c_void_p, (c_char_p, c_int)
    handle = process.dlopen(os.fsencode(path), os.RTLD_LAZY | os.RTLD_GLOBAL)
    # Without a handle ctypes tries again, and raises the error.
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL, handle=handle)


def find_tensorflow() -> Path:
    """Return the directory of the package tensorflow, without importing it.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise InputError("tensorflow is not installed.", remedy="Install it: pip install 'hubhead[serve]'.")
    return Path(spec.origin).parent


class GraphSession:
    """A graph in a session of TensorFlow's C library. Thread-safe.

    Args:
        graph: serialized GraphDef.
        threads: number of ops that run at a time, each on one thread; 0 to run the ops of a call one after
            the other on its caller's thread, which is fastest for a graph of small ops.

    Raises:
        InputError: TensorFlow is not installed, or has no such library.
        RunError: the graph is invalid.
    """

    def __init__(self, graph: bytes, threads: int) -> None:
        self._library = load_library()
        self._options = None if threads else _make_caller_thread_options(self._library)
        self._graph = self._library.TF_NewGraph()
        # Finalizers, other than __del__, do not run while the interpreter's modules are torn down.
        weakref.finalize(self, self._library.TF_DeleteGraph, self._graph).atexit = False
        self._import_graph(graph)
        self._session = self._open(threads)
        self._process = os.getpid()
        weakref.finalize(self, _delete_session, self._library, self._session, self._process).atexit = False

    def _import_graph(self, graph: bytes) -> None:
        library = self._library
        buffer = library.TF_NewBufferFromString(graph, len(graph))
        options = library.TF_NewImportGraphDefOptions()
        try:
            with _Status(library) as status:
                library.TF_GraphImportGraphDef(self._graph, buffer, options, status.pointer)
        finally:
            library.TF_DeleteImportGraphDefOptions(options)
            library.TF_DeleteBuffer(buffer)

    def _open(self, threads: int) -> int:
        config = protos.ConfigProto(
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=threads or 1,
            # Otherwise all sessions of the process share as many threads as the first one asked for.
            use_per_session_threads=True,
            device_count={"GPU": 0},
        )
        # Optimizing this graph takes seconds and makes no call faster.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        serialized = config.SerializeToString()
        library = self._library
        options = library.TF_NewSessionOptions()
        try:
            with _Status(library) as status:
                library.TF_SetConfig(options, serialized, len(serialized), status.pointer)
            with _Status(library) as status:
                session: int = library.TF_NewSession(self._graph, options, status.pointer)
        finally:
            library.TF_DeleteSessionOptions(options)
        return session

    def run(
        self, feeds: Mapping[str, Any], fetches: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> list[NDArray[Any]]:
        """Run the graph.

        Args:
            feeds: numbers as arrays, or sequences or object arrays of bytes, by tensor name ("node:0").
            fetches: names of the tensors to return.
            targets: names of operations to run whose outputs are not needed.

        Returns:
            Values of the fetches; strings are object arrays of bytes.

        Raises:
            RunError: an op failed, a string is not bytes, or NumPy has no dtype for an output.
            InputError: TensorFlow has no dtype of a value, or this process is a fork of the one that began.
        """
        if os.getpid() != self._process:  # it would wait for ever for threads, which a fork does not copy
            raise InputError(
                "A model was loaded before this process was forked from the one that loaded it.",
                remedy="Load it in each process, or start processes by multiprocessing's method spawn.",
            )
        library = self._library
        inputs = [_Tensor.make(library, value) for value in feeds.values()]
        pointers = (c_void_p * len(inputs))(*(tensor.pointer for tensor in inputs))
        found = (c_void_p * len(fetches))()
        operations = (c_void_p * len(targets))(*map(self._find, targets))
        with _Status(library) as status:
            library.TF_SessionRun(
                self._session,
                self._options,
                self._locate(feeds),
                pointers,
                len(inputs),
                self._locate(fetches),
                found,
                len(fetches),
                operations,
                len(targets),
                None,
                status.pointer,
            )
        # All are owned before the first is read, so that an error leaks none.
        outputs = [_Tensor(library, pointer) for pointer in found]
        return [output.to_array() for output in outputs]

    def _locate(self, names: Any) -> Any:
        outputs = []
        for name in names:
            operation, _, index = name.partition(":")
            outputs.append(_Output(self._find(operation), int(index or 0)))
        return (_Output * len(outputs))(*outputs)

    def _find(self, operation: str) -> int:
        found: int | None = self._library.TF_GraphOperationByName(self._graph, operation.encode())
        if found is None:
            raise RunError(f"The graph has no operation {operation!r}.", "NOT_FOUND")
        return found


@functools.cache
def _make_caller_thread_options(library: ctypes.CDLL) -> int:
    """Return RunOptions, in a TF_Buffer that is kept, of calls that use no thread pool for their ops."""
    options = protos.RunOptions(inter_op_thread_pool=-1).SerializeToString()
    buffer: int = library.TF_NewBufferFromString(options, len(options))
    return buffer


def _delete_session(library: ctypes.CDLL, session: int, process: int) -> None:
    if os.getpid() != process:  # a forked process has no threads that could end
        return
    with _Status(library) as status:
        library.TF_DeleteSession(session, status.pointer)


class _Status:
    """A TF_Status, which raises RunError at the end of a block in which a function failed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.pointer = library.TF_NewStatus()

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        code = self._library.TF_GetCode(self.pointer)
        message = self._library.TF_Message(self.pointer)
        self._library.TF_DeleteStatus(self.pointer)
        if code and kind is None:
            raise RunError.from_status(code, message.decode("utf-8", "backslashreplace"))


class _Tensor:
    """A TF_Tensor, freed with this object.

    Args:
        library: TensorFlow's C library.
        pointer: the tensor, which this object then owns.
    """

    def __init__(self, library: ctypes.CDLL, pointer: int | None) -> None:
        self._library, self.pointer = library, pointer

    def __del__(self) -> None:
        self._library.TF_DeleteTensor(self.pointer)

    @classmethod
    def make(cls, library: ctypes.CDLL, value: Any) -> _Tensor:
        """Return a tensor with a copy of the values.

        Raises:
            RunError: a string is not bytes.
            InputError: TensorFlow has no such dtype.
        """
        array = value if isinstance(value, np.ndarray) else tensors.make_string_array(value)
        is_text = array.dtype.kind in "OS"
        texts = array.ravel().tolist() if is_text else []
        if wrong := [type(text).__name__ for text in texts if not isinstance(text, bytes)]:
            raise RunError(f"A string tensor accepts only bytes, not {wrong[0]}.", "INVALID_ARGUMENT")
        number = tensors.DT_STRING if is_text else tensors.find_dtype_number(array.dtype)
        size = array.size * _STRING_BYTES if is_text else array.nbytes
        shape = (c_int64 * array.ndim)(*array.shape)
        tensor = cls(library, library.TF_AllocateTensor(number, shape, array.ndim, size))
        data = library.TF_TensorData(tensor.pointer)
        if not is_text:
            # A name keeps the copy alive, whose address is a plain number.
            values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            ctypes.memmove(data, values.ctypes.data, size)
            return tensor
        for start in range(data or 0, (data or 0) + size, _STRING_BYTES):
            library.TF_StringInit(start)
        for index, text in enumerate(texts):
            library.TF_StringCopy(data + index * _STRING_BYTES, text, len(text))
        return tensor

    def to_array(self) -> NDArray[Any]:
        """Return the values: numbers in the memory of the tensor, strings as bytes.

        Raises:
            RunError: NumPy has no such dtype.
        """
        library, pointer = self._library, self.pointer
        shape = tuple(library.TF_Dim(pointer, axis) for axis in range(library.TF_NumDims(pointer)))
        data, size = library.TF_TensorData(pointer), library.TF_TensorByteSize(pointer)
        number = library.TF_TensorType(pointer)
        if number == tensors.DT_STRING:
            texts = np.empty(size // _STRING_BYTES, object)
            for index in range(len(texts)):
                start = data + index * _STRING_BYTES
                text = library.TF_StringGetDataPointer(start)
                texts[index] = ctypes.string_at(text, library.TF_StringGetSize(start))
            return texts.reshape(shape)
        if number not in tensors.NUMERIC:
            raise RunError(f"An output is of dtype {tensors.dtype_name(number)}.", "UNIMPLEMENTED")
        dtype, _ = tensors.NUMERIC[number]
        if not size:
            return _restore_bfloat16(np.empty(shape, dtype), number)
        # The protocol by which NumPy refers to foreign memory; the array keeps this object alive.
        self.__array_interface__ = {"data": (data, False), "shape": shape, "typestr": dtype.str, "version": 3}
        return _restore_bfloat16(np.asarray(self), number)


def _restore_bfloat16(bits: NDArray[Any], number: int) -> NDArray[Any]:
    """Return the values of a tensor of this DataType number, whose bfloat16 are read as uint16."""
    if number != tensors.DT_BFLOAT16:
        return bits
    import ml_dtypes  # a requirement of TensorFlow

    return bits.view(ml_dtypes.bfloat16)
