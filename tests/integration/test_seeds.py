"""The pages of docs/seeds: every command runs, on drawn photos in the layout of the data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import seeds
from tests.support.docs.compare import check_outputs
from tests.support.docs.session import HOME
from tests.support.docs.shell import list_recorded
from tests.support.html_assertions import Page, check_self_contained
from tests.support.keras_files import build_keras_3, write_old_resnet
from tests.support.repository import REPO
from tests.support.seeds import find_output, link_cache, run_page
from tests.support.trained import copy_store

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary

FOOD_101 = "docs/seeds/food-101.md"
MANY_LABELS = "docs/seeds/many-labels.md"
KERAS = "docs/seeds/keras.md"
NOTEBOOK = REPO / "docs/notebook.ipynb"


@pytest.mark.slow(seconds=60)
def test_every_command_of_the_page_about_food_101_runs(cache: Path, tmp_path: Path) -> None:
    directory = tmp_path / "food"
    directory.mkdir()
    seeds.write_food_101(directory)
    seeds.write_queries(FOOD_101, directory)
    printed = run_page(FOOD_101, directory, link_cache(cache, tmp_path))
    recorded = list_recorded(FOOD_101, whole=True)
    check_outputs(recorded, [printed[command.command] for command in recorded])

    metadata = json.loads((directory / "models/food-101/1/assets.extra/hubhead.json").read_text())
    assert metadata["labels"] == sorted(seeds.FOOD)
    assert metadata["data"]["photos"]["testing"] == seeds.TESTED * len(seeds.FOOD)
    assert "predefined by the lists in" in find_output(printed, "hubhead train")
    predicted = [find_output(printed, f"hubhead predict {words}") for words in ("burger.jpg", "--graph")]
    assert all("hamburger" in output for output in predicted)
    assert "--output_layer has no effect" in predicted[1]

    rows = find_output(printed, "hubhead query").splitlines()
    names = [name for _, name, *_ in seeds.RESTAURANTS]
    found = [
        (line.split()[0].removeprefix(f"{HOME}/food/"), name)
        for line in rows
        for name in names
        if name in line
    ]
    assert found == [
        ("uploads/1.jpg", "Burger Bar"),
        ("uploads/2.jpg", "Sushi Go"),
        ("uploads/2.jpg", "Bento"),
        ("uploads/3.jpg", "Sushi Go"),
        ("uploads/3.jpg", "Bento"),
    ]


@pytest.mark.slow(seconds=90)
def test_every_command_of_the_page_about_two_six_and_257_labels_runs(cache: Path, tmp_path: Path) -> None:
    directory = tmp_path / "food"
    seeds.write_labels(directory / "birds", 6, 16)
    seeds.write_fruit(directory / "faces", 2, 16)
    seeds.write_labels(directory / "objects", 257, 4)
    printed = run_page(MANY_LABELS, directory, link_cache(cache, tmp_path))

    for name, labels in (("birds", 6), ("faces", 2), ("objects", 257)):
        version = directory / "models" / name / "1"
        metadata = json.loads((version / "assets.extra/hubhead.json").read_text())
        assert len(metadata["labels"]) == labels
        assert metadata["metrics"]["test"]["accuracy"]["n"] >= labels  # every label is tested
        text = (version / "assets.extra/report.html").read_text("utf-8")
        check_self_contained(text)
        assert len(text.encode()) < 2_000_000
        matrices = [table for table in Page(text).all("table") if table.get("class") == "matrix"]
        assert (len(matrices), "227 more labels" in text) == ((1, False) if labels <= 30 else (0, True))
        assert "Test photos at random" in text
        assert f"{labels} labels" in (version / "README.md").read_text("utf-8")
    assert "kind 000" in find_output(printed, "hubhead predict 'birds")


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.server  # the ports of the page are looked for
@pytest.mark.slow(seconds=150)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, with NumPy 2
def test_every_command_of_the_page_about_keras_runs(cache: Path, tmp_path: Path) -> None:
    import keras

    directory = tmp_path / "food"
    seeds.write_scenes(directory / "photos", {"train": 24, "val": 8})
    keras.utils.set_random_seed(0)
    resnet = keras.applications.ResNet50(include_top=False, weights=None)
    write_old_resnet(directory / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", resnet)
    small = build_keras_3(name="resnet50", shape=(224, 224, 3))  # the network does not matter, the file does
    small.save(str(directory / "resnet50_notop.keras"))
    printed = run_page(KERAS, directory, link_cache(cache, tmp_path))

    shown = find_output(printed, "hubhead backbone show")
    quoted = re.findall(r"`(float32[^`]+|is ResNet50[^`]+)`", (REPO / KERAS).read_text("utf-8"))
    assert len(quoted) == 3
    assert all(" ".join(words.split()) in " ".join(shown.split()) for words in quoted), shown
    for name, dimension in (("photos", 2048), ("notop", 4), ("lite0", 1280)):
        metadata = json.loads((directory / f"models/{name}/1/assets.extra/hubhead.json").read_text())
        assert metadata["labels"] == ["rural", "urban"]
        assert metadata["backbone"]["dimension"] == dimension
        assert metadata["backbone"].get("preprocessing") == (None if name == "lite0" else "caffe")
        assert metadata["data"]["photos"]["validation"] == 16  # those of photos/val
    assert "cost_per_million" in find_output(printed, "grep")
    run = json.loads((directory / "scores/run.json").read_text())
    assert run["this_run"]["cost_per_million"] > 0


# --- The notebook ---------------------------------------------------------------------------------------


def read_cells(kind: str) -> list[str]:
    """Return the sources of the cells of the notebook."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_stored_without_outputs_in_the_format_of_jupyter() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.tf
@pytest.mark.beam
def test_the_notebook_runs_from_the_first_cell_to_the_last(
    trained: Trained,
    sample: SampleSummary,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = link_cache(cache, tmp_path)
    copy_store(trained, own)
    (tmp_path / "food_images").symlink_to(sample.directory)
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(own))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in read_cells("code"):
        exec(source, names)
    assert names["result"].test == trained.result.test
    printed = capsys.readouterr().out
    assert str(trained.result.test.accuracy) in printed
    assert "not_an_image" in printed
    assert len(names["predictions"]) == 12
    found = {
        Path(path).name: (label, prediction.label)
        for (path, label), prediction in zip(names["batch"], names["predictions"], strict=True)
    }
    wrong = {Path(photo.uri).name for photo in trained.result.misclassified}
    assert {name for name, (label, other) in found.items() if label != other} == wrong & found.keys()
