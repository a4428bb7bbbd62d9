"""What a server serves, where and how; the names are those of tensorflow_model_server's flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BATCHING_FILE = "batching_params.pbtxt"
"""BatchingParameters of one version, in its directory."""


@dataclass(frozen=True)
class Policy:
    """Which of the versions below a base path serve; of tensorflow_serving's ServableVersionPolicy.

    Attributes:
        latest: the newest so many; 0: all of them.
        specific: these alone, in place of `latest`.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSettings:
    """One model.

    Attributes:
        name: what callers use.
        base_path: the directory whose numbered children are the versions.
        policy: which of them serve.
        labels: version labels, such as {"stable": 3}.
        platform: as the configuration says; only "tensorflow" is there.
    """

    name: str
    base_path: Path
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)
    platform: str = "tensorflow"


@dataclass(frozen=True)
class Batching:
    """How requests of several callers are merged; of tensorflow_serving's BatchingParameters.

    Attributes:
        max_batch_size: rows of a batch at most.
        batch_timeout_micros: how long a batch that is not full waits for more, in microseconds.
        max_enqueued_batches: batches that wait at most; beyond that callers get UNAVAILABLE.
        num_batch_threads: batches that run at once; 0: as many as the model has threads.
        allowed_batch_sizes: sizes that batches are padded to; none: no padding.
        pad_variable_length_inputs: whether tensors of unequal shapes are padded to one.
        enable_large_batch_splitting: whether requests above `max_batch_size` are split.
        max_execution_batch_size: rows of what such a request is split into; 0: `max_batch_size`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0


@dataclass(frozen=True)
class Certificates:
    """TLS of the gRPC port; of tensorflow_serving's SSLConfig. All are PEM texts.

    Attributes:
        server_key, server_cert: of this server.
        custom_ca: what signed the callers' certificates; "": the usual roots.
        client_verify: whether callers need a certificate.
    """

    server_key: str
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False


@dataclass(frozen=True)
class ServerSettings:
    """What to serve, and where.

    Attributes:
        model_base_path: of the only model; None where `models` or `model_config_file` says.
        model_name: the name that callers use; default: the directory's name.
        models: several models, in place of `model_base_path`.
        model_config_file: a ModelServerConfig as text, in place of both.
        model_config_file_poll_wait_seconds: between two looks at that file; 0: only at the start.
        port: gRPC port; 0 takes a free one.
        grpc_socket_path: a Unix socket that also takes gRPC calls; "": none.
        grpc_channel_arguments: options of the gRPC server, such as `grpc.max_connection_age_ms`.
        grpc_max_threads: calls of models that run or wait at once; beyond them callers get UNAVAILABLE.
        rest_api_port: port of REST and the demo page; None: none; 0 takes a free one.
        rest_api_timeout_in_ms: how long a REST request may take, in milliseconds.
        rest_api_enable_cors_support: whether pages of other origins may ask.
        certificates: TLS of the gRPC port; None: plain.
        metrics_path: where on the REST port Prometheus finds the metrics; "": nowhere.
        file_system_poll_wait_seconds: between two looks for new versions.
        allow_version_labels_for_unavailable_models: whether a new label may name a version that is
            not loaded yet.
        enable_model_warmup: whether a version's warm-up requests run before it serves.
        num_request_iterations_for_warmup: how often each of them runs.
        batching: how requests are merged; None: without the parameters of a file.
        enable_per_model_batching_parameters: whether a version's batching_params.pbtxt goes before it.
        enable_serialization_as_tensor_content: whether answers hold raw bytes in place of values.
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
    certificates: Certificates | None = None
    metrics_path: str = ""
    file_system_poll_wait_seconds: float = 1.0
    allow_version_labels_for_unavailable_models: bool = False
    enable_model_warmup: bool = True
    num_request_iterations_for_warmup: int = 1
    batching: Batching | None = None
    enable_per_model_batching_parameters: bool = False
    enable_serialization_as_tensor_content: bool = False
