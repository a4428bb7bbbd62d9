"""Beam's RunInference with its TensorFlow model handler and Pillow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy

from tests.bench.peers.scripts import beam_pipeline


class Handler(TFModelHandlerNumpy):
    """The handler for any SavedModel: Beam's own loads it with Keras, which reads only Keras's files."""

    def load_model(self) -> Any:
        import tensorflow as tf

        return tf.saved_model.load(self._model_uri)


def main() -> None:
    """Run the command."""
    directory = Path(sys.argv[1]) / "classifier"
    beam_pipeline.run(Handler(str(directory), min_batch_size=8, max_batch_size=32))


if __name__ == "__main__":
    main()
