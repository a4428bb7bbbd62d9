"""Protocol buffer messages of TensorFlow Serving, without TensorFlow.

    from serving import protos
    request = protos.PredictRequest()

Every message and enum of the packages `tensorflow.serving` and `tensorflow`, and of `google.protobuf` as far
as these use it, is an attribute of this module. It is created on first access, from the descriptor set beside
this module. The descriptors are in a separate pool, so that TensorFlow's own can exist in the same process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

Message: TypeAlias = Any
"""A message of the separate pool; its fields are known only at run time."""

DESCRIPTORS = Path(__file__).with_name("descriptors.binpb")
"""A serialized FileDescriptorSet, written by `python -m serving.protos.generate`."""

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
PREDICT = f"/{PREDICTION_SERVICE}/Predict"
GET_MODEL_METADATA = f"/{PREDICTION_SERVICE}/GetModelMetadata"
CLASSIFY = f"/{PREDICTION_SERVICE}/Classify"
REGRESS = f"/{PREDICTION_SERVICE}/Regress"
MULTI_INFERENCE = f"/{PREDICTION_SERVICE}/MultiInference"
GET_MODEL_STATUS = f"/{MODEL_SERVICE}/GetModelStatus"
RELOAD_CONFIG = f"/{MODEL_SERVICE}/HandleReloadConfigRequest"

_PACKAGES = ("tensorflow.serving", "tensorflow", "google.protobuf")
_lock = threading.Lock()


@functools.cache
def pool() -> DescriptorPool:
    """Return the descriptor pool of the messages and of the services that use them."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    from serving.protos.files import build_file_descriptor

    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    pool.Add(build_file_descriptor())
    return pool


def _find(name: str) -> Any:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
    from google.protobuf.message_factory import GetMessageClass

    messages: Any = pool()
    kinds = [
        (messages.FindMessageTypeByName, GetMessageClass),
        (messages.FindEnumTypeByName, EnumTypeWrapper),
    ]
    for package, (find, make_class) in itertools.product(_PACKAGES, kinds):
        with contextlib.suppress(KeyError):
            return make_class(find(f"{package}.{name}"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: no such message or enum")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _lock:  # two threads must not create two pools, whose classes would be incompatible
        found = globals().get(name) or _find(name)
        globals()[name] = found
    return found
