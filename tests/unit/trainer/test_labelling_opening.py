"""Opening of labelling sessions: which photos are to be labelled, which labels exist, which are suspected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batch.embeddings import Embeddings, EmbeddingStore, hash_photo
from batch.inputs.listing import Photo
from batch.output.run_record import Summary
from serving.contract import Status
from serving.errors import InputError
from trainer.dataset import DatasetListing
from trainer.evaluation.features import load_features
from trainer.labelling import opening
from trainer.labelling.opening import LabellingInput, open_session
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import Answer, Strategy
from trainer.training.config import EmbeddingSettings
from trainer.training.steps import Reporter

D = 16
LABELS = ("pizza", "soup", "sushi")
CENTRES = np.random.default_rng(0).normal(size=(3, D)) * 2

Open = Callable[..., LabellingSession]


def write(path: Path, label: str, number: int) -> Path:
    """Write a photo whose content tells its embedding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{label} {number}".encode())
    return path


def embed_content(content: bytes) -> np.ndarray[Any, Any]:
    label, number = content.decode().split()
    noise = np.random.default_rng(int(number)).normal(size=D)
    return np.asarray(CENTRES[LABELS.index(label)] + noise, np.float16)


def fill(store: EmbeddingStore, photos: Sequence[Photo]) -> None:
    """Embed photos into a store, as the job does."""
    contents = {photo: Path(photo.uri).read_bytes() for photo in photos}
    shas = {photo: hash_photo(content) for photo, content in contents.items()}
    distinct = {shas[photo]: content for photo, content in contents.items()}
    usable = {
        sha: content.startswith(tuple(name.encode() for name in LABELS)) for sha, content in distinct.items()
    }
    vectors = [embed_content(content) if usable[sha] else np.zeros(D) for sha, content in distinct.items()]
    size = np.ones(len(distinct), np.int32)
    statuses = [Status.OK if usable[sha] else Status.CORRUPT for sha in distinct]
    rows = Embeddings(list(distinct), np.array(vectors, np.float16), statuses, [None] * len(size), size, size)
    store.append(shas, rows)


