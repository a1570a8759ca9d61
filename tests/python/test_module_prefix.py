"""What many clients have in common is computed and kept once; what does not fit gives way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from module_support import Background, as_map, assert_idle, load, pack
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")

NAME = "small"  # a model with a KV cache of its own, so that other tests' pages do not count
PREFIX = 4096
PAGE = 64
CLIENTS = 16


@pytest.fixture
def kv(client: redis.Redis, model_path: Path) -> Iterator[redis.Redis]:
    yield client
    if any(as_map(m)["name"] == NAME.encode() for m in client.execute_command("INFER.MODEL LIST")):
        client.execute_command("INFER.MODEL UNLOAD", NAME)


def model_info(client: redis.Redis) -> dict[str, Any]:
    info: dict[str, Any] = client.info("infer")[f"infer_model_{NAME}"]
    return info


def generation(*options: Any) -> tuple[Any, ...]:
    return ("INFER.GENERATE", NAME, *options, "IGNOREEOS")


def test_sixteen_clients_keep_a_common_prefix_once(
    server: Server, kv: redis.Redis, model_path: Path
) -> None:
    load(kv, model_path, NAME, "KVMEMORY", 512 << 20)
    kv.set("prefix", pack([1000 + i * 7919 % 40000 for i in range(PREFIX)]))
    kv.execute_command(*generation(1, "prefix", "MAXTOKENS", 1))
    before = model_info(kv)
    assert before["kv_pages_cached"] == PREFIX // PAGE

    most = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        with server.client() as other:
            while not stop.is_set():
                info = model_info(other)
                most = max(most, info["kv_pages_active"] + info["kv_pages_cached"])
                time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    # Tails of 20 and outputs of 10 tokens: beside the prefix each client needs one page.
    tails = [pack([2000 + i] * 20) for i in range(CLIENTS)]
    jobs = [
        Background(server, *generation(1, "prefix", "TOKENS", tail, "MAXTOKENS", 10))
        for tail in tails
    ]
    replies = [job.result() for job in jobs]
    stop.set()
    watcher.join()

    assert all(reply["cached_tokens"] >= PREFIX for reply in replies)
    assert most <= PREFIX // PAGE + 2 * CLIENTS
    after = model_info(kv)
    assert after["cached_tokens"] - before["cached_tokens"] >= CLIENTS * PREFIX

    # What came from the cache is what a cold run gives.
    cold = generation(1, "prefix", "TOKENS", tails[3], "MAXTOKENS", 10, "NOCACHE")
    assert as_map(kv.execute_command(*cold))["tokens"] == replies[3]["tokens"]
    assert_idle(kv)


def test_prompts_that_come_together_share_what_the_first_computes(
    server: Server, kv: redis.Redis, model_path: Path
) -> None:
    load(kv, model_path, NAME, "KVMEMORY", 128 << 20)
    prefix = [3000 + i * 31 % 20000 for i in range(1024)]
    jobs = [
        Background(server, *generation(0, "TOKENS", pack([*prefix, 5000 + i]), "MAXTOKENS", 4))
        for i in range(6)
    ]
    replies = [job.result() for job in jobs]
    # Nothing was known before; all but the first find at least the pages that it has finished.
    assert sum(reply["cached_tokens"] == 0 for reply in replies) <= 2
    computed = sum(r["prompt_tokens"] - r["cached_tokens"] for r in replies)
    assert computed < 3 * len(prefix)


def test_no_request_that_fits_fails_when_pages_run_out(
    server: Server, kv: redis.Redis, model_path: Path
) -> None:
    loaded = load(kv, model_path, NAME, "KVMEMORY", 16 << 20)
    pages = loaded["kv_pages"]
    # Each takes a third of the cache, eight come at once, twice.
    tokens = pages * PAGE // 3 - 20
    prompts = [[100 + 50 * i + j * 13 % 4000 for j in range(tokens)] for i in range(8)]
    cold = [
        as_map(kv.execute_command(*generation(0, "TOKENS", pack(p), "MAXTOKENS", 16, "NOCACHE")))
        for p in prompts[:2]
    ]
    for _ in range(2):
        jobs = [
            Background(server, *generation(0, "TOKENS", pack(p), "MAXTOKENS", 16)) for p in prompts
        ]
        replies = [job.result() for job in jobs]
        assert all(reply["finish_reason"] == b"length" for reply in replies)
        for reply, expected in zip(replies, cold, strict=False):
            assert reply["tokens"] == expected["tokens"]
    info = model_info(kv)
    assert info["kv_evicted_pages"] > 0
    assert info["failed"] == 0
    assert_idle(kv)
    info = model_info(kv)
    assert info["kv_pages_active"] == 0
    assert info["kv_pages_cached"] + info["kv_pages_free"] == pages
