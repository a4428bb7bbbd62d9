"""Flags of tensorflow_model_server (model_servers/main.cc, 2.20), as options of `hubhead serve`.

Flags that apply to this server work as documented there. The others are accepted and ignored, so that an
existing command line or Kubernetes manifest works unchanged; one line on stderr names each and the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.server.config.settings import BATCHING_FILE, BatchingParameters, ServerSettings


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        help: help text; "" for an ignored flag.
        default: default value; TensorFlow Serving's unless this server needs another. None: no path is given.
        ignored_because: why the flag is ignored; "" if it is not.
    """

    help: str
    default: Any = None
    ignored_because: str = ""

    @property
    def kind(self) -> type:
        """Type of the value: int, float, bool, str or Path."""
        return Path if self.default is None else type(self.default)


_IGNORED: dict[str, dict[str, Any]] = {
    "the health service is always enabled": {"enable_grpc_healthcheck_service": True},
    "Classify and Regress check the tensors, not the method name": {
        "enable_signature_method_name_check": False
    },
    "the REST port uses an event loop": {"rest_api_num_threads": 0},
    "versions are loaded one at a time, and a failed one is retried when its files change": {
        "num_load_threads": 0,
        "num_unload_threads": 0,
        "max_num_load_retries": 5,
        "load_retry_interval_micros": 60_000_000,
    },
    "no file system cache is kept": {"flush_filesystem_caches": True},
    "the graph with the tag serve is loaded": {"saved_model_tags": "serve"},
    "tensorflow is the only platform": {"platform_config_file": None},
    "each op uses one thread and each core runs a call of its own, which is faster on CPUs": {
        "tensorflow_session_parallelism": 0,
        "tensorflow_intra_op_parallelism": 0,
        "tensorflow_inter_op_parallelism": 0,
        "tensorflow_session_config_file": None,
        "thread_pool_factory_config_file": None,
    },
    "this server runs on CPUs only": {
        "per_process_gpu_memory_fraction": 0.0,
        "xla_gpu_compilation_enabled": False,
        "skip_initialize_tpu": False,
    },
    "TensorFlow decides whether to use XLA": {"xla_cpu_compilation_enabled": False},
    "the model runs in TensorFlow's own runtime": {
        "mixed_precision": "",
        "prefer_tflite_model": False,
        "num_tflite_pools": 1,
        "num_tflite_interpreters_per_pool": 1,
        "remove_unused_fields_from_bundle_metagraph": True,
    },
    "TLS is configured by --ssl_config_file": {"use_alts_credentials": False},
    "there is no profiler service": {"enable_profiler": True},
}
"""Ignored flags and their defaults, by the reason why they are ignored."""

