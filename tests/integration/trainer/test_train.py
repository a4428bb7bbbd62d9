"""Training end to end: what it makes of a folder, what it reuses, and how it refuses."""

from __future__ import annotations

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


def colours(top: Path, photos: int = 8) -> Path:
    """A folder of two labels that any backbone tells apart: reddish and bluish noise."""
    random = np.random.default_rng(0)
    for label, colour in (("blue sky", (40, 80, 220)), ("rouge grenat 赤", (220, 40, 30))):
        (top / label).mkdir(parents=True)
        for number in range(photos):
            noise = random.integers(-30, 30, (48, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(top / label / f"{number}.jpg")
    return top


# --- Bad input, refused before any work -----------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """How a command line ends: what it is given, its exit code, and what its message holds."""

    prepare: Callable[[Path], Any]
    arguments: tuple[str, ...]
    code: int
    says: tuple[str, ...]


def not_utf8(top: Path) -> None:
    colours(top / "photos", 3)
    os.mkdir(os.fsencode(top / "photos") + b"/caf\xe9")  # noqa: PTH102 # a name that no str spells


def a_file_in_the_way(top: Path) -> None:
    colours(top / "photos", 3)
    (top / "models").mkdir()
    (top / "models" / "photos").write_text("mine")


def texts(top: Path) -> None:
    for label in ("a", "b"):
        (top / "photos" / label).mkdir(parents=True)
        for number in range(3):
            (top / "photos" / label / f"{number}.txt").write_text(f"{label} {number}")


REFUSED = {
    "no folder": Refused(lambda top: None, (), 1, ("photos", "no such directory")),
    "an empty folder": Refused(lambda top: (top / "photos").mkdir(), (), 1, ("no label with photos",)),
    "one label": Refused(
        lambda top: shutil.rmtree(colours(top / "photos", 3) / "blue sky"), (), 1, ("only the label",)
    ),
    "a label with too few photos": Refused(
        lambda top: colours(top / "photos", 2), (), 1, ("Too few photos", "'blue sky' (2)")
    ),
    "a label that is not UTF-8": Refused(not_utf8, (), 1, ("caf\\xe9", "not UTF-8")),
    "a file where the models go": Refused(a_file_in_the_way, (), 1, ("models/photos", "Cannot write")),
    "a second place for the labels that is a directory": Refused(
        lambda top: colours(top / "photos", 3), ("--output_labels", "."), 1, ("--output_labels",)
    ),
    "shares over 100 percent": Refused(
        lambda top: colours(top / "photos", 3),
        ("--testing_percentage", "60", "--validation_percentage", "50"),
        1,
        ("--testing_percentage 60", "leave nothing to train on"),
    ),
    "a mistyped flag": Refused(
        lambda top: colours(top / "photos", 3), ("--sumaries_dir", "x"), 2, ("--sumaries_dir",)
    ),
    "a nearly right flag": Refused(
        lambda top: None, ("--testing_percent", "5"), 2, ("--testing_percentage",)
    ),
    "no labels in an answer": Refused(
        lambda top: colours(top / "photos", 3), ("--top_k", "0"), 2, ("--top_k", "x>=1")
    ),
    "an unknown split": Refused(lambda top: None, ("--split", "random"), 2, ("'content', 'retrain'",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_ends_the_command_with_a_line_that_helps_and_leaves_nothing(
    name: str, tmp_path: Path
) -> None:
    case = REFUSED[name]
    case.prepare(tmp_path)
    before = listing(tmp_path)
    done = hubhead("train", "--image_dir", "photos", *case.arguments, where=tmp_path)
    assert done.returncode == case.code
    assert all(part in done.stderr for part in case.says)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if case.code == 1:
        warnings = [line for line in done.stderr.splitlines() if line.startswith("Label ")]
        assert len(done.stderr.splitlines()) == len(warnings) + 1
    assert listing(tmp_path) == before


def hubhead(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its cache where the test's files are."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "HUBHEAD_CACHE_DIR": str(where / "cache")}
    command = [sys.executable, "-m", "hubhead", *arguments]
    return subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def listing(top: Path) -> list[bytes]:
    return sorted(os.fsencode(path) for path in top.rglob("*"))


@pytest.mark.tf
def test_an_unknown_backbone_is_an_error_that_suggests_a_known_one(tmp_path: Path) -> None:
    colours(tmp_path / "photos", 3)
    before = listing(tmp_path)
    done = hubhead("train", "--image_dir", "photos", "--tfhub_module", "mobilnet", where=tmp_path)
    assert done.returncode == 1
    assert "no backbone mobilnet" in done.stderr
    assert "mobilenet_v2?" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    look = (
        "import sys, hubhead; from click.testing import CliRunner; "
        "assert CliRunner().invoke(hubhead.hubhead, ['train', '--help']).exit_code == 0; "
        "heavy = {'tensorflow', 'apache_beam', 'numpy', 'pyarrow', 'rich', 'grpc', 'scipy'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# --- A real training --------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.beam
def test_the_sample_photos_are_split_trained_measured_and_published(trained: Trained) -> None:
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
    # Far above the 20 % of always saying the commonest label, whatever the split.
    assert result.held_out.accuracy.low > 0.6
    assert result.method == "cross-validation"
    assert settings.output_labels is not None
    assert settings.output_labels.read_text("utf-8").splitlines() == list(result.labels)
    # Photos of the test set are not among those that chose the settings.
    assert result.held_out.accuracy.n == 406 - result.subsets["testing"]


@pytest.mark.tf
@pytest.mark.beam
def test_a_warning_names_each_label_with_few_photos(trained: Trained) -> None:
    few = [label for label, count in trained.result.labels.items() if count < 20]
    assert few
    assert len([line for line in trained.messages if "rarely train well" in line]) == len(few)


@pytest.mark.tf
@pytest.mark.beam
def test_the_outcome_is_told_with_n_and_interval(trained: Trained) -> None:
    told = format_summary(trained.result)
    assert f"(N={len(trained.result.test_photos)}, 95 % interval" in told
    assert f"Bundle: {trained.result.bundle.path}" in told


@pytest.mark.tf
@pytest.mark.beam
def test_a_second_training_runs_no_backbone_and_gives_the_same_head(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batch.beam import runner
    from serving import runtime

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError("the backbone was run again")

    monkeypatch.setattr(runner, "run", forbidden)
    monkeypatch.setattr(runtime, "load", forbidden)
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
def test_bad_files_are_left_out_with_their_reasons_and_twins_count_once(
    trained: Trained, tmp_path: Path
) -> None:
    top = colours(tmp_path / "photos")
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
    said: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=top,
        saved_model_dir=tmp_path / "models" / "sky",
        output_labels=None,
    )
    result = train(settings, say=said.append)
    reasons = {Path(path).name: Status(reason) for path, reason in result.left_out}
    assert reasons == {
        "text.jpg": Status.NOT_AN_IMAGE,
        "empty.jpg": Status.EMPTY,
        "head.jpg": Status.CORRUPT,
        "gone.jpg": Status.UNREADABLE,
    }
    assert [len(group.pictures) for group in result.duplicates.exact] == [2, 2]
    assert len(result.duplicates.label_conflicts) == 1
    assert result.labels == {"blue sky": 9, "rouge grenat 赤": 9}
    assert any("stray.jpg" in line and "1.jpg" in line for line in said)
    told = format_summary(result)
    assert all(f"{label / name}: {reason}" in told for name, reason in reasons.items())
    assert (result.bundle.path / "assets" / "labels.txt").read_text("utf-8") == "blue sky\nrouge grenat 赤\n"
    data = result.bundle.metadata.data
    assert (data["left_out"], data["duplicates"]) == (4, 1)
    json.dumps(result.bundle.metadata.metrics, allow_nan=False)


@pytest.mark.tf
@pytest.mark.beam
def test_a_folder_without_a_single_photo_publishes_nothing(trained: Trained, tmp_path: Path) -> None:
    texts(tmp_path)
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=tmp_path / "photos",
        saved_model_dir=tmp_path / "models" / "texts",
    )
    with pytest.raises(InputError, match=r"None of the 6 files can be used; .*not_an_image"):
        train(settings)
    assert not (tmp_path / "models" / "texts").exists()


@pytest.mark.tf
@pytest.mark.beam
def test_a_manifest_is_trained_on_and_its_sets_and_groups_are_obeyed(
    trained: Trained, sample: SampleSummary, tmp_path: Path
) -> None:
    # Embedded already: what is under test is what the manifest decides.
    labels = ["fruits", "grain legumes"]
    lines = ["photo,label,group,split"]
    for label in labels:
        for number, path in enumerate(sorted((sample.directory / label).iterdir())[:20]):
            split = "test" if number < 4 else "val" if number < 7 else "train"
            lines.append(f"{path},{label},,{split}")
    manifest = tmp_path / "photos.csv"
    manifest.write_text("\n".join([*lines, f"{tmp_path / 'gone.jpg'},fruits,,train"]) + "\n")
    said: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        image_dir=str(manifest),
        saved_model_dir=tmp_path / "models" / "two",
        output_labels=None,
    )
    result = train(settings, say=said.append)
    assert result.subsets == {"training": 26, "validation": 6, "testing": 8}
    assert [Path(uri).name for uri, _ in result.test_photos[:4]] == [
        Path(line.split(",")[0]).name for line in lines[1:5]
    ]
    assert [Path(path).name for path, _ in result.left_out] == ["gone.jpg"]
    assert any("sets are those of" in line for line in said)


def test_a_command_line_of_retrain_is_understood(tmp_path: Path) -> None:
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
    assert "there is no such directory" in done.stderr


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
    assert len(stores) == 3  # of the photos, and of each view
    kernels = [
        load_head(result.bundle.path / contract.HEAD_FILE)[0].kernel for result in (first, again, without)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3
    assert again.seconds["views"] < first.seconds["views"] / 2


@pytest.mark.tf
@pytest.mark.beam
def test_thresholds_reach_the_bundle_and_leave_labels_out(trained: Trained, tmp_path: Path) -> None:
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
    told = format_summary(result)
    assert "Abstention threshold" in told
    assert not (result.bundle.path / contract.REPORT_FILE).exists()
    assert (trained.result.bundle.path / contract.REPORT_FILE).is_file()
    assert list((tmp_path / "logs").glob("*/events*"))
    answers = runtime_of(result).classify(Path(uri).read_bytes() for uri, _ in result.test_photos)
    silent = [answer for answer in answers if answer.label is None]
    assert 0 < len(silent) < len(answers)
    assert all(answer.top for answer in silent)


def runtime_of(result: TrainResult) -> Any:
    from serving import runtime

    return runtime.load(result.bundle.path)


@pytest.mark.tf
@pytest.mark.beam
def test_photos_that_do_not_fit_in_memory_are_streamed_to_the_same_figures(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("training", "refit", "settings"):  # so that these are many
        monkeypatch.setattr(f"trainer.heads.{name}.LARGE_DATASET", 300)
    monkeypatch.setattr(heads, "LARGE_DATASET", 300)
    said: list[str] = []
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
        found[memory] = train(settings, say=said.append)
    streamed, whole = found[0], found[1 << 30]
    assert [line for line in said if "read from a file" in line] == [
        "The features of 406 photos exceed the memory limit of 0.0 GB and are read from a file."
    ]
    for result in found.values():
        told = result.bundle.metadata.head
        assert (told["kind"], told["class_weight"], told["width"]) == ("hidden", "balanced", 8)
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
def test_a_head_that_is_not_accurate_enough_is_not_published(trained: Trained, tmp_path: Path) -> None:
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
@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_a_tuned_backbone_is_taken_where_it_is_better(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    from trainer.training import fine_tuning

    real = fine_tuning.fine_tune

    def tune(*given: Any, **named: Any) -> Any:
        """The real thing, with a verdict that does not depend on the machine."""
        tuned = real(*given, **named)
        assert tuned.after is not None
        return replace(tuned, before=tuned.after + (0.1 if better else -0.1))

    monkeypatch.setattr(fine_tuning, "fine_tune", tune)
    said: list[str] = []
    settings = replace(
        writable_settings(trained, tmp_path),
        saved_model_dir=tmp_path / "models" / "food",
        output_labels=None,
        report=False,
        fine_tune=fine_tuning.FineTuneSettings(epochs=1, depth=0.1),
    )
    result = train(settings, say=said.append)
    assert any("Fine-tuned: validation log-loss" in line for line in said)
    known = trained.result.bundle.metadata.backbone["fingerprint"]
    assert (result.bundle.metadata.backbone["fingerprint"] != known) is better
    assert any("did not lower the validation log-loss" in line for line in said) is not better
    assert result.subsets == trained.result.subsets
