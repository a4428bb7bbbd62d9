"""Both clients against a faulty server: retries, GOAWAY, request splitting, isolation of a faulty photo,
cancellation, streams, concurrency limit.

Tests of a behaviour that both clients share run once with each.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving import contract, protos
from serving.client import AsyncClient, Client, Photo, Retry
from serving.client.concurrency import BETA
from serving.contract import Prediction, Status
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InputError,
    InvalidRequest,
    Overloaded,
    ServerError,
)
from serving.protos import tensors
from tests.support.fake_grpc_server import Answer, answer_for, fake_grpc_server, free_port

pytestmark = pytest.mark.server

QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full; currently 9 batches"
QUEUE_TIMEOUT = "Run() timeout exceeded while waiting in batching queue"
FAST = Retry(attempts=4, first=0.001, most=0.01)

Classify = Callable[..., list[Prediction]]


def classify_blocking(address: str, photos: Sequence[Photo], **settings: Any) -> list[Prediction]:
    with Client(address, **{"model": "food", "retry": FAST, **settings}) as client:
        return client.classify(photos)


def classify_async(address: str, photos: Sequence[Photo], **settings: Any) -> list[Prediction]:
    async def classify() -> list[Prediction]:
        async with AsyncClient(address, **{"model": "food", "retry": FAST, **settings}) as client:
            return await client.classify(photos)

    return asyncio.run(classify())


@pytest.fixture(params=[classify_blocking, classify_async], ids=["Client", "AsyncClient"])
def classify(request: pytest.FixtureRequest) -> Classify:
    return request.param  # type: ignore[no-any-return]


def images_of(request: Any) -> list[bytes]:
    return list(request.inputs["image_bytes"].string_val)


def fail_first(times: int, code: grpc.StatusCode, details: str, seen: list[float]) -> Answer:
    """Return an answer that fails `times` times, then succeeds; `seen` gets the time of each call."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append(time.monotonic())
        if len(seen) <= times:
            context.abort(code, details)
        return answer_for(images_of(request))

    return answer


# --- Retries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, QUEUE_FULL),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, QUEUE_TIMEOUT),
    ],
)
def test_transient_errors_are_retried(classify: Classify, code: grpc.StatusCode, details: str) -> None:
    seen: list[float] = []
    with fake_grpc_server({protos.PREDICT: fail_first(2, code, details, seen)}) as address:
        [prediction] = classify(address, [b"photo"])
    assert prediction.label == "apple"
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late"),
        (grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(food)"),
        (grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        (grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (grpc.StatusCode.UNIMPLEMENTED, ""),
        (grpc.StatusCode.PERMISSION_DENIED, "no"),
    ],
)
def test_permanent_errors_are_not_retried(classify: Classify, code: grpc.StatusCode, details: str) -> None:
    seen: list[float] = []
    with (
        fake_grpc_server({protos.PREDICT: fail_first(99, code, details, seen)}) as address,
        pytest.raises(ServerError) as caught,
    ):
        classify(address, [b"a", b"b", b"c"])
    assert (caught.value.code, caught.value.details) == (code.name, details)
    assert len(seen) == 1


def test_retries_stop_after_the_maximum_attempts_with_the_last_error(classify: Classify) -> None:
    seen: list[float] = []
    answer = fail_first(99, grpc.StatusCode.UNAVAILABLE, QUEUE_FULL, seen)
    with fake_grpc_server({protos.PREDICT: answer}) as address, pytest.raises(Overloaded):
        classify(address, [b"photo"])
    assert len(seen) == FAST.attempts


def test_retries_stop_at_the_deadline(classify: Classify) -> None:
    patient = Retry(attempts=1000, first=0.2, most=0.2)
    seen: list[float] = []
    answer = fail_first(9999, grpc.StatusCode.UNAVAILABLE, QUEUE_FULL, seen)
    with fake_grpc_server({protos.PREDICT: answer}) as address, pytest.raises(Overloaded):
        classify(address, [b"photo"], retry=patient, timeout=1.0)
    assert 2 <= len(seen) < 1000
    assert seen[-1] - seen[0] <= 1.0


def test_retries_wait_for_a_server_that_starts_late() -> None:
    port = free_port()
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    patient = Retry(attempts=100, first=0.2, most=0.2)
    begun = threading.Event()

    def start() -> None:
        begun.wait(20)
        time.sleep(0.5)
        with fake_grpc_server(answer, port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=start)
    thread.start()
    try:
        with Client(f"localhost:{port}", model="food", retry=patient, timeout=20) as client:
            begun.set()
            assert client.classify([b"photo"])[0].label == "apple"
    finally:
        done.set()
        thread.join(20)


def test_goaway_by_max_connection_age_loses_no_request() -> None:
    # max_connection_age: the server sends GOAWAY every 100 ms, as behind a load balancer.
    connection_age = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 2000)]
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with (
        fake_grpc_server(answer, options=connection_age) as address,
        Client(address, model="food", retry=FAST) as client,
    ):
        end = time.monotonic() + 2
        count = 0
        while time.monotonic() < end:
            assert client.classify([b"photo"])[0].label == "apple"
            count += 1
    assert count > 20


