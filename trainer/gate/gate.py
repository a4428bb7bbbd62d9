"""Gate before a bundle goes live: runs all checks and always writes a verdict with figures and limits."""

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
from trainer.gate.thresholds import RegressionLimits

if TYPE_CHECKING:
    from serving.runtime import Model

PARITY_PHOTOS = 64
"""Maximum number of photos for the parity check of all paths; accuracy is measured on all photos."""

LATENCY_PHOTOS = 16
"""Maximum number of photos for the latency measurement."""


@dataclass
class _CheckList:
    """Results of the checks made so far."""

    say: Say
    found: list[Check] = field(default_factory=list)

    @contextmanager
    def run_step(self, name: str) -> Iterator[None]:
        """Run a step of the gate; an error in it becomes a failed check, and the gate continues."""
        self.say(name)
        try:
            yield
        except HubheadError as error:
            self.found.append(Check(name, False, detail=error.what))

    def add_passed(self, name: str, detail: str = "") -> None:
        self.found.append(Check(name, True, detail=detail))


def validate(
    candidate: Path,
    *,
    live: Path | None = None,
    live_origin: Address | None = None,
    photos: Sequence[EvaluationPhoto] = (),
    limits: RegressionLimits | None = None,
    force: bool = False,
    say: Say = silent,
) -> Verdict:
    """Run all checks on a candidate and write the verdict into its bundle.

    Args:
        candidate: directory of the bundle, or the base path above its versions for the newest one.
        live: version that it would replace; None to skip the comparison.
        live_origin: path or address of the live version, for the verdict; None if it is `live` itself.
        photos: photos for the parity check; those with a label also measure the accuracy of both versions.
            If empty, a generated photo is used.
        limits: how much worse than the live version the candidate may be.
        force: True to bless the candidate whatever the checks find; the verdict records that.
        say: called with one line of progress per step.

    Raises:
        BundleError: one of the two is not a bundle.
        InputError: the candidate or the live version has no head, or they are the same bundle.
        OutputError: the verdict cannot be written.
    """
    limits = limits or RegressionLimits()
    new = _read_with_head(candidate)
    old = _read_with_head(live) if live else None
    if old and old.path.resolve() == new.path.resolve():
        raise InputError(
            f"{new.path} is both the candidate and the live version.",
            remedy="Give --live the directory of the version that is live now.",
        )
    content = verdict.digest(new.path)
    checks = _CheckList(say)
    model = _check_alone(new, [photo.content for photo in sample_evenly(photos, PARITY_PHOTOS)], checks)
    if old:
        checks.found += thresholds.compare_recorded_metrics(new.metadata, old.metadata, limits)
        checks.found += thresholds.list_label_changes(new.metadata.labels, old.metadata.labels)
        sizes = [sum(file_sizes(one.path).values()) / 1e6 for one in (new, old)]
        checks.found.append(thresholds.check_ratio("size", sizes[0], sizes[1], limits.size, "MB"))
        if model:
            _compare_with_live(new, model, old, photos, limits, checks)
    found = Verdict(
        content,
        tuple(checks.found),
        str(live_origin or old.path) if old else None,
        audit.now(),
        forced=force and any(check.passed is False for check in checks.found),
    )
    verdict.write(new.path, found)
    return found


def _read_with_head(path: Path) -> Bundle:
    found = bundle.read(path)
    if not found.metadata.labels:
        raise InputError(
            f"{found.path} is a headless bundle: it has no predictions to evaluate.",
            remedy="Give a bundle made by hubhead train.",
        )
    return found


