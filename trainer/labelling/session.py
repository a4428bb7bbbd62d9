"""State behind the labelling page: the answers, the queue, and the photos that each browser holds."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.labelling.types import Answer, Batch, Mode, State, Strategy


class LabellingSession:
    """One labelling session with its output; the page (trainer.labelling.app) is written on these methods.

    All methods may be called by any thread. None waits for a fit: a new head is fitted and the queue is
    reordered by a background thread. `answer`, `undo`, `skip` and `add_label` sync the journal to disk
    before they return, a few milliseconds, so call them with asyncio.to_thread; the others need no disk.

    A browser is named by a random text of its own, such as 128 bits in sessionStorage. It holds the photos
    that were handed out to it until it answers, skips or releases them, or has not been heard of for
    HOLD_SECONDS; no other browser gets them meanwhile.

    Raises (all methods that write):
        AnswerNotKept: the journal cannot be written, for example because the disk is full. Nothing has
            changed, and the same call may be made again.
    """

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
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def skip(self, browser: str, photos: Sequence[int]) -> State:
        """Release photos without an answer; they come again after all others. Raises as `answer`."""
        raise NotImplementedError

    def undo(self, browser: str) -> tuple[int, ...]:
        """Take back the last answers or skip of a browser, which then holds these photos again.

        Returns:
            The ids of the photos, which the next call of `next_photos` returns first; none if there is
            nothing to take back. May be called repeatedly, back to the beginning of the session.
        """
        raise NotImplementedError

    def add_label(self, browser: str, name: str) -> tuple[str, ...]:
        """Add a label and return all of them; one that exists is no error.

        Raises:
            InputError: the name is empty, has a line break, or differs from another only in case, space
                or Unicode form.
            AnswerNotKept: see above.
        """
        raise NotImplementedError

    def release(self, browser: str) -> None:
        """Release the photos that a browser holds, for example when its page is closed."""
        raise NotImplementedError

    def state(self) -> State:
        """Return the progress."""
        raise NotImplementedError

    def photo_uri(self, photo: int) -> str:
        """Return the path or address of a photo, for its thumbnail.

        Raises:
            KeyError: no photo has this id.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the background thread, write the output and release the lock on it. May be called twice."""
        raise NotImplementedError
