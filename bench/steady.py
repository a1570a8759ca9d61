"""Long generations: does Redis answer meanwhile, and does its memory stay what it is?

    python bench/steady.py
    python bench/steady.py --model ./qwen3-4b.gguf --tokens 256

Generates with one client and then with four at once, each into a stream that is trimmed, while
another process sends a PING each millisecond. Prints PING latencies, the module's turns of
Redis' main thread, and memory when the first tokens are there, at the end, and after the same
once more: what a server needs for good is there by then, so that what is still added would be
growth.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from redis_infer import Generation, Infer
from redis_infer.cli_support import file_for, name_for
from redis_infer.server import Server
from responsiveness import ping, summary

PROMPT_TOKENS = 64


class Memory:
    """What the server's process holds, in bytes."""

    def __init__(self, client: Any, pid: int) -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert anonymous
        infer = client.info("infer")
        self.own = int(anonymous[1]) * 1024
        self.used_memory = client.info("memory")["used_memory"]
        self.kv = infer["infer_memory_kv_used_bytes"]

    def __str__(self) -> str:
        return (
            f"process {self.own / 1e6:.1f} MB, of it KV cache in use {self.kv / 1e6:.1f}; "
            f"used_memory {self.used_memory / 1e6:.2f} MB"
        )


def generate(
    server: Server, model: str, clients: int, tokens: int, seed: int
) -> tuple[list[Generation], list[threading.Thread]]:
    """Starts ``clients`` generations at once; the list fills as they end."""
    made: list[Generation] = []

    def one(number: int) -> None:
        with server.client(socket_timeout=None) as connection:
            start = 1000 + 7919 * (seed * clients + number)
            prompt = [1000 + (start + 104729 * i) % 30000 for i in range(PROMPT_TOKENS)]
            options: Any = {"max_tokens": tokens, "ignore_eos": True, "no_cache": True}
            options |= {"stream": f"out:{number}", "stream_maxlen": 10}
            made.append(Infer(connection).generate(model, prompt, **options))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    return made, threads


def phase(server: Server, client: Any, model: str, clients: int, tokens: int) -> None:
    pid = client.info("server")["process_id"]
    for repetition in range(2):
        made, threads = generate(server, model, clients, tokens, repetition)
        while client.info("infer")["infer_requests_running"] < clients:
            time.sleep(0.05)
        time.sleep(1)
        early = Memory(client, pid)
        began = time.monotonic()
        took = []
        while any(thread.is_alive() for thread in threads):
            took += ping(server, 1000, 0.001)
        late = Memory(client, pid)
        for thread in threads:
            thread.join()
        end = Memory(client, pid)
        speed = sum(g.output_tokens for g in made) / max(g.total_us for g in made) * 1e6
        print(
            f"\n{clients} at once, {tokens} tokens each, {time.monotonic() - began:.0f} s, "
            f"{speed:.1f} tok/s in all\n"
            f"  PING, {len(took)} of them: {summary(sorted(took))}\n"
            f"  memory early: {early}\n  memory late:  {late}\n  memory after: {end}",
            flush=True,
        )
        assert all(g.output_tokens == tokens for g in made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="known name or GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads")
    parser.add_argument("--tokens", type=int, default=512, help="that each client gets")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()

    name, path = name_for(options.model), file_for(options.model)
    with (
        Server(model_dir=path.parent, threads=options.threads) as server,
        server.client(socket_timeout=None) as client,
    ):
        Infer(client).load(name, path)
        ping(server, 500, 0.001)  # warms up
        print(f"PING, idle: {summary(ping(server, 3000, 0.001))}", flush=True)
        for clients in options.clients:
            phase(server, client, name, clients, options.tokens)
        info = client.info("infer")
        points = ("p50", "p90", "p99", "max")
        for what in ("turn", "wait"):
            values = ", ".join(f"{p} {info[f'infer_write_{what}_{p}_us']}" for p in points)
            print(f"\nwrite {what}, {info['infer_write_turns']} turns: {values} us", end="")
        print()


if __name__ == "__main__":
    main()
