"""Facts of protocol.toml about PredictionService, ModelService, batching, warm-up and the process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import contract, protos
from serving.protos import tensors
from serving.server import ServerSettings
from serving.server.config.settings import BATCHING_FILE, BatchingParameters
from serving.server.models.manager import Manager
from tests.conformance.conformance_model import write_conformance_model
from tests.conformance.conformance_server import ConformanceServer, start_conformance_server
from tests.conformance.requests import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    Rpc,
    classify,
    example,
    metadata,
    multi,
    predict,
    regress,
    status,
    toy_spec,
)
from tests.support.fake_model import LIMIT, eventually, write_bundle_metadata

pytestmark = [pytest.mark.tf, pytest.mark.server]


def values(response: Any, alias: str = "y") -> Any:
    return tensors.decode(response.outputs[alias], alias).tolist()


# --- PredictionService ----------------------------------------------------------------------------------


@pytest.mark.protocol("predict.spec")
@pytest.mark.parametrize("spec", [toy_spec(), toy_spec("serving_default"), toy_spec(version_label="stable")])
def test_response_model_spec_has_name_signature_and_version_but_no_label(
    plain_server: ConformanceServer, spec: dict[str, Any]
) -> None:
    answered = plain_server.call(predict(spec, x=[1.0])).model_spec
    assert (answered.name, answered.signature_name, answered.version.value) == ("toy", "serving_default", 3)
    assert answered.WhichOneof("version_choice") == "version"


@pytest.mark.protocol("predict.method-unchecked")
def test_predict_accepts_a_classify_signature(plain_server: ConformanceServer) -> None:
    response = plain_server.call(
        predict(toy_spec("classify"), inputs=tensors.encode([example(x=2.0).SerializeToString()]))
    )
    assert values(response, "scores") == [[2.0, -2.0, 1.0]]


@pytest.mark.protocol("predict.all-outputs")
def test_output_filter_selects_outputs_and_without_it_all_are_returned(
    plain_server: ConformanceServer,
) -> None:
    assert set(plain_server.call(predict(toy_spec("both"), x=[1.0])).outputs) == {"y", "z"}
    assert set(plain_server.call(predict(toy_spec("both"), ("z",), x=[1.0])).outputs) == {"z"}


@pytest.mark.protocol("predict.encoding")
@pytest.mark.parametrize("content", [False, True])
def test_outputs_are_typed_values_or_tensor_content_with_the_flag(
    conformance_base: Path, content: bool
) -> None:
    with start_conformance_server(
        ("toy", conformance_base), enable_serialization_as_tensor_content=content
    ) as server:
        found = server.call(predict(toy_spec(), x=[1.0])).outputs["y"]
    assert (len(found.float_val), len(found.tensor_content)) == ((0, 4) if content else (1, 0))


@pytest.mark.protocol("predict.defaults")
def test_missing_input_takes_the_default_of_the_signature(plain_server: ConformanceServer) -> None:
    assert values(plain_server.call(predict(toy_spec("scaled"), x=[2.0]))) == [20.0]
    assert values(plain_server.call(predict(toy_spec("scaled"), x=[2.0], by=[3.0]))) == [6.0]


@pytest.mark.protocol("predict.deadline")
def test_predict_ends_at_the_callers_deadline(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base)) as server, busy_model(server):
        start = time.monotonic()
        code, _ = server.call_expecting_error(predict(toy_spec(), x=[1.0]), timeout=0.3)
        assert code in (
            "DEADLINE_EXCEEDED",
            "RESOURCE_EXHAUSTED",
        )  # whichever deadline fires first: the client's or the queue's
        assert time.monotonic() - start < LIMIT / 2


@pytest.mark.protocol("classify.order")
def test_classify_keeps_the_models_class_order(plain_server: ConformanceServer) -> None:
    response = plain_server.call(classify(toy_spec("classify"), example(x=2.0), example(x=-4.0)))
    pairs = [[(one.label, one.score) for one in found.classes] for found in response.result.classifications]
    assert pairs == [
        [("a", 2.0), ("b", -2.0), ("c", 1.0)],
        [("a", -4.0), ("b", 4.0), ("c", -2.0)],
    ]


@pytest.mark.protocol("regress.shapes")
@pytest.mark.parametrize("signature", ["regress", "regress_column"])
def test_regress_accepts_a_vector_or_a_column(plain_server: ConformanceServer, signature: str) -> None:
    response = plain_server.call(regress(toy_spec(signature), example(x=2.0), example(x=3.0)))
    assert [one.value for one in response.result.regressions] == [2.0, 3.0]


@pytest.mark.protocol("multi.together")
def test_multi_inference_results_are_in_task_order(plain_server: ConformanceServer) -> None:
    response = plain_server.call(
        multi(("toy", "regress", REGRESS_METHOD), ("toy", "classify", CLASSIFY_METHOD))
    )
    assert [found.WhichOneof("result") for found in response.results] == [
        "regression_result",
        "classification_result",
    ]
    assert [found.model_spec.signature_name for found in response.results] == ["regress", "classify"]


@pytest.mark.protocol("multi.one-run")
def test_multi_inference_runs_each_signature_once(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base)) as server:
        server.call(multi(("toy", "regress", REGRESS_METHOD), ("toy", "classify", CLASSIFY_METHOD)))
        assert [signature for signature, _ in server.loader.only.calls] == ["regress", "classify"]


@pytest.mark.protocol("metadata.spec")
def test_metadata_has_no_signature_name_and_includes_internal_signatures(
    plain_server: ConformanceServer,
) -> None:
    response = plain_server.call(metadata(toy_spec("ab", version_label="stable"), "signature_def"))
    assert response.model_spec.signature_name == ""
    assert (response.model_spec.name, response.model_spec.version.value) == ("toy", 3)
    assert response.model_spec.WhichOneof("version_choice") == "version"
    found = protos.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert {"__saved_model_init_op", "ab"} < set(found.signature_def)


# --- ModelService ---------------------------------------------------------------------------------------


@pytest.fixture
def model_base(tmp_path: Path) -> Path:
    base = tmp_path / "toy"
    write_conformance_model(base / "1")
    return base


def list_states(server: ConformanceServer, **spec: Any) -> list[tuple[int, int, str]]:
    rows = server.call(status(toy_spec(**spec))).model_version_status
    return [(row.version, row.state, row.status.error_message) for row in rows]


@pytest.mark.protocol("status.all-versions", "status.states", "status.load-error", "versions.polling")
def test_status_lists_every_version_ever_seen_newest_first(model_base: Path) -> None:
    assert ServerSettings().file_system_poll_wait_seconds == 1.0
    with start_conformance_server(("toy", model_base)) as server:
        write_conformance_model(model_base / "2")
        eventually(lambda: list_states(server) == [(2, 30, ""), (1, 50, "")])
        broken = write_conformance_model(model_base.parent / "other")
        (broken / "broken").touch()
        broken.rename(model_base / "3")
        eventually(lambda: list_states(server)[0] == (3, 50, "broken on purpose"))
        assert list_states(server)[1:] == [(2, 30, ""), (1, 50, "")]
    names = {name: protos.ModelVersionStatus.State.Value(name) for name in ("START", "LOADING", "AVAILABLE")}
    assert names == {"START": 10, "LOADING": 20, "AVAILABLE": 30}
    assert protos.ModelVersionStatus.State.Value("UNLOADING") == 40


@pytest.mark.protocol("status.label-ignored")
def test_status_ignores_a_version_label(plain_server: ConformanceServer) -> None:
    assert list_states(plain_server, version_label="nowhere") == [(3, 30, "")]


@pytest.mark.protocol("versions.names")
def test_versions_are_subdirectories_with_integer_names(tmp_path: Path) -> None:
    base = tmp_path / "toy"
    write_conformance_model(base / "00000123")
    for name in ("124x", "v125", "1.5", "99999999999999999999"):
        write_conformance_model(base / name)
    with start_server_on_base_path(base) as server:
        assert [version for version, *_ in list_states(server)] == [123]
        assert server.call(predict(toy_spec(version={"value": 123}), x=[1.0])).model_spec.version.value == 123


@pytest.mark.protocol("versions.two-names")
def test_two_directories_of_one_version_number_load_one_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "toy"
    for name in ("2", "002"):
        write_conformance_model(base / name)
    with start_server_on_base_path(base) as server:
        assert list_states(server) == [(2, 30, "")]
        assert [path.name for path in server.loader.models] == ["002"]
    assert f"using {base / '002'} for version 2 and ignoring 2" in caplog.text


@contextmanager
def start_server_on_base_path(base: Path) -> Iterator[ConformanceServer]:
    from serving.server import start
    from tests.conformance.conformance_model import ConformanceModelLoader

    loader = ConformanceModelLoader()
    with (
        start(ServerSettings(base, port=0), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        yield ConformanceServer(server, channel, loader)


@pytest.mark.protocol("error.labels-not-yet")
def test_version_label_before_the_first_configuration_is_unavailable() -> None:
    from serving.server.rest.handler import http_status
    from serving.server.status_error import StatusError

    manager = Manager(lambda *_: pytest.fail("nothing must be loaded"))
    with pytest.raises(StatusError) as caught, manager.use(protos.ModelSpec(name="toy", version_label="L")):
        pass
    assert (caught.value.code.name, caught.value.text) == ("UNAVAILABLE", "Model labels does not init yet.L")
    assert http_status(caught.value.code) == 503


# --- Batching -------------------------------------------------------------------------------------------


@contextmanager
def busy_model(server: ConformanceServer) -> Iterator[Future[Any]]:
    """Keep the model busy with one request inside the block, so that others are queued."""
    server.loader.only.gate.clear()
    before = len(server.loader.only.calls)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.call, predict(toy_spec("both"), x=[0.0]))
        try:
            eventually(lambda: len(server.loader.only.calls) > before)
            yield first
        finally:
            server.loader.only.gate.set()


def count_queued_rows(server: ConformanceServer) -> int:
    with server.running.manager.use(protos.ModelSpec(name="toy")) as servable:
        return servable._batcher._load.queued_rows


@contextmanager
def queued_calls(server: ConformanceServer, *calls: Rpc) -> Iterator[list[Future[Any]]]:
    """Send calls that are queued in this order; yield the futures of their responses."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = []
        for call in calls:
            before = count_queued_rows(server)
            futures.append(pool.submit(server.call, call))
            eventually(lambda before=before: count_queued_rows(server) > before)
        yield futures


