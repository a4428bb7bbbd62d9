"""Settings of the server; fields are named after the flags of tensorflow_model_server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving import protos

BATCHING_FILE = "batching_params.pbtxt"
"""File with the BatchingParameters of one version, in the version's directory."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions below a base path are served (ServableVersionPolicy of TensorFlow Serving).

    Attributes:
        latest: number of newest versions to serve; 0: all versions.
        specific: version numbers to serve, in place of `latest`.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSettings:
    """Settings of one model.

    Attributes:
        name: model name that requests use.
        base_path: directory whose numbered children are the versions.
        policy: which versions are served.
        labels: version labels and their versions, such as {"stable": 3}.
        platform: platform that the configuration names; only "tensorflow" is supported.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)
    platform: str = "tensorflow"


@dataclass(frozen=True)
class BatchingParameters:
    """How requests of several callers are merged and split (BatchingParameters of TensorFlow Serving).

    Attributes:
        max_batch_size: maximum rows of a batch, and of a request if `tensorflow_serving` is True.
        batch_timeout_micros: time that a batch with free rows waits for more requests, in microseconds.
        max_enqueued_batches: maximum number of queued batches; requests beyond it get UNAVAILABLE.
        num_batch_threads: number of batches that run at once; 0: the number of the model's threads.
        allowed_batch_sizes: sizes that batches are padded to; empty: no padding.
        pad_variable_length_inputs: whether tensors of unequal shapes are padded to one shape.
        enable_large_batch_splitting: whether a request may be split over several batches.
        max_execution_batch_size: maximum rows of a batch when requests are split; 0: `max_batch_size`.
        tensorflow_serving: True follows TensorFlow Serving: a signature without a batch dimension is
            rejected, each thread takes a whole batch, and `max_enqueued_batches` applies. False favours
            latency on CPUs: such a signature runs alone, idle threads divide the queued rows, and a request
            that cannot meet its deadline is rejected immediately.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0
    tensorflow_serving: bool = True

    @property
    def batch_rows(self) -> int:
        """Maximum rows of the batches that run."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server: models, ports, limits.

    Attributes:
        model_base_path: base path of the only model; None: `models` or `model_config_file` is given.
        model_name: model name that requests use; default: the name of the base path's directory.
        models: settings of several models, in place of `model_base_path`.
        model_config_file: file with a ModelServerConfig in text format, in place of both.
        model_config_file_poll_wait_seconds: seconds between checks of that file; 0: read once, at the start.
        port: gRPC port; 0: a free one.
        grpc_socket_path: Unix socket that also accepts gRPC calls; "": none.
        grpc_channel_arguments: options of the gRPC server, such as `grpc.max_connection_age_ms`.
        grpc_max_threads: maximum number of inference calls in flight; calls beyond it get UNAVAILABLE.
        rest_api_port: port of the REST API and the demo page; None: disabled; 0: a free one.
        rest_api_timeout_in_ms: time limit of a REST request, in milliseconds.
        rest_api_enable_cors_support: whether pages of other origins may use the REST API.
        certificates: SSLConfig message with the TLS settings of the gRPC port, as PEM texts; None: no TLS.
        metrics_path: path of the Prometheus metrics on the REST port; "": disabled.
        file_system_poll_wait_seconds: seconds between scans of the base paths for versions.
        allow_version_labels_for_unavailable_models: whether a new label may point to a version that is
            not loaded.
        enable_model_warmup: whether a version's warm-up requests run before it is served.
        num_request_iterations_for_warmup: number of times that each warm-up request runs.
        batching: contents of the batching file; None: no file is given.
        enable_per_model_batching_parameters: whether a version's batching_params.pbtxt takes precedence.
        enable_serialization_as_tensor_content: whether responses carry tensors as raw bytes.
    """

    model_base_path: Path | None = None
    model_name: str = ""
    models: tuple[ModelSettings, ...] = ()
    model_config_file: Path | None = None
    model_config_file_poll_wait_seconds: float = 0.0
    port: int = 8500
    grpc_socket_path: str = ""
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = ()
    grpc_max_threads: int = 256
    rest_api_port: int | None = None
    rest_api_timeout_in_ms: int = 30_000
    rest_api_enable_cors_support: bool = False
    certificates: protos.Message | None = None
    metrics_path: str = ""
    file_system_poll_wait_seconds: float = 1.0
    allow_version_labels_for_unavailable_models: bool = False
    enable_model_warmup: bool = True
    num_request_iterations_for_warmup: int = 1
    batching: BatchingParameters | None = None
    enable_per_model_batching_parameters: bool = False
    enable_serialization_as_tensor_content: bool = False
