"""The command `hubhead export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.common.config_file import describe_configuration
from serving.commands.main import require_extra
from serving.commands.output import echo
from serving.commands.server_options import refuse
from trainer.commands.backbone import INPUT_OPTIONS, complete_backbone, input_options, take_input_options
from trainer.commands.options import NOT_RECORDED, preprocessing_options, say, tflite_quantize

if TYPE_CHECKING:
    from trainer.export.tflite import TfliteModel


@click.command(
    cls=Command,
    short_help="Export a trained head with other settings, or a backbone without a head.",
    epilog="\b\nExamples:\n"
    "  hubhead export --bundle models/food/3 --saved_model_dir models/food --threshold 0.5\n"
    "  hubhead export --headless --saved_model_dir models/backbone\n"
    "  hubhead export --bundle models/food/3 --tflite food.tflite --photos food_images",
)
@click.option(
    "--bundle",
    "source",
    type=click.Path(path_type=Path),
    help="Bundle whose head, labels and backbone to export again.",
)
@click.option(
    "--headless",
    is_flag=True,
    help="Export a backbone without a head; the bundle has the signature embed only.",
)
@click.option(
    "--tfhub_module",
    default="efficientnet_lite0",
    shell_complete=complete_backbone,
    help="Backbone to export with --headless. With --bundle it is the backbone that the head was trained on.",
)
@click.option(
    "--saved_model_dir",
    type=click.Path(path_type=Path),
    help="Directory of the versions of the model; the new version gets the next number. Required without "
    "--tflite.",
)
@click.option(
    "--tflite",
    "tflite_file",
    type=click.Path(path_type=Path),
    help="Write the bundle as a TensorFlow Lite file with its labels to this path, instead of a new version.",
)
@tflite_quantize
@click.option(
    "--photos",
    help="Directory or glob of photos to verify the TensorFlow Lite file on; required for quantised files. "
    "Default: generated images.",
)
@click.option(
    "--top_k",
    type=click.IntRange(min=1),
    help="Number of best labels in a prediction.  [default: unchanged]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Smallest probability of the best label, between 0 and 1; below it the model abstains.  "
    "[default: unchanged]",
)
@click.option(
    "--keep_known",
    type=click.FloatRange(0, 1, min_open=True),
    help="Fraction of photos of known labels to accept, such as 0.95; the model abstains on less similar "
    "photos. Needs a bundle trained with --keep_known.  [default: unchanged]",
)
@preprocessing_options
@input_options
@click.pass_context
def export(
    context: click.Context,
    /,
    source: Path | None,
    headless: bool,
    tfhub_module: str,
    saved_model_dir: Path | None,
    tflite_file: Path | None,
    tflite_quantize: str,
    photos: str | None,
    aspect: str,
    max_pixels: int,
    max_bytes: int,
    **head_options: Any,
) -> None:
    """Export a trained head with other settings, or a backbone without a head.

    Nothing is trained. Predictions of the new version differ only by the settings given.
    """
    if (source is None) != headless:
        raise click.UsageError("Give exactly one of --bundle BUNDLE and --headless.")
    if (saved_model_dir is None) == (tflite_file is None):
        raise click.UsageError("Give exactly one of --saved_model_dir DIRECTORY and --tflite FILE.")
    input_given = take_input_options(head_options)
    backbone_options = ["tfhub_module", "aspect", "max_pixels", "max_bytes", *INPUT_OPTIONS]
    refuse(
        context,
        backbone_options if source else head_options,
        f"cannot be combined with {'--bundle' if source else '--headless'}",
    )
    if tflite_file:
        refuse(context, [*head_options, "headless"], "cannot be combined with --tflite")
    else:
        refuse(context, ["tflite_quantize", "photos"], "cannot be combined with --saved_model_dir")
    require_extra("train", "tensorflow", "tensorflow_hub")
    if tflite_file and source:
        echo(f"{tflite_file}: {_write_tflite(source, tflite_file, tflite_quantize, photos)}")
        return
    assert saved_model_dir is not None
    from trainer.dataset.download import cache_directory
    from trainer.export.bundle import export_headless, reexport
    from trainer.preprocessing import Preprocessing

    configuration = describe_configuration(context, omitted=NOT_RECORDED)
    if source:
        published = reexport(source, saved_model_dir, configuration=configuration, **head_options)
    else:
        settings = Preprocessing.with_limits(aspect, max_pixels, max_bytes)
        published = export_headless(
            tfhub_module,
            saved_model_dir,
            cache_directory(),
            settings,
            options=input_given,
            configuration=configuration,
            say=say,
        )
    echo(f"Bundle: {published.path}")


def _write_tflite(source: Path, file: Path, quantize: str, photos: str | None) -> TfliteModel:
    from serving import bundle
    from trainer.export import tflite

    how = tflite.Quantize(quantize)
    if how is not tflite.Quantize.NONE and not photos:
        raise click.UsageError(f"--tflite_quantize {how} needs --photos, to measure the loss of accuracy.")
    return tflite.write(bundle.read(source), file, how, photos or "")
