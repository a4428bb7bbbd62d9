"""The local model server: TensorFlow Serving's gRPC protocol over serving.runtime.

with start(ServerSettings(Path("models/food"), port=0)) as server:
    print(server.port)
"""

from serving.server.app import RunningServer, ServerSettings, serve_until_signalled, start

__all__ = ["RunningServer", "ServerSettings", "serve_until_signalled", "start"]
