"""The clients against a server that misbehaves: retries, splitting, the guilty photo, cancellation, flow.

Each test of a behaviour that both clients have runs once with each.
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

QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full; currently 9 batches"
QUEUE_TIMEOUT = "Run() timeout exceeded while waiting in batching queue"
FAST = Retry(attempts=4, first=0.001, most=0.01)

Classify = Callable[..., list[Prediction]]


def by_client(address: str, photos: Sequence[Photo], **settings: Any) -> list[Prediction]:
    with Client(address, **{"model": "food", "retry": FAST, **settings}) as client:
        return client.classify(photos)


def by_async_client(address: str, photos: Sequence[Photo], **settings: Any) -> list[Prediction]:
    async def classify() -> list[Prediction]:
        async with AsyncClient(address, **{"model": "food", "retry": FAST, **settings}) as client:
            return await client.classify(photos)

    return asyncio.run(classify())


@pytest.fixture(params=[by_client, by_async_client], ids=["Client", "AsyncClient"])
def classify(request: pytest.FixtureRequest) -> Classify:
    return request.param  # type: ignore[no-any-return]


def images_of(request: Any) -> list[bytes]:
    return list(request.inputs["image_bytes"].string_val)


def failing(times: int, code: grpc.StatusCode, details: str, seen: list[float]) -> Answer:
    """Fails so often, then answers; notes when it was asked."""

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
def test_what_passes_by_itself_is_tried_again(
    classify: Classify, code: grpc.StatusCode, details: str
) -> None:
    seen: list[float] = []
    with fake_grpc_server({protos.PREDICT: failing(2, code, details, seen)}) as address:
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
def test_what_would_fail_again_is_asked_once(classify: Classify, code: grpc.StatusCode, details: str) -> None:
    seen: list[float] = []
    with (
        fake_grpc_server({protos.PREDICT: failing(99, code, details, seen)}) as address,
        pytest.raises(ServerError) as caught,
    ):
        classify(address, [b"a", b"b", b"c"])
    assert (caught.value.code, caught.value.details) == (code.name, details)
    assert len(seen) == 1


def test_retries_end_with_the_attempts_and_the_last_failure(classify: Classify) -> None:
    seen: list[float] = []
    answer = failing(99, grpc.StatusCode.UNAVAILABLE, QUEUE_FULL, seen)
    with fake_grpc_server({protos.PREDICT: answer}) as address, pytest.raises(Overloaded):
        classify(address, [b"photo"])
    assert len(seen) == FAST.attempts


def test_retries_end_with_the_deadline(classify: Classify) -> None:
    patient = Retry(attempts=1000, first=0.2, most=0.2)
    seen: list[float] = []
    answer = failing(9999, grpc.StatusCode.UNAVAILABLE, QUEUE_FULL, seen)
    with fake_grpc_server({protos.PREDICT: answer}) as address, pytest.raises(Overloaded):
        classify(address, [b"photo"], retry=patient, timeout=1.0)
    assert 2 <= len(seen) < 1000
    assert seen[-1] - seen[0] <= 1.0


def test_a_server_that_starts_late_is_waited_for_by_retries() -> None:
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


def test_a_server_that_sends_its_clients_away_loses_no_request() -> None:
    # max_connection_age: GOAWAY after 100 ms, again and again, as behind a load balancer.
    ageing = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 2000)]
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with (
        fake_grpc_server(answer, options=ageing) as address,
        Client(address, model="food", retry=FAST) as client,
    ):
        end = time.monotonic() + 2
        count = 0
        while time.monotonic() < end:
            assert client.classify([b"photo"])[0].label == "apple"
            count += 1
    assert count > 20


# --- One bad photo among many ----------------------------------------------------------------------------


def guilty(code: grpc.StatusCode, details: str, sizes: list[int]) -> Answer:
    """A merged request fails as a whole where one photo of it is poison."""

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
def test_a_photo_that_fails_its_request_is_found_and_the_others_are_answered(
    classify: Classify, code: grpc.StatusCode, details: str
) -> None:
    photos = [b"photo"] * 32
    photos[13] = b"poison"
    sizes: list[int] = []
    with fake_grpc_server({protos.PREDICT: guilty(code, details, sizes)}) as address:
        found = classify(address, photos)
    assert found[13].status is Status.FAILED
    assert found[13].detail == details
    assert [prediction.label for place, prediction in enumerate(found) if place != 13] == ["apple"] * 31
    assert len(sizes) <= 2 * 5 + 2, (
        "halving 32 takes two requests a level, and one to see that the server is well"
    )


def test_several_bad_photos_also_in_a_request_of_their_own(classify: Classify) -> None:
    bad = {0, 5, 6, 31, 40}
    photos = [b"poison" if place in bad else b"photo" for place in range(41)]
    answer = guilty(grpc.StatusCode.INVALID_ARGUMENT, "broken", [])
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        found = classify(address, photos)
    assert {place for place, prediction in enumerate(found) if prediction.status is Status.FAILED} == bad
    assert Counter(prediction.status for prediction in found)[Status.OK] == 36


def test_a_server_that_fails_on_everything_is_an_error_not_many_bad_photos(classify: Classify) -> None:
    seen: list[float] = []
    answer = failing(999, grpc.StatusCode.INTERNAL, "no memory left", seen)
    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        pytest.raises(ServerError, match="no memory left"),
    ):
        classify(address, [b"photo"] * 32)
    assert len(seen) == 7, "32, 16, 8, 4, 2, 1, and a photo without fault"


def test_the_servers_batch_size_is_learned_from_its_refusal(classify: Classify) -> None:
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


def test_a_server_that_takes_four_megabytes_gets_smaller_requests(classify: Classify) -> None:
    photos = [bytes(1_500_000)] * 4 + [bytes(5_000_000)]
    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with fake_grpc_server(answer, options=[("grpc.max_receive_message_length", 4 << 20)]) as address:
        found = classify(address, photos)
    assert [prediction.status for prediction in found] == [Status.OK] * 4 + [Status.TOO_LARGE]
    assert "larger than max" in (found[4].detail or "")


# --- What may be a photo ---------------------------------------------------------------------------------


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


def test_bytes_paths_files_and_pixels_are_photos(classify: Classify, tmp_path: Path) -> None:
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


def test_files_of_more_than_a_request_holds_are_read_once_each(classify: Classify) -> None:
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
def test_what_is_no_photo_is_an_error_that_says_what_would_be(
    classify: Classify, photo: Any, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        classify(f"localhost:{free_port()}", [photo])


def test_an_answer_names_the_version_that_gave_it(classify: Classify) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for(images_of(request))
        response.model_spec.version.value = 12
        return response

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        known, unread = classify(address, [b"photo", "/no/such/file"])
    assert (known.version, unread.version) == (12, None)


def test_an_answer_in_either_tensor_encoding_is_read(classify: Classify) -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        response = answer_for(images_of(request))
        scores = tensors.decode(response.outputs["scores"], "scores")
        typed = request.model_spec.version.value == 1
        response.outputs["scores"].CopyFrom(tensors.encode(scores, typed_fields=typed))
        assert bool(response.outputs["scores"].float_val) is typed
        return response

    with fake_grpc_server({protos.PREDICT: answer}) as address:
        assert classify(address, [b"a"], version=1) == classify(address, [b"a"], version=2)


def test_headers_go_with_every_call_also_from_a_function(classify: Classify) -> None:
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


def slowly(request: Any, _: grpc.ServicerContext) -> Any:
    """The sooner a photo, the later its answer."""
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
def test_a_stream_answers_every_photo_in_order_or_as_it_comes(asynchronous: bool) -> None:
    photos = numbered(300)
    with fake_grpc_server({protos.PREDICT: slowly}) as address:
        ordered = stream(address, photos, ordered=True, asynchronous=asynchronous)
        loose = stream(address, photos, ordered=False, asynchronous=asynchronous)
    assert [photo for photo, _ in ordered] == photos
    assert sorted(photo for photo, _ in loose) == sorted(photos)
    assert [photo for photo, _ in loose] != photos
    assert all(prediction.label == "apple" for _, prediction in ordered + loose)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream_reads_no_further_ahead_than_it_must(ordered: bool, asynchronous: bool) -> None:
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
    # Four requests of 4, the photos being read, and one group that is being filled.
    assert 4 <= furthest <= 4 * 4 + 8 + 2 * 4


def test_an_asynchronous_source_of_photos_is_streamed() -> None:
    async def uploads() -> AsyncIterator[Photo]:
        for photo in numbered(40):
            await asyncio.sleep(0)
            yield photo

    answer: dict[str, Answer] = {protos.PREDICT: lambda request, _: answer_for(images_of(request))}
    with fake_grpc_server(answer) as address:
        found = stream(address, uploads(), ordered=True, asynchronous=True)
    assert [photo for photo, _ in found] == numbered(40)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_leaving_a_stream_gives_up_its_calls(asynchronous: bool) -> None:
    given_up = threading.Semaphore(0)
    asked = threading.Semaphore(0)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if images_of(request)[0] == b"0":
            return answer_for(images_of(request))
        over = threading.Event()
        if not context.add_callback(over.set):
            over.set()
        asked.release()
        if over.wait(20):
            given_up.release()
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
        assert given_up.acquire(timeout=20), "the server hears that nobody waits for the answer"
    assert time.monotonic() - begin < 15


def test_a_failure_in_a_stream_is_raised_at_its_place_and_ends_it() -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if int(images_of(request)[0]) >= 64:
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
        return answer_for(images_of(request))

    with fake_grpc_server({protos.PREDICT: answer}) as address, Client(address, model="food") as client:
        answers = client.iclassify(numbered(200))
        assert [photo for photo, _ in itertools.islice(answers, 64)] == numbered(64)
        with pytest.raises(ServerError, match="Servable not found"):
            next(answers)


def test_a_cancelled_task_gives_up_its_call() -> None:
    given_up = threading.Event()
    asked = threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(given_up.set)
        asked.set()
        given_up.wait(20)
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
        assert given_up.wait(20)


def test_a_client_that_is_closed_ends_its_calls_and_takes_no_more() -> None:
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


def test_batches_of_any_signature_go_through_in_order_and_in_parts_where_they_are_large() -> None:
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
    assert sorted(sizes) == [1, 3, 6, 32, 32]
    for batch, outputs in zip(batches, found, strict=True):
        assert np.array_equal(outputs["y"], 2 * batch["x"])


def test_a_bad_row_of_a_batch_of_any_signature_is_an_error() -> None:
    seen: list[float] = []
    answer = failing(99, grpc.StatusCode.INVALID_ARGUMENT, "Matrix size-incompatible", seen)
    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food") as client,
        pytest.raises(InvalidRequest, match="Matrix size"),
    ):
        client.run("double", {"x": np.zeros((4, 5), np.float32)})
    assert len(seen) == 1


def embedded(request: Any, _: grpc.ServicerContext) -> Any:
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


def test_embeddings_come_with_status_size_and_version() -> None:
    with fake_grpc_server({protos.PREDICT: embedded}) as address, Client(address, model="food") as client:
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


def test_a_client_at_work_never_imports_tensorflow() -> None:
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
def test_a_bulk_caller_keeps_few_requests_at_a_server_that_works_on_one(asynchronous: bool) -> None:
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


def test_a_refused_bulk_caller_slows_down_and_loses_nothing() -> None:
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


def test_a_slow_server_meets_the_deadline_in_a_stream() -> None:
    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        time.sleep(1)
        return answer_for(images_of(request))

    with (
        fake_grpc_server({protos.PREDICT: answer}) as address,
        Client(address, model="food", timeout=0.2) as client,
        pytest.raises(DeadlineExceeded),
    ):
        list(client.iclassify(numbered(100)))
