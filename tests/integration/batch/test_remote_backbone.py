"""Photos embedded on a model server: identical rows, retries, and rejection of another model."""

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
from serving.process import get_cpu_model
from serving.protos import tensors
from serving.server import ServerSettings, start
from tests.support.fake_grpc_server import fake_grpc_server, free_port
from tests.support.score_job import GOOD, make_bundle, read_rows

DIMENSION = 16
LABELS = ["apple", "pear", "plum"]
KERNEL = np.random.default_rng(7).normal(size=(DIMENSION, len(LABELS))).astype(np.float32)

pytestmark = pytest.mark.server

Predict = Callable[[Any, grpc.ServicerContext], Any]


def probabilities(embeddings: NDArray[np.float32], kernel: NDArray[np.float32] = KERNEL) -> Any:
    powers = np.exp(embeddings @ kernel)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def expected_embedding(content: bytes) -> NDArray[np.float32]:
    return np.frombuffer(hashlib.md5(content).digest(), np.uint8).astype(np.float32) / 64


def fake_predict(request: Any, _context: grpc.ServicerContext) -> Any:
    """Answer Predict like the server of a bundle: photos that begin with GOOD are ok."""
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
            contract.EMBEDDING: np.stack([expected_embedding(image) for image in images]),
            contract.STATUS: [b"ok" if fine else b"not_an_image" for fine in good],
            contract.HEIGHT: sizes,
            contract.WIDTH: 2 * sizes,
        }
    for name, values in outputs.items():
        response.outputs[name].CopyFrom(tensors.encode(values))
    return response


