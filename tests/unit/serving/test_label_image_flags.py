"""Command lines of label_image.py work with `hubhead predict`, and every flag without effect is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from serving.commands.common.label_image import FLAGS, LabelImageCommand
from serving.commands.predict import predict

LABEL_IMAGE = "image graph labels input_height input_width input_mean input_std input_layer output_layer"
"""tensorflow/tensorflow's and tensorflow-for-poets-2's label_image.py."""


@click.command(cls=LabelImageCommand)
@click.argument("photos", nargs=-1)
@click.option("--model", type=click.Path(path_type=Path))
def command(photos: tuple[str, ...], model: Path | None) -> None:
    """Command like hubhead predict."""
    click.echo(f"{list(photos)} {model}")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_the_table_lists_every_flag_of_label_image() -> None:
    assert [flag.name for flag in FLAGS] == LABEL_IMAGE.split()
    assert all(bool(flag.why) != bool(flag.to) for flag in FLAGS)


def test_predict_accepts_the_flags_and_names_them_in_its_help() -> None:
    assert isinstance(predict, LabelImageCommand)
    shown = CliRunner().invoke(predict, ["--help"]).output
    assert all(f"--{flag.name}" in shown for flag in FLAGS)


def test_a_command_line_of_label_image_names_photo_and_model(tmp_path: Path) -> None:
    result = run(f"--graph={tmp_path}", "--labels=labels.txt", "--image=daisy.jpg", "--input_mean", "128")
    assert result.exit_code == 0
    assert result.stdout == f"['daisy.jpg'] {tmp_path}\n"
    assert result.stderr.splitlines() == [
        "--image daisy.jpg is taken as a photo.",
        f"--graph {tmp_path} is taken as --model.",
        "--labels has no effect: the model contains its labels.",
        "--input_mean has no effect: the model scales the pixels as its backbone needs it.",
    ]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_is_explained_in_one_sentence(flag: Any, tmp_path: Path) -> None:
    (sentence,) = run(f"--{flag.name}", str(tmp_path)).stderr.splitlines()
    assert sentence.startswith(f"--{flag.name} ")
    assert sentence.endswith(".")
    assert run().stderr == ""


def test_a_frozen_graph_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    graph = tmp_path / "retrained_graph.pb"
    graph.touch()
    result = run("--graph", str(graph), "--image", "a.jpg")
    assert result.exit_code == 2
    assert "is a file, such as a frozen graph" in result.stderr
    assert "--model models/food" in result.stderr


def test_graph_and_model_exclude_each_other(tmp_path: Path) -> None:
    result = run("--graph", str(tmp_path), "--model", "models/food")
    assert result.exit_code == 2
    assert "remove one of them" in result.stderr


def test_the_image_comes_before_other_photos_and_may_have_any_name(tmp_path: Path) -> None:
    result = run("--model", "m", "b.jpg", "--image", "a\x1b[31m.jpg")
    assert result.stdout.startswith("['a\\x1b[31m.jpg', 'b.jpg'] m")
    assert "\x1b" not in result.stderr


def test_the_printed_configuration_has_the_graph_as_model(tmp_path: Path) -> None:
    result = run("--graph", str(tmp_path), "--print_config")
    assert f'model = "{tmp_path}"' in result.stdout
    assert "graph =" not in result.stdout