def batching(**more: Any) -> BatchingParameters:
    return BatchingParameters(**({"max_batch_size": 4, "num_batch_threads": 1} | more))


@pytest.mark.protocol("error.batch-queue-full")
def test_full_batching_queue_is_unavailable(conformance_base: Path) -> None:
    text = (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 1 batches enqueued and max_enqueued_batches is 1"
    )
    with start_conformance_server(
        ("toy", conformance_base), batching=batching(max_enqueued_batches=1)
    ) as server:
        with busy_model(server), queued_calls(server, predict(toy_spec(), x=[1.0] * 4)) as futures:
            assert server.call_expecting_error(predict(toy_spec(), x=[2.0])) == ("UNAVAILABLE", text)
            answer = server.post(instances=[2.0])
            assert (answer.status, answer.json) == (503, {"error": text})
            server.loader.only.gate.set()
            assert values(futures[0].result(LIMIT)) == [2.0] * 4
        assert values(server.call(predict(toy_spec(), x=[2.0]))) == [4.0]


@pytest.mark.protocol("error.batch-deadline", "rest.timeout")
def test_deadline_that_passes_in_the_batching_queue(conformance_base: Path) -> None:
    assert ServerSettings().rest_api_timeout_in_ms == 30_000
    text = "Run() timeout exceeded while waiting in batching queue"
    from serving.server.status_error import StatusError

    with start_conformance_server(
        ("toy", conformance_base), batching=batching(), rest_api_timeout_in_ms=300
    ) as server:
        with busy_model(server), server.running.manager.use(protos.ModelSpec(name="toy")) as servable:
            with pytest.raises(StatusError) as caught:
                servable.predict(predict(toy_spec(), x=[1.0])[1], 0.1)
            assert (caught.value.code.name, caught.value.text) == ("RESOURCE_EXHAUSTED", text)
            answer = server.post(instances=[1.0])
            assert (answer.status, answer.json) == (429, {"error": text})
        assert [call for call in server.loader.only.calls if call[0] == "serving_default"] == []


