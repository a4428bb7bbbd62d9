"""Exported bundles: files, signatures, and answers in a TF1-style session as in TensorFlow Serving."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from serving import bundle, contract, protos, runtime
from serving.bundle import Bundle
from serving.contract import Status
from serving.errors import BundleError
from serving.protos import tensors
from serving.runtime.session import PARITY_TOLERANCE, ClassicSession
from trainer import preprocessing
from trainer.evaluation.novelty import Novelty
from trainer.export import signatures
from trainer.export.bundle import HeadExport, export, export_headless, reexport
from trainer.export.head_file import load_head, save_head
from trainer.export.templates import prepare_template
from trainer.heads import HiddenLayer, Selection
from trainer.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = pytest.mark.tf

PHOTOS = 6


@pytest.fixture(scope="module")
def food(trained: Trained) -> Bundle:
    """The bundle of the shared training."""
    return trained.result.bundle


@pytest.fixture(scope="module")
def session(food: Bundle) -> Iterator[ClassicSession]:
    """A session of that bundle."""
    with ClassicSession(food.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(trained: Trained) -> list[bytes]:
    """Some test photos."""
    return [Path(path).read_bytes() for path, _ in trained.result.test_photos[:PHOTOS]]


def read_signatures(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each signature's inputs and outputs: (dtype, shape with None for open dimensions) by name."""
    saved = protos.SavedModel.FromString((path / contract.SAVED_MODEL_FILE).read_bytes())
    [graph_] = saved.meta_graphs
    assert list(graph_.meta_info_def.tags) == ["serve"]

    def infos(tensors_: Any) -> dict[str, Any]:
        return {
            name: (
                protos.DataType.Name(info.dtype).removeprefix("DT_").lower(),
                tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim),
            )
            for name, info in tensors_.items()
        }

    return {
        name: (infos(signature.inputs), infos(signature.outputs))
        for name, signature in graph_.signature_def.items()
        if not name.startswith("__")
    }


STRINGS = ("string", (None,))
ANSWER = {"label": STRINGS, "classes": ("string", (None, None)), "scores": ("float", (None, None))}
EMBED = {"embedding": ("float", (None, 1280)), "status": STRINGS, "height": ("int32", (None,))}
CONTRACT = {
    "serving_default": ({"image_bytes": STRINGS}, {**ANSWER, "status": STRINGS}),
    "probabilities": (
        {"image_bytes": STRINGS},
        {"probabilities": ("float", (None, None)), "status": STRINGS},
    ),
    "embed": ({"image_bytes": STRINGS}, {**EMBED, "width": ("int32", (None,))}),
    "decode": (
        {"image_bytes": STRINGS},
        {
            "pixels": ("uint8", (None, 224, 224, 3)),
            "status": STRINGS,
            "height": ("int32", (None,)),
            "width": ("int32", (None,)),
        },
    ),
    "classify_pixels": ({"pixels": ("uint8", (None, 224, 224, 3))}, {**ANSWER, "status": STRINGS}),
    "classify_embedding": (
        {"embedding": ("float", (None, 1280))},
        {"probabilities": ("float", (None, None)), "known": ("bool", (None,))},
    ),
    "classify": ({"inputs": STRINGS}, {name: ANSWER[name] for name in ("classes", "scores")}),
}


def test_signatures_are_those_of_the_contract(food: Bundle) -> None:
    found = read_signatures(food.path)
    assert found.keys() == CONTRACT.keys()
    for name, (inputs, outputs) in CONTRACT.items():
        assert found[name][0] == inputs
        # The last dimension may be fixed or open. The first must be open: it is the merged batch.
        assert found[name][1].keys() == outputs.keys()
        for output, (dtype, shape) in outputs.items():
            found_dtype, found_shape = found[name][1][output]
            assert (found_dtype, len(found_shape), found_shape[0]) == (dtype, len(shape), None)


