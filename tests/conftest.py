"""Fixtures, markers and skips of all tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.guard import Use, forbidding

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.backbones.hub import Backbone
    from trainer.dataset.samples import SampleSummary

UNIT_TESTS = Path(__file__).parent / "unit"

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("hubhead", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hubhead")


def pytest_configure() -> None:
    """Let tests interrupt their processes, also where this one ignores SIGINT, as a background job does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no worker begins with one when the others are done."""
    seconds: dict[Path, float] = defaultdict(float)
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs.get("seconds", 10)
    items.sort(key=lambda item: -seconds[item.path])


def _forbidden(path: Path, item: pytest.Item | None = None) -> set[Use]:
    """Return what a test may not use: in tests/unit nothing, elsewhere what it has no marker for."""
    if path.is_relative_to(UNIT_TESTS):
        return set(Use)
    marked = {marker.name for marker in item.iter_markers()} if item else set()
    return {use for use in (Use.TENSORFLOW, Use.BEAM, Use.SERVER) if use not in marked}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Guard the imports of test modules."""
    with forbidding(_forbidden(collector.path)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard tests and the fixtures that they are the first to need."""
    with forbidding(_forbidden(item.path, item)):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with its reason, what needs a program that pip cannot bring; CI brings them all."""
    for marker in item.iter_markers("needs"):
        for alternatives in marker.args:
            if not any(shutil.which(program) for program in alternatives.split("|")):
                message = f"needs {' or '.join(alternatives.split('|'))} on the PATH"
                if os.environ.get("HUBHEAD_REQUIRE_PROGRAMS"):
                    pytest.fail(f"{message}, and this run may not skip")
                pytest.skip(message)


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's own cache, so that downloads happen once a machine."""
    from trainer.dataset.download import cache_directory

    return cache_directory()


@pytest.fixture(scope="module")
def default_backbone(cache: Path) -> Backbone:
    """The default backbone."""
    from trainer.backbones import DEFAULT
    from trainer.backbones.hub import load

    return load(DEFAULT, cache)


@pytest.fixture(scope="session")
def sample(cache: Path) -> SampleSummary:
    """The 406 distinct sample photos, in 10 directories."""
    from trainer.dataset.samples import fetch_sample_photos

    return fetch_sample_photos(cache)


@pytest.fixture(scope="session")
def trained(cache: Path, sample: SampleSummary) -> Iterator[Trained]:
    """A head trained on the sample photos, with an embedding store of its own; shared and read only."""
    from tests.support.trained import list_files, train_once

    with forbidding(()):  # the first test builds it for all, whatever it may use itself
        trained = train_once(cache, sample)
    before = list_files(trained)
    yield trained
    assert list_files(trained) == before, "a test wrote to the files of the shared training"
