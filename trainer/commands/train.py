"""`hubhead train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from trainer.commands import retrain_flags
from trainer.commands.backbone import input_options
from trainer.commands.options import SETTINGS, preprocessing_options, refuse, require_extra, tflite_quantize
from trainer.training.summary import describe, record

if TYPE_CHECKING:
    from trainer.heads.settings import ClassWeight, Kind
    from trainer.training.config import TrainSettings


def _tolerance(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> float | Literal["surely"] | None:
    """What --assert_not_worse_than_live takes: percent points, or nothing, for which click gives `surely`."""
    if value is None:
        return None
    return "surely" if value == "surely" else float(click.FloatRange(0, 100)(value, parameter, context))


@click.command(
    cls=retrain_flags.RetrainCommand,
    context_settings=SETTINGS,
    short_help="Retrain a head on a folder of labelled photos.",
    epilog="\b\nExamples:\n"
    "  hubhead train --image_dir food_images\n"
    "  hubhead train --manifest photos.csv --saved_model_dir models/food\n"
    "  hubhead serve --model_base_path models/food_images",
)
@retrain_flags.retrain_options
@click.option(
    "--image_dir",
    metavar="DIRECTORY",
    help="Directory with one directory of photos a label; its name is the label. Where train, val and test "
    "stand above the labels, they are the sets.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    help="In place of --image_dir: a table (.csv, .tsv, .jsonl, .parquet) with a column of photos and one "
    "of labels, and maybe one of groups that stay together and one of sets.",
)
@click.option("--photo_column", default="", show_default="path, image, ...", help="Of the manifest.")
@click.option("--label_column", default="", show_default="label, class, ...", help="Of the manifest.")
@click.option("--group_column", default="", show_default="group", help="Of the manifest.")
@click.option("--split_column", default="", show_default="split, set", help="Of the manifest.")
@click.option(
    "--saved_model_dir",
    type=click.Path(path_type=Path),
    show_default="models/<name of the image directory>",
    help="Where the versions of this model stand, as TensorFlow Serving wants them; the next one is added.",
)
@click.option(
    "--tfhub_module",
    default="efficientnet_lite0",
    help="Backbone: an alias (hubhead backbone list), a directory, or a TensorFlow Hub handle.",
)
@input_options
@click.option(
    "--output_labels",
    type=click.Path(path_type=Path),
    help="A second place for the labels file; the bundle has it as assets/labels.txt.",
)
@click.option(
    "--testing_percentage",
    default=10.0,
    help="Share of the photos kept to measure the result on, in percent.",
)
@click.option(
    "--validation_percentage",
    default=10.0,
    help="Share of the photos kept to choose settings by. While they are fewer than 500 they are "
    "trained on as well, and cross-validation chooses.",
)
@click.option(
    "--split",
    "split_method",
    type=click.Choice(["content", "retrain"]),
    default="content",
    help="What decides a photo's set: its content, or its path as in retrain.py.",
)
@click.option(
    "--fine_tune",
    is_flag=True,
    help="Train the last layers of the backbone on, from a head on its embeddings, before all else. Takes "
    "minutes to hours; stop it with Ctrl-C, and the same command goes on where it was.",
)
@click.option(
    "--flip_left_right", is_flag=True, help="Train on random views of the photos too: mirror half of them."
)
@click.option(
    "--random_crop",
    type=click.IntRange(0, 400),
    default=0,
    help="The same: percent by which a photo is larger than the part that is taken.",
)
@click.option(
    "--random_scale",
    type=click.IntRange(0, 400),
    default=0,
    help="The same: percent by which it is enlarged further, at most.",
)
@click.option(
    "--random_brightness",
    type=click.IntRange(0, 100),
    default=0,
    help="The same: percent by which it is made brighter or darker, at most.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    default=4,
    help="Random views of each photo, where one of the four flags above asks for some. Each costs as much as "
    "embedding the photos; they are kept like other embeddings.",
)
@click.option(
    "--head",
    "head_kind",
    type=click.Choice(["linear", "hidden", "cosine"]),
    default="linear",
    help="Kind of the head: linear on the embeddings; that and a hidden layer, for labels that are no "
    "single clouds, with some thousands of photos or more; or the cosine with one direction a label.",
)
@click.option(
    "--hidden_units",
    type=click.IntRange(min=1),
    help="Width of the hidden layer.  [default: the better of 256 and 1024 on held-out photos]",
)
@click.option(
    "--class_weight",
    type=click.Choice(["none", "balanced"]),
    default="none",
    help="Whether each photo counts alike, or each label: rare labels are then found more often, and the "
    "probabilities are those where all labels are equally frequent.",
)
@click.option(
    "--near_duplicates",
    type=click.Choice(["report", "together", "ignore"]),
    default="report",
    help="Photos whose embeddings are nearly the same: say which, keep them in one set too, or do not look.",
)
@click.option(
    "--near_threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.93,
    help="Cosine of embeddings from which photos are nearly the same.",
)
@click.option("--top_k", type=click.IntRange(min=1), default=5, help="Labels that an answer names.")
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Answer with a label only where that makes answers right this often, with 95 % confidence by the "
    "held-out photos.  [default: always answer]",
)
@click.option(
    "--keep_known",
    type=click.FloatRange(0, 1, min_open=True),
    help="Refuse photos unlike all that was trained on, so that this share of the known ones still passes, "
    "as in 0.95.  [default: refuse none]",
)
@click.option(
    "--assert_accuracy_at_least",
    type=click.FloatRange(0, 1),
    help="Publish nothing, and end with exit code 4, where the test accuracy is below this share.",
)
@click.option(
    "--compare_with",
    metavar="BUNDLE",
    default="",
    show_default="the newest version in --saved_model_dir",
    help="The live version, to hold the new one against on test photos that it was not trained on: "
    "a version's directory, the directory above it, or none.",
)
@click.option(
    "--assert_not_worse_than_live",
    metavar="[POINTS]",
    is_flag=False,
    flag_value="surely",
    callback=_tolerance,
    help="Publish nothing, and end with exit code 4, where the new version is worse than the live one: "
    "where its accuracy falls by more than so many percent points; without POINTS, by more than chance "
    "explains (95 % interval). The first version has nothing to be worse than.",
)
@click.option(
    "--cross_validate",
    metavar="K",
    type=click.IntRange(min=2),
    help="Judge by K-fold cross-validation of all photos too: K heads, each with all of its settings chosen "
    "without the photos that it is held against. Tells more than a small test set.",
)
@click.option(
    "--cross_validate_repeats",
    metavar="R",
    type=click.IntRange(min=1),
    default=1,
    help="Repeat that with other folds.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the cross-validation.")
@click.option(
    "--embedding_store",
    default="",
    show_default="embeddings below the cache directory",
    help="Where embeddings are kept, shared with hubhead score. Photos in it are not read again.",
)
@click.option(
    "--summaries_dir",
    type=click.Path(path_type=Path),
    help="Write TensorBoard's summaries and the embedding projector here; what is there already stays.",
)
@click.option(
    "--no_report",
    is_flag=True,
    help="Leave report.html out of the bundle: it holds small pictures of training photos.",
)
@click.option(
    "--tflite",
    "add_tflite",
    is_flag=True,
    help="Put a TensorFlow Lite file into the bundle too, assets.extra/model.tflite, with the labels inside. "
    "It takes decoded pixels: TensorFlow Lite decodes no photos.",
)
@tflite_quantize
@click.option(
    "--tflite_output_file",
    type=click.Path(path_type=Path),
    help="A second place for that file; asks for it too.",
)
@preprocessing_options
@click.option(
    "--print_misclassified_test_images", is_flag=True, help="List the test photos that get a wrong label."
)
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's hubhead.json on stdout.")
@click.pass_context
def train(
    context: click.Context,
    /,
    image_dir: str | None,
    manifest: str | None,
    saved_model_dir: Path | None,
    print_misclassified_test_images: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Retrain the head of a backbone on a folder of labelled photos, and export the bundle.

    Every photo goes through the backbone once; what it gave is kept in the embedding store,
    so that the next training, with more photos or other settings, takes seconds.
    """
    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    if (image_dir is None) == (manifest is None):
        raise click.UsageError("Give one of --image_dir DIRECTORY and --manifest FILE.", context)
    if given["compare_with"] == "none" and given["assert_not_worse_than_live"] is not None:
        raise click.UsageError("--assert_not_worse_than_live needs something to compare with.", context)
    if not given["add_tflite"] and not given["tflite_output_file"]:
        refuse(context, ["tflite_quantize"], "needs --tflite or --tflite_output_file")
    from batch.monitoring.progress import progress_bar
    from trainer.training.run import train as run

    source = image_dir or manifest or ""
    if given["hidden_units"] and given["head_kind"] != "hidden":
        raise click.UsageError("--hidden_units goes with --head hidden.", context)
    name = Path(source).resolve()
    target = saved_model_dir or Path("models") / (name.name if image_dir else name.stem)
    settings = _train_settings(source, target, **given)
    with progress_bar() as report:
        result = run(settings, say=lambda line: click.echo(line, err=True), progress=report)
    if as_json:
        click.echo(json.dumps(record(result), ensure_ascii=False))
        return
    click.echo(describe(result))
    if print_misclassified_test_images:
        click.echo(
            "Misclassified test photos:" if result.misclassified else "No test photo is misclassified."
        )
        for path, label, found, score in result.misclassified:
            click.echo(f"  {path}: {label}, taken for {found} ({score:.0%})")


