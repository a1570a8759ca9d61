"""What lies between a query vector and the first step of the model in INFER.RAG.

    python bench/rag_overhead.py [--vectors 100000] [--runs 200] [--rdb vectors.rdb]

Each run searches a vector set for its 16 nearest elements, gathers the 16 chunks of 256 tokens
and admits the prompt; it times out after the model's first step, since what comes then is a
generation like any other. VSIM's own time is what Redis counts for the command (INFO commandstats):
inside ours, and alone, one after the other, when the graph stays in the processor's caches. Recall
is the share of the 16 nearest, found exactly, that are among the hits. Most of a run of this script
is spent on filling the vector set: --rdb keeps it for the next one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis

from redis_infer import commands, models
from redis_infer.server import Server

DIMENSIONS, HITS, TOKENS_PER_CHUNK = 384, 16, 256
N_CHUNKS = 4096  # elements share them: what is read counts, not how much lies there
CLUSTERS = 500  # of the vectors: embeddings of text are no even cloud
VSET = "{rag}:vec"


def vectors(n: int, seed: int, centers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(n, DIMENSIONS)).astype("<f4") / np.sqrt(DIMENSIONS)
    found = centers[rng.integers(0, len(centers), n)] + 0.7 * spread
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("<f4")


def fill(client: redis.Redis, n: int, centers: np.ndarray[Any, Any], quantization: str) -> None:
    rng = np.random.default_rng(1)
    with client.pipeline(transaction=False) as pipeline:
        for i in range(N_CHUNKS):
            tokens = rng.integers(1000, 40000, TOKENS_PER_CHUNK)
            pipeline.set(f"{{rag}}:tok:{i}", struct.pack(f"<{TOKENS_PER_CHUNK}I", *tokens))
        pipeline.execute()
    began = time.perf_counter()
    all_vectors = vectors(n, 2, centers)
    for start in range(0, n, 1000):
        with client.pipeline(transaction=False) as pipeline:
            for i in range(start, min(start + 1000, n)):
                attributes = {"path": f"src/file{i}.py", "n": i, "start": 1, "end": 40}
                attributes |= {"lang": "python", "tokens": f"{{rag}}:tok:{i % N_CHUNKS}"}
                pipeline.execute_command(
                    "VADD", VSET, "FP32", all_vectors[i].tobytes(), f"src/file{i}.py#{i}",
                    quantization, "SETATTR", json.dumps(attributes),
                )  # fmt: skip
            pipeline.execute()
        done = start + 1000
        print(f"\r{done} vectors, {time.perf_counter() - began:.0f} s", end="", flush=True)
    print()


def exact(queries: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> list[set[int]]:
    """The nearest vectors of each query."""
    nearest = np.argpartition(-(queries @ found.T), HITS, axis=1)[:, :HITS]
    return [set(row) for row in nearest.tolist()]


def vsim_us(client: redis.Redis) -> float:
    """VSIM's mean since the last CONFIG RESETSTAT."""
    stats = {name.lower(): value for name, value in client.info("commandstats").items()}
    return float(stats["cmdstat_vsim"]["usec_per_call"])


def measure(
    client: redis.Redis,
    queries: np.ndarray[Any, Any],
    nearest: list[set[int]],
    *options: Any,
) -> None:
    client.config_resetstat()
    for query in queries:
        client.execute_command(
            "VSIM", VSET, "FP32", query.tobytes(), "COUNT", HITS, *options, "NOTHREAD"
        )
    alone = vsim_us(client)

    names = ("search_us", "gather_us", "admit_us", "queue_us")
    rows: dict[str, list[float]] = {name: [] for name in names}
    recalled = 0
    client.config_resetstat()
    for query, near in zip(queries, nearest, strict=True):
        reply = client.execute_command(
            "INFER.RAG", "m", VSET, "FP32", query.tobytes(), "TOPN", HITS, *options,
            "MAXTOKENS", 1, "TIMEOUT", 1,
        )  # fmt: skip
        fields = commands.as_map(reply)
        assert len(fields["sources"]) == HITS
        assert all(used == TOKENS_PER_CHUNK for _, _, used in fields["sources"])
        recalled += len(near & {int(name.rpartition(b"#")[2]) for name, _, _ in fields["sources"]})
        for name in names:
            rows[name].append(float(fields[name]))
    own = vsim_us(client)
    rows["beside the search"] = [
        admit + queue - search
        for admit, queue, search in zip(
            rows["admit_us"], rows["queue_us"], rows["search_us"], strict=True
        )
    ]
    rows["to the first step"] = [
        admit + queue for admit, queue in zip(rows["admit_us"], rows["queue_us"], strict=True)
    ]
    print(f"\n{' '.join(map(str, options)) or 'default EF'}, {len(queries)} runs, microseconds")
    print("| | min | median | p90 | p99 |\n|---|---|---|---|---|")
    for name, values in rows.items():
        cuts = statistics.quantiles(values, n=100)
        print(f"| {name} | {min(values):.0f} | {cuts[49]:.0f} | {cuts[89]:.0f} | {cuts[98]:.0f} |")
    recall = recalled / len(queries) / HITS
    print(f"VSIM's own time, mean: {own:.0f} us, alone {alone:.0f} us; recall@{HITS} {recall:.3f}")


QUANT_TYPES = {"Q8": "int8", "BIN": "bin", "NOQUANT": "f32"}  # as VINFO names them


def holds(client: redis.Redis, n: int, quantization: str) -> bool:
    """Whether the vector set is there already, as it is wanted."""
    if client.execute_command("VCARD", VSET) != n:
        return False
    kind = commands.as_map(client.execute_command("VINFO", VSET))["quant-type"]
    return (kind.decode() if isinstance(kind, bytes) else kind) == QUANT_TYPES[quantization]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--quantization", choices=["Q8", "BIN", "NOQUANT"], default="Q8")
    parser.add_argument("--rdb", type=Path, help="keeps the filled database in this file")
    arguments = parser.parse_args()
    centers = np.random.default_rng(0).normal(size=(CLUSTERS, DIMENSIONS)).astype("<f4")
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)

    model = models.pull(models.DEFAULT_MODEL)
    config: dict[str, object] = {}
    if arguments.rdb is not None:
        config = {"dir": arguments.rdb.parent.resolve(), "dbfilename": arguments.rdb.name}
    with (
        Server(model_dir=model.parent, config=config, startup_timeout_s=600) as server,
        server.client(socket_timeout=None) as client,
    ):
        client.execute_command("INFER.MODEL LOAD", "m", model.name)
        if not holds(client, arguments.vectors, arguments.quantization):
            client.flushall()
            fill(client, arguments.vectors, centers, arguments.quantization)
            if arguments.rdb is not None:
                client.save()
        queries = vectors(arguments.runs, 3, centers)
        nearest = exact(queries, vectors(arguments.vectors, 2, centers))
        measure(client, queries[:20], nearest[:20])  # warm
        for options in ((), ("EF", 100), ("EF", 50), ("EF", 32), ("EF", 16)):
            measure(client, queries, nearest, *options)


if __name__ == "__main__":
    main()
