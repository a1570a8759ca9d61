"""Requests under way, and everything that may happen to a server meanwhile."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from module_support import (
    MODEL,
    PROMPT,
    Background,
    as_map,
    assert_idle,
    error_of,
    generate,
    load,
    long_generation,
    own_server,
    pack,
    requests,
    threads_of,
    wait_until,
    wait_until_admitted,
)
from redis_infer import Infer
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")

SHORT = ("INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 6)


def still_right(client: redis.Redis, expected: bytes) -> None:
    assert client.ping()
    assert as_map(client.execute_command(*SHORT))["tokens"] == expected
    assert_idle(client)


@pytest.fixture
def expected(client: redis.Redis) -> bytes:
    return as_map(client.execute_command(*SHORT))["tokens"]


# ---- where blocking is not possible ----


@pytest.mark.parametrize(
    "command",
    [
        SHORT,
        ("INFER.SCORE", MODEL, 0, "TOKENS", pack(PROMPT)),
        ("INFER.MODEL", "LOAD", "x", "x"),
        ("INFER.MODEL", "UNLOAD", MODEL),
    ],
)
def test_multi_and_scripts_are_refused_with_what_to_do(
    client: redis.Redis, expected: bytes, command: tuple[Any, ...]
) -> None:
    with client.pipeline(transaction=True) as transaction:
        transaction.set("before", 1)
        transaction.execute_command(*command)
        transaction.set("after", 1)
        _, refused, _ = transaction.execute(raise_on_error=False)
    assert "not possible inside MULTI or a script" in str(refused)
    assert client.mget("before", "after") == [b"1", b"1"]
    script = "return redis.pcall(unpack(ARGV))['err']"
    assert b"not possible inside MULTI or a script" in client.eval(script, 0, *command)
    still_right(client, expected)


def test_a_models_description_may_be_asked_for_inside_multi(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as transaction:
        transaction.execute_command("INFER.MODEL", "INFO", MODEL)
        transaction.execute_command("INFER.REQUESTS")
        info, running = transaction.execute()
    assert as_map(info)["name"] == MODEL.encode()
    assert running == []


# ---- clients that go away ----


def kill(client: redis.Redis, job: Background) -> None:
    client.execute_command("CLIENT KILL", "ID", job.client_id)


def hang_up(client: redis.Redis, job: Background) -> None:
    job.client.connection_pool.disconnect(inuse_connections=True)


@pytest.mark.parametrize("leave", [kill, hang_up])
def test_a_client_that_goes_away_cancels_its_request(
    server: Server, client: redis.Redis, expected: bytes, leave: Callable[..., None]
) -> None:
    job = long_generation(server, "STORE", "out")
    leave(client, job)
    job.failure()
    assert_idle(client)
    assert client.get("out") is None
    still_right(client, expected)


def test_clients_that_vanish_at_any_time_leave_nothing(
    server: Server, client: redis.Redis, expected: bytes
) -> None:
    before = client.info("infer")["infer_requests_total"]
    jobs = []
    for i in range(24):
        command = (*SHORT[:5], "MAXTOKENS", 1 + i % 3 * 200, "IGNOREEOS")
        jobs.append(Background(server, *command))
        if i % 2:
            kill(client, jobs[i - i % 5])
    for job in jobs:
        kill(client, job)
        job.join()
    assert_idle(client)
    info = client.info("infer")
    ended = ("finished", "cancelled", "timed_out", "failed")
    assert info["infer_requests_total"] == sum(info[f"infer_requests_{how}"] for how in ended)
    assert info["infer_requests_total"] > before
    still_right(client, expected)


@pytest.mark.parametrize("how", ["TIMEOUT", "ERROR"])
def test_client_unblock_ends_a_request(
    server: Server, client: redis.Redis, expected: bytes, how: str
) -> None:
    job = long_generation(server)
    assert client.execute_command("CLIENT UNBLOCK", job.client_id, how)
    assert job.failure().startswith("CANCELLED" if how == "TIMEOUT" else "UNBLOCKED")
    still_right(client, expected)


def test_cancel_ends_a_generation_with_what_it_has(
    server: Server, client: redis.Redis, expected: bytes
) -> None:
    job = long_generation(server, "STORE", "out")
    (entry,) = [r for r in requests(client) if r["client"] == job.client_id]
    assert (entry["command"], entry["model"]) == (b"INFER.GENERATE", MODEL.encode())
    assert entry["prompt_tokens"] == len(PROMPT)
    assert client.execute_command("INFER.CANCEL", entry["id"]) == 1
    made = job.result()
    assert made["finish_reason"] == b"cancelled"
    assert made["output_tokens"] < 8000
    assert client.get("out") is None
    assert client.execute_command("INFER.CANCEL", entry["id"]) == 0
    assert "id is 'x'" in error_of(client, "INFER.CANCEL", "x")
    still_right(client, expected)


def test_the_queue_has_an_end(server: Server, client: redis.Redis, expected: bytes) -> None:
    client.config_set("infer.max-batch", 1)
    client.config_set("infer.max-queue", 1)
    try:
        running = long_generation(server)
        waiting = Background(server, *SHORT)
        wait_until(lambda: len(requests(client)) == 2, "one runs, one waits")
        assert error_of(client, *SHORT).startswith("BUSY ")
        kill(client, running)
        assert waiting.result()["tokens"] == expected
    finally:
        client.config_set("infer.max-batch", 16)
        client.config_set("infer.max-queue", 1024)
    still_right(client, expected)


def test_texts_under_way_have_a_limit_in_bytes(
    server: Server, client: redis.Redis, expected: bytes
) -> None:
    """As much as four of the largest commands take, for vectors of 576 elements."""
    most = 4 * (2**24 * 4 + 2**14 * (4 + 576 * 4))
    client.set("text", pack(PROMPT * 50))
    command = ("INFER.EMBED", MODEL, 16384, *["text"] * 16384)
    fitting = most // (16384 * (500 * 4 + 4 + 576 * 4))
    jobs = [Background(server, *command) for _ in range(fitting)]
    wait_until(lambda: len(requests(client)) == fitting, "all are admitted")
    refused = error_of(client, *command, "TIMEOUT", 20000)  # if it were not
    assert refused.startswith("BUSY ")
    assert f"the most is {most}: try again later, or with fewer texts" in refused
    assert as_map(client.execute_command(*SHORT))["tokens"] == expected
    for entry in requests(client):
        client.execute_command("INFER.CANCEL", entry["id"])
    assert all(job.failure().startswith("CANCELLED ") for job in jobs)
    still_right(client, expected)


@pytest.mark.parametrize("max_batch", [1, 16])
def test_a_thousand_texts_hold_nobody_up(
    server: Server, client: redis.Redis, expected: bytes, max_batch: int
) -> None:
    client.set("text", pack(PROMPT * 5))
    client.config_set("infer.max-batch", max_batch)
    try:
        many = Background(server, "INFER.EMBED", MODEL, 1000, *["text"] * 1000)
        (entry,) = wait_until(
            lambda: [r for r in requests(client) if r["state"] == b"running"], "a text is computed"
        )
        one = as_map(client.execute_command("INFER.EMBED", MODEL, 1, "text"))
        assert as_map(client.execute_command(*SHORT))["tokens"] == expected
        (now,) = requests(client)
        assert now["id"] == entry["id"]
        assert 0 < now["computed_tokens"] < now["prompt_tokens"] / 2
        assert client.execute_command("INFER.CANCEL", entry["id"]) == 1
        assert many.failure().startswith("CANCELLED cancelled after ")
        assert len(one["vectors"]) == 1
    finally:
        client.config_set("infer.max-batch", 16)
    still_right(client, expected)


def test_a_request_that_waits_times_out_too(server: Server, client: redis.Redis) -> None:
    client.config_set("infer.max-batch", 1)
    try:
        running = long_generation(server)
        made = as_map(client.execute_command(*SHORT, "TIMEOUT", 100))
        assert (made["finish_reason"], made["output_tokens"]) == (b"timeout", 0)
        kill(client, running)
    finally:
        client.config_set("infer.max-batch", 16)
    assert_idle(client)


# ---- the server's own affairs during a generation ----


def test_redis_answers_others_meanwhile(server: Server, client: redis.Redis) -> None:
    job = long_generation(server)
    for i in range(500):
        client.set(f"k{i}", i)
    assert client.dbsize() == 500
    kill(client, job)
    assert_idle(client)


def test_overwriting_and_flushing_keys_changes_nothing_that_is_under_way(
    server: Server, client: redis.Redis
) -> None:
    client.set("p", pack(PROMPT))
    command = ("INFER.GENERATE", MODEL, 1, "p", "MAXTOKENS", 64, "IGNOREEOS")
    calm = as_map(client.execute_command(*command))["tokens"]
    # One that runs keeps it in the queue until the keys have changed.
    client.config_set("infer.max-batch", 1)
    try:
        running = long_generation(server)
        job = Background(server, *command, "STORE", "out")
        wait_until(lambda: len(requests(client)) == 2, "it waits")
        client.set("p", pack([1] * 5000))
        client.flushall()
        client.set("out", "in between")
        kill(client, running)
        made = job.result()
    finally:
        client.config_set("infer.max-batch", 16)
    assert made["tokens"] == calm == client.get("out")


def test_saving_during_a_generation_succeeds(server: Server, client: redis.Redis) -> None:
    job = long_generation(server)
    client.set("k", "v")
    client.execute_command("BGSAVE")
    wait_until(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], "the save ends")
    info = client.info("persistence")
    assert info["rdb_last_bgsave_status"] == "ok"
    # Neither weights nor KV cache are copied on write: both are larger than that.
    assert info["rdb_last_cow_size"] < 30 << 20
    kill(client, job)
    assert_idle(client)


def test_the_number_of_threads_changes_during_a_generation_and_no_token_does(
    server: Server, client: redis.Redis
) -> None:
    command = (*SHORT[:5], "MAXTOKENS", 120, "IGNOREEOS", "NOCACHE")
    before = client.config_get("infer.threads")["infer.threads"]
    calm = as_map(client.execute_command(*command))["tokens"]
    n_before = client.info("infer")["infer_requests_total"]
    job = Background(server, *command)
    wait_until_admitted(client, n_before)
    for n in (1, 3, 2):
        client.config_set("infer.threads", n)
        wait_until(lambda n=n: client.info("infer")["infer_threads"] == n, f"{n} threads")
    assert job.result()["tokens"] == calm
    client.config_set("infer.threads", before)


def test_writes_wait_while_writes_are_paused(server: Server, client: redis.Redis) -> None:
    """A write now would stop Redis itself (it asserts that nothing is replicated in a pause)."""
    job = long_generation(server, "STORE", "out", "TIMEOUT", 3000)
    client.execute_command("CLIENT PAUSE", 60000, "WRITE")
    try:
        wait_until(lambda: requests(client)[0]["state"] == b"done", "only the write is left")
        assert client.get("out") is None
        assert job.reply is None
    finally:
        client.execute_command("CLIENT UNPAUSE")
    assert job.result()["tokens"] == client.get("out")


@pytest.mark.parametrize("how", ["CLIENT KILL", "CLIENT UNBLOCK"])
def test_a_client_that_goes_while_writes_are_paused_gets_nothing_written(
    server: Server, client: redis.Redis, how: str
) -> None:
    job = long_generation(server, "STORE", "out", "STREAM", "s", "TIMEOUT", 1500)
    client.execute_command("CLIENT PAUSE", 60000, "WRITE")
    try:
        wait_until(lambda: requests(client)[0]["state"] == b"done", "only the writes are left")
        client.execute_command(how, *(["ID"] if how == "CLIENT KILL" else []), job.client_id)
        job.failure()
    finally:
        client.execute_command("CLIENT UNPAUSE")
    wait_until(lambda: not requests(client), "it has ended")
    assert client.get("out") is None
    ((_, last),) = client.xrevrange("s", count=1)
    assert last[b"error"].startswith(b"CANCELLED")


def test_module_unload_waits_for_clients_and_then_goes(model_path: Path) -> None:
    with (
        own_server(model_path, config={"enable-module-command": "yes"}) as server,
        server.client() as client,
    ):
        job = long_generation(server)
        assert "blocked clients" in error_of(client, "MODULE UNLOAD", "infer")
        kill(client, job)
        assert_idle(client)
        client.execute_command("MODULE UNLOAD", "infer")
        assert "unknown command" in error_of(client, "INFER.MODEL LIST")
        client.execute_command(
            "MODULE LOADEX", str(server.module), "CONFIG", "infer.model-dir", str(model_path.parent)
        )
        load(client, model_path.name)
        assert as_map(client.execute_command(*SHORT))["output_tokens"] == 6


def test_the_modules_threads_end_with_it(model_path: Path) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc")
    with (
        own_server(model_path, config={"enable-module-command": "yes"}) as server,
        server.client() as client,
    ):
        pid = client.info("server")["process_id"]
        assert any(name.startswith("infer-") for name in threads_of(pid))
        client.execute_command("MODULE UNLOAD", "infer")
        wait_until(
            lambda: not any(name.startswith("infer-") for name in threads_of(pid)),
            "no thread of ours",
        )


@pytest.mark.parametrize("how", ["SHUTDOWN", "SIGTERM"])
def test_shutdown_during_a_generation_is_prompt_and_clean(model_path: Path, how: str) -> None:
    with own_server(model_path) as server:
        jobs = [long_generation(server) for _ in range(2)]
        began = time.monotonic()
        with server.client() as client:
            if how == "SHUTDOWN":
                with pytest.raises(redis.ConnectionError):
                    client.execute_command("SHUTDOWN", "NOSAVE")
            else:
                os.kill(client.info("server")["process_id"], signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 20  # the generations would take minutes
        for job in jobs:
            job.failure()
        log = server.log()
        assert "bye bye" in log
        assert "crashed" not in log and "ASSERTION" not in log


def test_shutdown_while_a_model_loads_is_clean(model_path: Path) -> None:
    with Server(model_dir=model_path.parent, threads=1) as server, server.client() as client:
        job = Background(server, "INFER.MODEL LOAD", MODEL, model_path.name)
        with pytest.raises(redis.ConnectionError):
            client.execute_command("SHUTDOWN", "NOSAVE")
        assert server.wait() == 0
        job.join()
        assert "crashed" not in server.log()


# ---- replication, memory limit ----


def test_a_replica_generates_but_does_not_store(model_path: Path, expected: bytes) -> None:
    with (
        own_server(model_path) as master,
        own_server(model_path, config={"replicaof": ["127.0.0.1", master.port]}) as replica,
        master.client() as on_master,
        replica.client() as on_replica,
    ):
        wait_until(lambda: on_replica.info("replication")["master_link_status"] == "up", "in sync")
        assert as_map(on_replica.execute_command(*SHORT))["tokens"] == expected
        with pytest.raises(redis.exceptions.ReadOnlyError):
            on_replica.execute_command(*SHORT, "STORE", "out")

        # On the master STORE is one SET, with the tokens in it.
        on_master.execute_command(*SHORT, "STORE", "out")
        wait_until(lambda: on_replica.get("out") == expected, "the key arrives")
        assert on_master.info("commandstats")["cmdstat_set"]["calls"] == 1
        replicated = on_replica.info("commandstats")
        assert replicated["cmdstat_set"]["calls"] == 1
        assert "cmdstat_multi" not in replicated

        # A master that becomes a replica meanwhile writes nothing.
        job = long_generation(master, "STORE", "late")
        on_master.execute_command("REPLICAOF", "127.0.0.1", replica.port)
        assert "UNBLOCKED" in job.failure()
        on_master.execute_command("REPLICAOF", "NO", "ONE")
        assert on_master.get("late") is None
        assert_idle(on_master)


def test_store_respects_maxmemory(server: Server, client: redis.Redis, expected: bytes) -> None:
    try:
        client.config_set("maxmemory", 1)
        assert as_map(client.execute_command(*SHORT))["tokens"] == expected
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.execute_command(*SHORT, "STORE", "out")
        client.config_set("maxmemory", 0)

        job = long_generation(server, "STORE", "late", "TIMEOUT", 3000)
        client.config_set("maxmemory", 1)
        job.failure()
    finally:
        client.config_set("maxmemory", 0)
    assert client.mget("out", "late") == [None, None]
    still_right(client, expected)


def generate_in_background(client: redis.Redis, tokens: int) -> None:
    command = ("INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", tokens, "IGNOREEOS")
    client.execute_command(*command, "STREAM", "s", "ASYNC")


def last_entry(client: redis.Redis) -> dict[bytes, bytes]:
    ((_, fields),) = client.xrevrange("s", count=1)
    return fields


def test_memory_that_was_short_for_a_moment_ends_no_generation(client: redis.Redis) -> None:
    """Redis itself remembers how it was before the last command."""
    try:
        generate_in_background(client, 60)
        with client.pipeline(transaction=False) as at_once:
            at_once.config_set("maxmemory", 1)
            at_once.get("any")
            at_once.config_set("maxmemory", 1 << 40)
            at_once.execute()
        time.sleep(2)  # tokens come, and no command
        wait_until(lambda: b"finish_reason" in last_entry(client), "it has ended")
    finally:
        client.config_set("maxmemory", 0)
    assert last_entry(client)[b"finish_reason"] == b"length"


def test_memory_that_became_short_with_the_last_command_ends_a_generation(
    client: redis.Redis,
) -> None:
    try:
        generate_in_background(client, 4000)
        client.config_set("maxmemory", 1)
        time.sleep(2)  # tokens come, and no command
    finally:
        client.config_set("maxmemory", 0)
    assert last_entry(client)[b"error"].startswith(b"OOM")
    assert_idle(client)


# ---- many at once ----


def test_many_clients_get_what_one_client_gets(server: Server, client: redis.Redis) -> None:
    prompts = [[*PROMPT, 100 + i] for i in range(8)]
    alone = [
        generate(client, MODEL, 0, "TOKENS", pack(p), "MAXTOKENS", 12, "NOCACHE")["tokens"]
        for p in prompts
    ]
    together = [
        Background(server, "INFER.GENERATE", MODEL, 0, "TOKENS", pack(p), "MAXTOKENS", 12)
        for p in prompts
    ]
    assert [job.result()["tokens"] for job in together] == alone
    assert_idle(client)


def test_a_pipeline_is_answered_in_order(infer: Infer, client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for n in (3, 1, 2):
            pipeline.execute_command(*SHORT[:5], "MAXTOKENS", n, "IGNOREEOS")
        pipeline.get("nothing")
        *made, nothing = pipeline.execute()
    assert [as_map(m)["output_tokens"] for m in made] == [3, 1, 2]
    assert nothing is None


def test_a_mixture_of_everything_ends_and_leaves_nothing(
    server: Server, client: redis.Redis, model_path: Path, expected: bytes
) -> None:
    stop = threading.Event()
    failures: list[str] = []
    allowed = (
        "NOMODEL",
        "CANCELLED",
        "BUSY",
        "UNBLOCKED",
        "there is a model",
        "Connection",
        "read",
    )

    def act(mine: redis.Redis, rng: random.Random, loads: bool) -> None:
        name = rng.choice([MODEL, "extra"])
        prompt = pack([*PROMPT, rng.randrange(99)])
        what = rng.randrange(6)
        if what < 3:
            extras = rng.choice([(), ("STORE", "s"), ("NOCACHE",)])
            n = rng.randrange(1, 20)
            mine.execute_command(
                "INFER.GENERATE", name, 0, "TOKENS", prompt, "MAXTOKENS", n, *extras
            )
        elif what == 3:
            mine.execute_command("INFER.SCORE", name, 0, "TOKENS", prompt)
        elif what == 4 and loads:
            mine.execute_command("INFER.MODEL LOAD", "extra", model_path.name, "CONTEXT", 256)
        elif what == 5 and loads:
            mine.execute_command("INFER.MODEL UNLOAD", "extra")
        elif what == 4:
            for entry in requests(mine):
                if rng.random() < 0.3:
                    mine.execute_command("INFER.CANCEL", entry["id"])
        else:
            victim = rng.choice(mine.client_list())
            if victim["cmd"].startswith("infer.") and victim["flags"] == "b":
                mine.execute_command("CLIENT KILL", "ID", victim["id"])

    def client_loop(seed: int) -> None:
        rng = random.Random(seed)
        with server.client(socket_timeout=None) as mine:
            while not stop.is_set():
                try:
                    act(mine, rng, loads=seed == 0)
                except redis.RedisError as error:
                    if not any(word in str(error) for word in allowed):
                        failures.append(str(error))

    loops = [threading.Thread(target=client_loop, args=(seed,)) for seed in range(6)]
    for loop in loops:
        loop.start()
    time.sleep(4)
    stop.set()
    for loop in loops:
        loop.join(30)
        assert not loop.is_alive()
    assert failures == []
    if any(as_map(m)["name"] == b"extra" for m in client.execute_command("INFER.MODEL LIST")):
        client.execute_command("INFER.MODEL UNLOAD", "extra")
    assert_idle(client)
    still_right(client, expected)
