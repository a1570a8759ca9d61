"""How long a request holds Redis' main thread: admit_us of 4096 tokens in 16 keys.

    python bench/admission.py [--runs 200]

The requests wait behind a generation that has the batch's only place, as they would in a busy
server, and time out there: admission is all that is measured. For comparison it prints what
16 GETs of the same keys take a client on the unix socket, which is the least that a model
server beside Redis needs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import struct
import threading
import time

from redis_infer import models
from redis_infer.server import Server

N_KEYS, TOKENS_PER_KEY = 16, 256


def percentiles(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=100)
    return (
        f"min {min(values):.0f}, median {cuts[49]:.0f}, p90 {cuts[89]:.0f}, p99 {cuts[98]:.0f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    runs: int = parser.parse_args().runs

    model = models.pull(models.DEFAULT_MODEL)
    settings = {"infer.max-batch": 1}
    with Server(model_dir=model.parent, config=settings) as server, server.client() as client:
        client.execute_command("INFER.MODEL LOAD", "m", model.name)
        rng = random.Random(0)
        names = [f"part{i}" for i in range(N_KEYS)]
        for name in names:
            tokens = [rng.randrange(1000, 40000) for _ in range(TOKENS_PER_KEY)]
            client.set(name, struct.pack(f"<{TOKENS_PER_KEY}I", *tokens))

        def occupy() -> None:
            with server.client(socket_timeout=None) as other:
                long = ("MAXTOKENS", 7000, "IGNOREEOS")
                other.execute_command("INFER.GENERATE", "m", 1, names[0], *long)

        threading.Thread(target=occupy, daemon=True).start()
        while not client.info("infer")["infer_requests_running"]:
            time.sleep(0.01)

        admit, gets = [], []
        for _ in range(runs):
            rng.shuffle(names)
            reply = client.execute_command(
                "INFER.GENERATE", "m", N_KEYS, *names, "MAXTOKENS", 1, "TIMEOUT", 1
            )
            fields = (
                reply
                if isinstance(reply, dict)
                else dict(zip(reply[::2], reply[1::2], strict=True))
            )
            admit.append(float(fields[b"admit_us"]))
            began = time.perf_counter()
            with client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.get(name)
                pipeline.execute()
            gets.append((time.perf_counter() - began) * 1e6)
        (running,) = client.execute_command("INFER.REQUESTS")
        identifier = running[b"id"] if isinstance(running, dict) else running[1]
        client.execute_command("INFER.CANCEL", identifier)

    print(f"{N_KEYS} keys of {TOKENS_PER_KEY} tokens, {runs} runs")
    print(f"admit_us        {percentiles(admit)}")
    print(f"16 GETs         {percentiles(gets)}")


if __name__ == "__main__":
    main()
