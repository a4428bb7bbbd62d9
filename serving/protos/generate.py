"""Generate the descriptor set beside this module from the installed TensorFlow Serving API.

Run it after upgrading tensorflow-serving-api: `python -m serving.protos.generate`.
"""

from __future__ import annotations

import importlib

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from serving.protos import DESCRIPTORS

ROOTS = (
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
)
"""Modules of the services, the warm-up file and saved_model.pb; what they import is included as well."""


def descriptor_set() -> FileDescriptorSet:
    """Return the descriptors of `ROOTS` and all their imports, each file after its imports."""
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            collect(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        proto.ClearField("options")  # package names for code in other languages
        files[file.name] = proto

    for module in ROOTS:
        collect(importlib.import_module(module).DESCRIPTOR)
    return FileDescriptorSet(file=files.values())


def main() -> None:
    """Write the descriptor set."""
    DESCRIPTORS.write_bytes(descriptor_set().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