def test_headless_bundle_has_no_signatures_of_a_head(
    trained: Trained, tmp_path: Path, photos: list[bytes]
) -> None:
    handle, cache = trained.settings.tfhub_module, trained.settings.cache
    published = export_headless(handle, tmp_path / "backbone", cache)
    template = prepare_template(handle, cache)
    assert published.version == 1
    assert published.metadata.labels == template.metadata.labels == []
    assert read_card(published.path)[0]["pipeline_tag"] == "image-feature-extraction"
    assert published.metadata.fingerprint == template.metadata.fingerprint
    assert list(runtime.load(published.path).signatures) == [contract.DECODE, contract.EMBED]
    with ClassicSession(published.path) as opened, ClassicSession(template.path) as other:
        inputs = {contract.IMAGE_BYTES: photos}
        found, expected = opened.run(contract.EMBED, inputs), other.run(contract.EMBED, inputs)
    assert found[contract.EMBEDDING].shape == (PHOTOS, 1280)
    np.testing.assert_array_equal(found[contract.EMBEDDING], expected[contract.EMBEDDING])


def test_bundle_has_labels_file_and_metadata(trained: Trained, food: Bundle) -> None:
    labels = [path.name for path in sorted(trained.settings.image_dir.iterdir())]
    text = "".join(f"{label}\n" for label in labels)
    assert (food.path / contract.LABELS_FILE).read_text("utf-8") == text
    metadata = json.loads((food.path / contract.METADATA_FILE).read_text("utf-8"))
    assert metadata["labels"] == labels
    assert metadata["backbone"]["handle"] == "efficientnet_lite0"
    assert metadata["backbone"]["dimension"] == 1280
    assert metadata["preprocessing"] == Preprocessing().to_dict()
    assert metadata["top_k"] == 5
    assert {"kind": "linear", "class_weight": "none"}.items() <= metadata["head"].items()
    assert {"strength", "shrinkage", "temperature"} <= metadata["head"].keys()
    assert metadata["metrics"]["test"]["accuracy"]["n"] == trained.result.subsets["testing"]
    assert sum(metadata["data"]["photos"].values()) == sum(metadata["data"]["labels"].values()) == 406
    assert {"tensorflow", "numpy"} <= metadata["provenance"]["packages"].keys()


def test_warmup_has_a_request_for_every_batch_size_and_a_broken_photo(food: Bundle) -> None:
    import tensorflow as tf

    batches = []
    for record in tf.data.TFRecordDataset(str(food.path / contract.WARMUP_FILE)).as_numpy_iterator():
        request = protos.PredictionLog.FromString(record).predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("food", "serving_default")
        batches.append(list(tensors.decode(request.inputs[contract.IMAGE_BYTES], contract.IMAGE_BYTES)))
    assert [len(batch) for batch in batches] == [*contract.WARMUP_BATCH_SIZES, 1]
    decoded = preprocessing.decode_photos(tf.constant([batch[0] for batch in batches]), Preprocessing())
    statuses = [preprocessing.STATUSES[number] for number in decoded[1]]
    assert statuses == [Status.OK] * len(contract.WARMUP_BATCH_SIZES) + [Status.TRUNCATED]


def make_example(photo: bytes) -> bytes:
    """Return a serialized tf.Example, as sent by the Classify RPC."""
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[photo]))
    features = tf.train.Features(feature={contract.EXAMPLE_IMAGE_FEATURE: feature})
    return bytes(tf.train.Example(features=features).SerializeToString())


def make_inputs(signature: str, photos: list[bytes], session: ClassicSession) -> dict[str, Any]:
    """Return the inputs of a signature for photos."""
    import tensorflow as tf

    if signature == contract.CLASSIFY_PIXELS:
        pixels = preprocessing.decode_photos(tf.constant(photos, tf.string), Preprocessing())[0]
        return {contract.PIXELS: pixels.numpy()}
    if signature == contract.CLASSIFY_EMBEDDING:
        embedded = session.run(contract.EMBED, {contract.IMAGE_BYTES: photos})
        return {contract.EMBEDDING: embedded[contract.EMBEDDING]}
    if signature == contract.CLASSIFY:
        return {contract.EXAMPLES: [make_example(photo) for photo in photos]}
    return {contract.IMAGE_BYTES: photos}


