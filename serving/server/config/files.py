"""The configuration files of tensorflow_model_server, as text protos, into settings.

A file that cannot be used is an InputError that says where it is wrong. What comes by
HandleReloadConfigRequest goes through the same functions, as a Refusal with TensorFlow Serving's
code and text (model_servers/server_core.cc).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving import protos
from serving.errors import InputError
from serving.server.config.settings import Batching, Certificates, ModelSettings, Policy
from serving.server.status_error import Refusal, invalid

PLATFORM = "tensorflow"
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

_LIST = "model_config_list"


def read_text(path: Path, message: protos.Message) -> protos.Message:
    """A text proto from a file into a message.

    Raises:
        InputError: the file cannot be read, or is no such message; with line and column.
    """
    try:
        return parse_text(path.read_text("utf-8"), message, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def parse_text(text: str, message: protos.Message, where: Path | str) -> protos.Message:
    """A text proto into a message; `where` it stands is told.

    Raises:
        InputError: it is no such message; with line and column.
    """
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        kind = message.DESCRIPTOR.name
        raise InputError(f"{where} is no {kind} in text format: {error}", remedy="Mend that line.") from error


def read_models(path: Path) -> tuple[ModelSettings, ...]:
    """The models of a --model_config_file.

    Raises:
        InputError: the file cannot be used.
    """
    config = read_text(path, protos.ModelServerConfig())
    try:
        found = models(config)
        check_change((), found)
        return found
    except Refusal as error:
        raise InputError(f"{path}: {error.details}") from error


def models(config: protos.Message) -> tuple[ModelSettings, ...]:
    """The models of a ModelServerConfig.

    Raises:
        Refusal: it is no list of models, names one twice, or has a relative path.
    """
    if config.WhichOneof("config") not in (None, _LIST):
        raise invalid("Only model_config_list is supported, no custom_model_config.")
    found: dict[str, ModelSettings] = {}
    for entry in config.model_config_list.config:
        if entry.name in found:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        if not entry.name:
            raise invalid("Every model needs a name.")
        if "://" in entry.base_path:
            raise invalid(
                f"Model {entry.name}: {entry.base_path} is not on this machine; mount it, or copy it here."
            )
        if not entry.base_path.startswith("/"):
            raise invalid(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
        found[entry.name] = ModelSettings(
            entry.name,
            Path(entry.base_path),
            _policy(entry),
            dict(sorted(entry.version_labels.items())),
            entry.model_platform or PLATFORM,
        )
    return tuple(found.values())


def _policy(entry: protos.Message) -> Policy:
    """As file_system_storage_path_source.proto has it: the default is latest { num_versions: 1 }."""
    policy = entry.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return Policy(latest=0)
    if kind == "specific":
        if not policy.specific.versions:
            raise invalid(f"Model {entry.name}: specific names no versions.")
        return Policy(specific=tuple(sorted(set(policy.specific.versions))))
    return Policy(latest=policy.latest.num_versions or 1)


def check_change(old: Iterable[ModelSettings], new: Iterable[ModelSettings]) -> None:
    """Refuse a model that changes its platform, or has one that is not here.

    Raises:
        Refusal: one does.
    """
    platforms = {model.name: model.platform for model in old}
    for model in new:
        before = platforms.get(model.name, model.platform)
        if before != model.platform:
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was {before} "
                f"and new platform requested is {model.platform}"
            )
        if model.platform != PLATFORM:
            raise invalid(f"Model {model.name}: there is no platform {model.platform} here, only {PLATFORM}.")


def read_batching(path: Path) -> Batching:
    """Of a --batching_parameters_file, or of a version's own.

    Raises:
        InputError: the file cannot be used.
    """
    message = read_text(path, protos.BatchingParameters())
    batching = Batching(
        **{
            name: getattr(message, name).value
            for name in (
                "max_batch_size",
                "batch_timeout_micros",
                "max_enqueued_batches",
                "num_batch_threads",
                "enable_large_batch_splitting",
                "max_execution_batch_size",
            )
            if message.HasField(name)
        },
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
    )
    _check_batching(path, batching)
    return batching


def _check_batching(path: Path, batching: Batching) -> None:
    """As bundle_factory_util.cc does."""
    sizes = batching.allowed_batch_sizes
    least: dict[str, Any] = {"max_batch_size": 1, "batch_timeout_micros": 0, "max_enqueued_batches": 1}
    for name, lowest in least.items():
        if getattr(batching, name) < lowest:
            raise InputError(f"{path}: {name} must be at least {lowest}, not {getattr(batching, name)}.")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
        raise InputError(f"{path}: allowed_batch_sizes must increase; they are {list(sizes)}.")
    if sizes and sizes[-1] != batching.max_batch_size:
        raise InputError(
            f"{path}: the last of allowed_batch_sizes is {sizes[-1]}, and max_batch_size is "
            f"{batching.max_batch_size}; they must be the same."
        )
    if batching.max_execution_batch_size > batching.max_batch_size:
        raise InputError(f"{path}: max_execution_batch_size is larger than max_batch_size.")


def read_monitoring(path: Path) -> str:
    """The path of the metrics on the REST port, of a --monitoring_config_file; "" where they are off.

    Raises:
        InputError: the file cannot be used.
    """
    prometheus = read_text(path, protos.MonitoringConfig()).prometheus_config
    return (prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else ""


def read_certificates(path: Path) -> Certificates:
    """Of a --ssl_config_file.

    Raises:
        InputError: the file cannot be used, or lacks key or certificate.
    """
    message = read_text(path, protos.SSLConfig())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(message, name):
            raise InputError(f"{path}: {name} must hold the PEM text itself, not a path.")
    return Certificates(message.server_key, message.server_cert, message.custom_ca, message.client_verify)


def parse_channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """Of --grpc_channel_arguments, such as `grpc.max_connection_age_ms=2000`.

    Raises:
        InputError: a part is no key=value.
    """
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise InputError(f"--grpc_channel_arguments: {part!r} is no key=value.")
        found.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(found)
