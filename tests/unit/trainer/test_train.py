"""Training end to end: what it makes of a folder, what it reuses, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from click.testing import CliRunner

from serving.errors import OutputError
from trainer.training.run import check_outputs_writable, write_labels

if TYPE_CHECKING:
    pass


def test_every_command_explains_itself() -> None:
    from hubhead import hubhead as group

    runner = CliRunner()
    for name, command in group.commands.items():
        shown = runner.invoke(group, [name, "--help"])
        assert shown.exit_code == 0
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.hidden:
                continue  # a flag of an older tool: --help-retrain explains them
            assert isinstance(parameter, click.Argument) or parameter.help
            assert all(flag in shown.output for flag in parameter.opts if flag.startswith("--"))


def test_summaries_that_cannot_be_written_are_an_error_before_any_work(
    trained_settings: Any, tmp_path: Path
) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="logs"):
        check_outputs_writable(trained_settings(summaries_dir=tmp_path / "logs"))


def test_a_look_at_the_places_leaves_nothing(trained_settings: Any, tmp_path: Path) -> None:
    settings = trained_settings(saved_model_dir=tmp_path / "models" / "food")
    check_outputs_writable(settings)
    assert not (tmp_path / "models" / "food").exists()


@pytest.fixture
def trained_settings(tmp_path: Path) -> Callable[..., Any]:
    from trainer.training.config import TrainSettings

    def make(**changes: Any) -> TrainSettings:
        given = {
            "image_dir": tmp_path / "photos",
            "saved_model_dir": tmp_path / "models",
            "tfhub_module": "efficientnet_lite0",
            "embedding_store": str(tmp_path / "store"),
            "cache": tmp_path / "cache",
        }
        return TrainSettings(**{**given, **changes})

    return make


def test_labels_are_written_one_a_line_in_utf8(tmp_path: Path) -> None:
    write_labels(["寿司", "crème brûlée"], tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_bytes() == "寿司\ncrème brûlée\n".encode()
