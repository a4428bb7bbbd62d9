"""The Python example of the README works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.docs import code_blocks
from tests.support.trained import copy_store

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary


@pytest.mark.tf
@pytest.mark.beam
def test_the_python_example_of_the_readme_trains_a_model(
    trained: Trained, sample: SampleSummary, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A user's cache with the embeddings of the shared training.
    (tmp_path / "cache").mkdir()
    for entry in cache.iterdir():
        (tmp_path / "cache" / entry.name).symlink_to(entry)
    (tmp_path / "cache" / "embeddings").unlink(missing_ok=True)
    copy_store(trained, tmp_path / "cache")
    (tmp_path / "food_images").symlink_to(sample.directory)
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (shown,) = (block for block in code_blocks("README.md", "python") if "from trainer import" in block)
    exec(shown, names)
    assert names["result"].held_out == trained.result.held_out
    assert names["result"].bundle.path == Path("models/food_images/1")
