"""Training without TensorFlow: help texts, checks of the outputs, and the labels file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from batch.inputs.listing import Photo
from serving.errors import InputError, OutputError
from trainer.commands.train import train
from trainer.dataset import DatasetListing, SplitSettings, Subset
from trainer.training import steps
from trainer.training.config import OutputSettings
from trainer.training.outputs import check_writable, write_labels


def test_every_command_and_option_has_help() -> None:
    from hubhead import hubhead as group

    runner = CliRunner()
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        shown = runner.invoke(group, [name, "--help"])
        assert shown.exit_code == 0
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.hidden:
                continue  # a flag of an older tool: --help-retrain lists them
            assert isinstance(parameter, click.Argument) or parameter.help
            assert all(flag in shown.output for flag in parameter.opts if flag.startswith("--"))


def test_the_removed_cosine_head_is_explained() -> None:
    result = CliRunner().invoke(train, ["--image_dir", "photos", "--head", "cosine"])
    assert result.exit_code == 2
    assert "cosine was removed" in result.output
    assert "0.792" in result.output


def test_unwritable_summaries_directory_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="logs"):
        check_writable(OutputSettings(summaries_dir=tmp_path / "logs"), tmp_path / "models" / "food")


def test_check_of_the_outputs_leaves_no_files(tmp_path: Path) -> None:
    check_writable(OutputSettings(), tmp_path / "models" / "food")
    assert not (tmp_path / "models" / "food").exists()


def test_labels_file_has_one_label_per_line_in_utf8(tmp_path: Path) -> None:
    write_labels(["寿司", "crème brûlée"], tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_bytes() == "寿司\ncrème brûlée\n".encode()


@pytest.mark.parametrize(
    ("counts", "testing", "predefined", "accepted"),
    [
        ((1, 1), 0, (), False),
        ((1, 2), 0, (), True),
        ((2, 2), 10, (), False),  # one of the two is for the test
        ((2, 3), 10, (), True),
        ((2, 2), 10, (0, 2), False),
        ((3, 2), 10, (0, 3), True),
    ],
)
def test_one_photo_a_label_is_an_error_before_any_photo_is_opened(
    counts: tuple[int, ...], testing: float, predefined: tuple[int, ...], accepted: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    photos = {Photo(f"{row}.jpg", 1, 1): int(label) for row, label in enumerate(labels)}
    subsets = {f"{row}.jpg": Subset.TESTING for row in predefined}
    listing = DatasetListing(("a", "b"), photos, (), subsets=subsets)
    with nullcontext() if accepted else pytest.raises(InputError, match="Every label has one photo to train"):
        steps.check_listing(listing, SplitSettings(testing, 0))
