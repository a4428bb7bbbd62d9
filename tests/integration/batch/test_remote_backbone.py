"""Photos embedded by a model server: the same rows, faults survived, another model refused."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from batch.commands.score import score as score_command
from batch.embeddings import EmbeddingStore
from batch.inputs.listing import Photo
from batch.jobs import score
from batch.jobs.score import ScoreSettings
from batch.monitoring.stats import Meter, Stats
from batch.scoring import remote_backbone
from batch.scoring.embed import EmbeddedPhotos, ModelResources, embed_photos
from batch.scoring.head_runner import HeadRunner
from batch.shards.shard import Shard
from serving import bundle, contract, protos
from serving.bundle import BundleMetadata
from serving.client import ClientConfig, Retry
from serving.contract import Status
from serving.errors import BundleError, DeadlineExceeded, ModelNotFound, ServerError, ServerUnavailable
from serving.protos import tensors
from serving.server import ServerSettings, start
from tests.support.fake_grpc_server import fake_grpc_server, free_port
from tests.support.score_job import GOOD, make_bundle, read_rows

DIMENSION = 16
LABELS = ["apple", "pear", "plum"]
KERNEL = np.random.default_rng(7).normal(size=(DIMENSION, len(LABELS))).astype(np.float32)

Predict = Callable[[Any, grpc.ServicerContext], Any]


def probabilities(embeddings: NDArray[np.float32], kernel: NDArray[np.float32] = KERNEL) -> Any:
    powers = np.exp(embeddings @ kernel)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def vector(content: bytes) -> NDArray[np.float32]:
    return np.frombuffer(hashlib.md5(content).digest(), np.uint8).astype(np.float32) / 64


def answer(request: Any, _context: grpc.ServicerContext) -> Any:
    """What a bundle's server says: photos that begin with GOOD are ok."""
    response = protos.PredictResponse()
    response.model_spec.version.value = request.model_spec.version.value
    outputs: dict[str, Any]
    if request.model_spec.signature_name == contract.CLASSIFY_EMBEDDING:
        embeddings = tensors.decode(request.inputs[contract.EMBEDDING], contract.EMBEDDING)
        outputs = {contract.PROBABILITIES: probabilities(embeddings)}
    else:
        images = list(request.inputs[contract.IMAGE_BYTES].string_val)
        good = [image.startswith(GOOD) for image in images]
        sizes = np.array([len(image) * fine for image, fine in zip(images, good, strict=True)], np.int32)
        outputs = {
            contract.EMBEDDING: np.stack([vector(image) for image in images]),
            contract.STATUS: [b"ok" if fine else b"not_an_image" for fine in good],
            contract.HEIGHT: sizes,
            contract.WIDTH: 2 * sizes,
        }
    for name, values in outputs.items():
        response.outputs[name].CopyFrom(tensors.encode(values))
    return response


def describe(request: Any, context: grpc.ServicerContext, *, dimension: int = DIMENSION) -> Any:
    """The signatures of version 3, which alone is served, and carries the label "stable"."""
    if request.model_spec.version.value not in (0, 3) or request.model_spec.name != "food":
        context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(food, 9)")
    declared = protos.SignatureDefMap()
    for name, side in ((contract.EMBED, "outputs"), (contract.CLASSIFY_EMBEDDING, "inputs")):
        info = getattr(declared.signature_def[name], side)[contract.EMBEDDING]
        info.dtype = protos.DataType.Value("DT_FLOAT")
        for size in (-1, dimension):
            info.tensor_shape.dim.add(size=size)
    response = protos.GetModelMetadataResponse()
    response.model_spec.name = "food"
    response.model_spec.version.value = 3
    response.metadata["signature_def"].Pack(declared)
    return response