@pytest.mark.parametrize("signature", CONTRACT)
def test_every_signature_returns_one_row_per_photo_also_for_an_empty_batch(
    session: ClassicSession, photos: list[bytes], signature: str
) -> None:
    for batch in (photos, photos[:1], []):
        outputs = session.run(signature, make_inputs(signature, batch, session))
        assert outputs.keys() == CONTRACT[signature][1].keys()
        assert all(len(output) == len(batch) for output in outputs.values())


def test_signatures_agree_with_each_other(session: ClassicSession, photos: list[bytes]) -> None:
    answer = {name: session.run(name, make_inputs(name, photos, session)) for name in CONTRACT}
    default, table = answer["serving_default"], answer["probabilities"]["probabilities"]
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(answer["classify_embedding"]["probabilities"], table, atol=PARITY_TOLERANCE)
    best = -np.sort(-table, axis=1)[:, :5]
    np.testing.assert_allclose(default["scores"], best, atol=PARITY_TOLERANCE)
    for name in ("classify_pixels", "classify"):
        np.testing.assert_allclose(answer[name]["scores"], default["scores"], atol=PARITY_TOLERANCE)
        np.testing.assert_array_equal(answer[name]["classes"][:, 0], default["classes"][:, 0])
    np.testing.assert_array_equal(default["label"], default["classes"][:, 0])
    assert (np.diff(default["scores"], axis=1) <= 0).all()


def test_rejected_photo_has_a_status_and_blank_outputs(session: ClassicSession, photos: list[bytes]) -> None:
    found = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [b"text", photos[0], b""]})
    assert found["status"].tolist() == [b"not_an_image", b"ok", b"empty"]
    assert found["label"][[0, 2]].tolist() == [b"", b""]
    assert (found["classes"][[0, 2]] == b"").all()
    assert (found["scores"][[0, 2]] == 0).all()
    assert found["label"][1]


def test_answer_does_not_depend_on_the_batch(session: ClassicSession, photos: list[bytes]) -> None:
    together = session.run(contract.PROBABILITIES, {contract.IMAGE_BYTES: [b"", *photos, b"text"]})
    for row, photo in enumerate(photos, 1):
        alone = session.run(contract.PROBABILITIES, {contract.IMAGE_BYTES: [photo]})
        np.testing.assert_allclose(
            alone["probabilities"][0], together["probabilities"][row], atol=PARITY_TOLERANCE
        )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_reexport_changes_only_the_given_settings(food: Bundle, tmp_path: Path, photos: list[bytes]) -> None:
    base = tmp_path / "models" / "strict"
    same = reexport(food.path, base)
    strict = reexport(food.path, base, threshold=1.0, top_k=2)
    assert [same.version, strict.version] == bundle.versions(base) == [1, 2]
    for again in (same, strict):
        assert hash_file(again.path / contract.SAVED_MODEL_FILE) == hash_file(
            food.path / contract.SAVED_MODEL_FILE
        )
        for name in ("labels", "backbone", "preprocessing", "head", "metrics", "data"):
            assert getattr(again.metadata, name) == getattr(food.metadata, name)
    assert (same.metadata.top_k, same.metadata.calibration) == (
        food.metadata.top_k,
        food.metadata.calibration,
    )
    assert strict.metadata.top_k == 2
    assert strict.metadata.calibration == {**food.metadata.calibration, "threshold": 1.0}

    answers = []
    for path in (food.path, same.path, strict.path):
        with ClassicSession(path) as opened:
            answers.append(opened.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: photos}))
    was, is_, now = answers
    for name in was:
        np.testing.assert_array_equal(is_[name], was[name])
    # Below a threshold of 1 the model abstains, but still returns classes and scores.
    assert (now["scores"][:, 0] < 1).all()
    assert (now["label"] == b"").all()
    np.testing.assert_array_equal(now["classes"], was["classes"][:, :2])
    np.testing.assert_array_equal(now["scores"], was["scores"][:, :2])


