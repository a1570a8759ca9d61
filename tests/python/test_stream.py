"""Generations read as they come: every protocol, decoding or not, sync and async."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

from module_support import assert_idle, requests, wait_until
from redis_infer import AsyncInfer, Generation, Infer, NoKeyError, NoModelError, Piece, streaming
from redis_infer.commands import Command
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")

PROMPT = "The capital of France is"
LONG: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}
ANY: Command[Any] = Command(("ANY",), lambda reply: reply)


@pytest.fixture
async def async_infer(server: Server, loaded: Infer) -> AsyncIterator[AsyncInfer]:
    async with server.async_client() as client:
        yield AsyncInfer(client)


def check(pieces: list[Piece], result: Generation | None, expected: Generation) -> None:
    assert "".join(map(str, pieces)) == expected.text
    tokens = [p.token for p in pieces if p.token is not None]
    assert tokens == expected.tokens.tolist()
    assert [p.i for p in pieces] == list(range(len(pieces)))
    assert result is not None
    assert (result.text, result.tokens.tolist()) == (expected.text, expected.tokens.tolist())
    assert result.finish_reason == expected.finish_reason
    assert result.output_tokens == expected.output_tokens
    assert 0 < result.first_token_us <= result.total_us


# ---- the same pieces whatever the client ----


def test_every_kind_of_client_gets_the_pieces_of_a_generation(
    any_infer: Infer, client: redis.Redis
) -> None:
    expected = any_infer.generate("smol", PROMPT, max_tokens=12)
    stream = any_infer.stream("smol", PROMPT, max_tokens=12)
    pieces = list(stream)
    check(pieces, stream.result, expected)
    assert client.keys() == [], "its stream is removed"
    # The connections are good for more.
    check(list(again := any_infer.stream("smol", PROMPT, max_tokens=12)), again.result, expected)
    assert any_infer.generate("smol", PROMPT, max_tokens=12).text == expected.text


async def test_the_async_client_gets_the_same_pieces(
    any_async: AsyncInfer, loaded: Infer, client: redis.Redis
) -> None:
    expected = loaded.generate("smol", PROMPT, max_tokens=12)
    for _ in range(2):
        stream = any_async.stream("smol", PROMPT, max_tokens=12)
        pieces = [piece async for piece in stream]
        check(pieces, stream.result, expected)
    assert client.keys() == []


def test_pieces_come_before_the_end(loaded: Infer, client: redis.Redis) -> None:
    with loaded.stream("smol", PROMPT, **LONG) as stream:
        next(stream)
        assert requests(client)[0]["state"] == b"running"
    assert_idle(client)


def test_pieces_have_logprobs_where_asked_for(loaded: Infer) -> None:
    stream = loaded.stream("smol", PROMPT, max_tokens=4, logprobs=0)
    logprobs = [piece.logprob for piece in stream]
    assert stream.result is not None and stream.result.logprobs is not None
    assert logprobs == pytest.approx(stream.result.logprobs.tolist())


def test_a_prompt_of_keys_streams_in_their_slot(loaded: Infer, client: redis.Redis) -> None:
    for key in ("plain", "{tag}:k", b"\xff{\xfe}", "a}b", "{}x", "}{y}", ""):
        loaded.store_tokens(key, loaded.tokenizer("smol").encode(PROMPT))
        stream = loaded.stream("smol", keys=key, max_tokens=300, ignore_eos=True)
        next(stream)
        (own,) = client.scan_iter("infer:stream:*")
        assert key_slot(own) == key_slot(key if isinstance(key, bytes) else key.encode())
        stream.close()
        assert_idle(client)  # the last entry is written
        client.flushall()


# ---- leaving early ----


def test_leaving_the_loop_cancels_the_request(loaded: Infer, client: redis.Redis) -> None:
    for n, _piece in enumerate(loaded.stream("smol", PROMPT, **LONG)):
        if n == 3:
            break
    assert_idle(client)
    assert client.info("infer")["infer_requests_cancelled"] > 0
    # What is left of the stream expires by itself.
    (key,) = client.keys()
    assert 0 < client.pttl(key) <= 60000


def test_a_stream_that_is_dropped_cancels_the_request(loaded: Infer, client: redis.Redis) -> None:
    stream = loaded.stream("smol", PROMPT, **LONG)
    next(stream)
    assert requests(client)
    del stream
    gc.collect()
    assert_idle(client)


def test_a_stream_that_is_never_read_asks_for_nothing(loaded: Infer, client: redis.Redis) -> None:
    before = client.info("infer")["infer_requests_total"]
    loaded.stream("smol", PROMPT, **LONG).close()
    assert client.info("infer")["infer_requests_total"] == before


async def test_leaving_an_async_loop_cancels_the_request(
    async_infer: AsyncInfer, client: redis.Redis
) -> None:
    async for piece in async_infer.stream("smol", PROMPT, **LONG):
        if piece.i == 3:
            break
    await asyncio.sleep(0)  # the event loop closes generators that were dropped
    await asyncio.to_thread(assert_idle, client)
    async with async_infer.stream("smol", PROMPT, **LONG) as stream:
        await anext(stream)
    await asyncio.to_thread(assert_idle, client)
    # Connections that were left in the middle of a reply are not used again.
    assert (await async_infer.generate("smol", PROMPT, max_tokens=2)).output_tokens == 2


async def test_cancelling_a_task_that_streams_cancels_the_request(
    async_infer: AsyncInfer, client: redis.Redis
) -> None:
    async def consume() -> None:
        async for _ in async_infer.stream("smol", PROMPT, **LONG):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(wait_until, lambda: requests(client), "it runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(assert_idle, client)


class Sent:
    """A connection whose command is sent when the test says so, waited for as redis-py does."""

    def __init__(self) -> None:
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connected = True

    async def send_command(self, *_: Any) -> None:
        await asyncio.wait_for(self.sent, 60)

    async def disconnect(self, **_: Any) -> None:
        self.connected = False


async def test_a_cancellation_just_when_a_command_is_sent_is_not_forgotten() -> None:
    connection = Sent()
    task = asyncio.create_task(streaming.send_async(connection, "PING"))
    for _ in range(5):
        await asyncio.sleep(0)
    connection.sent.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not connection.connected, "its reply is nobody's"


class Opened:
    """A connection that sends nothing: the test says what its reads give."""

    def __init__(self) -> None:
        self.connected = True

    async def send_command(self, *_: Any) -> None:
        pass

    async def disconnect(self, **_: Any) -> None:
        self.connected = False


class OpenedPool:
    def __init__(self) -> None:
        self.taken: list[Opened] = []
        self.released: list[Opened] = []

    async def get_connection(self) -> Opened:
        self.taken.append(Opened())
        return self.taken[-1]

    async def release(self, connection: Opened) -> None:
        self.released.append(connection)


async def test_a_cancellation_while_a_stream_is_left_is_not_forgotten() -> None:
    pool, leaving, end = OpenedPool(), asyncio.Event(), asyncio.Event()

    async def read(connection: Opened) -> Any:
        if connection is pool.taken[1]:
            return [[b"s", [entry(1, 0, token="7")]]]
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            leaving.set()
            await end.wait()
        return None

    async def leave() -> None:
        pieces = streaming.run_async(pool, ANY, "s", True, read)
        async with streaming.AsyncStream(pieces) as stream:
            await anext(stream)

    task = asyncio.create_task(leave())
    await asyncio.wait_for(leaving.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert not any(connection.connected for connection in pool.taken)
    assert set(pool.released) == set(pool.taken)
    end.set()


@pytest.mark.parametrize("use", ["info", "stream", "follow"])
async def test_connections_that_the_server_has_closed_meanwhile_are_made_anew(
    server: Server, loaded: Infer, client: redis.Redis, use: str
) -> None:
    list(loaded.stream("smol", PROMPT, max_tokens=2, stream="s"))
    # Over TCP, where redis-py listens to maintenance notifications.
    options: Any = {"host": "127.0.0.1", "port": server.port, "protocol": 3}
    async with redis.asyncio.Redis(**options) as idle:
        infer = AsyncInfer(idle)
        assert [p.i async for p in infer.stream("smol", PROMPT, max_tokens=2)] == [0, 1]
        client.client_kill_filter(_type="normal", skipme=True)
        connections = idle.connection_pool._available_connections
        assert len(connections) == 2

        async def all_have_ended() -> None:
            while not all(connection._reader.at_eof() for connection in connections):
                await asyncio.sleep(0.01)

        await asyncio.wait_for(all_have_ended(), 60)
        for _ in connections:
            if use == "info":
                assert (await infer.info("smol"))["name"] == "smol"
            elif use == "stream":
                assert [p.i async for p in infer.stream("smol", PROMPT, max_tokens=2)] == [0, 1]
            else:
                assert [p.i async for p in infer.follow("s", timeout_s=20)] == [0, 1]


def test_a_process_that_dies_leaves_no_request(server: Server, client: redis.Redis) -> None:
    code = (
        "import redis, redis_infer, sys\n"
        "infer = redis_infer.Infer(redis.Redis(unix_socket_path=sys.argv[1]))\n"
        "for piece in infer.stream('smol', [504, 3575], max_tokens=4000, ignore_eos=True):\n"
        "    print('got', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(server.unix_socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"got\n"
        assert requests(client)
        process.kill()
    assert_idle(client)


class Scripted:
    """A connection to a server that answers as the test says. There is no socket to wait for."""

    def __init__(self, replies: list[Any], *, at_once: bool) -> None:
        self.replies = replies
        self.at_once = at_once

    def send_command(self, *_: Any) -> None:
        pass

    def can_read(self, timeout_s: float) -> bool:
        return bool(self.replies) and (self.at_once or timeout_s > 0)

    @property
    def _sock(self) -> Any:
        raise AssertionError("it waits without limit")

    def disconnect(self) -> None:
        pass


class ScriptedPool:
    def __init__(self, *connections: Scripted) -> None:
        self.connections = list(connections)

    def get_connection(self) -> Scripted:
        return self.connections.pop(0)

    def release(self, _: Scripted) -> None:
        pass


XYZ = Generation(
    text="xyz",
    tokens=np.array([7, 8], np.uint32),
    finish_reason="length",
    prompt_tokens=1,
    cached_tokens=0,
    output_tokens=2,
    admit_us=1,
    queue_us=1,
    first_token_us=1,
    total_us=1,
)


def without_end(n_others: int) -> list[Any]:
    """Replies of XREAD: one with a first token, and those with what others add."""
    others = [[b"%d-0" % i, [b"other", b"field"]] for i in range(2, 2 + n_others)]
    return [[[b"s", [one]]] for one in (entry(1, 0, token="7"), *others)]


@pytest.mark.parametrize("n_others", [0, 100])
def test_a_stream_without_a_last_entry_ends_after_the_reply(n_others: int) -> None:
    asking = Scripted([XYZ], at_once=True)
    following = Scripted(without_end(n_others), at_once=False)
    pool = ScriptedPool(asking, following)
    pieces = streaming.run(pool, ANY, "s", True, lambda connection: connection.replies.pop(0))
    stream = streaming.Stream(pieces)
    assert "".join(map(str, stream)) == "xyz"
    assert stream.result is XYZ
    assert len(following.replies) >= n_others - 1, "what others add is not read for ever"


@pytest.mark.parametrize("n_others", [0, 100])
async def test_an_async_stream_without_a_last_entry_ends_after_the_reply(n_others: int) -> None:
    pool, replies = OpenedPool(), without_end(n_others)

    async def read(connection: Opened) -> Any:
        if connection is pool.taken[0]:
            return XYZ
        if not replies:
            await asyncio.Event().wait()
        return replies.pop(0)

    stream = streaming.AsyncStream(streaming.run_async(pool, ANY, "s", True, read))
    assert "".join([str(piece) async for piece in stream]) == "xyz"
    assert stream.result is XYZ
    assert len(replies) >= n_others - 2, "what others add is not read for ever"


# ---- errors ----


def test_what_is_refused_is_raised_at_the_first_piece(any_infer: Infer) -> None:
    with pytest.raises(NoModelError):
        next(any_infer.stream("nothing", [1, 2]))
    with pytest.raises(NoKeyError):
        next(any_infer.stream("smol", keys="nothing"))
    with pytest.raises(redis.ResponseError, match="TOPP"):
        next(any_infer.stream("smol", [1], top_p=7))
    assert any_infer.generate("smol", PROMPT, max_tokens=1).output_tokens == 1


async def test_what_is_refused_is_raised_in_asyncio_too(any_async: AsyncInfer) -> None:
    with pytest.raises(NoKeyError):
        await anext(any_async.stream("smol", keys="nothing"))
    assert (await any_async.generate("smol", PROMPT, max_tokens=1)).output_tokens == 1


def test_an_error_on_the_way_is_raised_where_it_came(loaded: Infer, client: redis.Redis) -> None:
    stream = loaded.stream("smol", PROMPT, **LONG, stream="s")
    next(stream)
    client.set("s", "a string")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        list(stream)
    assert_idle(client)


def test_a_stream_that_was_deleted_is_made_up_for_by_the_reply(
    loaded: Infer, client: redis.Redis
) -> None:
    expected = loaded.generate("smol", PROMPT, max_tokens=40, ignore_eos=True)
    stop = threading.Event()

    def delete() -> None:
        while not stop.is_set():
            client.flushall()

    deleting = threading.Thread(target=delete)
    deleting.start()
    stream = loaded.stream("smol", PROMPT, max_tokens=40, ignore_eos=True)
    for _ in stream:
        pass
    stop.set()
    deleting.join()
    assert stream.result is not None
    assert stream.result.text == expected.text


def test_a_stream_that_may_not_be_removed_expires(
    server: Server, loaded: Infer, client: redis.Redis
) -> None:
    client.acl_setuser("careful", True, True, categories=["+@all"], commands=["-unlink"], keys="*")
    try:
        with server.client(username="careful", password="any") as connected:
            stream = Infer(connected).stream("smol", PROMPT, max_tokens=3)
            assert len(list(stream)) == 3
            assert stream.result is not None
        (key,) = client.keys()
        assert 0 < client.pttl(key) <= streaming.OWN_TTL_MS
    finally:
        client.acl_deluser("careful")


async def test_an_async_stream_that_may_not_be_removed_expires(
    server: Server, client: redis.Redis
) -> None:
    client.acl_setuser("careful", True, True, categories=["+@all"], commands=["-unlink"], keys="*")
    try:
        async with server.async_client(username="careful", password="any") as connected:
            stream = AsyncInfer(connected).stream("smol", PROMPT, max_tokens=3)
            assert len([piece async for piece in stream]) == 3
            assert stream.result is not None
    finally:
        client.acl_deluser("careful")


@pytest.fixture
def earlier(loaded: Infer) -> Generation:
    """What another request has left in the stream "s"."""
    stream = loaded.stream("smol", "One, two, three,", max_tokens=5, stream="s")
    list(stream)
    assert stream.result is not None
    return stream.result


def test_what_a_stream_holds_of_an_earlier_request_is_passed_over(
    any_infer: Infer, earlier: Generation, client: redis.Redis
) -> None:
    expected = any_infer.generate("smol", PROMPT, max_tokens=12)
    stream = any_infer.stream("smol", PROMPT, max_tokens=12, stream="s")
    check(list(stream), stream.result, expected)
    assert client.xlen("s") == earlier.output_tokens + expected.output_tokens + 2


async def test_an_earlier_request_is_passed_over_in_asyncio(
    any_async: AsyncInfer, earlier: Generation, loaded: Infer
) -> None:
    expected = loaded.generate("smol", PROMPT, max_tokens=12)
    stream = any_async.stream("smol", PROMPT, max_tokens=12, stream="s")
    check([piece async for piece in stream], stream.result, expected)


def entry(position: int, i: int, **more: str) -> list[Any]:
    """An entry of a stream, in RESP2."""
    fields = {"i": str(i), "text": "x", **more}
    return [b"%d-0" % position, [word.encode() for field in fields.items() for word in field]]


def test_the_rest_of_a_request_that_is_still_ending_is_passed_over() -> None:
    entries = streaming.Entries()
    entries.start_after([entry(1, 4, token="9")])
    old = [entry(2, 5, token="9"), entry(3, 6, finish_reason="cancelled")]
    new = [entry(4, 0, token="7"), entry(5, 1, finish_reason="stop")]
    assert entries.take([[b"s", old]]) == []
    assert entries.last is None
    assert [piece.token for piece in entries.take([[b"s", new]])] == [7, None]
    assert entries.last is not None
    assert entries.last["finish_reason"] == b"stop"


# ---- streams of others ----


def test_what_others_add_to_a_stream_is_passed_over(any_infer: Infer, client: redis.Redis) -> None:
    expected = any_infer.generate("smol", PROMPT, max_tokens=12)
    client.xadd("s", {"other": "field"})
    stream = any_infer.stream("smol", PROMPT, max_tokens=12, stream="s")
    pieces = []
    for piece in stream:
        client.xadd("s", {"i": "of another kind"})
        pieces.append(piece)
    check(pieces, stream.result, expected)
    followed = any_infer.follow("s", timeout_s=20)
    check(list(followed), followed.result, expected)


@pytest.mark.parametrize("alternatives", [0, 3])
def test_a_followed_result_has_the_logprobs_that_the_reply_has(
    any_infer: Infer, alternatives: int
) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "logprobs": alternatives}
    asked = any_infer.stream("smol", PROMPT, **options, stream="s")
    list(asked)
    stream = any_infer.follow("s", timeout_s=20)
    list(stream)
    expected, result = asked.result, stream.result
    assert expected is not None and result is not None
    assert result.logprobs is not None and expected.logprobs is not None
    assert result.logprobs.tolist() == expected.logprobs.tolist()
    if alternatives == 0:
        assert result.top_ids is None and result.top_logprobs is None
    else:
        assert result.top_ids is not None and result.top_logprobs is not None
        assert expected.top_ids is not None and expected.top_logprobs is not None
        assert result.top_ids.tolist() == expected.top_ids.tolist()
        assert result.top_logprobs.tolist() == expected.top_logprobs.tolist()


async def test_a_followed_result_has_logprobs_in_asyncio(
    async_infer: AsyncInfer, loaded: Infer
) -> None:
    asked = loaded.stream("smol", PROMPT, max_tokens=3, logprobs=2, stream="s")
    list(asked)
    stream = async_infer.follow("s", timeout_s=20)
    async for _ in stream:
        pass
    assert asked.result is not None and asked.result.top_ids is not None
    assert stream.result is not None and stream.result.top_ids is not None
    assert stream.result.top_ids.tolist() == asked.result.top_ids.tolist()


def test_a_followed_result_has_what_a_trimmed_stream_still_holds(loaded: Infer) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True, "logprobs": 1}
    expected = loaded.generate("smol", PROMPT, **options)
    list(loaded.stream("smol", PROMPT, **options, stream="s", stream_maxlen=3))
    stream = loaded.follow("s", timeout_s=20)
    pieces = list(stream)
    assert [piece.i for piece in pieces] == [3, 4]
    result = stream.result
    assert result is not None and result.logprobs is not None and result.top_ids is not None
    assert result.tokens.tolist() == expected.tokens[3:].tolist()
    assert result.text == "".join(map(str, pieces))
    assert (result.output_tokens, result.logprobs.shape, result.top_ids.shape) == (5, (2,), (2, 1))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("READONLY STREAM 's': a replica", redis.exceptions.ReadOnlyError),
        ("OOM STREAM 's': command not allowed", redis.exceptions.OutOfMemoryError),
        ("NOMODEL it was unloaded", NoModelError),
    ],
)
def test_an_error_in_a_followed_stream_has_the_class_of_a_reply(
    any_infer: Infer, client: redis.Redis, line: str, kind: type[Exception]
) -> None:
    client.xadd("s", {"i": 0, "text": "", "finish_reason": "error", "error": line})
    with pytest.raises(kind):
        list(any_infer.follow("s", timeout_s=20))


def test_a_stream_of_several_requests_is_followed_to_the_end_of_the_first(
    any_infer: Infer, earlier: Generation
) -> None:
    list(any_infer.stream("smol", PROMPT, max_tokens=12, stream="s"))
    stream = any_infer.follow("s", timeout_s=20)
    check(list(stream), stream.result, earlier)


async def test_the_first_of_several_requests_is_followed_in_asyncio(
    any_async: AsyncInfer, earlier: Generation, loaded: Infer
) -> None:
    list(loaded.stream("smol", PROMPT, max_tokens=12, stream="s"))
    stream = any_async.follow("s", timeout_s=20)
    check([piece async for piece in stream], stream.result, earlier)


def test_anybody_follows_a_submitted_request(any_infer: Infer, client: redis.Redis) -> None:
    expected = any_infer.generate("smol", PROMPT, max_tokens=30, ignore_eos=True)
    options: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "stream": "s", "store": "out"}
    request = any_infer.submit("smol", PROMPT, **options)
    assert request > 0
    for _ in range(2):  # as often as wanted
        stream = any_infer.follow("s", timeout_s=20)
        check(list(stream), stream.result, expected)
    stored = any_infer.load_tokens("out")
    assert stored is not None and stored.tolist() == expected.tokens.tolist()
    assert client.xlen("s") == 31


async def test_anybody_follows_in_asyncio(any_async: AsyncInfer, loaded: Infer) -> None:
    expected = loaded.generate("smol", PROMPT, max_tokens=10)
    await any_async.submit("smol", PROMPT, max_tokens=10, stream="s")
    stream = any_async.follow("s", timeout_s=20)
    check([piece async for piece in stream], stream.result, expected)


def test_leaving_a_followed_stream_has_no_effect(loaded: Infer, client: redis.Redis) -> None:
    request = loaded.submit("smol", PROMPT, **LONG, stream="s")
    for _ in loaded.follow("s"):
        break
    assert requests(client)[0]["state"] == b"running"
    assert loaded.cancel(request)
    stream = loaded.follow("s")
    list(stream)
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"


def test_following_raises_what_ended_the_request(loaded: Infer, model_path: Any) -> None:
    loaded.load("passing", model_path)
    loaded.submit("passing", PROMPT, **LONG, stream="s")
    stream = loaded.follow("s")
    next(stream)
    loaded.unload("passing")
    with pytest.raises(NoModelError):
        list(stream)


def test_following_nothing_times_out(loaded: Infer) -> None:
    with pytest.raises(TimeoutError, match="'s' had no new entry"):
        next(loaded.follow("s", timeout_s=0.05))


async def test_following_nothing_times_out_in_asyncio(async_infer: AsyncInfer) -> None:
    with pytest.raises(TimeoutError, match="'s' had no new entry"):
        await anext(async_infer.follow("s", timeout_s=0.05))


def test_a_stream_of_ones_own_can_be_trimmed_and_expire(loaded: Infer, client: redis.Redis) -> None:
    options: dict[str, Any] = {"stream_maxlen": 3, "stream_ttl_ms": 100000}
    list(loaded.stream("smol", PROMPT, max_tokens=5, ignore_eos=True, stream="s", **options))
    assert client.xlen("s") == 3
    assert 0 < client.pttl("s") <= 100000
