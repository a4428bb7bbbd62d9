"""Fixtures of a Kubernetes control plane; its tests are marked `cluster` and run by `make cluster-test`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubernetes import binaries
from tests.support.kubernetes.control_plane import CONTROLLERS, ControlPlane, run_control_plane
from tests.support.kubernetes.nodes import FakeNodes, run_fake_nodes


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of a control plane and those of containers, unless -m names them."""
    for marker in ("cluster", "containers"):
        if marker not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if item not in left_out]
            config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def programs() -> Path:
    """Directory of Kubernetes' programs, built on first use; without Go the tests are skipped."""
    try:
        return binaries.build()
    except binaries.GoMissing as error:
        if os.environ.get("HUBHEAD_REQUIRE_PROGRAMS"):
            pytest.fail(f"{error}, and this run may not skip")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def api_server(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server alone, which ends with its module: it validates and admits, and nothing follows."""
    with run_control_plane(programs, tmp_path_factory.mktemp("api-server"), controllers="") as running:
        yield running


@pytest.fixture(scope="session")
def cluster(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A whole control plane."""
    with run_control_plane(programs, tmp_path_factory.mktemp("cluster"), controllers=CONTROLLERS) as running:
        yield running


@pytest.fixture
def nodes(cluster: ControlPlane) -> Iterator[FakeNodes]:
    """Fake nodes, none at first."""
    with run_fake_nodes(cluster) as running:
        yield running
