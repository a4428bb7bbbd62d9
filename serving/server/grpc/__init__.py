"""The gRPC port: server, dispatcher and handlers."""
