"""Beam's RunInference with its ONNX model handler and Pillow."""

from __future__ import annotations

import sys
from pathlib import Path

from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy

from tests.bench.peers.scripts import beam_pipeline


def main() -> None:
    """Run the command."""
    file = Path(sys.argv[1]) / "classifier.onnx"
    beam_pipeline.run(
        OnnxModelHandlerNumpy(
            str(file), providers=["CPUExecutionProvider"], min_batch_size=8, max_batch_size=32
        )
    )


if __name__ == "__main__":
    main()
