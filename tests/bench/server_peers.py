"""Processes that tests.bench.server compares the server with: `python -m tests.bench.server_peers ROLE BASE`.

bundle   writes a bundle of the default backbone to BASE
direct   serving.runtime on that bundle, with commands on stdin
bare     grpc.aio around serving.runtime and nothing else: the cost of gRPC itself on this machine
fastapi  the server that a user would write instead: FastAPI around the bundle as TensorFlow loads it,
         with requests merged by asyncio
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from serving import contract

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_MAX_BATCH = 32
_WAIT_SECONDS = 0.002


def write_bundle(base: Path) -> None:
    """Write the bundle."""
    from tests.bench.job import export_bundle

    export_bundle(base)
    print("ready", flush=True)


def run_direct(base: Path) -> None:
    """Answer the command `many N` with photos/s, and `one N` with the median seconds per photo."""
    from serving import bundle, runtime

    contents = read_photos()
    model = runtime.load(bundle.resolve(base))

    def classify_one(photo: bytes) -> float:
        start = time.perf_counter()
        model.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [photo]})
        return time.perf_counter() - start

    def classify_many(count: int) -> float:
        start = time.perf_counter()
        items = (contents[number % len(contents)] for number in range(count))
        for _ in model.imap(contract.SERVING_DEFAULT, contract.IMAGE_BYTES, items):
            pass
        return count / (time.perf_counter() - start)

    classify_many(64)
    print("ready", flush=True)
    for line in sys.stdin:
        command, _, count = line.partition(" ")
        if command == "many":
            print(classify_many(int(count)), flush=True)
        else:
            seconds = [classify_one(contents[n % len(contents)]) for n in range(int(count))]
            print(statistics.median(seconds), flush=True)


def serve_bare(base: Path) -> None:
    """Serve a gRPC method from photo bytes to label bytes, on one thread per core."""
    import grpc

    from serving import bundle, runtime

    model = runtime.load(bundle.resolve(base))

    def label(photo: bytes) -> bytes:
        outputs = model.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [photo]})
        return bytes(outputs[contract.LABEL][0])

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(model.threads) as pool:

            async def handle(photo: bytes, _: Any) -> bytes:
                return await loop.run_in_executor(pool, label, photo)

            handlers = {"Label": grpc.unary_unary_rpc_method_handler(handle)}
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", handlers),))
            port = server.add_insecure_port("localhost:0")
            await server.start()
            print(f"ready {port}", flush=True)
            await server.wait_for_termination()

    asyncio.run(serve())


def _load_as_user(base: Path) -> Callable[[list[bytes]], list[dict[str, Any]]]:
    """Load the bundle as TensorFlow does; return a function from photos to results."""
    import tensorflow as tf

    from serving import bundle

    loaded = tf.saved_model.load(str(bundle.resolve(base)))

    def run(photos: list[bytes]) -> list[dict[str, Any]]:
        # `loaded` must stay alive, since its variables are deleted with it.
        signature = loaded.signatures[contract.SERVING_DEFAULT]
        outputs = {
            name: values.numpy() for name, values in signature(image_bytes=tf.constant(photos)).items()
        }
        return [
            {
                "label": outputs[contract.LABEL][row].decode(),
                "scores": outputs[contract.SCORES][row].tolist(),
                "status": outputs[contract.STATUS][row].decode(),
            }
            for row in range(len(photos))
        ]

    return run


def serve_fastapi(base: Path) -> None:
    """Serve POST / with a photo; requests that wait while a batch runs are merged, up to 32."""
    import uvicorn
    from fastapi import FastAPI, Request

    run = _load_as_user(base)
    for size in (1, 2, 4, 8, 16, 32):
        run(read_photos()[:size])
    waiting: asyncio.Queue[tuple[bytes, asyncio.Future[dict[str, Any]]]] = asyncio.Queue(256)

    async def merge() -> None:
        while True:
            batch = [await waiting.get()]
            until = time.monotonic() + _WAIT_SECONDS
            while len(batch) < _MAX_BATCH and (left := until - time.monotonic()) > 0:
                try:
                    batch.append(await asyncio.wait_for(waiting.get(), left))
                except TimeoutError:
                    break
            answers = await asyncio.to_thread(run, [photo for photo, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(merge())
        print(f"ready {port}", flush=True)
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    async def predict(request: Request) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        await waiting.put((await request.body(), future))
        return await future

    predict.__annotations__["request"] = Request  # FastAPI resolves the annotation in this module
    app.post("/")(predict)
    port = int(sys.argv[3])
    uvicorn.run(
        app, host="localhost", port=port, log_level="warning", access_log=False, timeout_keep_alive=3600
    )


def read_photos() -> list[bytes]:
    """Read the photos whose paths are in the environment variable BENCH_PHOTOS."""
    return [Path(path).read_bytes() for path in json.loads(os.environ["BENCH_PHOTOS"])]


if __name__ == "__main__":
    roles = {"bundle": write_bundle, "direct": run_direct, "bare": serve_bare, "fastapi": serve_fastapi}
    roles[sys.argv[1]](Path(sys.argv[2]))
