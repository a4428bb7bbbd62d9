"""Backbone and head become a bundle: a SavedModel that takes photo bytes, with its labels and records.

Stock TensorFlow Serving loads it; hubhead's own parts read hubhead.json beside it. It is
written under a temporary name, loaded again, held against the training path on real
photos, and only then renamed to its version.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle, contract, protos, tensors
from serving.bundle import Bundle, Manifest
from serving.contract import Status
from serving.errors import BundleError
from serving.tensorflow_import import import_tensorflow
from trainer import graph
from trainer.backbone import ALIASES, Backbone, load, resolve
from trainer.backbone.fingerprint import fingerprint as fingerprint_of
from trainer.fetch import Progress, made_once, silent
from trainer.graph import Preprocessing
from trainer.head import Floats, Head, Scaling

PARITY_TOLERANCE = 2e-3
"""Largest difference of a probability between two paths to it.

Paths differ in batch size and threads, hence in the order of float32 sums, by about 1e-6 of
an embedding's entries. Rounding to float16 turns that, where an entry lies on the edge, into
one step of 2**-11 of that entry; the logits, sums over all entries, then move by at most some
1e-3 and a probability by a quarter of that.
"""

PACKAGES = ("hubhead", "tensorflow", "tensorflow-hub", "apache-beam", "numpy", "scipy")

RECIPE = 2
"""Version of the signatures' graph: raise it when they change, so that headless bundles are traced anew."""

_LARGEST_HALF = 65504.0
_LARGEST_CONSTANTS = 1 << 30


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
    return _digest([backbone.fingerprint, preprocessing.settings()])


def headless(handle: str, cache: Path, *, say: Progress = silent) -> Bundle:
    """The headless bundle of a backbone, traced once a backbone and kept in the cache.

    It embeds photos, and it is what every head of this backbone is exported with: nothing in
    its graph depends on the head, whose weights and labels are variables of open shape. So a
    new head costs a copy and a small checkpoint, not seconds of tracing.

    Args:
        handle: the backbone (trainer.backbone.load).
        cache: the cache directory.
        say: called with one line before each download.

    Raises:
        InputError, FetchError, OutputError: as trainer.backbone.load.
    """
    import_tensorflow()
    path = resolve(handle, cache, progress=say)
    alias = ALIASES.get(handle)
    key = [fingerprint_of(path), alias.image_size if alias else None, Preprocessing().settings(), RECIPE]
    directory = cache / "headless" / _digest(key)
    if not directory.is_dir():
        backbone = load(handle, cache, progress=say)
        height, width = backbone.image_size
        preprocessing = Preprocessing(height=height, width=width)
        with made_once(directory) as staged:
            _save(backbone, preprocessing, staged)
            Manifest(
                labels=[],
                backbone={
                    "handle": backbone.handle,
                    "fingerprint": fingerprint(backbone, preprocessing),
                    "image_size": list(backbone.image_size),
                    "dimension": backbone.dimension,
                },
                preprocessing=preprocessing.settings(),
                provenance=_provenance(),
            ).write(staged)
    return bundle.read(directory)


def export(
    source: Bundle,
    part: HeadExport,
    base: Path,
    *,
    photos: Sequence[bytes] = (),
    probabilities: Floats | None = None,
) -> Bundle:
    """Write, check and publish the next version below `base`.

    Before it is published the written model is loaded as TensorFlow Serving loads it, and must
    answer bad photos as it should and these photos as the training path does.

    Args:
        source: the bundle whose graph is taken: `headless`, or any earlier one of the backbone.
        part: the head and its records.
        base: `<models>/<name>`.
        photos: N encoded photos to check it by.
        probabilities: float32 [N,K], what the training path says of them.

    Raises:
        OutputError: `base` cannot be written.
        BundleError: the written SavedModel does not load or does not answer as it must.
    """
    manifest = replace(
        source.manifest,
        labels=list(part.labels),
        calibration={"temperature": part.head.temperature, "threshold": part.threshold},
        top_k=min(part.top_k, len(part.labels)),
        metrics=dict(part.metrics),
        data=dict(part.data),
        provenance=_provenance(),
    )
    with bundle.staging(base) as staged:
        _copy_graph(source.path, staged)
        _write_variables(source.path, staged, part)
        manifest.write(staged)
        save_head(part.head, staged / contract.HEAD_FILE)
        write_warmup(staged, base.name)
        with ClassicSession(staged) as session:
            check_answers(session, part.labels, photos, probabilities)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_headless(source: Bundle, base: Path) -> Bundle:
    """Publish a headless bundle as the next version below `base`.

    Raises:
        OutputError: `base` cannot be written.
    """
    with bundle.staging(base) as staged:
        shutil.copytree(source.path, staged, dirs_exist_ok=True)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_again(
    path: Path, base: Path, *, top_k: int | None = None, threshold: float | None = None
) -> Bundle:
    """Publish the head of a bundle as a new version with other settings; None leaves one as it was.

    Raises:
        BundleError: the bundle has no head.
        OutputError: `base` cannot be written.
    """
    source = bundle.read(path)
    manifest = source.manifest
    if not manifest.labels:
        raise BundleError(f"{source.path} is a headless bundle.", remedy="Give one that hubhead train made.")
    part = HeadExport(
        load_head(source.path / contract.HEAD_FILE),
        manifest.labels,
        threshold=manifest.calibration["threshold"] if threshold is None else threshold,
        top_k=top_k or manifest.top_k,
        metrics=manifest.metrics,
        data=manifest.data,
    )
    return export(source, part, base)