@pytest.mark.protocol("error.batch-shapes")
def test_requests_of_different_shapes_are_not_merged(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base), batching=batching()) as server:
        calls = [predict(toy_spec(), x=np.ones((1, size))) for size in (2, 3)]
        with busy_model(server), queued_calls(server, *calls) as futures:
            server.loader.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[[2.0] * 2], [[2.0] * 3]]


@pytest.mark.protocol("batching.padding")
def test_batch_is_padded_with_the_first_row_of_its_last_request(conformance_base: Path) -> None:
    with start_conformance_server(
        ("toy", conformance_base), batching=batching(allowed_batch_sizes=(1, 4))
    ) as server:
        calls = [predict(toy_spec(), x=[1.0]), predict(toy_spec(), x=[5.0, 6.0])]
        with busy_model(server), queued_calls(server, *calls) as futures:
            server.loader.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[2.0], [10.0, 12.0]]
        _, inputs = server.loader.only.calls[-1]
        assert inputs["x"].tolist() == [1.0, 5.0, 6.0, 5.0]


@pytest.mark.protocol("batching.queues")
def test_requests_with_different_output_filters_are_not_merged(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base), batching=batching()) as server:
        calls = [predict(toy_spec("both"), (alias,), x=[1.0]) for alias in ("y", "z", "y")]
        with busy_model(server), queued_calls(server, *calls) as futures:
            server.loader.only.gate.set()
            assert [set(future.result(LIMIT).outputs) for future in futures] == [{"y"}, {"z"}, {"y"}]
        assert sorted(len(inputs["x"]) for _, inputs in server.loader.only.calls[1:]) == [1, 2]


