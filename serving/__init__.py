"""What is served, and how to ask it: the contract, the bundle, the client, the runtime, the local server."""
