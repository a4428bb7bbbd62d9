"""Resolve a version label to a version directory, for jobs that load the bundle themselves."""

from __future__ import annotations

from pathlib import Path

from serving import bundle, contract
from serving.errors import InputError
from serving.registry import model_config


def resolve_label(model: Path, config: Path, label: str) -> Path:
    """Return the directory of the version that has a label.

    Args:
        model: directory above the versions, named like the model. A version's own directory and a path
            that does not exist are returned unchanged: the reader of the bundle reports the latter.
        config: model.config of the servers.
        label: version label, such as stable.

    Raises:
        InputError: the file cannot be read, or no version has the label.
        BundleError: the version does not exist.
    """
    if (model / contract.SAVED_MODEL_FILE).exists() or not model.is_dir():
        return model
    labels = model_config.read(config, model.resolve().name).labels
    if label not in labels:
        raise InputError(
            f"No version of {model.resolve().name} is {label} in {config}.",
            remedy=f"Labels there: {', '.join(labels) or 'none'}. Promote a version to it, or give the "
            "directory of a version.",
        )
    return bundle.version_directory(model, labels[label])