@pytest.mark.protocol("batching.one-bad-row")
def test_one_bad_row_in_a_batch_fails_only_its_own_request(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base), batching=batching()) as server:
        good, bad = example(x=1.0), example(y=1.0)
        calls = [classify(toy_spec("classify"), row) for row in (good, bad, good)]
        with busy_model(server), queued_calls(server, *calls) as futures:
            server.loader.only.gate.set()
            assert futures[0].result(LIMIT).result.classifications[0].classes[0].score == 1.0
            assert futures[2].result(LIMIT).result.classifications[0].classes[0].score == 1.0
            with pytest.raises(grpc.RpcError):
                futures[1].result(LIMIT)


@pytest.mark.protocol("batching.off")
def test_without_batching_requests_run_unmodified(conformance_base: Path) -> None:
    with start_conformance_server(("toy", conformance_base)) as server:
        with (
            busy_model(server),
            queued_calls(
                server, *[predict(toy_spec("shares"), x=[3.0] * rows) for rows in (12, 4)]
            ) as futures,
        ):
            server.loader.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [
                pytest.approx([1 / rows] * rows) for rows in (12, 4)
            ]
        assert sorted(len(inputs["x"]) for _, inputs in server.loader.only.calls) == [1, 4, 12]


@pytest.mark.protocol("batching.off")
def test_requests_to_hubheads_bundles_are_batched_without_a_flag(model_base: Path) -> None:
    write_bundle_metadata(model_base / "1")
    with start_conformance_server(("toy", model_base)) as server:
        with (
            busy_model(server),
            queued_calls(server, *[predict(toy_spec(), x=[number]) for number in (1.0, 2.0)]) as futures,
        ):
            server.loader.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[2.0], [4.0]]
        assert [len(inputs["x"]) for _, inputs in server.loader.only.calls] == [1, 2]


