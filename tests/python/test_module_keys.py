"""Which keys a command names: GETKEYS, ACL, cluster mode."""

from __future__ import annotations

from collections.abc import Iterator
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
    long_generation,
    own_cluster,
    pack,
    server_with_plain_call,
    wait_until,
)
from redis_infer.server import Server


def keys(client: redis.Redis, *args: Any) -> list[str]:
    found = client.execute_command("COMMAND GETKEYS", *args)
    return [k.decode() if isinstance(k, bytes) else k for k in found]


def test_getkeys_names_the_prompts_keys(client: redis.Redis) -> None:
    assert keys(client, "INFER.GENERATE", "m", 2, "a", "b") == ["a", "b"]
    assert keys(client, "INFER.SCORE", "m", 2, "a", "b", "TOP", 2) == ["a", "b"]
    assert keys(client, "INFER.GENERATE", "m", 0, "TOKENS", "blob") == []


def test_getkeys_names_the_key_of_store_and_no_other_word(client: redis.Redis) -> None:
    command = ("INFER.GENERATE", "m", 1, "a")
    assert keys(client, *command, "SEED", 1, "store", "out") == ["a", "out"]
    # A text, a blob or a key that looks like the option does not hide it or stand in for it.
    assert keys(client, *command, "STOP", 1, "STORE", "STORE", "out") == ["a", "out"]
    assert keys(client, *command, "TOKENS", "STORE", "STORE", "out") == ["a", "out"]
    assert keys(client, *command, "STOP", 2, "STORE", "x") == ["a"]
    assert keys(client, "INFER.GENERATE", "m", 2, "STORE", "b") == ["STORE", "b"]


def test_store_is_a_write_and_the_others_are_reads(client: redis.Redis) -> None:
    found = client.execute_command(
        "COMMAND GETKEYSANDFLAGS", "INFER.GENERATE", "m", 1, "a", "STORE", "out"
    )
    assert [(key, set(flags)) for key, flags in found] == [
        (b"a", {b"RO", b"access"}),
        (b"out", {b"OW", b"update"}),
    ]


def test_the_stream_is_written_and_found_wherever_it_stands(client: redis.Redis) -> None:
    found = client.execute_command(
        "COMMAND GETKEYSANDFLAGS",
        *("INFER.GENERATE", "m", 1, "a", "STREAM", "s", "STOP", 1, "STREAM", "STORE", "out"),
    )
    assert [(key, set(flags)) for key, flags in found] == [
        (b"a", {b"RO", b"access"}),
        (b"out", {b"OW", b"update"}),
        (b"s", {b"RW", b"update"}),
    ]


def test_faulty_arguments_name_no_keys_beyond_them(client: redis.Redis) -> None:
    assert keys(client, "INFER.GENERATE", "m", 1, "a", "NONSENSE", "STORE") == ["a"]
    assert keys(client, "INFER.GENERATE", "m", "many", "a") == []


# ---- ACL ----


@pytest.fixture
def limited(client: redis.Redis, server: Server, loaded: object) -> Iterator[redis.Redis]:
    """May run everything that reads, INFER.GENERATE, SET and XADD, read r:*, write w:*."""
    client.execute_command(
        "ACL", "SETUSER", "limited", "reset", "on", ">secret", "+@read", "+infer.generate",
        "+infer.score", "+set", "+xadd", "%R~r:*", "%W~w:*",
    )  # fmt: skip
    client.mset({"r:p": pack(PROMPT), "other": pack(PROMPT)})
    with server.client(username="limited", password="secret") as connected:
        yield connected
    client.execute_command("ACL", "DELUSER", "limited")


def test_a_user_generates_from_and_to_permitted_keys(
    limited: redis.Redis, client: redis.Redis
) -> None:
    keys = ("STORE", "w:out", "STREAM", "w:stream")
    made = generate(limited, MODEL, 1, "r:p", "MAXTOKENS", 2, *keys)
    assert client.get("w:out") == made["tokens"]
    assert client.xlen("w:stream") == 3


@pytest.mark.parametrize(
    "args",
    [
        ("INFER.GENERATE", MODEL, 1, "other"),
        ("INFER.GENERATE", MODEL, 2, "r:p", "other"),
        ("INFER.SCORE", MODEL, 1, "other"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "STORE", "r:out"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "STORE", "other"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "STOP", 1, "STORE", "STORE", "other"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "TOKENS", "STORE", "STORE", "other"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "STREAM", "r:out"),
        ("INFER.GENERATE", MODEL, 1, "r:p", "STORE", "w:out", "STREAM", "other", "ASYNC"),
    ],
)
def test_a_user_without_permission_for_a_key_is_refused(
    limited: redis.Redis, client: redis.Redis, args: tuple[Any, ...]
) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        limited.execute_command(*args)
    assert client.get("other") == pack(PROMPT)


