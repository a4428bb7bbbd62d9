"""Messages of tensorflow_model_server's configuration files that its Python package lacks.

Names and types are those of its sources: config/monitoring_config.proto, config/ssl_config.proto,
servables/tensorflow/session_bundle_config.proto. The files are in text format, which does not depend on
field numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

_INT64, _BOOL, _STRING = (f".google.protobuf.{kind}Value" for kind in ("Int64", "Bool", "String"))

_MESSAGES: dict[str, dict[str, str]] = {
    "BatchingParameters": {
        "max_batch_size": _INT64,
        "batch_timeout_micros": _INT64,
        "max_enqueued_batches": _INT64,
        "num_batch_threads": _INT64,
        "thread_pool_name": _STRING,
        "allowed_batch_sizes": "repeated TYPE_INT64",
        "pad_variable_length_inputs": "TYPE_BOOL",
        "enable_large_batch_splitting": _BOOL,
        "max_execution_batch_size": _INT64,
    },
    "PrometheusConfig": {"enable": "TYPE_BOOL", "path": "TYPE_STRING"},
    "MonitoringConfig": {"prometheus_config": ".tensorflow.serving.PrometheusConfig"},
    "SSLConfig": {
        "server_key": "TYPE_STRING",
        "server_cert": "TYPE_STRING",
        "custom_ca": "TYPE_STRING",
        "client_verify": "TYPE_BOOL",
    },
}
"""Types of the fields by message; a type that begins with a dot is a message."""


def build_file_descriptor() -> FileDescriptorProto:
    """Return the descriptor of a file that declares these messages in TensorFlow Serving's package."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(
        name="serving/protos/files.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    for name, fields in _MESSAGES.items():
        message: Any = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            repeated, _, kind = kind.rpartition(" ")
            label = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
            kind_field = "type_name" if kind.startswith(".") else "type"
            message.field.add(name=field, number=number, label=label, **{kind_field: kind})
    return file
