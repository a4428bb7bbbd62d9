"""hubhead validate --server: the results of a running server against those of its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hubhead import hubhead
from serving import contract, runtime
from serving.errors import GateRejected, ModelNotFound
from serving.runtime import Model
from serving.server import ServerSettings, start

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server]


def load_inexact(directory: Path) -> Model:
    """Load a model whose embeddings have 8 significant bits, and whose probabilities change accordingly."""
    model = runtime.load(directory)
    exact = model.run

    def run(signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = dict(exact(signature, inputs))
        if contract.EMBEDDING in outputs:
            rounded = outputs[contract.EMBEDDING].astype(np.float32).view(np.uint32) & 0xFFFF0000
            outputs[contract.EMBEDDING] = rounded.view(np.float32).astype(outputs[contract.EMBEDDING].dtype)
        for name in (contract.PROBABILITIES, contract.SCORES):
            if name in outputs and signature != contract.CLASSIFY_EMBEDDING:
                outputs[name] = outputs[name] * np.float32(0.99)
        return outputs

    model.run = run  # type: ignore[method-assign]
    return model


def load_wrong(directory: Path) -> Model:
    """Load a model that takes every photo for the next label."""
    model = runtime.load(directory)
    exact = model.run

    def run(signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = dict(exact(signature, inputs))
        if contract.PROBABILITIES in outputs:
            outputs[contract.PROBABILITIES] = np.roll(outputs[contract.PROBABILITIES], 1, axis=1)
        if contract.LABEL in outputs:
            outputs[contract.LABEL] = np.array([b"another"] * len(outputs[contract.LABEL]), object)
        return outputs

    model.run = run  # type: ignore[method-assign]
    return model


def validate(trained: Trained, port: int, *arguments: str) -> tuple[Result, dict[str, Any]]:
    base = ["--bundle", str(trained.result.bundle.path.parent), "--json", "--model_name", "food"]
    server = ["--server", f"localhost:{port}", "--timeout", "120"]
    done = CliRunner().invoke(hubhead, ["validate", *base, *server, *arguments])
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done, {check["name"]: check for check in found[0]["checks"]} if found else {}


@pytest.fixture
def settings(trained: Trained) -> ServerSettings:
    return ServerSettings(trained.result.bundle.path.parent, port=0)


@pytest.mark.slow(seconds=30)
def test_a_server_agrees_with_its_bundle(
    trained: Trained, settings: ServerSettings, sample: SampleSummary
) -> None:
    verdict = trained.result.bundle.path / contract.VERDICT_FILE
    before = verdict.read_bytes() if verdict.exists() else None
    with start(settings) as server:
        done, checks = validate(trained, server.port, "--photos", str(sample.directory))
        absent, _ = validate(trained, server.port, "--model_version", "7")
    assert done.exit_code == 0, done.output
    assert list(checks) == [
        "signatures agree in the bundle",
        "signatures agree in the server",
        "the server agrees with the bundle",
        "labels agree",
        "embeddings agree",
    ]
    assert checks["labels agree"]["detail"] == "64 of 64 photos"
    assert checks["the server agrees with the bundle"]["figure"] < 2e-3
    assert checks["embeddings agree"]["figure"] < 5e-3
    assert (verdict.read_bytes() if verdict.exists() else None) == before
    assert isinstance(absent.exception, ModelNotFound)


@pytest.mark.slow(seconds=30)
def test_a_server_in_reduced_precision_passes_the_limits_and_fails_tighter_ones(
    trained: Trained, settings: ServerSettings, sample: SampleSummary
) -> None:
    photos = ("--photos", str(sample.directory))
    tight = ("--embedding_tolerance", "0.0001", "--probability_tolerance", "0.002")
    with start(settings, loader=load_inexact) as server:
        done, checks = validate(trained, server.port, *photos)
        failed, _ = validate(trained, server.port, *photos, *tight)
    assert done.exit_code == 0, done.output
    assert 1e-3 < checks["embeddings agree"]["figure"] < 1e-2
    assert 2e-3 < checks["the server agrees with the bundle"]["figure"] <= 1e-2
    assert isinstance(failed.exception, GateRejected)
    assert "embeddings agree: largest distance" in str(failed.exception)
    assert "the server agrees with the bundle: largest difference" in str(failed.exception)


@pytest.mark.slow(seconds=30)
def test_a_server_that_answers_other_labels_is_rejected(
    trained: Trained, settings: ServerSettings, sample: SampleSummary
) -> None:
    with start(settings, loader=load_wrong) as server:
        done, checks = validate(trained, server.port, "--photos", str(sample.directory / "fruits"))
    assert "left out" not in done.output  # the photos need no labels
    assert isinstance(done.exception, GateRejected)
    assert checks["labels agree"]["figure"] == 0
    assert [name for name, check in checks.items() if not check["passed"]] == [
        "the server agrees with the bundle",
        "labels agree",
    ]
