"""Client of the API server: JSON over HTTPS, for what kubectl is too slow or too coarse for."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any

Object = dict[str, Any]

NAMESPACE = "hubhead"

MERGE = "application/merge-patch+json"

GROUPS = {
    "cronjobs": "apis/batch/v1",
    "deployments": "apis/apps/v1",
    "events": "api/v1",
    "jobs": "apis/batch/v1",
    "nodes": "api/v1",
    "persistentvolumeclaims": "api/v1",
    "persistentvolumes": "api/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "pods": "api/v1",
    "replicasets": "apis/apps/v1",
    "resourcequotas": "api/v1",
    "serviceaccounts": "api/v1",
}
"""Path of the API group of each resource."""

CLUSTER_WIDE = {"nodes", "persistentvolumes"}


class Api:
    """Client of one API server.

    Args:
        port: port on loopback.
        certificate: certificate of the server.
        token: token of an administrator.
    """

    def __init__(self, port: int, certificate: Path, token: str) -> None:
        self._port, self._token = port, token
        self._context = ssl.create_default_context(cafile=str(certificate))

    def is_ready(self) -> bool:
        """Return whether the server is ready."""
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def call(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Make one request; returns the HTTP status, and the parsed answer or its text."""
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=60)
        try:
            content = json.dumps(body) if body is not None else None
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = "json" in (response.getheader("Content-Type") or "")
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def path(self, resource: str, name: str = "", namespace: str = NAMESPACE) -> str:
        """Return the path of a resource, or of all of a namespace."""
        scope = [] if resource in CLUSTER_WIDE else ["namespaces", namespace]
        return "/" + "/".join([GROUPS[resource], *scope, resource, *([name] if name else [])])

    def items(self, resource: str, selector: str = "", *, everywhere: bool = False) -> list[Object]:
        """List the resources of the namespace, by a label selector, or of all namespaces."""
        path = f"/{GROUPS[resource]}/{resource}" if everywhere else self.path(resource)
        status, answer = self.call("GET", f"{path}?labelSelector={selector}")
        assert status == 200, answer
        return list(answer["items"])

    def find(self, resource: str, name: str, namespace: str = NAMESPACE) -> Object | None:
        """Return a resource; None if there is none of this name."""
        status, answer = self.call("GET", self.path(resource, name, namespace))
        return answer if status == 200 else None

    def get(self, resource: str, name: str) -> Object:
        """Return a resource that exists."""
        found = self.find(resource, name)
        assert found, f"no {resource} {name}"
        return found

    def patch(self, path: str, change: Object) -> tuple[int, Any]:
        """Merge a change into the object at a path."""
        return self.call("PATCH", path, change, MERGE)
