"""ONNX Runtime and TensorFlow as engines of the backbone: equal answers, and a choice that is explained."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from serving import bundle, contract, runtime
from serving.commands.predict import predict
from serving.errors import BundleError, InputError
from serving.process import get_cpu_model
from serving.runtime import RunError, onnx_model
from serving.runtime.onnx_model import OnnxBackbone
from serving.runtime.session import PARITY_TOLERANCE
from tests.support.repository import REPO
from tests.support.trained import Trained
from trainer.export import onnx_backbone

pytestmark = [pytest.mark.tf, pytest.mark.beam]

ULPS = 16
"""Largest difference of a stored number that was seen is 8 units in the last place of float16, for numbers
near zero, which are sums of terms that cancel out."""


@pytest.fixture(scope="module")
def bundle_path(trained: Trained) -> Path:
    return trained.result.bundle.path


@pytest.fixture(scope="module")
def models(bundle_path: Path) -> dict[str, runtime.Model]:
    return {engine: runtime.load(bundle_path, engine=engine) for engine in ("onnx", "tensorflow")}


@pytest.fixture
def photos(trained: Trained) -> list[bytes]:
    usable = [Path(path).read_bytes() for path, _ in trained.result.test_photos[:12]]
    return [*usable, b"", b"text", usable[0][:2000]]


def test_the_engines_give_equal_statuses_and_embeddings_that_differ_by_rounding(
    models: dict[str, runtime.Model], photos: list[bytes]
) -> None:
    assert [models[engine].engine for engine in ("onnx", "tensorflow")] == ["onnx", "tensorflow"]
    found, expected = (
        models[engine].run(contract.EMBED, {contract.IMAGE_BYTES: photos})
        for engine in ("onnx", "tensorflow")
    )
    assert found.keys() == expected.keys()
    for name in (contract.STATUS, contract.HEIGHT, contract.WIDTH):
        assert found[name].tolist() == expected[name].tolist()
    ours, theirs = found[contract.EMBEDDING], expected[contract.EMBEDDING]
    assert (ours == ours.astype(np.float16)).all(), "rounded as the store keeps them"
    assert np.abs(ours - theirs).max() <= contract.ENGINE_TOLERANCE * 20
    steps = np.abs(
        ours.astype(np.float16).view(np.int16).astype(int) - theirs.astype(np.float16).view(np.int16)
    )
    assert steps.max() <= ULPS
    assert (steps > 0).mean() < 0.02


@pytest.mark.parametrize("signature", [contract.SERVING_DEFAULT, contract.PROBABILITIES])
def test_the_engines_give_the_same_answers(
    models: dict[str, runtime.Model], photos: list[bytes], signature: str
) -> None:
    found, expected = (
        models[engine].run(signature, {contract.IMAGE_BYTES: photos}) for engine in ("onnx", "tensorflow")
    )
    assert_equal_answers(found, expected)


def test_decoded_pixels_and_other_signatures(models: dict[str, runtime.Model], photos: list[bytes]) -> None:
    onnx, tensorflow = models["onnx"], models["tensorflow"]
    given = {contract.IMAGE_BYTES: photos}
    decoded = onnx.run(contract.DECODE, given)
    assert (decoded[contract.PIXELS] == tensorflow.run(contract.DECODE, given)[contract.PIXELS]).all()
    pixels = {contract.PIXELS: decoded[contract.PIXELS][:12]}
    assert_equal_answers(*(model.run(contract.CLASSIFY_PIXELS, pixels) for model in (onnx, tensorflow)))
    embeddings = {contract.EMBEDDING: onnx.run(contract.EMBED, given)[contract.EMBEDDING]}
    assert_equal_answers(
        *(model.run(contract.CLASSIFY_EMBEDDING, embeddings) for model in (onnx, tensorflow))
    )


def test_concurrent_first_calls_load_the_whole_model_once(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    runs: list[tuple[str, int]] = []

    class Whole:
        def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            runs.append((signature, sum(len(value) for value in inputs.values())))
            return {}

    def load(path: Path, _: int) -> Whole:
        loads.append(path)
        time.sleep(0.2)
        return Whole()

    monkeypatch.setattr("serving.runtime.tensorflow_model.load", load)
    model = runtime.load(bundle_path, engine="onnx")
    model.prepare(contract.SERVING_DEFAULT)
    assert not loads, "ONNX Runtime runs it"
    examples = np.array([b"", b""], object)
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(model.run, "classify", {"inputs": examples}) for _ in range(2)]
        prepared = [pool.submit(model.prepare, "classify") for _ in range(2)]
        for future in (*first, *prepared):
            future.result()
    assert loads == [bundle_path]
    assert sorted(runs) == [("classify", 0), ("classify", 2), ("classify", 2)]
    with pytest.raises(RunError, match="Input embedding: An array of dtype"):
        model.run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: np.array([["a"]])})


def test_rejected_photos_cost_the_backbone_one_row(
    models: dict[str, runtime.Model], photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    embed = OnnxBackbone.embed

    def count(self: OnnxBackbone, pixels: Any) -> Any:
        rows.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(OnnxBackbone, "embed", count)
    given = [b"", photos[0], b"text", b"", photos[1]]
    found = models["onnx"].run(contract.EMBED, {contract.IMAGE_BYTES: given})[contract.EMBEDDING]
    expected = models["tensorflow"].run(contract.EMBED, {contract.IMAGE_BYTES: given})[contract.EMBEDDING]
    assert rows == [3]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_backbone_gives_equal_bits_on_any_number_of_threads(
    models: dict[str, runtime.Model], bundle_path: Path, photos: list[bytes]
) -> None:
    pixels = models["onnx"].run(contract.DECODE, {contract.IMAGE_BYTES: photos})[contract.PIXELS]
    one, two, four = (OnnxBackbone(str(bundle_path / contract.ONNX_FILE), threads) for threads in (1, 2, 4))
    for rows in (pixels[:1], pixels[3:4], pixels[:5]):
        expected = one.embed(rows)
        assert np.array_equal(two.embed(rows), expected)
        assert np.array_equal(four.embed(rows), expected)


def test_a_photo_alone_in_a_server_has_several_threads(
    bundle_path: Path, photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[OnnxBackbone] = []
    embed = OnnxBackbone.embed

    def record(self: OnnxBackbone, pixels: Any) -> Any:
        used.append(self)
        return embed(self, pixels)

    def run(count: int) -> OnnxBackbone:
        model.run(contract.EMBED, {contract.IMAGE_BYTES: photos[:count]})
        return used[-1]

    monkeypatch.setattr(OnnxBackbone, "embed", record)
    model = runtime.load(bundle_path, threads=2, engine="onnx")
    assert isinstance(model, onnx_model.OnnxModel)
    assert run(1) is model._backbone, "a job has a caller per core"
    model.prepare(contract.EMBED)
    assert run(1) is model._lone_backbone is not None
    assert run(2) is model._backbone
    with model._count_call():
        assert run(1) is model._backbone, "another call runs"
    assert run(1) is model._lone_backbone
    with pytest.raises(RunError):
        model.run(contract.EMBED, {contract.IMAGE_BYTES: np.zeros(2, np.float32)})
    assert run(1) is model._lone_backbone, "a failed call has ended"


def test_a_server_with_one_core_loads_one_backbone(bundle_path: Path) -> None:
    model = runtime.load(bundle_path, threads=1, engine="onnx")
    assert isinstance(model, onnx_model.OnnxModel)
    model.prepare(contract.EMBED)
    assert model._lone_backbone is None


@pytest.mark.parametrize("engine", ["auto", "tensorflow"])
def test_predict_names_the_engine_and_the_cpu(trained: Trained, bundle_path: Path, engine: str) -> None:
    photo = trained.result.test_photos[0][0]
    arguments = [photo, "--model", str(bundle_path), "--engine", engine, "--json"]
    result = CliRunner().invoke(predict, arguments)
    record = json.loads(result.stdout)
    assert record["engine"] == ("onnx" if engine == "auto" else "tensorflow")
    assert record["cpu"] == get_cpu_model()


def test_a_training_records_what_embedded_its_photos(trained: Trained, bundle_path: Path) -> None:
    provenance = bundle.read(bundle_path).metadata.provenance
    [engine] = provenance["engines"]
    assert (engine["engine"], engine["cpu"]) == ("onnx", get_cpu_model())
    assert engine["photos"] >= sum(trained.result.subsets.values())
    assert provenance["cpu"] == get_cpu_model()
    page = (bundle_path / contract.REPORT_FILE).read_text("utf-8")
    assert f"onnx on {get_cpu_model()}" in page


def test_an_empty_request_has_an_empty_answer(models: dict[str, runtime.Model]) -> None:
    for signature in (contract.EMBED, contract.SERVING_DEFAULT, contract.PROBABILITIES):
        found = models["onnx"].run(signature, {contract.IMAGE_BYTES: []})
        assert {len(value) for value in found.values()} == {0}


def assert_equal_answers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        if value.dtype.kind == "f":
            assert np.abs(found[name] - value).max() <= PARITY_TOLERANCE
        elif name != contract.CLASSES:  # two classes of nearly the same score may be in another order
            assert found[name].tolist() == value.tolist()


def test_predict_does_not_import_tensorflow(trained: Trained, bundle_path: Path) -> None:
    code = (
        "import sys; from hubhead import main\n"
        "try: main()\n"
        "finally: print('tensorflow' in sys.modules, file=sys.stderr)"
    )
    photo = trained.result.test_photos[0][0]
    command = [sys.executable, "-c", code, "predict", photo, "--model", str(bundle_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ok" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"


def test_inputs_that_do_not_match_the_signature_are_errors(models: dict[str, runtime.Model]) -> None:
    model = models["onnx"]
    wrong = [
        (contract.EMBED, {contract.IMAGE_BYTES: np.zeros(2, np.float32)}),
        (contract.EMBED, {contract.IMAGE_BYTES: np.array([[b"a"]], object)}),
        (contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: np.zeros((2, 3), np.float32)}),
        (contract.CLASSIFY_PIXELS, {contract.PIXELS: np.zeros((2, 224, 224, 3), np.float32)}),
    ]
    for signature, inputs in wrong:
        with pytest.raises(runtime.RunError, match=r"Input .* is .*, not ") as caught:
            model.run(signature, inputs)
        assert caught.value.code == "INVALID_ARGUMENT"


def test_onnx_runtime_keeps_and_sends_no_events_about_its_use(bundle_path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.runtime.onnx_model import OnnxBackbone; "
        "OnnxBackbone(sys.argv[1])"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", code, bundle_path / contract.ONNX_FILE],
        env={**variables, "HOME": str(tmp_path), "PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        check=True,
    )
    assert not list(tmp_path.rglob("*")), "it keeps events and an identifier of the device in the cache"


class TestSelection:
    @pytest.fixture
    def copy(self, bundle_path: Path, tmp_path: Path) -> Path:
        copied = tmp_path / "food" / "1"
        shutil.copytree(bundle_path, copied)
        return copied

    def test_a_bundle_without_the_file_runs_on_tensorflow(self, copy: Path) -> None:
        (copy / contract.ONNX_FILE).unlink()
        assert not onnx_model.is_selected(copy, "auto")
        with pytest.raises(BundleError, match=r"has no assets\.extra/backbone\.onnx") as caught:
            runtime.load(copy, engine="onnx")
        assert "--engine auto" in caught.value.remedy

    def test_without_onnxruntime_auto_is_tensorflow(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_model, "find_spec", lambda _: None)
        assert not onnx_model.is_selected(copy, "auto")
        with pytest.raises(InputError, match="onnxruntime is not installed"):
            onnx_model.is_selected(copy, "onnx")

    @pytest.mark.parametrize("devices", [["GPU:0"], []])
    def test_where_tensorflow_finds_a_gpu_auto_is_tensorflow(
        self, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[str]
    ) -> None:
        import tensorflow as tf

        monkeypatch.setattr(onnx_model, "list_gpu_paths", lambda: [bundle_path])
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: devices)
        assert onnx_model.is_selected(bundle_path, "auto") is not bool(devices)
        assert onnx_model.is_selected(bundle_path, "onnx")

    def test_a_damaged_file_is_an_error_with_the_other_engine_as_remedy(self, copy: Path) -> None:
        (copy / contract.ONNX_FILE).write_bytes(b"damaged")
        result = CliRunner().invoke(predict, [__file__, "--model", str(copy)])
        assert isinstance(result.exception, BundleError)
        assert "cannot be loaded by ONNX Runtime" in str(result.exception)
        assert "--engine tensorflow" in str(result.exception)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"labels": ["a", "b", "c"]}, "has 3 labels in .*hubhead.json, and 10 in its graph"),
            ({"labels": []}, "has 0 labels in .*hubhead.json, and 10 in its graph"),
        ],
    )
    def test_metadata_with_other_labels_than_the_graph_is_a_bundle_error(
        self, copy: Path, change: dict[str, Any], text: str
    ) -> None:
        replace(bundle.read(copy).metadata, **change).write(copy)
        model = runtime.load(copy, engine="onnx")
        with pytest.raises(BundleError, match=text):
            model.classify([b"photo"])

    def test_a_bundle_without_a_threshold_answers_every_photo(self, copy: Path, photos: list[bytes]) -> None:
        replace(bundle.read(copy).metadata, calibration={}).write(copy)
        assert runtime.load(copy, engine="onnx").classify(photos[:1])[0].label


class TestConversion:
    def test_a_backbone_that_onnx_cannot_express_runs_on_tensorflow(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        import tensorflow as tf

        def network(pixels: Any) -> Any:
            hashed = tf.strings.to_hash_bucket_fast(tf.strings.as_string(tf.reduce_sum(pixels, [1, 2])), 10)
            return tf.cast(hashed, tf.float32)

        with caplog.at_level(logging.WARNING):
            assert onnx_backbone.convert(network, (8, 8)) is None
        assert "runs on TensorFlow, as it cannot be converted" in caplog.text

    def test_a_backbone_whose_outputs_differ_is_not_converted(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import tensorflow as tf

        embed = OnnxBackbone.embed
        monkeypatch.setattr(OnnxBackbone, "embed", lambda self, pixels: embed(self, pixels) * 1.001)
        with caplog.at_level(logging.WARNING):
            assert onnx_backbone.convert(lambda pixels: tf.reduce_mean(pixels, [1, 2]) * 9, (8, 8)) is None
        assert "its ONNX version differs by 0.001" in caplog.text
