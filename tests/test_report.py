"""The report: one file that needs no other, with everything in it escaped, and fit to be looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from serving import contract
from serving.errors import OutputError
from tests.looking import CHROMIUM, HOSTILE, Page, check_self_contained, look
from tests.test_live import FINGERPRINT, sha, written
from trainer import heads, report
from trainer.dataset import Example, Subset, near_duplicates
from trainer.dataset.near_duplicates import Duplicates, Group, Picture
from trainer.evaluation import metrics
from trainer.evaluation.cross_validation import cross_validate
from trainer.evaluation.features import Verdicts
from trainer.export import bundle
from trainer.report.contents import CHANGED, PICTURES
from trainer.training import live_comparison

if TYPE_CHECKING:
    from tests.conftest import Trained

pytestmark = pytest.mark.tf


@dataclass(frozen=True)
class Made:
    """A report of made-up photos, and the folder of these."""

    report: report.Report
    top: Path


def made(
    top: Path,
    labels: Sequence[str],
    *,
    photos: int = 12,
    noise: float = 0.4,
    tested: bool = True,
    found: Duplicates | None = None,
    judged: bool = False,
) -> Made:
    """A report of a head on random embeddings; the photos are there and small.

    Judged: also by a cross-validation, and against a live version that learned from noisier photos.
    """
    random = np.random.default_rng(0)
    classes = len(labels)
    targets = np.tile(np.arange(classes), photos)
    embeddings = np.eye(classes, classes + 4)[targets] + random.normal(0, noise, (len(targets), classes + 4))
    features = embeddings.astype(np.float32)
    subsets = [
        (Subset.TESTING if tested else Subset.TRAINING) if number // classes % 4 == 0 else Subset.TRAINING
        for number in range(len(targets))
    ]
    examples = []
    for number, target in enumerate(targets.tolist()):
        path = top / f"{number} <b>&amp;.jpg"
        if not path.exists():
            Image.new("RGB", (60, 40), ((37 * target) % 256, (11 * number) % 256, 90)).save(path)
        examples.append(Example(str(path), sha(number), target))
    is_tested = np.array([subset is Subset.TESTING for subset in subsets])
    fitted, selection = heads.fit(features[~is_tested], targets[~is_tested], classes)
    probabilities = fitted.probabilities(features)
    comparison, validated = None, None
    if judged:
        noisy = features + random.normal(0, noise, features.shape).astype(np.float32)
        other, _ = heads.fit(noisy[~is_tested], targets[~is_tested], classes)
        bundled = written(top / "live", other, [*labels[1:], "gone"], seen=[0])
        tested_rows = np.flatnonzero(is_tested)
        comparison = live_comparison.judge(
            bundled,
            FINGERPRINT,
            labels,
            [examples[row] for row in tested_rows.tolist()],
            features[tested_rows],
            probabilities[tested_rows],
        )
        validated = cross_validate(features, targets, labels, folds=2, repeats=2)
    composed = report.compose(
        "made up",
        labels,
        examples,
        subsets,
        Verdicts.of_probabilities(probabilities, targets),
        selection=selection,
        held_out=metrics.evaluate(selection.probabilities, selection.targets, labels),
        test=metrics.evaluate(probabilities[is_tested], targets[is_tested], labels) if tested else None,
        duplicates=found or Duplicates((), (), near_duplicates.THRESHOLD, len(targets), len(targets)),
        comparison=comparison,
        cross_validation=validated,
        top=str(top),
    )
    return Made(composed, top)


@pytest.fixture(scope="module")
def real(trained: Trained) -> report.Report:
    """The report of a real training."""
    from batch.embeddings import EmbeddingStore
    from trainer import dataset
    from trainer.evaluation.features import gather

    settings, result = trained.settings, trained.result
    folder = dataset.scan(settings.image_dir)
    manifest = result.bundle.manifest
    store = EmbeddingStore(
        settings.embedding_store,
        str(manifest.backbone["fingerprint"]),
        int(str(manifest.backbone["dimension"])),
    )
    features = gather(folder, store)
    subsets = dataset.split(features.examples, settings.split, settings.image_dir, ())
    targets = np.array([example.label for example in features.examples], np.int64)
    chosen = np.array([subset is not Subset.TESTING for subset in subsets])
    fitted, selection = heads.fit(features.embeddings[chosen], targets[chosen], len(folder.labels))
    return report.compose(
        "food",
        folder.labels,
        features.examples,
        subsets,
        Verdicts.of(fitted, features.embeddings, targets),
        selection=selection,
        held_out=result.held_out,
        test=result.test,
        duplicates=result.duplicates,
        left_out=[(f"{settings.image_dir}/fruits/notes.txt", str(contract.Status.NOT_AN_IMAGE))],
        top=str(settings.image_dir),
        settings=asdict(settings),
        seconds=result.seconds,
        versions=bundle.package_versions(),
        created="24 November 2026",
    )


@pytest.mark.slow
def test_the_report_of_a_real_training_tells_what_it_found(
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
    assert sorted(answer.uri for answer in real.misclassified) == sorted(
        uri for uri, *_ in trained.result.misclassified
    )
    for label in trained.result.labels:
        assert label in page.text
    assert "notes.txt" in page.text
    assert "the bytes are no known image format" in page.text
    assert "efficientnet_lite0" in page.text
    images = page.all("img")
    assert len(images) >= len(real.pictured) == len(set(real.pictured))
    assert all(image["alt"] for image in images)


def test_a_photo_that_is_gone_or_broken_is_told_in_words(tmp_path: Path) -> None:
    example = made(tmp_path, ("a", "b"), noise=1.5)
    gone, broken = example.report.pictured[:2]
    Path(gone).unlink()
    Path(broken).write_bytes(b"no photo")
    report.write(tmp_path / "report.html", example.report)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("no picture") == 2


def test_labels_and_paths_are_text_wherever_they_stand(tmp_path: Path) -> None:
    labels = (HOSTILE, "crème brûlée 寿司 عسل", "a & b", "half \ud800 of a character, \x00 and \x1b")
    pictures = (Picture(HOSTILE, HOSTILE, Subset.TRAINING), Picture("<img src=x>", "a & b", Subset.TESTING))
    group = Group(pictures)
    near = Group(tuple(replace(picture, similarity=0.95) for picture in pictures))
    example = made(tmp_path, labels, noise=1.5, found=Duplicates((group,), (near,), 0.93, 48, 48)).report
    text = report.render(
        replace(
            example,
            title=HOSTILE,
            left_out=((HOSTILE, HOSTILE),),
            settings={HOSTILE: HOSTILE},
            versions={HOSTILE: HOSTILE},
            seconds={HOSTILE: 1.0},
            created=HOSTILE,
        ),
        dict.fromkeys(example.pictured, b"jpeg"),
    )
    text.encode()
    check_self_contained(text)
    page = Page(text)
    assert page.text.count(HOSTILE) >= 15
    for label in labels[1:3]:
        assert label in page.text
    assert "<b>&amp;.jpg" in page.text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", text)


def test_with_a_hundred_labels_the_pairs_confused_stand_for_the_matrix(tmp_path: Path) -> None:
    labels = [f"label {number}" for number in range(101)]
    example = made(tmp_path, labels, photos=8, noise=0.5).report
    assert len(example.pictured) == PICTURES
    report.write(tmp_path / "report.html", example)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    assert "of 101 labels" in page.text
    assert not [table for table in page.all("table") if table.get("class") == "matrix"]
    shown = example.by_label
    highest = max(
        count
        for row, counts in enumerate(shown.confusion)
        for column, count in enumerate(counts)
        if row != column
    )
    pairs = page.text.split("Taken for", 1)[1]
    assert pairs.split()[0] == str(highest)


def test_the_matrix_has_the_counts_of_the_confusion(tmp_path: Path) -> None:
    example = made(tmp_path, ("a", "b", "c"), noise=1.0).report
    page = Page(report.render(example, {}))
    titles = [(cell["title"] or "").split(",")[0] for cell in page.all("td") if cell.get("title")]
    shown = example.by_label
    assert sorted(titles) == sorted(
        f"{label} answered as {other}: {count} of {sum(counts)}"
        for label, counts in zip(shown.labels, shown.confusion, strict=True)
        for other, count in zip(shown.labels, counts, strict=True)
        if count
    )


def test_without_test_photos_the_held_out_ones_head_the_page(tmp_path: Path) -> None:
    page = Page(report.render(made(tmp_path, ("a", "b"), tested=False).report, {}))
    assert "24 held-out photos get the right label" in page.text
    assert "No photos were held out for a test." in page.text
    assert "Misclassified" not in page.text


def test_what_changed_against_the_live_version_is_shown_with_its_photos(tmp_path: Path) -> None:
    labels = (HOSTILE, "b", "c", "d")
    example = made(tmp_path, labels, photos=20, noise=0.6, judged=True).report
    found, validated = example.comparison, example.cross_validation
    assert found is not None
    assert validated is not None
    assert found.newly_right
    report.write(tmp_path / "report.html", example)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Page(text)
    words = page.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert "Against version 1 of live" in words
    assert f"On {found.difference.n} test photos that it was not trained on" in words
    assert f"{100 * found.difference.accuracy.value:+z.1f} percent points" in words
    assert f"p = {found.difference.p_value:.3f}" in words
    assert "Labels that are gone: gone ." in words
    assert f"{len(found.newly_right)} photos" in words
    shown = {change.uri for change in (*found.newly_wrong[:CHANGED], *found.newly_right[:CHANGED])}
    assert shown <= set(example.pictured)
    alts = [image["alt"] or "" for image in page.all("img")]
    assert sum("version 1 says" in alt for alt in alts) == len(shown)
    assert f"photos of the {validated.folds}-fold cross-validation" in words
    assert f"{100 * validated.accuracy.value:.1f} %" in words
    assert "It was repeated 2 times" in words
    assert example.by_label is validated.runs[0]
    plain = Page(report.render(made(tmp_path, labels, photos=20, noise=0.6).report, {})).text
    assert "Against" not in plain
    assert "-fold" not in plain


def test_without_a_mistake_the_page_says_so(tmp_path: Path) -> None:
    example = made(tmp_path, ("a", "b"), noise=0.01).report
    assert example.misclassified == ()
    page = Page(report.render(example, {}))
    assert "None: every test photo gets the right label." in page.text


def test_contradictions_come_first_and_one_picture_stands_for_the_same_bytes(tmp_path: Path) -> None:
    same = Group((Picture("1.jpg", "a", Subset.TRAINING), Picture("2.jpg", "a", Subset.TRAINING)))
    torn = Group((Picture("3.jpg", "a", Subset.TRAINING), Picture("4.jpg", "b", Subset.TRAINING)))
    across = Group(
        (
            Picture("5.jpg", "a", Subset.TRAINING, 0.95),
            Picture("6.jpg", "a", Subset.TRAINING, 0.95),
            Picture("7.jpg", "a", Subset.TESTING, 0.95),
        )
    )
    example = made(tmp_path, ("a", "b"), found=Duplicates((same, torn), (across,), 0.93, 9, 9)).report
    assert example.groups == (torn, across, same)
    assert [uri for uri in example.pictured if "/" not in uri] == ["3.jpg", "5.jpg", "7.jpg", "1.jpg"]
    words = Page(report.render(example, {})).text
    assert "Identical files, under different labels" in words
    assert "Nearly the same, in different sets" in words


def test_the_sample_of_a_label_is_the_training_photo_it_is_surest_of(tmp_path: Path) -> None:
    examples = [Example(f"{number}.jpg", f"{number:064x}", number % 2) for number in range(6)]
    own = np.array([0.5, 0.9, 0.7, 0.6, 0.99, 0.2], np.float32)
    probabilities = np.stack([own, 1 - own], axis=1)
    probabilities[1::2] = probabilities[1::2, ::-1]
    subsets = [Subset.TRAINING] * 4 + [Subset.TESTING] * 2
    targets = np.array([0, 1, 0, 1])
    evaluation = metrics.evaluate(probabilities[:4], targets, ("a", "b"))
    composed = report.compose(
        "x",
        ("a", "b"),
        examples,
        subsets,
        Verdicts.of_probabilities(probabilities, np.array([example.label for example in examples])),
        selection=heads.Selection("validation", 3.0, {3.0: 0.5}, probabilities[:4], targets),
        held_out=evaluation,
        test=evaluation,
        duplicates=Duplicates((), (), 0.93, 6, 6),
    )
    assert [row.sample for row in composed.labels] == ["2.jpg", "1.jpg"]
    assert [answer.uri for answer in composed.misclassified] == ["5.jpg"]
    assert [answer.uri for answer in composed.unsure] == ["4.jpg"]
    check_self_contained(report.render(composed, {}))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        report.write(tmp_path / "file" / "report.html", made(tmp_path, ("a", "b")).report)


# --- In a real browser --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.needs(CHROMIUM)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("kind", ["real", "many labels", "long words"])
def test_a_browser_shows_it_whole(
    kind: str, width: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "real":
        example: report.Report = request.getfixturevalue("real")
    else:
        long = ["Donaudampfschifffahrtsgesellschaftskapitän" * 2 + str(number) for number in range(12)]
        labels = long if kind == "long words" else [f"label {number}" for number in range(101)]
        judged = kind == "long words"
        example = made(tmp_path, labels, photos=8, noise=0.5, judged=judged).report
    report.write(tmp_path / "report.html", example)
    found = look(tmp_path / "report.html", tmp_path, width)
    assert found["inner"] == width
    assert found["width"] <= width, "the page can be scrolled sideways"
    assert found["height"] > 2000
    assert found["images"] == found["shown"] >= 8
    assert found["flat"] == 0
    assert found["ordered"]
