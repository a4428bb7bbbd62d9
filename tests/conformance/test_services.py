"""What protocol.toml says of PredictionService, ModelService, batching and the process."""

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
from serving.server.config.settings import BATCHING_FILE, Batching
from serving.server.models.manager import Manager
from tests.conformance.conformance_model import write_toy
from tests.conformance.conformance_server import World, world
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
    toy,
)
from tests.support.fake_model import LIMIT, eventually


def values(response: Any, alias: str = "y") -> Any:
    return tensors.decode(response.outputs[alias], alias).tolist()


# --- PredictionService ----------------------------------------------------------------------------------


@pytest.mark.protocol("predict.spec")
@pytest.mark.parametrize("spec", [toy(), toy("serving_default"), toy(version_label="stable")])
def test_an_answer_says_name_signature_and_version_and_no_label(plain: World, spec: dict[str, Any]) -> None:
    answered = plain.rpc(predict(spec, x=[1.0])).model_spec
    assert (answered.name, answered.signature_name, answered.version.value) == ("toy", "serving_default", 3)
    assert answered.WhichOneof("version_choice") == "version"


@pytest.mark.protocol("predict.method-unchecked")
def test_predict_works_on_a_signature_for_classify(plain: World) -> None:
    response = plain.rpc(
        predict(toy("classify"), inputs=tensors.encode([example(x=2.0).SerializeToString()]))
    )
    assert values(response, "scores") == [[2.0, -2.0, 1.0]]


@pytest.mark.protocol("predict.all-outputs")
def test_all_outputs_come_or_those_that_are_asked_for(plain: World) -> None:
    assert set(plain.rpc(predict(toy("both"), x=[1.0])).outputs) == {"y", "z"}
    assert set(plain.rpc(predict(toy("both"), ("z",), x=[1.0])).outputs) == {"z"}


@pytest.mark.protocol("predict.encoding")
@pytest.mark.parametrize("content", [False, True])
def test_outputs_are_values_or_with_the_flag_raw_bytes(toy_base: Path, content: bool) -> None:
    with world(("toy", toy_base), enable_serialization_as_tensor_content=content) as served:
        found = served.rpc(predict(toy(), x=[1.0])).outputs["y"]
    assert (len(found.float_val), len(found.tensor_content)) == ((0, 4) if content else (1, 0))


@pytest.mark.protocol("predict.defaults")
def test_a_missing_input_takes_its_default(plain: World) -> None:
    assert values(plain.rpc(predict(toy("scaled"), x=[2.0]))) == [20.0]
    assert values(plain.rpc(predict(toy("scaled"), x=[2.0], by=[3.0]))) == [6.0]


@pytest.mark.protocol("predict.deadline")
def test_the_callers_deadline_bounds_the_call(toy_base: Path) -> None:
    with world(("toy", toy_base)) as served, held(served):
        start = time.monotonic()
        code, _ = served.refused(predict(toy(), x=[1.0]), timeout=0.3)
        assert code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # the caller's clock, or the queue's
        assert time.monotonic() - start < LIMIT / 2


@pytest.mark.protocol("classify.order")
def test_classify_keeps_the_models_order(plain: World) -> None:
    response = plain.rpc(classify(toy("classify"), example(x=2.0), example(x=-4.0)))
    pairs = [[(one.label, one.score) for one in found.classes] for found in response.result.classifications]
    assert pairs == [
        [("a", 2.0), ("b", -2.0), ("c", 1.0)],
        [("a", -4.0), ("b", 4.0), ("c", -2.0)],
    ]


@pytest.mark.protocol("regress.shapes")
@pytest.mark.parametrize("signature", ["regress", "regress_column"])
def test_regress_takes_a_vector_or_a_column(plain: World, signature: str) -> None:
    response = plain.rpc(regress(toy(signature), example(x=2.0), example(x=3.0)))
    assert [one.value for one in response.result.regressions] == [2.0, 3.0]


@pytest.mark.protocol("multi.together")
def test_multi_inference_answers_in_the_tasks_order(plain: World) -> None:
    response = plain.rpc(multi(("toy", "regress", REGRESS_METHOD), ("toy", "classify", CLASSIFY_METHOD)))
    assert [found.WhichOneof("result") for found in response.results] == [
        "regression_result",
        "classification_result",
    ]
    assert [found.model_spec.signature_name for found in response.results] == ["regress", "classify"]


