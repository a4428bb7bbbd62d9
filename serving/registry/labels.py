"""Resolve a version label to a version directory, for jobs that load the bundle themselves."""

from __future__ import annotations

from pathlib import Path

from serving import contract
from serving.errors import InputError
from serving.registry import model_config
from serving.registry.stores.download import open_store
from serving.storage import files
from serving.storage.address import Address, base_name, resolve


def resolve_label(model: Address, config: Address, label: str) -> Address:
    """Return the directory or address of the version that has a label.

    Args:
        model: directory or address above the versions, named like the model. Those of a version itself and
            a path that does not exist are returned unchanged: the reader of the bundle reports the latter.
        config: model.config of the servers.
        label: version label, such as stable.

    Raises:
        InputError: the file cannot be read, or no version has the label.
        BundleError: the version does not exist.
    """
    is_version = files.exists(files.join(str(model), contract.SAVED_MODEL_FILE))
    if is_version or (isinstance(model, Path) and not model.is_dir()):
        return model
    name = base_name(resolve(model))
    labels = model_config.read(config, name).labels
    if label not in labels:
        raise InputError(
            f"No version of {name} is {label} in {config}.",
            remedy=f"Labels there: {', '.join(labels) or 'none'}. Promote a version to it, or give the "
            "directory of a version.",
        )
    store = open_store(model)
    store.require(labels[label])
    return store.path(labels[label])
