"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.backbones import Backbone
    from trainer.dataset.samples import SampleSummary

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("hubhead", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hubhead")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no worker begins with one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = {item.path for item in items if item.get_closest_marker("first")}
    items.sort(key=lambda item: (item.path not in first, item.path not in slow))


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
    from trainer.backbones import DEFAULT, load

    return load(DEFAULT, cache)


@pytest.fixture(scope="session")
def sample(cache: Path) -> SampleSummary:
    """The 406 distinct sample photos, in 10 directories."""
    from trainer.dataset.samples import sample_photos

    return sample_photos(cache)


@pytest.fixture(scope="session")
def trained(cache: Path, sample: SampleSummary) -> Iterator[Trained]:
    """A head trained on the sample photos, with an embedding store of its own; shared and read only."""
    from tests.support.trained import list_files, train_once

    trained = train_once(cache, sample)
    before = list_files(trained)
    yield trained
    assert list_files(trained) == before, "a test wrote to the files of the shared training"
