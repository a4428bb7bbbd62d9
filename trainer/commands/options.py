"""Options shared by `hubhead train` and `hubhead export`."""

from __future__ import annotations

import click

from serving.commands.output import say as say
from serving.commands.server_options import option_group

preprocessing_options = option_group(
    click.option(
        "--aspect",
        type=click.Choice(["stretch", "crop", "pad"]),
        default="stretch",
        help="Resizing of photos that are not square: stretch both sides as retrain.py does, crop the "
        "centre, or pad with grey bars. Stored in the bundle.",
    ),
    click.option(
        "--max_pixels",
        type=click.IntRange(min=1),
        default=120_000_000,
        help="Largest number of pixels of a photo by its header; larger ones get the status too_large. "
        "PNG, BMP, WebP and progressive JPEG are limited to 50 million, GIF to 16 million in any case.",
    ),
    click.option(
        "--max_bytes",
        type=click.IntRange(min=1),
        default=64 << 20,
        help="Largest file size of a photo, in bytes; larger ones get the status too_large. Stored in "
        "the bundle.",
    ),
)
"""Add the common preprocessing options; trainer.preprocessing.Preprocessing has all settings."""


_OUTPUTS = ("embedding_store", "output_labels", "saved_model_dir", "summaries_dir", "tflite_output_file")

NOT_RECORDED = frozenset({*_OUTPUTS, "json", "quiet", "verbose"})
"""Options that hubhead.json does not record: paths of outputs, as bundles are shared, and what is printed."""

tflite_quantize = click.option(
    "--tflite_quantize",
    type=click.Choice(["none", "float16", "dynamic"]),
    default="none",
    help="Quantisation of the TensorFlow Lite file: none, float16 weights (half the size), or dynamic range "
    "(int8 weights and float32 activations, a quarter of the size). Full int8 is not supported.",
)
