"""Life cycle of a model in the local overlay: train, promote, canary and roll back under constant load."""

from __future__ import annotations

import re
import resource
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serving import bundle
from serving.client import Client, Retry
from serving.errors import HubheadError
from serving.registry import audit
from serving.registry.stores.download import open_store
from tests.support import processes
from tests.support.cluster import Cluster, Manifest, render
from tests.support.hub_modules import small_module

if TYPE_CHECKING:
    from trainer.dataset.samples import SampleSummary

LOCAL = processes.REPO / "k8s" / "overlays" / "local"
MODEL = "food"
PAUSE = 0.1
"""Seconds between two requests of one caller; leaves CPU time for the jobs."""


@dataclass(frozen=True)
class Answer:
    """Outcome of one request: times of sending and answer, and the version, or the error."""

    sent: float
    answered: float
    version: int | None
    error: str = ""


@dataclass
class Caller:
    """Closed-loop caller: classifies one photo after the other, without retries."""

    target: str
    photos: list[Path]
    settings: dict[str, Any]
    answers: list[Answer] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        with Client(self.target, model=MODEL, timeout=60, retry=Retry(attempts=1), **self.settings) as client:
            number = 0
            while not stop.wait(PAUSE):
                photo = self.photos[number % len(self.photos)]
                number += 1
                sent = time.monotonic()
                try:
                    (found,) = client.classify([photo])
                    error = "" if found.label else f"{found.status}: {found.detail}"
                    self.answers.append(Answer(sent, time.monotonic(), found.version, error))
                except HubheadError as raised:
                    self.answers.append(Answer(sent, time.monotonic(), None, str(raised)))

    def versions(self, start: float, end: float) -> Counter[int | None]:
        """Count the versions that answered requests sent after `start` and answered before `end`."""
        return Counter(a.version for a in self.answers if start < a.sent and a.answered < end)


@contextmanager
def run_callers(callers: list[Caller]) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=caller.run, args=(stop,)) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def save_backbone(directory: Path) -> None:
    """Save a backbone whose features are the colours of 16 squares, so that the jobs take seconds.

    What is tested does not depend on the backbone; `hubhead demo` runs the default one (test_demo.py).
    """
    import tensorflow as tf

    def squares(photos: Any, weights: Any) -> Any:
        return tf.reshape(tf.nn.avg_pool2d(photos - 0.5, 16, 16, "VALID"), [-1, 48]) * weights[0]

    small_module(directory, function=squares, shape=(None, 64, 64, 3))


def copy_photos(sample: Path, to: Path, odd: bool | None = None) -> None:
    """Copy the sample photos by label: all of them, or every second one."""
    for label in sorted(path for path in sample.iterdir() if path.is_dir()):
        (to / label.name).mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(sorted(label.iterdir())):
            if odd is None or number % 2 == odd:
                shutil.copy(photo, to / label.name / photo.name)


def use_backbone(manifests: list[Manifest], path: str) -> None:
    """Set --tfhub_module in the training job."""
    (job,) = (one for one in manifests if one["metadata"]["name"] == "hubhead-train")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"]
    container["args"].append(f"--tfhub_module={path}")


@pytest.mark.tf
@pytest.mark.server
@pytest.mark.slow(seconds=100)
@pytest.mark.needs("kubectl|kustomize")
def test_training_canary_promotion_and_rollback_lose_no_request(
    sample: SampleSummary, cache: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    manifests = render(LOCAL)
    use_backbone(manifests, "/photos/backbone")
    cluster = Cluster(manifests, tmp_path, {"HUBHEAD_CACHE_DIR": str(cache)})
    photos, models = tmp_path / "hubhead-photos", tmp_path / "hubhead-models"
    save_backbone(photos / "backbone")
    copy_photos(sample.directory, photos / "labelled", odd=False)
    some = sorted(path for path in (photos / "labelled").rglob("*") if path.is_file())[::8]
    for directory in ("incoming", "smoke"):
        (photos / directory).mkdir()
        for photo in some[: 24 if directory == "incoming" else 6]:
            shutil.copy(photo, photos / directory / f"{photo.parent.name} {photo.name}")

    target = f"localhost:{cluster.ports[8500]}"
    stable = Caller(target, some, {"label": "stable"})
    shared = Caller(target, some, {"label": "stable", "canary": 0.5})
    canary = Caller(target, some, {"label": "canary"})
    base = models / MODEL

    with cluster.deployment("hubhead-serving") as server:
        cluster.job("hubhead-train")
        assert bundle.versions(models / "candidates" / MODEL) == [1]
        assert bundle.versions(base) == []
        assert not server.passes("startupProbe")
        outputs = cluster.job("hubhead-promote")
        assert len(outputs["predict"].splitlines()) >= 6
        processes.eventually(lambda: server.passes("startupProbe"), "the server has started")
        processes.eventually(lambda: server.passes("readinessProbe"), "the server is ready")

        with run_callers([stable, shared]):
            first = time.monotonic()
            cluster.job("hubhead-score")
            copy_photos(sample.directory, photos / "labelled", odd=True)
            cluster.job("hubhead-train")
            assert bundle.versions(models / "candidates" / MODEL) == [1, 2]
            canary_starts = time.monotonic()
            compared = cluster.job("hubhead-canary")["compare"]
            assert re.search(r"agree", compared), compared
            canary_there = time.monotonic()
            with run_callers([canary]):
                processes.eventually(
                    lambda: shared.versions(canary_there, time.monotonic()).keys() == {1, 2},
                    "both versions answer the callers of which half get the canary",
                )
                promotion = time.monotonic()
                cluster.job("hubhead-promote")
                promoted = time.monotonic()
                time.sleep(2)
                rollback = time.monotonic()
                cluster.job("hubhead-rollback")
                back = time.monotonic()
                time.sleep(2)
                assert server.passes("readinessProbe")
                assert server.passes("livenessProbe")
            end = time.monotonic()

    answers = [answer for caller in (stable, shared, canary) for answer in caller.answers]
    failed = [answer for answer in answers if answer.error]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(answers)} requests, {len(failed)} failed, {end - begun:.0f} s in all")
    print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time in the containers")
    for what, seconds in cluster.took:
        print(f"{seconds:6.1f} s  {what}")
    assert failed == []
    assert len(answers) > 200

    assert stable.versions(first, promotion).keys() == {1}
    assert stable.versions(promoted, rollback).keys() == {2}
    assert stable.versions(back, end).keys() == {1}
    assert shared.versions(first, canary_starts).keys() == {
        1
    }  # without a canary, only the stable version answers
    assert shared.versions(canary_there, promotion).keys() == {1, 2}
    assert canary.versions(canary_there, rollback).keys() == {2}
    assert canary.versions(back, end).keys() == {1}  # the rollback moves the canary label too

    moved = [
        (event.action, event.label, event.old, event.new)
        for event in audit.read(open_store(base))
        if event.label
    ]
    assert moved == [
        (audit.Action.PROMOTE, "stable", None, 1),
        (audit.Action.PROMOTE, "canary", None, 2),
        (audit.Action.PROMOTE, "stable", 1, 2),
        (audit.Action.ROLLBACK, "stable", 2, 1),
        (audit.Action.ROLLBACK, "canary", 2, 1),
    ]
    scored = list((tmp_path / "hubhead-scores").rglob("*.parquet"))
    assert scored
