"""What a path of the REST API asks for (model_servers/http_rest_api_util.cc)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from serving import protos
from serving.server.status_error import invalid

PREFIX = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
"""Other paths are none of the API's."""

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_MODEL = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<verb>classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_ABOUT = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<verb>metadata))?", re.IGNORECASE | re.ASCII
)

_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class Asked:
    """What is asked for, and of which model.

    Attributes:
        verb: "predict", "classify", "regress", "metadata" or "status".
        spec: a ModelSpec.
    """

    verb: str
    spec: protos.Message


def parse(method: str, path: str) -> Asked:
    """Read a request's line.

    Args:
        method: "GET", "POST", ...
        path: as it was sent, without the query.

    Raises:
        Refusal: it asks for nothing that is there.
    """
    pattern = {"POST": _MODEL, "GET": _ABOUT}.get(method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None:
        raise invalid(f"Malformed request: {method} {path}")
    if not found["name"]:
        raise invalid("Missing model name in request.")
    spec = protos.ModelSpec(name=unquote(found["name"]))
    if found["version"]:
        if int(found["version"]) > _MAX_VERSION:
            raise invalid(f"Failed to convert version: {found['version']} to numeric.")
        spec.version.value = int(found["version"])
    elif found["label"]:
        spec.version_label = unquote(found["label"])
    return Asked((found["verb"] or "status").lower(), spec)
