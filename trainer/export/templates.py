"""Templates: bundles without labels that hold a backbone's traced graph, kept in the cache.

Nothing in the graph depends on the head (trainer.export.signatures). A bundle is exported by copying a
template and writing a small checkpoint, instead of tracing for seconds.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle, contract
from serving.bundle import BackboneRecord, Bundle, BundleMetadata
from serving.bundle.sections import ProvenanceRecord
from serving.process import get_package_versions
from serving.runtime.session import ClassicSession
from serving.runtime.tensorflow_import import import_tensorflow
from serving.text import redact
from trainer.backbones import InputOptions, input_key
from trainer.backbones.fingerprint import read_fingerprint
from trainer.backbones.hub import Backbone, load, prepare
from trainer.dataset.download import ProgressLogger, create_once, no_progress
from trainer.export import signatures
from trainer.export.checks import check_answers
from trainer.preprocessing import Augmentation, Preprocessing

PACKAGES = (
    "hubhead",
    "tensorflow",
    "tensorflow-hub",
    "onnxruntime",
    "tf2onnx",
    "apache-beam",
    "numpy",
    "scipy",
)
"""Packages that a bundle's content depends on."""


def prepare_template(
    handle: str,
    cache: Path,
    preprocessing: Preprocessing | None = None,
    *,
    view: tuple[Augmentation, int] | None = None,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """Return the template of a backbone from the cache, after tracing its graph if it is not there.

    The template embeds photos for training, and every head of this backbone is exported with it.

    Args:
        handle: alias, directory or Hub handle of the backbone (trainer.backbones.hub.load).
        cache: cache directory.
        preprocessing: preprocessing settings, of which the size is replaced by the backbone's.
        view: how much views differ from the photo, and the number of a view, from 0: the template then has
            signature `embed` alone, for that random view of each photo. The view is drawn from a photo's
            bytes and the number, so it is always the same one, and its embedding can be kept in a store of
            its own.
        options: the backbone's input as stated by the user.
        say: function that is called with one line of text before each download.

    Raises:
        InputError, FetchError, OutputError: as trainer.backbones.hub.load.
        BundleError: TensorFlow Serving would not load the graph.
    """
    preprocessing = preprocessing or Preprocessing()
    augmentation, number = view or (None, 0)
    say = functools.cache(say)  # loading prepares the backbone again, and repeats what it assumes
    path, completed = prepare(handle, cache, options or InputOptions(), progress=say)
    key = [
        read_fingerprint(path, cache),
        input_key(handle, completed),
        preprocessing.to_dict(),
        signatures.hash_sources(),
        *([asdict(augmentation), number] if augmentation else []),
    ]
    directory = cache / "templates" / _hash_json(key)
    if directory.is_dir():
        return bundle.read(directory)
    import_tensorflow()
    with create_once(directory) as staged:
        # View 0 is traced; the others are copies of it with another value of the variable `view`.
        if augmentation and number:
            first = prepare_template(
                handle, cache, preprocessing, view=(augmentation, 0), options=options, say=say
            )
            copy_graph(first.path, staged)
            signatures.write_variables(first.path, staged, {"view": np.array(number, np.int32)})
            metadata = first.metadata
        else:
            backbone = load(handle, cache, options=completed, progress=say)
            metadata = trace(backbone, preprocessing, staged, augmentation=augmentation, with_head=not view)
            if not view:
                with ClassicSession(staged) as session:
                    check_answers(session.run, [])
        if augmentation:
            view_key = [asdict(augmentation), preprocessing.to_dict(), "view", number]
            metadata = _set_view_fingerprint(metadata, view_key)
        metadata.write(staged)
    return bundle.read(directory)


def _set_view_fingerprint(metadata: BundleMetadata, view_key: list[Any]) -> BundleMetadata:
    """Return a copy with the fingerprint of one view, so that embedding stores keep the views apart."""
    of_photos = metadata.backbone.get("of_photos", metadata.fingerprint)
    identity = _hash_json([of_photos, *view_key])
    return replace(metadata, backbone=metadata.backbone | {"fingerprint": identity, "of_photos": of_photos})


def copy_graph(source: Path, directory: Path) -> None:
    """Copy the files of a bundle that do not depend on the head."""
    for name in (contract.SAVED_MODEL_FILE, contract.ONNX_FILE):
        if (source / name).is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copy2(source / name, directory / name)
    if (source / "assets").is_dir():
        shutil.copytree(source / "assets", directory / "assets")


def trace(
    backbone: Backbone,
    preprocessing: Preprocessing,
    directory: Path,
    *,
    with_head: bool = True,
    augmentation: Augmentation | None = None,
) -> BundleMetadata:
    """Write the SavedModel of a backbone, and return the metadata (hubhead.json) of a bundle without labels.

    Args:
        backbone: the network.
        preprocessing: preprocessing settings, of which the size is replaced by the backbone's.
        directory: as for `signatures.save`.
        with_head: as for `signatures.save`.
        augmentation: as for `signatures.save`.
    """
    interface = backbone.interface
    height, width = backbone.image_size
    preprocessing = replace(preprocessing, height=height, width=width)
    signatures.save(backbone, preprocessing, directory, with_head=with_head, augmentation=augmentation)
    record: BackboneRecord = {
        "handle": redact(backbone.handle),
        # The key of the embedding store: it covers the backbone's weights and the preprocessing.
        "fingerprint": _hash_json([backbone.fingerprint, preprocessing.to_dict()]),
        "image_size": list(backbone.image_size),
        "value_range": list(interface.value_range),
        "dimension": backbone.dimension,
    }
    if interface.channels:
        record["preprocessing"] = interface.channels
    return BundleMetadata(
        labels=[],
        backbone=record,
        preprocessing=preprocessing.to_dict(),
        provenance=dict(record_provenance()),
    )


def record_provenance() -> ProvenanceRecord:
    """Return the present time and the versions of the packages, for hubhead.json."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": get_package_versions(PACKAGES),
    }


def _hash_json(content: Any) -> str:
    """Return the SHA-256, in hex, of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
