"""Contents of a Keras file, read without Keras."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import pytest

from serving.errors import InputError
from tests.support.keras_files import make_keras_2_config, write_keras_2, write_layers
from trainer.backbones.keras_files.contents import (
    HDF5_SIGNATURE,
    Kind,
    check_signature,
    iter_layer_names,
    read_contents,
)


def write_archive(file: Path, **members: str | bytes) -> Path:
    """Write a .keras archive; names of members have _ for a dot."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file


def test_the_kinds_of_keras_files_are_told_apart(tmp_path: Path) -> None:
    model = read_contents(write_keras_2(tmp_path / "model.h5"))
    assert (model.kind, model.version, model.is_keras_2, model.arrays) == (Kind.MODEL, "2.2.4", True, 7)
    with h5py.File(tmp_path / "layers.h5", "w") as opened:
        write_layers(opened, {"conv": {"kernel": [1.0]}, "relu": {}})
    layers = read_contents(tmp_path / "layers.h5")
    assert (layers.kind, layers.layer_names, layers.arrays) == (Kind.WEIGHTS_BY_LAYER, ("conv",), 1)
    with h5py.File(tmp_path / "objects.weights.h5", "w") as opened:
        opened["layers/conv/vars/0"] = [1.0]
        opened["optimizer/vars/0"] = [1.0]
    objects = read_contents(tmp_path / "objects.weights.h5")
    assert (objects.kind, objects.arrays) == (Kind.WEIGHTS_BY_OBJECT, 1)
    archive = read_contents(
        write_archive(
            tmp_path / "model.keras",
            metadata_json='{"keras_version": "3.15.1"}',
            config_json=json.dumps(make_keras_2_config()),
            model_weights_h5=(tmp_path / "objects.weights.h5").read_bytes(),
        )
    )
    assert (archive.kind, archive.is_keras_2, archive.arrays) == (Kind.ARCHIVE, False, 1)


def test_long_lists_of_layers_are_read_from_all_their_parts(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "layers.h5", "w") as opened:
        opened.attrs["layer_names0"], opened.attrs["layer_names1"] = [b"a", b"b"], [b"c"]
        for name in "abc":
            opened.create_group(name).attrs["weight_names"] = [b"w"]
        assert list(iter_layer_names(opened)) == ["a", "b", "c"]


def test_a_file_that_does_not_begin_like_one_of_keras_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.h5"
    for content, message in (
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "begins with 'version https://git-lfs.* pointer",
        ),
        (b"<!DOCTYPE html>\x1b[31m", r"begins with '<!DOCTYPE html>\\\\u001b.* error page"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            check_signature(file)
    with pytest.raises(InputError, match="was not found"):
        check_signature(tmp_path / "other.h5")
    with pytest.raises(InputError, match="is a directory"):
        check_signature(tmp_path)
    check_signature(write_keras_2(file))


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    whole = write_keras_2(tmp_path / "whole.h5").read_bytes()
    file = tmp_path / "model.h5"
    for content in (whole[:-500], whole[: len(whole) // 2], HDF5_SIGNATURE + b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.h5 is damaged: .*copy or download it again"):
            read_contents(file)
    with pytest.raises(InputError, match=r"archive without config\.json, metadata\.json, model\.weights\.h5"):
        read_contents(write_archive(file, other_txt="x"))
    archive = write_archive(file, config_json="{", metadata_json="{}", model_weights_h5=whole)
    with pytest.raises(InputError, match="is damaged"):
        read_contents(archive)
    content = write_archive(file, config_json="{}", metadata_json="{}", model_weights_h5=whole).read_bytes()
    file.write_bytes(content.replace(whole[1000:1100], b"\0" * 100, 1))
    with pytest.raises(InputError, match=r"checksum of model\.weights\.h5 is wrong"):
        read_contents(file)
    file.write_bytes(content)
    with pytest.raises(InputError, match="its model has no architecture"):
        read_contents(file)


def test_other_hdf5_files_and_references_to_other_files_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "data.h5"
    with h5py.File(file, "w") as opened:
        opened["table"] = [1.0]
    with pytest.raises(InputError, match="neither a model nor weights of Keras"):
        read_contents(file)
    with h5py.File(file, "w") as opened:
        opened["layers/conv/vars/0"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(InputError, match="refers to another file: /layers/conv/vars/0"):
        read_contents(file)
    with h5py.File(file, "w") as opened:
        opened.create_dataset("layers/0", (1,), "f4", external=[("/etc/hostname", 0, 4)])
    with pytest.raises(InputError, match="refers to another file: /layers/0"):
        read_contents(file)