@pytest.mark.protocol("batching.defaults")
def test_defaults_of_batching_parameters() -> None:
    default = BatchingParameters()
    assert (default.max_batch_size, default.batch_timeout_micros) == (1000, 0)
    assert default.max_enqueued_batches == 10
    assert not default.enable_large_batch_splitting
    assert not default.pad_variable_length_inputs


@pytest.mark.protocol("batching.per-model")
def test_per_model_batching_parameters_require_the_flag(model_base: Path) -> None:
    (model_base / "1" / BATCHING_FILE).write_text("max_batch_size { value: 2 }")
    large = predict(toy_spec(), x=[1.0] * 3)
    with start_conformance_server(("toy", model_base), batching=batching()) as server:
        assert values(server.call(large)) == [2.0] * 3
    with start_conformance_server(
        ("toy", model_base), batching=batching(), enable_per_model_batching_parameters=True
    ) as server:
        words = "Task size 3 is larger than maximum input batch size 2"
        assert server.call_expecting_error(large) == ("INVALID_ARGUMENT", words)


# --- Warm-up --------------------------------------------------------------------------------------------


@pytest.mark.protocol("warmup.repeats", "warmup.records", "warmup.batched")
@pytest.mark.parametrize(
    ("flags", "runs"),
    [({}, 1), ({"num_request_iterations_for_warmup": 3}, 3), ({"enable_model_warmup": False}, 0)],
)
def test_warmup_requests_run_as_often_as_the_flags_say(
    model_base: Path, flags: dict[str, Any], runs: int
) -> None:
    import tensorflow as tf

    path = model_base / "1" / contract.WARMUP_FILE
    path.parent.mkdir()
    _, request = predict({"name": "written for another"}, x=[1.0, 2.0])
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(protos.PredictionLog(predict_log={"request": request}).SerializeToString())
    with start_conformance_server(("toy", model_base), **flags) as server:
        assert len(server.loader.only.calls) == runs
    sizes = batching(allowed_batch_sizes=(1, 4))
    with start_conformance_server(("toy", model_base), batching=sizes, **flags) as server:
        assert [len(inputs["x"]) for _, inputs in server.loader.only.calls] == [4] * runs


# --- The process ----------------------------------------------------------------------------------------


@pytest.mark.protocol("process.sizes")
def test_messages_above_grpcs_default_limit_of_4_mib_are_accepted_and_sent(
    plain_server: ConformanceServer,
) -> None:
    large = np.arange(3 << 20, dtype=np.float32)[None]
    response = plain_server.call(predict(toy_spec(), x=large))
    np.testing.assert_array_equal(tensors.decode(response.outputs["y"], "y"), large * 2)


def test_context_that_is_too_large_for_its_examples_is_rejected(plain_server: ConformanceServer) -> None:
    path, request = classify({"name": "toy", "signature_name": "classify"}, example(x=1.0))
    context = request.input.example_list_with_context
    context.context.CopyFrom(example(big=b"a" * 1_000_000))
    context.examples.extend([protos.Example()] * 100_000)  # 100 GB if each had a copy of the context
    assert plain_server.call_expecting_error((path, request)) == (
        "INVALID_ARGUMENT",
        "A context of 1000025 bytes for 100000 examples is too large.",
    )
