"""`hubhead label` and `hubhead train`: the flags reach the session and the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving.errors import InputError
from trainer.commands.label import STRATEGIES, label
from trainer.commands.train import train
from trainer.labelling import opening
from trainer.labelling.opening import LabellingInput
from trainer.labelling.settings import SessionSettings
from trainer.labelling.types import Strategy
from trainer.training import run
from trainer.training.config import EmbeddingSettings, TrainSettings

Given = list[tuple[Any, ...]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Arguments of each session that would have been opened."""
    given: Given = []

    def stop(*arguments: Any) -> None:
        given.append(arguments)
        raise InputError("stop")

    monkeypatch.setattr(opening, "open_session", stop)
    return given


def test_flags_are_settings_of_the_session(opened: Given, tmp_path: Path) -> None:
    arguments = [
        *("--photos", "uploads", "--photos", "more/*.jpg", "--image_dir", "food", "--model", str(tmp_path)),
        *("--labels", "pizza, soup,,crème brûlée", "--strategy", "novel", "--test_percentage", "20"),
        *("--near_threshold", "0.9", "--by", "ann", "--seed", "3", "--output", "found.csv"),
        *("--embedding_store", "store", "--engine", "tensorflow"),
    ]
    CliRunner().invoke(label, arguments)
    [(source, output, settings, embedding, _)] = opened
    assert source == LabellingInput(("uploads", "more/*.jpg"), "", "", "food", tmp_path)
    assert output == Path("found.csv")
    names = ("pizza", "soup", "crème brûlée")
    assert settings == SessionSettings(names, Strategy.NOVEL, 20.0, 0.9, "ann", 3)
    assert isinstance(embedding, EmbeddingSettings)
    assert (embedding.embedding_store, embedding.engine) == ("store", "tensorflow")


def test_the_choices_are_the_strategies() -> None:
    assert [Strategy(name) for name in STRATEGIES] == list(Strategy)


@pytest.mark.parametrize(
    "arguments", [[], ["--labels", "pizza,soup"], ["--strategy", "suspects"], ["--image_dir", "food"]]
)
def test_a_session_needs_photos(opened: Given, arguments: list[str]) -> None:
    result = CliRunner().invoke(label, arguments)
    assert result.exit_code == 2
    assert "--photos" in result.output
    assert not opened


def test_suspects_need_labels_alone(opened: Given) -> None:
    CliRunner().invoke(label, ["--strategy", "suspects", "--image_dir", "food"])
    assert opened[0][0] == LabellingInput(image_dir="food")


def test_a_page_for_other_machines_needs_tls_before_any_work(opened: Given) -> None:
    result = CliRunner().invoke(label, ["--photos", "uploads", "--host", "0.0.0.0"])
    assert isinstance(result.exception, InputError)
    assert "--insecure" in str(result.exception)
    assert not opened


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image_dir", "food"], ("food", None)),
        (["--manifest", "labels.csv"], ("labels.csv", None)),
        (["--image_dir", "food", "--manifest", "labels.csv"], ("food", "labels.csv")),
    ],
)
def test_a_training_takes_a_folder_a_manifest_or_both(
    arguments: list[str], expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrainSettings] = []

    def stop(settings: TrainSettings, **_: Any) -> None:
        given.append(settings)
        raise InputError("stop")

    monkeypatch.setattr(run, "train", stop)
    CliRunner().invoke(train, arguments)
    [settings] = given
    assert (settings.image_dir, settings.manifest) == expected
    assert settings.saved_model_dir == Path("models") / Path(expected[0]).stem


def test_a_training_needs_photos() -> None:
    result = CliRunner().invoke(train, [])
    assert result.exit_code == 2
    assert "--image_dir DIRECTORY, --manifest FILE, or both" in result.output