@pytest.mark.needs_redis(7, 2)  # before, module commands have no ACL categories
def test_a_user_who_may_only_read_writes_nothing(
    client: redis.Redis, server: Server, loaded: object
) -> None:
    client.execute_command(
        "ACL", "SETUSER", "reader", "reset", "on", ">secret", "+@read", "+eval", "~*"
    )
    client.mset({"p": pack(PROMPT), "mine": "still there"})
    command = ("INFER.GENERATE", MODEL, 1, "p", "MAXTOKENS", 2)
    script = ("EVAL", "return redis.call(unpack(ARGV))", 0)
    with server.client(username="reader", password="secret") as reader:
        assert generate(reader, *command[1:])["output_tokens"] == 2
        for option, needed in (("STORE", "set"), ("STREAM", "xadd")):
            for call in (command, (*script, *command, "ASYNC")):
                with pytest.raises(redis.exceptions.NoPermissionError, match=f"'{needed}' command"):
                    reader.execute_command(*call, option, "mine")
        assert client.get("mine") == b"still there"
        client.execute_command("ACL", "SETUSER", "reader", "+set")
        made = generate(reader, *command[1:], "STORE", "mine")
        assert client.get("mine") == made["tokens"]
        assert client.acl_log()[0]["object"] == "xadd"
        client.execute_command("ACL", "SETUSER", "reader", "+xadd")
        client.xadd("log", {"entry": 1})
        with pytest.raises(redis.exceptions.NoPermissionError, match="'pexpire' command"):
            generate(reader, *command[1:], "STREAM", "log", "TTL", 1)
        generate(reader, *command[1:], "STREAM", "log")
        assert client.ttl("log") == -1
    client.execute_command("ACL", "DELUSER", "reader")


def test_a_module_that_calls_for_no_user_may_write(model_path: Path, tmp_path: Path) -> None:
    with server_with_plain_call(model_path, tmp_path) as server, server.client() as client:
        command = ("INFER.GENERATE", MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2, "ASYNC")
        for i, script in enumerate(((), ("EVAL", "return redis.call(unpack(ARGV))", 0))):
            output = ("STORE", f"out{i}", "STREAM", f"s{i}")
            client.execute_command("PLAIN.CALL", *script, *command, *output)
            wait_until(lambda name=f"s{i}": client.xlen(name) == 3, "the stream is complete")
            assert client.strlen(f"out{i}") == 8


@pytest.mark.needs_redis(7, 2)  # before, module commands have no ACL categories
def test_loading_models_is_dangerous(client: redis.Redis, server: Server) -> None:
    client.execute_command(
        "ACL", "SETUSER", "careful", "reset", "on", ">secret", "+@all", "-@dangerous", "~*"
    )
    with server.client(username="careful", password="secret") as careful:
        for command in (
            ("INFER.MODEL LOAD", "m", "f"),
            ("INFER.MODEL UNLOAD", "m"),
            ("INFER.CANCEL", 1),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                careful.execute_command(*command)
        careful.execute_command("INFER.MODEL LIST")
    client.execute_command("ACL", "DELUSER", "careful")


# ---- cluster ----


def test_in_a_cluster_all_keys_of_a_command_share_a_slot(model_path: Path) -> None:
    with own_cluster(model_path) as server, server.client() as client:
        client.set("{c}:a", pack(PROMPT))
        made = generate(client, MODEL, 1, "{c}:a", "MAXTOKENS", 2, "STORE", "{c}:out")
        assert client.get("{c}:out") == made["tokens"]
        for args in ((1, "{c}:a", "STORE", "{d}:out"), (2, "{c}:a", "{d}:b")):
            assert "slot" in error_of(client, "INFER.GENERATE", MODEL, *args)


def test_a_cluster_that_fails_turns_waiting_clients_away(model_path: Path) -> None:
    with own_cluster(model_path) as server, server.client() as client:
        job = long_generation(server)
        client.execute_command("CLUSTER DELSLOTS", 0)
        assert job.failure() == "The cluster is down"
        assert_idle(client)
        client.execute_command("CLUSTER ADDSLOTS", 0)
        wait_until(
            lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
            "the cluster is up",
        )
        generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2)


def test_a_cluster_that_is_down_loads_models_unseen(model_path: Path) -> None:
    """Redis may turn away the client that waits for it, at a moment of its own."""
    with own_cluster(model_path) as server, server.client() as client:
        client.execute_command("CLUSTER DELSLOTS", 0)
        jobs = [Background(server, "INFER.MODEL LOAD", f"m{i}", model_path.name) for i in range(4)]
        for job in jobs:
            job.join()
            assert job.error is None or str(job.error) == "The cluster is down"
        wait_until(
            lambda: (
                [as_map(m)["state"] for m in client.execute_command("INFER.MODEL LIST")]
                == [b"ready"] * 5
            ),
            "all models are loaded",
        )
