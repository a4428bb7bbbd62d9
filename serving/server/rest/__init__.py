"""The HTTP port: REST API, metrics, demo page."""

from serving.server.rest.server import GRACE_SECONDS, RestServer

__all__ = ["GRACE_SECONDS", "RestServer"]
