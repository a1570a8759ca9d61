"""Many clients, one model: tokens per second of all together, and first tokens after a prefix.

    python bench/many_clients.py
    python bench/many_clients.py --llama-batched-bench ./llama-batched-bench --rounds 5

Decode: each client continues a prompt of its own that is known already, so that all of them decode
at the same time; what counts is the tokens of all clients from the first token that one of them
gets to the last one. llama.cpp's llama-batched-bench does the same with the same model file,
threads and lengths, in turns with ours; its figure is S_TG, which leaves the prompts out.

First token: a prompt of 4096 known tokens and one that is new, in decode steps at that depth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from redis_infer import Generation, Infer
from redis_infer.cli_support import file_for, name_for
from redis_infer.server import Server

CONTEXT_FOR_LLAMA = 8192


def tokens(seed: int, n: int) -> list[int]:
    """Ids that every vocabulary has, different for each seed."""
    return [1000 + (seed * 7919 + i * 104729) % 30000 for i in range(n)]


def decode(server: Server, model: str, clients: int, prompt: int, output: int) -> float:
    """Tokens per second of all clients together."""
    spans: list[tuple[float, float, int]] = []

    def client(seed: int) -> None:
        with server.client() as connection:
            infer = Infer(connection)
            connection.ping()
            ready.wait()
            began = time.perf_counter()
            made = infer.generate(model, tokens(seed, prompt), max_tokens=output, ignore_eos=True)
            first, end = made.first_token_us / 1e6, made.total_us / 1e6
            spans.append((began + first, began + end, made.output_tokens))

    with server.client() as connection:
        for seed in range(clients):
            Infer(connection).generate(model, tokens(seed, prompt), max_tokens=1)
    ready = threading.Barrier(clients)
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = max(end for _, end, _ in spans) - min(first for first, _, _ in spans)
    return (sum(n for _, _, n in spans) - clients) / took


def llama(program: str, path: Path, clients: int, prompt: int, output: int, threads: int) -> float:
    command = [
        *(program, "-m", str(path), "-c", str(CONTEXT_FOR_LLAMA), "-t", str(threads)),
        *("-npp", str(prompt), "-ntg", str(output), "-npl", str(clients)),
        *("--output-format", "jsonl"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])["speed_tg"])


def first_token(infer: Infer, model: str, prefix: list[int], seed: int) -> tuple[float, float]:
    """Microseconds to the first token after a known prefix, and of a decode step there."""
    made: Generation = infer.generate(model, [*prefix, 500 + seed], max_tokens=17, ignore_eos=True)
    assert made.cached_tokens >= len(prefix) // 64 * 64, made.cached_tokens
    return made.first_token_us, (made.total_us - made.first_token_us) / (made.output_tokens - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="known name or GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens that each client gets")
    parser.add_argument("--prefix", type=int, default=4096, help="known tokens; 0: leave it out")
    parser.add_argument("--rounds", type=int, default=3, help="of everything; medians count")
    parser.add_argument("--llama-batched-bench", metavar="FILE", help="llama.cpp's, to compare")
    options = parser.parse_args()

    name, path = name_for(options.model), file_for(options.model)
    with (
        Server(model_dir=path.parent, threads=options.threads) as server,
        server.client() as client,
    ):
        infer = Infer(client)
        infer.load(name, path)
        ours: dict[int, list[float]] = {n: [] for n in options.clients}
        theirs: dict[int, list[float]] = {n: [] for n in options.clients}
        lengths = (options.prompt, options.output)
        for _ in range(options.rounds):
            for n in options.clients:
                ours[n].append(decode(server, name, n, *lengths))
                if options.llama_batched_bench:
                    program = options.llama_batched_bench
                    theirs[n].append(llama(program, path, n, *lengths, options.threads))
                print(f"  {n} clients: {ours[n][-1]:.1f}", *theirs[n][-1:], file=sys.stderr)
        for n in options.clients:
            rate = statistics.median(ours[n])
            line = f"{n:>2} clients: {rate:7.1f} tok/s"
            if theirs[n]:
                other = statistics.median(theirs[n])
                ratios = [a / b for a, b in zip(ours[n], theirs[n], strict=True)]
                line += (
                    f", llama.cpp {other:7.1f}; ratio {statistics.median(ratios):.2f} "
                    f"(rounds: {', '.join(f'{r:.2f}' for r in ratios)})"
                )
            print(line, flush=True)

        if options.prefix:
            prefix = tokens(99, options.prefix)
            infer.generate(name, prefix, max_tokens=1)
            runs = [first_token(infer, name, prefix, seed) for seed in range(3 * options.rounds)]
            first = statistics.median(first for first, _ in runs)
            step = statistics.median(step for _, step in runs)
            steps = statistics.median(first / step for first, step in runs)
            print(
                f"first token after {options.prefix} known ones: {first / 1000:.1f} ms, a decode "
                f"step there {step / 1000:.1f} ms; {steps:.2f} steps"
            )


if __name__ == "__main__":
    main()
