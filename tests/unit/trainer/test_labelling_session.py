"""Labelling sessions: what is asked, what is kept, and who gets which photo."""

from __future__ import annotations

import csv
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError, OutputBusy
from tests.support.labelling import LABELS, LabelledCandidates, from_embeddings, make_candidates
from trainer.labelling import fitting, holds, pool, ranking
from trainer.labelling.candidates import Candidates
from trainer.labelling.classifier import Model
from trainer.labelling.fitting import LabelledSet
from trainer.labelling.journal import Journal
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import Answer, AnswerConflict, AnswerNotKept, Batch, Strategy, Suspect

Open = Callable[..., LabellingSession]

ANN, BOB = "browser-ann", "browser-bob"


@pytest.fixture
def photos() -> LabelledCandidates:
    """300 photos of three labels."""
    return make_candidates(300)


@pytest.fixture
def open_session(photos: LabelledCandidates, tmp_path: Path) -> Iterator[Open]:
    """Function that opens a session about `photos`, or about others; it is closed after the test."""
    opened = []

    def open_one(candidates: Candidates | None = None, **options: object) -> LabellingSession:
        keywords = {name: options.pop(name) for name in ("model", "labelled", "suspects") if name in options}
        settings = SessionSettings(**{"labels": LABELS, "by": "ann"} | options)  # type: ignore[arg-type]
        session = LabellingSession(
            candidates or photos.candidates,
            tmp_path / "labels.csv",
            settings,
            **keywords,  # type: ignore[arg-type]
        )
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.close()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def get_ids(batch: Batch) -> list[int]:
    return [card.id for card in batch.photos]


def fit_model() -> Model:
    """Return a model of other photos of the three labels."""
    known = make_candidates(300)
    found = fitting.fit_classifier(LABELS, known.candidates.embeddings[:200], known.targets[:200])
    assert found is not None
    assert found.head is not None
    return Model(LABELS, found.head)


def answer_next(session: LabellingSession, photos: LabelledCandidates, browser: str = ANN) -> int:
    """Answer the next photo with its true label, and return its id."""
    row = session.next_photos(browser).photos[0].id
    session.answer(browser, [Answer(row, photos.label(row), 1.0)])
    return row


# --- What is asked --------------------------------------------------------------------------------------


def test_the_same_photos_are_shown_until_they_are_answered(open_session: Open) -> None:
    session = open_session()
    first = get_ids(session.next_photos(ANN, count=3))
    assert get_ids(session.next_photos(ANN, count=3)) == first
    session.answer(ANN, [Answer(first[0], "pizza")])
    assert get_ids(session.next_photos(ANN, count=3))[:2] == first[1:]


def test_browsers_never_hold_the_same_photo(photos: LabelledCandidates, open_session: Open) -> None:
    session = open_session()
    choose = random.Random(0)
    answered: list[int] = []
    browsers = [f"browser-{number}" for number in range(4)]
    for _ in range(120):
        browser = choose.choice(browsers)
        batch = session.next_photos(
            browser, choose.choice(["single", "single", "grid"]), count=choose.randint(1, 4)
        )
        held = {
            name: set(get_ids(session.next_photos(name, count=1))) for name in browsers if name != browser
        }
        assert all(not held[name] & set(get_ids(batch)) for name in held)
        assert len(set().union(*held.values())) == sum(map(len, held.values()))
        if batch.photos:
            row = choose.choice(get_ids(batch))
            if choose.random() < 0.2:
                session.undo(browser)
            else:
                session.answer(browser, [Answer(row, photos.label(row))])
                answered.append(row)
    assert session.state().labelled <= len(set(answered))


