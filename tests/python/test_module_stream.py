"""STREAM, STORE and ASYNC: what is written, when, and what may happen to the keys meanwhile."""

from __future__ import annotations

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
    floats,
    generate,
    load,
    long_generation,
    own_server,
    pack,
    requests,
    unpack,
    wait_until,
)
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")

BASE = ("INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT), "IGNOREEOS")
LONG = (*BASE, "MAXTOKENS", 8000)

Entry = dict[str, Any]


def entries(client: redis.Redis, key: str = "s") -> list[Entry]:
    return [as_map(fields) for _, fields in client.xrange(key)]


def last_entry(client: redis.Redis, key: str = "s") -> Entry:
    """Waits for the end of a stream; its last entry."""

    def ended() -> Entry | None:
        newest = client.xrevrange(key, count=1)
        fields = as_map(newest[0][1]) if newest else {}
        return fields if "finish_reason" in fields else None

    found: Entry = wait_until(ended, f"the last entry of {key}")
    return found


def start(client: redis.Redis, *options: Any) -> int:
    """A long generation with ASYNC, some tokens of which are in its stream; its id."""
    request: int = client.execute_command(*LONG, "STREAM", "s", "ASYNC", *options)
    wait_until(lambda: client.xlen("s") > 3, "tokens come")
    return request


# ---- entries ----


def test_the_entries_are_the_reply_in_pieces(client: redis.Redis) -> None:
    reply = generate(client, *BASE[1:], "MAXTOKENS", 20, "STREAM", "s")
    *tokens, last = entries(client)
    assert [int(e["i"]) for e in tokens] == list(range(20))
    assert [int(e["token"]) for e in tokens] == unpack(reply["tokens"])
    assert b"".join(e["text"] for e in [*tokens, last]) == reply["text"]
    assert last["finish_reason"] == reply["finish_reason"] == b"length"
    for name in ("prompt_tokens", "cached_tokens", "output_tokens", "first_token_us", "total_us"):
        assert int(last[name]) == reply[name]
    assert "token" not in last and "error" not in last


def test_every_entry_holds_whole_characters(client: redis.Redis) -> None:
    # So hot that tokens are drawn from the whole vocabulary, bytes of characters among them.
    options = ("MAXTOKENS", 300, "TEMPERATURE", 100, "SEED", 5)
    reply = generate(client, *BASE[1:], *options, "STREAM", "s")
    assert b"\xef\xbf\xbd" in reply["text"], "the seed shall give broken characters"
    texts = [e["text"] for e in entries(client)]
    assert "".join(text.decode("utf-8", "strict") for text in texts).encode() == reply["text"]


def test_a_stop_text_never_shows(client: redis.Redis) -> None:
    free = generate(client, *BASE[1:], "MAXTOKENS", 12)["text"]
    stop = free[-14:-4]  # crosses tokens
    reply = generate(client, *BASE[1:], "MAXTOKENS", 12, "STOP", 1, stop, "STREAM", "s")
    assert reply["finish_reason"] == b"stop"
    assert b"".join(e["text"] for e in entries(client)) == reply["text"] == free.split(stop)[0]


@pytest.mark.parametrize("alternatives", [0, 3])
def test_entries_have_the_logprobs_that_the_reply_has(
    client: redis.Redis, alternatives: int
) -> None:
    options = ("MAXTOKENS", 5, "LOGPROBS", alternatives, "STREAM", "s")
    reply = generate(client, *BASE[1:], *options)
    tokens = entries(client)[:-1]
    assert [float(e["logprob"]) for e in tokens] == pytest.approx(floats(reply["logprobs"]))
    for name in ("top_ids", "top_logprobs"):
        assert b"".join(e.get(name, b"") for e in tokens) == reply.get(name, b"")


def test_tokens_can_be_read_while_they_are_made(server: Server, client: redis.Redis) -> None:
    job = long_generation(server, "STREAM", "s")
    seen, position = 0, "0"
    while seen < 10:
        ((_, found),) = client.xread({"s": position}, block=20000)
        seen, position = seen + len(found), found[-1][0]
    assert requests(client)[0]["state"] == b"running"
    job.client.connection_pool.disconnect(inuse_connections=True)
    assert last_entry(client)["finish_reason"] == b"cancelled"


def test_maxlen_keeps_the_newest_entries(client: redis.Redis) -> None:
    reply = generate(client, *BASE[1:], "MAXTOKENS", 9, "STREAM", "s", "MAXLEN", 4)
    *tokens, last = entries(client)
    assert [int(e["token"]) for e in tokens] == unpack(reply["tokens"])[-3:]
    assert last["finish_reason"] == b"length"


def test_ttl_is_counted_from_the_last_entry(client: redis.Redis) -> None:
    request = start(client, "TTL", 1000000)
    assert client.pttl("s") > 0
    client.persist("s")
    client.execute_command("INFER.CANCEL", request)
    assert last_entry(client)["finish_reason"] == b"cancelled"
    assert 800000 < client.pttl("s") <= 1000000
    generate(client, *BASE[1:], "MAXTOKENS", 1, "STREAM", "short", "TTL", 1)
    wait_until(lambda: not client.exists("short"), "the stream expires")


@pytest.mark.parametrize("lose", [redis.Redis.delete, redis.Redis.persist])
def test_a_stream_that_lost_its_ttl_gets_it_with_the_next_entry(
    client: redis.Redis, lose: Callable[[redis.Redis, str], Any]
) -> None:
    request = start(client, "TTL", 1000000)
    lose(client, "s")
    newest = entries(client)[-1:]
    wait_until(lambda: client.exists("s") and entries(client)[-1:] != newest, "the next entry")
    ttl = client.pttl("s")
    client.execute_command("INFER.CANCEL", request)
    assert_idle(client)
    assert 0 < ttl <= 1000000


def test_without_ttl_a_streams_own_expiry_stays(client: redis.Redis) -> None:
    client.xadd("s", {"earlier": "entry"})
    client.pexpire("s", 500000)
    generate(client, *BASE[1:], "MAXTOKENS", 2, "STREAM", "s")
    assert client.xlen("s") == 4
    assert 400000 < client.pttl("s") <= 500000


def test_the_keys_are_those_of_the_clients_database(server: Server, client: redis.Redis) -> None:
    with server.client(db=3, socket_timeout=None) as other:
        reply = generate(other, *BASE[1:], "MAXTOKENS", 3, "STREAM", "s", "STORE", "out")
        assert other.get("out") == reply["tokens"]
        assert other.xlen("s") == 4
    assert client.keys() == []


# ---- ASYNC ----


def test_async_answers_with_the_id_at_once(client: redis.Redis) -> None:
    request = start(client)
    (entry,) = requests(client)
    assert (entry["id"], entry["state"]) == (request, b"running")
    assert entry["client"] == client.client_id()
    assert client.execute_command("INFER.CANCEL", request) == 1
    assert last_entry(client)["finish_reason"] == b"cancelled"
    assert_idle(client)


def test_async_outlives_its_client(server: Server, client: redis.Redis) -> None:
    with server.client() as gone:
        gone.execute_command(*BASE, "MAXTOKENS", 60, "STREAM", "s", "STORE", "out", "ASYNC")
    assert last_entry(client)["finish_reason"] == b"length"
    # Whoever sees the last entry finds the tokens stored.
    assert [int(e["token"]) for e in entries(client)[:-1]] == unpack(client.get("out"))


def test_async_works_inside_multi_and_scripts(client: redis.Redis) -> None:
    expected = generate(client, *BASE[1:], "MAXTOKENS", 5)["tokens"]
    command = (*BASE, "MAXTOKENS", 5, "ASYNC", "STORE")
    with client.pipeline(transaction=True) as transaction:
        transaction.set("before", 1)
        transaction.execute_command(*command, "a")
        transaction.get("a")
        _, first, not_yet = transaction.execute()
    assert not_yet is None
    second = client.eval("return redis.call(unpack(ARGV))", 0, *command, "b")
    assert second > first > 0
    wait_until(lambda: client.exists("a", "b") == 2, "both are stored")
    assert client.mget("a", "b") == [expected, expected]


def test_a_read_only_script_may_not_start_one(client: redis.Redis) -> None:
    script = "return redis.pcall(unpack(ARGV))['err']"
    command = (*BASE, "ASYNC", "STORE", "out")
    assert b"read-only" in client.execute_command("EVAL_RO", script, 0, *command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ASYNC",), "ASYNC answers before there is output"),
        (("MAXLEN", 3), "MAXLEN trims a stream: it needs STREAM"),
        (("TTL", 3), "TTL lets a stream expire: it needs STREAM"),
        (("ASYNC", "STORE", "a", "LOGPROBS", 1), "LOGPROBS with ASYNC needs STREAM"),
        (("STREAM", "a", "STORE", "a"), "the same key 'a'"),
        (("STREAM", "a", "MAXLEN", 0), "MAXLEN is '0'"),
        (("STREAM", "a", "TTL", -1), "TTL is '-1'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    client: redis.Redis, options: tuple[Any, ...], message: str
) -> None:
    assert message in error_of(client, *BASE, *options)
    assert_idle(client)
    assert client.keys() == []


def test_what_is_refused_at_once_is_an_error_with_async_too(client: redis.Redis) -> None:
    options = ("STREAM", "s", "ASYNC")
    assert error_of(client, "INFER.GENERATE", "x", 1, "k", *options).startswith("NOMODEL ")
    assert error_of(client, "INFER.GENERATE", MODEL, 1, "k", *options).startswith("NOKEY ")
    long = (*BASE, "MAXTOKENS", 10**6)
    assert error_of(client, *long, *options).startswith("CONTEXT ")
    assert not client.exists("s")
    assert_idle(client)


# ---- every end is in the stream ----


def test_cancelling_ends_the_stream(server: Server, client: redis.Redis) -> None:
    job = long_generation(server, "STREAM", "s", "STORE", "out")
    client.execute_command("INFER.CANCEL", requests(client)[0]["id"])
    reply = job.result()
    last = entries(client)[-1]  # before the reply
    assert last["finish_reason"] == reply["finish_reason"] == b"cancelled"
    assert int(last["output_tokens"]) == reply["output_tokens"] == client.xlen("s") - 1
    assert not client.exists("out")


def test_a_timeout_ends_the_stream_and_stores_what_there_is(client: redis.Redis) -> None:
    client.execute_command(*LONG, "TIMEOUT", 300, "STREAM", "s", "STORE", "out", "ASYNC")
    last = last_entry(client)
    assert last["finish_reason"] == b"timeout"
    assert len(client.get("out")) == 4 * int(last["output_tokens"])


def test_a_request_that_never_ran_has_a_last_entry(server: Server, client: redis.Redis) -> None:
    client.config_set("infer.max-batch", 1)
    try:
        running = start(client)
        waiting = client.execute_command(*LONG, "STREAM", "w", "ASYNC")
        client.execute_command("INFER.CANCEL", waiting)
        (last,) = [last_entry(client, "w")]
        assert (last["finish_reason"], last["output_tokens"]) == (b"cancelled", b"0")
        assert client.xlen("w") == 1
        client.execute_command("INFER.CANCEL", running)
    finally:
        client.config_set("infer.max-batch", 16)
    assert_idle(client)


def test_unloading_the_model_ends_the_stream(client: redis.Redis, model_path: Path) -> None:
    load(client, model_path, "passing")
    command = ("INFER.GENERATE", "passing", *LONG[2:], "STREAM", "s", "STORE", "out", "ASYNC")
    client.execute_command(*command)
    wait_until(lambda: client.xlen("s"), "tokens come")
    client.execute_command("INFER.MODEL UNLOAD", "passing")
    last = entries(client)[-1]  # before the answer
    assert last["finish_reason"] == b"error"
    assert last["error"].startswith(b"NOMODEL ")
    assert not client.exists("out")
    assert_idle(client)


# ---- what may happen to the keys ----


def test_a_stream_key_of_another_type_is_refused(client: redis.Redis) -> None:
    client.set("s", "a string")
    assert "WRONGTYPE STREAM 's'" in error_of(client, *BASE, "STREAM", "s")
    assert client.get("s") == b"a string"


def test_a_stream_that_is_overwritten_ends_its_request(server: Server, client: redis.Redis) -> None:
    job = long_generation(server, "STREAM", "s", "STORE", "out")
    start_id = requests(client)[0]["id"]
    client.set("s", "a string")
    assert "WRONGTYPE STREAM 's'" in job.failure()
    assert client.get("s") == b"a string"
    assert not client.exists("out")

    client.delete("s")
    assert start(client) > start_id  # without a client there is nobody to tell
    client.set("s", "a string")
    assert_idle(client)
    assert client.get("s") == b"a string"


@pytest.mark.parametrize("remove", [redis.Redis.flushall, lambda c: c.delete("s")])
def test_a_stream_that_is_deleted_is_made_anew(
    client: redis.Redis, remove: Callable[[redis.Redis], Any]
) -> None:
    request = start(client)
    remove(client)
    wait_until(lambda: client.xlen("s") > 3, "tokens come again")
    client.execute_command("INFER.CANCEL", request)
    last = last_entry(client)
    tokens = [int(e["i"]) for e in entries(client)[:-1]]
    assert tokens == list(range(tokens[0], int(last["output_tokens"])))
    assert tokens[0] > 0


def test_a_stream_obeys_maxmemory_and_says_so(server: Server, client: redis.Redis) -> None:
    try:
        client.config_set("maxmemory", 1)
        for option in ("STREAM", "STORE"):
            says = error_of(client, *BASE, option, "s")
            assert says.startswith(option) and "used memory > 'maxmemory'" in says
        client.config_set("maxmemory", 0)
        job = long_generation(server, "STREAM", "s")
        client.config_set("maxmemory", 1)
        assert "STREAM 's': command not allowed" in job.failure()
    finally:
        client.config_set("maxmemory", 0)
    last = entries(client)[-1]
    assert last["finish_reason"] == b"error"
    assert last["error"].startswith(b"OOM STREAM 's'")
    assert_idle(client)


def test_output_is_written_while_keys_are_evicted(client: redis.Redis) -> None:
    filler = "for i = 1, 10000 do redis.call('SET', 'filler:' .. i, ARGV[1], 'EX', 1000) end"
    client.eval(filler, 0, b"x" * 1000)
    limit = client.info("memory")["used_memory"] - 3000000
    # Each command evicts a few keys and leaves it at that.
    settings = {"maxmemory-policy": "volatile-ttl", "maxmemory-eviction-tenacity": 0}
    before = {name: client.config_get(name)[name] for name in settings}
    try:
        for name, value in settings.items():
            client.config_set(name, value)
        with client.pipeline(transaction=False) as at_once:  # before more are evicted
            at_once.config_set("maxmemory", limit)
            at_once.set("first", 1)
            at_once.execute_command(*BASE, "MAXTOKENS", 3, "STREAM", "s", "STORE", "out", "ASYNC")
            at_once.set("then", 1)
            at_once.info("memory")
            *_, memory = at_once.execute()
        assert memory["used_memory"] > limit, "it was still above the limit"
        assert last_entry(client)["finish_reason"] == b"length"
        assert client.exists("out")
    finally:
        client.config_set("maxmemory", 0)
        for name, value in before.items():
            client.config_set(name, value)


@pytest.mark.needs_redis(7, 2)  # before, it is noticed when the output comes
def test_what_cannot_be_saved_is_not_begun(client: redis.Redis) -> None:
    client.config_set("min-replicas-to-write", 1)
    try:
        for option in ("STREAM", "STORE"):
            assert error_of(client, *BASE, option, "s", "ASYNC").startswith("NOREPLICAS ")
    finally:
        client.config_set("min-replicas-to-write", 0)
    assert client.keys() == []


def test_nothing_is_written_while_writes_are_paused(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as at_once:  # before the first token can be written
        at_once.execute_command(*BASE, "MAXTOKENS", 30, "STREAM", "s", "ASYNC")
        at_once.execute_command("CLIENT PAUSE", 60000, "WRITE")
        at_once.execute()
    try:
        wait_until(lambda: requests(client)[0]["state"] == b"done", "all is computed")
        time.sleep(0.1)
        assert client.xlen("s") == 0
    finally:
        client.execute_command("CLIENT UNPAUSE")
    assert last_entry(client)["finish_reason"] == b"length"
    assert [int(e["i"]) for e in entries(client)[:-1]] == list(range(30))


# ---- replicas, AOF, unloading the module ----


def test_replica_and_aof_hold_the_same_stream(model_path: Path, tmp_path: Path) -> None:
    config = {"appendonly": "yes", "repl-diskless-sync-delay": 0, "enable-debug-command": "yes"}
    with (
        own_server(model_path, config=config) as master,
        own_server(model_path) as replica,
        master.client(socket_timeout=None) as on_master,
        replica.client(socket_timeout=None) as on_replica,
    ):
        on_replica.execute_command("REPLICAOF", "127.0.0.1", master.port)
        wait_until(
            lambda: on_replica.info("replication")["master_link_status"] == "up", "the replica"
        )
        options = ("MAXTOKENS", 25, "STREAM", "s", "MAXLEN", 20, "TTL", 10**9, "STORE", "out")
        generate(on_master, *BASE[1:], *options)
        here = (on_master.xrange("s"), on_master.get("out"), on_master.pexpiretime("s"))
        assert len(here[0]) == 20
        on_master.wait(1, 20000)
        assert here == (
            on_replica.xrange("s"),
            on_replica.get("out"),
            on_replica.pexpiretime("s"),
        )
        on_master.execute_command("DEBUG LOADAOF")
        assert here == (on_master.xrange("s"), on_master.get("out"), on_master.pexpiretime("s"))

        # A replica takes no such request, whatever the order of its options.
        for key in ("STREAM", "STORE"):
            with pytest.raises(redis.exceptions.ReadOnlyError):
                on_replica.execute_command(*BASE, "ASYNC", key, "x")

        # A master that becomes a replica: the request ends, and adds nothing to what is another's.
        start(on_master)
        on_master.execute_command("REPLICAOF", "127.0.0.1", replica.port)
        assert_idle(on_master)
        assert on_master.info("infer")["infer_output_failures"] == 1


def test_the_module_stays_while_a_request_without_client_runs(model_path: Path) -> None:
    config = {"enable-module-command": "yes"}
    with own_server(model_path, config=config) as server, server.client() as client:
        start(client)
        error_of(client, "MODULE UNLOAD", "infer")
        (entry,) = requests(client)
        client.execute_command("INFER.CANCEL", entry["id"])
        assert last_entry(client)["finish_reason"] == b"cancelled"
        assert_idle(client)

        def unload() -> bool:
            # Refused for one more turn of the event loop, should it come that quickly.
            try:
                return bool(client.execute_command("MODULE UNLOAD", "infer"))
            except redis.ResponseError:
                return False

        wait_until(unload, "the module goes")
        assert client.ping()


def test_shutdown_during_a_stream_ends_the_server(model_path: Path) -> None:
    with own_server(model_path) as server:
        with server.client(socket_timeout=None) as client:
            for i in range(4):
                client.execute_command(*LONG, "STREAM", f"s{i}", "ASYNC")
            wait_until(lambda: client.xlen("s3"), "tokens come")
            job = Background(server, *LONG, "STREAM", "s")
            wait_until(lambda: len(requests(client)) == 5, "all run")
            client.shutdown(nosave=True)
            job.failure()
        assert server.wait() == 0


# ---- numbers ----


def test_info_counts_entries_and_turns(server: Server, client: redis.Redis) -> None:
    before = client.info("infer")
    jobs = [Background(server, *BASE, "MAXTOKENS", 10, "STREAM", f"s{i}") for i in range(4)]
    for job in jobs:
        job.result()
    generate(client, *BASE[1:], "MAXTOKENS", 1, "STORE", "out")
    after = client.info("infer")
    assert after["infer_stream_entries"] - before["infer_stream_entries"] == 44
    assert after["infer_stored_keys"] - before["infer_stored_keys"] == 1
    turns = after["infer_write_turns"] - before["infer_write_turns"]
    assert 1 <= turns <= 45  # one writes one item or more
    percentiles = [after[f"infer_write_turn_{p}_us"] for p in ("p50", "p90", "p99", "max")]
    assert percentiles == sorted(percentiles)
    assert percentiles[-1] > 0


def test_many_streams_at_once_hold_what_each_client_gets(
    server: Server, client: redis.Redis
) -> None:
    prompts = [[*PROMPT, 100 + i] for i in range(8)]
    stop = threading.Event()

    def write() -> None:
        with server.client() as busy:
            while not stop.is_set():
                busy.set("k", "v")

    other = threading.Thread(target=write)
    other.start()
    jobs = [
        Background(
            server,
            "INFER.GENERATE",
            MODEL,
            0,
            "TOKENS",
            pack(p),
            "MAXTOKENS",
            20,
            "STREAM",
            f"s{i}",
        )
        for i, p in enumerate(prompts)
    ]
    replies = [job.result() for job in jobs]
    stop.set()
    other.join()
    for i, reply in enumerate(replies):
        *tokens, last = entries(client, f"s{i}")
        assert [int(e["token"]) for e in tokens] == unpack(reply["tokens"])
        assert b"".join(e["text"] for e in [*tokens, last]) == reply["text"]


# ---- watching ----


def test_requests_tell_how_far_they_are(server: Server, client: redis.Redis) -> None:
    # Tokens that no other test uses: their beginning is not in the cache.
    prompt = pack([7000 + i % 3000 for i in range(2000)])
    command = ("INFER.GENERATE", MODEL, 0, "TOKENS", prompt, "IGNOREEOS", "MAXTOKENS", 3000)
    client.execute_command(*command, "STREAM", "s", "ASYNC")
    seen = []

    def decoding() -> bool:
        (entry,) = requests(client)
        seen.append(entry)
        return bool(entry["output_tokens"] > 5)

    wait_until(decoding, "it generates")
    assert all(0 <= e["cached_tokens"] <= e["computed_tokens"] <= 2000 for e in seen)
    computed = [e["computed_tokens"] for e in seen]
    assert computed == sorted(computed)
    assert computed[-1] == 2000
    assert seen[-1]["async"] == 1
    client.execute_command("INFER.CANCEL", seen[-1]["id"])
    assert_idle(client)


def test_slow_steps_go_to_the_latency_monitor(client: redis.Redis) -> None:
    def events() -> dict[str, Any]:
        return {e[0].decode(): e for e in client.execute_command("LATENCY LATEST")}

    client.execute_command("LATENCY RESET")
    generate(client, *BASE[1:], "MAXTOKENS", 4)
    time.sleep(1.2)  # the module reports once a second
    assert not events(), "the monitor is off"
    try:
        client.config_set("latency-monitor-threshold", 1)

        def slow() -> Any:
            # A step with a prompt takes milliseconds on any machine.
            prompt = pack([9000 + i for i in range(512)])
            generate(client, MODEL, 0, "TOKENS", prompt, "MAXTOKENS", 1, "NOCACHE")
            return events().get("infer-step")

        _, _, _, longest = wait_until(slow, "the step is reported")[:4]
        assert longest >= 1
    finally:
        client.config_set("latency-monitor-threshold", 0)
        client.execute_command("LATENCY RESET")


def test_info_adds_the_models_up(client: redis.Redis, model_path: Path) -> None:
    load(client, model_path, "second", "KVMEMORY", 64 << 20)
    try:
        generate(client, "second", *BASE[2:], "MAXTOKENS", 3)
        info = client.info("infer")
        one, two = info[f"infer_model_{MODEL}"], info["infer_model_second"]
        for name in ("kv_pages", "kv_pages_active", "kv_pages_cached", "kv_pages_free", "steps"):
            assert info[f"infer_{name}"] == one[name] + two[name]
        for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
            assert info[f"infer_{name}"] == one[name] + two[name]
        for model in (one, two):
            pages = ("kv_pages_active", "kv_pages_cached", "kv_pages_free")
            assert model["kv_pages"] == sum(model[name] for name in pages)
            ended = ("finished", "cancelled", "timed_out", "failed", "running", "queued")
            assert model["requests"] == sum(model[name] for name in ended)
        for what in ("queue", "first_token", "token", "step"):
            longest = max(one[f"{what}_max_us"], two[f"{what}_max_us"])
            assert info[f"infer_{what}_max_us"] == longest
            assert info[f"infer_{what}_p50_us"] <= info[f"infer_{what}_p99_us"] <= longest
    finally:
        client.execute_command("INFER.MODEL UNLOAD", "second")
