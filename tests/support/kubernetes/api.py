"""Client of the API server: JSON over HTTPS, for what kubectl is too slow or too coarse for."""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]

NAMESPACE = "hubhead"

MERGE = "application/merge-patch+json"

APPLY = "application/apply-patch+yaml"
"""Content type of server-side apply; JSON is YAML."""

DRY_RUN = "dryRun=All&fieldValidation=Strict&fieldManager=tests"

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


@dataclass(frozen=True)
class Answer:
    """Answer of the API server.

    Attributes:
        status: HTTP status.
        body: parsed JSON, or text.
        warnings: texts of the headers `Warning`, which kubectl prints.
    """

    status: int
    body: Any
    warnings: tuple[str, ...] = ()


class Api:
    """Client of one API server, with one connection per thread.

    Args:
        port: port on loopback.
        certificate: certificate of the server.
        token: token of an administrator.
    """

    def __init__(self, port: int, certificate: Path, token: str) -> None:
        self._port, self._token = port, token
        self._context = ssl.create_default_context(cafile=str(certificate))
        self._local = threading.local()
        self._connections: list[http.client.HTTPSConnection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._connections:
            connection.close()

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
        answer = self.request(method, path, body, kind)
        return answer.status, answer.body

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        """Make one request, on the connection of this thread.

        Raises:
            OSError: the server does not answer.
        """
        if not hasattr(self._local, "connection"):
            made = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=60)
            self._local.connection = made
            self._connections.append(made)
        connection: http.client.HTTPSConnection = self._local.connection
        is_reused = connection.sock is not None
        try:
            return self._request(connection, method, path, body, kind)
        except (http.client.HTTPException, OSError) as error:
            connection.close()  # the next request opens it again
            # The server may have closed it while it was idle.
            if not is_reused or not isinstance(error, ConnectionError | ssl.SSLEOFError):
                raise
        return self._request(connection, method, path, body, kind)

    def _request(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: Any, kind: str
    ) -> Answer:
        content = json.dumps(body) if body is not None else None
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        text = response.read().decode()
        is_json = "json" in (response.getheader("Content-Type") or "")
        warnings = tuple(response.headers.get_all("Warning") or ())
        return Answer(response.status, json.loads(text) if is_json else text, warnings)

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

    def collection_of(self, manifest: Object) -> str:
        """Return the path of the resources of a manifest's kind, in its namespace."""
        version = manifest["apiVersion"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        resource = self._resources(group)[manifest["kind"]]
        scope = f"/namespaces/{manifest['metadata']['namespace']}" if resource["namespaced"] else ""
        return f"{group}{scope}/{resource['name']}"

    def path_of(self, manifest: Object) -> str:
        """Return the path of the object of a manifest."""
        return f"{self.collection_of(manifest)}/{manifest['metadata']['name']}"

    @functools.cache  # noqa: B019 # an Api lives as long as its server
    def _resources(self, group: str) -> dict[str, Object]:
        """Return the resources of a version of a group, by kind."""
        status, answer = self.call("GET", group)
        assert status == 200, answer
        return {one["kind"]: one for one in answer["resources"] if "/" not in one["name"]}

    def dry_run(self, manifest: Object) -> str:
        """Apply a manifest on the server, strictly and as a dry run; returns its warnings or error, or ""."""
        path = f"{self.path_of(manifest)}?{DRY_RUN}"
        return _findings(self.request("PATCH", path, manifest, APPLY), manifest)

    def dry_run_creation(self, manifest: Object) -> str:
        """Create a manifest as `dry_run` applies it; returns its warnings or error, or ""."""
        return _findings(
            self.request("POST", f"{self.collection_of(manifest)}?{DRY_RUN}", manifest), manifest
        )


def _findings(answer: Answer, manifest: Object) -> str:
    if answer.status in (200, 201):
        assert answer.body["metadata"]["name"] == manifest["metadata"]["name"], answer.body
        return "\n".join(answer.warnings)
    return str(answer.body["message"] if isinstance(answer.body, dict) else answer.body)
