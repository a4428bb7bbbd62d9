"""Commands that query a server, against a fake gRPC server: predict, status, loadtest."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from serving import protos
from serving.commands.loadtest import loadtest
from serving.commands.predict import predict, resolve_paths
from serving.commands.status import status
from serving.loadtest.figures import Result as Figures
from serving.loadtest.figures import Sample, percentile
from serving.loadtest.generator import Load, draw_arrivals
from serving.loadtest.report import render_page
from serving.protos import tensors
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server, free_port
from tests.support.html_assertions import CHROMIUM, HOSTILE, Page, check_self_contained, measure_page

pytestmark = pytest.mark.server


def images_of(request: Any) -> list[bytes]:
    return list(request.inputs["image_bytes"].string_val)


def answer_as_version_7(request: Any, _: grpc.ServicerContext) -> Any:
    response = answer_for(images_of(request))
    response.model_spec.version.value = 7
    return response


ECHO: dict[str, Answer] = {protos.PREDICT: answer_as_version_7}


def run(command: Any, *arguments: str, address: str = "localhost:1", **settings: Any) -> Result:
    runner = CliRunner(env={"COLUMNS": "250", "HUBHEAD_MODEL": "food"})
    return runner.invoke(command, [*arguments, "--server", address], **settings)


def records(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- predict ---------------------------------------------------------------------------------------------


@pytest.fixture
def photo_directory(tmp_path: Path) -> Path:
    for name in ("a.jpg", "deep/er/b.jpg", "deep/c.jpg", "deep/notes.txt", "wh?t.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_predict_expands_patterns_reads_lists_and_reports_the_version(photo_directory: Path) -> None:
    (photo_directory / "list").write_text(f"{photo_directory / 'a.jpg'}\n\n{photo_directory / 'gone.jpg'}\n")
    with fake_grpc_server(ECHO) as address:
        result = run(
            predict,
            f"{photo_directory}/deep/**/*.jpg",
            "--from_file",
            str(photo_directory / "list"),
            "--json",
            address=address,
        )
    found = records(result)
    names = [str(Path(record["photo"]).relative_to(photo_directory)) for record in found]
    assert names == ["deep/c.jpg", "deep/er/b.jpg", "a.jpg", "gone.jpg"]
    assert [record["status"] for record in found] == ["ok", "ok", "ok", "unreadable"]
    assert [record["version"] for record in found] == [7, 7, 7, None]


def test_existing_file_name_takes_precedence_over_a_pattern(photo_directory: Path) -> None:
    (photo_directory / "what.jpg").write_bytes(b"other")
    with fake_grpc_server(ECHO) as address:
        found = records(run(predict, str(photo_directory / "wh?t.jpg"), "--json", address=address))
    assert [record["photo"] for record in found] == [str(photo_directory / "wh?t.jpg")]


def test_pattern_without_a_match_is_an_error(photo_directory: Path) -> None:
    result = run(predict, f"{photo_directory}/*.png")
    assert "No file matches" in str(result.exception)


def test_predict_reads_one_photo_or_a_list_from_stdin(photo_directory: Path) -> None:
    with fake_grpc_server(ECHO) as address:
        [photo] = records(run(predict, "-", "--json", address=address, input=b"odd bytes"))
        listed = records(
            run(
                predict, "--from_file", "-", "--json", address=address, input=f"{photo_directory / 'a.jpg'}\n"
            )
        )
    assert (photo["photo"], photo["label"], photo["score"]) == ("-", None, 0.75)
    assert [record["photo"] for record in listed] == [str(photo_directory / "a.jpg")]


def test_predict_streams_many_photos_in_order(tmp_path: Path) -> None:
    names = []
    for number in range(100):
        names.append(str(tmp_path / f"{number:03}.jpg"))
        Path(names[-1]).write_bytes(b"bad" if number == 50 else b"good")
    (tmp_path / "list").write_text("\n".join(names))
    with fake_grpc_server(ECHO) as address:
        found = records(run(predict, "--from_file", str(tmp_path / "list"), "--json", address=address))
    assert [record["photo"] for record in found] == names
    assert [record["status"] for record in found].index("corrupt") == 50


@pytest.mark.parametrize(
    ("flags", "label", "version"),
    [(["--label", "stable"], "stable", None), (["--model_version", "4"], "", 4)],
)
def test_predict_requests_the_given_label_or_version_and_sends_headers(
    photo_directory: Path, flags: list[str], label: str, version: int | None
) -> None:
    seen: list[Any] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append((request.model_spec, dict(context.invocation_metadata())))
        return answer_as_version_7(request, context)

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        result = run(
            predict, str(photo_directory / "a.jpg"), *flags, "--header", "x-team=red", address=address
        )
    assert result.exit_code == 0, result.output
    [(spec, headers)] = seen
    assert spec.version_label == label
    assert (spec.version.value if spec.HasField("version") else None) == version
    assert headers["x-team"] == "red"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "Give photos"),
        (["-", "-"], "read once"),
        (["a.jpg", "--label", "x", "--model_version", "1"], "give one of them"),
        (["a.jpg", "--header", "x"], "NAME=VALUE"),
        (["a.jpg", "--tls_cert", __file__], "go together"),
    ],
)
def test_invalid_server_flags_are_a_usage_error(flags: list[str], text: str) -> None:
    result = run(predict, *flags)
    assert result.exit_code == 2, result.output
    assert text in result.stderr


@pytest.mark.needs("openssl")
def test_predict_over_mutual_tls(photo_directory: Path, tmp_path: Path) -> None:
    def make(name: str, *more: str) -> tuple[Path, Path]:
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name}"
        )
        subprocess.run(
            [*command.split(), *more, "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return key, certificate

    server_key, server_certificate = make("localhost", "-addext", "subjectAltName=DNS:localhost")
    client_key, client_certificate = make("caller")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server_certificate.read_bytes())],
        root_certificates=client_certificate.read_bytes(),
        require_client_auth=True,
    )
    with fake_grpc_server(ECHO, credentials=credentials) as address:
        photo = str(photo_directory / "a.jpg")
        ca = ["--tls_ca", str(server_certificate)]
        mine = ["--tls_cert", str(client_certificate), "--tls_key", str(client_key)]
        with_certificate = run(predict, photo, "--json", *ca, *mine, address=address)
        without_certificate = run(predict, photo, *ca, "--timeout", "5", address=address)
        plain_text = run(predict, photo, "--timeout", "5", address=address)
    assert records(with_certificate)[0]["label"] == "apple"
    assert without_certificate.exit_code == 1
    assert plain_text.exit_code == 1


# --- status ----------------------------------------------------------------------------------------------


def status_answer(*rows: tuple[int, str, str]) -> Answer:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = protos.GetModelStatusResponse()
        for version, state, message in rows:
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_message = message
        return response

    return answer


def metadata_answer(request: Any, _: grpc.ServicerContext) -> Any:
    declared = protos.SignatureDefMap()
    info = declared.signature_def["serving_default"].inputs["image_bytes"]
    info.dtype = tensors.DT_STRING
    info.tensor_shape.dim.add(size=-1)
    response = protos.GetModelMetadataResponse()
    response.model_spec.version.value = 3
    response.metadata["signature_def"].Pack(declared)
    return response


def test_status_shows_versions_and_signatures() -> None:
    answers = {
        protos.GET_MODEL_STATUS: status_answer((3, "AVAILABLE", ""), (2, "END", "[torn]")),
        protos.GET_MODEL_METADATA: metadata_answer,
    }
    with fake_grpc_server(answers) as address:
        table = run(status, address=address, standalone_mode=False)
        [record] = records(run(status, "--json", address=address))
    assert table.return_value == 0
    assert "AVAILABLE" in table.stdout
    assert "[torn]" in table.stdout
    assert "image_bytes string [?]" in table.stdout
    assert record["answering"] == 3
    assert record["versions"][1] == {"version": 2, "state": "END", "error": "[torn]"}
    assert record["signatures"]["serving_default"]["inputs"] == {
        "image_bytes": {"dtype": "string", "shape": [None]}
    }


def name_engine(request: Any, context: grpc.ServicerContext) -> Any:
    response = metadata_answer(request, context)
    response.metadata["hubhead_engine"].Pack(protos.StringValue(value="onnx"))
    response.metadata["hubhead_cpu"].Pack(protos.StringValue(value="AMD EPYC 7B13"))
    return response


@pytest.mark.parametrize(
    ("metadata", "engine", "cpu"),
    [(name_engine, "onnx", "AMD EPYC 7B13"), (metadata_answer, None, None)],
    ids=["hubhead serve", "TensorFlow Serving"],
)
def test_status_and_loadtest_name_the_engine_of_the_server_and_its_cpu(
    metadata: Answer, engine: str | None, cpu: str | None, photo_directory: Path
) -> None:
    answers = {
        protos.GET_MODEL_STATUS: status_answer((3, "AVAILABLE", "")),
        protos.GET_MODEL_METADATA: metadata,
        protos.PREDICT: answer_as_version_7,
    }
    out = photo_directory / "load.html"
    load = [str(photo_directory / "a.jpg"), "--rate", "20", "--seconds", "0.5", "--output", str(out)]
    with fake_grpc_server(answers) as address:
        [record] = records(run(status, "--json", address=address))
        table = run(status, address=address, standalone_mode=False)
        [measured] = records(run(loadtest, *load, "--json", address=address))
        summary = run(loadtest, *load, address=address)
    assert (record["engine"], record["cpu"]) == (measured["engine"], measured["cpu"]) == (engine, cpu)
    assert ("Engine of version 3: onnx on AMD EPYC 7B13" in table.stdout) is bool(engine)
    sentence = "The server runs onnx on AMD EPYC 7B13."
    assert (sentence in summary.stdout) is (sentence in out.read_text("utf-8")) is bool(engine)


def test_status_of_a_model_that_does_not_load_reports_the_error_and_exits_with_1() -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(food)")

    answers: dict[str, Answer] = {
        protos.GET_MODEL_STATUS: status_answer((3, "END", "does not load")),
        protos.GET_MODEL_METADATA: refuse,
    }
    with fake_grpc_server(answers) as address:
        result = run(status, address=address, standalone_mode=False)
    assert result.return_value == 1
    assert "does not load" in result.stdout
    assert "No version answers" in result.stdout


def test_status_wait_waits_for_a_server_to_start() -> None:
    port = free_port()
    answers = {
        protos.GET_MODEL_STATUS: status_answer((3, "AVAILABLE", "")),
        protos.GET_MODEL_METADATA: metadata_answer,
    }
    done = threading.Event()

    def later() -> None:
        time.sleep(0.7)
        with fake_grpc_server(answers, port):
            done.wait(30)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        [record] = records(run(status, "--wait", "30", "--json", address=f"localhost:{port}"))
    finally:
        done.set()
        thread.join(30)
    assert record["answering"] == 3


# --- loadtest --------------------------------------------------------------------------------------------


def test_loadtest_reports_latency_percentiles_per_rate_and_draws_charts(photo_directory: Path) -> None:
    out = photo_directory / "load.html"
    flags = ["--rate", "30", "--rate", "60", "--seconds", "1", "--output", str(out), "--json"]
    with fake_grpc_server(ECHO, threads=8) as address:
        found = records(run(loadtest, f"{photo_directory}/*.jpg", *flags, address=address))
    assert [record["rate"] for record in found] == [30, 60]
    for record in found:
        assert record["sent"] == record["answered"] > 10
        assert record["statuses"] == {"ok": record["answered"]}
        assert record["errors"] == {}
        latency = record["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    text = out.read_text(encoding="utf-8")
    assert "Load test of food" in text
    assert text.count("<svg") == 3
    assert "<script" not in text


def test_loadtest_has_no_coordinated_omission_and_counts_errors(photo_directory: Path) -> None:
    begin = time.monotonic()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if time.monotonic() - begin > 1.0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue is full")
        with turn:
            time.sleep(0.05)
        return answer_as_version_7(request, context)

    turn = threading.Lock()
    with fake_grpc_server({protos.PREDICT: answer}, threads=64) as address:
        begin = time.monotonic()
        flags = ["--rate", "60", "--seconds", "2", "--json", "--timeout", "30"]
        [record] = records(run(loadtest, str(photo_directory / "a.jpg"), *flags, address=address))
    # It handles 20 requests per second while 60 arrive: after a second it is 40 requests behind, which a
    # closed loop would not show.
    assert record["latency_ms"]["max"] > 700
    assert record["errors"]["UNAVAILABLE"] > 10
    assert record["answered"] + record["errors"]["UNAVAILABLE"] == record["sent"]


def test_loadtest_counts_requests_beyond_max_under_way_as_not_sent(photo_directory: Path) -> None:
    release = threading.Event()
    first = threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if first.is_set():
            release.wait(1.5)
        first.set()
        return answer_as_version_7(request, context)

    flags = ["--rate", "50", "--seconds", "1", "--max_under_way", "2", "--json"]
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        [record] = records(run(loadtest, str(photo_directory / "a.jpg"), *flags, address=address))
    assert record["errors"]["NOT_SENT"] > 20


def test_loadtest_without_a_server_fails_at_once(photo_directory: Path) -> None:
    begin = time.monotonic()
    result = run(loadtest, str(photo_directory / "a.jpg"), "--rate", "1", "--seconds", "600")
    assert "No model server answers" in str(result.exception)
    assert time.monotonic() - begin < 60


def test_arrivals_are_a_poisson_process() -> None:
    times = list(draw_arrivals(Load(rate=1000, seconds=20, seed=5)))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05), "as an exponential distribution has it"
    assert list(draw_arrivals(Load(1000, 20, seed=5))) == times


def test_percentiles_are_observed_values() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 99, 99.9, 100)] == [1, 50, 99, 100, 100]
    assert math.isnan(percentile([], 50))


def make_results() -> list[Figures]:
    """Return results at three rates, with failed and dropped requests at the last one."""
    samples = [Sample(0.01 * at, 0.0, 0.02 + 0.001 * (at % 37), "") for at in range(400)]
    failed = [Sample(0.01 * at, 0.0, 2.0, "RESOURCE_EXHAUSTED") for at in range(0, 400, 9)]
    return [
        *(Figures(rate, 4.0, 1, samples) for rate in (50, 1000)),
        Figures(2000, 4.0, 1, [*samples, *failed], dropped=12),
    ]


@pytest.mark.slow
@pytest.mark.needs(CHROMIUM)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_report_in_a_browser_fits_desktop_and_phone(tmp_path: Path, width: int) -> None:
    (tmp_path / "load.html").write_text(
        render_page(make_results(), "food", f"dns:///{'a-long-name.' * 9}example:8500")
    )
    measured = measure_page(tmp_path / "load.html", tmp_path, width)
    assert measured["inner"] == width
    assert measured["width"] <= width, "the page can be scrolled sideways"
    assert measured["flat"] == 0
    assert measured["broken"] == []
    assert measured["ordered"]


def test_report_is_self_contained_and_has_one_row_per_rate() -> None:
    text = render_page(make_results(), HOSTILE, HOSTILE)
    check_self_contained(text)
    page = Page(text)
    assert page.text.count(HOSTILE) == 3
    assert len(page.all("tr")) == 4
    assert "45 RESOURCE_EXHAUSTED, 12 NOT_SENT" in page.text


def test_report_without_successful_requests() -> None:
    failed = [Sample(0.1 * number, 0.0, 2.0, "UNAVAILABLE") for number in range(10)]
    text = render_page([Figures(10, 1.0, 1, failed)], "<food>", "localhost:1")
    assert "10 UNAVAILABLE" in text
    assert "&lt;food&gt;" in text
    assert io.StringIO(text).readline() == "<!doctype html>\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_predict_reads_lists_as_editors_write_them(photo_directory: Path, encoding: str) -> None:
    os.mkfifo(photo_directory / "pipe.jpg")
    lines = [f" {photo_directory / 'a.jpg'} ", str(photo_directory / "pipe.jpg"), "/dev/zero", "/proc/kmsg"]
    (photo_directory / "list").write_bytes("\r\n".join(lines).encode(encoding))
    with fake_grpc_server(ECHO) as address:
        found = records(run(predict, "--from_file", str(photo_directory / "list"), "--json", address=address))
    assert [record["photo"] for record in found] == [lines[0].strip(), *lines[1:]]
    assert [record["status"] for record in found] == ["ok", *["unreadable"] * 3]
    (photo_directory / "list").write_bytes(b"a.jpg\ncaf\xe9.jpg\n")
    result = run(predict, "--from_file", str(photo_directory / "list"), address="localhost:1")
    assert "list, line 2: byte 4 is not UTF-8" in str(result.exception)


def test_patterns_match_no_directories_of_the_system(photo_directory: Path) -> None:
    (photo_directory / "deep" / "@eaDir").mkdir()
    (photo_directory / "deep" / "@eaDir" / "c.jpg").write_bytes(b"x")
    assert [Path(name).name for name in resolve_paths([f"{photo_directory}/deep/**/*.jpg"])] == [
        "c.jpg",
        "b.jpg",
    ]
    assert len(resolve_paths([f"{photo_directory}/deep/@eaDir/*.jpg"])) == 1
