"""LitServe: POST /predict with a photo in base64; Pillow and ONNX Runtime in a worker per core."""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

from tests.bench.peers.scripts.photo import CORES, decode, open_session, read_labels


class Classifier(litserve.LitAPI):
    """The model and its protocol."""

    def setup(self, device: str) -> None:
        model = Path(sys.argv[1])
        self._session, self._labels = open_session(model), read_labels(model)

    def decode_request(self, request: Request) -> Any:  # LitServe passes the parsed JSON
        return decode(base64.b64decode(request["photo"]))

    def predict(self, pixels: Any) -> Any:
        return self._session.run(None, {"pixels": pixels[None]})[0][0]

    def encode_response(self, scores: Any) -> dict[str, Any]:
        return {"label": self._labels[scores.argmax()], "scores": scores.tolist()}


def main() -> None:
    """Run the server."""
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=CORES)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
