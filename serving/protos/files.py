"""Messages of tensorflow_model_server's configuration files that its Python package lacks.

Names and types are those of its sources: config/monitoring_config.proto, config/ssl_config.proto,
servables/tensorflow/session_bundle_config.proto. The files are in text format, which does not depend on
field numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

_WRAPPERS = "google/protobuf/wrappers.proto"

_MESSAGES: dict[str, dict[str, str]] = {
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
    "SSLConfig": {
        "server_key": "string",
        "server_cert": "string",
        "custom_ca": "string",
        "client_verify": "bool",
    },
}


def build_file_descriptor() -> FileDescriptorProto:
    """Return the descriptor of a file that declares these messages in TensorFlow Serving's package."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    plain = {"bool": Field.TYPE_BOOL, "string": Field.TYPE_STRING, "int64": Field.TYPE_INT64}
    file = FileDescriptorProto(
        name="serving/protos/files.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[_WRAPPERS],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind) in enumerate(fields.items(), 1):
            repeated, _, kind = kind.rpartition(" ")
            field = message.field.add(
                name=field_name,
                number=number,
                label=Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL,
            )
            if kind in plain:
                field.type = plain[kind]
            else:
                package = "tensorflow.serving" if kind in _MESSAGES else "google.protobuf"
                field.type, field.type_name = Field.TYPE_MESSAGE, f".{package}.{kind}"
    return file
