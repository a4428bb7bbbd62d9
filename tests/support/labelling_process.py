"""A process that labels synthetic photos as fast as it can, to be killed or to run out of disk space.

It prints the number of each photo whose answer was confirmed, one a line.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

from tests.support.labelling import LABELS, make_candidates
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import Answer, AnswerNotKept

PHOTOS = 3000
BROWSER = "browser-1"


def label_all(output: Path, limit: int) -> None:
    """Answer photo after photo.

    Args:
        output: path of labels.csv.
        limit: number of bytes to which the journal may grow until the first failure; 0 for any.
    """
    photos = make_candidates(PHOTOS)
    settings = SessionSettings(labels=LABELS, near_threshold=2.0, by="ann")
    session = LabellingSession(photos.candidates, output, settings)
    session.wait_idle()
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    while shown := session.next_photos(BROWSER).photos:
        row = shown[0].id
        try:
            session.answer(BROWSER, [Answer(row, photos.label(row), 0.5)])
        except AnswerNotKept as error:
            print(f"full: {error}", flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            limit = -1
            continue
        print(row, flush=True)
        if limit < 0:
            break
    session.close()


if __name__ == "__main__":
    label_all(Path(sys.argv[1]), int(sys.argv[2]))