def test_photos_of_a_silent_browser_are_released(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(make_candidates(1).candidates)
    now = [0.0]
    monkeypatch.setattr(session._holds, "_clock", lambda: now[0])
    (row,) = get_ids(session.next_photos(ANN))
    assert get_ids(session.next_photos(BOB)) == []
    now[0] = holds.HOLD_SECONDS + 1
    assert get_ids(session.next_photos(BOB)) == [row]
    with pytest.raises(AnswerConflict):
        session.answer(ANN, [Answer(row, "pizza")])
    assert session.state().labelled == 0


def test_photos_that_nearly_equal_an_answered_one_are_not_asked(open_session: Open) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 64))
    copies = rows + 0.01 * np.random.default_rng(1).normal(size=rows.shape)
    session = open_session(from_embeddings(np.concatenate([rows, copies])), test_percentage=0.0)
    asked = []
    while batch := get_ids(session.next_photos(ANN, count=5)):
        asked.append(batch[0])
        session.answer(ANN, [Answer(batch[0], "pizza")])
    assert len(asked) == 20
    assert len({row % 20 for row in asked}) == 20
    assert session.state().near_duplicates == 20
    session.undo(ANN)
    state = session.state()
    assert (state.remaining, state.near_duplicates) == (2, 19)


def test_skipped_photos_come_after_all_others(open_session: Open) -> None:
    session = open_session(make_candidates(6).candidates, near_threshold=2.0, test_percentage=0.0)
    first = get_ids(session.next_photos(ANN))
    assert session.skip(ANN, first).skipped == 1
    order = []
    while batch := get_ids(session.next_photos(ANN)):
        order += batch
        session.answer(ANN, [Answer(batch[0], "soup")])
    assert len(order) == 6
    assert order[-1:] == first


def test_random_photos_are_the_test_set_and_are_not_trained_on(
    photos: LabelledCandidates, open_session: Open, tmp_path: Path
) -> None:
    session = open_session(strategy=Strategy.RANDOM)
    tested = [answer_next(session, photos) for _ in range(12)]
    session.next_photos(ANN, strategy=Strategy.DIVERSE)
    trained = [answer_next(session, photos) for _ in range(12)]
    assert session.wait_idle()
    state = session.state()
    assert (state.labelled, state.test, state.fitted_answers) == (24, 12, 12)
    assert state.accuracy is not None
    assert state.accuracy.n == 12
    session.close()
    sets = {int(Path(row["uri"]).stem): row["set"] for row in read_csv(tmp_path / "labels.csv")}
    assert sets == dict.fromkeys(tested, "test") | dict.fromkeys(trained, "")


def test_the_test_set_is_a_random_sample_whatever_was_answered_before(
    photos: LabelledCandidates, open_session: Open, tmp_path: Path
) -> None:
    session = open_session(test_percentage=20.0, near_threshold=2.0)
    for _ in range(40):
        answer_next(session, photos)
    first = {row for row in range(300) if session._pool.reserved[row]}
    session.close()
    rows = read_csv(tmp_path / "labels.csv")
    tested = {int(Path(row["uri"]).stem) for row in rows if row["set"] == "test"}
    assert len(tested) == 8
    assert tested < first
    assert not first & {int(Path(row["uri"]).stem) for row in rows if row["set"] == ""}
    # The share is by content, about a fifth of all.
    assert 40 < len(first) < 80


def test_a_session_without_test_percentage_has_no_test_photos(
    photos: LabelledCandidates, open_session: Open
) -> None:
    session = open_session(test_percentage=0.0)
    for _ in range(15):
        answer_next(session, photos)
    assert session.state().test == 0


def test_every_photo_is_asked_for_in_the_end(photos: LabelledCandidates, open_session: Open) -> None:
    session = open_session(make_candidates(60).candidates, near_threshold=2.0, test_percentage=30.0)
    asked = []
    while batch := get_ids(session.next_photos(ANN, count=2)):
        asked.append(batch[0])
        session.answer(ANN, [Answer(batch[0], "")])
    assert sorted(asked) == list(range(60))
    assert session.state().remaining == 0


