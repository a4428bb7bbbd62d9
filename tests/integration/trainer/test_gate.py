"""hubhead validate on real bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from hubhead import hubhead
from serving import bundle, contract
from serving.errors import GateRejected
from serving.registry import verdict
from serving.registry.promote import promote
from serving.registry.target import DeploymentTarget

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary


# --- Real bundles -----------------------------------------------------------------------------------------


def validate(*arguments: str | Path) -> tuple[Any, dict[str, Any]]:
    done = CliRunner().invoke(hubhead, ["validate", "--json", *map(str, arguments)])
    return done, json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.fixture
def pair(trained: Trained, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of a real bundle: (candidate, live version)."""
    copies = [tmp_path / "models" / "food" / number for number in ("1", "2")]
    for copy in copies:
        shutil.copytree(trained.result.bundle.path, copy)
    return copies[1], copies[0]


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.server
def test_a_bundle_as_good_as_the_live_version_is_blessed_and_can_be_promoted(
    pair: tuple[Path, Path], sample: SampleSummary, tmp_path: Path
) -> None:
    candidate, live = pair
    # The latency ratio is not tested here: other processes on the machine disturb it.
    done, record = validate(
        "--bundle", candidate, "--live", live, "--photos", sample.directory, "--max_latency_ratio", "100"
    )
    assert done.exit_code == 0, done.output
    assert record["blessed"]
    assert record == json.loads((candidate / contract.VERDICT_FILE).read_text())
    checks = {check["name"]: check for check in record["checks"]}
    n = bundle.read(candidate).metadata.metrics["test"]["accuracy"]["n"]
    assert f"N={n}" in checks["accuracy on the photos"]["detail"]  # training photos are left out
    assert checks["photos left out"]["figure"] == 406 - n
    for name in ("the runtime", "the local server"):
        assert checks[f"{name} agrees with a classic session"]["passed"]
    assert promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate).new == 2


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.server
def test_every_failed_check_is_listed_and_the_bundle_is_not_blessed(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    candidate, live = pair
    (candidate / contract.WARMUP_FILE).unlink()
    (candidate / "ballast").write_bytes(bytes(20 << 20))
    content = json.loads((candidate / contract.METADATA_FILE).read_text())
    content["metrics"]["test"]["accuracy"]["value"] = 0.1
    (candidate / contract.METADATA_FILE).write_text(json.dumps(content))
    done, record = validate("--bundle", candidate, "--live", live, "--max_latency_ratio", "100")
    assert isinstance(done.exception, GateRejected)
    assert set(record["failed"]) == {"warm-up requests", "accuracy", "size"}
    with pytest.raises(GateRejected, match="warm-up requests"):
        promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate)
    done, record = validate("--bundle", candidate, "--live", live, "--max_latency_ratio", "100", "--force")
    assert done.exit_code == 0, done.output
    assert record["forced"]
    assert record["failed"]
    promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate)


@pytest.mark.slow
@pytest.mark.tf
@pytest.mark.server
def test_a_bundle_that_does_not_load_gets_a_verdict(pair: tuple[Path, Path]) -> None:
    candidate, _ = pair
    for file in (candidate / "variables").iterdir():
        file.unlink()
    done, record = validate("--bundle", candidate)
    assert isinstance(done.exception, GateRejected)
    assert set(record["failed"]) == {"loads as in TensorFlow Serving", "loads in the runtime"}
    assert verdict.read(candidate)
