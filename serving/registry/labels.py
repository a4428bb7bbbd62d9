"""The version of a model that callers of a label get, for those who read its directory themselves."""

from __future__ import annotations

from pathlib import Path

from serving import bundle, contract
from serving.errors import InputError
from serving.registry import model_config


def resolve_label(model: Path, config: Path, label: str) -> Path:
    """The version's directory.

    Args:
        model: the directory above the versions, named like the model; a version's own stays what it is, and
            so does what is not there, for its reader to say.
        config: the servers' model.config.
        label: such as stable.

    Raises:
        InputError: the file cannot be used, or no version has the label.
        BundleError: the version is not there.
    """
    if (model / contract.SAVED_MODEL_FILE).exists() or not model.is_dir():
        return model
    labels = model_config.read(config, model.resolve().name).labels
    if label not in labels:
        raise InputError(
            f"No version of {model.resolve().name} is {label} in {config}.",
            remedy=f"Labels there: {', '.join(labels) or 'none'}. Promote a version, or give its directory.",
        )
    return bundle.version_directory(model, labels[label])