def test_a_grid_has_photos_that_the_classifier_takes_for_one_label(
    photos: LabelledCandidates, open_session: Open
) -> None:
    session = open_session(near_threshold=2.0)
    assert session.next_photos(ANN, "grid").photos == ()
    for _ in range(30):
        answer_next(session, photos)
    assert session.wait_idle()
    grid = session.next_photos(ANN, "grid", label="soup")
    assert grid.label == "soup"
    assert len(grid.photos) == 24
    assert np.mean([photos.label(row) == "soup" for row in get_ids(grid)]) > 0.9
    assert session.next_photos(ANN, "grid") == grid
    *kept, wrong = get_ids(grid)
    state = session.answer(ANN, [Answer(row, "soup") for row in kept], rejected=[wrong])
    assert state.labelled == 30 + 23
    assert wrong not in get_ids(session.next_photos(ANN, "grid", label="soup"))
    assert set(session.undo(ANN)) == set(get_ids(grid))
    assert set(get_ids(session.next_photos(ANN, "grid"))) == set(get_ids(grid))
    assert session.state().labelled == 30


# --- What is kept ---------------------------------------------------------------------------------------


def test_a_session_continues_where_it_was_killed(
    photos: LabelledCandidates, open_session: Open, tmp_path: Path
) -> None:
    session = open_session()
    answered = {answer_next(session, photos) for _ in range(10)}
    session.add_label(ANN, "ramen")
    shown = get_ids(session.next_photos(ANN, count=2))
    session._journal.close()  # as by kill -9: neither the queue nor the output is written
    (tmp_path / "labels.csv").unlink(missing_ok=True)
    again = open_session()
    state = again.state()
    assert (state.labelled, state.labels) == (10, (*LABELS, "ramen"))
    assert {int(Path(row["uri"]).stem) for row in read_csv(tmp_path / "labels.csv")} == answered
    # The page still shows a photo of before; its answer is taken.
    again.answer(ANN, [Answer(shown[0], "soup")])
    assert not answered & set(get_ids(again.next_photos(ANN, count=20)))
    assert len(again.undo(ANN)) == 1
    assert again.undo(ANN)[0] in answered


def test_undo_takes_back_answer_after_answer(photos: LabelledCandidates, open_session: Open) -> None:
    session = open_session()
    rows = [answer_next(session, photos) for _ in range(4)]
    other = answer_next(session, photos, BOB)
    assert [session.undo(ANN) for _ in range(5)] == [*((row,) for row in reversed(rows)), ()]
    assert session.state().labelled == 1
    assert get_ids(session.next_photos(ANN, count=4)) == rows
    assert session.undo(BOB) == (other,)


def test_an_answer_replaces_that_of_the_same_browser_and_undo_restores_it(
    photos: LabelledCandidates, open_session: Open
) -> None:
    session = open_session()
    row = answer_next(session, photos)
    wrong = next(name for name in LABELS if name != photos.label(row))
    assert session.answer(ANN, [Answer(row, wrong)]).per_label[wrong] == 1
    with pytest.raises(AnswerConflict):
        session.answer(BOB, [Answer(row, "soup")])
    session.undo(ANN)
    assert session.state().per_label[photos.label(row)] == 1


def test_all_answers_are_taken_or_none(open_session: Open) -> None:
    session = open_session()
    mine, other = get_ids(session.next_photos(ANN)), get_ids(session.next_photos(BOB))
    for wrong in (Answer(other[0], "soup"), Answer(mine[0], "ramen"), Answer(10_000, "soup")):
        with pytest.raises((AnswerConflict, InputError, KeyError)):
            session.answer(ANN, [Answer(mine[0], "pizza"), wrong])
    assert session.state().labelled == 0


