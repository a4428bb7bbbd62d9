"""Statistics and sketches as JSON values: dataclasses by field, float arrays as float32 in base64."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from typing import Any, Self, get_origin

import numpy as np

from serving.storage import files

_FLOAT_FORMAT = "<f4"


class JsonRecord:
    """Base class of dataclasses that are stored as JSON; their annotations are the schema."""

    def to_json(self) -> Any:
        """Return the record as JSON values, with the keys of dictionaries in sorted order."""
        import msgspec

        return msgspec.to_builtins(self, enc_hook=_encode_floats, order="deterministic")

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Parse the output of `to_json`; other keys are ignored.

        Raises:
            ValueError: the values have another form.
        """
        import msgspec

        record = msgspec.convert(values, cls, dec_hook=_decode)
        # `fields` wants a dataclass, which only the subclasses are.
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"missing keys: {', '.join(missing)}")
        return record

    def encode(self) -> bytes:
        """Return the record as the content of a file."""
        return json.dumps(self.to_json(), ensure_ascii=False).encode()

    @classmethod
    def read(cls, uri: str) -> Self | None:
        """Return the record in a file; None if there is no such file or it is damaged."""
        try:
            return cls.from_json(json.loads(files.read(uri)))
        except (OSError, ValueError):
            return None


def _encode_floats(values: Any) -> str:
    """Return numbers as base64, which keeps run.json free of long lists."""
    return base64.b64encode(values.astype(_FLOAT_FORMAT).tobytes()).decode()


def _decode(kind: Any, value: Any) -> Any:
    if get_origin(kind) is np.ndarray:
        return np.frombuffer(base64.b64decode(value, validate=True), _FLOAT_FORMAT).astype(np.float64)
    return kind(value)  # a Counter
