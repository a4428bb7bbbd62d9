"""TensorFlow without Keras, until somebody asks for it: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = (
    "import gc, sys; from serving.runtime.tensorflow_import import import_tensorflow; "
    "tf = import_tensorflow(); "
)


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_keras_is_left_out_and_the_collector_works_again() -> None:
    assert printed(IMPORT + "print('keras' in sys.modules, gc.isenabled(), None in tf.__path__)") == (
        "False True False"
    )


@pytest.mark.parametrize(
    "keras",
    [
        "layers = tf.keras.layers",
        "from tensorflow.keras import layers",
        "import tensorflow.keras; layers = tensorflow.keras.layers",
        "from keras import layers",
    ],
)
def test_keras_comes_when_it_is_asked_for(keras: str) -> None:
    assert printed(IMPORT + keras + "; print(layers.Dense(3)(tf.zeros([1, 2])).shape)") == "(1, 3)"
