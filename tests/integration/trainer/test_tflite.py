"""TensorFlow Lite files: their contents, their agreement with the bundle, and rejected conversions."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from serving import bundle, contract, runtime
from serving.bundle import Bundle, BundleMetadata
from serving.errors import BundleError, GateRejected, InputError, OutputError
from trainer.commands.export import export as export_command
from trainer.commands.train import train as train_command
from trainer.evaluation.metrics import proportion
from trainer.export import tflite
from trainer.export.bundle import HeadExport, export
from trainer.export.head_file import load_head
from trainer.export.tflite import Quantize, TfliteModel, TfliteOptions
from trainer.export.tflite_metadata import describe_model
from trainer.preprocessing import Preprocessing
from trainer.training.config import OutputSettings
from trainer.training.outputs import check_writable

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def photos(trained: Trained) -> list[bytes]:
    """Some test photos."""
    return [Path(path).read_bytes() for path, _ in trained.result.test_photos[:12]]


@pytest.fixture(scope="module")
def food(trained: Trained, photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The head of the shared training, exported with a TensorFlow Lite file."""
    source = trained.result.bundle
    head, novelty = load_head(source.path / contract.HEAD_FILE)
    labels, options = source.metadata.labels, TfliteOptions(photos=photos)
    part = HeadExport(head, labels, novelty=novelty, tflite=options)
    return export(source, part, tmp_path_factory.mktemp("tflite") / "food")


@pytest.fixture(scope="module")
def content(food: Bundle) -> bytes:
    """That TensorFlow Lite file."""
    return (food.path / tflite.BUNDLE_FILE).read_bytes()


# --- Export ---------------------------------------------------------------------------------------------


def test_bundle_has_the_file_and_its_metrics(food: Bundle, photos: list[bytes], content: bytes) -> None:
    record = food.metadata.metrics["tflite"]
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["bytes"] == len(content)
    assert (record["quantize"], record["checked_on"]) == ("none", "photos")
    assert record["label_agreement"]["n"] == len(photos)
    assert record["label_agreement"]["value"] >= Quantize.NONE.agreement
    assert 0 < record["largest_difference"] <= Quantize.NONE.tolerance


def test_probabilities_equal_those_of_the_bundle(food: Bundle, content: bytes, photos: list[bytes]) -> None:
    """The bundle decodes the photos itself; the file takes pixels decoded by the same preprocessing."""
    expected = np.concatenate(
        [
            outputs[contract.PROBABILITIES]
            for outputs in runtime.load(food.path).imap(contract.PROBABILITIES, contract.IMAGE_BYTES, photos)
        ]
    )
    found = tflite.run_interpreter(content, tflite.decode_usable(photos, Preprocessing()))
    assert found.shape == (len(photos), len(food.metadata.labels))
    np.testing.assert_allclose(found, expected, atol=Quantize.NONE.tolerance)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_undecodable_photos_are_left_out_of_the_check(photos: list[bytes]) -> None:
    pixels = tflite.decode_usable([photos[0], b"no photo", photos[1]], Preprocessing())
    assert pixels.shape == (2, 224, 224, 3)
    assert pixels.dtype == np.uint8


# --- Metadata in the file -------------------------------------------------------------------------------


