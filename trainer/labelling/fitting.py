"""Background of a labelling session: fits the classifier on the answers and ranks the photos again."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import HubheadError
from serving.text import first_line
from trainer.evaluation.metrics import proportion
from trainer.heads import Ints, Vectors
from trainer.labelling.answers import AnswerBook
from trainer.labelling.classifier import Classifier, Model, fit_classifier
from trainer.labelling.pool import Pool
from trainer.labelling.ranking import CANDIDATES, Covering, Predictions, predict, rank
from trainer.labelling.types import CurvePoint, Interval, Strategy, Suggestion

_log = logging.getLogger(__name__)

_MAX_PAUSE = 30.0
"""Maximum seconds between two rounds. The pause is as long as the last round, so that one core is left."""

NICENESS = 10
"""Niceness of the background: beside a busy thread it gets a tenth of a core."""

_MAX_POINTS = 200
"""Points of the learning curve from which on every second one is dropped."""

_LOW = 32
"""Photos in the queue below which it is ranked again without new answers."""


@dataclass(frozen=True)
class LabelledSet:
    """Photos that have labels already.

    Attributes:
        labels: label names.
        embeddings: float32 or float16 [N,D].
        targets: int64 [N], indices into the labels.
        digests: sha256 of each photo in hex; an answer about the same content replaces the label.
    """

    labels: tuple[str, ...]
    embeddings: Vectors
    targets: Ints
    digests: Sequence[str]


@dataclass(frozen=True)
class _Work:
    """Snapshot of the answers that a round works on.

    Attributes:
        labels: label names.
        rows: answered photos to train on, int64.
        targets: their labels, int64.
        kept: rows of the labelled set that no answer replaces, int64.
        test_rows: answered photos of the test set, int64.
        test_targets: their labels, int64.
        strategy: strategy to rank by.
        revision: number of the request that the snapshot serves.
    """

    labels: tuple[str, ...]
    rows: Ints
    targets: Ints
    kept: Ints
    test_rows: Ints
    test_targets: Ints
    strategy: Strategy
    revision: int


class BackgroundFit:
    """Thread that fits, predicts, ranks and writes the output whenever answers have changed.

    Args:
        book: the answers.
        pool: the photos; its predictions and queue are replaced.
        lock: lock of both.
        write_output: writes the answers of the book to the output.
        model: existing model; None for none.
        labelled: photos that have labels already; None for none. The model was fitted on photos like these,
            so that it is used only where there are none.
        seed: seed of fits and ranking.

    Attributes:
        accuracy: accuracy on the test photos; None without a classifier or test photos.
        curve: learning curve.
        fitted_answers: answers that the classifier was fitted on.
        fitting: true during a round.
        warning: last failure; "" for none.
    """

    def __init__(
        self,
        book: AnswerBook,
        pool: Pool,
        lock: threading.RLock,
        write_output: Callable[[], None],
        *,
        model: Model | None,
        labelled: LabelledSet | None,
        seed: int,
    ) -> None:
        self._book, self._pool, self._seed = book, pool, seed
        self._write_output = write_output
        self._model, self._labelled = None if labelled else model, labelled
        self._condition = threading.Condition(lock)
        self._strategy = Strategy.MIXED
        self._requested, self._done = 1, 0
        self._stopping = False
        self._classifier: Classifier | None = None
        self._fitted_on: tuple[object, ...] | None = None
        self._thread = threading.Thread(target=self._run, name="labelling-fit", daemon=True)
        self.accuracy: Interval | None = None
        self.curve: list[CurvePoint] = []
        self.fitted_answers = 0
        self.fitting = False
        self.warning = ""

    def start(self) -> None:
        """Start the thread; its first round begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its round. May be called twice."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._thread.join()

    def request(self) -> None:
        """Ask for a round."""
        with self._condition:
            self._requested += 1
            self._condition.notify_all()

    def request_if_low(self) -> None:
        """Ask for a round if the queue runs out and more photos are open than are in it."""
        with self._condition:
            queued = self._pool.count_queue(self._strategy)
            idle = self._done == self._requested
            if idle and queued < _LOW < self._pool.count_open(self._strategy) and self._ranks():
                self.request()

    def set_strategy(self, strategy: Strategy) -> None:
        """Set the strategy of the ranking, and ask for a round."""
        with self._condition:
            self._strategy = strategy
            self.request()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until all requests are done; return whether they are."""
        with self._condition:
            return self._condition.wait_for(lambda: self._done == self._requested, timeout)

    def suggest(self, rows: Sequence[int], count: int) -> list[tuple[Suggestion, ...]]:
        """Return the most probable labels of photos, best first; none without a classifier."""
        classifier = self._classifier
        if classifier is None or not rows:
            return [()] * len(rows)
        probabilities = classifier.probabilities(self._pool.candidates.embeddings[list(rows)])
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        return [
            tuple(Suggestion(classifier.labels[k], float(of[k])) for k in order if of[k] > 0)
            for of, order in zip(probabilities, best.tolist(), strict=True)
        ]

    # --- Rounds ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        _lower_priority()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._done < self._requested)
                if self._stopping:
                    return
                work = self._take_snapshot()
                self.fitting = True
            start, warning = time.monotonic(), ""
            try:
                self._work(work)
                self._write_output()
            except HubheadError as error:
                warning = str(error)
            except Exception as error:  # the page goes on with the former head and says why
                _log.exception("The head could not be fitted")
                warning = f"The head could not be fitted: {first_line(error)}"
            with self._condition:
                self.warning, self.fitting, self._done = warning, False, work.revision
                self._condition.notify_all()
                pause = min(time.monotonic() - start, _MAX_PAUSE)
                self._condition.wait_for(lambda: self._stopping, pause)

    def _take_snapshot(self) -> _Work:
        at = {name: place for place, name in enumerate(self._book.labels)}
        candidates = self._pool.candidates
        sets: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for sha, given in self._book.given.items():
            row = candidates.find_row(sha)
            if row is not None and given.answer.label:
                sets[given.answer.test].append((row, at[given.answer.label]))
        train, test = (np.array(found, np.int64).reshape(-1, 2) for found in (sets[False], sets[True]))
        digests = self._labelled.digests if self._labelled else ()
        kept = [place for place, sha in enumerate(digests) if sha not in self._book.given]
        return _Work(
            tuple(self._book.labels),
            train[:, 0],
            train[:, 1],
            np.array(kept, np.int64),
            test[:, 0],
            test[:, 1],
            self._strategy,
            self._requested,
        )

    def _work(self, work: _Work) -> None:
        classifier = self._fit(work)
        embeddings = self._pool.candidates.embeddings
        if classifier is not self._classifier:
            predictions = predict(embeddings, classifier.probabilities) if classifier else None
            score = classifier.novelty if classifier else None
            novelty = score.score(embeddings) if score and work.strategy is Strategy.NOVEL else None
            with self._condition:
                self._classifier = classifier
                self._pool.predictions, self._pool.novelty = predictions, novelty
                self.fitted_answers = len(work.rows) if classifier and classifier.head else 0
        self._measure(work, classifier)
        self._rank(work)

    def _fit(self, work: _Work) -> Classifier | None:
        """Return the classifier for the answers; the former one if nothing has changed that it depends on."""
        key = (
            len(work.labels),
            work.rows.tobytes(),
            work.targets.tobytes(),
            work.kept.tobytes(),
            work.strategy is Strategy.NOVEL,
        )
        if key == self._fitted_on:
            return self._classifier
        vectors: list[Vectors] = [self._pool.candidates.embeddings[work.rows]]
        targets = [work.targets]
        if self._labelled is not None:
            column = np.array([work.labels.index(name) for name in self._labelled.labels], np.int64)
            vectors.append(self._labelled.embeddings[work.kept])
            targets.append(column[self._labelled.targets[work.kept]])
        found = fit_classifier(
            work.labels,
            _concatenate(vectors),
            np.concatenate(targets),
            model=self._model,
            novelty=work.strategy is Strategy.NOVEL,
            seed=self._seed,
        )
        self._fitted_on = key
        return found

    def _measure(self, work: _Work, classifier: Classifier | None) -> None:
        """Evaluate the classifier on the test photos, and add a point to the learning curve."""
        if classifier is None or not len(work.test_rows):
            with self._condition:
                self.accuracy = None
            return
        found = classifier.probabilities(self._pool.candidates.embeddings[work.test_rows]).argmax(axis=1)
        share = proportion(int((found == work.test_targets).sum()), len(found))
        with self._condition:
            self.accuracy = Interval(share.value, share.low, share.high, share.n)
            point = CurvePoint(len(work.rows), self.accuracy)
            if self.curve and self.curve[-1].answers == point.answers:
                self.curve[-1] = point
            else:
                self.curve.append(point)
            if len(self.curve) > _MAX_POINTS:
                del self.curve[1:-1:2]

    def _ranks(self) -> bool:
        """Return whether the strategy has a queue; the order of the others is known."""
        return self._strategy not in (Strategy.RANDOM, Strategy.SUSPECTS)

    def _rank(self, work: _Work) -> None:
        if work.strategy in (Strategy.RANDOM, Strategy.SUSPECTS):
            return
        with self._condition:
            predictions, novelty = self._pool.predictions, self._pool.novelty
            available = self._pool.select(work.strategy, self._find_skipped())
            answered = np.array(self._pool.answered, np.int64)
        covering = self._collect_covering(work, answered, predictions)
        queue = rank(
            work.strategy,
            self._pool.candidates.embeddings,
            predictions=predictions,
            novelty=novelty,
            available=available,
            labelled=covering,
            seed=self._seed + work.revision,
        )
        with self._condition:
            self._pool.install(work.strategy, queue)

    def _collect_covering(
        self, work: _Work, answered: Ints, predictions: Predictions | None
    ) -> Covering | None:
        """Return photos with labels, at most 2 CANDIDATES; None if there are none."""
        vectors: list[Vectors] = [self._pool.candidates.embeddings[answered[-CANDIDATES:]]]
        if self._labelled is not None and len(work.kept):
            random = np.random.default_rng(self._seed)
            vectors.append(self._labelled.embeddings[random.permutation(work.kept)[:CANDIDATES]])
        found = _concatenate(vectors)
        if not len(found):
            return None
        classifier = self._classifier
        if predictions is None or classifier is None:
            return Covering(found)
        return Covering(found, np.asarray(1 - classifier.probabilities(found).max(axis=1), np.float32))

    def _find_skipped(self) -> list[int]:
        found = map(self._pool.candidates.find_row, self._book.skipped)
        return [row for row in found if row is not None]


def _lower_priority() -> None:
    """Let other threads and processes run before this thread and those that it starts.

    The browser that shows the next photo runs on the same cores as a rule.
    """
    if sys.platform == "linux":  # elsewhere a priority belongs to a process, not to a thread
        niceness = max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS)  # lowering it takes privileges
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _concatenate(parts: Sequence[Vectors]) -> Vectors:
    """Return arrays below each other; float16 if all of them are."""
    found: Any = np.concatenate(parts)
    return found
