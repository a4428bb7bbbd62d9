"""Parsing of REST API paths (model_servers/http_rest_api_util.cc)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from serving import protos
from serving.server.status_error import invalid_argument

PREFIX = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
"""Paths of the REST API."""

_VERSION_OR_LABEL = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE_PATH = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION_OR_LABEL}:(?P<verb>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_STATUS_PATH = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION_OR_LABEL}(?:/(?P<verb>metadata))?", re.IGNORECASE | re.ASCII
)

_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class ApiRequest:
    """Method, model and version that a REST path names.

    Attributes:
        verb: "predict", "classify", "regress", "metadata" or "status".
        spec: ModelSpec of the model.
    """

    verb: str
    spec: protos.Message


def parse_path(method: str, path: str) -> ApiRequest:
    """Parse the method and path of a request.

    Args:
        method: HTTP method, such as "GET".
        path: path as it was sent, still escaped, without the query.

    Raises:
        StatusError: the path matches no endpoint.
    """
    pattern = {"POST": _INFERENCE_PATH, "GET": _STATUS_PATH}.get(method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None:
        raise invalid_argument(f"Malformed request: {method} {path}")
    if not found["name"]:
        raise invalid_argument("Missing model name in request.")
    spec = protos.ModelSpec(name=unquote(found["name"]))
    if digits := found["version"]:
        significant = digits.lstrip("0") or "0"
        if len(significant) > len(str(_MAX_VERSION)) or int(significant) > _MAX_VERSION:
            raise invalid_argument(f"Failed to convert version: {digits} to numeric.")
        spec.version.value = int(significant)
    elif found["label"]:
        spec.version_label = unquote(found["label"])
    return ApiRequest((found["verb"] or "status").lower(), spec)
