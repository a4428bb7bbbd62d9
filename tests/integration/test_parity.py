"""Parity: every path to a prediction returns the same statuses, labels and scores for the same photos.

The reference is the training path: stored embeddings and NumPy.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from batch.embeddings import EmbeddingStore
from batch.inputs.listing import find_photos
from batch.jobs import score as pipeline
from batch.jobs.score import ScoreSettings
from serving import contract, runtime
from serving.bundle import Bundle
from serving.client import Client, predictions
from serving.commands.predict import predict
from serving.contract import Prediction, Status
from serving.runtime.session import PARITY_TOLERANCE, ClassicSession
from serving.server import ServerSettings, start
from tests.support.trained import copy_store
from trainer.export.bundle import HeadExport, export
from trainer.export.head_file import load_head
from trainer.export.templates import prepare_template

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server, pytest.mark.slow(seconds=12)]

SAMPLES = 12
UNUSUAL = {
    "cut.jpeg": Status.TRUNCATED,
    "empty.jpeg": Status.EMPTY,
    "text.jpeg": Status.NOT_AN_IMAGE,
    "turned.jpeg": Status.OK,
    "large.jpeg": Status.OK,
    "clear.png": Status.OK,
}


@pytest.fixture(scope="module")
def photos(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sample photos of all labels, and unusual ones, such as truncated or with an EXIF orientation."""
    top = tmp_path_factory.mktemp("parity")
    everything = sorted(trained.settings.image_dir.rglob("*.jpeg"))
    for path in everything[:: len(everything) // SAMPLES][:SAMPLES]:
        (top / path.name).write_bytes(path.read_bytes())
    content = everything[7].read_bytes()
    (top / "cut.jpeg").write_bytes(content[: len(content) // 2])
    (top / "empty.jpeg").write_bytes(b"")
    (top / "text.jpeg").write_bytes(b"this is no photo")
    with Image.open(io.BytesIO(content)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: rotated by 90 degrees
        image.save(top / "turned.jpeg", exif=exif)
        image.resize((2000, 1200)).save(top / "large.jpeg")  # decoded at a reduced scale
        image.putalpha(90)
        image.save(top / "clear.png")
    found = sorted(top.iterdir())
    assert len(found) == SAMPLES + len(UNUSUAL)
    return found


KINDS = ("linear", "hidden")


@pytest.fixture(scope="module")
def models(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each kind of head, all with the same graph."""
    from trainer import dataset, heads
    from trainer.evaluation.features import load_features

    result, settings = trained.result, trained.settings
    base = prepare_template(settings.tfhub_module, settings.cache)
    store = EmbeddingStore(settings.embedding_store, base.metadata.fingerprint, base.metadata.dimension)
    features = load_features(dataset.scan(settings.image_dir), store)
    targets = np.array([example.label for example in features.examples], np.int64)
    blocks, labels = heads.Blocks.from_array(features.embeddings, targets), result.bundle.metadata.labels
    nothing = np.zeros((0, len(labels)), np.float32), np.zeros(0, np.int64)

    def export_head(kind: str, strength: float, **more: object) -> Bundle:
        chosen = result.bundle.metadata.head | {"kind": kind} | more
        selection = heads.Selection("validation", strength, {}, *nothing, settings=chosen)
        part = HeadExport(heads.refit(blocks, len(labels), selection), labels, settings=chosen)
        return export(base, part, tmp_path_factory.mktemp(kind) / "models" / "food")

    layer = {"width": 24, "epochs": 4, "seed": 0, "layer_temperature": 0.8}
    return {
        "linear": result.bundle,
        "hidden": export_head("hidden", 10.0, **layer),
    }


Reference = list[tuple[Status, dict[str, float]]]
Load = Callable[[Path], runtime.Model]


@pytest.fixture(scope="module")
def reference(
    trained: Trained,
    models: dict[str, Bundle],
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Reference]:
    """Status and probabilities of each photo by the training path, for each kind of head."""
    metadata = trained.result.bundle.metadata
    # A copy of the shared store, since the unusual photos are embedded into it.
    copied = str(copy_store(trained, tmp_path_factory.mktemp("reference")))
    store = EmbeddingStore(copied, metadata.fingerprint, metadata.dimension)
    base = prepare_template(trained.settings.tfhub_module, trained.settings.cache)
    listed = find_photos(str(photos[0].parent))
    pipeline.embed(listed, base.path, store)
    shas = store.lookup_digests(listed)
    rows = store.get(shas.values())
    row_of = rows.row_by_digest()
    chosen = [row_of[shas[photo]] for photo in listed]

    def predict_reference(model: Bundle) -> Reference:
        head, _ = load_head(model.path / contract.HEAD_FILE)
        probabilities = head.probabilities(rows.vectors.astype(np.float32))
        return [
            (rows.statuses[row], dict(zip(metadata.labels, probabilities[row].tolist(), strict=True)))
            for row in chosen
        ]

    return {kind: predict_reference(model) for kind, model in models.items()}


@pytest.fixture(scope="module")
def loaded(models: dict[str, Bundle]) -> Iterator[Load]:
    """Bundles loaded by the runtime, each once."""
    load = functools.cache(runtime.load)
    yield load
    load.cache_clear()


def by_runtime(model: Bundle, photos: list[Path], work: Path, load: Load) -> list[Prediction]:
    return load(model.path).classify(path.read_bytes() for path in photos)


def by_classic_session(model: Bundle, photos: list[Path], work: Path, load: Load) -> list[Prediction]:
    with ClassicSession(model.path) as session:
        contents = [path.read_bytes() for path in photos]
        outputs = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: contents})
    return predictions(outputs, len(photos))


def by_beam_job(model: Bundle, photos: list[Path], work: Path, load: Load) -> list[Prediction]:
    """Score with a new embedding store, so that the job runs the backbone."""
    import pyarrow.parquet as pq

    settings = ScoreSettings(
        photos=str(photos[0].parent),
        model=(model.path,),
        output=str(work / "scores"),
        embedding_store=str(work / "store"),
        shard_size=7,
    )
    assert pipeline.score(settings).total.photos == len(photos)
    rows = {row["uri"]: row for row in pq.read_table(work / "scores" / "scores").to_pylist()}
    return [
        Prediction(
            Status(row["status"]),
            row["label"],
            tuple(zip(row["top_labels"], row["top_scores"], strict=True)),
        )
        for row in (rows[str(path)] for path in photos)
    ]


def by_server(model: Bundle, photos: list[Path], work: Path, load: Load) -> list[Prediction]:
    settings = ServerSettings(model_base_path=model.path.parent, port=0)
    with (
        start(settings, loader=lambda _: load(model.path)) as server,
        Client(f"localhost:{server.port}", model=server.manager.settings[0].name, timeout=60) as client,
    ):
        return client.classify(photos)


def by_command(model: Bundle, photos: list[Path], work: Path, load: Load) -> list[Prediction]:
    done = CliRunner().invoke(predict, ["--model", str(model.path), "--json", *map(str, photos)])
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["photo"] for record in records] == [str(path) for path in photos]
    return [
        Prediction(
            Status(record["status"]),
            record["label"],
            tuple((item["label"], item["score"]) for item in record["top"]),
        )
        for record in records
    ]


PATHS: dict[str, Callable[[Bundle, list[Path], Path, Load], list[Prediction]]] = {
    "the reloaded bundle": by_runtime,
    "a classic session, as in TensorFlow Serving": by_classic_session,
    "the Beam job": by_beam_job,
    "the local server over gRPC": by_server,
    "hubhead predict": by_command,
}
ONCE = ("hubhead predict", "hidden")


# The command is the runtime and a printer, so that one kind of head shows that it prints the predictions.
@pytest.mark.parametrize(
    ("path", "kind"), [(path, kind) for path in PATHS for kind in KINDS if (path, kind) != ONCE]
)
def test_every_path_predicts_as_the_training_path(
    models: dict[str, Bundle],
    photos: list[Path],
    reference: dict[str, Reference],
    loaded: Load,
    tmp_path: Path,
    path: str,
    kind: str,
) -> None:
    found = PATHS[path](models[kind], photos, tmp_path, loaded)
    assert len(found) == len(photos)
    for photo, prediction, (status, probabilities) in zip(photos, found, reference[kind], strict=True):
        assert prediction.status is status is UNUSUAL.get(photo.name, Status.OK)
        if not status.usable:
            assert (prediction.label, prediction.top) == (None, ())
            continue
        assert len(prediction.top) == models[kind].metadata.top_k
        for label, score in prediction.top:
            assert score == pytest.approx(probabilities[label], abs=PARITY_TOLERANCE)
        # Another label may win only if both are equal within the tolerance on the training path.
        assert prediction.label == prediction.top[0][0]
        assert prediction.label is not None
        assert probabilities[prediction.label] >= max(probabilities.values()) - 2 * PARITY_TOLERANCE


def test_reference_predicts_several_labels(reference: dict[str, Reference]) -> None:
    # Otherwise the test above would pass for a model that predicts the same for all photos.
    for rows in reference.values():
        best = {max(table, key=table.__getitem__) for status, table in rows if status.usable}
        assert len(best) >= 5


def test_kinds_of_heads_differ(reference: dict[str, Reference]) -> None:
    # Otherwise the test above would pass for a graph without the hidden layer.
    linear, *others = (
        np.array([list(table.values()) for status, table in reference[kind] if status.usable])
        for kind in KINDS
    )
    for other in others:
        assert np.abs(other - linear).max() > 10 * PARITY_TOLERANCE
