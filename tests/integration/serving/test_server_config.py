"""Several models, policies, labels, configuration files, TLS, metrics and health of the local server."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import protos
from serving.commands.serve import serve
from serving.errors import InputError, OutputError
from serving.server import ServerSettings, start
from serving.server.config.files import (
    parse_channel_arguments,
    read_batching,
    read_certificates,
    read_models,
    read_monitoring,
)
from serving.server.config.flags import FLAGS
from serving.server.config.settings import BatchingParameters, ModelSettings, VersionPolicy
from tests.support.fake_model import (
    LIMIT,
    FakeModelLoader,
    eventually,
    free_port,
    get_current_version,
    write_fake_model,
)

pytestmark = pytest.mark.server


def format_entry(name: str, base: Path, text: str = "") -> str:
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {text} }}'


def write_config(path: Path, *entries: str) -> Path:
    staged = path.with_suffix(".new")
    staged.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    return staged.rename(path)


def request(name: str = "a", *, version: int | None = None, label: str = "") -> Any:
    message = protos.PredictRequest()
    message.model_spec.name = name
    if version is not None:
        message.model_spec.version.value = version
    if label:
        message.model_spec.version_label = label
    message.inputs["x"].dtype = 1
    message.inputs["x"].tensor_shape.dim.add(size=1)
    message.inputs["x"].float_val.append(1.0)
    return message


def call_and_get_version(channel: grpc.Channel, **spec: Any) -> int:
    call = channel.unary_unary(
        protos.PREDICT, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
    )
    return int(call(request(**spec), timeout=LIMIT).model_spec.version.value)


def call_expecting_error(channel: grpc.Channel, **spec: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call_and_get_version(channel, **spec)
    return caught.value.code().name, caught.value.details()


def reload_config(channel: grpc.Channel, text: str) -> Any:
    from google.protobuf import text_format

    message = protos.ReloadConfigRequest()
    text_format.Parse(text, message.config)
    call = channel.unary_unary(
        protos.RELOAD_CONFIG,
        protos.ReloadConfigRequest.SerializeToString,
        protos.ReloadConfigResponse.FromString,
    )
    return call(message, timeout=LIMIT)


def reload_expecting_error(channel: grpc.Channel, text: str) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        reload_config(channel, text)
    return caught.value.code().name, caught.value.details()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return the base path of model a, with versions 1 to 3."""
    for version in (1, 2, 3):
        write_fake_model(tmp_path / "a" / str(version))
    return tmp_path / "a"


