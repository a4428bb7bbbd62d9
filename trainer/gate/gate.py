"""The gate before a bundle goes live: always a verdict, with every check, its figure and its limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving import bundle, contract
from serving.bundle import Bundle, training_digests
from serving.errors import HubheadError, InputError
from serving.registry import audit, verdict
from serving.registry.stores.local import file_sizes
from serving.registry.stores.store import Say, silent
from serving.registry.verdict import Check, Verdict
from serving.storage.address import Address
from trainer.dataset.labelled_photos import EvaluationPhoto, sample_evenly
from trainer.gate import parity, thresholds
from trainer.gate.thresholds import Limits

if TYPE_CHECKING:
    from serving.runtime import Model

PARITY_PHOTOS = 64
"""Photos that every path is asked about; accuracy is measured on all of them."""

LATENCY_PHOTOS = 16


@dataclass
class _Checks:
    """What was found so far."""

    say: Say
    found: list[Check] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A part of the gate; that it fails is a finding like any other."""
        self.say(name)
        try:
            yield
        except HubheadError as error:
            self.found.append(Check(name, False, detail=error.what))

    def passed(self, name: str, detail: str = "") -> None:
        self.found.append(Check(name, True, detail=detail))


def validate(
    candidate: Path,
    *,
    live: Path | None = None,
    live_origin: Address | None = None,
    photos: Sequence[EvaluationPhoto] = (),
    allowed: Limits | None = None,
    force: bool = False,
    say: Say = silent,
) -> Verdict:
    """Judge a bundle, and write the verdict into it.

    Args:
        candidate: the bundle; its own directory or the base path above its versions.
        live: the version that it would replace; None: it is judged by itself.
        live_origin: where that one is kept, for the verdict; None: at its path.
        photos: to ask all paths about, and where they have labels to compare both versions by; none: a
            generated photo.
        allowed: how much worse than the live version it may be.
        force: whether it is blessed in spite of what is found, which the verdict says.
        say: told of each step.

    Raises:
        BundleError: one of the two is no bundle.
        InputError: it has no head, or both are the same.
        OutputError: the verdict cannot be written.
    """
    allowed = allowed or Limits()
    new = _with_head(candidate)
    old = _with_head(live) if live else None
    if old and old.path.resolve() == new.path.resolve():
        raise InputError(
            f"{new.path} is both the candidate and the live version.",
            remedy="Give --live the version directory that is live now.",
        )
    content = verdict.digest(new.path)
    checks = _Checks(say)
    model = _by_itself(new, [photo.content for photo in sample_evenly(photos, PARITY_PHOTOS)], checks)
    if old:
        checks.found += thresholds.recorded(new.metadata, old.metadata, allowed)
        checks.found += thresholds.labels_changed(new.metadata.labels, old.metadata.labels)
        sizes = [sum(file_sizes(one.path).values()) / 1e6 for one in (new, old)]
        checks.found.append(thresholds.ratio("size", sizes[0], sizes[1], allowed.size, "MB"))
        if model:
            _against(new, model, old, photos, allowed, checks)
    found = Verdict(
        content,
        tuple(checks.found),
        str(live_origin or old.path) if old else None,
        audit.now(),
        forced=force and any(check.passed is False for check in checks.found),
    )
    verdict.write(new.path, found)
    return found


def _with_head(path: Path) -> Bundle:
    found = bundle.read(path)
    if not found.metadata.labels:
        raise InputError(
            f"{found.path} is a headless bundle: it has no answers to judge.",
            remedy="Give one that hubhead train made.",
        )
    return found


