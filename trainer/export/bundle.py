"""Export of a bundle: a SavedModel that takes photo bytes, with its labels, metadata, report and model card.

Stock TensorFlow Serving loads it; hubhead's own parts read hubhead.json beside it. A bundle is written
under a temporary name, loaded again, compared with the training path on real photos, and only then
renamed to its version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from batch.monitoring.engines import EngineRecord
from serving import bundle, contract, protos
from serving.bundle import Bundle, training_digests
from serving.bundle.sections import CalibrationRecord
from serving.errors import BundleError
from serving.process import get_cpu_model
from serving.protos import tensors
from serving.runtime.tensorflow_import import import_tensorflow
from serving.storage import files
from serving.storage.tfrecord import write_records
from trainer.backbones import InputOptions
from trainer.backbones.hub import load
from trainer.dataset.download import ProgressLogger, no_progress
from trainer.evaluation.novelty import Novelty
from trainer.export import model_card, signatures, tflite
from trainer.export.bundle_check import check_bundle
from trainer.export.checks import sample_jpeg
from trainer.export.head_file import load_head, save_head
from trainer.export.templates import copy_graph, record_provenance, trace
from trainer.export.tflite import TfliteOptions
from trainer.heads import Floats, Head
from trainer.preprocessing import Preprocessing


@dataclass(frozen=True)
class HeadExport:
    """The head and its records, which are added to a template.

    Attributes:
        head: weights of the head.
        labels: label names, in the order of the head's columns.
        threshold: best probability below which the model abstains; 0 never abstains.
        novelty: score by which the model rejects photos that are unlike the known ones; None for none.
        top_k: length of `classes` and `scores`.
        settings: kind of the head and the settings chosen for it, for hubhead.json.
        metrics, data: metrics and a summary of the dataset, for hubhead.json.
        trained_on: digests of the photos that the head was trained on; None if unknown.
        engines: what embedded the photos of the training, for hubhead.json.
        configuration: options of the command, as in a configuration file, for hubhead.json.
        test_photos: photos that it was tested on, for later comparisons; None if unknown.
        report: function that writes the report to a path; None for no report.
        tflite: options of the TensorFlow Lite file; None for no such file.
    """

    head: Head
    labels: Sequence[str]
    threshold: float = 0.0
    novelty: Novelty | None = None
    top_k: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    engines: Sequence[EngineRecord] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    trained_on: training_digests.DigestPrefixes | None = None
    test_photos: training_digests.TestPhotos | None = None
    report: Callable[[Path], None] | None = None
    tflite: TfliteOptions | None = None


def export(
    source: Bundle,
    part: HeadExport,
    base: Path,
    *,
    photos: Sequence[bytes] = (),
    probabilities: Floats | None = None,
) -> Bundle:
    """Write, check and publish the next version below `base`.

    Before it is published, the written model is loaded. It must answer bad photos with their status, and the
    given photos as the training path does. That TensorFlow Serving loads its graph was checked when the
    template was made (trainer.export.templates).

    Args:
        source: bundle whose graph is copied: the template, or any earlier bundle of the backbone.
        part: the head and its records.
        base: `<models>/<name>`.
        photos: N encoded photos for the check.
        probabilities: float32 [N,K], probabilities of these photos by the training path.

    Raises:
        OutputError: `base` cannot be written.
        BundleError: the written SavedModel does not load, or its answers are wrong.
        GateRejected: the TensorFlow Lite file does not agree with the SavedModel.
    """
    metadata = replace(
        source.metadata,
        labels=list(part.labels),
        calibration=cast("dict[str, float]", _describe_calibration(part)),
        head=dict(part.settings),
        top_k=min(part.top_k, len(part.labels)),
        metrics=dict(part.metrics),
        data=dict(part.data),
        provenance={
            **record_provenance(),
            "cpu": get_cpu_model(),
            "engines": list(part.engines),
            "configuration": dict(part.configuration),
        },
    )
    with files.output_errors(str(base), "write to"), bundle.staging(base) as staged:
        copy_graph(source.path, staged)
        values = signatures.make_head_variables(
            part.head, part.labels, threshold=part.threshold, top_k=metadata.top_k, novelty=part.novelty
        )
        signatures.write_variables(source.path, staged, values)
        metadata.write(staged)
        save_head(staged / contract.HEAD_FILE, part.head, part.novelty)
        if part.trained_on is not None:
            training_digests.write(staged, part.trained_on)
        if part.test_photos is not None:
            training_digests.write_test_photos(staged, part.test_photos)
        write_warmup(staged, base.name)
        # The report is written while the model is checked: both take seconds of one core.
        with ThreadPoolExecutor(1) as executor:
            report = executor.submit(part.report, staged / contract.REPORT_FILE) if part.report else None
            check_bundle(staged, source, values, part.labels, photos, probabilities)
            if report:
                report.result()
        if part.tflite:
            # Converted last, as it is cut out of the SavedModel that has just been checked.
            converted = tflite.convert(staged, metadata, part.tflite)
            (staged / tflite.BUNDLE_FILE).write_bytes(converted.content)
            metadata = replace(metadata, metrics=metadata.metrics | {"tflite": converted.to_dict()})
            metadata.write(staged)
        model_card.write(staged, metadata, base.name)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def export_headless(
    handle: str,
    base: Path,
    cache: Path,
    preprocessing: Preprocessing | None = None,
    *,
    options: InputOptions | None = None,
    configuration: Mapping[str, Any] | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """Publish a backbone without a head, with signature `embed` alone, as the next version below `base`.

    Args:
        handle: alias, directory or Hub handle of the backbone (trainer.backbones.hub.load).
        base: `<models>/<name>`.
        cache: cache directory.
        preprocessing: preprocessing settings, of which the size is replaced by the backbone's.
        options: the backbone's input as stated by the user.
        configuration: options of the command, as in a configuration file, for hubhead.json.
        say: function that is called with one line of text before each download.

    Raises:
        InputError, FetchError: as trainer.backbones.hub.load.
        OutputError: `base` cannot be written.
    """
    with bundle.staging(base) as staged:
        import_tensorflow()
        backbone = load(handle, cache, options=options, progress=say)
        metadata = trace(backbone, preprocessing or Preprocessing(), staged, with_head=False)
        provenance = metadata.provenance | {"configuration": dict(configuration or {})}
        metadata = replace(metadata, provenance=provenance)
        metadata.write(staged)
        model_card.write(staged, metadata, base.name)
        published = bundle.publish(staged, base)
    return bundle.read(published)


def reexport(
    path: Path,
    base: Path,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    keep_known: float | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Bundle:
    """Publish the head of a bundle as a new version with other settings; None keeps a setting.

    Args:
        path: the bundle.
        base: `<models>/<name>` of the new version.
        top_k: length of `classes` and `scores`.
        threshold: best probability below which the model abstains.
        keep_known: fraction of the photos of known labels that the novelty score is to accept.
        configuration: options of the command, for hubhead.json beside those of the training.

    Raises:
        BundleError: the bundle has no head, or no novelty score that `keep_known` could change.
        OutputError: `base` cannot be written.
    """
    source = bundle.read(path)
    metadata = source.metadata
    source.require_head("head to export")
    head, novelty = load_head(source.path / contract.HEAD_FILE, metadata)
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
        threshold=metadata.threshold if threshold is None else threshold,
        top_k=top_k or metadata.top_k,
        settings=metadata.head,
        # The TensorFlow Lite file is not copied, so neither are its metrics.
        metrics={name: values for name, values in metadata.metrics.items() if name != "tflite"},
        data=metadata.data,
        engines=metadata.provenance.get("engines", ()),
        configuration={**metadata.provenance.get("configuration", {}), **(configuration or {})},
        trained_on=training_digests.read(source.path),
        test_photos=training_digests.read_test_photos(source.path),
    )
    return export(source, part, base)


def _describe_calibration(part: HeadExport) -> CalibrationRecord:
    """Return temperature and thresholds for hubhead.json."""
    calibration: CalibrationRecord = {"temperature": part.head.temperature, "threshold": part.threshold}
    if part.novelty:
        calibration["novelty_threshold"] = part.novelty.threshold
        calibration["keep_known"] = part.novelty.kept.value
    return calibration


def write_warmup(directory: Path, model_name: str) -> None:
    """Write the warm-up requests: one for each batch size the server may form, and one broken photo.

    TensorFlow Serving replays them before it serves a version; a record of n photos warms up the
    padded batch size for n.
    """
    photo = sample_jpeg()
    batches = [[photo] * size for size in contract.WARMUP_BATCH_SIZES] + [[photo[: len(photo) // 2]]]
    spec = protos.ModelSpec(name=model_name, signature_name=contract.SERVING_DEFAULT)
    inputs = ({contract.IMAGE_BYTES: tensors.encode(np.array(batch, object))} for batch in batches)
    requests = (protos.PredictRequest(model_spec=spec, inputs=tensor) for tensor in inputs)
    logs = (protos.PredictionLog(predict_log=protos.PredictLog(request=request)) for request in requests)
    write_records(directory / contract.WARMUP_FILE, (log.SerializeToString() for log in logs))
