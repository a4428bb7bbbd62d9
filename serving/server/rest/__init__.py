"""What the server answers over HTTP."""

from serving.server.rest.server import GRACE_SECONDS, Rest

__all__ = ["GRACE_SECONDS", "Rest"]
