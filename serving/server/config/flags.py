"""The flags of tensorflow_model_server (model_servers/main.cc, 2.20), as options of `hubhead serve`.

Those with a meaning here have it; the others are accepted, so that a command line or a manifest
works as it is, and one line says that they are without effect and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.server.config.settings import BATCHING_FILE, Batching, ServerSettings


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        kind: int, float, bool, str or Path.
        default: TensorFlow Serving's, or ours where ours differs.
        help: what it does; "" where it is without effect.
        without_effect: why, where it is.
    """

    kind: type
    default: Any
    help: str = ""
    without_effect: str = ""


_CPU = "this server runs on CPUs"
_THREADS = "an op has one thread here, and each core a call of its own, which is faster on CPUs"
_LOADING = "versions are loaded one at a time, and one that fails is tried again when its files change"
_BUILD = "this server runs the model in TensorFlow's own runtime"

FLAGS: dict[str, Flag] = {
    "model_base_path": Flag(
        Path,
        None,
        "Directory whose numbered children are the versions, such as models/food. The newest that loads is "
        "served; a new one takes over without a pause, and removing it rolls back.",
    ),
    "model_name": Flag(str, "", "Name that callers use.  [default: the name of the base path's directory]"),
    "model_config_file": Flag(
        Path,
        None,
        "In place of both: a ModelServerConfig as text, with several models, version policies and labels.",
    ),
    "model_config_file_poll_wait_seconds": Flag(
        float, 0.0, "Seconds between two looks at that file; 0: only at the start."
    ),
    "allow_version_labels_for_unavailable_models": Flag(
        bool, False, "Let new labels name versions that are not loaded yet, as labels at the start do."
    ),
    "port": Flag(int, 8500, "gRPC port; 0 takes a free one and prints it."),
    "rest_api_port": Flag(
        int, 0, "Port of REST and of the demo page; 0: none, -1 takes a free one and prints it."
    ),
    "grpc_socket_path": Flag(str, "", "A Unix socket that takes gRPC calls too."),
    "grpc_channel_arguments": Flag(
        str, "", "Options of the gRPC server, such as grpc.max_connection_age_ms=2000,..."
    ),
    "grpc_max_threads": Flag(
        int, 256, "Calls of models that run or wait at once; beyond them callers get UNAVAILABLE."
    ),
    "ssl_config_file": Flag(Path, None, "TLS of the gRPC port: an SSLConfig as text, with the PEM texts."),
    "rest_api_timeout_in_ms": Flag(int, 30_000, "Milliseconds that a REST request may take."),
    "rest_api_enable_cors_support": Flag(bool, False, "Let pages of other origins ask the REST port."),
    "monitoring_config_file": Flag(
        Path, None, "Metrics for Prometheus on the REST port: a MonitoringConfig as text."
    ),
    "file_system_poll_wait_seconds": Flag(float, 1.0, "Seconds between two looks for new versions."),
    "enable_batching": Flag(
        bool,
        False,
        "Merge requests of all models, by --batching_parameters_file or TensorFlow Serving's defaults. "
        "Without it those of hubhead's bundles are merged as is fastest, and no others.",
    ),
    "batching_parameters_file": Flag(Path, None, "BatchingParameters as text; needs --enable_batching."),
    "enable_per_model_batching_parameters": Flag(
        bool, False, f"Let {BATCHING_FILE} in a version's directory go before that file."
    ),
    "enable_model_warmup": Flag(bool, True, "Run a version's warm-up requests before it serves."),
    "num_request_iterations_for_warmup": Flag(int, 1, "How often each of them runs."),
    "enable_serialization_as_tensor_content": Flag(
        bool, False, "Answer with the raw bytes of tensors in place of their values."
    ),
    "enable_grpc_healthcheck_service": Flag(bool, True, without_effect="the health service is always on"),
    "enable_signature_method_name_check": Flag(
        bool, False, without_effect="Classify and Regress look at the tensors, not at the method's name"
    ),
    "rest_api_num_threads": Flag(int, 0, without_effect="the REST port has an event loop"),
    "num_load_threads": Flag(int, 0, without_effect=_LOADING),
    "num_unload_threads": Flag(int, 0, without_effect=_LOADING),
    "max_num_load_retries": Flag(int, 5, without_effect=_LOADING),
    "load_retry_interval_micros": Flag(int, 60_000_000, without_effect=_LOADING),
    "flush_filesystem_caches": Flag(bool, True, without_effect="no cache of the file system is kept"),
    "saved_model_tags": Flag(str, "serve", without_effect="the graph with the tag serve is loaded"),
    "platform_config_file": Flag(Path, None, without_effect="there is one platform, tensorflow"),
    "tensorflow_session_parallelism": Flag(int, 0, without_effect=_THREADS),
    "tensorflow_intra_op_parallelism": Flag(int, 0, without_effect=_THREADS),
    "tensorflow_inter_op_parallelism": Flag(int, 0, without_effect=_THREADS),
    "tensorflow_session_config_file": Flag(Path, None, without_effect=_THREADS),
    "thread_pool_factory_config_file": Flag(Path, None, without_effect=_THREADS),
    "per_process_gpu_memory_fraction": Flag(float, 0.0, without_effect=_CPU),
    "xla_cpu_compilation_enabled": Flag(bool, False, without_effect="TensorFlow decides about XLA"),
    "xla_gpu_compilation_enabled": Flag(bool, False, without_effect=_CPU),
    "mixed_precision": Flag(str, "", without_effect=_BUILD),
    "skip_initialize_tpu": Flag(bool, False, without_effect=_CPU),
    "use_alts_credentials": Flag(bool, False, without_effect="TLS comes from --ssl_config_file"),
    "enable_profiler": Flag(bool, True, without_effect="there is no profiler service"),
    "prefer_tflite_model": Flag(bool, False, without_effect=_BUILD),
    "num_tflite_pools": Flag(int, 1, without_effect=_BUILD),
    "num_tflite_interpreters_per_pool": Flag(int, 1, without_effect=_BUILD),
    "remove_unused_fields_from_bundle_metagraph": Flag(bool, True, without_effect=_BUILD),
}