class ClassicSession:
    """A SavedModel in a classic session: how TensorFlow Serving loads and runs it.

    Raises:
        BundleError: it does not load.
    """

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf

        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                # Deprecated for new code, but what it does is what TensorFlow Serving does.
                meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
            raise BundleError(f"The SavedModel written to {directory} does not load: {error}") from error
        self._signatures = meta.signature_def

    def __enter__(self) -> ClassicSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.close()

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a signature as arrays; strings as objects of bytes."""
        definition = self._signatures[signature]
        fed = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetched = {name: info.name for name, info in definition.outputs.items()}
        return self._session.run(fetched, fed)


def _copy_graph(source: Path, directory: Path) -> None:
    """Everything of a SavedModel that no head changes."""
    shutil.copy2(source / contract.SAVED_MODEL_FILE, directory)
    if (source / "assets").is_dir():
        shutil.copytree(source / "assets", directory / "assets")


def _write_variables(source: Path, directory: Path, part: HeadExport) -> None:
    """The checkpoint of `source` with the head's variables replaced."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(source / "variables" / "variables"))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    tensors |= {
        f"{name}/.ATTRIBUTES/VARIABLE_VALUE": value
        for name, value in {
            "mean": part.head.scaling.mean,
            "scale": part.head.scaling.scale,
            "kernel": part.head.kernel,
            "bias": part.head.bias,
            "temperature": np.float32(part.head.temperature),
            "threshold": np.float32(part.threshold),
            "labels": np.array([label.encode() for label in part.labels], object),
            "top_k": np.int64(min(part.top_k, len(part.labels))),
        }.items()
    }
    (directory / "variables").mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(directory / "variables" / "variables"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


def save_head(head: Head, path: Path) -> None:
    """Keep the weights beside the graph, for an export with other settings."""
    np.savez(
        path,
        mean=head.scaling.mean,
        scale=head.scaling.scale,
        kernel=head.kernel,
        bias=head.bias,
        temperature=head.temperature,
    )


def load_head(path: Path) -> Head:
    """Read what `save_head` wrote.

    Raises:
        BundleError: there is none, or it is torn.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            scaling = Scaling(file["mean"], file["scale"])
            return Head(scaling, file["kernel"], file["bias"], float(file["temperature"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path} holds no head: {error}.", remedy="Give a bundle that hubhead train exported."
        ) from error


def check_answers(
    session: ClassicSession,
    labels: Sequence[str],
    photos: Sequence[bytes] = (),
    probabilities: Floats | None = None,
    tolerance: float = PARITY_TOLERANCE,
) -> None:
    """Ask the written model about good photos, a text and an empty file in one call, and about none.

    Args:
        session: the model.
        labels: in the order of the columns.
        photos: N photos that the training path knows; none: a generated one.
        probabilities: float32 [N,K] of the training path.
        tolerance: largest difference of a probability.

    Raises:
        BundleError: a status is wrong, or the model differs from the training path.
    """
    good = list(photos) or [sample_jpeg()]
    answer = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [*good, b"no photo", b""]})
    found = [status.decode() for status in answer[contract.STATUS]]
    usable = [Status(status).usable for status in found[:-2]]
    if not all(usable) or found[-2:] != [Status.NOT_AN_IMAGE, Status.EMPTY]:
        raise BundleError(f"The exported model answers {found} for good photos, a text and an empty file.")
    nothing = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: []})
    if any(len(output) for output in nothing.values()):
        raise BundleError("The exported model answers a request without photos.")
    if probabilities is None:
        return
    column = {label.encode(): index for index, label in enumerate(labels)}
    expected = np.array(
        [
            [row[column[name]] for name in names]
            for row, names in zip(probabilities, answer[contract.CLASSES], strict=False)
        ]
    )
    difference = float(np.abs(answer[contract.SCORES][: len(photos)] - expected).max(initial=0.0))
    if difference > tolerance:
        raise BundleError(
            f"The exported model's probabilities differ from the training path's by up to "
            f"{difference:.2g}, more than the {tolerance:g} that float arithmetic explains.",
            remedy="Nothing was published. If files of the embedding store were changed, remove it.",
        )


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


def _save(backbone: Backbone, preprocessing: Preprocessing, directory: Path) -> None:
    """Trace all signatures and write the SavedModel, with a head of two labels that stands for any."""
    import tensorflow as tf

    root = tf.train.Checkpoint()
    root.kernel = tf.Variable(
        tf.zeros([backbone.dimension, 2]), shape=[backbone.dimension, None], trainable=False
    )
    root.mean = tf.Variable(tf.zeros([backbone.dimension]), trainable=False)
    root.scale = tf.Variable(tf.ones([backbone.dimension]), trainable=False)
    root.bias = tf.Variable(tf.zeros([2]), shape=[None], trainable=False)
    root.temperature = tf.Variable(1.0, trainable=False)
    root.threshold = tf.Variable(0.0, trainable=False)
    root.labels = tf.Variable(["", ""], shape=[None], trainable=False)
    root.top_k = tf.Variable(1, dtype=tf.int64, trainable=False)
    network = _network(backbone, root)
    embed = _embedder(network, backbone, preprocessing)
    signatures = {contract.EMBED: _embed_signature(embed)}
    signatures |= _head_signatures(embed, network, backbone, preprocessing, root)
    tf.saved_model.save(root, str(directory), signatures=signatures)


def _network(backbone: Backbone, root: Any) -> Callable[[Any], Any]:
    """The backbone with its weights as constants, in one function that all signatures call.

    With constants TensorFlow folds the normalisations into the convolutions, here and in
    TensorFlow Serving on CPUs. A SavedModel's graph may not be larger than 2 GB, so the largest
    backbones keep variables.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([None, *backbone.image_size, 3], tf.float32)
    concrete = tf.function(backbone.apply, autograph=False).get_concrete_function(spec)
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in concrete.variables)
    if size > _LARGEST_CONSTANTS:
        root.backbone = backbone.module
        return backbone.apply
    constant = convert_variables_to_constants_v2(concrete)
    return lambda pixels: constant(pixels)[0]