@pytest.mark.protocol("multi.one-run")
def test_multi_inference_runs_each_signature(toy_base: Path) -> None:
    with world(("toy", toy_base)) as served:
        served.rpc(multi(("toy", "regress", REGRESS_METHOD), ("toy", "classify", CLASSIFY_METHOD)))
        assert [signature for signature, _ in served.toys.only.calls] == ["regress", "classify"]


@pytest.mark.protocol("metadata.spec")
def test_metadata_has_no_signature_name_and_tensorflows_own_signatures(plain: World) -> None:
    response = plain.rpc(metadata(toy("ab", version_label="stable"), "signature_def"))
    assert response.model_spec.signature_name == ""
    assert (response.model_spec.name, response.model_spec.version.value) == ("toy", 3)
    assert response.model_spec.WhichOneof("version_choice") == "version"
    found = protos.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert {"__saved_model_init_op", "ab"} < set(found.signature_def)


# --- ModelService ---------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    base = tmp_path / "toy"
    write_toy(base / "1")
    return base


def states(served: World, **spec: Any) -> list[tuple[int, int, str]]:
    rows = served.rpc(status(toy(**spec))).model_version_status
    return [(row.version, row.state, row.status.error_message) for row in rows]


@pytest.mark.protocol("status.all-versions", "status.states", "status.load-error", "versions.polling")
def test_status_has_every_version_ever_seen_newest_first(own: Path) -> None:
    assert ServerSettings().file_system_poll_wait_seconds == 1.0
    with world(("toy", own)) as served:
        write_toy(own / "2")
        eventually(lambda: states(served) == [(2, 30, ""), (1, 50, "")])
        broken = write_toy(own.parent / "other")
        (broken / "broken").touch()
        broken.rename(own / "3")
        eventually(lambda: states(served)[0] == (3, 50, "broken on purpose"))
        assert states(served)[1:] == [(2, 30, ""), (1, 50, "")]
    names = {name: protos.ModelVersionStatus.State.Value(name) for name in ("START", "LOADING", "AVAILABLE")}
    assert names == {"START": 10, "LOADING": 20, "AVAILABLE": 30}
    assert protos.ModelVersionStatus.State.Value("UNLOADING") == 40


@pytest.mark.protocol("status.label-ignored")
def test_status_does_not_look_at_a_label(plain: World) -> None:
    assert states(plain, version_label="nowhere") == [(3, 30, "")]


@pytest.mark.protocol("versions.names")
def test_versions_are_children_with_whole_numbers_for_names(tmp_path: Path) -> None:
    base = tmp_path / "toy"
    write_toy(base / "00000123")
    for name in ("124x", "v125", "1.5", "99999999999999999999"):
        write_toy(base / name)
    with world_of_first(base) as served:
        assert [version for version, *_ in states(served)] == [123]
        assert served.rpc(predict(toy(version={"value": 123}), x=[1.0])).model_spec.version.value == 123


@pytest.mark.protocol("versions.two-names")
def test_of_two_names_for_one_number_one_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "toy"
    for name in ("2", "002"):
        write_toy(base / name)
    with world_of_first(base) as served:
        assert states(served) == [(2, 30, "")]
        assert [path.name for path in served.toys.models] == ["002"]
    assert f"{base / '002'} is taken for version 2, and not 2" in caplog.text


@contextmanager
def world_of_first(base: Path) -> Iterator[World]:
    from serving.server import start
    from tests.conformance.conformance_model import Toys

    toys = Toys()
    with (
        start(ServerSettings(base, port=0), loader=toys) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        yield World(server, channel, toys)


@pytest.mark.protocol("error.labels-not-yet")
def test_labels_are_not_there_before_the_first_configuration() -> None:
    from serving.server.rest.handler import http_status
    from serving.server.status_error import Refusal

    manager = Manager(lambda *_: pytest.fail("nothing is to be loaded"))
    with pytest.raises(Refusal) as caught, manager.use(protos.ModelSpec(name="toy", version_label="L")):
        pass
    assert (caught.value.code.name, caught.value.text) == ("UNAVAILABLE", "Model labels does not init yet.L")
    assert http_status(caught.value.code) == 503


# --- Batching -------------------------------------------------------------------------------------------


@contextmanager
def held(served: World) -> Iterator[Future[Any]]:
    """Keep the model busy with one request, so that others have to wait."""
    served.toys.only.gate.clear()
    before = len(served.toys.only.calls)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.rpc, predict(toy("both"), x=[0.0]))
        try:
            eventually(lambda: len(served.toys.only.calls) > before)
            yield first
        finally:
            served.toys.only.gate.set()


