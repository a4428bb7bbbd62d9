"""Backbone and head become a bundle: a SavedModel that takes photo bytes, with its labels and records.

Stock TensorFlow Serving loads it; hubhead's own parts read hubhead.json beside it. It is
written under a temporary name, loaded again, held against the training path on real
photos, and only then renamed to its version.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle, contract, protos, runtime, tensors
from serving.bundle import Bundle, Manifest
from serving.contract import Status
from serving.errors import BundleError
from trainer import graph
from trainer.backbone import Backbone
from trainer.backbone import load as load_backbone
from trainer.fetch import Progress, silent
from trainer.graph import Preprocessing
from trainer.head import Floats, Head

PARITY_TOLERANCE = 2e-3
"""Largest difference of a probability between two paths to it.

Paths differ in batch size and threads, hence in the order of float32 sums, by about 1e-6 of
an embedding's entries. Rounding to float16 turns that, where an entry lies on the edge, into
one step of 2**-11 of that entry; the logits, sums over all entries, then move by at most some
1e-3 and a probability by a quarter of that.
"""

PACKAGES = ("hubhead", "tensorflow", "tensorflow-hub", "apache-beam", "numpy", "scipy")

_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class HeadExport:
    """What a head adds to a headless bundle.

    Attributes:
        head: the weights.
        labels: in the order of the head's columns.
        threshold: the model abstains where its best probability is below; 0 never abstains.
        top_k: length of `classes` and `scores`.
        metrics, data: for hubhead.json.
    """

    head: Head
    labels: Sequence[str]
    threshold: float = 0.0
    top_k: int = 5
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def fingerprint(backbone: Backbone, preprocessing: Preprocessing) -> str:
    """Key of the embedding store: sha256 hex over the backbone's weights and the preprocessing."""
    content = json.dumps([backbone.fingerprint, preprocessing.settings()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def preprocessing_for(backbone: Backbone) -> Preprocessing:
    """The default settings at the backbone's input size."""
    height, width = backbone.image_size
    return Preprocessing(height=height, width=width)


def headless(backbone: Backbone, directory: Path) -> Path:
    """The headless bundle of a backbone (signature `embed` alone), built once at `directory`.

    Returns:
        directory / fingerprint: other weights or settings get another directory.
    """
    preprocessing = preprocessing_for(backbone)
    target = directory / fingerprint(backbone, preprocessing)
    if target.is_dir():
        return target
    with bundle.staging(directory) as staged:
        _save(backbone, preprocessing, None, staged)
        _manifest(backbone, preprocessing, None).write(staged)
        try:
            staged.rename(target)
        except OSError:
            # Another process built the same one meanwhile.
            if not target.is_dir():
                raise
    return target


def export(
    backbone: Backbone, part: HeadExport, base: Path, *, check: Callable[[runtime.Model], None] | None = None
) -> Bundle:
    """Write, check and publish the next version below `base`.

    Args:
        backbone: what the head was trained on.
        part: the head and its records.
        base: `<models>/<name>`.
        check: called with the reloaded model before it is published; raises to stop that.

    Raises:
        OutputError: `base` cannot be written.
        BundleError: the written SavedModel does not load or does not answer as it must.
    """
    preprocessing = preprocessing_for(backbone)
    with bundle.staging(base) as staged:
        _save(backbone, preprocessing, part, staged)
        _manifest(backbone, preprocessing, part).write(staged)
        save_head(part.head, staged / contract.HEAD_FILE)
        write_warmup(staged, base.name)
        model = runtime.load(staged)
        check_broken_photos(model)
        if check:
            check(model)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_headless(backbone: Backbone, base: Path) -> Bundle:
    """Publish a backbone without a head as the next version below `base`.

    Raises:
        OutputError: `base` cannot be written.
    """
    preprocessing = preprocessing_for(backbone)
    with bundle.staging(base) as staged:
        _save(backbone, preprocessing, None, staged)
        _manifest(backbone, preprocessing, None).write(staged)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_again(
    source: Path,
    base: Path,
    cache: Path,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    say: Progress = silent,
) -> Bundle:
    """Publish the head of a bundle as a new version with other settings; None leaves one as it was.

    Raises:
        BundleError: the bundle has no head, or its backbone is not what it was.
        FetchError: the backbone cannot be fetched.
        OutputError: `base` cannot be written.
    """
    old = bundle.read(source)
    manifest = old.manifest
    if not manifest.labels:
        raise BundleError(f"{old.path} is a headless bundle.", remedy="Give one that hubhead train exported.")
    base_network = load_backbone(str(manifest.backbone["handle"]), cache, progress=say)
    if fingerprint(base_network, preprocessing_for(base_network)) != manifest.fingerprint:
        raise BundleError(
            f"The backbone {base_network.handle} is not the one that {old.path} was trained on.",
            remedy="Train again, or get the backbone of then.",
        )
    part = HeadExport(
        load_head(old.path / contract.HEAD_FILE),
        manifest.labels,
        threshold=manifest.calibration["threshold"] if threshold is None else threshold,
        top_k=top_k or manifest.top_k,
        metrics=manifest.metrics,
        data=manifest.data,
    )
    return export(base_network, part, base)


def save_head(head: Head, path: Path) -> None:
    """Keep the weights beside the graph, for an export with other settings."""
    np.savez(path, kernel=head.kernel, bias=head.bias, temperature=head.temperature)


def load_head(path: Path) -> Head:
    """Read what `save_head` wrote.

    Raises:
        BundleError: there is none, or it is torn.
    """
    try:
        with np.load(path) as file:
            return Head(file["kernel"], file["bias"], float(file["temperature"]))
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"{path} holds no head: {error}.", remedy="Give a bundle that hubhead train exported."
        ) from error


def check_broken_photos(model: runtime.Model) -> None:
    """A photo, a text and nothing at all in one call: one answer each, and the right ones.

    Raises:
        BundleError: the bundle answers otherwise.
    """
    photos = [sample_jpeg(), b"no photo", b""]
    found = [prediction.status for prediction in model.classify(photos)]
    expected = [Status.OK, Status.NOT_AN_IMAGE, Status.EMPTY]
    if found != expected:
        raise BundleError(
            f"The exported model gives {found} for a good, a wrong and an empty photo, not {expected}."
        )


def check_parity(
    photos: Sequence[bytes], probabilities: Floats, tolerance: float = PARITY_TOLERANCE
) -> Callable[[runtime.Model], None]:
    """A check for `export`: the reloaded model gives these probabilities float32 [N,K] for these photos.

    Raises:
        BundleError: (from the check) it does not.
    """

    def check(model: runtime.Model) -> None:
        answers = list(model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, photos))
        found = np.concatenate([answer[contract.PROBABILITIES] for answer in answers])
        difference = float(np.abs(found - probabilities).max())
        if difference > tolerance:
            raise BundleError(
                f"The exported model's probabilities differ from the training path's by up to "
                f"{difference:.2g}, more than the {tolerance:g} that float arithmetic explains.",
                remedy="Nothing was published. If files of the embedding store were changed, remove it.",
            )

    return check


