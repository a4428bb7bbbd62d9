"""The flag that selects what runs the backbone."""

from __future__ import annotations

import click

from serving.contract import ENGINES

engine_flag = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What runs the backbone on CPUs: ONNX Runtime, which is faster and needs less memory, or TensorFlow,"
    " as in TensorFlow Serving. Their embeddings differ by rounding alone. auto: ONNX Runtime, if it is"
    " installed and the bundle contains the backbone for it.",
)
