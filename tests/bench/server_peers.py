"""Processes that tests.bench.server compares the server with: `python -m tests.bench.server_peers ROLE BASE`.

bundle   writes a bundle of the default backbone to BASE
direct   serving.runtime on that bundle, with commands on stdin
bare     grpc.aio around serving.runtime and nothing else: the cost of gRPC itself on this machine
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import contract

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def write_bundle(base: Path) -> None:
    """Write the bundle."""
    from tests.bench.rescore import export_bundle

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


def read_photos() -> list[bytes]:
    """Read the photos whose paths are in the environment variable BENCH_PHOTOS."""
    return [Path(path).read_bytes() for path in json.loads(os.environ["BENCH_PHOTOS"])]


if __name__ == "__main__":
    roles = {"bundle": write_bundle, "direct": run_direct, "bare": serve_bare}
    roles[sys.argv[1]](Path(sys.argv[2]))