def test_headless_bundle_cannot_be_reexported(trained: Trained, tmp_path: Path) -> None:
    base = prepare_template(trained.settings.tfhub_module, trained.settings.cache)
    with pytest.raises(BundleError, match="headless"):
        reexport(base.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def load_part(food: Bundle) -> HeadExport:
    """Return the head of a bundle, to be exported again."""
    head, _ = load_head(food.path / contract.HEAD_FILE)
    return HeadExport(head, food.metadata.labels)


def test_bundle_that_differs_from_the_training_path_is_not_published(
    food: Bundle, tmp_path: Path, photos: list[bytes], session: ClassicSession
) -> None:
    base = tmp_path / "models" / "food"
    right = session.run(contract.PROBABILITIES, {contract.IMAGE_BYTES: photos})["probabilities"]
    part = load_part(food)
    other = replace(part, head=replace(part.head, bias=part.head.bias[::-1].copy()))
    with pytest.raises(BundleError, match="differ from those in training") as caught:
        export(food, other, base, photos=photos, probabilities=right)
    assert "Nothing was published" in caught.value.remedy
    assert not base.exists()
    assert export(food, part, base, photos=photos, probabilities=right).version == 1


def test_novelty_score_in_the_graph_equals_numpy(
    trained: Trained, food: Bundle, tmp_path: Path, photos: list[bytes]
) -> None:
    part = load_part(food)
    with ClassicSession(food.path) as session:
        embedded = session.run(contract.EMBED, {contract.IMAGE_BYTES: photos})[contract.EMBEDDING]
    random = np.random.default_rng(0)
    known = np.repeat(embedded, 12, axis=0) * random.uniform(0.7, 1.3, (12 * len(photos), 1280))
    targets = np.arange(len(known)) % len(part.labels)
    nothing = np.zeros((0, len(part.labels)), np.float32), np.zeros(0, np.int64)
    selection = Selection("validation", 10.0, {}, *nothing, settings=dict(food.metadata.head))
    novelty = Novelty.fit(part.head, selection, known.astype(np.float32), targets, kept=0.5)
    published = export(food, replace(part, novelty=novelty), tmp_path / "models" / "food")
    unlike = np.abs(random.normal(size=(20, 1280))).astype(np.float32)
    embeddings = np.concatenate([embedded, unlike])
    with ClassicSession(published.path) as session:
        answer = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: photos})
        accepted = session.run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embeddings})[contract.KNOWN]
    np.testing.assert_array_equal(accepted, ~novelty.is_novel(embeddings))
    np.testing.assert_array_equal(answer["label"] == b"", novelty.is_novel(embedded))
    assert (answer["status"] == b"ok").all()  # only the label is missing
    assert (answer["scores"][:, 0] > 0).all()
    assert 0 < accepted.sum() < len(accepted)
    head, loaded = load_head(published.path / contract.HEAD_FILE)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.is_novel(embeddings), novelty.is_novel(embeddings))
    np.testing.assert_array_equal(head.kernel, part.head.kernel)
    again = reexport(published.path, tmp_path / "models" / "food", keep_known=1.0)
    with ClassicSession(again.path) as session:
        lenient = session.run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embeddings})[contract.KNOWN]
    assert (lenient | ~accepted).all()
    assert again.metadata.calibration["keep_known"] == 1.0


def test_keep_known_without_a_novelty_score_is_rejected(food: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="without a novelty score"):
        reexport(food.path, tmp_path / "models", keep_known=0.9)


def test_failed_export_leaves_existing_versions(food: Bundle, tmp_path: Path) -> None:
    base = tmp_path / "models" / "food"
    export(food, load_part(food), base)
    with pytest.raises(BundleError):
        export(food, load_part(food), base, photos=[b"no photo at all"])
    assert [path.name for path in base.iterdir()] == ["1"]


def test_exports_get_ascending_version_numbers(food: Bundle, tmp_path: Path) -> None:
    base = tmp_path / "models" / "food"
    base.mkdir(parents=True)
    (base / "notes.txt").write_text("not a version")
    published = [reexport(food.path, base) for _ in range(3)]
    assert [item.version for item in published] == [1, 2, 3]
    assert bundle.read(base).version == 3
    assert sorted(path.name for path in base.iterdir()) == ["1", "2", "3", "notes.txt"]


