"""Admission control of one version: the rows that are queued and running, and how long a row takes."""

from __future__ import annotations

import math
from collections import Counter

from serving.server.batching.queue import MAX_QUEUED_ROWS_PER_THREAD, FairQueue, Queue, Request
from serving.server.config.settings import BatchingParameters
from serving.server.status_error import queue_full

ADMISSION_HEADROOM = 0.5
"""Fraction of a request's remaining time in which its result must be expected; the rest absorbs varying speed
and the network. A shorter queue costs no throughput under steady load."""

EWMA_WEIGHT = 0.2
"""Weight of the latest batch in the exponentially weighted average of seconds per row."""


class Load:
    """The load of one version; guard it by a lock.

    Attributes:
        queued_rows: number of rows that wait.
        running_rows: number of rows that run.
    """

    def __init__(self, policy: BatchingParameters) -> None:
        self.queued_rows = self.running_rows = 0
        self._policy = policy
        self._rows_by_caller: Counter[str] = Counter()  # of the queued rows; callers with none are removed
        self._seconds_per_row = 0.0  # on one thread; 0.0 until the first batch has run

    def count_queued(self, caller: str, rows: int) -> None:
        """Add to the number of a caller's queued rows."""
        self.queued_rows += rows
        self._rows_by_caller[caller] += rows
        if not self._rows_by_caller[caller]:
            del self._rows_by_caller[caller]

    def observe(self, seconds_per_row: float) -> None:
        """Update the average with a batch that has run."""
        weight = EWMA_WEIGHT if self._seconds_per_row else 1
        self._seconds_per_row += (seconds_per_row - self._seconds_per_row) * weight

    def check(self, request: Request, queue: Queue | FairQueue, now: float) -> None:
        """Reject a request that finds no room in the queue, or that cannot meet its deadline.

        Args:
            request: the request.
            queue: queue that it would join.
            now: time.monotonic().

        Raises:
            StatusError: it is rejected.
        """
        policy = self._policy
        if isinstance(queue, Queue):  # the limit is per queue, and deadlines do not count
            if queue.count_batches_with(request.rows) > policy.max_enqueued_batches:
                raise queue_full(len(queue), policy.max_enqueued_batches)
            return
        if not self.queued_rows:  # so a request larger than the limit is accepted too
            return
        # Rows that a caller may have in the queue; the first request of each is accepted.
        own = self._rows_by_caller.get(request.caller, 0) + request.rows
        capacity = MAX_QUEUED_ROWS_PER_THREAD * policy.num_batch_threads
        is_full = own > max(capacity, request.rows)
        if request.deadline is not None and self._seconds_per_row:
            # Rows that all threads finish within the headroom, minus those that are running; compared with
            # the rows that run until this request is finished. Another caller has as many turns until then.
            usable_seconds = (request.deadline - now) * ADMISSION_HEADROOM
            rows_in_time = int(usable_seconds * policy.num_batch_threads / self._seconds_per_row)
            capacity = min(capacity, rows_in_time - self.running_rows)
            others = (rows for caller, rows in self._rows_by_caller.items() if caller != request.caller)
            ahead = own + sum(min(rows, own) for rows in others)
            is_full = is_full or ahead > rows_in_time - self.running_rows
        if is_full:
            waiting = math.ceil(self.queued_rows / policy.batch_rows)
            raise queue_full(waiting, max(capacity, 0) // policy.batch_rows)