# --- Isolation of a faulty photo, request splitting --------------------------------------------------------


def fail_on_poison(code: grpc.StatusCode, details: str, sizes: list[int]) -> Answer:
    """Return an answer that fails the whole request if one of its photos is poison."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        images = images_of(request)
        sizes.append(len(images))
        if any(image.startswith(b"poison") for image in images):
            context.abort(code, details)
        return answer_for(images)

    return answer


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "Unknown image file format. One of JPEG, PNG, GIF, BMP required."),
        (grpc.StatusCode.INTERNAL, "assertion failed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[9,9]"),
    ],
)
def test_faulty_photo_is_isolated_and_the_others_are_answered(
    classify: Classify, code: grpc.StatusCode, details: str
) -> None:
    photos = [b"photo"] * 32
    photos[13] = b"poison"
    sizes: list[int] = []
    with fake_grpc_server({protos.PREDICT: fail_on_poison(code, details, sizes)}) as address:
        found = classify(address, photos)
    assert found[13].status is Status.FAILED
    assert found[13].detail == details
    assert [prediction.label for place, prediction in enumerate(found) if place != 13] == ["apple"] * 31
    assert len(sizes) <= 2 * 5 + 2, (
        "halving 32 rows takes two requests per level, plus one probe of the server"
    )


def test_several_faulty_photos_are_isolated_across_requests(classify: Classify) -> None:
    bad = {0, 5, 6, 31, 40}
    photos = [b"poison" if place in bad else b"photo" for place in range(41)]
    answer = fail_on_poison(grpc.StatusCode.INVALID_ARGUMENT, "broken", [])
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        found = classify(address, photos)
    assert {place for place, prediction in enumerate(found) if prediction.status is Status.FAILED} == bad
    assert Counter(prediction.status for prediction in found)[Status.OK] == 36


def test_server_that_fails_on_the_probe_too_is_an_error_not_faulty_photos(classify: Classify) -> None:
    seen: list[float] = []
    answer = fail_first(999, grpc.StatusCode.INTERNAL, "no memory left", seen)
    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        pytest.raises(ServerError, match="no memory left"),
    ):
        classify(address, [b"photo"] * 32)
    assert len(seen) == 7, "32, 16, 8, 4, 2, 1 rows, and the probe"


def test_maximum_batch_size_is_learned_from_the_servers_error(classify: Classify) -> None:
    sizes: list[int] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        images = images_of(request)
        sizes.append(len(images))
        if len(images) > 5:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {len(images)} is larger than maximum input batch size 5",
            )
        return answer_for(images)

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        found = classify(address, [b"photo"] * 12)
    assert [prediction.label for prediction in found] == ["apple"] * 12
    assert sizes == [12, 5, 5, 2]


def test_requests_above_the_servers_message_size_are_split(classify: Classify) -> None:
    photos = [bytes(1_500_000)] * 4 + [bytes(5_000_000)]
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with fake_grpc_server(answer, options=[("grpc.max_receive_message_length", 4 << 20)]) as address:
        found = classify(address, photos)
    assert [prediction.status for prediction in found] == [Status.OK] * 4 + [Status.TOO_LARGE]
    assert "larger than max" in (found[4].detail or "")


# --- Inputs and responses ----------------------------------------------------------------------------------


def metadata_of(height: int, width: int) -> Answer:
    declared = protos.SignatureDefMap()
    info = declared.signature_def[contract.CLASSIFY_PIXELS].inputs[contract.PIXELS]
    for size in (-1, height, width, 3):
        info.tensor_shape.dim.add(size=size)

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = protos.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(declared)
        return response

    return answer


def test_photos_may_be_bytes_paths_files_or_pixels(classify: Classify, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"path")
    right = np.full((4, 6, 3), 7, np.uint8)
    other = np.arange(5 * 3 * 3, dtype=np.uint8).reshape(5, 3, 3)
    asked: list[tuple[str, Any]] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        signature = request.model_spec.signature_name
        if signature == contract.CLASSIFY_PIXELS:
            pixels = tensors.decode(request.inputs["pixels"], "pixels")
            asked.append((signature, pixels))
            return answer_for([b"x"] * len(pixels))
        asked.append((signature, images_of(request)))
        return answer_for(images_of(request))

    photos = [b"bytes", right, str(tmp_path / "b.jpg"), other, io.BytesIO(b"bad"), memoryview(b"odd"), right]
    with fake_grpc_server({protos.PREDICT: answer, protos.GET_MODEL_METADATA: metadata_of(4, 6)}) as address:
        found = classify(address, photos)
    assert [p.status for p in found] == ["ok", "ok", "ok", "ok", "corrupt", "ok", "ok"]
    assert found[5].label is None
    assert [signature for signature, _ in asked] == [contract.SERVING_DEFAULT, contract.CLASSIFY_PIXELS]
    sent = asked[0][1]
    assert [sent[place] for place in (0, 1, 3, 4)] == [b"bytes", b"path", b"bad", b"odd"]
    assert np.array_equal(asked[1][1], np.stack([right, right]))
    with Image.open(io.BytesIO(sent[2])) as image:
        assert np.array_equal(np.asarray(image), other), "the model resizes it"


def test_files_beyond_max_bytes_are_read_once_each(classify: Classify) -> None:
    contents = [f"{number}".encode() * 40 for number in range(7)]
    seen: list[list[bytes]] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        seen.append(images_of(request))
        return answer_for(images_of(request))

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        found = classify(address, [io.BytesIO(content) for content in contents], max_bytes=100)
    assert [prediction.status for prediction in found] == [Status.OK] * 7
    assert sorted(itertools.chain(*seen)) == contents
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("photo", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]; it has to be uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (7, "not int"),
        (io.StringIO("text"), "gave str, not bytes"),
    ],
)
def test_invalid_photo_is_an_error_that_says_what_is_expected(
    classify: Classify, photo: Any, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        classify(f"localhost:{free_port()}", [photo])


def test_prediction_has_the_version_that_answered(classify: Classify) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for(images_of(request))
        response.model_spec.version.value = 12
        return response

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        known, unread = classify(address, [b"photo", "/no/such/file"])
    assert (known.version, unread.version) == (12, None)


def test_both_tensor_encodings_of_a_response_are_decoded(classify: Classify) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for(images_of(request))
        scores = tensors.decode(response.outputs["scores"], "scores")
        typed = request.model_spec.version.value == 1
        response.outputs["scores"].CopyFrom(tensors.encode(scores, typed_fields=typed))
        assert bool(response.outputs["scores"].float_val) is typed
        return response

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        assert classify(address, [b"a"], version=1) == classify(address, [b"a"], version=2)


def test_headers_are_sent_with_every_call_from_a_mapping_or_a_function(classify: Classify) -> None:
    tokens = (f"Bearer {number}" for number in itertools.count())
    seen: list[dict[str, str]] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        seen.append({key: value for key, value in context.invocation_metadata() if isinstance(value, str)})
        return answer_for(images_of(request))

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        classify(address, [b"a"], headers={"X-Tenant": "blue"})
        classify(address, [b"a"], headers=lambda: {"authorization": next(tokens)})
    assert seen[0]["x-tenant"] == "blue"
    assert seen[1]["authorization"] == "Bearer 0"


# --- Streams ---------------------------------------------------------------------------------------------


def answer_early_photos_late(request: Any, _: grpc.ServicerContext) -> Any:
    """Answer the first 32 photos later than the others."""
    images = images_of(request)
    time.sleep(0.1 if int(images[0]) < 32 else 0.0)
    return answer_for(images)


def numbered(count: int) -> list[bytes]:
    return [f"{number}".encode() for number in range(count)]


def stream(address: str, photos: Any, *, ordered: bool, asynchronous: bool, **settings: Any) -> list[Any]:
    if not asynchronous:
        with Client(address, model="food", retry=FAST, **settings) as client:
            return list(client.iclassify(photos, ordered=ordered))

    async def collect() -> list[Any]:
        async with AsyncClient(address, model="food", retry=FAST, **settings) as client:
            return [pair async for pair in client.iclassify(photos, ordered=ordered)]

    return asyncio.run(collect())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_iclassify_yields_every_photo_in_order_or_as_completed(asynchronous: bool) -> None:
    photos = numbered(300)
    with fake_grpc_server({protos.PREDICT: answer_early_photos_late}) as address:
        ordered = stream(address, photos, ordered=True, asynchronous=asynchronous)
        loose = stream(address, photos, ordered=False, asynchronous=asynchronous)
    assert [photo for photo, _ in ordered] == photos
    assert sorted(photo for photo, _ in loose) == sorted(photos)
    assert [photo for photo, _ in loose] != photos
    assert all(prediction.label == "apple" for _, prediction in ordered + loose)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_iclassify_reads_ahead_a_bounded_number_of_photos(ordered: bool, asynchronous: bool) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield f"{number}".encode()

    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    settings: dict[str, Any] = {"model": "food", "max_photos": 4, "max_concurrency": 3}
    furthest = 0
    with fake_grpc_server(answer) as address:
        if asynchronous:

            async def take() -> None:
                nonlocal furthest
                async with AsyncClient(address, **settings) as client:
                    answers = client.iclassify(endless(), ordered=ordered)
                    for number in range(500):
                        await anext(answers)
                        furthest = max(furthest, taken - number)
                    await answers.aclose()

            asyncio.run(take())
        else:
            with Client(address, **settings) as client:
                answers = client.iclassify(endless(), ordered=ordered)
                for number in range(500):
                    next(answers)
                    furthest = max(furthest, taken - number)
                answers.close()
    # Four requests of 4 photos, 8 photos being read, and up to two batches being filled.
    assert 4 <= furthest <= 4 * 4 + 8 + 2 * 4


def test_iclassify_accepts_an_async_iterable() -> None:
    async def uploads() -> AsyncIterator[Photo]:
        for photo in numbered(40):
            await asyncio.sleep(0)
            yield photo

    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with fake_grpc_server(answer) as address:
        found = stream(address, uploads(), ordered=True, asynchronous=True)
    assert [photo for photo, _ in found] == numbered(40)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_closing_iclassify_cancels_the_calls_in_flight(asynchronous: bool) -> None:
    cancelled = threading.Semaphore(0)
    asked = threading.Semaphore(0)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if images_of(request)[0] == b"0":
            return answer_for(images_of(request))
        over = threading.Event()
        if not context.add_callback(over.set):
            over.set()
        asked.release()
        if over.wait(20):
            cancelled.release()
        return answer_for(images_of(request))

    begin = time.monotonic()
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        if asynchronous:

            async def leave() -> None:
                async with AsyncClient(address, model="food", timeout=60) as client:
                    answers = client.iclassify(numbered(100), ordered=False)
                    await anext(answers)
                    await asyncio.to_thread(asked.acquire, timeout=20)
                    await answers.aclose()

            asyncio.run(leave())
        else:
            with Client(address, model="food", timeout=60) as client:
                answers = client.iclassify(numbered(100), ordered=False)
                next(answers)
                assert asked.acquire(timeout=20)
                answers.close()
        assert cancelled.acquire(timeout=20), "the cancellation reaches the server"
    assert time.monotonic() - begin < 15


def test_error_in_iclassify_is_raised_at_its_photo_and_ends_the_iteration() -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if int(images_of(request)[0]) >= 64:
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
        return answer_for(images_of(request))

    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="food") as client:
        answers = client.iclassify(numbered(200))
        assert [photo for photo, _ in itertools.islice(answers, 64)] == numbered(64)
        with pytest.raises(ServerError, match="Servable not found"):
            next(answers)


def test_cancelling_a_task_cancels_its_call() -> None:
    cancelled = threading.Event()
    asked = threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(cancelled.set)
        asked.set()
        cancelled.wait(20)
        return answer_for(images_of(request))

    async def cancel() -> None:
        async with AsyncClient(address, model="food", timeout=60) as client:
            task = asyncio.create_task(client.classify([b"photo"]))
            await asyncio.to_thread(asked.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        asyncio.run(cancel())
        assert cancelled.wait(20)


def test_closing_a_client_cancels_its_calls_and_rejects_new_ones() -> None:
    asked = threading.Event()
    release = threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        asked.set()
        release.wait(20)
        return answer_for(images_of(request))

    caught: list[BaseException] = []

    def ask() -> None:
        try:
            client.classify([b"photo"])
        except ServerError as error:
            caught.append(error)

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        client = Client(address, model="food", timeout=60)
        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(20)
        client.close()
        thread.join(20)
        release.set()
    assert [type(error) for error in caught] == [Cancelled]
    with pytest.raises(Cancelled, match="closed"):
        client.classify([b"photo"])


def test_imap_runs_any_signature_in_order() -> None:
    sizes: list[int] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        assert request.model_spec.signature_name == "double"
        x = tensors.decode(request.inputs["x"], "x")
        sizes.append(len(x))
        response = protos.PredictResponse()
        response.outputs["y"].CopyFrom(tensors.encode(2 * x))
        return response

    batches = [{"x": np.full((rows, 2), rows, np.float32)} for rows in (3, 70, 1)]
    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="food") as client:
        found = list(client.imap("double", batches))
        with pytest.raises(InputError, match=r"\[2, 3\] rows"):
            client.run("double", {"x": np.zeros(3), "z": np.zeros(2)})
    assert sorted(sizes) == [1, 3, 70], "rows of a signature that is not a bundle's may depend on each other"
    for batch, outputs in zip(batches, found, strict=True):
        assert np.array_equal(outputs["y"], 2 * batch["x"])


def test_run_raises_on_a_faulty_row_without_isolating_it() -> None:
    seen: list[float] = []
    answer = fail_first(99, grpc.StatusCode.INVALID_ARGUMENT, "Matrix size-incompatible", seen)
    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food") as client,
        pytest.raises(InvalidRequest, match="Matrix size"),
    ):
        client.run("double", {"x": np.zeros((4, 5), np.float32)})
    assert len(seen) == 1


def answer_embeddings(request: Any, _: grpc.ServicerContext) -> Any:
    images = images_of(request)
    response = protos.PredictResponse()
    good = np.array([not image.startswith(b"bad") for image in images])
    response.model_spec.version.value = 3
    outputs = {
        "embedding": np.arange(len(images) * 4, dtype=np.float32).reshape(-1, 4),
        "status": np.array([b"ok" if is_good else b"corrupt" for is_good in good], dtype=object),
        "height": np.where(good, 30, 0).astype(np.int32),
        "width": np.where(good, 40, 0).astype(np.int32),
    }
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(tensors.encode(value, typed_fields=True))
    return response


def test_embeddings_have_status_size_and_version() -> None:
    with (
        fake_grpc_server({protos.PREDICT: answer_embeddings}) as address,
        Client(address, model="food") as client,
    ):
        good, bad, gone, pixels = client.embed([b"a", b"bad", "/no/file", np.zeros((2, 2, 3), np.uint8)])
        [(photo, streamed)] = client.iembed([b"a"])
    assert good.vector is not None
    assert good.vector.tolist() == [0, 1, 2, 3]
    assert (good.status, good.height, good.width, good.version) == (Status.OK, 30, 40, 3)
    assert (bad.status, bad.vector, bad.version) == (Status.CORRUPT, None, 3)
    assert (gone.status, gone.vector, gone.version) == (Status.UNREADABLE, None, None)
    assert pixels.vector is not None
    assert (photo, streamed.status) == (b"a", Status.OK)


EVERYTHING = """
import asyncio, sys
from serving.client import AsyncClient, Client

