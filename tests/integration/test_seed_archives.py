"""The pages of tutorials with archives that they download: TensorFlow for Poets, and Inception of 2015."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from serving.commands.common.label_image import FLAGS
from tests.support.docs.workspace import link_cache
from tests.support.drawings import FRUIT, draw_fruit
from tests.support.frozen_graphs import write_graph
from tests.support.hub_modules import in_hub_cache, small_module
from tests.support.seeds import find_output, run_page, write_labels
from trainer.backbones.aliases import ALIASES

INCEPTION = "docs/seeds/inception.md"
POETS = "docs/migration/tensorflow-for-poets.md"
PHOTO = "daisy/21652746_cc379e0eea_m.jpg"

pytestmark = [pytest.mark.tf, pytest.mark.server]


def write_flowers(directory: Path, photos: int) -> None:
    """Write the directories of flower_photos.tgz, with drawn fruit in place of flowers."""
    flowers = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    for flower, fruit in zip(flowers, FRUIT, strict=True):
        (directory / flower).mkdir(parents=True)
        for number in range(photos):
            draw_fruit(fruit, number).save(directory / flower / f"{number}_m.jpg", quality=88)
    (directory / "daisy" / "0_m.jpg").rename(directory / PHOTO)
    (directory / "LICENSE.txt").write_text("The archive has a file beside its directories.\n")


def read_metadata(version: Path) -> dict[str, Any]:
    """Return the metadata of a bundle."""
    found: dict[str, Any] = json.loads((version / "assets.extra" / "hubhead.json").read_text("utf-8"))
    return found


@pytest.mark.slow(seconds=300)
def test_every_command_of_the_page_about_tensorflow_for_poets_runs(cache: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    directory, own = tmp_path / "food", link_cache(cache, tmp_path)
    write_flowers(directory / "tf_files" / "flower_photos", 12)
    module = small_module(
        tmp_path / "module",
        function=lambda photos, _weights: tf.reduce_mean(photos, [1, 2]),
        shape=(None, 224, 224, 3),
    )
    in_hub_cache(ALIASES["mobilenet_v1_050_224"].handle, module, own / "tfhub")
    printed = {" ".join(command.split()): lines for command, lines in run_page(POETS, directory, own).items()}

    models = directory / "models" / "flower_photos"
    found = {number: read_metadata(models / number) for number in ("1", "2", "3", "4", "5")}
    assert [found[number]["backbone"]["dimension"] for number in found] == [3, 1280, 1280, 1280, 1280]
    assert found["1"]["labels"] == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]

    first = find_output(printed, "hubhead train --bottleneck_dir")
    assert "--bottleneck_dir tf_files/bottlenecks is taken as --embedding_store" in first
    assert "--architecture mobilenet_0.50_224 is taken as --tfhub_module mobilenet_v1_050_224" in first
    for flag in ("how_many_training_steps", "model_dir", "output_graph"):
        assert f"--{flag} has no effect" in first
    files = directory / "tf_files"
    assert (files / "retrained_labels.txt").read_text().split() == found["1"]["labels"]
    assert any((files / "bottlenecks").rglob("*.parquet"))
    assert any((files / "training_summaries/mobilenet_0.50_224").rglob("events.out.tfevents.*"))

    classified = find_output(printed, "hubhead predict --graph")
    assert PHOTO.partition("/")[2][:12] in classified
    given = ("graph", "labels", "input_layer", "output_layer", "image")
    notices = {flag.name: flag.format_notice("").split(" is taken")[0].strip() for flag in FLAGS}
    assert all(notices[name].removesuffix(".") in classified for name in given)
    photos = len(list((files / "flower_photos" / "daisy").iterdir()))
    for start in (
        "hubhead predict 'tf_files/flower_photos/daisy/*.jpg' --model",
        "hubhead predict 'tf_files/flower_photos/daisy/*.jpg' --server",
    ):
        assert find_output(printed, start).count("│ ok ") == photos  # names take several lines
    assert (directory / "flowers.tflite").stat().st_size > 0


def write_inception(archive: Path, work: Path) -> None:
    """Write inception-2015-12-05.tgz with a small graph that has the tensors of the real one."""
    work.mkdir()
    write_graph(work / "classify_image_graph_def.pb")
    (work / "imagenet_synset_to_human_label_map.txt").write_text("n00004475\torganism, being\n")
    (work / "imagenet_2012_challenge_label_map_proto.pbtxt").write_text("# -*- protobuffer -*-\n")
    draw_fruit("apple", 1).save(work / "cropped_panda.jpg")
    (work / "LICENSE").write_text("Apache License\n")
    with tarfile.open(archive, "w:gz") as packed:
        for file in sorted(work.iterdir()):
            packed.add(file, file.name)


@pytest.mark.slow(seconds=90)
def test_every_command_of_the_page_about_inception_of_2015_runs(cache: Path, tmp_path: Path) -> None:
    directory = tmp_path / "food"
    write_labels(directory / "birds", 6, 16)
    write_inception(directory / "inception-2015-12-05.tgz", tmp_path / "inception")
    printed = run_page(INCEPTION, directory, link_cache(cache, tmp_path))

    assert "float32 [N,16,12,3] in [0,255]" in find_output(printed, "hubhead backbone show")
    found = {name: read_metadata(directory / f"models/{name}/1") for name in ("birds-inception", "birds")}
    backbones = {name: metadata["backbone"] for name, metadata in found.items()}
    assert {name: backbone["dimension"] for name, backbone in backbones.items()} == {
        "birds-inception": 4,
        "birds": 1280,
    }
    assert backbones["birds-inception"]["handle"] == "inception/classify_image_graph_def.pb"
    assert found["birds-inception"]["labels"] == found["birds"]["labels"]
    assert find_output(printed, "hubhead predict").count("11.jpg") == 6