@pytest.fixture
def open_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that opens a session with a backbone of 16 dimensions; sessions are closed after the test."""
    store = EmbeddingStore(str(tmp_path / "store"), "f" * 16, D)
    sessions = []

    def embed(photos: Sequence[Photo], *_: Any, **__: Any) -> Summary:
        fill(store, photos)
        return Summary("store")

    def embed_labelled(_: Any, settings: Any, listing: DatasetListing, *__: Any) -> Any:
        fill(store, list(listing.photos))
        return listing, load_features(listing, store, settings)

    monkeypatch.setattr(opening.steps, "make_template", lambda *_: SimpleNamespace(path=tmp_path))
    monkeypatch.setattr(opening.steps, "open_store", lambda *_: store)
    monkeypatch.setattr(opening.steps, "embed", embed_labelled)
    monkeypatch.setattr(opening.score, "embed", embed)

    def open_it(strategy: Strategy = Strategy.MIXED, **source: Any) -> LabellingSession:
        session = open_session(
            LabellingInput(**source),
            tmp_path / "uploads" / "labels.csv",
            SessionSettings(strategy=strategy, test_percentage=0.0, near_threshold=2.0),
            EmbeddingSettings(),
            Reporter(),
        )
        sessions.append(session)
        return session

    yield open_it
    for session in sessions:
        session.close()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Twelve photos without labels, and a file that is no photo."""
    for number in range(12):
        write(tmp_path / "uploads" / f"{number}.jpg", LABELS[number % 3], 1000 + number)
    (tmp_path / "uploads" / "broken.jpg").write_bytes(b"broken")
    return tmp_path / "uploads"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of twenty photos of each label."""
    for label in LABELS:
        for number in range(20):
            write(tmp_path / "food" / label / f"{number}.jpg", label, number)
    return tmp_path / "food"


def ask_all(session: LabellingSession) -> list[str]:
    """Return the names of all photos in the order in which they are asked."""
    names = []
    while batch := session.next_photos("browser").photos:
        names.append(batch[0].name)
        session.answer("browser", [Answer(batch[0].id, "")])
    return names


def test_photos_of_a_directory_without_the_files_of_the_session(open_one: Open, uploads: Path) -> None:
    open_one(photos=(str(uploads),)).close()
    session = open_one(photos=(str(uploads),))  # labels.csv and its journal are in the directory now
    assert session.state().photos == 12
    assert set(ask_all(session)) <= {f"{number}.jpg" for number in range(12)}


def test_photos_that_are_labelled_already_are_not_asked_for(
    open_one: Open, uploads: Path, folder: Path
) -> None:
    write(uploads / "copy.jpg", "soup", 3)
    session = open_one(photos=(str(uploads),), image_dir=str(folder))
    assert session.state().labels == LABELS
    assert "copy.jpg" not in ask_all(session)


def test_labels_of_a_folder_are_suggested(open_one: Open, uploads: Path, folder: Path) -> None:
    session = open_one(photos=(str(uploads),), image_dir=str(folder))
    assert session.wait_idle()
    cards = [card for card in session.next_photos("browser", count=12).photos if card.strategy != "random"]
    assert len(cards) > 6
    right = [card.suggestions[0].label == LABELS[int(Path(card.name).stem) % 3] for card in cards]
    assert np.mean(right) > 0.8


def test_lines_of_a_manifest_without_a_label_are_to_be_labelled(
    open_one: Open, uploads: Path, tmp_path: Path
) -> None:
    lines = [f"uploads/{number}.jpg,{LABELS[number % 3] if number < 9 else ''}" for number in range(12)]
    (tmp_path / "photos.csv").write_text("\n".join(["photo,label", *lines]))
    session = open_one(manifest=str(tmp_path / "photos.csv"))
    assert session.state().labels == LABELS
    assert sorted(ask_all(session)) == ["10.jpg", "11.jpg", "9.jpg"]


def test_photos_that_are_set_aside_for_the_test_are_not_learnt_from(open_one: Open, tmp_path: Path) -> None:
    names = []
    for number in range(9):
        write(tmp_path / f"{number}.jpg", LABELS[number % 3], number)
        subset, label = ("test", LABELS[(number + 1) % 3]) if number > 5 else ("", LABELS[number % 3])
        names.append(f"{number}.jpg,{label},{subset}")
    write(tmp_path / "new.jpg", "pizza", 77)
    (tmp_path / "photos.csv").write_text("\n".join(["photo,label,set", *names, "new.jpg,,"]))
    session = open_one(manifest=str(tmp_path / "photos.csv"))
    assert session._background._labelled is not None
    assert len(session._background._labelled.targets) == 6


def test_nothing_to_label_is_an_error(open_one: Open, uploads: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photos to label"):
        open_one(image_dir=str(folder))
    with pytest.raises(InputError, match="labelled already"):
        open_one(photos=(str(folder),), image_dir=str(folder))
    with pytest.raises(InputError, match="labels that exist"):
        open_one(Strategy.SUSPECTS, photos=(str(uploads),))


def test_wrong_labels_are_asked_for_beside_photos_of_both_labels(
    open_one: Open, folder: Path, tmp_path: Path
) -> None:
    (folder / "pizza" / "0.jpg").rename(folder / "soup" / "wrong.jpg")
    write(folder / "sushi" / "twice.jpg", "soup", 4)  # the same content as soup/4.jpg
    session = open_one(Strategy.SUSPECTS, image_dir=str(folder))
    assert session.wait_idle()
    seen: dict[str, tuple[str, list[str]]] = {}
    while batch := session.next_photos("browser").photos:
        card = batch[0]
        near = [
            Path(session.photo_uri(photo)).parent.name for part in card.neighbours for photo in part.photos
        ]
        seen[card.name] = card.given_label, near
        label = card.suggestions[0].label
        session.answer("browser", [Answer(card.id, label)])
    assert seen["wrong.jpg"] == ("soup", ["soup"] * 3 + ["pizza"] * 3)
    session.close()
    rows = (folder.parent / "uploads" / "labels.csv").read_text().splitlines()[1:]
    labels = {str(Path(row.split(",")[0]).relative_to(folder)): row.split(",")[1] for row in rows}
    assert labels["soup/wrong.jpg"] == "pizza"
    # Both files of one content are corrected.
    assert labels["sushi/twice.jpg"] == labels["soup/4.jpg"] == "soup"


def test_a_folder_without_suspected_labels_is_an_error(open_one: Open, folder: Path) -> None:
    with pytest.raises(InputError, match="suspected"):
        open_one(Strategy.SUSPECTS, image_dir=str(folder))
