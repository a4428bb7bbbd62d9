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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle, contract, protos
from serving.bundle import Bundle, BundleMetadata
from serving.bundle import training_digests as trained_on
from serving.errors import BundleError
from serving.protos import tensors
from serving.runtime.session import ClassicSession, check_answers, sample_jpeg
from serving.runtime.tensorflow_import import import_tensorflow
from trainer.backbones import Backbone, InputOptions, input_key, load, resolve
from trainer.backbones.fingerprint import fingerprint as fingerprint_of
from trainer.dataset.download import ProgressLogger, create_once, no_progress
from trainer.evaluation.novelty import Novelty
from trainer.export import signatures, tflite
from trainer.export.tflite import TfliteOption
from trainer.heads import Floats, Head, HiddenLayer, Scaling
from trainer.preprocessing import Augmentation, Preprocessing

PACKAGES = ("hubhead", "tensorflow", "tensorflow-hub", "apache-beam", "numpy", "scipy")


@dataclass(frozen=True)
class HeadExport:
    """What a head adds to a template.

    Attributes:
        head: the weights.
        labels: in the order of the head's columns.
        threshold: the model abstains where its best probability is below; 0 never abstains.
        novelty: the model abstains where a photo is unlike the known ones; None never does so.
        top_k: length of `classes` and `scores`.
        settings: the head's kind and what was chosen for it, for hubhead.json.
        metrics, data: the same.
        trained_on: digests of the photos that the head has seen; None if unknown.
        report: writes the report to the path given; None leaves it out.
        tflite: what a TensorFlow Lite file is made by; None leaves it out.
    """

    head: Head
    labels: Sequence[str]
    threshold: float = 0.0
    novelty: Novelty | None = None
    top_k: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    trained_on: trained_on.DigestPrefixes | None = None
    report: Callable[[Path], None] | None = None
    tflite: TfliteOption | None = None


def fingerprint(backbone: Backbone, preprocessing: Preprocessing) -> str:
    """Key of the embedding store: sha256 hex over the backbone's weights and the preprocessing."""
    return _digest([backbone.fingerprint, preprocessing.to_dict()])


