"""Everything at once, for a bounded time; afterwards everything is as it was before."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from module_support import (
    MODEL,
    PROMPT,
    Background,
    assert_idle,
    generate,
    load,
    pack,
    requests,
    threads_of,
    wait_until,
)
from redis_infer import Infer
from redis_infer.server import Server

SECONDS = float(os.environ.get("REDIS_INFER_STRESS_SECONDS", "10"))
KV_MEMORY = 48 << 20  # little, so that pages are evicted all the time
LOOPS = 8

# What a client may be told here. Everything else is a failure.
ALLOWED = (
    "NOMODEL", "CANCELLED", "BUSY", "CONTEXT", "UNBLOCKED", "WRONGTYPE", "no such model",
    "there is a model", "Connection", "closed", "progress", "scheduled", "not open",
)  # fmt: skip


class Mixture:
    """What one of many clients may do; each method is one kind of it."""

    def __init__(self, server: Server, seed: int, expected: bytes) -> None:
        self.rng = random.Random(seed)
        self.server = server
        self.client = server.client(socket_timeout=None)
        self.infer = Infer(self.client)
        self.expected = expected

    def acts(self) -> list[Callable[[], None]]:
        return [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def command(self, *options: Any) -> tuple[Any, ...]:
        name = self.rng.choice([MODEL, MODEL, "extra"])
        prompt = [*PROMPT, *(self.rng.randrange(4000) for _ in range(self.rng.randrange(300)))]
        n = self.rng.choice([1, 5, 40, 150])
        return ("INFER.GENERATE", name, 0, "TOKENS", pack(prompt), "MAXTOKENS", n, *options)

    def key(self) -> str:
        return f"s{self.rng.randrange(6)}"

    def do_check_tokens(self) -> None:
        reply = generate(self.client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 12)
        if reply["finish_reason"] == b"length":
            assert reply["tokens"] == self.expected

    def do_generate(self) -> None:
        options = self.rng.choice([(), ("NOCACHE",), ("STORE", "out"), ("LOGPROBS", 2)])
        self.client.execute_command(*self.command(*options))

    def do_score(self) -> None:
        self.client.execute_command("INFER.SCORE", MODEL, *self.command()[2:5])

    def do_vanish(self) -> None:
        """Queued, in the prompt, while tokens come, or with the reply on its way."""
        options = ("STREAM", self.key()) if self.rng.random() < 0.5 else ()
        pool = self.client.connection_pool
        connection = pool.get_connection()
        connection.send_command(*self.command(*options))
        time.sleep(self.rng.choice([0, 0.001, 0.01, 0.05, 0.2]))
        connection.disconnect()
        pool.release(connection)

    def do_stream(self) -> None:
        most = self.rng.randrange(30)
        with self.infer.stream(MODEL, PROMPT, max_tokens=20, ignore_eos=True) as stream:
            for n, _ in enumerate(stream):
                if n == most:
                    break

    def do_async(self) -> None:
        options = ("STREAM", self.key(), "MAXLEN", 20, "TTL", 2000, "STORE", "out", "ASYNC")
        with self.client.pipeline(transaction=self.rng.random() < 0.5) as pipeline:
            pipeline.execute_command(*self.command(*options))
            pipeline.execute()

    def do_timeout(self) -> None:
        options = ("STREAM", self.key(), "TIMEOUT", self.rng.randrange(1, 60))
        self.client.execute_command(*self.command(*options))

    def do_cancel(self) -> None:
        for entry in requests(self.client):
            if self.rng.random() < 0.5:
                self.client.execute_command("INFER.CANCEL", entry["id"])

    def do_kill(self) -> None:
        busy = [c for c in self.client.client_list() if c["cmd"].startswith("infer.")]
        blocked = [c for c in busy if c["flags"] == "b"]
        if blocked:
            self.client.execute_command("CLIENT KILL", "ID", self.rng.choice(blocked)["id"])

    def do_overwrite(self) -> None:
        self.client.set(self.key(), "a string")
        self.client.delete(self.key())

    def do_flush(self) -> None:
        if self.rng.random() < 0.2:
            self.client.flushall()

    def do_look(self) -> None:
        self.client.info("infer")
        self.client.execute_command("INFER.MODEL LIST")


class Operator(Mixture):
    """What only one does at a time: models, settings, saving, replicas."""

    def __init__(self, server: Server, replica: Server, expected: bytes, model_path: Path) -> None:
        super().__init__(server, 0, expected)
        self.on_replica = replica.client(socket_timeout=None)
        self.file = model_path.name

    def acts(self) -> list[Callable[[], None]]:
        return [getattr(self, name) for name in dir(self) if name.startswith("op_")]

    def op_load(self) -> None:
        load(self.client, self.file, "extra", "CONTEXT", 512, "KVMEMORY", 16 << 20)

    def op_unload(self) -> None:
        self.client.execute_command("INFER.MODEL UNLOAD", "extra")

    def op_settings(self) -> None:
        self.client.config_set("infer.threads", self.rng.choice([1, 2, 3]))
        self.client.config_set("infer.max-batch", self.rng.choice([1, 4, 16]))
        self.client.config_set("infer.max-queue", self.rng.choice([2, 1000]))

    def op_save(self) -> None:
        self.client.bgsave()

    def op_rewrite(self) -> None:
        self.client.bgrewriteaof()

    def op_attach(self) -> None:
        self.on_replica.execute_command("REPLICAOF", "127.0.0.1", self.server.port)

    def op_detach(self) -> None:
        self.on_replica.execute_command("REPLICAOF", "NO", "ONE")

    def op_pause(self) -> None:
        self.client.execute_command("CLIENT PAUSE", 50, "WRITE")


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def settled(look: Callable[[], int]) -> int:
    """What is seen twice in a row, a while apart."""
    seen = [look()]

    def the_same() -> bool:
        time.sleep(0.2)
        seen.append(look())
        return seen[-1] == seen[-2]

    wait_until(the_same, "a number settles")
    return seen[-1]


def calm(server: Server, client: redis.Redis) -> dict[str, Any]:
    """Brings the server to rest; what is left then."""
    for entry in requests(client):
        client.execute_command("INFER.CANCEL", entry["id"])
    assert_idle(client)
    for name, value in (("threads", 2), ("max-batch", 16), ("max-queue", 1024)):
        client.config_set(f"infer.{name}", value)
    with contextlib.suppress(redis.ResponseError):
        client.execute_command("INFER.MODEL UNLOAD", "extra")

    def saved() -> bool:
        info = client.info("persistence")
        saving = ("rdb_bgsave_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")
        return not any(info[what] for what in saving)

    wait_until(saved, "saving ends")
    client.flushall()
    wait_until(lambda: client.info("clients")["connected_clients"] == 1, "the others have gone")
    wait_until(lambda: not client.info("replication")["connected_slaves"], "the replica has gone")
    client.execute_command("MEMORY PURGE")
    pid = client.info("server")["process_id"]
    infer = client.info("infer")
    model = infer[f"infer_model_{MODEL}"]
    assert model["kv_pages_active"] == 0
    assert model["kv_pages_cached"] + model["kv_pages_free"] == model["kv_pages"]
    ended = ("finished", "cancelled", "timed_out", "failed")
    assert model["requests"] == sum(model[how] for how in ended)

    def threads() -> list[str]:
        return [name for name in threads_of(pid) if name.startswith("infer-")]

    wait_until(lambda: client.info("infer")["infer_threads"] == 2, "the last setting is applied")
    wait_until(lambda: "infer-task" not in threads(), "the threads that apply settings have gone")
    return {
        "descriptors": settled(lambda: descriptors(pid)),  # Redis closes some in other threads
        "memory": client.info("memory")["used_memory"],
        "threads": threads(),
    }


@pytest.fixture
def pair(model_path: Path) -> Iterator[tuple[Server, Server]]:
    config = {"appendonly": "yes", "repl-diskless-sync-delay": 0, "enable-debug-command": "yes"}
    config["repl-backlog-size"] = "16kb"  # full from the first replica on
    folder = model_path.parent
    with (
        Server(model_dir=folder, threads=2, config=config) as server,
        Server(model_dir=folder, config={"enable-debug-command": "yes"}) as replica,
    ):
        yield server, replica


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_everything_at_once_leaves_nothing_behind(
    pair: tuple[Server, Server], model_path: Path
) -> None:
    server, replica = pair
    client = server.client(socket_timeout=None)
    load(client, model_path.name, MODEL, "KVMEMORY", KV_MEMORY)
    expected = generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 12)["tokens"]
    failures: list[str] = []
    count = 0

    def loop(actor: Mixture, stop: Callable[[], bool]) -> None:
        nonlocal count
        acts = actor.acts()
        with actor.client:
            while not stop():
                act = actor.rng.choice(acts)
                try:
                    act()
                    count += 1
                except (redis.RedisError, OSError) as error:
                    if not any(word in str(error) for word in ALLOWED):
                        failures.append(f"{act.__name__}: {type(error).__name__} {error}")
                except Exception as error:
                    failures.append(f"{act.__name__}: {error!r}")
                if isinstance(actor, Operator):
                    time.sleep(0.1)

    def run(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        actors: list[Mixture] = [Mixture(server, seed, expected) for seed in range(1, LOOPS)]
        operator = Operator(server, replica, expected, model_path)
        loops = [
            threading.Thread(target=loop, args=(actor, lambda: time.monotonic() > deadline))
            for actor in (*actors, operator)
        ]
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join(seconds + 240)  # a busy machine
            assert not thread.is_alive(), "a client was never answered"
        operator.op_detach()
        operator.on_replica.close()

    run(SECONDS / 4)  # until everything that stays has been allocated
    before = calm(server, client)
    run(SECONDS)
    after = calm(server, client)
    assert failures == []
    assert count > 50
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] == before["threads"]
    assert after["memory"] < before["memory"] + (1 << 20)
    reply = generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 12)
    assert reply["tokens"] == expected

    # Replica and AOF have what the server has.
    on_replica = replica.client(socket_timeout=None)
    on_replica.execute_command("REPLICAOF", "127.0.0.1", server.port)
    jobs = [
        Background(
            server,
            *("INFER.GENERATE", MODEL, 0, "TOKENS", pack([*PROMPT, i]), "MAXTOKENS", 30),
            *("STREAM", f"s{i}", "MAXLEN", 7, "STORE", f"out{i}"),
        )
        for i in range(4)
    ]
    for job in jobs:
        job.result()
    linked = "master_link_status"
    wait_until(lambda: on_replica.info("replication")[linked] == "up", "the replica is attached")
    client.set("after", "them all")  # WAIT waits for what this client has written
    assert client.wait(1, 20000) == 1
    digest = client.execute_command("DEBUG DIGEST")
    assert on_replica.execute_command("DEBUG DIGEST") == digest
    client.execute_command("DEBUG LOADAOF")
    assert client.execute_command("DEBUG DIGEST") == digest

    # SHUTDOWN with requests in every state.
    on_replica.execute_command("REPLICAOF", "NO", "ONE")
    client.config_set("infer.max-batch", 2)
    for i in range(6):
        long = ("MAXTOKENS", 1500, "IGNOREEOS", "STREAM", f"t{i}", "ASYNC")
        client.execute_command("INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT), *long)
    blocked = Background(server, "INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT))
    wait_until(lambda: len(requests(client)) == 7, "two run, five wait")
    client.shutdown()
    blocked.failure()
    assert server.wait() == 0