def sample_jpeg() -> bytes:
    """A small generated photo, for warm-up and checks."""
    import tensorflow as tf

    ramp = tf.range(256, dtype=tf.int32)
    pixels = tf.stack([ramp[None, :] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp[None, :]], axis=-1)
    pixels = tf.cast(tf.concat([pixels, 128 + 0 * pixels[:, :, :1]], axis=-1), tf.uint8)
    return bytes(tf.io.encode_jpeg(pixels).numpy())


def write_warmup(directory: Path, model_name: str) -> None:
    """Write the warm-up requests: one for each batch size the server may form, and one broken photo.

    TensorFlow Serving replays them before it serves a version; a record of n photos warms the
    padded size for n.
    """
    import tensorflow as tf

    photo = sample_jpeg()
    batches = [[photo] * size for size in contract.WARMUP_BATCH_SIZES] + [[photo[: len(photo) // 2]]]
    path = directory / contract.WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batches:
            log = protos.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = contract.SERVING_DEFAULT
            request.inputs[contract.IMAGE_BYTES].CopyFrom(tensors.encode(np.array(batch, object)))
            writer.write(log.SerializeToString())


def _save(backbone: Backbone, preprocessing: Preprocessing, part: HeadExport | None, directory: Path) -> None:
    import tensorflow as tf

    root = tf.train.Checkpoint()
    root.backbone = backbone.module
    embed = _embedder(backbone, preprocessing)
    signatures: dict[str, Any] = {contract.EMBED: _embed_signature(embed)}
    if part is not None:
        root.kernel = tf.Variable(part.head.kernel, trainable=False, name="head/kernel")
        root.bias = tf.Variable(part.head.bias, trainable=False, name="head/bias")
        signatures |= _head_signatures(embed, backbone, preprocessing, part, root)
    tf.saved_model.save(root, str(directory), signatures=signatures)


def _embedder(backbone: Backbone, preprocessing: Preprocessing) -> Callable[[Any], tuple[Any, ...]]:
    """image_bytes string [N] -> embedding float32 [N,D], status, height, width int32 [N].

    One function, traced once, that the signatures call.
    """
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)], autograph=False
    )
    def embed(image_bytes: Any) -> tuple[Any, ...]:
        pixels, status, height, width = graph.decode_photos(image_bytes, preprocessing)
        return _features(backbone, pixels), status, height, width

    return embed