def without_effect(given: Iterable[str]) -> list[str]:
    """A line about each flag of a command line that is without effect."""
    reasons = {name: FLAGS[name].without_effect for name in given if name in FLAGS}
    return [f"--{name} is without effect: {reason}." for name, reason in reasons.items() if reason]


def settings_from(values: Mapping[str, Any]) -> ServerSettings:
    """The settings of a command line, its files read.

    Args:
        values: of every flag, given or not.

    Raises:
        InputError: flags that do not go together, or a file that cannot be used.
    """
    from serving.server.config import files

    file = values["batching_parameters_file"]
    if file and not values["enable_batching"]:
        raise InputError(
            "--batching_parameters_file needs --enable_batching.", remedy="Add --enable_batching."
        )
    if values["model_config_file"] and (values["model_base_path"] or values["model_name"]):
        raise InputError(
            "--model_config_file names the models itself.",
            remedy="Leave out --model_base_path and --model_name, or the file.",
        )
    rest_port = values["rest_api_port"]
    if rest_port > 0 and rest_port == values["port"]:
        raise InputError(
            "--rest_api_port cannot be the same as --port.", remedy="Give REST a port of its own."
        )
    monitoring, certificates = values["monitoring_config_file"], values["ssl_config_file"]
    taken = {name: values[name] for name in ServerSettings.__dataclass_fields__ if name in values}
    taken |= {
        "grpc_channel_arguments": files.parse_channel_arguments(values["grpc_channel_arguments"]),
        "rest_api_port": None if rest_port == 0 else max(rest_port, 0),
        "certificates": files.read_certificates(certificates) if certificates else None,
        "metrics_path": files.read_monitoring(monitoring) if monitoring else "",
        "batching": files.read_batching(file) if file else Batching() if values["enable_batching"] else None,
    }
    return ServerSettings(**taken)
