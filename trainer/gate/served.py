"""Agreement of a running server with the bundle that it serves, on the same photos.

A server's settings can change its results: mixed precision, another build of TensorFlow, a GPU. Whether they
stay within limits is measured where they run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving import bundle
from serving.client import Client, ClientConfig
from serving.contract import Status
from serving.errors import BundleError, ModelNotFound, ServerUnavailable
from serving.registry.stores.store import Say, silent
from serving.registry.verdict import Check
from trainer.export.checks import sample_jpeg
from trainer.gate import parity
from trainer.gate.gate import read_sample
from trainer.gate.thresholds import ServerLimits

if TYPE_CHECKING:
    from trainer.dataset import LabelledPhoto

_POLL_SECONDS = 1.0

_BUNDLE, _SERVER = "the bundle", "the server"


def choose_version(config: ClientConfig, directory: Path) -> ClientConfig:
    """Return the configuration for the version that a bundle's directory names, unless it names one itself.

    The newest version of the server, or the one that has a label there, may be another one than the bundle.
    """
    if config.version is not None or config.label is not None or not directory.name.isdecimal():
        return config
    return replace(config, version=int(directory.name))


def compare_with_server(
    directory: Path,
    config: ClientConfig,
    photos: Sequence[LabelledPhoto] = (),
    limits: ServerLimits | None = None,
    wait: float = 0.0,
    say: Say = silent,
) -> list[Check]:
    """Compare a server's results with those of the bundle, run in float32 on this machine.

    Args:
        directory: bundle, or the base path above its versions for the newest one.
        config: server, model and version; without a version, that of the bundle.
        photos: photos to compare on, of which an even sample is used; if empty, a generated photo.
        limits: largest differences.
        wait: seconds to wait until there are servers that answer, and all of them have the version.
        say: called with one line of progress per step.

    Raises:
        BundleError: it is not a bundle, has no head, or cannot be loaded.
        InputError: no photo can be read.
        ServerError: the server does not answer, or has no such version.
    """
    from serving.runtime.session import ClassicSession

    own = bundle.read(directory)
    own.require_head("predictions to compare")
    count = len(own.metadata.labels)
    images = read_sample(own, photos) or [sample_jpeg()]
    with Client(choose_version(config, own.path)) as client:
        say(f"{config.target} answers {len(images)} photos")
        try:
            served = _run_when_loaded(client, images, count, wait)
        except BundleError as error:  # other labels: it is another bundle
            return [Check(f"{_SERVER} has the signatures of {_BUNDLE}", False, detail=error.what)]
    say("the bundle answers them here")
    with ClassicSession(own.path) as session:
        answers = {_BUNDLE: parity.run_signatures(session.run, images, count), _SERVER: served}
    return check_served(answers[_BUNDLE], answers[_SERVER], limits or ServerLimits())


def _run_when_loaded(client: Client, images: Sequence[bytes], labels: int, wait: float) -> dict[str, Any]:
    """Run every signature; again from the start while no server answers, or one lacks the version."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return parity.run_signatures(client.run, images, labels)
        except (ModelNotFound, ServerUnavailable):
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


def check_served(
    own: Mapping[str, NDArray[Any]], served: Mapping[str, NDArray[Any]], limits: ServerLimits
) -> list[Check]:
    """Check the outputs of a server, as returned by `parity.run_signatures`, against those of the bundle."""
    usable = np.array([Status(status.decode()).usable for status in own["status"]], bool)
    checks = parity.check_agreement({_BUNDLE: own, _SERVER: served}, limits.probability)
    return [
        *checks,
        _check_labels(own["label"][usable], served["label"][usable], limits.label),
        _check_embeddings(own["embedding"][usable], served["embedding"][usable], limits.embedding),
    ]


def _check_labels(own: NDArray[Any], served: NDArray[Any], limit: float) -> Check:
    same = int((own == served).sum())
    rate = same / len(own) if len(own) else 1.0
    return Check("labels agree", rate >= limit, rate, limit, f"{same} of {len(own)} photos")


def _check_embeddings(own: NDArray[Any], served: NDArray[Any], limit: float) -> Check:
    name = "embeddings agree"
    if own.shape != served.shape:
        return Check(name, False, None, limit, f"shape {list(served.shape)}, expected {list(own.shape)}")
    mine, theirs = own.astype(np.float64), served.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(mine, axis=1), np.finfo(np.float32).tiny)
    distances = np.linalg.norm(theirs - mine, axis=1) / lengths
    if not np.isfinite(distances).all():
        return Check(name, False, None, limit, "an embedding has an entry that is not finite")
    largest = float(distances.max(initial=0.0))
    detail = f"largest distance {largest:.2g} of the length of an embedding, over {len(own)} photos"
    return Check(name, largest <= limit, largest, limit, detail)