def test_a_full_disk_is_reported_and_changes_nothing(
    photos: LabelledCandidates, open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session()
    answer_next(session, photos)
    (row,) = get_ids(session.next_photos(ANN))
    before = session.state()

    def fail(*_: object) -> int:
        raise AnswerNotKept("The answer was not kept: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        for change in (
            lambda: session.answer(ANN, [Answer(row, "soup")]),
            lambda: session.skip(ANN, [row]),
            lambda: session.undo(ANN),
            lambda: session.add_label(ANN, "ramen"),
        ):
            with pytest.raises(AnswerNotKept, match="No space left"):
                change()
    after = session.state()
    assert (after.labelled, after.skipped, after.labels) == (before.labelled, 0, LABELS)
    assert get_ids(session.next_photos(ANN)) == [row]
    assert session.answer(ANN, [Answer(row, "soup")]).labelled == 2


def test_two_processes_cannot_label_into_one_output(open_session: Open) -> None:
    open_session()
    with pytest.raises(OutputBusy):
        open_session()


def test_photos_with_none_of_the_labels_are_listed_apart(open_session: Open, tmp_path: Path) -> None:
    session = open_session()
    for label in ("pizza", ""):
        session.answer(ANN, [Answer(get_ids(session.next_photos(ANN))[0], label, 2.5)])
    assert session.state().none_of_these == 1
    session.close()
    (labelled,) = read_csv(tmp_path / "labels.csv")
    (other,) = read_csv(tmp_path / "labels.none_of_these.csv")
    assert (labelled["label"], labelled["by"], labelled["strategy"]) == ("pizza", "ann", "mixed")
    assert (other["label"], other["seconds"]) == ("", "2.50")


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "Pizza", "pizza "])
def test_label_names_that_cannot_be_told_apart_are_refused(open_session: Open, name: str) -> None:
    session = open_session()
    if name.strip() == "pizza":
        assert session.add_label(ANN, name) == LABELS
        return
    with pytest.raises(InputError):
        session.add_label(ANN, name)
    assert session.state().labels == LABELS


# --- What is learnt -------------------------------------------------------------------------------------


def test_suggestions_follow_the_answers(photos: LabelledCandidates, open_session: Open) -> None:
    session = open_session()
    assert session.next_photos(ANN).photos[0].suggestions == ()
    for _ in range(40):
        answer_next(session, photos)
    assert session.wait_idle()
    cards = [card for card in session.next_photos(ANN, count=20).photos if card.strategy != "random"]
    assert len(cards) > 15
    assert all(sum(each.probability for each in card.suggestions) == pytest.approx(1) for card in cards)
    assert np.mean([card.suggestions[0].label == photos.label(card.id) for card in cards]) > 0.8
    state = session.state()
    assert (state.fitted_answers, state.accuracy and state.accuracy.n) == (36, 4)
    assert state.curve[-1].answers == 36


def test_photos_are_ranked_once_while_the_background_has_not_ranked_them(
    photos: LabelledCandidates, open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Strategy] = []

    def count_calls(strategy: Strategy, *arguments: object, **options: object) -> object:
        calls.append(strategy)
        return ranking.rank(strategy, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pool, "rank", count_calls)
    monkeypatch.setattr(fitting.BackgroundFit, "_rank", lambda *_: None)
    session = open_session()
    assert len({answer_next(session, photos) for _ in range(20)}) == 20
    assert calls == [Strategy.MIXED]
    session.next_photos(ANN, strategy=Strategy.DIVERSE)
    assert calls == [Strategy.MIXED, Strategy.DIVERSE]


