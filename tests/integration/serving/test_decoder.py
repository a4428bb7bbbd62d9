"""Decoding of photos one by one, without the signature of the whole batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import contract, protos, runtime
from serving.errors import BundleError
from serving.protos.tensors import make_string_array
from serving.runtime import RunError
from serving.runtime.decoder import DECODE_PHOTO, PHOTO_FUNCTION, PhotoDecoder, add_signature
from serving.runtime.onnx_model import OnnxModel
from serving.runtime.subgraph import Subgraph, read_graph
from tests import corpus
from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]


@pytest.fixture(scope="module")
def path(trained: Trained) -> Path:
    return trained.result.bundle.path


@pytest.fixture(scope="module")
def photos(trained: Trained) -> list[bytes]:
    return [Path(photo).read_bytes() for photo, _ in trained.result.test_photos[:12]]


@pytest.fixture
def one(path: Path) -> Subgraph:
    graph = read_graph(path)
    assert add_signature(graph)
    return Subgraph(path, [DECODE_PHOTO], 0, graph)


def is_loaded(decoder: PhotoDecoder) -> bool:
    return "_signature" in vars(decoder)


def assert_equal(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert np.array_equal(found[name], values), name


def test_pixels_and_statuses_are_those_of_the_signature(
    path: Path, one: Subgraph, photos: list[bytes]
) -> None:
    cases = [case.content for case in corpus.cases()[::9]]
    mixed = [*photos, b"", b"text", photos[0][:2000], *cases]
    order = np.random.default_rng(0).permutation(len(mixed))
    decoder, signature = PhotoDecoder(path, 2, one), PhotoDecoder(path, 2, None)
    for rows in np.array_split(order, len(mixed) // 8):
        batch = make_string_array([mixed[row] for row in rows])
        assert_equal(decoder.decode(batch), signature.decode(batch))


def test_ordinary_jpegs_do_not_load_the_signature(path: Path, one: Subgraph, photos: list[bytes]) -> None:
    decoder = PhotoDecoder(path, 2, one)
    found = decoder.decode(make_string_array(photos))
    assert set(found[contract.STATUS]) == {b"ok"}
    assert not is_loaded(decoder)
    found = decoder.decode(make_string_array([photos[0], b"text"]))
    assert found[contract.STATUS].tolist() == [b"ok", b"not_an_image"]
    assert is_loaded(decoder)


@pytest.mark.parametrize("content", [[], [b""], [b"text", b"GIF89a"]], ids=["none", "empty", "others"])
def test_calls_without_ordinary_jpegs(path: Path, one: Subgraph, content: list[bytes]) -> None:
    batch = make_string_array(content)
    expected = Subgraph(path, [contract.DECODE], 2).run(contract.DECODE, {contract.IMAGE_BYTES: batch})
    assert_equal(PhotoDecoder(path, 2, one).decode(batch), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda function: setattr(function, "name", f"__inference_{PHOTO_FUNCTION[:-1]}_1"),
        lambda function: function.input_arg.add(name="view", type=1),
        lambda function: function.output_arg.add(name="more", type=1),
    ],
    ids=["name", "inputs", "outputs"],
)
def test_graphs_whose_function_is_another_use_the_signature(
    path: Path, change: Any, photos: list[bytes]
) -> None:
    graph = read_graph(path)
    for function in graph.graph_def.library.function:
        if function.signature.name.startswith(f"__inference_{PHOTO_FUNCTION}_"):
            change(function.signature)
    assert not add_signature(graph)
    assert DECODE_PHOTO not in graph.signature_def
    decoder = PhotoDecoder(path, 2, None)
    assert decoder.decode(make_string_array(photos[:2]))[contract.STATUS].tolist() == [b"ok", b"ok"]
    assert is_loaded(decoder)


def test_a_server_loads_the_signature_before_the_first_unusual_photo(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "1")
    model = runtime.load(tmp_path / "1", engine="onnx")
    assert isinstance(model, OnnxModel)
    model.prepare(contract.CLASSIFY_PIXELS)
    assert not is_loaded(model._decoder)
    model.prepare(contract.SERVING_DEFAULT)
    shutil.rmtree(tmp_path / "1")
    found = model.run(contract.DECODE, {contract.IMAGE_BYTES: [b"text"]})
    assert found[contract.STATUS].tolist() == [b"not_an_image"]


def test_a_job_does_not_wait_for_what_only_unusual_photos_need(
    path: Path, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(path, engine="onnx")
    assert isinstance(model, OnnxModel)
    model.warm_up(contract.EMBED)
    assert not is_loaded(model._decoder)
    found = model.run(contract.EMBED, {contract.IMAGE_BYTES: [photos[0], b"text"]})
    assert found[contract.STATUS].tolist() == [b"ok", b"not_an_image"]
    monkeypatch.setattr("serving.runtime.decoder._PREFIX", "none")  # as in bundles of earlier versions
    earlier = runtime.load(path, engine="onnx")
    assert isinstance(earlier, OnnxModel)
    earlier.warm_up(contract.EMBED)
    assert is_loaded(earlier._decoder)


def test_a_signature_that_cannot_be_loaded_is_an_error(path: Path, one: Subgraph, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be loaded"):
        PhotoDecoder(tmp_path, 2, one).decode(make_string_array([b"text"]))


def test_values_that_are_not_bytes_are_rejected(path: Path, one: Subgraph) -> None:
    with pytest.raises(RunError, match="only bytes, not str"):
        PhotoDecoder(path, 2, one).decode(np.array(["text"], object))


def test_the_signatures_of_the_model_are_those_of_the_bundle(path: Path) -> None:
    graph = protos.SavedModel.FromString((path / contract.SAVED_MODEL_FILE).read_bytes()).meta_graphs[0]
    names = {name for name in graph.signature_def if not name.startswith("__")}
    assert runtime.load(path, engine="onnx").signatures.keys() - {"__saved_model_init_op"} == names
