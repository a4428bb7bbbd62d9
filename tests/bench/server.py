"""The local server compared with direct calls of serving.runtime and bare gRPC: `make bench-server`.

ratio     photos/s of 16 callers with one photo each, relative to each peer; the peers run in turns
latency   median of a single caller, compared with the direct call and with grpc.aio around it and nothing
          else: on machines whose idle memory gets cold that alone takes many milliseconds
overload  twice the capacity for a minute, each call with a deadline: answered and rejected calls and their
          latencies, the memory of the server, and the time until it has recovered
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from serving import protos
from tests.bench import results
from tests.bench.callers import MODEL as MODEL
from tests.bench.callers import Call, make_grpc_caller
from tests.bench.callers import quantile as quantile
from tests.bench.callers import serialize_requests as serialize_requests
from tests.bench.processes import cpu_seconds, read_serve_port
from tests.bench.processes import read_line as read_line
from tests.bench.processes import resident_mib as resident_mib
from tests.bench.processes import start_process as start_process

CALLERS = 16
PEERS = "tests.bench.server_peers"


def send_command(process: subprocess.Popen[str], command: str) -> float:
    """Send a command to the process of `run_direct`; return the number that it answers."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return float(read_line(process))


def measure_throughput(call: Call, count: int, pool: ThreadPoolExecutor) -> float:
    """Make calls from all threads of a pool; return photos/s."""
    start = time.perf_counter()
    for _ in pool.map(call, range(count)):
        pass
    return count / (time.perf_counter() - start)


def measure_latency(call: Call, count: int) -> float:
    """Make calls one after another; return the median seconds."""
    found = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure_overload(
    port: int, pid: int, photos: list[bytes], rate: float, seconds: float, deadline: float
) -> None:
    """Send open-loop load at a fixed rate, and print outcomes, latencies, memory and recovery time."""
    call = grpc.insecure_channel(f"localhost:{port}").unary_unary(protos.PREDICT)
    requests = serialize_requests(photos)
    ended: list[tuple[str, float]] = []
    memory: list[float] = []
    begin = time.perf_counter()
    total = int(rate * seconds)
    for number in range(total):
        due = begin + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        future = call.future(requests[number % len(requests)], timeout=deadline)
        future.add_done_callback(
            lambda done, start=start: ended.append((done.code().name, time.perf_counter() - start))
        )
        if number % max(1, int(rate)) == 0:
            memory.append(resident_mib(pid))
    offered = total / (time.perf_counter() - begin)
    stopped = time.perf_counter()
    recovered = measure_recovery(call, requests[0])
    while len(ended) < total and time.perf_counter() - stopped < 4 * deadline:
        time.sleep(0.01)
    codes = Counter(code for code, _ in ended)
    answered = sorted(seconds for code, seconds in ended if code == "OK")
    rejected = sorted(seconds for code, seconds in ended if code == "UNAVAILABLE")
    accepted = total - codes["UNAVAILABLE"]
    print(f"  offered {offered:.0f}/s for {seconds:.0f} s, deadline {deadline:g} s: {dict(codes)}")
    print(f"  lost: {total - len(ended)}; answered {codes['OK'] / seconds:.0f}/s")
    in_time = codes["OK"] / max(accepted, 1)
    print(f"  accepted calls answered in time: {in_time:.2%}; p99 {quantile(answered, 0.99):.3f} s")
    median, p99 = (1000 * quantile(rejected, fraction) for fraction in (0.5, 0.99))
    print(f"  time to rejection: median {median:.1f} ms, p99 {p99:.1f} ms")
    quarter = max(1, len(memory) // 4)
    print(
        f"  memory of the server, MiB: up to {max(memory[:quarter]):.0f} in the first quarter, "
        f"up to {max(memory[-quarter:]):.0f} in the last"
    )
    print(f"  recovered, with a single caller answered in time, after {recovered:.2f} s")
    row = {"offered/s": offered, "answered/s": codes["OK"] / seconds, "lost": total - len(ended)}
    row |= {"accepted and in time": in_time, "p99 s": quantile(answered, 0.99), "rejected, median ms": median}
    row |= {"MiB at first": max(memory[:quarter]), "MiB at the end": max(memory[-quarter:])}
    title = f"Twice the capacity for {seconds:.0f} s, deadlines of {deadline:g} s"
    results.add_row(title, row | {"recovered after s": recovered})


def measure_recovery(call: Any, request: bytes) -> float:
    """Return the seconds until the first of five consecutive calls that are answered within 0.5 s."""
    begin = time.perf_counter()
    first: float | None = None
    consecutive = 0
    while consecutive < 5:
        start = time.perf_counter()
        try:
            call(request, timeout=0.5)
        except grpc.RpcError:
            first, consecutive = None, 0
            time.sleep(0.02)
            continue
        first, consecutive = first or start, consecutive + 1
    return (first or begin) - begin


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="number of counted rounds of the comparison; 0 skips it (default 5)",
    )
    parser.add_argument("--photos", type=int, default=384, help="photos per round (default 384)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="duration of the overload; 0 skips it (default 60)"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=1.0,
        help="deadline of a call in the overload, in seconds (default 1)",
    )
    results.add_output_option(parser)
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
    results.write(options.output, "server")