async def ask():
    async with AsyncClient(sys.argv[1], model="food") as client:
        await client.classify([b"a"])
        return [pair async for pair in client.iclassify([b"a"] * 40)]

with Client(sys.argv[1], model="food") as client:
    client.classify([b"a", "/no/file"])
    list(client.iclassify([b"a"] * 40, ordered=False))
asyncio.run(ask())
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_client_never_imports_tensorflow() -> None:
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with fake_grpc_server(answer) as address:
        done = subprocess.run(
            [sys.executable, "-c", EVERYTHING, address],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    loaded = set(done.stdout.split())
    assert "grpc" in loaded
    assert loaded.isdisjoint({"tensorflow", "tensorflow_serving", "keras", "apache_beam", "PIL", "pyarrow"})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_adaptive_concurrency_limit_keeps_the_queue_of_a_serial_server_short(asynchronous: bool) -> None:
    lock = threading.Lock()
    turn = threading.Lock()
    under_way = 0
    depths: list[int] = []

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        nonlocal under_way
        with lock:
            under_way += 1
            depths.append(under_way)
        with turn:
            time.sleep(0.01)
        with lock:
            under_way -= 1
        return answer_for(images_of(request))

    with fake_grpc_server({protos.PREDICT: answer}, threads=32) as address:
        found = stream(
            address, numbered(120), ordered=True, asynchronous=asynchronous, max_photos=1, max_concurrency=32
        )
    assert len(found) == 120
    settled = sorted(depths[60:])[len(depths[60:]) // 2]
    assert 1 < settled <= 1 + BETA + 2


def test_overloaded_server_slows_iclassify_down_without_losing_photos() -> None:
    running = threading.BoundedSemaphore(2)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if not running.acquire(blocking=False):
            context.abort(grpc.StatusCode.UNAVAILABLE, QUEUE_FULL)
        try:
            time.sleep(0.005)
            return answer_for(images_of(request))
        finally:
            running.release()

    patient = Retry(attempts=50, first=0.01, most=0.1)
    with fake_grpc_server({protos.PREDICT: answer}, threads=32) as address:
        client = Client(address, model="food", retry=patient, max_photos=1, timeout=30)
        with client:
            found = list(client.iclassify(numbered(200)))
    assert [photo for photo, _ in found] == numbered(200)
    assert all(prediction.status is Status.OK for _, prediction in found)


def test_deadline_applies_to_requests_of_iclassify() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        time.sleep(1)
        return answer_for(images_of(request))

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food", timeout=0.2) as client,
        pytest.raises(DeadlineExceeded),
    ):
        list(client.iclassify(numbered(100)))
