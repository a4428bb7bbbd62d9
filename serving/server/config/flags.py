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
        kind: int, float, bool, str or Path.
        default: default value; TensorFlow Serving's unless this server needs another.
        help: help text; "" for an ignored flag.
        ignored_because: why the flag is ignored; "" if it is not.
    """

    kind: type
    default: Any
    help: str = ""
    ignored_because: str = ""


_CPU = "this server runs on CPUs only"
_THREADS = "each op uses one thread and each core runs a call of its own, which is faster on CPUs"
_LOADING = "versions are loaded one at a time, and a failed one is retried when its files change"
_BUILD = "the model runs in TensorFlow's own runtime"

FLAGS: dict[str, Flag] = {
    "model_base_path": Flag(
        Path,
        None,
        "Directory whose numbered subdirectories are the versions, such as models/food. The newest version "
        "that loads is served; adding one replaces it without downtime, removing one rolls back.",
    ),
    "model_name": Flag(
        str, "", "Model name that requests use.  [default: the name of the base path's directory]"
    ),
    "model_config_file": Flag(
        Path,
        None,
        "File with a ModelServerConfig in text format: several models, version policies and version labels. "
        "Replaces --model_base_path and --model_name.",
    ),
    "model_config_file_poll_wait_seconds": Flag(
        float, 0.0, "Seconds between checks of --model_config_file for changes; 0 reads it only at the start."
    ),
    "allow_version_labels_for_unavailable_models": Flag(
        bool,
        False,
        "Allow new version labels to point to versions that are not loaded. Required for labels in the "
        "configuration that the server starts with.",
    ),
    "port": Flag(int, 8500, "Port for gRPC; 0 picks a free port and prints it."),
    "rest_api_port": Flag(
        int,
        0,
        "Port for the REST API and the demo page; 0 disables both, -1 picks a free port and prints it.",
    ),
    "grpc_socket_path": Flag(str, "", "Path of a Unix socket that also accepts gRPC calls."),
    "grpc_channel_arguments": Flag(
        str, "", "Comma-separated options of the gRPC server, such as grpc.max_connection_age_ms=2000."
    ),
    "grpc_max_threads": Flag(
        int, 256, "Maximum number of inference calls in flight; calls beyond it get UNAVAILABLE."
    ),
    "ssl_config_file": Flag(
        Path,
        None,
        "File with an SSLConfig in text format, which enables TLS on the gRPC port. Keys and certificates "
        "are PEM texts, not paths.",
    ),
    "rest_api_timeout_in_ms": Flag(int, 30_000, "Time limit of a REST request, in milliseconds."),
    "rest_api_enable_cors_support": Flag(
        bool, False, "Allow web pages of other origins to call the REST API (CORS)."
    ),
    "monitoring_config_file": Flag(
        Path,
        None,
        "File with a MonitoringConfig in text format, which enables Prometheus metrics on the REST port.",
    ),
    "file_system_poll_wait_seconds": Flag(
        float, 1.0, "Seconds between scans of the base paths for new and removed versions."
    ),
    "enable_batching": Flag(
        bool,
        False,
        "Batch requests to all models, as --batching_parameters_file or TensorFlow Serving's defaults say. "
        "By default only requests to hubhead's bundles are batched, with parameters that are fast on CPUs.",
    ),
    "batching_parameters_file": Flag(
        Path, None, "File with BatchingParameters in text format; requires --enable_batching."
    ),
    "enable_per_model_batching_parameters": Flag(
        bool,
        False,
        f"Let {BATCHING_FILE} in a version's directory take precedence over --batching_parameters_file.",
    ),
    "enable_model_warmup": Flag(bool, True, "Run a version's warm-up requests before it is served."),
    "num_request_iterations_for_warmup": Flag(int, 1, "Number of times that each warm-up request runs."),
    "enable_serialization_as_tensor_content": Flag(
        bool, False, "Return tensors as raw bytes (tensor_content) in place of typed values."
    ),
    "enable_grpc_healthcheck_service": Flag(
        bool, True, ignored_because="the health service is always enabled"
    ),
    "enable_signature_method_name_check": Flag(
        bool, False, ignored_because="Classify and Regress check the tensors, not the method name"
    ),
    "rest_api_num_threads": Flag(int, 0, ignored_because="the REST port uses an event loop"),
    "num_load_threads": Flag(int, 0, ignored_because=_LOADING),
    "num_unload_threads": Flag(int, 0, ignored_because=_LOADING),
    "max_num_load_retries": Flag(int, 5, ignored_because=_LOADING),
    "load_retry_interval_micros": Flag(int, 60_000_000, ignored_because=_LOADING),
    "flush_filesystem_caches": Flag(bool, True, ignored_because="no file system cache is kept"),
    "saved_model_tags": Flag(str, "serve", ignored_because="the graph with the tag serve is loaded"),
    "platform_config_file": Flag(Path, None, ignored_because="tensorflow is the only platform"),
    "tensorflow_session_parallelism": Flag(int, 0, ignored_because=_THREADS),
    "tensorflow_intra_op_parallelism": Flag(int, 0, ignored_because=_THREADS),
    "tensorflow_inter_op_parallelism": Flag(int, 0, ignored_because=_THREADS),
    "tensorflow_session_config_file": Flag(Path, None, ignored_because=_THREADS),
    "thread_pool_factory_config_file": Flag(Path, None, ignored_because=_THREADS),
    "per_process_gpu_memory_fraction": Flag(float, 0.0, ignored_because=_CPU),
    "xla_cpu_compilation_enabled": Flag(bool, False, ignored_because="TensorFlow decides whether to use XLA"),
    "xla_gpu_compilation_enabled": Flag(bool, False, ignored_because=_CPU),
    "mixed_precision": Flag(str, "", ignored_because=_BUILD),
    "skip_initialize_tpu": Flag(bool, False, ignored_because=_CPU),
    "use_alts_credentials": Flag(bool, False, ignored_because="TLS is configured by --ssl_config_file"),
    "enable_profiler": Flag(bool, True, ignored_because="there is no profiler service"),
    "prefer_tflite_model": Flag(bool, False, ignored_because=_BUILD),
    "num_tflite_pools": Flag(int, 1, ignored_because=_BUILD),
    "num_tflite_interpreters_per_pool": Flag(int, 1, ignored_because=_BUILD),
    "remove_unused_fields_from_bundle_metagraph": Flag(bool, True, ignored_because=_BUILD),
}


def describe_ignored_flags(given: Iterable[str]) -> list[str]:
    """Return one line for each ignored flag of a command line.

    Args:
        given: names of the flags on the command line, without dashes.
    """
    reasons = {name: FLAGS[name].ignored_because for name in given if name in FLAGS}
    return [f"--{name} has no effect: {reason}." for name, reason in reasons.items() if reason]


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
    taken = {name: values[name] for name in ServerSettings.__dataclass_fields__ if name in values}
    taken |= {
        "grpc_channel_arguments": files.parse_channel_arguments(values["grpc_channel_arguments"]),
        "rest_api_port": None if rest_port == 0 else max(rest_port, 0),
        "certificates": files.read_certificates(certificates) if certificates else None,
        "metrics_path": files.read_monitoring(monitoring) if monitoring else "",
        "batching": files.read_batching(file)
        if file
        else BatchingParameters()
        if values["enable_batching"]
        else None,
    }
    return ServerSettings(**taken)
