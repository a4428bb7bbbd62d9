"""Import of Beam without its optional modules, in a command that runs in one process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pyarrow import dataset

from batch.beam.imports import import_beam
from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]

OPTIONAL = ("pymongo", "azure.storage.blob", "apache_beam.io.gcp.bigquery")
"""Modules that Beam imports if it can."""

CODE = """
import sys
from hubhead import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def run_score(trained: Trained, output: Path, *beam_args: str) -> set[str]:
    """Score a photo by the command; return the modules that it imported."""
    photo, _ = trained.result.test_photos[0]
    (output / "photos").mkdir(parents=True)
    (output / "photos" / "photo.jpg").write_bytes(Path(photo).read_bytes() + b"another content")
    options = {
        "--model": trained.result.bundle.path,
        "--photos": output / "photos",
        "--output": output / "scores",
        "--embedding_store": output / "store",
    }
    arguments = [str(value) for option in options.items() for value in option]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "score", *arguments, *beam_args],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    rows = dataset.dataset(output / "scores" / "scores", format="parquet").to_table(columns=["status"])
    assert rows["status"].to_pylist() == ["ok"]
    *messages, imported = done.stderr.splitlines()
    assert not [line for line in messages if "apache_beam" in line]
    return set(imported.split())


def test_a_command_in_one_process_imports_no_optional_module(trained: Trained, tmp_path: Path) -> None:
    assert all(map(find_spec, OPTIONAL))
    imported = run_score(trained, tmp_path)
    assert "apache_beam.runners.portability.fn_api_runner.fn_runner" in imported
    assert not imported & {*OPTIONAL, "boto3", "google.cloud.storage"}


def test_options_of_beam_import_all_of_it(trained: Trained, tmp_path: Path) -> None:
    imported = run_score(trained, tmp_path, "--", "--direct_num_workers=1")
    assert set(OPTIONAL) <= imported


def test_a_library_imports_all_of_beam() -> None:
    import_beam()
    assert set(OPTIONAL) <= sys.modules.keys()
