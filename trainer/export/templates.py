"""Templates: bundles without labels that hold a backbone's traced graph, kept in the cache.

Nothing in the graph depends on the head (trainer.export.signatures). A bundle is exported by copying a
template and writing a small checkpoint, instead of tracing for seconds.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle, contract
from serving.bundle import Bundle, BundleMetadata
from serving.process import get_package_versions
from serving.runtime.tensorflow_import import import_tensorflow
from trainer.backbones import InputOptions, input_key
from trainer.backbones.fingerprint import compute_fingerprint
from trainer.backbones.hub import Backbone, load, resolve
from trainer.dataset.download import ProgressLogger, create_once, no_progress
from trainer.export import signatures
from trainer.preprocessing import Augmentation, Preprocessing

PACKAGES = ("hubhead", "tensorflow", "tensorflow-hub", "apache-beam", "numpy", "scipy")
"""Packages that a bundle's content depends on."""


def prepare_template(
    handle: str,
    cache: Path,
    preprocessing: Preprocessing | None = None,
    *,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """Return the template of a backbone from the cache, after tracing its graph if it is not there.

    The template embeds photos for training, and every head of this backbone is exported with it.

    Args:
        handle: alias, directory or Hub handle of the backbone (trainer.backbones.hub.load).
        cache: cache directory.
        preprocessing: preprocessing settings, of which the size is replaced by the backbone's.
        options: the backbone's input as stated by the user.
        say: function that is called with one line of text before each download.

    Raises:
        InputError, FetchError, OutputError: as trainer.backbones.hub.load.
    """
    import_tensorflow()
    path = resolve(handle, cache, progress=say)
    preprocessing, options = preprocessing or Preprocessing(), options or InputOptions()
    key: list[Any] = [
        compute_fingerprint(path),
        input_key(handle, options),
        preprocessing.to_dict(),
        signatures.hash_sources(),
    ]
    directory = cache / "templates" / _hash_json(key)
    if not directory.is_dir():
        backbone = load(handle, cache, options=options, progress=say)
        preprocessing = set_image_size(preprocessing, backbone)
        with create_once(directory) as staged:
            signatures.save(backbone, preprocessing, staged)
            build_metadata(backbone, preprocessing).write(staged)
    return bundle.read(directory)


def prepare_view_template(
    handle: str,
    cache: Path,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    number: int,
    *,
    options: InputOptions | None = None,
    say: ProgressLogger = no_progress,
) -> Bundle:
    """Return a headless bundle from the cache that embeds the random view `number` of each photo.

    The view is drawn from a photo's bytes and the number, so it is always the same one, and its
    embedding can be kept in a store of its own. The graph is traced once for all numbers.

    Args:
        handle: as for `prepare_template`.
        cache: as for `prepare_template`.
        preprocessing: preprocessing settings, of which the size is replaced by the backbone's.
        augmentation: how much views differ from the photo.
        number: number of the view, from 0.
        options: as for `prepare_template`.
        say: as for `prepare_template`.
    """
    import_tensorflow()
    options = options or InputOptions()
    path = resolve(handle, cache, progress=say)
    described: list[Any] = [asdict(augmentation), preprocessing.to_dict()]
    key = [compute_fingerprint(path), input_key(handle, options), *described, signatures.hash_sources()]
    # View 0 is traced; the others are copies of it with another value of the variable `view`.
    first = cache / "templates" / _hash_json([*key, 0])
    if not first.is_dir():
        backbone = load(handle, cache, options=options, progress=say)
        sized = set_image_size(preprocessing, backbone)
        with create_once(first) as staged:
            signatures.save(backbone, sized, staged, with_head=False, augmentation=augmentation)
            _set_view_fingerprint(build_metadata(backbone, sized), described, 0).write(staged)
    directory = cache / "templates" / _hash_json([*key, number])
    if not directory.is_dir():
        with create_once(directory) as staged:
            copy_graph(first, staged)
            signatures.write_variables(first, staged, {"view": np.int32(number)})
            base = bundle.read(first).metadata
            _set_view_fingerprint(base, described, number).write(staged)
    return bundle.read(directory)


def _set_view_fingerprint(metadata: BundleMetadata, described: Sequence[Any], number: int) -> BundleMetadata:
    """Return a copy with the fingerprint of one view, so that embedding stores keep the views apart."""
    of_photos = metadata.backbone.get("of_photos", metadata.fingerprint)
    identity = _hash_json([of_photos, *described, "view", number])
    return replace(metadata, backbone=metadata.backbone | {"fingerprint": identity, "of_photos": of_photos})


def copy_graph(source: Path, directory: Path) -> None:
    """Copy the files of a SavedModel that do not depend on the head."""
    shutil.copy2(source / contract.SAVED_MODEL_FILE, directory)
    if (source / "assets").is_dir():
        shutil.copytree(source / "assets", directory / "assets")


def set_image_size(preprocessing: Preprocessing, backbone: Backbone) -> Preprocessing:
    """Return a copy with the image size of the backbone."""
    height, width = backbone.image_size
    return replace(preprocessing, height=height, width=width)


def build_metadata(backbone: Backbone, preprocessing: Preprocessing) -> BundleMetadata:
    """Return the metadata (hubhead.json) of a bundle without labels."""
    return BundleMetadata(
        labels=[],
        backbone={
            "handle": backbone.handle,
            # The key of the embedding store: it covers the backbone's weights and the preprocessing.
            "fingerprint": _hash_json([backbone.fingerprint, preprocessing.to_dict()]),
            "image_size": list(backbone.image_size),
            "value_range": list(backbone.interface.value_range),
            "dimension": backbone.dimension,
        },
        preprocessing=preprocessing.to_dict(),
        provenance=record_provenance(),
    )


def record_provenance() -> dict[str, Any]:
    """Return the present time and the versions of the packages, for hubhead.json."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": get_package_versions(PACKAGES),
    }


def _hash_json(content: Any) -> str:
    """Return the SHA-256, in hex, of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