def _train_settings(
    source: str,
    target: Path,
    *,
    embedding_store: str,
    photo_column: str,
    label_column: str,
    group_column: str,
    split_column: str,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    aspect: str,
    max_pixels: int,
    max_bytes: int,
    testing_percentage: float,
    validation_percentage: float,
    split_method: str,
    fine_tune: bool,
    flip_left_right: bool,
    random_crop: int,
    random_scale: int,
    random_brightness: int,
    head_kind: str,
    hidden_units: int | None,
    class_weight: str,
    near_duplicates: str,
    no_report: bool,
    add_tflite: bool,
    tflite_quantize: str,
    tflite_output_file: Path | None,
    **same: Any,
) -> TrainSettings:
    """The flags as settings; `same` are those that are called the same there."""
    from batch.embeddings import default_root
    from trainer.backbones import InputOptions
    from trainer.dataset import Columns, SplitSettings
    from trainer.dataset.download import cache_directory
    from trainer.export.tflite import Quantize
    from trainer.heads import HeadSettings
    from trainer.preprocessing import Augmentation, Preprocessing
    from trainer.training.config import NearDuplicatesOption, TrainSettings
    from trainer.training.fine_tuning import FineTuneSettings

    return TrainSettings(
        image_dir=source,
        saved_model_dir=target,
        embedding_store=embedding_store or default_root(),
        cache=cache_directory(),
        columns=Columns(photo_column, label_column, group_column, split_column),
        backbone_input=InputOptions((image_size, image_size) if image_size else None, value_range),
        preprocessing=Preprocessing.limited(aspect, max_pixels, max_bytes),
        split=SplitSettings(testing_percentage, validation_percentage, split_method),
        augmentation=Augmentation(flip_left_right, random_crop, random_scale, random_brightness),
        fine_tune=FineTuneSettings() if fine_tune else None,
        head_settings=HeadSettings(cast("Kind", head_kind), cast("ClassWeight", class_weight), hidden_units),
        near_duplicates=NearDuplicatesOption(near_duplicates),
        report=not no_report,
        tflite=Quantize(tflite_quantize) if add_tflite or tflite_output_file else None,
        tflite_output_file=tflite_output_file,
        **same,
    )
