"""hubhead.json has the options of the command that exported it, beside those of the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hubhead import hubhead
from serving import bundle
from serving.contract import METADATA_FILE
from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]


def test_export_by_a_configuration_file_records_its_options(trained: Trained, tmp_path: Path) -> None:
    source, config = trained.result.bundle.path, tmp_path / "hubhead.toml"
    config.write_text(
        f'[export]\nbundle = "{source}"\nthreshold = 0.25\nsaved_model_dir = "{tmp_path / "food"}"\n'
    )
    result = CliRunner().invoke(hubhead, ["export", "--config", str(config), "--top_k", "3"])
    assert result.exit_code == 0, result.output
    metadata = bundle.read(tmp_path / "food").metadata
    recorded = metadata.provenance["configuration"]["export"]
    assert (recorded["threshold"], recorded["top_k"], recorded["bundle"]) == (0.25, 3, str(source))
    assert "saved_model_dir" not in recorded
    assert (metadata.threshold, metadata.top_k) == (0.25, 3)
    again = CliRunner().invoke(
        hubhead, ["export", "--bundle", str(tmp_path / "food"), "--saved_model_dir", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    tables = json.loads((tmp_path / "again" / "1" / METADATA_FILE).read_bytes())["provenance"][
        "configuration"
    ]
    assert tables.keys() == {"export"}
    assert "threshold" not in tables["export"]