def _check_alone(new: Bundle, images: Sequence[bytes], checks: _CheckList) -> Model | None:
    """Check the candidate alone: load it in every way and compare the answers of all paths.

    Args:
        new: candidate.
        images: encoded photos; if empty, a generated photo is used.
        checks: list that the results are added to.

    Returns:
        The model as loaded by the runtime; None if the runtime does not load it.
    """
    from serving import runtime
    from serving.runtime.session import PARITY_TOLERANCE, ClassicSession, check_answers, sample_jpeg

    labels = len(new.metadata.labels)
    answers = {}
    with checks.run_step("loads as in TensorFlow Serving"), ClassicSession(new.path) as session:
        checks.add_passed("loads as in TensorFlow Serving", "the v1 loader, tag serve")
        images = images or [sample_jpeg()]
        with checks.run_step("rejects invalid photos"):
            check_answers(session, new.metadata.labels)
            checks.add_passed("rejects invalid photos", "text, an empty file, an empty batch")
        with checks.run_step("runs in a classic session"):
            answers["a classic session"] = parity.run_signatures(session.run, images, labels)
    model = None
    with checks.run_step("loads in the runtime"):
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
        answers["the runtime"] = parity.run_signatures(model.run, images, labels)
    if model:
        with (
            checks.run_step("loads and warms up in the local server"),
            parity.serve_locally(new.path, model) as client,
        ):
            checks.found.append(_check_warmup(new.path))
            answers["the local server"] = parity.run_signatures(client.run, images, labels)
            checks.add_passed("loads and warms up in the local server")
    if len(answers) > 1:
        checks.found += parity.check_agreement(answers, PARITY_TOLERANCE)
    return model


def _check_warmup(directory: Path) -> Check:
    """Check that the bundle has warm-up requests: without them a server warms nothing up."""
    from serving.server.models.warmup import read_records

    path = directory / contract.WARMUP_FILE
    count = sum(1 for _ in read_records(path)) if path.is_file() else 0
    return Check(
        "warm-up requests", count > 0, count, 1, "" if count else f"{contract.WARMUP_FILE} is missing"
    )


def _compare_with_live(
    new: Bundle,
    model: Model,
    old: Bundle,
    photos: Sequence[EvaluationPhoto],
    limits: RegressionLimits,
    checks: _CheckList,
) -> None:
    """Compare the candidate with the live version on the same photos: latency, accuracy and log-loss."""
    from serving import runtime
    from serving.runtime import session

    with checks.run_step("the live version runs"):
        live_model = runtime.load(old.path)
        timed = [photo.content for photo in sample_evenly(photos, LATENCY_PHOTOS)] or [session.sample_jpeg()]
        mine, theirs = (1e3 * seconds for seconds in parity.measure_latency((model, live_model), timed))
        checks.found.append(thresholds.check_ratio("latency", mine, theirs, limits.latency, "ms per photo"))
        unseen, left_out, unknown = _select_unseen(new, old, photos)
        if not unseen and not left_out:
            return
        why = "used for the training of one of the two versions"
        if unknown:
            why += (
                f"; the training photos of {', '.join(unknown)} are unknown: its accuracy may be optimistic"
            )
        checks.found.append(Check("photos left out", None, left_out, None, why))
        if not unseen:
            return
        images = [photo.content for photo in unseen]
        rows, usable = parity.predict_probabilities(model, images)
        live_rows, live_usable = parity.predict_probabilities(live_model, images)
        both = usable & live_usable
        if not both.any():
            checks.found.append(
                Check("accuracy on the photos", None, detail="no photo can be decoded by both versions")
            )
            return
        truth = [photo.label or "" for photo, taken in zip(unseen, both, strict=True) if taken]
        checks.found += thresholds.compare_on_photos(
            (rows[both], new.metadata.labels), (live_rows[both], old.metadata.labels), truth, limits
        )


def _select_unseen(
    new: Bundle, old: Bundle, photos: Sequence[EvaluationPhoto]
) -> tuple[list[EvaluationPhoto], int, list[str]]:
    """Select the labelled photos that neither version was trained on.

    Returns:
        Photos with a label that both versions know, without those seen in training; number of photos left
        out for that; paths of the bundles that do not record their training photos.
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
