"""Photos to label: embeddings from the store, identical files, photos that cannot be used, the output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batch.embeddings import EmbeddingStore
from batch.inputs.listing import Photo
from serving.errors import InputError
from tests.support import embedding_store as stored
from tests.support.labelling import make_candidates
from trainer.dataset import Subset
from trainer.dataset.manifest import list_manifest
from trainer.labelling.candidates import load_candidates
from trainer.labelling.output import OutputRow, none_path, write_output


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """A store with photos 1 to 5, of which the third cannot be used."""
    store = EmbeddingStore(str(tmp_path / "store"), "f" * 16, stored.D)
    stored.fill(store, [1, 2, 3, 4, 5], rejected=(3,))
    return store


def test_usable_photos_have_their_stored_embeddings(store: EmbeddingStore) -> None:
    found = load_candidates([stored.photo(number) for number in (5, 3, 1, 9)], store)
    assert found.uris == ["/photos/5.jpg", "/photos/1.jpg"]
    np.testing.assert_array_equal(found.embeddings[:, 0], [5, 1])
    assert [found.sha256(row) for row in range(2)] == [stored.sha(5).hex(), stored.sha(1).hex()]
    reasons = dict(found.left_out)
    assert reasons["/photos/3.jpg"] == "corrupt"
    assert "not in the embedding store" in reasons["/photos/9.jpg"]


def test_identical_files_are_one_photo(store: EmbeddingStore) -> None:
    copy = Photo("/photos/copy.jpg", 101, 7)
    store.append({copy: stored.sha(1)}, stored.rows([]))
    found = load_candidates([stored.photo(1), copy, stored.photo(2)], store)
    assert found.uris == ["/photos/1.jpg", "/photos/2.jpg"]


def test_no_usable_photo_is_an_error_with_an_example(store: EmbeddingStore) -> None:
    with pytest.raises(InputError, match=r"3\.jpg, for example, is corrupt"):
        load_candidates([stored.photo(3)], store)


def test_rows_are_found_by_content() -> None:
    candidates = make_candidates(50).candidates
    assert all(candidates.find_row(candidates.sha256(row)) == row for row in range(50))
    assert candidates.find_row("0" * 64) is None
    assert candidates.find_row("f" * 64) is None


def test_photos_that_have_labels_are_not_candidates(store: EmbeddingStore) -> None:
    photos = [stored.photo(number) for number in (1, 2, 4)]
    known = [stored.sha(2).hex(), stored.sha(5).hex()]
    found = load_candidates(photos, store, known=known)
    assert found.uris == ["/photos/1.jpg", "/photos/4.jpg"]
    with pytest.raises(InputError, match="labelled already"):
        load_candidates(photos, store, known=[stored.sha(number).hex() for number in (1, 2, 4)])


def test_a_digest_that_ends_in_zeros_is_found() -> None:
    candidates = make_candidates(3).candidates
    digests = np.frombuffer(b"\x01" + b"\0" * 31 + b"\x01\x02" + b"\0" * 30 + b"\xff" * 32, "S32")
    found = type(candidates)(candidates.uris, digests, candidates.embeddings)
    assert [found.find_row(found.sha256(row)) for row in range(3)] == [0, 1, 2]
    assert found.sha256(0) == "01" + "00" * 31


def test_the_output_is_a_manifest_of_labels_and_test_photos(tmp_path: Path) -> None:
    names = ["a, b.jpg", "ü.jpg", 'say "x".jpg', "none.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(b"photo")
    rows = [
        OutputRow(str(tmp_path / name), label, "ann", "2026-05-31T10:00:00+00:00", "mixed", 1.234, test)
        for name, label, test in zip(
            names, ("crème, brûlée", "soup", "soup", ""), (True, False, False, False), strict=True
        )
    ]
    output = tmp_path / "labels.csv"
    write_output(output, rows)
    listing = list_manifest(output)
    assert {Path(entry.photo.uri).name: (entry.label, entry.subset) for entry in listing.photos} == {
        "a, b.jpg": ("crème, brûlée", Subset.TESTING),
        "ü.jpg": ("soup", Subset.TRAINING),
        'say "x".jpg': ("soup", Subset.TRAINING),
    }
    (other,) = list_manifest(none_path(output), labelled=False).photos
    assert (Path(other.photo.uri).name, other.label) == ("none.jpg", None)
    write_output(output, rows[:2])
    assert not none_path(output).exists()
