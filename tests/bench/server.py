"""The local server beside serving.runtime called directly, bare gRPC and FastAPI: `make bench-server`.

ratio     photos/s of 16 callers with one photo each, over each of them; the sides take turns
latency   median of a single caller, beside the direct call and beside grpc.aio around it with nothing
else: on machines where memory that rests grows cold that alone takes many milliseconds
overload  twice the capacity for a minute, each call with a deadline: who is answered, who is refused
and how fast, the server's memory, and how soon it is itself again
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from serving import contract, protos
from serving.protos import tensors
from tests.support.fake_model import free_port

CALLERS = 16
MODEL = "bench"
SIDES = "tests.bench.server_sides"


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A side, once it says that it is ready; ended with the block."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as found:
        try:
            yield found
        finally:
            found.terminate()


def first_line(found: subprocess.Popen[str]) -> str:
    assert found.stdout is not None
    line = found.stdout.readline()
    if not line:
        raise RuntimeError(f"{found.args} ended before it was ready")
    return line


def told(found: subprocess.Popen[str], line: str) -> float:
    assert found.stdin is not None
    found.stdin.write(f"{line}\n")
    found.stdin.flush()
    return float(first_line(found))


def bodies(photos: list[bytes]) -> list[bytes]:
    """Serialized PredictRequests, so that the callers cost next to nothing."""
    found = []
    for photo in photos:
        request = protos.PredictRequest(model_spec={"name": MODEL})
        request.inputs[contract.IMAGE_BYTES].CopyFrom(tensors.encode([photo]))
        found.append(request.SerializeToString())
    return found


def grpc_caller(port: int, photos: list[bytes]) -> Callable[[int], None]:
    """Asks about the photo of a number; one for all threads."""
    call = grpc.insecure_channel(f"localhost:{port}").unary_unary(protos.PREDICT)
    sent = bodies(photos)
    return lambda number: call(sent[number % len(sent)], timeout=60)


def bare_caller(port: int, photos: list[bytes]) -> Callable[[int], None]:
    """As `grpc_caller`, of the bare server."""
    call = grpc.insecure_channel(f"localhost:{port}").unary_unary("/bench.Bare/Label")
    return lambda number: call(photos[number % len(photos)], timeout=60)


def http_caller(port: int, photos: list[bytes]) -> Callable[[int], None]:
    """As `grpc_caller`, over a connection a thread."""
    local = threading.local()

    def call(number: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("localhost", port, timeout=60)
        local.connection.request("POST", "/", photos[number % len(photos)])
        response = local.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"FastAPI answered {response.status}: {body[:200]!r}")

    return call


def throughput(call: Callable[[int], None], count: int, pool: ThreadPoolExecutor) -> float:
    start = time.perf_counter()
    for _ in pool.map(call, range(count)):
        pass
    return count / (time.perf_counter() - start)


def median_seconds(call: Callable[[int], None], count: int) -> float:
    found = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def overload(port: int, pid: int, photos: list[bytes], rate: float, seconds: float, deadline: float) -> None:
    """Calls at a fixed rate whatever comes back, and what came back."""
    call = grpc.insecure_channel(f"localhost:{port}").unary_unary(protos.PREDICT)
    sent = bodies(photos)
    ended: list[tuple[str, float]] = []
    memory: list[float] = []
    begin = time.perf_counter()
    total = int(rate * seconds)
    for number in range(total):
        due = begin + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        future = call.future(sent[number % len(sent)], timeout=deadline)
        future.add_done_callback(lambda done, start=start: ended.append(outcome(done, start)))
        if number % max(1, int(rate)) == 0:
            memory.append(resident_mib(pid))
    offered = total / (time.perf_counter() - begin)
    stopped = time.perf_counter()
    recovered = recovery(call, sent[0])
    while len(ended) < total and time.perf_counter() - stopped < 4 * deadline:
        time.sleep(0.01)
    codes = Counter(code for code, _ in ended)
    answered = sorted(took for code, took in ended if code == "OK")
    refused = sorted(took for code, took in ended if code == "UNAVAILABLE")
    accepted = total - codes["UNAVAILABLE"]
    print(f"  offered {offered:.0f}/s for {seconds:.0f} s, deadline {deadline:g} s: {dict(codes)}")
    print(f"  lost: {total - len(ended)}; answered {codes['OK'] / seconds:.0f}/s")
    print(
        f"  of those accepted, in time: {codes['OK'] / max(accepted, 1):.2%}; p99 {at(answered, 0.99):.3f} s"
    )
    print(f"  refused within, median {at(refused, 0.5) * 1000:.1f} ms, p99 {at(refused, 0.99) * 1000:.1f} ms")
    quarter = max(1, len(memory) // 4)
    print(
        f"  memory of the server, MiB: first quarter up to {max(memory[:quarter]):.0f}, "
        f"last quarter up to {max(memory[-quarter:]):.0f}"
    )
    print(f"  answers a single caller in time again after {recovered:.2f} s")


def outcome(done: Any, start: float) -> tuple[str, float]:
    return done.code().name, time.perf_counter() - start


def recovery(call: Any, body: bytes) -> float:
    """Seconds until the first of five calls in a row that are answered within half a second."""
    begin = time.perf_counter()
    since: float | None = None
    row = 0
    while row < 5:
        start = time.perf_counter()
        try:
            call(body, timeout=0.5)
        except grpc.RpcError:
            since, row = None, 0
            time.sleep(0.02)
            continue
        since, row = since or start, row + 1
    return (since or begin) - begin


def at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison; 0: none (default 5)")
    parser.add_argument("--photos", type=int, default=384, help="photos a round (default 384)")
    parser.add_argument("--seconds", type=float, default=60, help="of overload; 0: none (default 60)")
    parser.add_argument("--deadline", type=float, default=1.0, help="of a call in the overload (default 1)")
    options = parser.parse_args()

    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    paths = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))[:128]
    os.environ["BENCH_PHOTOS"] = json.dumps([str(path) for path in paths])
    photos = [path.read_bytes() for path in paths]
    print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-server-") as top:
        measure(options, photos, Path(top) / MODEL)
    print(f"load after: {os.getloadavg()[0]:.1f}")


def measure(options: argparse.Namespace, photos: list[bytes], base: Path) -> None:
    with process("-m", SIDES, "bundle", str(base)) as made:
        first_line(made)
        made.wait()
    arguments = ("-m", "serving", "serve", "--model_base_path", str(base), "--port", "0")
    with process(*arguments) as server, ThreadPoolExecutor(CALLERS) as pool:
        port = int(first_line(server).partition("localhost:")[2].split()[0])
        ours = grpc_caller(port, photos)
        if options.rounds:
            compare(options, photos, base, server.pid, ours, pool)
        if options.seconds:
            throughput(ours, options.photos // 4, pool)
            capacity = throughput(ours, options.photos, pool)
            print(f"overload, at twice {capacity:.0f}/s:", flush=True)
            overload(port, server.pid, photos, 2 * capacity, options.seconds, options.deadline)


def compare(
    options: argparse.Namespace,
    photos: list[bytes],
    base: Path,
    pid: int,
    ours: Callable[[int], None],
    pool: ThreadPoolExecutor,
) -> None:
    """The sides take turns."""
    fastapi_port = str(free_port())
    with (
        process("-m", SIDES, "direct", str(base)) as direct,
        process("-m", SIDES, "bare", str(base)) as plain,
        process("-m", SIDES, "fastapi", str(base), fastapi_port) as fastapi,
    ):
        first_line(direct)
        first_line(fastapi)
        bare = bare_caller(int(first_line(plain).split()[1]), photos)
        theirs = http_caller(int(fastapi_port), photos)
        time.sleep(1)
        latencies: dict[str, list[float]] = {"direct": [], "bare gRPC": [], "server": []}
        runs: dict[str, tuple[int, Callable[[], float]]] = {
            "direct": (direct.pid, lambda: told(direct, f"many {options.photos}")),
            "bare gRPC": (plain.pid, lambda: throughput(bare, options.photos, pool)),
            "server": (pid, lambda: throughput(ours, options.photos, pool)),
            "FastAPI": (fastapi.pid, lambda: throughput(theirs, options.photos, pool)),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        costs: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(options.rounds + 1):
            found, spent = {}, {}
            for name, (side, run) in runs.items():
                before = cpu_seconds(side)
                found[name] = run()
                spent[name] = (cpu_seconds(side) - before) / options.photos
            single = {
                "direct": told(direct, "one 64"),
                "bare gRPC": median_seconds(bare, 64),
                "server": median_seconds(ours, 64),
            }
            print(
                f"round {turn}: "
                + ", ".join(
                    f"{name} {rate:.0f} photos/s at {spent[name] * 1000:.1f} ms of CPU"
                    for name, rate in found.items()
                )
                + "; one caller "
                + ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in single.items()),
                flush=True,
            )
            if turn:  # the first warms up
                for name, rate in found.items():
                    rates[name].append(rate)
                    costs[name].append(spent[name])
                for name, seconds in single.items():
                    latencies[name].append(seconds)
    show(rates, costs, latencies)


def show(
    rates: dict[str, list[float]], costs: dict[str, list[float]], latencies: dict[str, list[float]]
) -> None:
    """Medians, and medians of the ratios of each round.

    On a machine that others use, CPU seconds say more than seconds.
    """
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["server"], found, strict=True))
        print(
            f"{name:9} {statistics.median(found):7.1f} photos/s ({min(found):.0f} to {max(found):.0f}), "
            f"server over it {ratio:.2f}; per CPU second "
            f"{statistics.median(b / a for a, b in zip(costs['server'], costs[name], strict=True)):.2f}"
        )
    for name, found in latencies.items():
        print(f"{name:9} {statistics.median(found) * 1000:7.1f} ms for a single caller's photo")
    for name in ("direct", "bare gRPC"):
        more = statistics.median(a - b for a, b in zip(latencies["server"], latencies[name], strict=True))
        print(f"server over {name}: {more * 1000:+.1f} ms")


if __name__ == "__main__":
    main()
