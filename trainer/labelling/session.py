"""State behind the labelling page: the answers, the queue, and the photos that each browser holds."""

from __future__ import annotations

import math
import threading
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from serving.errors import InputError
from trainer.dataset.dataset import check_label_names
from trainer.labelling import journal
from trainer.labelling.answers import AnswerBook
from trainer.labelling.candidates import Candidates
from trainer.labelling.chooser import Chooser
from trainer.labelling.classifier import Model
from trainer.labelling.fitting import BackgroundFit, LabelledSet
from trainer.labelling.holds import Holds
from trainer.labelling.output import journal_path, write_output
from trainer.labelling.pool import Pool
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import (
    GRID_PHOTOS,
    Answer,
    AnswerConflict,
    Batch,
    Mode,
    Neighbours,
    PhotoCard,
    State,
    Strategy,
    Suspect,
)

_SUGGESTIONS = 5


class LabellingSession:
    """One labelling session with its output; the page (trainer.labelling.app) is written on these methods.

    All methods may be called by any thread. None waits for a fit: a new head is fitted and the queue is
    reordered by a background thread. `answer`, `undo`, `skip` and `add_label` sync the journal to disk
    before they return, a few milliseconds, and `next_photos` may rank a thousand photos after the strategy
    has changed, so call them with asyncio.to_thread. The others return at once.

    A browser is named by a random text of its own, such as 128 bits in sessionStorage. It holds the photos
    that were handed out to it until it answers, skips or releases them, or has not been heard of for
    holds.HOLD_SECONDS; no other browser gets them meanwhile.

    Methods that write raise AnswerNotKept if the journal cannot be written, for example because the disk is
    full. Then nothing has changed, and the same call may be made again.

    Args:
        candidates: photos to label; under the strategy `suspects`, photos that have labels.
        output: path of labels.csv; the journal is beside it.
        settings: settings.
        model: model that exists; None for none.
        labelled: photos that have labels already and that a training will use too; None for none.
        suspects: photos whose labels may be wrong, most suspicious first; a session has either this strategy
            or all others.

    Raises:
        OutputBusy: another process is labelling into the output.
        OutputError: the output cannot be written.
        InputError: the journal is damaged, or the names of the labels cannot be told apart.
    """

    def __init__(
        self,
        candidates: Candidates,
        output: Path,
        settings: SessionSettings | None = None,
        *,
        model: Model | None = None,
        labelled: LabelledSet | None = None,
        suspects: Sequence[Suspect] = (),
    ) -> None:
        self._candidates, self._output = candidates, output
        self._settings = settings = settings or SessionSettings()
        strategy = Strategy.SUSPECTS if suspects else settings.strategy
        self._suspects = {suspect.photo: suspect for suspect in suspects}
        self._writing = threading.Lock()  # held over the journal's sync, so that entries apply in its order
        self._lock = threading.RLock()
        self._holds = Holds()
        self._pool = Pool(
            candidates,
            near_threshold=settings.near_threshold,
            test_percentage=0.0 if suspects else settings.test_percentage,
            suspects=np.array(list(self._suspects), np.int64),
            seed=settings.seed,
        )
        self._book = AnswerBook(self._note_change)
        self._chooser = Chooser(
            candidates, self._book, self._pool, self._holds, strategy, settings.test_percentage
        )
        self._check_strategy(strategy)
        known = [*(model.labels if model else ()), *(labelled.labels if labelled else ()), *settings.labels]
        check_label_names(known, where="the session")
        self._journal = journal.Journal(journal_path(output))
        try:
            for number, entry in enumerate(self._journal.entries):
                self._book.apply(number, entry)
            check_label_names([*known, *self._book.labels], where=str(output))
            new = tuple(name for name in dict.fromkeys(known) if name not in self._book.labels)
            self._write(journal.StartEntry(journal.VERSION, _now(), new))
            self._write_output()
        except BaseException:
            self._journal.close()
            raise
        self._background = BackgroundFit(
            self._book,
            self._pool,
            self._lock,
            self._write_output,
            model=model,
            labelled=labelled,
            seed=settings.seed,
        )
        self._background.set_strategy(strategy)
        self._background.start()

    def next_photos(
        self,
        browser: str,
        mode: Mode = "single",
        *,
        count: int = 1,
        label: str = "",
        strategy: Strategy | None = None,
    ) -> Batch:
        """Return the photos that a browser holds in this mode, topped up from the queue.

        The call is idempotent: a page that is loaded again shows the same photos. Photos that the browser
        holds in the other mode, for another label or under another strategy are released first.

        Args:
            browser: name of the browser.
            mode: "single" or "grid"; a grid has up to GRID_PHOTOS photos whatever the count, and none
                without a model.
            count: number of photos in single mode: the one to show and those to load ahead.
            label: label of the grid; "" for the one with the most photos that are left.
            strategy: new strategy of the session; None for the current one.

        Raises:
            InputError: the strategy is `suspects` and the session has none, or the other way round.
        """
        with self._lock:
            self._holds.visit(browser)
            if strategy is not None and strategy is not self._chooser.strategy:
                self._check_strategy(strategy)
                self._chooser.strategy = strategy
                self._holds.release_all(browser)
                self._background.set_strategy(strategy)
            if mode == "grid":
                label = self._chooser.fill_grid(browser, label)
            else:
                self._chooser.fill(browser, max(1, min(count, GRID_PHOTOS)))
                label = ""
            self._background.request_if_low()
            return Batch(mode, self._make_cards(self._holds.rows(browser)), label)

    def answer(self, browser: str, answers: Sequence[Answer], *, rejected: Sequence[int] = ()) -> State:
        """Take answers, all or none of them, and return the progress.

        A photo that this browser answered before gets the new answer instead (corrections by arrow keys).

        Args:
            browser: name of the browser.
            answers: answers about photos that the browser holds or has answered. After a restart, photos
                that no browser holds are taken too.
            rejected: photos of a grid that are not of its label: they get no answer, are released, and do
                not appear in a grid of this label again.

        Raises:
            AnswerConflict: another browser holds or has answered one of the photos.
            KeyError: no photo has this id.
            InputError: a label is unknown (see add_label).
            AnswerNotKept: see above.
        """
        with self._writing:
            with self._lock:
                self._holds.visit(browser)
                for row in (*(answer.photo for answer in answers), *rejected):
                    self._check_answerable(browser, row)
                taken = tuple(self._to_journal(answer) for answer in answers)
                mode, grid = self._holds.mode(browser)
                shas = tuple(self._candidates.sha256(row) for row in rejected) if mode == "grid" else ()
            if taken or shas:
                self._write(journal.AnswersEntry(_now(), self._settings.by, browser, taken, shas, grid))
            with self._lock:
                self._holds.release([*(answer.photo for answer in answers), *rejected])
        self._background.request()
        return self.state()

    def skip(self, browser: str, photos: Sequence[int]) -> State:
        """Release photos without an answer; they come again after all others. Raises as `answer`."""
        with self._writing:
            with self._lock:
                self._holds.visit(browser)
                for row in photos:
                    self._check_answerable(browser, row)
                shas = tuple(self._candidates.sha256(row) for row in photos)
            if shas:
                self._write(journal.SkipEntry(_now(), browser, shas))
            with self._lock:
                self._holds.release(photos)
        return self.state()

    def undo(self, browser: str) -> tuple[int, ...]:
        """Take back the last answers or skip of a browser, which then holds these photos again.

        Returns:
            The ids of the photos, which the next call of `next_photos` returns first; none if there is
            nothing to take back. May be called repeatedly, back to the beginning of the session.
        """
        with self._writing:
            with self._lock:
                self._holds.visit(browser)
                last = self._book.find_last(browser)
                if last is None:
                    return ()
                number, entry = last
            self._write(journal.UndoEntry(_now(), browser, number))
            with self._lock:
                rows = self._chooser.hold_again(browser, entry)
        self._background.request()
        return rows

    def add_label(self, browser: str, name: str) -> tuple[str, ...]:
        """Add a label and return all of them; one that exists is no error.

        Raises:
            InputError: the name is empty, has a line break, or differs from another only in case, space
                or Unicode form.
            AnswerNotKept: see above.
        """
        name = unicodedata.normalize("NFC", name).strip()
        with self._writing:
            with self._lock:
                if not name:
                    raise InputError("The name of the label is empty.", remedy="Enter a name.")
                labels = tuple(self._book.labels)
                if name not in labels:
                    check_label_names([*labels, name], where="the session")
            if name not in labels:
                self._write(journal.LabelEntry(name, _now(), browser))
            return tuple(self._book.labels)

    def release(self, browser: str) -> None:
        """Release the photos that a browser holds, for example when its page is closed."""
        with self._lock:
            self._holds.release_all(browser)

    def state(self) -> State:
        """Return the progress."""
        with self._lock:
            book, pool, fit = self._book, self._pool, self._background
            none = book.per_label[""]
            return State(
                labels=tuple(book.labels),
                strategy=self._chooser.strategy,
                photos=len(self._candidates),
                labelled=len(book.given) - none,
                test=book.test,
                none_of_these=none,
                skipped=len(book.skipped),
                near_duplicates=len(pool.near),
                remaining=pool.count_open(self._chooser.strategy),
                per_label={name: book.per_label[name] for name in book.labels},
                accuracy=fit.accuracy,
                curve=tuple(fit.curve),
                fitted_answers=fit.fitted_answers,
                fitting=fit.fitting,
                warning=fit.warning,
                output=str(self._output),
            )

    def photo_uri(self, photo: int) -> str:
        """Return the path or address of a photo, for its thumbnail.

        Raises:
            KeyError: no photo has this id.
        """
        self._check_id(photo)
        return self._candidates.uris[photo]

    def wait_idle(self, timeout: float = 60.0) -> bool:
        """Wait until the background has taken all answers into account; return whether it has."""
        return self._background.wait_idle(timeout)

    def close(self) -> None:
        """End the background thread, write the output and release the lock on it. May be called twice."""
        self._background.stop()
        with self._writing:
            try:
                self._write_output()
            finally:
                self._journal.close()

    def _make_cards(self, rows: dict[int, str]) -> tuple[PhotoCard, ...]:
        """Return what the page shows of photos."""
        # A suggestion sways who answers, and the test set would then favour the classifier it measures.
        open_rows = [row for row, origin in rows.items() if origin != Strategy.RANDOM]
        suggestions = dict(
            zip(open_rows, self._background.suggest(open_rows, _SUGGESTIONS), strict=True),
        )
        cards = []
        for row, origin in rows.items():
            suspect = self._suspects.get(row)
            cards.append(
                PhotoCard(
                    row,
                    self._candidates.uris[row].rpartition("/")[2],
                    suggestions.get(row, ()),
                    str(origin),
                    suspect.given_label if suspect else "",
                    tuple(Neighbours(*part) for part in suspect.neighbours) if suspect else (),
                )
            )
        return tuple(cards)

    # --- Checks ---------------------------------------------------------------------------------------

    def _check_strategy(self, strategy: Strategy) -> None:
        has_suspects = bool(self._suspects)
        if (strategy is Strategy.SUSPECTS) != has_suspects:
            raise InputError(
                "There are no suspected label errors to check in this session."
                if not has_suspects
                else f"This session checks suspected label errors; it has no strategy {strategy}.",
                remedy="Start another hubhead label with the other --strategy.",
            )

    def _check_id(self, row: int) -> None:
        if not 0 <= row < len(self._candidates):
            raise KeyError(row)

    def _check_answerable(self, browser: str, row: int) -> None:
        """Check that a browser may answer a photo."""
        self._check_id(row)
        holder = self._holds.holder(row)
        given = self._book.given.get(self._candidates.sha256(row))
        if holder not in (None, browser) or (
            holder is None and given is not None and given.entry.browser != browser
        ):
            raise AnswerConflict(
                "Another browser has this photo.", remedy="Go on with the next one: nothing was changed."
            )

    def _to_journal(self, answer: Answer) -> journal.JournalAnswer:
        """Return the answer as the journal keeps it."""
        row = answer.photo
        if answer.label and answer.label not in self._book.labels:
            raise InputError(f"The label {answer.label!r} is unknown.", remedy="Add it with n first.")
        sha = self._candidates.sha256(row)
        given = self._book.given.get(sha)
        strategy = self._holds.strategy(row) or (given.answer.strategy if given else "")
        # After a restart nothing is held: only random photos are chosen among the reserved ones.
        strategy = strategy or (Strategy.RANDOM if self._pool.reserved[row] else self._chooser.strategy)
        seconds = answer.seconds if math.isfinite(answer.seconds) else 0.0
        return journal.JournalAnswer(
            uri=self._candidates.uris[row],
            sha256=sha,
            label=answer.label,
            strategy=str(strategy),
            seconds=round(max(seconds, 0.0), 3),
            test=strategy == Strategy.RANDOM,
        )

    # --- Changing -------------------------------------------------------------------------------------

    def _write(self, entry: journal.Entry) -> None:
        """Write an entry to the journal and apply it."""
        number = self._journal.append(entry)
        with self._lock:
            self._book.apply(number, entry)

    def _write_output(self) -> None:
        with self._lock:
            rows = list(self._book.iter_rows(self._candidates.aliases))
        write_output(self._output, rows, corrections=bool(self._suspects))

    def _note_change(self, sha: str) -> None:
        row = self._candidates.find_row(sha)
        if row is not None:
            self._pool.set_answered(row, sha in self._book.given)


def _now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
