"""`hubhead train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import trainer
from batch.commands.options import embedding_store_flag
from serving.commands.common.config_file import describe_configuration
from serving.commands.engine_option import engine_flag
from serving.commands.main import require_extra
from serving.commands.output import echo, is_quiet
from serving.commands.server_options import option_group, refuse
from serving.text import escape_controls
from trainer.commands import retrain_flags
from trainer.commands.backbone import complete_backbone, input_options, take_input_options
from trainer.commands.options import NOT_RECORDED, preprocessing_options, say, tflite_quantize
from trainer.training.summary import format_summary, to_dict


class HeadKind(click.Choice[str]):
    """Kind of a head; a value of former versions is an error that says why it was removed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Convert a value of the command line."""
        if value == "cosine":
            self.fail(
                "cosine was removed: by cross-validation on the sample photos it had an accuracy of 74.9 % "
                "and a log-loss of 0.792, where linear has 75.6 % and 0.757. Use linear.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


_column_options = option_group(
    *(
        click.option(
            f"--{name}_column", default="", show_default=names, help=f"Name of the column {contents}."
        )
        for name, names, contents in (
            ("photo", "path, image, ...", "of photo paths in --manifest"),
            ("label", "label, class, ...", "of labels in --manifest"),
            ("group", "group", "of groups in --manifest; photos of a group stay in one set"),
            ("split", "split, set", "in --manifest that assigns photos to train, validation and test"),
        )
    )
)


@click.command(
    cls=retrain_flags.RetrainCommand,
    short_help="Retrain a head on a folder of labelled photos.",
    epilog="\b\nExamples:\n"
    "  hubhead train --image_dir food_images\n"
    "  hubhead train --manifest photos.csv --saved_model_dir models/food\n"
    "  hubhead train --image_dir food_images --manifest labels.csv\n"
    "  hubhead serve --model_base_path models/food_images",
)
@click.option(
    "--image_dir",
    metavar="DIRECTORY",
    help="Directory with one directory of photos per label, named like the label. Directories named train, "
    "val and test above the labels define the split.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    help="Dataset manifest to use instead of --image_dir, or besides it: a table (.csv, .tsv, .jsonl or "
    ".parquet) with a column of photos and one of labels, and optionally of groups and of the split.",
)
@_column_options
@click.option(
    "--split_files",
    metavar="DIRECTORY",
    help="Directory with lists of the photos of --image_dir by set: train.txt, test.txt and maybe val.txt, "
    "with a path such as pizza/1001116 per line. Use it for data sets with an official split.",
)
@click.option(
    "--corrections",
    metavar="FILE",
    help="Table of photos and their right labels (columns uri and label), which replace the labels of "
    "--image_dir or --manifest. Photos with an empty label are left out.",
)
@click.option(
    "--saved_model_dir",
    type=click.Path(path_type=Path),
    show_default="models/<name of the image directory>",
    help="Directory of the versions of this model, in the layout of TensorFlow Serving. The new version gets "
    "the next number.",
)
@click.option(
    "--tfhub_module",
    default="efficientnet_lite0",
    shell_complete=complete_backbone,
    help="Backbone: an alias (see hubhead backbone list), the directory of a SavedModel, a frozen "
    "graph (.pb), a Keras file (.keras, .h5), or a TensorFlow Hub handle.",
)
@input_options
@click.option(
    "--output_labels",
    type=click.Path(path_type=Path),
    help="Additional file to write the labels to; the bundle contains them as assets/labels.txt.",
)
@click.option(
    "--testing_percentage",
    default=10.0,
    help="Percentage of the photos held out as the test set.",
)
@click.option(
    "--validation_percentage",
    default=10.0,
    help="Percentage of the photos held out as the validation set, which selects the settings. With fewer "
    "than 500 validation photos cross-validation selects them, and these photos are trained on too.",
)
@click.option(
    "--split",
    "split_method",
    type=click.Choice(["content", "retrain"]),
    default="content",
    help="Assign photos to sets by a hash of their content, or of their path as retrain.py does.",
)
@click.option(
    "--fine_tune",
    is_flag=True,
    help="Fine-tune the last layers of the backbone first, starting from a head on its embeddings. Takes "
    "minutes to hours; after Ctrl-C the same command resumes it.",
)
@click.option(
    "--flip_left_right", is_flag=True, help="Augmentation: also train on random views, half of them mirrored."
)
@click.option(
    "--random_crop",
    type=click.IntRange(0, 400),
    default=0,
    help="Augmentation by random crops: percentage by which the photo is larger than the crop.",
)
@click.option(
    "--random_scale",
    type=click.IntRange(0, 400),
    default=0,
    help="Augmentation by random scaling: largest enlargement in percent, in addition to --random_crop.",
)
@click.option(
    "--random_brightness",
    type=click.IntRange(0, 100),
    default=0,
    help="Augmentation by random brightness: largest change in either direction, in percent.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    default=4,
    help="Number of random views per photo if one of the four augmentation flags is given. Each view costs "
    "one more pass of the photos through the backbone, and its embeddings are stored.",
)
@click.option(
    "--head",
    "head_kind",
    type=HeadKind(["linear", "hidden"]),
    default="linear",
    help="Type of head: linear; or linear plus one hidden layer, for classes that are not linearly separable "
    "and thousands of photos or more.",
)
@click.option(
    "--hidden_units",
    type=click.IntRange(min=1),
    help="Number of units of the hidden layer, for --head hidden.  [default: the better of 256 and 1024 on "
    "held-out photos]",
)
@click.option(
    "--class_weight",
    type=click.Choice(["none", "balanced"]),
    default="none",
    help="Weight photos equally (none) or labels equally (balanced). Balanced raises the recall of rare "
    "labels and calibrates the probabilities for equally frequent labels.",
)
@click.option(
    "--near_duplicates",
    type=click.Choice(["report", "together", "ignore"]),
    default="report",
    help="Handling of photos with nearly identical embeddings: report them, report them and keep them "
    "together in one set, or skip the search.",
)
@click.option(
    "--near_threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.93,
    help="Cosine similarity of embeddings from which two photos are near-duplicates.",
)
@click.option("--top_k", type=click.IntRange(min=1), default=5, help="Number of best labels in a prediction.")
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Precision to reach, between 0 and 1: the model abstains below the score threshold that ensures it, "
    "with 95 % confidence on held-out photos.  [default: never abstain]",
)
@click.option(
    "--keep_known",
    type=click.FloatRange(0, 1, min_open=True),
    help="Fraction of photos of known labels to accept, such as 0.95; the model abstains on photos less "
    "similar to the training photos.  [default: accept all]",
)
@click.option(
    "--assert_accuracy_at_least",
    type=click.FloatRange(0, 1),
    help="Smallest accepted test accuracy, between 0 and 1; below it nothing is published and the exit code "
    "is 4.",
)
@click.option(
    "--compare_with",
    metavar="BUNDLE",
    default="",
    show_default="the newest version in --saved_model_dir",
    help="Live version to compare the new one with, on test photos that it was not trained on. Give a "
    "version directory, the directory above it, or none.",
)
@click.option(
    "--assert_not_worse_than_live",
    metavar="[POINTS]",
    is_flag=False,
    flag_value=0.0,
    type=click.FloatRange(0, 100),
    help="Publish nothing and exit with code 4 if the new version is worse than the live one, as hubhead "
    "validate judges it, with an accuracy that may fall by POINTS percentage points (without a value, by "
    "none). Has no effect while no version is live.",
)
@click.option(
    "--cross_validate",
    metavar="K",
    type=click.IntRange(min=2),
    help="Also evaluate by nested K-fold cross-validation on all photos, with the settings of each fold "
    "selected without its held-out photos. Costs K fits; more precise than a small test set.",
)
@click.option(
    "--cross_validate_repeats",
    metavar="R",
    type=click.IntRange(min=1),
    default=1,
    help="Number of repetitions of the cross-validation, each with other folds.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Random seed of the cross-validation folds."
)
@embedding_store_flag
@engine_flag
@click.option(
    "--summaries_dir",
    type=click.Path(path_type=Path),
    help="Directory to write TensorBoard summaries and the embedding projector to; existing files are kept.",
)
@click.option(
    "--no_report",
    is_flag=True,
    help="Omit report.html from the bundle. Use it if thumbnails of training photos must not leave this "
    "machine.",
)
@click.option(
    "--tflite",
    "add_tflite",
    is_flag=True,
    help="Also add a TensorFlow Lite file with the labels to the bundle, as assets.extra/model.tflite. It "
    "takes decoded pixels, since TensorFlow Lite does not decode photos.",
)
@tflite_quantize
@click.option(
    "--tflite_output_file",
    type=click.Path(path_type=Path),
    help="Additional file to write the TensorFlow Lite model to; implies --tflite.",
)
@preprocessing_options
@click.option("--print_misclassified_test_images", is_flag=True, help="List the misclassified test photos.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the bundle metadata (hubhead.json) on stdout instead of the summary.",
)
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
    """Train a classification head on a folder of labelled photos, and export the bundle.

    Each photo passes through the backbone once. Its embedding is kept in the embedding store,
    so that the next training, with more photos or other settings, takes seconds.
    """
    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    if image_dir is None and manifest is None:
        raise click.UsageError("Give --image_dir DIRECTORY, --manifest FILE, or both.", context)
    if given["split_files"] and image_dir is None:
        raise click.UsageError("--split_files needs --image_dir: a manifest has a column of sets.", context)
    if given["compare_with"] == "none" and given["assert_not_worse_than_live"] is not None:
        raise click.UsageError(
            "--assert_not_worse_than_live needs a live version: remove --compare_with none.", context
        )
    if not given["add_tflite"] and not given["tflite_output_file"]:
        refuse(context, ["tflite_quantize"], "needs --tflite or --tflite_output_file")
    from batch.monitoring.progress import progress_bar
    from trainer.training.run import train as run

    source = image_dir or manifest or ""
    if given["hidden_units"] and given["head_kind"] != "hidden":
        raise click.UsageError("--hidden_units needs --head hidden.", context)
    name = Path(source).resolve()
    target = saved_model_dir or Path("models") / (name.name if image_dir else name.stem)
    configuration = describe_configuration(context, omitted=NOT_RECORDED)
    both = {"manifest": manifest} if image_dir and manifest else {}
    settings = _train_settings(source, target, given | {"configuration": configuration} | both)
    with progress_bar(not is_quiet()) as report:
        result = run(settings, say=say, progress=report)
    if as_json:
        echo(json.dumps(to_dict(result), ensure_ascii=False))
        return
    echo(format_summary(result))
    if print_misclassified_test_images:
        echo("Misclassified test photos:" if result.misclassified else "No test photo is misclassified.")
        for path, label, found, score in result.misclassified:
            echo(escape_controls(f"  {path}: {label}, predicted {found} ({score:.0%})", newlines=True))


def _train_settings(source: str, target: Path, flags: dict[str, Any]) -> trainer.TrainSettings:
    """Build the settings from the parsed flags; those that are named like an attribute are it."""
    from batch.embeddings import default_root
    from trainer.export.tflite import Quantize

    def pop(*names: str) -> list[Any]:
        return [flags.pop(name) for name in names]

    add_tflite, quantize = pop("add_tflite", "tflite_quantize")
    return trainer.TrainSettings(
        source,
        target,
        embedding_store=flags.pop("embedding_store") or default_root(),
        columns=trainer.Columns(*pop("photo_column", "label_column", "group_column", "split_column")),
        backbone_input=take_input_options(flags),
        preprocessing=trainer.Preprocessing.with_limits(*pop("aspect", "max_pixels", "max_bytes")),
        split=trainer.SplitSettings(*pop("testing_percentage", "validation_percentage", "split_method")),
        augmentation=trainer.Augmentation(
            *pop("flip_left_right", "random_crop", "random_scale", "random_brightness")
        ),
        fine_tune=trainer.FineTuneSettings() if flags.pop("fine_tune") else None,
        head_settings=trainer.HeadSettings(*pop("head_kind", "class_weight", "hidden_units")),
        near_duplicates=trainer.NearDuplicatesOption(flags.pop("near_duplicates")),
        report=not flags.pop("no_report"),
        tflite=Quantize(quantize) if add_tflite or flags["tflite_output_file"] else None,
        **flags,
    )
