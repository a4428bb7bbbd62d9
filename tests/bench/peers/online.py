"""Serving: `hubhead serve` and the servers that users would write, with 1 to 16 callers of one photo each."""

from __future__ import annotations

import base64
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serving import contract, protos
from serving.protos import tensors
from tests.bench.callers import (
    Call,
    make_grpc_caller,
    make_http_caller,
    measure_calls,
    quantile,
    serialize_requests,
)
from tests.bench.interleave import take_turns
from tests.bench.peers.batch import MIN_AGREEMENT
from tests.bench.peers.model import BUNDLE
from tests.bench.processes import ProcessTree, read_serve_port, start_process
from tests.support.fake_model import free_port

BASE = "hubhead serve"
SERVERS = {BASE: (), "FastAPI": ("fastapi", "uvicorn", "PIL"), "LitServe": ("litserve", "PIL")}
"""Names of the servers, and the modules that each needs beside hubhead's own."""

_START_SECONDS = 300


@dataclass(frozen=True)
class Figures:
    """Figures of one server and number of callers.

    Attributes:
        requests_per_second: answered requests, of one photo each.
        p50_ms, p99_ms: quantiles of the time that a caller waits.
        processor_ms: processor milliseconds of the server per photo.
        mib: resident memory of the server's processes afterwards.
    """

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    processor_ms: float
    mib: float

    def __str__(self) -> str:
        return f"{self.requests_per_second:7.1f} requests/s, {self.p50_ms:6.1f} ms, p99 {self.p99_ms:6.1f} ms"


@dataclass(frozen=True)
class Row:
    """A row of the table: medians over the rounds, or why a server was skipped."""

    callers: int
    name: str
    figures: Figures | None = None
    agreement: float = float("nan")
    skipped: str = ""


@dataclass(frozen=True)
class _Server:
    """A running server.

    Attributes:
        call: sends it a photo.
        tree: its processes.
        labels: its best labels for the photos, in order.
    """

    call: Call
    tree: ProcessTree
    labels: Sequence[str]

    def measure(self, callers: int, count: int) -> Figures:
        """Send requests from a number of callers."""
        before, _ = self.tree.read()
        seconds, latencies = measure_calls(self.call, count, callers)
        after, mib = self.tree.read()
        p50, p99 = (1000 * quantile(latencies, fraction) for fraction in (0.5, 0.99))
        return Figures(count / seconds, p50, p99, 1000 * (after - before) / count, mib)


@contextmanager
def _run_server(name: str, model: Path, photos: Sequence[bytes]) -> Iterator[_Server]:
    """Start a server within a `with` block, and send it each photo once."""
    port = free_port()
    arguments = {
        BASE: ("hubhead", "serve", "--model_base_path", str(model / BUNDLE), "--port", "0"),
        "FastAPI": ("tests.bench.peers.scripts.fastapi_server", str(model), str(port)),
        "LitServe": ("tests.bench.peers.scripts.litserve_server", str(model), str(port)),
    }
    with start_process("-m", *arguments[name]) as process:
        if name == BASE:
            requests = serialize_requests(photos)
            call = make_grpc_caller(read_serve_port(process), protos.PREDICT, requests)
        elif name == "FastAPI":
            call = make_http_caller(port, "/", photos)
        else:
            bodies = [json.dumps({"photo": base64.b64encode(photo).decode()}).encode() for photo in photos]
            call = make_http_caller(port, "/predict", bodies)
        _wait_for_answer(call, process)
        read = _read_grpc_label if name == BASE else _read_json_label
        labels = [read(call(number)) for number in range(len(photos))]
        yield _Server(call, ProcessTree(process.pid), labels)


def _read_grpc_label(body: bytes) -> str:
    outputs = protos.PredictResponse.FromString(body).outputs
    return bytes(tensors.decode(outputs[contract.LABEL], contract.LABEL)[0]).decode()


def _read_json_label(body: bytes) -> str:
    return str(json.loads(body)["label"])


def _wait_for_answer(call: Call, process: subprocess.Popen[str]) -> None:
    """Call a server until it answers.

    Raises:
        RuntimeError: it ended, or does not answer in time.
    """
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            call(0)
            return
        except (OSError, RuntimeError):
            time.sleep(0.5)
    raise RuntimeError(f"{process.args} does not answer.")


def compare(
    model: Path,
    photos: Sequence[bytes],
    callers: Sequence[int],
    rounds: int,
    requests: int,
    names: Sequence[str],
) -> list[Row]:
    """Run the servers at the same time, call them in turns, and return a row for each number of callers.

    Args:
        model: directory that `tests.bench.peers.model` wrote.
        photos: encoded photos to send.
        callers: numbers of callers.
        rounds: number of counted rounds.
        requests: requests per round.
        names: servers to compare with hubhead's.

    Raises:
        RuntimeError: a server does not start, or does not have hubhead's labels.
    """
    missing = {name: [module for module in SERVERS[name] if not find_spec(module)] for name in names}
    running = list(dict.fromkeys([BASE, *(name for name in names if not missing[name])]))
    rows = [
        Row(0, name, skipped=f"not installed: {', '.join(modules)}")
        for name, modules in missing.items()
        if modules
    ]
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_run_server(name, model, photos)) for name in running}
        pairs = zip(*(server.labels for server in servers.values()), strict=True)
        equal = [[label == first for label in labels] for first, *labels in ((row[0], *row) for row in pairs)]
        agreement = dict(zip(running, map(statistics.mean, zip(*equal, strict=True)), strict=True))
        for name, share in agreement.items():
            if share < MIN_AGREEMENT:
                raise RuntimeError(f"{name} has hubhead's label for {share:.1%} of the photos only.")
        for number in callers:
            turns = take_turns(running, rounds, lambda name, n=number: servers[name].measure(n, requests))
            rows += [Row(number, name, _median(turns[name]), agreement[name]) for name in running]
    return rows


def _median(turns: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(values) for values in zip(*map(_list_values, turns), strict=True)))


def _list_values(figures: Figures) -> tuple[float, ...]:
    return tuple(vars(figures).values())


def print_table(rows: Sequence[Row]) -> None:
    """Print one line per server and number of callers."""
    print(f"\n{'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'cpu ms':>7} {'MiB':>6} {'same':>5}")
    for row in rows:
        if row.figures is None:
            print(f"{'skipped':>10}  {row.name} ({row.skipped})")
            continue
        found, title = row.figures, f"{row.callers} caller{'s' if row.callers > 1 else ''}: {row.name}"
        print(
            f"{found.requests_per_second:10.1f} {found.p50_ms:8.1f} {found.p99_ms:8.1f} "
            f"{found.processor_ms:7.1f} {found.mib:6.0f} {row.agreement:5.0%}  {title}"
        )
