"""`hubhead similar`: the nearest photos among scored or listed ones, clusters, outputs and errors."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from batch.embeddings import EmbeddingStore, hash_photo
from batch.jobs.score import ScoreSettings, score
from hubhead import hubhead
from serving.errors import InputError
from tests.support.html_assertions import Page, check_self_contained
from tests.support.score_job import DIMENSION, FINGERPRINT, GOOD, make_bundle

pytestmark = [pytest.mark.tf, pytest.mark.beam]

PHOTOS = 60


@dataclass(frozen=True)
class Archive:
    """Scored photos, others in the same store, and the bundle."""

    photos: Path
    others: Path
    scores: Path
    store: Path
    model: Path

    def run(self, *words: object) -> Result:
        """Run the command with the store of the archive."""
        given = ["similar", *map(str, words), "--embedding_store", str(self.store)]
        return CliRunner().invoke(hubhead, given)

    def find(self, *words: object) -> list[dict[str, Any]]:
        """Run the command with --json, and return the nearest photos."""
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.output
        found: list[dict[str, Any]] = json.loads(result.stdout)["nearest"]
        return found

    def fail(self, *words: object) -> InputError:
        """Run the command, and return its error."""
        error = self.run(*words).exception
        assert isinstance(error, InputError)
        return error

    def rank(self, photo: Path) -> list[tuple[str, float]]:
        """Return name and cosine of the usable scored photos, the nearest first, computed one by one."""
        store = EmbeddingStore(str(self.store), FINGERPRINT, DIMENSION)
        paths = {hash_photo(path.read_bytes()): path.name for path in self.photos.iterdir()}
        store.refresh()
        rows = store.get([*paths, hash_photo(photo.read_bytes())])
        vectors = dict(zip(rows.shas, rows.vectors.astype(np.float64), strict=True))
        query = vectors[hash_photo(photo.read_bytes())]
        cosines = {
            paths[sha]: float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query))
            for sha, vector in vectors.items()
            if sha in paths and vector.any()
        }
        return sorted(cosines.items(), key=lambda item: -item[1])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    top = tmp_path_factory.mktemp("similar")
    found = Archive(top / "photos", top / "others", top / "scores", top / "store", top / "model")
    make_bundle(found.model)
    for directory, first in ((found.photos, 0), (found.others, 1000)):
        directory.mkdir()
        for number in range(first, first + PHOTOS):
            (directory / f"{number}.jpg").write_bytes(GOOD + b"%d" % number)
    (found.photos / "text.jpg").write_bytes(b"hello, I am text")
    for photos, output in ((found.photos, found.scores), (found.others, top / "other_scores")):
        settings = ScoreSettings(
            (found.model,), str(output), photos=str(photos), embedding_store=str(found.store), shard_size=16
        )
        score(settings)
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_nearest_scored_photos_are_those_with_the_highest_cosines(archive: Archive) -> None:
    photo = archive.photos / "7.jpg"
    expected = [item for item in archive.rank(photo) if item[0] != "7.jpg"][:15]
    found = archive.find(photo, "--scores", archive.scores, "--count", 15)
    assert [one["similarity"] for one in found] == pytest.approx([cosine for _, cosine in expected], abs=2e-6)
    assert {Path(one["uri"]).name for one in found} == {name for name, _ in expected}


def test_photos_of_the_store_that_were_not_scored_there_are_no_candidates(archive: Archive) -> None:
    found = archive.find(archive.others / "1003.jpg", "--scores", archive.scores, "--count", 500)
    assert len(found) == PHOTOS
    assert all(Path(one["uri"]).parent == archive.photos for one in found)


def test_a_photo_without_a_stored_embedding_needs_the_model(archive: Archive, tmp_path: Path) -> None:
    photo = tmp_path / "new.jpg"
    photo.write_bytes(GOOD + b"new")
    assert "The embedding of" in archive.fail(photo, "--scores", archive.scores).what
    found = archive.find(photo, "--scores", archive.scores, "--model", archive.model)
    assert len(found) == 20
    # It does not become one of the photos that are searched.
    assert (
        len(archive.find(archive.photos / "1.jpg", "--scores", archive.scores, "--count", 500)) == PHOTOS - 1
    )


def test_an_identical_photo_elsewhere_comes_first(archive: Archive, tmp_path: Path) -> None:
    photo = tmp_path / "copy.jpg"
    photo.write_bytes((archive.photos / "5.jpg").read_bytes())
    [first, *_] = archive.find(photo, "--scores", archive.scores)
    assert (Path(first["uri"]).name, first["similarity"]) == ("5.jpg", pytest.approx(1, abs=1e-6))
    assert first["sha256"] == hash_photo(photo.read_bytes()).hex()


def test_listed_photos_are_embedded_first(archive: Archive, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    for number in range(12):
        (uploads / f"{number}.jpg").write_bytes(GOOD + b"upload %d" % number)
    words = ("--photos", uploads, "--model", archive.model)
    assert len(archive.find(uploads / "3.jpg", *words)) == 11
    (uploads / "later.jpg").write_bytes(GOOD + b"later")
    assert len(archive.find(uploads / "3.jpg", *words)) == 12
    assert "needs a backbone" in archive.fail(uploads / "3.jpg", "--photos", uploads).what


def test_an_unusable_photo_is_an_error_with_the_reason(archive: Archive, tmp_path: Path) -> None:
    photo = tmp_path / "text.jpg"
    photo.write_bytes(b"some text")
    error = archive.fail(photo, "--scores", archive.scores, "--model", archive.model)
    assert "cannot be used: not in a known image format" in error.what
    assert "Cannot read" in archive.fail(tmp_path / "none.jpg", "--scores", archive.scores).what


def test_output_is_a_page_of_thumbnails_or_a_table(archive: Archive, tmp_path: Path) -> None:
    words = (archive.photos / "7.jpg", "--scores", archive.scores, "--count", 5)
    page, table = tmp_path / "similar.html", tmp_path / "similar.csv"
    assert archive.run(*words, "--output", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    check_self_contained(text)
    assert len(Page(text).all("li")) == 6  # the photo and five others
    assert archive.run(*words, "--output", table).exit_code == 0
    rows = read_table(table)
    assert [row["uri"] for row in rows] == [one["uri"] for one in archive.find(*words)]
    shown = archive.run(*words).stdout
    assert re.search(r"0\.\d{3} *│ */.*/\d+\.jpg", shown)


def test_every_usable_photo_is_in_one_cluster(archive: Archive, tmp_path: Path) -> None:
    words = ("--label_with", "cluster", "--clusters", 4, "--scores", archive.scores)
    table, page = tmp_path / "clusters.csv", tmp_path / "clusters.html"
    assert archive.run(*words, "--output", table).exit_code == 0
    rows = read_table(table)
    assert sorted(Path(row["uri"]).name for row in rows) == sorted(
        f"{number}.jpg" for number in range(PHOTOS)
    )
    assert sorted({row["label"] for row in rows}) == [f"cluster {number}" for number in range(1, 5)]
    found = json.loads(archive.run(*words, "--json").stdout)
    assert found["photos"] == PHOTOS
    sizes = [cluster["photos"] for cluster in found["clusters"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == PHOTOS
    assert archive.run(*words, "--output", page).exit_code == 0
    check_self_contained(page.read_text(encoding="utf-8"))
    assert "4 clusters of 60 photos" in Page(page.read_text(encoding="utf-8")).text
    assert "cluster 1" in archive.run(*words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.jpg",), "Give one of --scores and --photos"),
        (("a.jpg", "--scores", "s", "--photos", "p"), "Give one of --scores and --photos"),
        (("--scores", "s"), "Give a PHOTO, or --label_with cluster"),
        (("a.jpg", "--scores", "s", "--label_with", "cluster"), "Give a PHOTO, or --label_with cluster"),
        (("a.jpg", "--scores", "s", "--output", "x.txt"), "has to end in .html or .csv"),
        (("a.jpg", "--scores", "s", "--output", "x.csv", "--json"), "remove --output"),
    ],
)
def test_options_that_do_not_go_together_are_errors(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(hubhead, ["similar", *words])
    assert result.exit_code == 2
    assert message in result.output


def test_a_directory_without_scores_or_embeddings_is_an_error(archive: Archive, tmp_path: Path) -> None:
    assert "There are no scores" in archive.fail("a.jpg", "--scores", tmp_path).what
    words = ("similar", str(archive.photos / "1.jpg"), "--scores", str(archive.scores))
    result = CliRunner().invoke(hubhead, [*words, "--embedding_store", str(tmp_path)])
    assert "There are no embeddings" in str(result.exception)
