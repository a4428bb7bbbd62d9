"""import_tensorflow imports Keras lazily. Each test runs in a new process."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = (
    "import gc, sys; from serving.runtime.tensorflow_import import import_tensorflow; "
    "tf = import_tensorflow(); "
)


def run_python(code: str, stderr: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == stderr
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


def test_log_lines_of_other_threads_are_kept() -> None:
    code = """
import os
from serving.runtime.tensorflow_import import captured_stderr
with captured_stderr():
    os.write(2, b"WARNING serving.server: overloaded\\nI0000 00:00:17 port.cc:153] oneDNN\\nno newline")
"""
    run_python(code, "WARNING serving.server: overloaded\nno newline")


def test_stderr_is_itself_again_after_captures_that_overlap() -> None:
    code = """
import sys, threading, time
from serving.runtime.tensorflow_import import captured_stderr
def capture(seconds):
    with captured_stderr():
        time.sleep(seconds)
threads = [threading.Thread(target=capture, args=[seconds]) for seconds in (0.2, 0.3)]
for thread in threads:
    thread.start()
    time.sleep(0.1)
for thread in threads:
    thread.join()
print("after", file=sys.stderr)
"""
    run_python(code, "after\n")


def test_two_threads_import_tensorflow() -> None:
    code = """
import threading, sys, time
from serving.runtime.tensorflow_import import import_tensorflow
found = []
first = threading.Thread(target=import_tensorflow)
first.start()
while "tensorflow" not in sys.modules:
    time.sleep(0.001)
print(import_tensorflow().saved_model.load.__name__)
first.join()
"""
    assert run_python(code) == "load"
