"""Redis beside generations: PING latency, and throughput of SET and GET.

    python bench/responsiveness.py
    python bench/responsiveness.py --model ./qwen3-4b.gguf --clients 4 --pings 5000

Starts a server whose models compute on every processor, and 16 clients that generate all the
time and stream their tokens. PINGs come from another process, one each millisecond, so that the
server has to wake up for each. redis-benchmark, if there is one on PATH, runs in turns without
and with the load. At the end, what the module says about its own turns of Redis' main thread.

The clients, redis-benchmark and the server share the processors, as they would on a small machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from typing import Any

import redis

from load import generating
from redis_infer import Infer
from redis_infer.cli_support import file_for, name_for
from redis_infer.server import Server

POINTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def _ping(url: str, count: int, every_s: float, result: Any) -> None:
    client = redis.Redis.from_url(url, protocol=2)
    client.ping()
    took = []
    due = time.perf_counter()
    for _ in range(count):
        due = max(due + every_s, time.perf_counter())
        while (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        began = time.perf_counter_ns()
        client.ping()
        took.append((time.perf_counter_ns() - began) / 1000)
    result.send(took)


def ping(server: Server, count: int, every_s: float) -> list[float]:
    """Microseconds of ``count`` PINGs from another process, sorted."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_ping, args=(server.url, count, every_s, send), daemon=True)
    process.start()
    took: list[float] = receive.recv()
    process.join()
    return sorted(took)


def summary(took: list[float]) -> str:
    points = [f"{name} {took[int(len(took) * p)]:.0f}" for name, p in POINTS.items()]
    return f"{', '.join(points)}, max {took[-1]:.0f} us"


def throughput(server: Server, program: str, count: int) -> dict[str, float]:
    """Requests per second of SET and GET."""
    command = [program, "-p", str(server.port), "-t", "set,get", "-n", str(count), "--csv"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {row["test"]: float(row["rps"]) for row in csv.DictReader(io.StringIO(output))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="known name or GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pings", type=int, default=20000)
    parser.add_argument("--every-ms", type=float, default=1.0, help="0: one after the other")
    parser.add_argument("--rounds", type=int, default=3, help="of redis-benchmark")
    parser.add_argument("--requests", type=int, default=50000, help="of redis-benchmark")
    options = parser.parse_args()

    name, path = name_for(options.model), file_for(options.model)
    program = shutil.which("redis-benchmark")
    with (
        Server(model_dir=path.parent, threads=options.threads) as server,
        server.client() as client,
    ):
        Infer(client).load(name, path)
        every_s = options.every_ms / 1000
        ping(server, 500, every_s)  # warms up
        print(f"PING, idle:   {summary(ping(server, options.pings // 4, every_s))}", flush=True)
        with generating(server, name, options.clients):
            before = client.info("infer")
            began = time.perf_counter()
            print(f"PING, loaded: {summary(ping(server, options.pings, every_s))}", flush=True)
            took = time.perf_counter() - began
            after = client.info("infer")
            tokens = after["infer_output_tokens"] - before["infer_output_tokens"]
            print(
                f"  meanwhile {options.clients} clients got {tokens / took:.0f} tok/s with "
                f"{options.threads} threads; a step took "
                f"{after['infer_step_p50_us'] / 1000:.1f} ms (p50)"
            )

        if program is None:
            print("SET, GET: no redis-benchmark on PATH")
        elif options.rounds > 0:
            rates: dict[tuple[str, str], list[float]] = {}
            for _ in range(options.rounds):
                for test, rate in throughput(server, program, options.requests).items():
                    rates.setdefault((test, "idle"), []).append(rate)
                with generating(server, name, options.clients):
                    for test, rate in throughput(server, program, options.requests).items():
                        rates.setdefault((test, "loaded"), []).append(rate)
            for test in ("SET", "GET"):
                idle = statistics.median(rates[test, "idle"])
                loaded = statistics.median(rates[test, "loaded"])
                print(f"{test}: idle {idle:.0f}/s, loaded {loaded:.0f}/s, {loaded / idle:.0%}")

        info = client.info("infer")
        for what in ("turn", "turn_cpu", "wait"):
            points = [
                f"{p} {info[f'infer_write_{what}_{p}_us']}" for p in ("p50", "p90", "p99", "max")
            ]
            print(f"write {what}, {info['infer_write_turns']} turns: {', '.join(points)} us")


if __name__ == "__main__":
    main()
