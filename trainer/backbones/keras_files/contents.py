"""Contents of a Keras file, read without Keras: a whole model or weights, and its architecture.

The formats are HDF5 with a whole model (Keras 1 to 3: attribute `model_config`), HDF5 with weights by layer
(attribute `layer_names`) or by object (`*.weights.h5`: group `layers`), and zip archives (.keras).
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.text import escape_controls, first_line

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"
SUFFIXES = (".h5", ".hdf5", ".keras")

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
"""Members of a .keras archive."""

_OBJECT_GROUPS = ("layers", "_layer_checkpoint_dependencies")
"""Groups of files of weights by object; the second name is that of Keras 2.12."""


class Kind(StrEnum):
    """Contents of a Keras file."""

    ARCHIVE = "archive"
    MODEL = "model"
    WEIGHTS_BY_LAYER = "weights_by_layer"
    WEIGHTS_BY_OBJECT = "weights_by_object"

    @property
    def is_model(self) -> bool:
        """True for a whole model, with its architecture."""
        return self in (Kind.ARCHIVE, Kind.MODEL)


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a Keras file.

    Attributes:
        kind: kind of the contents.
        config: architecture of a whole model, {"class_name": ..., "config": ...}; {} of weights.
        version: version of the Keras that wrote it; "" if the file does not state it.
        arrays: number of arrays of weights, without those of an optimizer.
        layer_names: names of the layers of WEIGHTS_BY_LAYER that have weights.
    """

    kind: Kind
    config: dict[str, Any]
    version: str
    arrays: int = 0
    layer_names: tuple[str, ...] = ()

    @property
    def is_keras_2(self) -> bool:
        """True if Keras 2 or 1 wrote a whole model, which Keras 3 loads only in part."""
        return self.kind.is_model and not self.version.startswith("3")


def check_signature(file: Path) -> None:
    """Check that a file begins like one that Keras writes.

    Raises:
        InputError: it does not exist, is not readable or begins otherwise.
    """
    if file.is_dir():
        raise InputError(
            f"{file} is a directory; expected a file that Keras wrote.",
            remedy="Save the model as one file, with model.save('NAME.keras').",
        )
    try:
        with file.open("rb") as opened:
            start = opened.read(200)
    except FileNotFoundError:
        raise InputError(f"The Keras file {file} was not found.", remedy="Check its path.") from None
    except OSError as error:
        raise InputError(f"The Keras file {file} cannot be read: {first_line(error)}") from error
    if start.startswith((HDF5_SIGNATURE, ZIP_SIGNATURE)):
        return
    if not start:
        raise InputError(f"{file} is empty.", remedy="Copy or download it again.")
    text = start.decode("utf-8", "replace").split("\n")[0][:60]
    raise InputError(
        f"{file} is not a file that Keras writes (HDF5 or .keras): it begins with {escape_controls(text)!r}.",
        remedy="It may be a pointer or an error page in place of the file: download it again.",
    )


def read_contents(file: Path) -> Contents:
    """Read the kind, the architecture and the number of weights of a Keras file.

    Raises:
        InputError: it is damaged, or it is another HDF5 file or archive.
    """
    import h5py

    try:
        if zipfile.is_zipfile(file):
            return _read_archive(file)
        with h5py.File(file, "r") as opened:
            return _read_hdf5(opened, file)
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} is damaged: {first_line(error)}",
            remedy="It may be truncated: copy or download it again.",
        ) from error


def _read_archive(file: Path) -> Contents:
    import h5py

    with zipfile.ZipFile(file) as archive:
        missing = {CONFIG, METADATA, WEIGHTS} - set(archive.namelist())
        if missing:
            raise InputError(
                f"{file} is an archive without {', '.join(sorted(missing))}, so it is not a model of Keras.",
                remedy="Save the model with model.save('NAME.keras').",
            )
        damaged = archive.testzip()
        if damaged:
            raise InputError(
                f"{file} is damaged: the checksum of {damaged} is wrong.", remedy="Copy or download it again."
            )
        version = json.loads(archive.read(METADATA)).get("keras_version", "")
        config = json.loads(archive.read(CONFIG))
        with archive.open(WEIGHTS) as member, h5py.File(member, "r") as opened:
            arrays = _count_arrays(opened, file)
    return Contents(Kind.ARCHIVE, _take_config(config, file), str(version), arrays)


def _read_hdf5(opened: Any, file: Path) -> Contents:
    version = _decode(opened.attrs.get("keras_version", ""))
    arrays = _count_arrays(opened, file)
    if "model_config" in opened.attrs:
        config = _take_config(json.loads(_decode(opened.attrs["model_config"])), file)
        return Contents(Kind.MODEL, config, version, arrays)
    if "layer_names" in opened.attrs or "layer_names0" in opened.attrs:
        names = tuple(iter_layer_names(opened))
        return Contents(Kind.WEIGHTS_BY_LAYER, {}, version, arrays, names)
    if any(name in opened for name in _OBJECT_GROUPS):
        return Contents(Kind.WEIGHTS_BY_OBJECT, {}, version, arrays)
    raise InputError(
        f"{file} is an HDF5 file, but has neither a model nor weights of Keras.",
        remedy="Save the model with model.save('NAME.keras').",
    )


def _take_config(config: Any, file: Path) -> dict[str, Any]:
    if isinstance(config, dict) and isinstance(config.get("config"), dict | list):
        return config
    raise InputError(f"{file} is damaged: its model has no architecture.", remedy="Save the model again.")


def read_chunked(opened: Any, name: str) -> list[str]:
    """Return a list of texts in the attributes of a group; Keras divides long ones among NAME0, NAME1, ..."""
    if name in opened.attrs:
        return [_decode(value) for value in opened.attrs[name]]
    parts = itertools.takewhile(
        opened.attrs.__contains__, (f"{name}{number}" for number in itertools.count())
    )
    return [_decode(value) for part in parts for value in opened.attrs[part]]


def iter_layer_names(opened: Any) -> Iterator[str]:
    """Yield the names of the layers that have weights, in the order of the file."""
    for name in read_chunked(opened, "layer_names"):
        if read_chunked(opened[name], "weight_names"):
            yield name


def _decode(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _count_arrays(opened: Any, file: Path) -> int:
    """Return the number of arrays in a file, which must not refer to other files.

    Raises:
        InputError: it refers to another file, or has other types than numbers.
    """
    import h5py

    count = 0

    def visit(group: Any, path: str) -> None:
        nonlocal count
        for name in group:
            inner = f"{path}/{name}"
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise InputError(f"{file} refers to another file: {inner}.", remedy="Save the model again.")
            value = group[name]
            if isinstance(value, h5py.Dataset):
                if value.external or value.is_virtual:
                    raise InputError(f"{file} refers to another file: {inner}.", remedy="Save it again.")
                count += 1
            elif inner not in ("/optimizer", "/optimizer_weights"):
                visit(value, inner)

    visit(opened, "")
    return count
