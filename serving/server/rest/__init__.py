"""The HTTP port: REST API, metrics, demo page."""
