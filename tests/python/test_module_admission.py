"""The way from key to core: the very bytes that Redis keeps, and how long it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from module_support import MODEL, PROMPT, generate, long_generation, pack
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")

# Admission is what is looked at: what follows it may be short.
BRIEF = ("MAXTOKENS", 1, "TIMEOUT", 1)

LINE = re.compile(r"admission: key '(.*?)' dma=0x([0-9a-f]+) bytes=(\d+) core=0x([0-9a-f]+)")


class Trace:
    """Admissions logged since the last look: key, StringDMA's pointer, bytes, core's pointer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen = len(LINE.findall(server.log()))

    def new(self) -> list[tuple[str, int, int, int]]:
        found = LINE.findall(self._server.log())[self._seen :]
        self._seen += len(found)
        return [(name, int(dma, 16), int(n), int(core, 16)) for name, dma, n, core in found]


@pytest.fixture
def trace(server: Server, client: redis.Redis) -> Iterator[Trace]:
    client.config_set("infer.trace-admission", "yes")
    yield Trace(server)
    client.config_set("infer.trace-admission", "no")


# Redis keeps strings of up to 44 bytes inside their object and longer ones beside it.
LENGTHS = [1, 5, 10, 11, 12, 100, 4000]


@pytest.mark.parametrize("n", LENGTHS)
def test_core_reads_where_stringdma_points(client: redis.Redis, trace: Trace, n: int) -> None:
    client.set("k", pack([7] * n))
    for _ in range(2):
        generate(client, MODEL, 1, "k", *BRIEF)
    first, second = trace.new()
    for name, dma, length, core in (first, second):
        assert (name, length) == ("k", 4 * n)
        assert core == dma != 0
    assert first == second  # the key's own buffer, not one that is made for each request


@pytest.mark.parametrize("n", LENGTHS)
def test_the_pointer_is_where_the_server_keeps_the_key(
    client: redis.Redis, trace: Trace, n: int
) -> None:
    """Seen from outside: a write to the key in place shows at the address that core read."""
    try:
        process = client.info("server")["process_id"]
        memory = Path(f"/proc/{process}/mem").open("rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        pytest.skip(f"the server's memory cannot be read here: {error}")
    with memory:
        client.set("k", pack(range(n)))
        generate(client, MODEL, 1, "k", *BRIEF)
        ((_, _, length, core),) = trace.new()
        memory.seek(core)
        assert memory.read(length) == pack(range(n))
        client.setrange("k", 4 * n - 4, pack([40000]))
        memory.seek(core)
        assert memory.read(length) == pack([*range(n - 1), 40000])


def test_an_overwritten_key_is_read_at_its_new_place(client: redis.Redis, trace: Trace) -> None:
    client.set("k", pack([7] * 100))
    generate(client, MODEL, 1, "k", *BRIEF)
    client.set("keeper", pack([9] * 100))
    client.set("k", pack([8] * 300))
    generate(client, MODEL, 1, "k", *BRIEF)
    client.append("k", pack([8] * 300))
    generate(client, MODEL, 1, "k", *BRIEF)
    lines = trace.new()
    assert [length for _, _, length, _ in lines] == [400, 1200, 2400]
    assert all(core == dma for _, dma, _, core in lines)
    assert client.get("k") == pack([8] * 600)


def test_integers_and_short_strings_keep_their_value(client: redis.Redis) -> None:
    for value in (b"1234", b"12345678", pack([1]), pack(PROMPT)):
        client.set("k", value)
        try:
            generate(client, MODEL, 1, "k", *BRIEF)
        except redis.ResponseError as error:
            assert str(error).startswith("BADTOKENS ")
        assert client.get("k") == value
        assert client.strlen("k") == len(value)


def test_each_key_is_logged_in_order_and_nothing_without_the_setting(
    client: redis.Redis, trace: Trace
) -> None:
    client.mset({"a": pack([1, 2]), "b": pack([3] * 50)})
    generate(client, MODEL, 3, "b", "a", "b", *BRIEF)
    read = [(name, length) for name, _, length, _ in trace.new()]
    assert read == [("b", 200), ("a", 8), ("b", 200)]
    client.config_set("infer.trace-admission", "no")
    generate(client, MODEL, 3, "b", "a", "b", *BRIEF)
    assert trace.new() == []


def test_admission_takes_less_time_than_a_client_takes_to_get_the_same_keys(
    server: Server, client: redis.Redis
) -> None:
    """4096 tokens in 16 keys. bench/admission.py says how long both take."""
    names = [f"part{i}" for i in range(16)]
    client.mset({name: pack(range(i * 256, i * 256 + 256)) for i, name in enumerate(names)})
    # Behind a generation that has the only place the others wait and are not computed.
    client.config_set("infer.max-batch", 1)
    try:
        running = long_generation(server)
        admissions: list[int] = []
        fetches: list[float] = []
        while not admissions or (min(admissions) >= min(fetches) and len(admissions) < 400):
            admissions.append(generate(client, MODEL, 16, *names, *BRIEF)["admit_us"])
            began = time.perf_counter()
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.get(name)
            pipeline.execute()
            fetches.append((time.perf_counter() - began) * 1e6)
        client.execute_command("CLIENT KILL", "ID", running.client_id)
    finally:
        client.config_set("infer.max-batch", 16)
    # The best of many: other processes make either longer, none shorter.
    assert min(admissions) < min(fetches), (sorted(admissions), sorted(fetches))


def test_there_is_a_proc_filesystem_on_linux() -> None:
    """So that the tests above that look into the server are not skipped unseen."""
    import sys

    assert not sys.platform.startswith("linux") or Path("/proc/self/mem").exists()