@contextmanager
def serving(predict: Predict = answer, metadata: Predict = describe, port: int = 0) -> Iterator[str]:
    with fake_grpc_server({protos.PREDICT: predict, protos.GET_MODEL_METADATA: metadata}, port) as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle by its papers; its graph is never loaded here."""
    path = tmp_path / "models" / "food" / "3"
    path.mkdir(parents=True)
    (path / contract.SAVED_MODEL_FILE).write_bytes(b"")
    BundleMetadata(
        labels=LABELS,
        backbone={"fingerprint": "f", "dimension": DIMENSION},
        preprocessing={},
        calibration={"temperature": 1.0, "threshold": 0.1},
        top_k=2,
    ).write(path)
    return path


def head_of(path: Path, kernel: NDArray[np.float32] = KERNEL) -> HeadRunner:
    head = HeadRunner(bundle.read(path))
    head.__dict__["run"] = lambda inputs: {
        contract.PROBABILITIES: probabilities(inputs[contract.EMBEDDING], kernel)
    }
    return head


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """200 photos, one of them of no use and two alike."""
    contents = [GOOD + bytes([number]) * (number + 1) for number in range(198)]
    photos = []
    for number, content in enumerate([*contents, b"hello, I am text", contents[5]]):
        path = tmp_path / f"{number:03}.jpg"
        path.write_bytes(content)
        photos.append(Photo(str(path), len(content), 1))
    return Shard("s", photos)


@pytest.fixture
def worker(model: Path, tmp_path: Path) -> Callable[..., ModelResources]:
    def made(address: str, **settings: Any) -> ModelResources:
        head = head_of(model)
        server = ClientConfig(address, **{"timeout": 20.0, **settings})
        store = EmbeddingStore(str(tmp_path / "store"), "f", DIMENSION)
        return ModelResources(head, store, Meter(), partial(remote_backbone.connect, server, [head]))

    return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        remote_backbone, "RETRY_UNTIL_TIMEOUT", Retry(attempts=1 << 30, first=0.01, most=0.05)
    )


def embedded(shard: Shard, worker: ModelResources) -> tuple[EmbeddedPhotos, Stats]:
    stats = Stats(photos=len(shard.photos))
    return embed_photos(shard.photos, worker, stats), stats


def check(found: EmbeddedPhotos, shard: Shard) -> None:
    """Every photo has its own embedding."""
    rows = found.embeddings.row_by_digest()
    for photo in shard.photos:
        row, content = rows[found.shas[photo]], Path(photo.uri).read_bytes()
        if content.startswith(GOOD):
            assert np.array_equal(found.embeddings.vectors[row], vector(content).astype(np.float16))
            assert (found.embeddings.heights[row], found.embeddings.widths[row]) == (
                len(content),
                2 * len(content),
            )
        else:
            assert found.embeddings.statuses[row] is Status.NOT_AN_IMAGE


def test_every_photo_has_the_embedding_that_the_server_gave(
    shard: Shard, worker: Callable[..., ModelResources]
) -> None:
    asked: list[tuple[int, int]] = []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_spec.signature_name == contract.EMBED:
            asked.append((request.model_spec.version.value, len(request.inputs["image_bytes"].string_val)))
        return answer(request, context)

    with serving(predict) as address:
        mine = worker(address)
        found, stats = embedded(shard, mine)
        check(found, shard)
        assert stats.embedded == 199, "the twin is asked for once"
        assert {version for version, _ in asked} == {3}, "of the version that was looked at"
        assert sum(rows for _, rows in asked) == 199
        assert max(rows for _, rows in asked) > 1
        before = len(asked)
        check(embedded(shard, mine)[0], shard)
        assert len(asked) == before, "all are in the store"


def test_an_overloaded_server_slows_the_job_down(shard: Shard, worker: Callable[..., ModelResources]) -> None:
    lock, refused, calls = threading.Lock(), [0], [0]

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        with lock:
            calls[0] += 1
            turn = calls[0] % 4
        if turn:  # three of four are refused
            refused[0] += 1
            code = grpc.StatusCode.UNAVAILABLE if turn == 1 else grpc.StatusCode.RESOURCE_EXHAUSTED
            context.abort(code, "The batch scheduling queue to which this task was submitted is full")
        return answer(request, context)

    with serving(predict) as address:
        found, _ = embedded(shard, worker(address))
    check(found, shard)
    assert refused[0] > 10


def test_a_server_that_comes_back_is_waited_for(shard: Shard, worker: Callable[..., ModelResources]) -> None:
    port, done, results = free_port(), threading.Event(), []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_spec.signature_name == contract.EMBED:
            done.set()
        return answer(request, context)

    def run() -> None:
        results.append(embedded(shard, mine)[0])

    mine = worker(f"localhost:{port}")
    job = threading.Thread(target=run)
    with serving(predict, port=port):
        assert mine.backbone
        job.start()
        assert done.wait(20)
    time.sleep(0.3)  # it is away while photos are to be embedded
    with serving(port=port):
        job.join(20)
    assert not job.is_alive()
    check(results[0], shard)


def test_a_server_that_stays_away_ends_the_run_and_what_it_said_is_kept(
    shard: Shard, worker: Callable[..., ModelResources]
) -> None:
    given: list[bytes] = []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        if len(given) + len(images) > 100:
            context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
        given.extend(images)
        return answer(request, context)

    with serving(predict) as address:
        mine = worker(address, timeout=1.0)
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"No model server.*Then run the same command"):
            embedded(shard, mine)
        assert time.monotonic() - begun < 15
    assert len(given) > 10
    asked: list[bytes] = []

    def second(request: Any, context: grpc.ServicerContext) -> Any:
        asked.extend(request.inputs["image_bytes"].string_val)
        return answer(request, context)

    with serving(second) as address:
        found, _ = embedded(shard, worker(address))
    check(found, shard)
    assert len(asked) < 199, "what the first run was told was kept"


def test_a_photo_that_the_server_fails_on_is_a_row_and_tried_another_time(
    shard: Shard, worker: Callable[..., ModelResources]
) -> None:
    guilty, heals = shard.photos[17], threading.Event()
    poison = Path(guilty.uri).read_bytes()

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if poison in request.inputs["image_bytes"].string_val and not heals.is_set():
            context.abort(grpc.StatusCode.INTERNAL, "a bug met a photo")
        return answer(request, context)

    with serving(predict) as address:
        mine = worker(address)
        found, stats = embedded(shard, mine)
        assert list(found.rejections) == [guilty]
        assert found.rejections[guilty].rejection.status is Status.FAILED
        assert "a bug met a photo" in found.rejections[guilty].rejection.detail
        assert stats.embedded == 198
        heals.set()
        found, stats = embedded(shard, mine)
        check(found, shard)
        assert stats.embedded == 1


class TestTheServerHasToServeTheModel:
    def test_nothing_answers(self, model: Path) -> None:
        server = ClientConfig(f"localhost:{free_port()}", timeout=300)
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable, match="No model server answers"):
            remote_backbone.resolve_version(server, [bundle.read(model)])
        assert time.monotonic() - begun < remote_backbone.FIRST_RESPONSE_SECONDS + 5

    def test_a_server_that_says_nothing_is_not_waited_for_long(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_backbone, "FIRST_RESPONSE_SECONDS", 0.5)
        hang = threading.Event()

        def metadata(request: Any, context: grpc.ServicerContext) -> Any:
            hang.wait(20)
            return describe(request, context)

        with serving(metadata=metadata) as address:
            with pytest.raises(DeadlineExceeded):
                remote_backbone.resolve_version(ClientConfig(address, timeout=300), [bundle.read(model)])
            hang.set()

    def test_the_bundles_own_version_is_asked_for(self, model: Path) -> None:
        with serving() as address:
            found = remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])
            assert (found.model, found.version) == ("food", 3)
            model.rename(model.with_name("9"))
            about = bundle.read(model.with_name("9"))
            with pytest.raises(ModelNotFound, match="food/9 there, or say what it is called"):
                remote_backbone.resolve_version(ClientConfig(address), [about])
            labelled = remote_backbone.resolve_version(ClientConfig(address, label="stable"), [about])
            assert (labelled.version, labelled.label) == (3, None), "by number from here on"

    def test_embeddings_of_another_size(self, model: Path) -> None:
        expected = pytest.raises(BundleError, match=r"embeddings of 8 numbers; those of .*food/3 have 16")
        with serving(metadata=partial(describe, dimension=8)) as address, expected:
            remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])

    def test_no_model_of_hubhead(self, model: Path) -> None:
        def metadata(request: Any, context: grpc.ServicerContext) -> Any:
            response = describe(request, context)
            declared = protos.SignatureDefMap()
            declared.signature_def["serving_default"].SetInParent()
            response.metadata["signature_def"].Pack(declared)
            return response

        expected = pytest.raises(BundleError, match="has no signature 'embed'")
        with serving(metadata=metadata) as address, expected:
            remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])

    def test_another_head_is_another_model_and_no_photo_is_sent(
        self, model: Path, shard: Shard, worker: Callable[..., ModelResources]
    ) -> None:
        asked = []

        def predict(request: Any, context: grpc.ServicerContext) -> Any:
            asked.append(request.model_spec.signature_name)
            return answer(request, context)

        kernel = KERNEL.copy()
        kernel[3, 1] += 0.2  # one weight
        with serving(predict) as address:
            with pytest.raises(BundleError, match="its head gives other probabilities"):
                remote_backbone.connect(ClientConfig(address), [head_of(model, kernel)])
            assert set(asked) == {contract.CLASSIFY_EMBEDDING}
            either = remote_backbone.connect(ClientConfig(address), [head_of(model, kernel), head_of(model)])
            assert isinstance(either, remote_backbone.RemoteBackbone), "one of several models is enough"

    def test_noise_of_another_processor_is_no_other_model(self, model: Path) -> None:
        with serving() as address:
            kernel = KERNEL * (1 + 2e-4)
            assert remote_backbone.connect(ClientConfig(address), [head_of(model, kernel)])


class TestCommand:
    GIVEN = ("--photos", "p", "--model", "m", "--output", "o")

    def test_flags_of_the_server_need_one(self) -> None:
        result = CliRunner().invoke(score_command, [*self.GIVEN, "--model_version", "3"])
        assert (result.exit_code, "--model_version goes with --server" in result.output) == (2, True)

    def test_help_shows_the_timeout_and_its_default(self) -> None:
        text = " ".join(CliRunner().invoke(score_command, ["--help"]).output.split())
        assert "retries included. [default: 300.0;" in text

    def test_both_ways_to_name_a_version(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "one.jpg").write_bytes(GOOD)
        given = ["--photos", str(tmp_path / "one.jpg"), "--model", str(model), "--server", "x:1"]
        given += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
        result = CliRunner().invoke(score_command, [*given, "--model_version", "3", "--label", "stable"])
        assert (result.exit_code, "give one of them" in result.output) == (2, True)

    def test_a_server_that_is_away_is_said_before_any_work(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "one.jpg").write_bytes(GOOD)
        given = ScoreSettings(
            (model,),
            str(tmp_path / "out"),
            photos=str(tmp_path / "one.jpg"),
            embedding_store=str(tmp_path / "store"),
            server=ClientConfig(f"localhost:{free_port()}"),
        )
        with pytest.raises(ServerError, match="No model server answers"):
            score.score(given)
        assert not (tmp_path / "out" / "_hubhead" / "input.json").exists()


@pytest.mark.tf
@pytest.mark.beam
def test_the_rows_are_those_of_a_run_without_a_server(tmp_path: Path) -> None:
    """Through `hubhead serve`, and no credential gets into run.json."""
    model = make_bundle(tmp_path / "models" / "food" / "3")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]) * (number + 1))
    (photos / "text.jpg").write_bytes(b"hello, I am text")
    (photos / "cut.jpg").write_bytes(b"CUT off in the middle")

    def settings(name: str, **changes: Any) -> ScoreSettings:
        return ScoreSettings(
            (model,),
            str(tmp_path / name),
            photos=str(photos),
            embedding_store=str(tmp_path / f"{name}-store"),
            shard_size=25,
            **changes,
        )

    here = settings("here")
    score.score(here)
    with start(ServerSettings(model_base_path=model.parent, port=0)) as server:
        address = ClientConfig(f"localhost:{server.port}", headers={"authorization": "secret"}, timeout=30)
        there = settings("there", server=address)
        summary = score.score(there)
    assert summary.this_run.embedded == 62
    assert read_rows(tmp_path / "there") == read_rows(tmp_path / "here")
    run = (tmp_path / "there" / "run.json").read_text()
    assert json.loads(run)["settings"]["server"]["server"] == address.target
    assert "secret" not in run
    # What it left is done without it: the output and the store are the same.
    assert score.score(replace(there, server=None)).worked_shards == 0
    assert pq.read_table(tmp_path / "there" / "scores").num_rows == 62