def start_server(models: Sequence[ModelSettings] = (), **more: Any) -> Any:
    more.setdefault("file_system_poll_wait_seconds", 0.05)
    return start(ServerSettings(models=tuple(models), port=0, **more), loader=FakeModelLoader())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(), {3}),
        (VersionPolicy(latest=2), {2, 3}),
        (VersionPolicy(latest=0), {1, 2, 3}),
        (VersionPolicy(specific=(1, 3)), {1, 3}),
        (VersionPolicy(specific=(1, 9)), {1}),
    ],
)
@pytest.mark.protocol("versions.policy")
def test_version_policy_selects_the_served_versions(
    base: Path, policy: VersionPolicy, expected: set[int]
) -> None:
    with (
        start_server([ModelSettings("a", base, policy)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        for version in (1, 2, 3):
            if version in expected:
                assert call_and_get_version(channel, version=version) == version
            else:
                words = f"Servable not found for request: Specific(a, {version})"
                assert call_expecting_error(channel, version=version) == ("NOT_FOUND", words)
        assert call_and_get_version(channel) == max(expected)


@pytest.mark.protocol("versions.missing-base")
def test_missing_base_path_of_one_model_does_not_delay_another(base: Path, tmp_path: Path) -> None:
    write_fake_model(tmp_path / "b" / "1")
    models = [ModelSettings("a", base), ModelSettings("b", tmp_path / "b")]
    with start_server(models) as server, grpc.insecure_channel(f"localhost:{server.port}") as channel:
        shutil.rmtree(base)
        write_fake_model(tmp_path / "b" / "2")
        eventually(lambda: call_and_get_version(channel, name="b") == 2)
        assert call_and_get_version(channel, name="a") == 3


@pytest.mark.protocol("versions.partial")
def test_directory_that_is_still_being_copied_is_not_loaded(base: Path) -> None:
    loader = FakeModelLoader()
    settings = ServerSettings(base, port=0, file_system_poll_wait_seconds=0.1)
    with start(settings, loader=loader) as server:
        (base / "4" / "variables").mkdir(parents=True)
        attempts = loader.attempts
        copied = base / "4" / "variables" / "variables.data-00000-of-00001"
        for size in range(1, 12):
            copied.write_bytes(b"x" * size)
            time.sleep(0.05)
        assert loader.attempts == attempts
        assert server.manager.models["a"].states().get(4, None) is None or (
            server.manager.models["a"].states()[4].state == "START"
        )
        shutil.copy(base / "3" / "saved_model.pb", base / "4" / "saved_model.pb")
        eventually(lambda: get_current_version(server) == 4)


@pytest.mark.protocol("error.label-unloaded", "labels.available")
def test_version_labels_select_versions_and_move_on_reload(base: Path) -> None:
    model = ModelSettings("a", base, VersionPolicy(specific=(1, 2)), {"stable": 1})
    flag = {"allow_version_labels_for_unavailable_models": True}
    with (
        start_server([model], **flag) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        assert call_and_get_version(channel, label="stable") == 1
        assert call_expecting_error(channel, label="canary") == (
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        )
        policy = "model_version_policy { specific { versions: 1 versions: 2 versions: 3 } }"
        labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 3 }'
        reload_config(channel, f"model_config_list {{ {format_entry('a', base, policy + labels)} }}")
        assert call_and_get_version(channel, label="canary") == 3
        assert call_and_get_version(channel, label="stable") == 1
        moved = 'version_labels { key: "stable" value: 9 }'
        assert reload_expecting_error(
            channel, f"model_config_list {{ {format_entry('a', base, policy + moved)} }}"
        ) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 9 of model a, which is not currently available for inference",
        )
        assert call_and_get_version(channel, label="stable") == 1


@pytest.mark.protocol("labels.available")
def test_version_labels_at_the_start_require_the_flag(base: Path) -> None:
    with pytest.raises(InputError, match=r"assign label to version 3 .*--allow_version_labels"):
        start_server([ModelSettings("a", base, labels={"stable": 3})])


@pytest.mark.protocol("reload.replaces")
def test_reload_replaces_the_model_list_and_waits_for_new_models(base: Path, tmp_path: Path) -> None:
    write_fake_model(tmp_path / "b" / "7")
    with (
        start_server([ModelSettings("a", base)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        response = reload_config(channel, f"model_config_list {{ {format_entry('b', tmp_path / 'b')} }}")
        assert response.status.error_code == 0
        assert call_and_get_version(channel, name="b") == 7
        assert call_expecting_error(channel, name="a") == (
            "NOT_FOUND",
            "Servable not found for request: Latest(a)",
        )


@pytest.mark.protocol("error.reload", "reload.list-alone")
def test_invalid_reload_changes_nothing(base: Path) -> None:
    with (
        start_server([ModelSettings("a", base)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        lists = {
            f"{format_entry('a', base)} {format_entry('a', base)}": (
                "INVALID_ARGUMENT",
                "Illegal to list model a multiple times in config list",
            ),
            'config { name: "a" base_path: "models/a" }': (
                "INVALID_ARGUMENT",
                "Expected model a to have an absolute path or URI; got base_path()=models/a",
            ),
            f'config {{ name: "a" base_path: "{base}" model_platform: "other" }}': (
                "INVALID_ARGUMENT",
                "Illegal to change a model's platform. For model a platform was tensorflow "
                "and new platform requested is other",
            ),
        }
        for text, expected in lists.items():
            assert reload_expecting_error(channel, f"model_config_list {{ {text} }}") == expected
        code, details = reload_expecting_error(channel, "")
        assert code == "FAILED_PRECONDITION"
        assert details.startswith("Cannot transition to requested config.")
        assert call_and_get_version(channel) == 3


def test_reload_with_a_model_that_does_not_load_fails_with_the_reason(base: Path, tmp_path: Path) -> None:
    (write_fake_model(tmp_path / "b" / "1") / "broken").touch()
    with (
        start_server([ModelSettings("a", base)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        code, details = reload_expecting_error(
            channel, f"model_config_list {{ {format_entry('b', tmp_path / 'b')} }}"
        )
        assert code == "UNKNOWN"
        assert "broken on purpose" in details


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "file", "no model", "other version", "zero byte", "broken"]
)
def test_reload_to_a_path_without_versions_is_rejected_at_once_and_changes_nothing(
    base: Path, tmp_path: Path, kind: str
) -> None:
    target, policy = tmp_path / "b", ""
    if kind in ("empty", "no model"):
        (target / ("1" if kind == "no model" else ".")).mkdir(parents=True)
    elif kind == "file":
        target.touch()
    elif kind in ("other version", "broken"):
        directory = write_fake_model(target / "1")
        if kind == "broken":
            (directory / "broken").touch()
        else:
            policy = "model_version_policy { specific { versions: 2 } }"
    elif kind == "zero byte":
        target = tmp_path / "b\\000"
    with (
        start_server([ModelSettings("a", base), ModelSettings("c", base)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        before = server.manager.models
        for name in ("a", "new"):
            started = time.monotonic()
            code, details = reload_expecting_error(
                channel, f"model_config_list {{ {format_entry(name, target, policy)} }}"
            )
            assert time.monotonic() - started < LIMIT / 3
            assert code == ("UNKNOWN" if kind == "broken" else "FAILED_PRECONDITION")
            assert f"model {name} " in details.lower()
            assert server.manager.models == before
            assert call_and_get_version(channel, name="a") == call_and_get_version(channel, name="c") == 3


def test_changed_configuration_file_is_applied(base: Path, tmp_path: Path) -> None:
    write_fake_model(tmp_path / "b" / "1")
    file = write_config(tmp_path / "models.config", format_entry("a", base))
    with (
        start_server(model_config_file=file, model_config_file_poll_wait_seconds=0.05) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        assert call_and_get_version(channel, name="a") == 3
        file.write_text("no config {")
        time.sleep(0.3)
        assert call_and_get_version(channel, name="a") == 3
        write_config(
            file,
            format_entry("a", base, "model_version_policy { all {} }"),
            format_entry("b", tmp_path / "b"),
        )
        eventually(lambda: set(server.manager.models) == {"a", "b"})
        assert call_and_get_version(channel, name="b") == 1
        eventually(lambda: server.manager.models["a"].is_available(1))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_configuration_files_are_read_as_editors_write_them(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "model.config"
    text = 'model_config_list {\r\n  config { name: "crème" base_path: "/x" }\r\n}'
    file.write_bytes(text.encode(encoding))
    assert [model.name for model in read_models(file)] == ["crème"]
    file.write_bytes(b"# caf\xe9\nmodel_config_list {}")
    with pytest.raises(InputError, match=r"model\.config, line 1: byte 6 is not UTF-8"):
        read_models(file)


@pytest.mark.protocol("batching.sizes")
def test_errors_in_configuration_files_name_the_place(tmp_path: Path) -> None:
    file = tmp_path / "some.config"
    with pytest.raises(InputError, match="cannot be read"):
        read_models(file)
    for text, message in (
        ("model_config_list {\n  confi {}\n}", r"not a ModelServerConfig in text format: 2:"),
        ('model_config_list { config { name: "a" base_path: "x" } }', "absolute path"),
        ('model_config_list { config { base_path: "/x" } }', "has no name"),
        ('model_config_list { config { name: "a" base_path: "gs://x" } }', "Only local paths are supported"),
        (
            'model_config_list { config { name: "a" base_path: "/x" model_platform: "y" } }',
            "platform y is not supported",
        ),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_models(file)
    for text, message in (
        ("allowed_batch_sizes: 4 allowed_batch_sizes: 1", "must increase"),
        ("allowed_batch_sizes: 4", "they must be the same"),
        ("max_batch_size { value: 0 }", "at least 1"),
        ("max_batch_size { value: 4 } max_execution_batch_size { value: 8 }", "larger than"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_batching(file)
    file.write_text('server_key: "key.pem"')
    with pytest.raises(InputError, match="PEM text itself"):
        read_certificates(file)
    with pytest.raises(InputError, match="not of the form key=value"):
        parse_channel_arguments("grpc.max_connection_age_ms")


def test_configuration_files_are_parsed(tmp_path: Path) -> None:
    file = tmp_path / "some.config"
    file.write_text(
        "max_batch_size { value: 32 } batch_timeout_micros { value: 500 } max_enqueued_batches { value: 7 } "
        "num_batch_threads { value: 2 } allowed_batch_sizes: [1, 8, 32] pad_variable_length_inputs: true "
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 16 }"
    )
    assert read_batching(file) == BatchingParameters(32, 500, 7, 2, (1, 8, 32), True, True, 16)
    file.write_text("prometheus_config { enable: true }")
    assert read_monitoring(file) == "/monitoring/prometheus/metrics"
    file.write_text('prometheus_config { enable: true path: "/m" }')
    assert read_monitoring(file) == "/m"
    file.write_text("")
    assert read_monitoring(file) == ""
    assert parse_channel_arguments("grpc.a=1,grpc.b=x") == (("grpc.a", 1), ("grpc.b", "x"))
    labels = 'version_labels { key: "stable" value: 2 } model_version_policy { latest { num_versions: 3 } }'
    write_config(file, format_entry("a", Path("/a"), labels))
    assert read_models(file) == (ModelSettings("a", Path("/a"), VersionPolicy(3), {"stable": 2}),)


def write_certificates(directory: Path) -> protos.Message:
    """Write a self-signed certificate of localhost; return it with its key."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return protos.SSLConfig(server_key=key.read_text(), server_cert=cert.read_text())


@pytest.mark.needs("openssl")
@pytest.mark.protocol("process.tls")
def test_tls_accepts_only_clients_that_trust_the_certificate(base: Path, tmp_path: Path) -> None:
    own = write_certificates(tmp_path)
    with start_server([ModelSettings("a", base)], certificates=own, rest_api_port=0) as server:
        with urllib.request.urlopen(f"http://localhost:{server.rest_port}/v1/models/a") as response:
            assert response.status == 200  # REST never uses TLS
        address = f"localhost:{server.port}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(own.server_cert.encode())) as channel:
            assert call_and_get_version(channel) == 3
        with grpc.insecure_channel(address) as channel:
            assert call_expecting_error(channel)[0] == "UNAVAILABLE"


@pytest.mark.protocol("process.socket")
def test_grpc_over_a_unix_socket(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with start_server([ModelSettings("a", base)], grpc_socket_path=str(path)) as server:
        assert server.port
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert call_and_get_version(channel) == 3


@pytest.mark.protocol("process.reflection")
def test_grpc_reflection_lists_the_services(base: Path) -> None:
    with (
        start_server([ModelSettings("a", base)]) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=protos.PREDICTION_SERVICE),
        ]
        listed, file = stub.ServerReflectionInfo(iter(asked), timeout=LIMIT)
        names = {service.name for service in listed.list_services_response.service}
        assert {protos.PREDICTION_SERVICE, protos.MODEL_SERVICE} <= names
        assert b"Predict" in file.file_descriptor_response.file_descriptor_proto[0]


def get_health(channel: grpc.Channel, service: str = "") -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


@pytest.mark.protocol("process.health")
def test_health_probe_detects_a_hanging_model_and_its_recovery(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.server.health.PROBE_AFTER_SECONDS", 0.2)
    loader = FakeModelLoader()
    settings = ServerSettings(base, port=0, file_system_poll_wait_seconds=0.05)
    with (
        start(settings, loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        for service in ("", "ModelService", "PredictionService", protos.PREDICTION_SERVICE):
            assert get_health(channel, service) == "SERVING"
        with server.manager.use(protos.ModelSpec(name="a")) as servable:
            servable.health_probe.request = request("a")
        loader.models[3].gate.clear()  # the model hangs
        eventually(lambda: get_health(channel) == "NOT_SERVING")
        loader.models[3].gate.set()
        eventually(lambda: get_health(channel) == "SERVING")


def test_health_is_not_serving_while_the_server_drains(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    server = start(ServerSettings(base, port=0), loader=loader)
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT)
        assert next(watching).status == 1
        versions: list[Any] = []
        caller = threading.Thread(target=lambda: versions.append(call_and_get_version(channel)))
        caller.start()
        eventually(lambda: loader.models[3].running == 1)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert next(watching).status == 2
        loader.models[3].gate.set()
        caller.join(LIMIT)
        stopper.join(LIMIT)
        assert versions == [3]


def test_metrics_have_tensorflow_servings_names(base: Path) -> None:
    path = "/monitoring/prometheus/metrics"
    with (
        start_server([ModelSettings("a", base)], rest_api_port=0, metrics_path=path) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        call_and_get_version(channel)
        call_expecting_error(channel, version=9)
        with urllib.request.urlopen(f"http://localhost:{server.rest_port}{path}") as response:
            text = response.read().decode()
        assert ':tensorflow:serving:request_count{model_name="a",status="OK"} 1.0' in text
        assert ':tensorflow:serving:request_count{model_name="a",status="NOT_FOUND"} 1.0' in text
        latency = ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="GRPC",le="10.0"'
        assert latency in text
        assert re.search(r":tensorflow:serving:request_latency_count\{.*\} 2\.0", text)


@pytest.mark.protocol("process.flags")
def test_all_flags_of_tensorflow_model_server_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.k8s.checks_serving import SERVER_SETTINGS, SERVER_SWITCHES

    assert FLAGS.keys() == (SERVER_SETTINGS | SERVER_SWITCHES) - {"version"}
    seen: list[ServerSettings] = []
    monkeypatch.setattr(
        "serving.server.serve_until_signalled", lambda settings, ready, loader: seen.append(settings)
    )
    text = {int: "3", float: "0.5", bool: "true", str: "", Path: "nowhere"}
    for name, flag in FLAGS.items():
        given = [f"--{name}={text[flag.kind]}"] if flag.kind is not bool else [f"--{name}"]
        result = CliRunner().invoke(serve, given)
        assert result.exit_code == 0 or isinstance(result.exception, InputError), (name, result.output)
        assert (f"--{name} has no effect: " in result.output) == bool(flag.ignored_because), name


def test_enable_batching_without_a_file_uses_tensorflow_servings_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[ServerSettings] = []
    monkeypatch.setattr(
        "serving.server.serve_until_signalled", lambda settings, ready, loader: seen.append(settings)
    )
    for flags in ([], ["--enable_batching"]):
        assert CliRunner().invoke(serve, ["--model_base_path", "m", *flags]).exit_code == 0
    assert [settings.batching for settings in seen] == [None, BatchingParameters()]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batching_parameters_file", "x"], "requires --enable_batching"),
        (["--model_config_file", "x", "--model_name", "a"], "cannot be combined with --model_base_path"),
        (["--port", "8500", "--rest_api_port", "8500"], "--rest_api_port and --port are both 8500"),
        (["--ssl_config_file", "/none/such"], "cannot be read"),
        (["--grpc_channel_arguments", "a=1,b"], "'b' is not of the form key=value"),
        (["--grpc_channel_arguments", "a=9999999999"], "a=9999999999 has more than 32 bits"),
        (["--grpc_channel_arguments", "é=1"], "'é=1' is not of the form key=value"),
    ],
)
@pytest.mark.protocol("batching.needs-flag")
def test_contradicting_flags_are_an_error_with_a_remedy(flags: list[str], message: str) -> None:
    result = CliRunner().invoke(serve, flags)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_channel_arguments_are_numbers_or_texts() -> None:
    found = parse_channel_arguments("a=-5,,b=--5,c=5x,d=")
    assert found == (("a", -5), ("b", "--5"), ("c", "5x"), ("d", ""))


def test_invalid_certificates_are_not_reported_as_a_port_in_use(base: Path) -> None:
    broken = "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n"
    certificates = protos.SSLConfig(server_key=broken, server_cert=broken)
    with pytest.raises(InputError, match="--ssl_config_file cannot be used"):
        start(ServerSettings(base, port=0, certificates=certificates), loader=FakeModelLoader())


def test_rest_port_in_use_is_an_error_with_a_remedy(base: Path) -> None:
    port = free_port()
    with (
        start_server([ModelSettings("a", base)], rest_api_port=port),
        pytest.raises(OutputError, match=rf"Port {port} .*--rest_api_port"),
    ):
        start_server([ModelSettings("a", base)], rest_api_port=port)
