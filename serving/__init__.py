"""Serving: the contract, the bundle, the client, the runtime, the local server and the model registry."""