def measure(options: argparse.Namespace, photos: list[bytes], base: Path) -> None:
    """Start the server; compare it with its peers and overload it."""
    with start_process("-m", PEERS, "bundle", str(base)) as writer:
        read_line(writer)
        writer.wait()
    arguments = ("-m", "serving", "serve", "--model_base_path", str(base), "--port", "0")
    with start_process(*arguments) as server, ThreadPoolExecutor(CALLERS) as pool:
        port = read_serve_port(server)
        call_server = make_grpc_caller(port, protos.PREDICT, serialize_requests(photos))
        if options.rounds:
            compare(options, photos, base, server.pid, call_server, pool)
        if options.seconds:
            measure_throughput(call_server, options.photos // 4, pool)
            capacity = measure_throughput(call_server, options.photos, pool)
            print(f"overload at twice the capacity of {capacity:.0f}/s:", flush=True)
            measure_overload(port, server.pid, photos, 2 * capacity, options.seconds, options.deadline)


def compare(
    options: argparse.Namespace,
    photos: list[bytes],
    base: Path,
    pid: int,
    call_server: Call,
    pool: ThreadPoolExecutor,
) -> None:
    """Measure the server and its peers in turns."""
    with (
        start_process("-m", PEERS, "direct", str(base)) as direct,
        start_process("-m", PEERS, "bare", str(base)) as bare,
    ):
        read_line(direct)
        call_bare = make_grpc_caller(int(read_line(bare).split()[1]), "/bench.Bare/Label", photos)
        time.sleep(1)
        latencies: dict[str, list[float]] = {"direct": [], "bare gRPC": [], "server": []}
        runs: dict[str, tuple[int, Callable[[], float]]] = {
            "direct": (direct.pid, lambda: send_command(direct, f"many {options.photos}")),
            "bare gRPC": (bare.pid, lambda: measure_throughput(call_bare, options.photos, pool)),
            "server": (pid, lambda: measure_throughput(call_server, options.photos, pool)),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        costs: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(options.rounds + 1):
            found, spent = {}, {}
            for name, (process_id, run) in runs.items():
                before = cpu_seconds(process_id)
                found[name] = run()
                spent[name] = (cpu_seconds(process_id) - before) / options.photos
            single = {
                "direct": send_command(direct, "one 64"),
                "bare gRPC": measure_latency(call_bare, 64),
                "server": measure_latency(call_server, 64),
            }
            print(
                f"round {number}: "
                + ", ".join(
                    f"{name} {rate:.0f} photos/s at {spent[name] * 1000:.1f} ms of CPU per photo"
                    for name, rate in found.items()
                )
                + "; single caller "
                + ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in single.items()),
                flush=True,
            )
            if number:  # the first round is a warm-up
                for name, rate in found.items():
                    rates[name].append(rate)
                    costs[name].append(spent[name])
                for name, seconds in single.items():
                    latencies[name].append(seconds)
    print_table(rates, costs, latencies)


def print_table(
    rates: dict[str, list[float]], costs: dict[str, list[float]], latencies: dict[str, list[float]]
) -> None:
    """Print medians, and medians of the ratios of each round.

    On a shared machine, CPU seconds are more reliable than wall seconds.
    """
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["server"], found, strict=True))
        print(
            f"{name:9} {statistics.median(found):7.1f} photos/s ({min(found):.0f} to {max(found):.0f}), "
            f"ratio of the server {ratio:.2f}, per CPU second "
            f"{statistics.median(b / a for a, b in zip(costs['server'], costs[name], strict=True)):.2f}"
        )
        results.add_row(
            f"{CALLERS} callers with one photo each, and a single caller",
            {
                "called": name,
                "photos/s": statistics.median(found),
                "ratio of the server": ratio,
                "single caller, ms": 1000 * statistics.median(latencies[name]),
            },
        )
    for name, found in latencies.items():
        print(f"{name:9} {statistics.median(found) * 1000:7.1f} ms per photo of a single caller")
    for name in ("direct", "bare gRPC"):
        difference = statistics.median(
            a - b for a, b in zip(latencies["server"], latencies[name], strict=True)
        )
        print(f"server minus {name}: {difference * 1000:+.1f} ms")


if __name__ == "__main__":
    main()