def fake_metadata(request: Any, context: grpc.ServicerContext, *, dimension: int = DIMENSION) -> Any:
    """Answer GetModelMetadata for version 3, the only one, which has the version label "stable"."""
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
def fake_server(
    predict: Predict = fake_predict, metadata: Predict = fake_metadata, port: int = 0
) -> Iterator[str]:
    with fake_grpc_server({protos.PREDICT: predict, protos.GET_MODEL_METADATA: metadata}, port) as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle with metadata only; its graph is never loaded here."""
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


def make_head(path: Path, kernel: NDArray[np.float32] = KERNEL) -> HeadRunner:
    head = HeadRunner(bundle.read(path))
    head.__dict__["run"] = lambda inputs: {
        contract.PROBABILITIES: probabilities(inputs[contract.EMBEDDING], kernel)
    }
    return head


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """A shard of 200 photos, one of them no image and two identical."""
    contents = [GOOD + bytes([number]) * (number + 1) for number in range(198)]
    photos = []
    for number, content in enumerate([*contents, b"hello, I am text", contents[5]]):
        path = tmp_path / f"{number:03}.jpg"
        path.write_bytes(content)
        photos.append(Photo(str(path), len(content), 1))
    return Shard("s", photos)


@pytest.fixture
def connect_model(model: Path, tmp_path: Path) -> Callable[..., ModelResources]:
    def connect(address: str, **settings: Any) -> ModelResources:
        head = make_head(model)
        server = ClientConfig(address, **{"timeout": 20.0, **settings})
        store = EmbeddingStore(str(tmp_path / "store"), "f", DIMENSION)
        return ModelResources(head, store, Meter(), partial(remote_backbone.connect, server, [head]))

    return connect


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        remote_backbone, "RETRY_UNTIL_TIMEOUT", Retry(attempts=1 << 30, first=0.01, most=0.05)
    )


def embed(shard: Shard, model: ModelResources) -> tuple[EmbeddedPhotos, Stats]:
    stats = Stats(photos=len(shard.photos))
    return embed_photos(shard.photos, model, stats), stats


def check_embeddings(found: EmbeddedPhotos, shard: Shard) -> None:
    """Check that each photo has its own embedding."""
    rows = found.embeddings.row_by_digest()
    for photo in shard.photos:
        row, content = rows[found.shas[photo]], Path(photo.uri).read_bytes()
        if content.startswith(GOOD):
            assert np.array_equal(
                found.embeddings.vectors[row], expected_embedding(content).astype(np.float16)
            )
            assert (found.embeddings.heights[row], found.embeddings.widths[row]) == (
                len(content),
                2 * len(content),
            )
        else:
            assert found.embeddings.statuses[row] is Status.NOT_AN_IMAGE


def test_each_photo_gets_the_embedding_of_the_server(
    shard: Shard, connect_model: Callable[..., ModelResources]
) -> None:
    requests: list[tuple[int, int]] = []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_spec.signature_name == contract.EMBED:
            requests.append((request.model_spec.version.value, len(request.inputs["image_bytes"].string_val)))
        return fake_predict(request, context)

    with fake_server(predict) as address:
        connected = connect_model(address)
        found, stats = embed(shard, connected)
        check_embeddings(found, shard)
        assert stats.embedded == 199, "identical photos are sent once"
        assert {version for version, _ in requests} == {3}, "requests name the version that was verified"
        assert sum(rows for _, rows in requests) == 199
        assert max(rows for _, rows in requests) > 1
        before = len(requests)
        check_embeddings(embed(shard, connected)[0], shard)
        assert len(requests) == before, "all embeddings are in the store"


def test_overloaded_server_is_retried_with_backoff(
    shard: Shard, connect_model: Callable[..., ModelResources]
) -> None:
    lock, rejected, calls = threading.Lock(), [0], [0]

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        with lock:
            calls[0] += 1
            turn = calls[0] % 4
        if turn:  # three of four requests are rejected
            rejected[0] += 1
            code = grpc.StatusCode.UNAVAILABLE if turn == 1 else grpc.StatusCode.RESOURCE_EXHAUSTED
            context.abort(code, "The batch scheduling queue to which this task was submitted is full")
        return fake_predict(request, context)

    with fake_server(predict) as address:
        found, _ = embed(shard, connect_model(address))
    check_embeddings(found, shard)
    assert rejected[0] > 10


def test_restarting_server_is_waited_for(shard: Shard, connect_model: Callable[..., ModelResources]) -> None:
    port, done, results = free_port(), threading.Event(), []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_spec.signature_name == contract.EMBED:
            done.set()
        return fake_predict(request, context)

    def run() -> None:
        results.append(embed(shard, connected)[0])

    connected = connect_model(f"localhost:{port}")
    job = threading.Thread(target=run)
    with fake_server(predict, port=port):
        assert connected.backbone
        job.start()
        assert done.wait(20)
    time.sleep(0.3)  # the server is down while photos are to be embedded
    with fake_server(port=port):
        job.join(20)
    assert not job.is_alive()
    check_embeddings(results[0], shard)


def test_unreachable_server_ends_the_run_and_embeddings_so_far_are_kept(
    shard: Shard, connect_model: Callable[..., ModelResources]
) -> None:
    given: list[bytes] = []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        images = list(request.inputs["image_bytes"].string_val)
        if len(given) + len(images) > 100:
            context.abort(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")
        given.extend(images)
        return fake_predict(request, context)

    with fake_server(predict) as address:
        connected = connect_model(address, timeout=1.0)
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"No model server.*Then run the same command"):
            embed(shard, connected)
        assert time.monotonic() - begun < 15
    assert len(given) > 10
    requests: list[bytes] = []

    def second(request: Any, context: grpc.ServicerContext) -> Any:
        requests.extend(request.inputs["image_bytes"].string_val)
        return fake_predict(request, context)

    with fake_server(second) as address:
        found, _ = embed(shard, connect_model(address))
    check_embeddings(found, shard)
    assert len(requests) < 199, "embeddings of the first run were kept"


def test_photo_that_fails_on_the_server_is_rejected_and_retried_in_the_next_run(
    shard: Shard, connect_model: Callable[..., ModelResources]
) -> None:
    failing, fixed = shard.photos[17], threading.Event()
    poison = Path(failing.uri).read_bytes()

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if poison in request.inputs["image_bytes"].string_val and not fixed.is_set():
            context.abort(grpc.StatusCode.INTERNAL, "a bug met a photo")
        return fake_predict(request, context)

    with fake_server(predict) as address:
        connected = connect_model(address)
        found, stats = embed(shard, connected)
        assert list(found.rejections) == [failing]
        assert found.rejections[failing].rejection.status is Status.FAILED
        assert "a bug met a photo" in found.rejections[failing].rejection.detail
        assert stats.embedded == 198
        fixed.set()
        found, stats = embed(shard, connected)
        check_embeddings(found, shard)
        assert stats.embedded == 1


class TestServedModelIsVerified:
    def test_unreachable_server_is_reported_quickly(self, model: Path) -> None:
        server = ClientConfig(f"localhost:{free_port()}", timeout=300)
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable, match="No model server answers"):
            remote_backbone.resolve_version(server, [bundle.read(model)])
        assert time.monotonic() - begun < remote_backbone.FIRST_RESPONSE_SECONDS + 5

    def test_unresponsive_server_is_reported_quickly(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_backbone, "FIRST_RESPONSE_SECONDS", 0.5)
        hang = threading.Event()

        def metadata(request: Any, context: grpc.ServicerContext) -> Any:
            hang.wait(20)
            return fake_metadata(request, context)

        with fake_server(metadata=metadata) as address:
            with pytest.raises(DeadlineExceeded):
                remote_backbone.resolve_version(ClientConfig(address, timeout=300), [bundle.read(model)])
            hang.set()

    def test_version_defaults_to_the_bundle_and_labels_resolve_to_numbers(self, model: Path) -> None:
        with fake_server() as address:
            found = remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])
            assert (found.model, found.version) == ("food", 3)
            model.rename(model.with_name("9"))
            about = bundle.read(model.with_name("9"))
            with pytest.raises(ModelNotFound, match="food/9 there, or give its name on the server"):
                remote_backbone.resolve_version(ClientConfig(address), [about])
            labelled = remote_backbone.resolve_version(ClientConfig(address, label="stable"), [about])
            assert (labelled.version, labelled.label) == (3, None), "the label is resolved to a number"

    def test_embeddings_of_another_dimension_are_rejected(self, model: Path) -> None:
        expected = pytest.raises(BundleError, match=r"embeddings of 8 numbers; those of .*food/3 have 16")
        with fake_server(metadata=partial(fake_metadata, dimension=8)) as address, expected:
            remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])

    def test_model_without_the_embed_signature_is_rejected(self, model: Path) -> None:
        def metadata(request: Any, context: grpc.ServicerContext) -> Any:
            response = fake_metadata(request, context)
            declared = protos.SignatureDefMap()
            declared.signature_def["serving_default"].SetInParent()
            response.metadata["signature_def"].Pack(declared)
            return response

        expected = pytest.raises(BundleError, match="has no signature 'embed'")
        with fake_server(metadata=metadata) as address, expected:
            remote_backbone.resolve_version(ClientConfig(address), [bundle.read(model)])

    def test_model_with_another_head_is_rejected_before_photos_are_sent(
        self, model: Path, shard: Shard, connect_model: Callable[..., ModelResources]
    ) -> None:
        requests = []

        def predict(request: Any, context: grpc.ServicerContext) -> Any:
            requests.append(request.model_spec.signature_name)
            return fake_predict(request, context)

        kernel = KERNEL.copy()
        kernel[3, 1] += 0.2  # one weight
        with fake_server(predict) as address:
            with pytest.raises(BundleError, match="its head gives other probabilities"):
                remote_backbone.connect(ClientConfig(address), [make_head(model, kernel)])
            assert set(requests) == {contract.CLASSIFY_EMBEDDING}
            either = remote_backbone.connect(
                ClientConfig(address), [make_head(model, kernel), make_head(model)]
            )
            assert isinstance(either, remote_backbone.RemoteBackbone), "one matching head is enough"

    def test_rounding_of_another_processor_is_tolerated(self, model: Path) -> None:
        with fake_server() as address:
            kernel = KERNEL * (1 + 2e-4)
            assert remote_backbone.connect(ClientConfig(address), [make_head(model, kernel)])


class TestCommand:
    GIVEN = ("--photos", "p", "--model", "m", "--output", "o")

    def test_server_options_need_a_server(self) -> None:
        result = CliRunner().invoke(score_command, [*self.GIVEN, "--model_version", "3"])
        assert (result.exit_code, "--model_version requires --server" in result.output) == (2, True)

    def test_help_shows_the_timeout_and_its_default(self) -> None:
        text = " ".join(CliRunner().invoke(score_command, ["--help"]).output.split())
        assert "retries included. [default: 300.0;" in text

    def test_model_version_and_label_are_mutually_exclusive(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "one.jpg").write_bytes(GOOD)
        given = ["--photos", str(tmp_path / "one.jpg"), "--model", str(model), "--server", "x:1"]
        given += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
        result = CliRunner().invoke(score_command, [*given, "--model_version", "3", "--label", "stable"])
        assert (result.exit_code, "give one of them" in result.output) == (2, True)

    def test_unreachable_server_is_reported_before_any_work(self, model: Path, tmp_path: Path) -> None:
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
def test_rows_equal_those_of_a_run_without_a_server(tmp_path: Path) -> None:
    """Embeds through `hubhead serve`; run.json contains no credentials."""
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
    assert summary.this_run.list_engines() == [
        {"engine": "tensorflow", "cpu": get_cpu_model(), "photos": 62}
    ], "as the server says"
    assert read_rows(tmp_path / "there") == read_rows(tmp_path / "here")
    run = (tmp_path / "there" / "run.json").read_text()
    assert json.loads(run)["settings"]["server"]["server"] == address.target
    assert "secret" not in run
    # A later run without the server finds everything finished.
    assert score.score(replace(there, server=None)).worked_shards == 0
    assert pq.read_table(tmp_path / "there" / "scores").num_rows == 62