FLAGS: dict[str, Flag] = {
    "model_base_path": Flag(
        "Directory whose numbered subdirectories are the versions, such as models/food. The newest version "
        "that loads is served; adding one replaces it without downtime, removing one rolls back."
    ),
    "model_name": Flag("Model name that requests use.  [default: the name of the base path's directory]", ""),
    "model_config_file": Flag(
        "File with a ModelServerConfig in text format: several models, version policies and version labels. "
        "Replaces --model_base_path and --model_name."
    ),
    "model_config_file_poll_wait_seconds": Flag(
        "Seconds between checks of --model_config_file for changes; 0 reads it only at the start.", 0.0
    ),
    "allow_version_labels_for_unavailable_models": Flag(
        "Allow new version labels to point to versions that are not loaded. Required for labels in the "
        "configuration that the server starts with.",
        False,
    ),
    "port": Flag("Port for gRPC; 0 picks a free port and prints it.", 8500),
    "rest_api_port": Flag(
        "Port for the REST API and the demo page; 0 disables both, -1 picks a free port and prints it.", 0
    ),
    "grpc_socket_path": Flag("Path of a Unix socket that also accepts gRPC calls.", ""),
    "grpc_channel_arguments": Flag(
        "Comma-separated options of the gRPC server, such as grpc.max_connection_age_ms=2000.", ""
    ),
    "grpc_max_threads": Flag(
        "Maximum number of inference calls in flight; calls beyond it get UNAVAILABLE.", 256
    ),
    "ssl_config_file": Flag(
        "File with an SSLConfig in text format, which enables TLS on the gRPC port. Keys and certificates "
        "are PEM texts, not paths."
    ),
    "rest_api_timeout_in_ms": Flag("Time limit of a REST request, in milliseconds.", 30_000),
    "rest_api_enable_cors_support": Flag(
        "Allow web pages of other origins to call the REST API (CORS).", False
    ),
    "monitoring_config_file": Flag(
        "File with a MonitoringConfig in text format, which enables Prometheus metrics on the REST port."
    ),
    "file_system_poll_wait_seconds": Flag(
        "Seconds between scans of the base paths for new and removed versions.", 1.0
    ),
    "enable_batching": Flag(
        "Batch requests to all models, as --batching_parameters_file or TensorFlow Serving's defaults say. "
        "By default only requests to hubhead's bundles are batched, with parameters that are fast on CPUs.",
        False,
    ),
    "batching_parameters_file": Flag(
        "File with BatchingParameters in text format; requires --enable_batching."
    ),
    "enable_per_model_batching_parameters": Flag(
        f"Let {BATCHING_FILE} in a version's directory take precedence over --batching_parameters_file.",
        False,
    ),
    "enable_model_warmup": Flag("Run a version's warm-up requests before it is served.", True),
    "num_request_iterations_for_warmup": Flag("Number of times that each warm-up request runs.", 1),
    "enable_serialization_as_tensor_content": Flag(
        "Return tensors as raw bytes (tensor_content) in place of typed values.", False
    ),
} | {name: Flag("", default, reason) for reason, flags in _IGNORED.items() for name, default in flags.items()}


def describe_ignored_flags(given: Iterable[str]) -> list[str]:
    """Return one line for each ignored flag of a command line.

    Args:
        given: names of the flags on the command line, without dashes.
    """
    reasons = ((name, FLAGS[name].ignored_because) for name in given)
    return [f"--{name} has no effect: {reason}." for name, reason in reasons if reason]


def build_settings(values: Mapping[str, Any]) -> ServerSettings:
    """Return the settings of a command line, and read the files that it names.

    Args:
        values: value of every flag, by name, defaults included.

    Raises:
        InputError: flags contradict each other, or a file cannot be used.
    """
    from serving.server.config import files

    file = values["batching_parameters_file"]
    if file and not values["enable_batching"]:
        raise InputError(
            "--batching_parameters_file requires --enable_batching.", remedy="Add --enable_batching."
        )
    if values["model_config_file"] and (values["model_base_path"] or values["model_name"]):
        raise InputError(
            "--model_config_file cannot be combined with --model_base_path or --model_name.",
            remedy="Give either the file or the other two.",
        )
    rest_port = values["rest_api_port"]
    if rest_port > 0 and rest_port == values["port"]:
        raise InputError(
            f"--rest_api_port and --port are both {rest_port}.", remedy="Give the REST API another port."
        )
    monitoring, certificates = values["monitoring_config_file"], values["ssl_config_file"]
    defaults = BatchingParameters() if values["enable_batching"] else None
    taken = {name: values[name] for name in ServerSettings.__dataclass_fields__ if name in values}
    taken |= {
        "grpc_channel_arguments": files.parse_channel_arguments(values["grpc_channel_arguments"]),
        "rest_api_port": None if rest_port == 0 else max(rest_port, 0),
        "certificates": files.read_certificates(certificates) if certificates else None,
        "metrics_path": files.read_monitoring(monitoring) if monitoring else "",
        "batching": files.read_batching(file) if file else defaults,
    }
    return ServerSettings(**taken)