def _embedder(
    network: Callable[[Any], Any], backbone: Backbone, preprocessing: Preprocessing
) -> Callable[[Any], tuple[Any, ...]]:
    """image_bytes string [N] -> embedding float32 [N,D], status, height, width int32 [N].

    One function, traced once, that the signatures call.
    """
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def embed(image_bytes: Any) -> tuple[Any, ...]:
        with tf.device("CPU"):
            pixels, status, height, width = graph.decode_photos(image_bytes, preprocessing)
        return _features(network, pixels, backbone.dimension), status, height, width

    return embed


def _features(network: Callable[[Any], Any], pixels: Any, dimension: int) -> Any:
    """Pixels uint8 [N,H,W,3] -> embedding float32 [N,D], at the precision of the embedding store.

    Rounding to float16 here, in the graph, is what makes a stored embedding equal to a fresh one
    in every path. An empty batch takes a blank photo along, since the oneDNN kernels refuse it.
    """
    import tensorflow as tf

    count = tf.shape(pixels)[0]
    missing = tf.maximum(1 - count, 0)
    padded = tf.pad(pixels, [[0, missing], [0, 0], [0, 0], [0, 0]])
    padded.set_shape([None, *pixels.shape[1:]])
    embedding = network(tf.cast(padded, tf.float32) / 255.0)[:count]
    half = tf.cast(tf.clip_by_value(embedding, -_LARGEST_HALF, _LARGEST_HALF), tf.float16)
    return tf.ensure_shape(tf.cast(half, tf.float32), [None, dimension])


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
    network: Callable[[Any], Any],
    backbone: Backbone,
    preprocessing: Preprocessing,
    root: Any,
) -> dict[str, Any]:
    import tensorflow as tf

    strings = tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)
    size = [None, preprocessing.height, preprocessing.width, 3]

    def classify(embedding: Any) -> Any:
        # As trainer.head: standardised, of length one, affine, tempered softmax.
        with tf.device("CPU"):
            standardised = (embedding - root.mean) * root.scale
            features = tf.math.l2_normalize(standardised, axis=1, epsilon=1e-24)
            return tf.nn.softmax((features @ root.kernel + root.bias) / root.temperature)

    def answer(probabilities: Any, status: Any) -> dict[str, Any]:
        with tf.device("CPU"):
            scores, best = tf.math.top_k(probabilities, tf.cast(root.top_k, tf.int32))
            classes = tf.gather(root.labels, best)
            usable = graph.usable(status)
            decided = usable & (scores[:, 0] >= root.threshold)
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
        embedding = _features(network, pixels, backbone.dimension)
        return answer(classify(embedding), tf.zeros(tf.shape(pixels)[:1], tf.int32))

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


def _provenance() -> dict[str, Any]:
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": package_versions(),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of what a bundle's content depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