def waiting(served: World) -> int:
    with served.server.manager.use(protos.ModelSpec(name="toy")) as servable:
        return servable._batcher.waiting


@contextmanager
def queued(served: World, *calls: Rpc) -> Iterator[list[Future[Any]]]:
    """Requests that wait, in their order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = []
        for call in calls:
            before = waiting(served)
            futures.append(pool.submit(served.rpc, call))
            eventually(lambda before=before: waiting(served) > before)
        yield futures


def batching(**more: Any) -> Batching:
    return Batching(**({"max_batch_size": 4, "num_batch_threads": 1} | more))


@pytest.mark.protocol("error.batch-queue-full")
def test_no_room_in_the_queue_is_unavailable(toy_base: Path) -> None:
    text = (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 1 batches enqueued and max_enqueued_batches is 1"
    )
    with world(("toy", toy_base), batching=batching(max_enqueued_batches=1)) as served:
        with held(served), queued(served, predict(toy(), x=[1.0] * 4)) as futures:
            assert served.refused(predict(toy(), x=[2.0])) == ("UNAVAILABLE", text)
            answer = served.post(instances=[2.0])
            assert (answer.status, answer.json) == (503, {"error": text})
            served.toys.only.gate.set()
            assert values(futures[0].result(LIMIT)) == [2.0] * 4
        assert values(served.rpc(predict(toy(), x=[2.0]))) == [4.0]


@pytest.mark.protocol("error.batch-deadline", "rest.timeout")
def test_a_deadline_that_passes_in_the_queue(toy_base: Path) -> None:
    assert ServerSettings().rest_api_timeout_in_ms == 30_000
    text = "Run() timeout exceeded while waiting in batching queue"
    from serving.server.status_error import Refusal

    with world(("toy", toy_base), batching=batching(), rest_api_timeout_in_ms=300) as served:
        with held(served), served.server.manager.use(protos.ModelSpec(name="toy")) as servable:
            with pytest.raises(Refusal) as caught:
                servable.predict(predict(toy(), x=[1.0])[1], 0.1)
            assert (caught.value.code.name, caught.value.text) == ("RESOURCE_EXHAUSTED", text)
            answer = served.post(instances=[1.0])
            assert (answer.status, answer.json) == (429, {"error": text})
        assert [call for call in served.toys.only.calls if call[0] == "serving_default"] == []


@pytest.mark.protocol("error.batch-shapes")
def test_callers_whose_shapes_differ_are_all_answered(toy_base: Path) -> None:
    with world(("toy", toy_base), batching=batching()) as served:
        calls = [predict(toy(), x=np.ones((1, size))) for size in (2, 3)]
        with held(served), queued(served, *calls) as futures:
            served.toys.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[[2.0] * 2], [[2.0] * 3]]


@pytest.mark.protocol("batching.padding")
def test_a_batch_is_padded_with_the_first_row_of_its_last_task(toy_base: Path) -> None:
    with world(("toy", toy_base), batching=batching(allowed_batch_sizes=(1, 4))) as served:
        calls = [predict(toy(), x=[1.0]), predict(toy(), x=[5.0, 6.0])]
        with held(served), queued(served, *calls) as futures:
            served.toys.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[2.0], [10.0, 12.0]]
        _, inputs = served.toys.only.calls[-1]
        assert inputs["x"].tolist() == [1.0, 5.0, 6.0, 5.0]


@pytest.mark.protocol("batching.queues")
def test_requests_for_other_outputs_do_not_meet(toy_base: Path) -> None:
    with world(("toy", toy_base), batching=batching()) as served:
        calls = [predict(toy("both"), (alias,), x=[1.0]) for alias in ("y", "z", "y")]
        with held(served), queued(served, *calls) as futures:
            served.toys.only.gate.set()
            assert [set(future.result(LIMIT).outputs) for future in futures] == [{"y"}, {"z"}, {"y"}]
        assert sorted(len(inputs["x"]) for _, inputs in served.toys.only.calls[1:]) == [1, 2]


@pytest.mark.protocol("batching.one-bad-row")
def test_a_bad_row_fails_its_own_caller_alone(toy_base: Path) -> None:
    with world(("toy", toy_base), batching=batching()) as served:
        good, bad = example(x=1.0), example(y=1.0)
        calls = [classify(toy("classify"), row) for row in (good, bad, good)]
        with held(served), queued(served, *calls) as futures:
            served.toys.only.gate.set()
            assert futures[0].result(LIMIT).result.classifications[0].classes[0].score == 1.0
            assert futures[2].result(LIMIT).result.classifications[0].classes[0].score == 1.0
            with pytest.raises(grpc.RpcError):
                futures[1].result(LIMIT)


@pytest.mark.protocol("batching.off")
def test_without_batching_a_request_runs_as_it_came(toy_base: Path) -> None:
    with world(("toy", toy_base)) as served:
        with (
            held(served),
            queued(served, *[predict(toy("shares"), x=[3.0] * rows) for rows in (12, 4)]) as futures,
        ):
            served.toys.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [
                pytest.approx([1 / rows] * rows) for rows in (12, 4)
            ]
        assert sorted(len(inputs["x"]) for _, inputs in served.toys.only.calls) == [1, 4, 12]


@pytest.mark.protocol("batching.off")
def test_rows_of_hubheads_own_bundles_are_merged_without_a_flag(own: Path) -> None:
    metadata_file = own / "1" / contract.METADATA_FILE
    metadata_file.parent.mkdir()
    metadata_file.write_text("{}")
    with world(("toy", own)) as served:
        with held(served), queued(served, *[predict(toy(), x=[number]) for number in (1.0, 2.0)]) as futures:
            served.toys.only.gate.set()
            assert [values(future.result(LIMIT)) for future in futures] == [[2.0], [4.0]]
        assert [len(inputs["x"]) for _, inputs in served.toys.only.calls] == [1, 2]


@pytest.mark.protocol("batching.defaults")
def test_the_defaults_of_a_batching_file() -> None:
    default = Batching()
    assert (default.max_batch_size, default.batch_timeout_micros) == (1000, 0)
    assert default.max_enqueued_batches == 10
    assert not default.enable_large_batch_splitting
    assert not default.pad_variable_length_inputs


@pytest.mark.protocol("batching.per-model")
def test_a_versions_own_batching_file_counts_with_the_flag(own: Path) -> None:
    (own / "1" / BATCHING_FILE).write_text("max_batch_size { value: 2 }")
    large = predict(toy(), x=[1.0] * 3)
    with world(("toy", own), batching=batching()) as served:
        assert values(served.rpc(large)) == [2.0] * 3
    with world(("toy", own), batching=batching(), enable_per_model_batching_parameters=True) as served:
        words = "Task size 3 is larger than maximum input batch size 2"
        assert served.refused(large) == ("INVALID_ARGUMENT", words)


# --- Warm-up --------------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.protocol("warmup.repeats", "warmup.records", "warmup.batched")
@pytest.mark.parametrize(
    ("flags", "runs"),
    [({}, 1), ({"num_request_iterations_for_warmup": 3}, 3), ({"enable_model_warmup": False}, 0)],
)
def test_warm_up_requests_run_as_often_as_the_flags_say(own: Path, flags: dict[str, Any], runs: int) -> None:
    import tensorflow as tf

    path = own / "1" / contract.WARMUP_FILE
    path.parent.mkdir()
    _, request = predict({"name": "written for another"}, x=[1.0, 2.0])
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(protos.PredictionLog(predict_log={"request": request}).SerializeToString())
    with world(("toy", own), **flags) as served:
        assert len(served.toys.only.calls) == runs
    sizes = batching(allowed_batch_sizes=(1, 4))
    with world(("toy", own), batching=sizes, **flags) as served:
        assert [len(inputs["x"]) for _, inputs in served.toys.only.calls] == [4] * runs


# --- The process ----------------------------------------------------------------------------------------


@pytest.mark.protocol("process.sizes")
def test_messages_far_above_four_mib_are_taken_and_sent(plain: World) -> None:
    large = np.arange(3 << 20, dtype=np.float32)[None]
    response = plain.rpc(predict(toy(), x=large))
    np.testing.assert_array_equal(tensors.decode(response.outputs["y"], "y"), large * 2)
