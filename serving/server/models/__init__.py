"""Models of the server: loading, versions, warmup and inference."""
