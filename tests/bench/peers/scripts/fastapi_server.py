"""FastAPI: POST / with a photo; Pillow and ONNX Runtime on a thread per core, without batching."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from tests.bench.peers.scripts.photo import CORES, decode, open_session, read_labels


def main() -> None:
    """Run the server."""
    model, port = Path(sys.argv[1]), int(sys.argv[2])
    session, labels = open_session(model), read_labels(model)
    pool = ThreadPoolExecutor(CORES)
    app = FastAPI()

    def classify(content: bytes) -> dict[str, Any]:
        scores = session.run(None, {"pixels": decode(content)[None]})[0][0]
        return {"label": labels[scores.argmax()], "scores": scores.tolist()}

    @app.post("/")
    async def predict(request: Request) -> dict[str, Any]:
        content = await request.body()
        return await asyncio.get_running_loop().run_in_executor(pool, classify, content)

    uvicorn.run(app, host="localhost", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
