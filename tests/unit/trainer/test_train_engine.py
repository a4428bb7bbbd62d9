"""`hubhead train --engine`: the flag reaches the embedding, whose engines the run records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from batch.inputs.listing import Photo
from batch.monitoring.stats import Stats
from batch.output.run_record import Summary
from serving.contract import ENGINES
from serving.errors import InputError
from trainer.commands.train import train
from trainer.training import run, steps
from trainer.training.config import EmbeddingSettings, TrainSettings


@pytest.mark.parametrize("engine", ENGINES)
def test_the_flag_is_a_setting_of_the_training(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrainSettings] = []

    def stop(settings: TrainSettings, **_: Any) -> None:
        given.append(settings)
        raise InputError("stop")

    monkeypatch.setattr(run, "train", stop)
    CliRunner().invoke(train, ["--image_dir", str(tmp_path), "--engine", engine])
    [settings] = given
    assert settings.engine == engine


def test_photos_are_embedded_by_the_engine_and_counted_over_views(monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[str] = []

    def embed(photos: list[Photo], *_: Any, engine: str, **__: Any) -> Summary:
        engines.append(engine)
        stats = Stats()
        stats.count_engine(engine, "Xeon", len(photos))
        return Summary("store", this_run=stats)

    monkeypatch.setattr(steps.score, "embed", embed)
    reporter, store = steps.Reporter(), SimpleNamespace()
    settings = EmbeddingSettings(engine="tensorflow")
    for count in (3, 2, 0):
        photos = [Photo(str(number), 1, 1) for number in range(count)]
        steps._fill_store(settings, photos, SimpleNamespace(path=Path("template")), store, reporter)
    assert engines == ["tensorflow"] * 3
    assert reporter.list_engines() == [{"engine": "tensorflow", "cpu": "Xeon", "photos": 5}]