def test_head_file_round_trip_keeps_the_hidden_layer(food: Bundle, tmp_path: Path) -> None:
    part = load_part(food)
    random = np.random.default_rng(0)
    shapes = (1280, 3), (3,), (3, len(part.labels))
    layer = HiddenLayer(*(random.normal(size=shape).astype(np.float32) for shape in shapes))
    save_head(tmp_path / "head.npz", replace(part.head, hidden=layer))
    loaded, _ = load_head(tmp_path / "head.npz")
    assert loaded.hidden is not None
    for name in ("kernel", "bias", "output"):
        np.testing.assert_array_equal(getattr(loaded.hidden, name), getattr(layer, name))


def test_graph_without_hidden_layer_accepts_heads_without_one(food: Bundle, tmp_path: Path) -> None:
    import tensorflow as tf

    old = tf.train.Checkpoint()
    old.kernel, old.bias = tf.Variable(tf.zeros([1280, 2])), tf.Variable(tf.zeros([2]))
    tf.saved_model.save(old, str(tmp_path / "old"))
    part = load_part(food)
    values = signatures.make_head_variables(part.head, part.labels, threshold=0, top_k=1, novelty=None)
    known = {name: value for name, value in values.items() if name in ("kernel", "bias")}
    hidden = {name: value for name, value in values.items() if name.startswith("hidden_")}
    assert len(hidden) == 3
    (tmp_path / "new").mkdir()
    signatures.write_variables(tmp_path / "old", tmp_path / "new", known | hidden)
    reader = tf.train.load_checkpoint(str(tmp_path / "new" / "variables" / "variables"))
    np.testing.assert_array_equal(reader.get_tensor("kernel/.ATTRIBUTES/VARIABLE_VALUE"), part.head.kernel)
    (tmp_path / "newer").mkdir()
    wanted = known | {"hidden_bias": np.ones(1, np.float32)}
    with pytest.raises(BundleError, match="no variable 'hidden_bias'") as caught:
        signatures.write_variables(tmp_path / "old", tmp_path / "newer", wanted)
    assert "Train again" in caught.value.remedy


def test_damaged_or_missing_head_file_is_an_error(food: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "head.npz"
    damaged.write_bytes((food.path / contract.HEAD_FILE).read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"head file .*head\.npz cannot be read"):
        load_head(damaged)
    with pytest.raises(BundleError, match="cannot be read"):
        load_head(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_missing_or_damaged_variables_are_an_error(
    food: Bundle, tmp_path: Path, content: bytes | None
) -> None:
    shutil.copy2(food.path / contract.SAVED_MODEL_FILE, tmp_path)
    if content is not None:
        (tmp_path / "variables").mkdir()
        (tmp_path / "variables" / "variables.index").write_bytes(content)
    with pytest.raises(BundleError, match=r"(?s)variables of .* cannot be read: .*Export the bundle again"):
        signatures.write_variables(tmp_path, tmp_path / "new", {})


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Return the YAML header and the text of a bundle's model card."""
    _, header, text = (path / contract.MODEL_CARD_FILE).read_text(encoding="utf-8").split("---\n", 2)
    return dict(yaml.safe_load(header)), text


def test_every_bundle_has_a_model_card_with_its_figures(food: Bundle) -> None:
    header, text = read_card(food.path)
    accuracy = food.metadata.metrics["test"]["accuracy"]
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == accuracy["value"]
    assert all(label in text for label in food.metadata.labels)
    assert "| licence | Apache-2.0 |" in text


def test_a_head_that_is_exported_again_has_a_card_of_its_new_settings(food: Bundle, tmp_path: Path) -> None:
    copy = reexport(food.path, tmp_path / "again", threshold=0.5)
    header, text = read_card(copy.path)
    assert header["model-index"][0]["name"] == "again"
    assert "It abstains" in text
    assert "It always answers" in read_card(food.path)[1]