def _by_itself(new: Bundle, images: Sequence[bytes], checks: _Checks) -> Model | None:
    """Load it in every way, ask it everything; None where the runtime does not load it."""
    from serving import runtime
    from serving.runtime.session import PARITY_TOLERANCE, ClassicSession, check_answers, sample_jpeg

    labels = len(new.metadata.labels)
    answers = {}
    with checks.step("loads as in TensorFlow Serving"), ClassicSession(new.path) as session:
        checks.passed("loads as in TensorFlow Serving", "the v1 loader, tag serve")
        images = images or [sample_jpeg()]
        with checks.step("refuses what is no photo"):
            check_answers(session, new.metadata.labels)
            checks.passed("refuses what is no photo", "a text, an empty file, an empty batch")
        with checks.step("answers in a classic session"):
            answers["a classic session"] = parity.run_all(session.run, images, labels)
    model = None
    with checks.step("loads in the runtime"):
        model = runtime.load(new.path)
        missing = [name for name in parity.SIGNATURES if name not in model.signatures]
        checks.found.append(
            Check(
                "signatures",
                not missing,
                len(parity.SIGNATURES) - len(missing),
                len(parity.SIGNATURES),
                f"missing: {', '.join(missing)}" if missing else ", ".join(parity.SIGNATURES),
            )
        )
        answers["the runtime"] = parity.run_all(model.run, images, labels)
    if model:
        with checks.step("loads and warms up in the local server"), parity.served(new.path, model) as client:
            checks.found.append(_warmup(new.path))
            answers["the local server"] = parity.run_all(client.run, images, labels)
            checks.passed("loads and warms up in the local server")
    if len(answers) > 1:
        checks.found += parity.agreement(answers, PARITY_TOLERANCE)
    return model


def _warmup(directory: Path) -> Check:
    """A server that never saw a request warms nothing up by itself."""
    from serving.server.models.warmup import records

    path = directory / contract.WARMUP_FILE
    count = sum(1 for _ in records(path)) if path.is_file() else 0
    return Check(
        "warm-up requests", count > 0, count, 1, "" if count else f"there is no {contract.WARMUP_FILE}"
    )


def _against(
    new: Bundle,
    model: Model,
    old: Bundle,
    photos: Sequence[EvaluationPhoto],
    allowed: Limits,
    checks: _Checks,
) -> None:
    """Both versions on the same photos."""
    from serving import runtime
    from serving.runtime import session

    with checks.step("the live version answers"):
        other = runtime.load(old.path)
        timed = [photo.content for photo in sample_evenly(photos, LATENCY_PHOTOS)] or [session.sample_jpeg()]
        mine, theirs = (1e3 * seconds for seconds in parity.seconds_a_photo((model, other), timed))
        checks.found.append(thresholds.ratio("latency", mine, theirs, allowed.latency, "ms a photo"))
        judged, left_out, unknown = _unseen(new, old, photos)
        if not judged and not left_out:
            return
        why = "trained on by one of the two"
        if unknown:
            why += f"; it is not known which photos {', '.join(unknown)} was trained on: some may flatter it"
        checks.found.append(Check("photos left out", None, left_out, None, why))
        if not judged:
            return
        images = [photo.content for photo in judged]
        rows, usable = parity.probabilities(model, images)
        live_rows, live_usable = parity.probabilities(other, images)
        both = usable & live_usable
        if not both.any():
            checks.found.append(Check("accuracy on the photos", None, detail="no photo can be decoded"))
            return
        truth = [photo.label or "" for photo, taken in zip(judged, both, strict=True) if taken]
        checks.found += thresholds.on_photos(
            (rows[both], new.metadata.labels), (live_rows[both], old.metadata.labels), truth, allowed
        )


def _unseen(
    new: Bundle, old: Bundle, photos: Sequence[EvaluationPhoto]
) -> tuple[list[EvaluationPhoto], int, list[str]]:
    """The photos of labels that both know and that neither was trained on.

    Also how many of those labels are left out, and the bundles whose photos are not known.
    """
    shared = set(new.metadata.labels) & set(old.metadata.labels)
    labelled = [photo for photo in photos if photo.label in shared]
    if not labelled:
        return [], 0, []
    marks = training_digests.truncate_digests(photo.sha256 for photo in labelled)
    seen = np.zeros(len(labelled), bool)
    unknown: list[str] = []
    for one in (new, old):
        known = training_digests.read(one.path)
        if known is None:
            unknown.append(str(one.path))
        else:
            seen |= np.isin(marks, known)
    unseen = [photo for photo, out in zip(labelled, seen, strict=True) if not out]
    return unseen, int(seen.sum()), unknown