def template(
    handle: str,
    cache: Path,
    preprocessing: Preprocessing | None = None,
    *,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """The graph of a backbone, traced once and kept in the cache: a bundle without labels.

    It embeds photos for training, and it is what every head of this backbone is exported with:
    nothing in its graph depends on the head (trainer.export.signatures). So a new head costs a copy
    and a small checkpoint, not seconds of tracing.

    Args:
        handle: the backbone (trainer.backbones.load).
        cache: the cache directory.
        preprocessing: its settings; the size is the backbone's, whatever it says.
        options: what the user states of the backbone's input.
        say: called with one line before each download.

    Raises:
        InputError, FetchError, OutputError: as trainer.backbones.load.
    """
    import_tensorflow()
    path = resolve(handle, cache, progress=say)
    preprocessing, options = preprocessing or Preprocessing(), options or InputOptions()
    key: list[Any] = [
        fingerprint_of(path),
        input_key(handle, options),
        preprocessing.to_dict(),
        signatures.recipe(),
    ]
    directory = cache / "templates" / _digest(key)
    if not directory.is_dir():
        backbone = load(handle, cache, options=options, progress=say)
        preprocessing = _sized(preprocessing, backbone)
        with create_once(directory) as staged:
            signatures.save(backbone, preprocessing, staged)
            _metadata(backbone, preprocessing).write(staged)
    return bundle.read(directory)


def view_template(
    handle: str,
    cache: Path,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    number: int,
    *,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """What embeds the random view `number` of each photo: a headless bundle in the cache.

    The view that a photo's bytes and the number draw is always the same one, and so its embedding
    can be kept in a store of its own, like any other. The graph is traced once for all numbers.

    Args:
        handle: as for `template`.
        cache: as for `template`.
        preprocessing: its settings; the size is the backbone's, whatever it says.
        augmentation: how much views differ.
        number: from 0.
        options: as for `template`.
        say: as for `template`.
    """
    import_tensorflow()
    options = options or InputOptions()
    path = resolve(handle, cache, progress=say)
    described: list[Any] = [asdict(augmentation), preprocessing.to_dict()]
    key = [fingerprint_of(path), input_key(handle, options), *described, signatures.recipe()]
    first = cache / "templates" / _digest([*key, 0])
    if not first.is_dir():
        backbone = load(handle, cache, options=options, progress=say)
        sized = _sized(preprocessing, backbone)
        with create_once(first) as staged:
            signatures.save(backbone, sized, staged, with_head=False, augmentation=augmentation)
            _view_metadata(_metadata(backbone, sized), described, 0).write(staged)
    directory = cache / "templates" / _digest([*key, number])
    if not directory.is_dir():
        with create_once(directory) as staged:
            _copy_graph(first, staged)
            signatures.write_variables(first, staged, {"view": np.int32(number)})
            base = bundle.read(first).metadata
            _view_metadata(base, described, number).write(staged)
    return bundle.read(directory)


def _view_metadata(metadata: BundleMetadata, described: Sequence[Any], number: int) -> BundleMetadata:
    """With a fingerprint of its own for each view, so that stores keep them apart."""
    of_photos = metadata.backbone.get("of_photos", metadata.fingerprint)
    identity = _digest([of_photos, *described, "view", number])
    return replace(metadata, backbone=metadata.backbone | {"fingerprint": identity, "of_photos": of_photos})


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
        source: the bundle whose graph is taken: the `template`, or any earlier one of the backbone.
        part: the head and its records.
        base: `<models>/<name>`.
        photos: N encoded photos to check it by.
        probabilities: float32 [N,K], what the training path says of them.

    Raises:
        OutputError: `base` cannot be written.
        BundleError: the written SavedModel does not load or does not answer as it must.
        GateRejected: the TensorFlow Lite file does not answer as it does.
    """
    metadata = replace(
        source.metadata,
        labels=list(part.labels),
        calibration=_calibration(part),
        head=dict(part.settings),
        top_k=min(part.top_k, len(part.labels)),
        metrics=dict(part.metrics),
        data=dict(part.data),
        provenance=_provenance(),
    )
    with bundle.staging(base) as staged:
        _copy_graph(source.path, staged)
        values = signatures.head_variables(
            part.head, part.labels, threshold=part.threshold, top_k=metadata.top_k, novelty=part.novelty
        )
        signatures.write_variables(source.path, staged, values)
        metadata.write(staged)
        save_head(part, staged / contract.HEAD_FILE)
        if part.trained_on is not None:
            trained_on.write(staged, part.trained_on)
        write_warmup(staged, base.name)
        with ThreadPoolExecutor(1) as beside:
            # Both take seconds of one core, mostly TensorFlow's work on a graph.
            report = beside.submit(part.report, staged / contract.REPORT_FILE) if part.report else None
            with ClassicSession(staged) as session:
                check_answers(session, part.labels, photos, probabilities)
            if report:
                report.result()
        if part.tflite:
            made = tflite.make(staged, metadata, part.tflite)
            (staged / tflite.FILE).write_bytes(made.content)
            replace(metadata, metrics=metadata.metrics | {"tflite": made.to_dict()}).write(staged)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_headless(
    handle: str,
    base: Path,
    cache: Path,
    preprocessing: Preprocessing | None = None,
    *,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """Publish a backbone without a head, signature `embed` alone, as the next version below `base`.

    Raises:
        InputError, FetchError: as trainer.backbones.load.
        OutputError: `base` cannot be written.
    """
    with bundle.staging(base) as staged:
        import_tensorflow()
        backbone = load(handle, cache, options=options, progress=say)
        preprocessing = _sized(preprocessing or Preprocessing(), backbone)
        signatures.save(backbone, preprocessing, staged, with_head=False)
        _metadata(backbone, preprocessing).write(staged)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_again(
    path: Path,
    base: Path,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    keep_known: float | None = None,
) -> Bundle:
    """Publish the head of a bundle as a new version with other settings; None leaves one as it was.

    Raises:
        BundleError: the bundle has no head.
        OutputError: `base` cannot be written.
    """
    source = bundle.read(path)
    metadata = source.metadata
    if not metadata.labels:
        raise BundleError(f"{source.path} is a headless bundle.", remedy="Give one that hubhead train made.")
    head, novelty = load_head(source.path / contract.HEAD_FILE)
    if keep_known is not None:
        if novelty is None:
            raise BundleError(
                f"{source.path} was trained without a novelty score.",
                remedy="Train with --keep_known, or give --threshold.",
            )
        novelty = novelty.with_kept(keep_known)
    part = HeadExport(
        head,
        metadata.labels,
        novelty=novelty,
        threshold=metadata.calibration["threshold"] if threshold is None else threshold,
        top_k=top_k or metadata.top_k,
        settings=metadata.head,
        metrics={name: figures for name, figures in metadata.metrics.items() if name != "tflite"},
        data=metadata.data,
        trained_on=trained_on.read(source.path),
    )
    return export(source, part, base)


def _copy_graph(source: Path, directory: Path) -> None:
    """Everything of a SavedModel that no head changes."""
    shutil.copy2(source / contract.SAVED_MODEL_FILE, directory)
    if (source / "assets").is_dir():
        shutil.copytree(source / "assets", directory / "assets")


def _calibration(part: HeadExport) -> dict[str, float]:
    calibration = {"temperature": part.head.temperature, "threshold": part.threshold}
    if part.novelty:
        calibration |= {"novelty_threshold": part.novelty.threshold, "keep_known": part.novelty.kept.value}
    return calibration


_HIDDEN = ("kernel", "bias", "output")
_NOVELTY = ("centre", "directions", "residual_weight", "energy_weight", "threshold", "known")


def save_head(part: HeadExport, path: Path) -> None:
    """Keep the weights beside the graph, for an export with other settings."""
    head, novelty = part.head, part.novelty
    hidden = {f"hidden_{name}": getattr(head.hidden, name) for name in _HIDDEN} if head.hidden else {}
    refusing = {f"novelty_{name}": getattr(novelty, name) for name in _NOVELTY} if novelty else {}
    np.savez(
        path,
        mean=head.scaling.mean,
        scale=head.scaling.scale,
        kernel=head.kernel,
        bias=head.bias,
        temperature=head.temperature,
        **hidden,
        **refusing,
    )


def load_head(path: Path) -> tuple[Head, Novelty | None]:
    """Read what `save_head` wrote.

    Raises:
        BundleError: there is none, or it is torn.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            scaling = Scaling(file["mean"], file["scale"])
            hidden = (
                HiddenLayer(*(file[f"hidden_{name}"] for name in _HIDDEN))
                if "hidden_kernel" in file
                else None
            )
            head = Head(scaling, file["kernel"], file["bias"], float(file["temperature"]), hidden)
            if "novelty_centre" not in file:
                return head, None
            refusing: dict[str, Any] = {}
            for name in _NOVELTY:
                value = file[f"novelty_{name}"]
                refusing[name] = value if value.ndim else float(value)
            return head, Novelty(head, **refusing)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path} holds no head: {error}.", remedy="Give a bundle that hubhead train exported."
        ) from error


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


def _sized(preprocessing: Preprocessing, backbone: Backbone) -> Preprocessing:
    height, width = backbone.image_size
    return replace(preprocessing, height=height, width=width)


def _metadata(backbone: Backbone, preprocessing: Preprocessing) -> BundleMetadata:
    """hubhead.json of a bundle without labels."""
    return BundleMetadata(
        labels=[],
        backbone={
            "handle": backbone.handle,
            "fingerprint": fingerprint(backbone, preprocessing),
            "image_size": list(backbone.image_size),
            "value_range": list(backbone.interface.value_range),
            "dimension": backbone.dimension,
        },
        preprocessing=preprocessing.to_dict(),
        provenance=_provenance(),
    )


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
