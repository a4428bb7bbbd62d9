"""Gate before a bundle goes live: runs all checks and always writes a verdict with figures and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from batch.embeddings import EmbeddingStore, default_root, hash_photo
from batch.inputs.listing import read_photo, stat_photo
from serving import bundle, contract
from serving.bundle import Bundle, training_digests
from serving.bundle.training_digests import TestPhotos
from serving.errors import HubheadError, InputError
from serving.photos.converter import EXTRA
from serving.registry import audit, verdict
from serving.registry.stores.store import Say, silent
from serving.registry.verdict import Check, Verdict
from serving.storage.address import Address
from serving.storage.files import is_remote, walk_files
from serving.storage.names import normalize
from trainer.dataset import Example, LabelledPhoto
from trainer.export.checks import check_answers, sample_jpeg
from trainer.export.head_file import load_head
from trainer.gate import parity, thresholds
from trainer.gate.comparison import compare_predictions, select_photos
from trainer.gate.predictions import open_converter, predict
from trainer.gate.thresholds import RegressionLimits

if TYPE_CHECKING:
    from serving.runtime import Model

T = TypeVar("T")

PARITY_PHOTOS = 64
"""Maximum number of photos for the parity check of all paths, whose bytes are kept in memory."""

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
    photos: Sequence[LabelledPhoto] = (),
    embedding_store: str = "",
    limits: RegressionLimits | None = None,
    force: bool = False,
    say: Say = silent,
) -> Verdict:
    """Run all checks on a candidate and write the verdict into its bundle.

    Args:
        candidate: directory of the bundle, or the base path above its versions for the newest one.
        live: version that it would replace; None to skip the comparison.
        live_origin: path or address of the live version, for the verdict; None if it is `live` itself.
        photos: photos for the parity check; if empty, a generated photo is used. Both versions are compared
            on those with a label, in addition to the candidate's test photos.
        embedding_store: directory of the embedding store; "" for the default.
        limits: how much worse than the live version the candidate may be.
        force: True to bless the candidate whatever the checks find; the verdict records that.
        say: called with one line of progress per step.

    Raises:
        BundleError: one of the two is not a bundle, or has no head.
        InputError: they are the same bundle, or no photo can be read.
        OutputError: the verdict cannot be written.
    """
    from serving import runtime

    limits = limits or RegressionLimits()
    new, old = bundle.read(candidate), bundle.read(live) if live else None
    for version in filter(None, (new, old)):
        version.require_head("predictions to evaluate")
    if old and old.path.resolve() == new.path.resolve():
        raise InputError(
            f"{new.path} is both the candidate and the live version.",
            remedy="Give --live the directory of the version that is live now.",
        )
    content = verdict.digest(new.path)
    checks = _CheckList(say)
    images = read_sample(new, photos)
    model = _check_alone(new, images, checks)
    if old:
        checks.found += thresholds.list_label_changes(new.metadata.labels, old.metadata.labels)
        sizes = [sum(size for _, size in walk_files(str(one.path))) / 1e6 for one in (new, old)]
        checks.found.append(thresholds.check_ratio("size", sizes[0], sizes[1], limits.size, "MB"))
        with checks.run_step("the live version runs"):
            live_model = runtime.load(old.path)
            if model:
                timed = _sample_evenly(images, LATENCY_PHOTOS) or [sample_jpeg()]
                mine, theirs = (1e3 * time for time in parity.measure_latency((model, live_model), timed))
                latency = thresholds.check_ratio("latency", mine, theirs, limits.latency, "ms per photo")
                checks.found.append(latency)
            store = embedding_store or default_root()
            checks.found += _compare_with_live((new, model), (old, live_model), photos, store, limits)
    found = Verdict(
        content,
        tuple(checks.found),
        str(live_origin or old.path) if old else None,
        audit.now(),
        forced=force and any(check.passed is False for check in checks.found),
    )
    verdict.write(new.path, found)
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
    from serving.runtime.session import PARITY_TOLERANCE, ClassicSession

    labels = len(new.metadata.labels)
    answers = {}
    with checks.run_step("loads as in TensorFlow Serving"), ClassicSession(new.path) as session:
        checks.add_passed("loads as in TensorFlow Serving", "the v1 loader, tag serve")
        images = images or [sample_jpeg()]
        with checks.run_step("rejects invalid photos"):
            check_answers(session.run, new.metadata.labels)
            checks.add_passed("rejects invalid photos", "text, an empty file, an empty batch")
        with checks.run_step("runs in a classic session"):
            answers["a classic session"] = parity.run_signatures(session.run, images, labels)
    model = None
    with checks.run_step("loads in the runtime"):
        model = runtime.load(new.path)
        missing = [name for name in parity.SIGNATURES if name not in model.signatures]
        every = len(parity.SIGNATURES)
        detail = f"missing: {', '.join(missing)}" if missing else ", ".join(parity.SIGNATURES)
        checks.found.append(Check("signatures", not missing, every - len(missing), every, detail))
        answers["the runtime"] = parity.run_signatures(model.run, images, labels)
        # The comparison with the live version uses the head file.
        head, _ = load_head(new.path / contract.HEAD_FILE, new.metadata)
        checks.found.append(parity.check_head(head, model.run, images, PARITY_TOLERANCE))
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
    from serving.storage.tfrecord import read_records

    path = directory / contract.WARMUP_FILE
    count = sum(1 for _ in read_records(path)) if path.is_file() else 0
    detail = "" if count else f"{contract.WARMUP_FILE} is missing"
    return Check("warm-up requests", count > 0, count, 1, detail)


def _compare_with_live(
    new: tuple[Bundle, Model | None],
    old: tuple[Bundle, Model | None],
    photos: Sequence[LabelledPhoto],
    store_root: str,
    limits: RegressionLimits,
) -> list[Check]:
    """Compare the candidate with the live version: on the same photos, or by the recorded figures."""
    examples, left_out = _collect_examples(new[0], photos, store_root)
    labels = new[0].metadata.labels
    usable = select_photos(examples, labels, old[0], new[0])
    usable = replace(usable, left_out={**left_out, **usable.left_out})
    predictions = [predict(version, usable.examples, store_root, model) for version, model in (new, old)]
    same_backbone = new[0].metadata.fingerprint == old[0].metadata.fingerprint
    try:
        comparison = compare_predictions(old[0], labels, usable, *predictions, same_backbone=same_backbone)
    except InputError as error:
        return thresholds.judge_recorded(new[0].metadata, old[0].metadata, limits, error.what)
    return thresholds.judge(comparison, limits)


def _collect_examples(
    new: Bundle, photos: Sequence[LabelledPhoto], store_root: str
) -> tuple[list[Example], dict[str, int]]:
    """Return the labelled photos and the candidate's test photos, distinct by content.

    Digests of photos that are in the store come from its index, and so do addresses of the test photos.

    Returns:
        Photos of the candidate's labels; number of other photos, by reason.
    """
    index = {normalize(label): number for number, label in enumerate(new.metadata.labels)}
    given = {photo.photo: normalize(photo.label) for photo in photos if photo.label is not None}
    store = EmbeddingStore(store_root, new.metadata.fingerprint, new.metadata.dimension)
    listed = {photo: label for photo, label in given.items() if label in index}
    known = store.lookup_digests(listed)
    found: dict[str, Example] = {}
    unreadable = 0
    for photo, label in listed.items():
        try:
            sha256 = (known.get(photo) or hash_photo(read_photo(photo))).hex()
        except OSError:
            unreadable += 1
        else:
            found.setdefault(sha256, Example(photo.uri, sha256, index[label]))
    tested = training_digests.read_test_photos(new.path) or TestPhotos((), ())
    uris = store.find_uris(map(bytes.fromhex, tested.sha256))
    for sha256, label in zip(tested.sha256, tested.labels, strict=True):
        # Of the addresses of one content, a file that has been moved no longer exists.
        addresses = uris.get(bytes.fromhex(sha256), ())
        places = (uri for uri in addresses if is_remote(uri) or stat_photo(uri).size)
        found.setdefault(sha256, Example(next(places, ""), sha256, index[normalize(label)]))
    foreign = len(given) - len(listed)
    return list(found.values()), {
        "of labels that the new version does not know": foreign,
        "that cannot be read": unreadable,
    }


def read_sample(new: Bundle, photos: Sequence[LabelledPhoto]) -> list[bytes]:
    """Return a sample of the photos in a format that the candidate decodes.

    Raises:
        InputError: there are photos, but none of the sample can be used.
    """
    images = []
    with open_converter(new) as converter:
        for photo in _sample_evenly(photos, PARITY_PHOTOS):
            with suppress(OSError):
                images.append(converter.convert_if_needed(read_photo(photo.photo)))
    usable = [image for image in images if isinstance(image, bytes)]
    if photos and not usable:
        raise InputError(
            f"None of the photos can be read and decoded; {photos[0].photo.uri} is an example.",
            remedy=f"Add JPEG, PNG, GIF, BMP or WebP; {EXTRA} converts other formats.",
        )
    return usable


def _sample_evenly(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at even distances, so that every label is represented."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
