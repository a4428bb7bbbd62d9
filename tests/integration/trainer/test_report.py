"""The training report: contents, thumbnails, comparison with the live version, and layout in a browser."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from serving import contract
from serving.errors import OutputError
from tests.support.html_assertions import CHROMIUM, HOSTILE, Page, check_self_contained, measure_page
from tests.support.trainer_report import make_record, make_report
from trainer import heads, report
from trainer.dataset import Subset
from trainer.report.contents import MAX_CHANGED, MAX_PICTURES

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def real(trained: Trained) -> report.Report:
    """The report of a real training."""
    from batch.embeddings import EmbeddingStore
    from trainer import dataset
    from trainer.evaluation.features import load_features

    settings, result = trained.settings, trained.result
    folder = dataset.scan(settings.image_dir)
    metadata = result.bundle.metadata
    store = EmbeddingStore(
        settings.embedding_store,
        str(metadata.backbone["fingerprint"]),
        int(str(metadata.backbone["dimension"])),
    )
    features = load_features(folder, store)
    subsets = dataset.split(features.examples, settings.split, settings.image_dir, ())
    targets = np.array([example.label for example in features.examples], np.int64)
    chosen = np.array([subset is not Subset.TESTING for subset in subsets])
    fitted, selection = heads.fit(features.embeddings[chosen], targets[chosen], len(folder.labels))
    left_out = ((f"{settings.image_dir}/fruits/notes.txt", str(contract.Status.NOT_AN_IMAGE)),)
    record = make_record(
        features.examples,
        subsets,
        folder.labels,
        fitted,
        selection,
        fitted.probabilities(features.embeddings),
        duplicates=result.duplicates,
    )
    data = replace(record.data, features=replace(record.data.features, left_out=left_out))
    head = replace(record.fitted, held_out=result.held_out, test=result.test)
    return report.compose(
        replace(
            record,
            name="food",
            source=str(settings.image_dir),
            data=data,
            fitted=head,
            settings=asdict(settings),
            seconds=result.seconds,
        )
    )


@pytest.mark.slow
def test_report_of_a_real_training_shows_its_metrics_and_photos(
    real: report.Report, trained: Trained, tmp_path: Path
) -> None:
    report.write(tmp_path / "report.html", real)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    test = trained.result.test
    assert test is not None
    assert f"{100 * test.accuracy.value:.1f} %" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"of {test.accuracy.n} test photos" in page.text
    assert f"{test.log_loss:.3f}" in page.text
    assert sorted(photo.uri for photo in real.misclassified) == sorted(
        uri for uri, *_ in trained.result.misclassified
    )
    for label in trained.result.labels:
        assert label in page.text
    assert "notes.txt" in page.text
    assert "not in a known image format" in page.text
    assert "efficientnet_lite0" in page.text
    images = page.all("img")
    assert len(images) >= len(real.pictured) == len(set(real.pictured))
    assert all(image["alt"] for image in images)


def test_missing_or_broken_photo_is_shown_as_text(tmp_path: Path) -> None:
    example = make_report(tmp_path, ("a", "b"), noise=1.5)
    gone, broken = example.report.pictured[:2]
    path = tmp_path / "report.html"
    report.write(path, example.report)
    images = len(Page(path.read_text(encoding="utf-8")).all("img"))
    Path(gone).unlink()
    Path(broken).write_bytes(b"no photo")
    report.write(path, example.report)
    page = Page(path.read_text(encoding="utf-8"))
    # A photo may be in several sections.
    assert page.text.count("no picture") == images - len(page.all("img")) >= 2


def test_many_labels_show_confused_pairs_in_place_of_the_confusion_matrix(tmp_path: Path) -> None:
    labels = [f"label {number}" for number in range(101)]
    example = make_report(tmp_path, labels, photos=8, noise=0.5).report
    assert len(example.pictured) == MAX_PICTURES
    report.write(tmp_path / "report.html", example)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    assert "101 labels are too many for a matrix" in page.text
    assert not [table for table in page.all("table") if table.get("class") == "matrix"]
    shown = example.by_label
    highest = max(
        count
        for row, counts in enumerate(shown.confusion)
        for column, count in enumerate(counts)
        if row != column
    )
    pairs = page.text.split("Predicted as", 1)[1]
    assert pairs.split()[0] == str(highest)
    confused = sum(
        count > 0 for row, counts in enumerate(shown.confusion) for count in np.delete(counts, row)
    )
    assert f"30 pairs confused most often, of {confused:,} that" in page.text


def test_comparison_with_the_live_version_shows_changed_photos(tmp_path: Path) -> None:
    labels = (HOSTILE, "b", "c", "d")
    example = make_report(tmp_path, labels, photos=20, noise=0.6, compared=True).report
    found, validated = example.record.comparison, example.record.cross_validation
    assert found is not None
    assert validated is not None
    assert found.newly_right
    report.write(tmp_path / "report.html", example)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Page(text)
    words = page.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert "Comparison with version 1 of live" in words
    assert f"On {found.difference.n} test photos that version 1 was not trained on" in words
    assert f"{100 * found.difference.accuracy.value:+z.1f} percentage points" in words
    assert f"p = {found.difference.p_value:.3f}" in words
    assert "Removed labels: gone ." in words
    assert f"{len(found.newly_right)} photos" in words
    shown = {change.uri for change in (*found.newly_wrong[:MAX_CHANGED], *found.newly_right[:MAX_CHANGED])}
    assert shown <= set(example.pictured)
    alts = [image["alt"] or "" for image in page.all("img")]
    assert sum("version 1 predicts" in alt for alt in alts) == len(shown)
    assert f"photos of the {validated.folds}-fold cross-validation" in words
    assert f"{100 * validated.accuracy.value:.1f} %" in words
    assert "It was repeated 2 times" in words
    assert example.by_label is validated.runs[0]
    plain = Page(report.render(make_report(tmp_path, labels, photos=20, noise=0.6).report, {})).text
    assert "Comparison with" not in plain
    assert "-fold" not in plain


def test_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        report.write(tmp_path / "file" / "report.html", make_report(tmp_path, ("a", "b")).report)


# --- In a real browser --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.needs(CHROMIUM)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("kind", ["real", "many labels", "long words"])
def test_layout_in_a_browser_fits_desktop_and_phone(
    kind: str, width: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "real":
        example: report.Report = request.getfixturevalue("real")
    else:
        long = ["Donaudampfschifffahrtsgesellschaftskapitän" * 2 + str(number) for number in range(12)]
        labels = long if kind == "long words" else [f"label {number}" for number in range(101)]
        compared = kind == "long words"
        example = make_report(tmp_path, labels, photos=8, noise=0.5, compared=compared).report
    report.write(tmp_path / "report.html", example)
    measured = measure_page(tmp_path / "report.html", tmp_path, width)
    assert measured["inner"] == width
    assert measured["width"] <= width, "the page can be scrolled sideways"
    assert measured["height"] > 2000
    assert measured["images"] == measured["shown"] >= 8
    assert measured["flat"] == 0
    assert measured["broken"] == []
    assert measured["ordered"]
