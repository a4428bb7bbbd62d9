"""import_tensorflow imports Keras lazily. Each test runs in a new process."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = (
    "import gc, sys; from serving.runtime.tensorflow_import import import_tensorflow; "
    "tf = import_tensorflow(); "
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_keras_is_not_imported_and_the_garbage_collector_is_enabled_again() -> None:
    assert run_python(IMPORT + "print('keras' in sys.modules, gc.isenabled(), None in tf.__path__)") == (
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
def test_keras_is_imported_on_first_use(keras: str) -> None:
    assert run_python(IMPORT + keras + "; print(layers.Dense(3)(tf.zeros([1, 2])).shape)") == "(1, 3)"