def test_answers_are_taken_while_the_head_cannot_be_fitted(
    photos: LabelledCandidates, open_session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(fitting, "fit_classifier", fail)
    session = open_session()
    for _ in range(5):
        answer_next(session, photos)
    assert session.wait_idle()
    assert "no memory" in session.state().warning
    assert session.state().labelled == 5


def test_a_model_suggests_labels_before_the_first_answer(
    photos: LabelledCandidates, open_session: Open
) -> None:
    session = open_session(model=fit_model(), test_percentage=0.0)
    assert session.wait_idle()
    cards = session.next_photos(ANN, count=20).photos
    assert np.mean([card.suggestions[0].label == photos.label(card.id) for card in cards]) > 0.8
    assert session.state().fitted_answers == 0


def test_labelled_photos_are_learnt_from_and_answers_replace_their_labels(
    photos: LabelledCandidates, open_session: Open
) -> None:
    every = np.arange(300)
    base = LabelledSet(
        LABELS,
        photos.candidates.embeddings[:100],
        (photos.targets[:100] + 1) % 3,  # all labels are wrong
        [photos.candidates.sha256(int(row)) for row in every[:100]],
    )
    session = open_session(labelled=base, near_threshold=2.0, test_percentage=0.0)
    assert session.wait_idle()
    cards = session.next_photos(ANN, count=20).photos
    assert np.mean([card.suggestions[0].label == photos.label(card.id) for card in cards]) < 0.2
    session.answer(ANN, [Answer(row, photos.label(row)) for row in range(100)])
    assert session.wait_idle()
    cards = session.next_photos(ANN, count=20).photos
    assert np.mean([card.suggestions[0].label == photos.label(card.id) for card in cards]) > 0.8


def test_photos_of_the_test_set_have_no_suggestions(photos: LabelledCandidates, open_session: Open) -> None:
    session = open_session(model=fit_model(), test_percentage=30.0)
    assert session.wait_idle()
    cards = session.next_photos(ANN, count=20).photos
    assert {card.strategy for card in cards} == {"random", "mixed"}
    assert all((card.suggestions == ()) == (card.strategy == "random") for card in cards)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_background_has_a_lower_priority_than_the_requests(open_session: Open) -> None:
    session = open_session()
    assert session.wait_idle()
    background = session._background._thread.native_id
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert background is not None
    assert os.getpriority(os.PRIO_PROCESS, background) == max(own, fitting.NICENESS)


def test_suspects_are_shown_in_their_order_and_become_corrections(
    photos: LabelledCandidates, open_session: Open, tmp_path: Path
) -> None:
    suspects = [
        Suspect(7, "soup", (("soup", (1, 2)), ("pizza", (3,)))),
        Suspect(5, "pizza", (("pizza", (4,)), ("sushi", (6,)))),
    ]
    aliases = {photos.candidates.sha256(5): ("/photos/5.jpg", "/photos/copy.jpg")}
    candidates = Candidates(
        photos.candidates.uris, photos.candidates.digests, photos.candidates.embeddings, aliases=aliases
    )
    session = open_session(candidates, suspects=suspects)
    first = session.next_photos(ANN).photos[0]
    assert (first.id, first.given_label, first.neighbours[1].photos) == (7, "soup", (3,))
    session.answer(ANN, [Answer(7, "")])
    session.answer(ANN, [Answer(get_ids(session.next_photos(ANN))[0], "sushi")])
    assert session.next_photos(ANN).photos == ()
    with pytest.raises(InputError):
        session.next_photos(ANN, strategy=Strategy.MIXED)
    session.close()
    assert {row["uri"]: row["label"] for row in read_csv(tmp_path / "labels.csv")} == {
        "/photos/7.jpg": "",
        "/photos/5.jpg": "sushi",
        "/photos/copy.jpg": "sushi",
    }


def test_a_session_without_suspects_refuses_their_strategy(open_session: Open) -> None:
    with pytest.raises(InputError, match="suspected"):
        open_session(strategy=Strategy.SUSPECTS)


# --- Threads --------------------------------------------------------------------------------------------


def test_answers_of_many_threads_are_all_kept(
    photos: LabelledCandidates, open_session: Open, tmp_path: Path
) -> None:
    session = open_session(near_threshold=2.0)

    def label_some(browser: str) -> list[int]:
        return [answer_next(session, photos, browser) for _ in range(20)]

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(label_some, [f"browser-{number}" for number in range(4)]))
    answered = [row for part in parts for row in part]
    assert len(set(answered)) == 80
    assert session.state().labelled == 80
    session.close()
    assert {int(Path(row["uri"]).stem) for row in read_csv(tmp_path / "labels.csv")} == set(answered)
    assert open_session().state().labelled == 80