def _features(backbone: Backbone, pixels: Any) -> Any:
    """Pixels uint8 [N,H,W,3] -> embedding float32 [N,D], at the precision of the embedding store.

    Rounding to float16 here, in the graph, is what makes a stored embedding equal to a fresh one
    in every path. An empty batch takes a blank photo along, since the oneDNN kernels refuse it.
    """
    import tensorflow as tf

    count = tf.shape(pixels)[0]
    missing = tf.maximum(1 - count, 0)
    padded = tf.pad(pixels, [[0, missing], [0, 0], [0, 0], [0, 0]])
    padded.set_shape([None, *pixels.shape[1:]])
    embedding = backbone.apply(tf.cast(padded, tf.float32) / 255.0)[:count]
    half = tf.cast(tf.clip_by_value(embedding, -_LARGEST_HALF, _LARGEST_HALF), tf.float16)
    return tf.ensure_shape(tf.cast(half, tf.float32), [None, backbone.dimension])


def _embed_signature(embed: Callable[[Any], tuple[Any, ...]]) -> Any:
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)], autograph=False
    )
    def serve(image_bytes: Any) -> dict[str, Any]:
        embedding, status, height, width = embed(image_bytes)
        return {
            contract.EMBEDDING: embedding,
            contract.STATUS: graph.status_names(status),
            contract.HEIGHT: height,
            contract.WIDTH: width,
        }

    return serve


def _head_signatures(
    embed: Callable[[Any], tuple[Any, ...]],
    backbone: Backbone,
    preprocessing: Preprocessing,
    part: HeadExport,
    root: Any,
) -> dict[str, Any]:
    import tensorflow as tf

    strings = tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)
    size = [None, preprocessing.height, preprocessing.width, 3]
    k = min(part.top_k, len(part.labels))

    def classify(embedding: Any) -> Any:
        # As trainer.head: L2-normalised, affine, tempered softmax.
        logits = tf.math.l2_normalize(embedding, axis=1, epsilon=1e-24) @ root.kernel + root.bias
        return tf.nn.softmax(logits / part.head.temperature)

    def answer(probabilities: Any, status: Any) -> dict[str, Any]:
        scores, best = tf.math.top_k(probabilities, k)
        classes = tf.gather(tf.constant(list(part.labels)), best)
        usable = graph.usable(status)
        decided = usable & (scores[:, 0] >= part.threshold)
        return {
            contract.LABEL: tf.where(decided, classes[:, 0], ""),
            contract.CLASSES: tf.where(usable[:, None], classes, ""),
            contract.SCORES: tf.where(usable[:, None], scores, 0.0),
            contract.STATUS: graph.status_names(status),
        }

    @tf.function(input_signature=[strings], autograph=False)
    def serving_default(image_bytes: Any) -> dict[str, Any]:
        embedding, status, _, _ = embed(image_bytes)
        return answer(classify(embedding), status)

    @tf.function(input_signature=[strings], autograph=False)
    def probabilities(image_bytes: Any) -> dict[str, Any]:
        embedding, status, _, _ = embed(image_bytes)
        return {
            contract.PROBABILITIES: classify(embedding),
            contract.STATUS: graph.status_names(status),
        }

    @tf.function(input_signature=[tf.TensorSpec(size, tf.uint8, name=contract.PIXELS)], autograph=False)
    def classify_pixels(pixels: Any) -> dict[str, Any]:
        return answer(classify(_features(backbone, pixels)), tf.zeros(tf.shape(pixels)[:1], tf.int32))

    @tf.function(
        input_signature=[tf.TensorSpec([None, backbone.dimension], tf.float32, name=contract.EMBEDDING)],
        autograph=False,
    )
    def classify_embedding(embedding: Any) -> dict[str, Any]:
        return {contract.PROBABILITIES: classify(embedding)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=contract.EXAMPLES)], autograph=False)
    def classify_examples(inputs: Any) -> dict[str, Any]:
        feature = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(inputs, {contract.EXAMPLE_IMAGE_FEATURE: feature})
        embedding, status, _, _ = embed(parsed[contract.EXAMPLE_IMAGE_FEATURE])
        result = answer(classify(embedding), status)
        return {name: result[name] for name in (contract.CLASSES, contract.SCORES)}

    return {
        contract.SERVING_DEFAULT: serving_default,
        contract.PROBABILITIES: probabilities,
        contract.CLASSIFY_PIXELS: classify_pixels,
        contract.CLASSIFY_EMBEDDING: classify_embedding,
        contract.CLASSIFY: classify_examples,
    }


def _manifest(backbone: Backbone, preprocessing: Preprocessing, part: HeadExport | None) -> Manifest:
    return Manifest(
        labels=list(part.labels) if part else [],
        backbone={
            "handle": backbone.handle,
            "fingerprint": fingerprint(backbone, preprocessing),
            "image_size": list(backbone.image_size),
            "dimension": backbone.dimension,
        },
        preprocessing=preprocessing.settings(),
        calibration={"temperature": part.head.temperature, "threshold": part.threshold} if part else {},
        top_k=min(part.top_k, len(part.labels)) if part else 0,
        metrics=dict(part.metrics) if part else {},
        data=dict(part.data) if part else {},
        provenance={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "packages": package_versions(),
        },
    )


def package_versions() -> dict[str, str]:
    """Installed versions of what a bundle's content depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
