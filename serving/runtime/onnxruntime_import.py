"""Import of ONNX Runtime without its telemetry."""

from __future__ import annotations

import os
from typing import Any


def import_onnxruntime() -> Any:
    """Import ONNX Runtime and return the module. All imports go through this function.

    Its wheels send events about models, errors and the machine to Microsoft by default (seen with
    1.32), and keep them with an identifier of the device in the user's cache directory. Only a
    variable that is set before the import prevents both; a value that the user has set is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: TID251

    return onnxruntime