def test_labels_and_bundle_metadata_are_in_an_archive_behind_the_model(food: Bundle, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        assert archive.read("labels.txt").decode().splitlines() == food.metadata.labels
        metadata = json.loads(archive.read("hubhead.json"))
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    assert metadata["labels"] == food.metadata.labels
    assert metadata["preprocessing"] == food.metadata.preprocessing


def read_metadata(content: bytes) -> bytes:
    """Return the flatbuffer TFLITE_METADATA of a TensorFlow Lite file."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    return bytes(model.buffers[entry.buffer].data)


class Reader:
    """Reader of a flatbuffer table by field number, on the reader of the flatbuffers package."""

    def __init__(self, content: bytes, position: int) -> None:
        from flatbuffers.table import Table

        self._table = Table(bytearray(content), position)

    @classmethod
    def root(cls, content: bytes) -> Reader:
        return cls(content, int.from_bytes(content[:4], "little"))

    def _offset(self, field: int) -> int:
        offset: int = self._table.Offset(4 + 2 * field)
        assert offset, f"field {field} not found"
        return offset + self._table.Pos

    def text(self, field: int) -> str:
        return bytes(self._table.String(self._offset(field))).decode()

    def number(self, field: int, kind: str) -> Any:
        from flatbuffers import number_types

        return self._table.Get(getattr(number_types, f"{kind}Flags"), self._offset(field))

    def table(self, field: int) -> Reader:
        return Reader(bytes(self._table.Bytes), self._table.Indirect(self._offset(field)))

    def only(self, field: int) -> Reader:
        offset = self._offset(field) - self._table.Pos
        assert self._table.VectorLen(offset) == 1
        return Reader(bytes(self._table.Bytes), self._table.Indirect(self._table.Vector(offset)))


def test_metadata_describes_rgb_input_and_labelled_probabilities(content: bytes) -> None:
    metadata = read_metadata(content)
    assert metadata[4:8] == b"M001"
    graph = Reader.root(metadata).only(3)
    input_, output = graph.only(2), graph.only(3)
    assert (input_.text(0), output.text(0)) == ("pixels", "probabilities")
    properties = input_.table(3)
    assert (properties.number(0, "Uint8"), properties.table(1).number(0, "Int8")) == (2, 1)
    labels = output.only(6)
    assert (labels.text(0), labels.number(2, "Int8")) == ("labels.txt", 2)


def test_metadata_contains_the_threshold() -> None:
    strict = BundleMetadata(["a", "b"], {}, {}, calibration={"threshold": 0.625})
    unit = Reader.root(describe_model(strict)).only(3).only(3).only(4)
    assert unit.number(0, "Uint8") == 3
    assert unit.table(1).number(0, "Float32") == 0.625


# --- Rejected conversions -------------------------------------------------------------------------------


def test_file_with_other_labels_than_the_bundle_is_rejected(food: Bundle, photos: list[bytes]) -> None:
    wrong = replace(food.metadata, labels=food.metadata.labels[::-1])
    with pytest.raises(GateRejected, match=r"does not agree with the bundle: .* 0\.0% \(N=12"):
        tflite.convert(food.path, wrong, TfliteOptions(photos=photos))


@pytest.mark.parametrize(
    ("quantize", "right", "difference", "passes"),
    [
        (Quantize.NONE, 100, 0.004, True),
        (Quantize.NONE, 100, 0.006, False),
        (Quantize.NONE, 98, 0.004, False),
        (Quantize.FLOAT16, 97, 0.04, True),
        (Quantize.FLOAT16, 96, 0.04, False),
        (Quantize.DYNAMIC, 90, 0.4, True),
        (Quantize.DYNAMIC, 89, 0.4, False),
    ],
)
def test_check_requires_agreeing_labels_and_probabilities(
    quantize: Quantize, right: int, difference: float, passes: bool
) -> None:
    model = TfliteModel(b"", quantize, proportion(right, 100), difference, generated=False)
    if passes:
        tflite.check_agreement(model)
    else:
        with pytest.raises(GateRejected, match="Nothing was published"):
            tflite.check_agreement(model)


def test_bundle_is_not_published_if_the_file_cannot_be_checked(food: Bundle, tmp_path: Path) -> None:
    head, novelty = load_head(food.path / contract.HEAD_FILE)
    options = TfliteOptions(photos=[b"no photo"])
    part = HeadExport(head, food.metadata.labels, novelty=novelty, tflite=options)
    with pytest.raises(InputError, match="None of the photos can be used"):
        export(food, part, tmp_path / "food")
    assert bundle.versions(tmp_path / "food") == []


def test_invalid_file_is_an_error() -> None:
    with pytest.raises(BundleError, match="does not load"):
        tflite.run_interpreter(b"something else", tflite.generate_pictures(Preprocessing(), 1))


def test_unwritable_output_file_is_an_error_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--tflite_output_file"):
        check_writable(OutputSettings(tflite_output_file=tmp_path / "no" / "food.tflite"), tmp_path / "food")


def test_generated_pictures_are_distinct_and_deterministic() -> None:
    first, second = (tflite.generate_pictures(Preprocessing(height=32, width=48)) for _ in range(2))
    assert first.shape == (16, 32, 48, 3)
    assert np.array_equal(first, second)
    assert len({picture.tobytes() for picture in first}) == 16
    assert first.min() < 30
    assert first.max() > 225


# --- Commands -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_command_writes_a_quantised_file(food: Bundle, trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "food.tflite"
    result = CliRunner().invoke(
        export_command,
        shlex.split(
            f"--bundle '{food.path}' --tflite '{file}' --photos '{trained.settings.image_dir}' "
            "--tflite_quantize float16"
        ),
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "quantised: float16" in result.output
    assert "(N=100, " in result.output
    whole = (food.path / tflite.BUNDLE_FILE).stat().st_size
    assert 0.45 < file.stat().st_size / whole < 0.55
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tflite", "x.tflite", "--saved_model_dir", "m"], "exactly one of --saved_model_dir"),
        ([], "exactly one of --saved_model_dir"),
        (["--tflite", "x.tflite", "--threshold", "0.5"], "--threshold cannot be combined with --tflite"),
        (["--saved_model_dir", "m", "--photos", "p"], "--photos cannot be combined with --saved_model_dir"),
        (["--tflite", "x.tflite", "--tflite_quantize", "float16"], "float16 needs --photos"),
        (["--tflite", "x.tflite", "--tflite_quantize", "int4"], "Invalid value for '--tflite_quantize'"),
    ],
)
def test_wrong_usage_of_export_exits_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(export_command, ["--bundle", "b", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_quantisation_without_a_file_is_wrong_usage() -> None:
    result = CliRunner().invoke(train_command, ["--image_dir", "photos", "--tflite_quantize", "float16"])
    assert result.exit_code == 2
    assert "--tflite_quantize needs --tflite or --tflite_output_file" in result.output
