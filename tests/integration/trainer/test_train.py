"""Training end to end: results, reuse of embeddings, and rejected input."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from batch.monitoring.stats import Progress
from hubhead import main
from serving import bundle, contract
from serving.contract import Status
from serving.errors import GateRejected, InputError
from tests.support.repository import REPO
from tests.support.trained import writable_settings
from trainer import heads
from trainer.export.head_file import load_head
from trainer.heads import HeadSettings
from trainer.preprocessing import Augmentation
from trainer.training.run import train
from trainer.training.summary import format_summary

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary
    from trainer.training.config import TrainResult


def write_colour_photos(top: Path, photos: int = 8) -> Path:
    """Write photos of two labels that any backbone separates: reddish and bluish noise."""
    random = np.random.default_rng(0)
    for label, colour in (("blue sky", (40, 80, 220)), ("rouge grenat 赤", (220, 40, 30))):
        (top / label).mkdir(parents=True)
        for number in range(photos):
            noise = random.integers(-30, 30, (48, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(top / label / f"{number}.jpg")
    return top


# --- Input rejected before any work ---------------------------------------------------------------------


@dataclass(frozen=True)
class RejectedInput:
    """A rejected command line: preparation of the folder, arguments, exit code, and parts of the message."""

    prepare: Callable[[Path], Any]
    arguments: tuple[str, ...]
    code: int
    message: tuple[str, ...]


def write_label_not_utf8(top: Path) -> None:
    write_colour_photos(top / "photos", 3)
    os.mkdir(os.fsencode(top / "photos") + b"/caf\xe9")  # noqa: PTH102 # a name that is not UTF-8


def write_file_at_models(top: Path) -> None:
    write_colour_photos(top / "photos", 3)
    (top / "models").mkdir()
    (top / "models" / "photos").write_text("mine")


def write_text_files(top: Path) -> None:
    for label in ("a", "b"):
        (top / "photos" / label).mkdir(parents=True)
        for number in range(3):
            (top / "photos" / label / f"{number}.txt").write_text(f"{label} {number}")


REJECTED = {
    "no folder": RejectedInput(lambda top: None, (), 1, ("photos", "neither a directory nor")),
    "an empty folder": RejectedInput(lambda top: (top / "photos").mkdir(), (), 1, ("no label with photos",)),
    "one label": RejectedInput(
        lambda top: shutil.rmtree(write_colour_photos(top / "photos", 3) / "blue sky"),
        (),
        1,
        ("only the label",),
    ),
    "a label with too few photos": RejectedInput(
        lambda top: write_colour_photos(top / "photos", 2), (), 1, ("Too few photos", "'blue sky' (2)")
    ),
    "a label that is not UTF-8": RejectedInput(write_label_not_utf8, (), 1, ("caf\\xe9", "not UTF-8")),
    "a file where the models go": RejectedInput(
        write_file_at_models, (), 1, ("models/photos", "Cannot write")
    ),
    "a directory as the file for the labels": RejectedInput(
        lambda top: write_colour_photos(top / "photos", 3), ("--output_labels", "."), 1, ("--output_labels",)
    ),
    "shares over 100 percent": RejectedInput(
        lambda top: write_colour_photos(top / "photos", 3),
        ("--testing_percentage", "60", "--validation_percentage", "50"),
        1,
        ("--testing_percentage 60", "leave nothing to train on"),
    ),
    "a mistyped flag": RejectedInput(
        lambda top: write_colour_photos(top / "photos", 3), ("--sumaries_dir", "x"), 2, ("--sumaries_dir",)
    ),
    "a nearly right flag": RejectedInput(
        lambda top: None, ("--testing_percent", "5"), 2, ("--testing_percentage",)
    ),
    "no labels in an answer": RejectedInput(
        lambda top: write_colour_photos(top / "photos", 3), ("--top_k", "0"), 2, ("--top_k", "x>=1")
    ),
    "an unknown split": RejectedInput(lambda top: None, ("--split", "random"), 2, ("'content', 'retrain'",)),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_input_exits_with_one_line_of_help_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = REJECTED[name]
    case.prepare(tmp_path)
    before = list_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["hubhead", "train", "--image_dir", "photos", *case.arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == case.code
    stdout, stderr = capsys.readouterr()
    assert all(part in stderr for part in case.message)
    assert "Traceback" not in stderr
    assert stdout == ""
    if case.code == 1:
        warnings = [line for line in stderr.splitlines() if line.startswith("Label ")]
        assert len(stderr.splitlines()) == len(warnings) + 1
    assert list_files(tmp_path) == before


def hubhead(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in another process, with `where` as working directory and for its cache."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "HUBHEAD_CACHE_DIR": str(where / "cache")}
    command = [sys.executable, "-m", "hubhead", *arguments]
    return subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def list_files(top: Path) -> list[bytes]:
    """Return all paths below a directory."""
    return sorted(os.fsencode(path) for path in top.rglob("*"))


@pytest.mark.tf
def test_unknown_backbone_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    write_colour_photos(tmp_path / "photos", 3)
    before = list_files(tmp_path)
    done = hubhead("train", "--image_dir", "photos", "--tfhub_module", "mobilnet", where=tmp_path)
    assert done.returncode == 1
    assert "backbone mobilnet was not found" in done.stderr
    assert "mobilenet_v2?" in done.stderr
    assert "Traceback" not in done.stderr
    assert list_files(tmp_path) == before


def test_help_imports_no_heavy_package(tmp_path: Path) -> None:
    script = (
        "import sys, hubhead; from click.testing import CliRunner; "
        "assert CliRunner().invoke(hubhead.hubhead, ['train', '--help']).exit_code == 0; "
        "heavy = {'tensorflow', 'apache_beam', 'numpy', 'pyarrow', 'rich', 'grpc', 'scipy'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# --- Real trainings -------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.beam
def test_training_on_sample_photos_splits_evaluates_and_publishes(trained: Trained) -> None:
    result, settings = trained.result, trained.settings
    assert (result.bundle.version, result.bundle.name) == (1, "food")
    assert bundle.read(settings.saved_model_dir) == result.bundle
    assert sum(result.subsets.values()) == sum(result.labels.values()) == 406
    assert all(result.subsets.values())
    assert result.left_out == ()
    assert result.duplicates.exact == ()
    assert result.test is not None
    assert result.test.accuracy.n == len(result.test_photos) == result.subsets["testing"]
    assert round(result.test.accuracy.value * result.test.accuracy.n) == len(result.test_photos) - len(
        result.misclassified
    )
    # Far above the 20 % of always predicting the most frequent label, whatever the split.
    assert result.held_out.accuracy.low > 0.6
    assert result.method == "cross-validation"
    assert settings.output_labels is not None
    assert settings.output_labels.read_text("utf-8").splitlines() == list(result.labels)
    # Photos of the test set are not among those that chose the settings.
    assert result.held_out.accuracy.n == 406 - result.subsets["testing"]


@pytest.mark.tf
@pytest.mark.beam
def test_label_with_few_photos_gets_a_warning(trained: Trained) -> None:
    few = [label for label, count in trained.result.labels.items() if count < 20]
    assert few
    assert len([line for line in trained.messages if "rarely train well" in line]) == len(few)


@pytest.mark.tf
@pytest.mark.beam
def test_summary_has_accuracy_with_n_and_interval(trained: Trained) -> None:
    summary = format_summary(trained.result)
    assert f"(N={len(trained.result.test_photos)}, 95 % interval" in summary
    assert f"Bundle: {trained.result.bundle.path}" in summary


@pytest.mark.tf
@pytest.mark.beam
def test_second_training_reuses_embeddings_and_gives_the_same_head(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batch.beam import runner

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("photos were embedded again")

    monkeypatch.setattr(runner, "run", forbidden)
    seen: list[Progress] = []
    again = train(
        replace(writable_settings(trained, tmp_path), saved_model_dir=tmp_path / "again"),
        progress=seen.append,
    )
    assert seen[-1].done == 406
    first = trained.result
    assert (again.test, again.held_out) == (first.test, first.held_out)
    assert (again.subsets, again.test_photos) == (first.subsets, first.test_photos)
    assert again.bundle.metadata.calibration == first.bundle.metadata.calibration


@pytest.mark.tf
@pytest.mark.beam
def test_unusable_files_are_left_out_and_identical_files_count_once(trained: Trained, tmp_path: Path) -> None:
    top = write_colour_photos(tmp_path / "photos")
    label = top / "blue sky"
    whole = Image.effect_noise((300, 200), 80).convert("RGB")
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG")
    bad = {"text.jpg": b"no photo", "empty.jpg": b"", "head.jpg": buffer.getvalue()[:300]}
    for name, content in bad.items():
        (label / name).write_bytes(content)
    (label / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (label / "gone.jpg").symlink_to(top / "nowhere")
    (label / "twin.jpg").write_bytes((label / "0.jpg").read_bytes())
    shutil.copy(label / "1.jpg", top / "rouge grenat 赤" / "stray.jpg")
    (top / "damaged").mkdir()  # the first of the labels, so that the others move up
    for number in range(3):
        (top / "damaged" / f"damaged{number}.jpg").write_bytes(b"no photo %d" % number)
    messages: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=top,
        saved_model_dir=tmp_path / "models" / "sky",
        output_labels=None,
    )
    result = train(settings, say=messages.append)
    reasons = {Path(path).name: Status(reason) for path, reason in result.left_out}
    damaged = {name for name in reasons if name.startswith("damaged")}
    assert {reasons.pop(name) for name in damaged} == {Status.NOT_AN_IMAGE}
    assert "Label 'damaged' has no photo that can be used, and is left out." in messages
    assert reasons == {
        "text.jpg": Status.NOT_AN_IMAGE,
        "empty.jpg": Status.EMPTY,
        "head.jpg": Status.CORRUPT,
        "gone.jpg": Status.UNREADABLE,
    }
    assert [len(group.pictures) for group in result.duplicates.exact] == [2, 2]
    assert len(result.duplicates.label_conflicts) == 1
    assert result.labels == {"blue sky": 9, "rouge grenat 赤": 9}
    assert any("stray.jpg" in line and "1.jpg" in line for line in messages)
    summary = format_summary(result)
    assert all(f"{label / name}: {reason}" in summary for name, reason in reasons.items())
    assert (result.bundle.path / "assets" / "labels.txt").read_text("utf-8") == "blue sky\nrouge grenat 赤\n"
    data = result.bundle.metadata.data
    assert (data["left_out"], data["duplicates"]) == (7, 1)
    json.dumps(result.bundle.metadata.metrics, allow_nan=False)


@pytest.mark.tf
@pytest.mark.beam
def test_folder_without_usable_photos_publishes_nothing(trained: Trained, tmp_path: Path) -> None:
    write_text_files(tmp_path)
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=tmp_path / "photos",
        saved_model_dir=tmp_path / "models" / "texts",
    )
    with pytest.raises(InputError, match=r"no label with photos.* No file of 'a', 'b' is a photo"):
        train(settings)
    assert not (tmp_path / "models" / "texts").exists()


@pytest.mark.tf
@pytest.mark.beam
def test_dataset_manifest_determines_sets_and_groups(
    trained: Trained, sample: SampleSummary, tmp_path: Path
) -> None:
    # These photos are embedded already, so the test is fast.
    labels = ["fruits", "grain legumes"]
    lines = ["photo,label,group,split"]
    for label in labels:
        for number, path in enumerate(sorted((sample.directory / label).iterdir())[:20]):
            split = "test" if number < 4 else "val" if number < 7 else "train"
            lines.append(f"{path},{label},,{split}")
    manifest = tmp_path / "photos.csv"
    manifest.write_text("\n".join([*lines, f"{tmp_path / 'gone.jpg'},fruits,,train"]) + "\n")
    messages: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=str(manifest),
        saved_model_dir=tmp_path / "models" / "two",
        output_labels=None,
    )
    result = train(settings, say=messages.append)
    assert result.subsets == {"training": 26, "validation": 6, "testing": 8}
    assert [Path(uri).name for uri, _ in result.test_photos[:4]] == [
        Path(line.split(",")[0]).name for line in lines[1:5]
    ]
    assert [Path(path).name for path, _ in result.left_out] == ["gone.jpg"]
    assert any("The sets are predefined by the manifest" in line for line in messages)


def test_retrain_command_line_is_accepted(tmp_path: Path) -> None:
    done = hubhead(
        "train",
        *(
            "--image_dir",
            "nowhere",
            "--how_many_training_steps",
            "500",
            "--architecture",
            "mobilenet_0.50_224",
        ),
        where=tmp_path,
    )
    assert done.returncode == 1
    assert "--how_many_training_steps has no effect" in done.stderr
    assert "is taken as --tfhub_module" in done.stderr
    assert "neither a directory nor a dataset manifest" in done.stderr


@pytest.mark.tf
@pytest.mark.beam
def test_random_views_are_embedded_once_and_change_the_head(
    trained: Trained, sample: SampleSummary, tmp_path: Path
) -> None:
    top = tmp_path / "photos"
    for label in ("fruits", "grain legumes"):
        (top / label).mkdir(parents=True)
        for path in sorted((sample.directory / label).iterdir())[:12]:
            shutil.copy(path, top / label)
    plain = replace(
        writable_settings(trained, tmp_path),
        image_dir=top,
        saved_model_dir=tmp_path / "models" / "two",
        output_labels=None,
    )
    settings = replace(
        plain, augmentation=Augmentation(True, 10, 10, 10), views=2, embedding_store=str(tmp_path / "store")
    )
    first, again, without = train(settings), train(settings), train(plain)
    data = first.bundle.metadata.data
    assert (data["views"], without.bundle.metadata.data["views"]) == (2, 0)
    stores = {path.name for path in (tmp_path / "store").iterdir()}
    assert len(stores) == 3  # one of the photos, and one of each view
    kernels = [
        load_head(result.bundle.path / contract.HEAD_FILE)[0].kernel for result in (first, again, without)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3
    assert again.seconds["views"] < first.seconds["views"] / 2


@pytest.mark.tf
@pytest.mark.beam
def test_bundle_abstains_by_the_thresholds(trained: Trained, tmp_path: Path) -> None:
    settings = replace(
        writable_settings(trained, tmp_path),
        saved_model_dir=tmp_path / "models" / "food",
        output_labels=None,
        precision=0.85,
        keep_known=0.9,
        report=False,
        summaries_dir=tmp_path / "logs",
    )
    result = train(settings)
    assert result.threshold is not None
    assert result.known_kept is not None
    calibration = result.bundle.metadata.calibration
    assert calibration["threshold"] == pytest.approx(result.threshold.value)
    assert calibration["keep_known"] == pytest.approx(result.known_kept.value)
    assert result.known_kept.value == pytest.approx(0.9, abs=0.01)
    assert 0.5 < calibration["threshold"] < 0.9
    summary = format_summary(result)
    assert "Abstention threshold" in summary
    assert not (result.bundle.path / contract.REPORT_FILE).exists()
    assert (trained.result.bundle.path / contract.REPORT_FILE).is_file()
    assert list((tmp_path / "logs").glob("*/events*"))
    answers = load_model(result).classify(Path(uri).read_bytes() for uri, _ in result.test_photos)
    abstained = [answer for answer in answers if answer.label is None]
    assert 0 < len(abstained) < len(answers)
    assert all(answer.top for answer in abstained)


def load_model(result: TrainResult) -> Any:
    """Load the published bundle."""
    from serving import runtime

    return runtime.load(result.bundle.path)


@pytest.mark.tf
@pytest.mark.beam
def test_photos_streamed_from_a_file_give_the_same_metrics(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `trainer.heads.refit` is also a function, so the modules are not patched by their dotted names.
    for name in ("training", "refit", "settings"):
        monkeypatch.setattr(importlib.import_module(f"trainer.heads.{name}"), "LARGE_DATASET", 300)
    monkeypatch.setattr(heads, "LARGE_DATASET", 300)
    messages: list[str] = []
    found = {}
    for memory in (0, 1 << 30):
        settings = replace(
            writable_settings(trained, tmp_path),
            saved_model_dir=tmp_path / f"{memory}",
            output_labels=None,
            summaries_dir=tmp_path / f"logs {memory}",
            head_settings=HeadSettings(kind="hidden", class_weight="balanced", width=8, memory=memory),
            keep_known=0.9,
            report=False,
        )
        found[memory] = train(settings, say=messages.append)
    streamed, whole = found[0], found[1 << 30]
    assert [line for line in messages if "read from a file" in line] == [
        "The features of 406 photos exceed the memory limit of 0.0 GB and are read from a file."
    ]
    for result in found.values():
        head = result.bundle.metadata.head
        assert (head["kind"], head["class_weight"], head["width"]) == ("hidden", "balanced", 8)
        assert result.method == "validation"
        assert result.known_kept is not None
    assert streamed.bundle.metadata.head["streamed"]
    assert not whole.bundle.metadata.head["streamed"]
    assert streamed.held_out.log_loss == pytest.approx(whole.held_out.log_loss, abs=0.1)
    assert streamed.test is not None
    assert streamed.test.accuracy.value > 0.5
    assert len(streamed.misclassified) == streamed.test.accuracy.n - round(
        streamed.test.accuracy.value * streamed.test.accuracy.n
    )


@pytest.mark.tf
@pytest.mark.beam
def test_head_below_the_required_accuracy_is_not_published(trained: Trained, tmp_path: Path) -> None:
    settings = replace(
        writable_settings(trained, tmp_path),
        saved_model_dir=tmp_path / "models" / "food",
        assert_accuracy_at_least=0.99,
    )
    with pytest.raises(GateRejected, match=r"below the 99\.0% of --assert_accuracy_at_least") as caught:
        train(settings)
    assert caught.value.exit_code == 4
    assert not list((tmp_path / "models").glob("*/*"))


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("better", [True, False])
def test_tuned_backbone_is_used_only_if_it_is_better(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    from trainer.training import fine_tuning

    real = fine_tuning.fine_tune

    def tune(*given: Any, **named: Any) -> Any:
        """Tune for real, but with a fixed gain or loss, which then does not depend on the machine."""
        tuned = real(*given, **named)
        assert tuned.after is not None
        return replace(tuned, before=tuned.after + (0.1 if better else -0.1))

    monkeypatch.setattr(fine_tuning, "fine_tune", tune)
    messages: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        saved_model_dir=tmp_path / "models" / "food",
        output_labels=None,
        report=False,
        fine_tune=fine_tuning.FineTuneSettings(epochs=1, depth=0.1),
    )
    result = train(settings, say=messages.append)
    assert any("Fine-tuned: validation log-loss" in line for line in messages)
    known = trained.result.bundle.metadata.backbone["fingerprint"]
    assert (result.bundle.metadata.backbone["fingerprint"] != known) is better
    assert any("did not lower the validation log-loss" in line for line in messages) is not better
    assert result.subsets == trained.result.subsets
