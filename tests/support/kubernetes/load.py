"""Load of hubhead's client with its retries, inside a pod: `python - TARGET RATE SECONDS <load.py`.

It imports nothing of the tests, and prints one JSON object.
"""

import asyncio
import json
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.client import AsyncClient, Metrics
from serving.loadtest.generator import Load, run_load


async def run(target: str, rate: float, seconds: float) -> None:
    """Send photos of /photos/smoke to the version labelled stable, and print what came of it."""
    photos = [path.read_bytes() for path in sorted(Path("/photos/smoke").iterdir())]
    registry = CollectorRegistry()
    async with AsyncClient(target, model="food", label="stable", metrics=Metrics(registry)) as client:
        # With retries, unlike in a load test: what counts is which requests fail in the end.
        result = await run_load(client, photos, Load(rate, seconds))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    attempts = {
        sample.labels["code"]: int(sample.value)
        for sample in samples
        if sample.name == "hubhead_client_requests_total" and sample.labels["code"] != "OK"
    }
    latencies = result.latencies or [float("nan")]
    print(
        json.dumps(
            {
                "requests": len(result.samples) + result.dropped,
                "failed": result.errors,
                "statuses": dict(result.statuses),
                "failed attempts": attempts,
                "median": latencies[len(latencies) // 2],
                "largest": latencies[-1],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
