"""Write the descriptor set beside this module from the installed TensorFlow Serving API.

Run after raising tensorflow-serving-api: `python -m serving.protos.generate`.
"""

from __future__ import annotations

import importlib

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from serving.protos import DESCRIPTORS

ROOTS = (
    "tensorflow_serving.apis.classification_pb2",
    "tensorflow_serving.apis.get_model_metadata_pb2",
    "tensorflow_serving.apis.get_model_status_pb2",
    "tensorflow_serving.apis.inference_pb2",
    "tensorflow_serving.apis.input_pb2",
    "tensorflow_serving.apis.model_management_pb2",
    "tensorflow_serving.apis.model_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.predict_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.apis.regression_pb2",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
)
"""The modules whose messages hubhead speaks; what they import comes with them."""


def descriptor_set() -> FileDescriptorSet:
    """The files behind `ROOTS` and all that they import, each after its imports."""
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            collect(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        proto.ClearField("options")  # packages of other languages' generated code
        files[file.name] = proto

    for module in ROOTS:
        collect(importlib.import_module(module).DESCRIPTOR)
    return FileDescriptorSet(file=files.values())


def main() -> None:
    """Replace the committed descriptor set."""
    DESCRIPTORS.write_bytes(descriptor_set().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
