"""Limits of a server's differences from its bundle, and the version that it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from serving.client import ClientConfig
from serving.errors import ModelNotFound, ServerUnavailable
from trainer.commands.validate import validate
from trainer.gate import parity, served
from trainer.gate.served import check_served, choose_version
from trainer.gate.thresholds import ServerLimits


def outputs(**changes: Any) -> dict[str, Any]:
    """Return what `run_signatures` returns for two usable photos and a rejected one."""
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]], np.float32)
    found = {
        "probabilities": probabilities,
        "probabilities from the embedding": probabilities,
        "best score": probabilities.max(axis=1),
        "label": np.array([b"a", b"b", b""], object),
        "status": np.array([b"ok", b"ok", b"corrupt"], object),
        "embedding": np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], np.float16),
    }
    return {**found, **changes}


def failed(served: dict[str, Any], limits: ServerLimits | None = None) -> list[str]:
    checks = check_served(outputs(), served, limits or ServerLimits())
    return [check.name for check in checks if check.passed is False]


def embeddings(*rows: list[float]) -> np.ndarray[Any, Any]:
    return np.array(rows, np.float32)


def test_equal_results_pass_every_limit() -> None:
    assert failed(outputs(), ServerLimits(label=1.0, probability=0.0, embedding=0.0)) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"embedding": embeddings([3.0, 4.6], [1, 0], [0, 0])}, []),  # 0.12 of its length, 5
        ({"embedding": embeddings([3.0, 4.8], [1, 0], [0, 0])}, ["embeddings agree"]),
        ({"embedding": embeddings([np.nan, 4.0], [1, 0], [0, 0])}, ["embeddings agree"]),
        ({"embedding": embeddings([3.0], [1.0], [0.0])}, ["embeddings agree"]),
        ({"embedding": embeddings([3.0, 4.0], [1, 0], [9, 9])}, []),  # of a rejected photo
        ({"label": np.array([b"a", b"a", b""], object)}, ["labels agree"]),
        ({"label": np.array([b"a", b"b", b"c"], object)}, []),
        ({"status": np.array([b"ok"] * 3, object)}, ["the server agrees with the bundle"]),
    ],
)
def test_each_output_is_compared_on_the_photos_that_the_bundle_accepts(
    change: dict[str, Any], expected: list[str]
) -> None:
    assert failed(outputs(**change)) == expected


@pytest.mark.parametrize(("shift", "passes"), [(0.05, True), (0.2, False), (float("nan"), False)])
def test_probabilities_are_compared_and_nan_fails(shift: float, passes: bool) -> None:
    probabilities = outputs()["probabilities"] + np.float32(shift) * np.array([[1, -1], [0, 0], [0, 0]], "f4")
    served = outputs(
        probabilities=probabilities,
        **{"probabilities from the embedding": probabilities, "best score": probabilities.max(axis=1)},
    )
    checks = {check.name: check for check in check_served(outputs(), served, ServerLimits())}
    check = checks["the server agrees with the bundle"]
    assert check.passed is passes
    assert (check.figure is None) == np.isnan(shift)  # NaN is no JSON


def test_the_server_is_asked_for_the_version_of_the_bundle() -> None:
    config = ClientConfig("localhost:1", model="food")
    assert choose_version(config, Path("models/food/4")).version == 4
    assert choose_version(config, Path("models/food")).version is None
    labelled = ClientConfig("localhost:1", model="food", label="stable")
    assert choose_version(labelled, Path("models/food/4")) == labelled
    chosen = ClientConfig("localhost:1", model="food", version=3)
    assert choose_version(chosen, Path("models/food/4")).version == 3


def test_a_version_that_some_servers_have_not_loaded_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Any] = iter(
        [ModelNotFound("not yet"), ServerUnavailable("starts"), ModelNotFound("not yet"), outputs()]
    )

    def run_signatures(run: Any, photos: list[bytes], labels: int) -> dict[str, Any]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(parity, "run_signatures", run_signatures)
    monkeypatch.setattr(served, "_POLL_SECONDS", 0.001)
    client = SimpleNamespace(run=None)
    with pytest.raises(ModelNotFound):
        served._run_when_loaded(client, [], 2, wait=0.0)  # type: ignore[arg-type]
    assert served._run_when_loaded(client, [], 2, wait=60.0).keys() == outputs().keys()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--server", "localhost:1"], "requires --model_name"),
        (["--server", "localhost:1", "--model_name", "food", "--force"], "--force cannot be combined"),
        (["--server", "localhost:1", "--model_name", "food", "--live", "m"], "--live cannot be combined"),
        (["--wait", "5"], "--wait requires --server"),
        (["--embedding_tolerance", "0.1"], "--embedding_tolerance requires --server"),
        (["--label", "stable"], "--label requires --server"),
    ],
)
def test_flags_of_the_gate_and_of_a_server_exclude_each_other(arguments: list[str], reason: str) -> None:
    done = CliRunner().invoke(validate, ["--bundle", "models/food", *arguments])
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
