"""Readers of tensorflow_model_server's configuration files, which are protos in text format.

A file that cannot be used raises an InputError that names the place of the mistake. The configuration of a
HandleReloadConfigRequest is checked by the same functions; its errors are StatusErrors with the codes and
texts of TensorFlow Serving (model_servers/server_core.cc).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format

from serving import protos
from serving.errors import InputError
from serving.server.config.settings import BatchingParameters, ModelSettings, VersionPolicy
from serving.server.status_error import StatusError, invalid_argument
from serving.storage.files import read_text

PLATFORM = "tensorflow"
_log = logging.getLogger(__name__)

_INTEGER = re.compile(r"-?[0-9]{1,4000}")

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


def read_text_proto(path: Path, message: protos.Message) -> protos.Message:
    """Read a file in text format into a message, and return the message.

    Raises:
        InputError: the file cannot be read, or is not such a message; names line and column.
    """
    text = read_text(path)
    try:
        return parse_text_proto(text, message, path)
    except InputError as error:  # in the words of TensorFlow Serving too, which tools look for
        _log.error("Error parsing text-format %s: %s", message.DESCRIPTOR.full_name, error.__cause__)
        raise


def parse_text_proto(text: str, message: protos.Message, source: Path | str) -> protos.Message:
    """Parse a text in text format into a message, and return the message.

    Args:
        text: the message in text format.
        message: empty message to fill.
        source: path or name of the text, for errors.

    Raises:
        InputError: the text is not such a message; names line and column.
    """
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        kind = message.DESCRIPTOR.name
        raise InputError(
            f"{source} is not a {kind} in text format: {error}", remedy="Correct that line."
        ) from error


def read_models(path: Path) -> tuple[ModelSettings, ...]:
    """Return the models of a --model_config_file.

    Raises:
        InputError: the file cannot be used.
    """
    config = read_text_proto(path, protos.ModelServerConfig())
    try:
        found = parse_models(config)
        check_platforms((), found)
        return found
    except StatusError as error:
        raise InputError(f"{path}: {error.details}") from error


def parse_models(config: protos.Message) -> tuple[ModelSettings, ...]:
    """Return the models of a ModelServerConfig.

    Raises:
        StatusError: it is not a list of models, names a model twice, or has a relative path.
    """
    if config.WhichOneof("config") not in (None, "model_config_list"):
        raise invalid_argument("custom_model_config is not supported; use model_config_list.")
    found: dict[str, ModelSettings] = {}
    for entry in config.model_config_list.config:
        if entry.name in found:
            raise invalid_argument(f"Illegal to list model {entry.name} multiple times in config list")
        if not entry.name:
            raise invalid_argument("A model in the config list has no name.")
        if "://" in entry.base_path:
            raise invalid_argument(
                f"Model {entry.name}: the base path {entry.base_path} is a URL. "
                "Only local paths are supported: mount or copy the directory."
            )
        if not entry.base_path.startswith("/"):
            raise invalid_argument(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
        found[entry.name] = ModelSettings(
            entry.name,
            Path(entry.base_path),
            _parse_policy(entry),
            dict(sorted(entry.version_labels.items())),
            entry.model_platform or PLATFORM,
        )
    return tuple(found.values())


def _parse_policy(entry: protos.Message) -> VersionPolicy:
    """Return the version policy of a ModelConfig.

    The default is latest { num_versions: 1 } (file_system_storage_path_source.proto).
    """
    policy = entry.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(latest=0)
    if kind == "specific":
        if not policy.specific.versions:
            raise invalid_argument(f"Model {entry.name}: the version policy `specific` lists no versions.")
        return VersionPolicy(specific=tuple(sorted(set(policy.specific.versions))))
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def check_platforms(old: Iterable[ModelSettings], new: Iterable[ModelSettings]) -> None:
    """Check that no model changes its platform, and that every platform is supported.

    Raises:
        StatusError: a model fails one of the checks.
    """
    platforms = {model.name: model.platform for model in old}
    for model in new:
        before = platforms.get(model.name, model.platform)
        if before != model.platform:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was {before} "
                f"and new platform requested is {model.platform}"
            )
        if model.platform != PLATFORM:
            raise invalid_argument(
                f"Model {model.name}: platform {model.platform} is not supported, only {PLATFORM}."
            )


def read_batching(path: Path) -> BatchingParameters:
    """Return the parameters of a --batching_parameters_file, or of a version's batching_params.pbtxt.

    Raises:
        InputError: the file cannot be used.
    """
    message = read_text_proto(path, protos.BatchingParameters())
    # Most fields are wrapper messages, whose absence means TensorFlow Serving's default.
    values = {field.name: getattr(value, "value", value) for field, value in message.ListFields()}
    values.pop("thread_pool_name", None)
    values["allowed_batch_sizes"] = tuple(message.allowed_batch_sizes)
    batching = BatchingParameters(**values)
    _check_batching(path, batching)
    return batching


def _check_batching(path: Path, batching: BatchingParameters) -> None:
    """Check the parameters as bundle_factory_util.cc does.

    Raises:
        InputError: a value is out of range, or two contradict each other.
    """
    sizes = batching.allowed_batch_sizes
    for name, lowest in (("max_batch_size", 1), ("batch_timeout_micros", 0), ("max_enqueued_batches", 1)):
        if getattr(batching, name) < lowest:
            raise InputError(f"{path}: {name} must be at least {lowest}, not {getattr(batching, name)}.")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
        raise InputError(f"{path}: allowed_batch_sizes must increase; found {list(sizes)}.")
    if sizes and sizes[-1] != batching.max_batch_size:
        raise InputError(
            f"{path}: the last of allowed_batch_sizes is {sizes[-1]}, and max_batch_size is "
            f"{batching.max_batch_size}; they must be the same."
        )
    if batching.max_execution_batch_size > batching.max_batch_size:
        raise InputError(
            f"{path}: max_execution_batch_size is {batching.max_execution_batch_size}, which is larger than "
            f"max_batch_size, {batching.max_batch_size}."
        )


def read_monitoring(path: Path) -> str:
    """Return the metrics path that a --monitoring_config_file configures; "" if metrics are disabled.

    Raises:
        InputError: the file cannot be used.
    """
    prometheus = read_text_proto(path, protos.MonitoringConfig()).prometheus_config
    return (prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else ""


def read_certificates(path: Path) -> protos.Message:
    """Return the SSLConfig of a --ssl_config_file.

    Raises:
        InputError: the file cannot be used, or has no key or no certificate.
    """
    message = read_text_proto(path, protos.SSLConfig())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(message, name):
            raise InputError(f"{path}: {name} must be the PEM text itself, not a path.")
    return message


def parse_channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """Return the options in --grpc_channel_arguments, such as `grpc.max_connection_age_ms=2000`.

    Raises:
        InputError: an element is not of the form key=value in ASCII, or a number has more than 32 bits.
    """
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not key or not equals or not (part.isascii() and part.isprintable()):
            raise InputError(
                f"--grpc_channel_arguments: {part!r} is not of the form key=value.",
                remedy="Write KEY=VALUE,KEY=VALUE.",
            )
        number = int(value) if _INTEGER.fullmatch(value) else None
        if number is not None and not -(2**31) <= number < 2**31:
            raise InputError(
                f"--grpc_channel_arguments: {part} has more than 32 bits.",
                remedy="Give a number from -2147483648 to 2147483647.",
            )
        found.append((key, value if number is None else number))
    return tuple(found)
