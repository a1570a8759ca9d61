"""Generations that are read while they are made: :class:`Stream` and :class:`AsyncStream`.

A request for a stream takes two connections. One carries the command and is blocked
until the reply comes; the server cancels the request if it closes, be it that the
iteration was left early or that this process has crashed. The other one
follows the Redis stream with XREAD.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import secrets
import select
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, Generic, TypeVar

import numpy as np
from redis.crc import key_slot
from redis.exceptions import ResponseError

from .commands import (
    Argument,
    Command,
    GenerateOptions,
    Key,
    RagOptions,
    as_map,
    key_list,
    parse_top,
)
from .errors import from_line, from_response
from .results import Generation, Piece, TokenArray

R = TypeVar("R", bound=Generation)

OWN_TTL_MS = 60_000
"""How long a stream that only we know of outlives its last entry, if nobody removes it."""

# The reply says that all entries were written. One that is not there by then has been deleted, and
# so has one that is not in what XREAD brings which was sent after the reply had come.
_GRACE_S = 0.2


def own_key(keys: Key | Iterable[Key]) -> Key:
    """A new key's name, in the cluster slot of the prompt's keys."""
    names = key_list(keys)
    unique = secrets.token_hex(8)
    if not names:
        return f"infer:stream:{unique}"
    first = names[0].encode() if isinstance(names[0], str) else names[0]
    _, brace, rest = first.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    whole = tag if brace and closing and tag else first
    if not whole or b"}" in whole:  # hashed as a whole, but no hash tag can hold it
        whole = _tag_of(key_slot(first))
    return b"infer:stream:{%s}:%s" % (whole, unique.encode())


@functools.cache
def _tag_of(slot: int) -> bytes:
    """A hash tag of a cluster slot, found in about 16,384 tries."""
    tags = (b"%x" % i for i in itertools.count())
    return next(tag for tag in tags if key_slot(tag) == slot)


def choose_key(options: GenerateOptions | RagOptions, keys: Key | Iterable[Key]) -> bool:
    """Sees to it that the options name a stream; whether that is one of our own."""
    if options.get("stream") is not None:
        return False
    options.setdefault("stream_ttl_ms", OWN_TTL_MS)
    options["stream"] = own_key(keys)
    return True


def _xread(key: Key, after: bytes, timeout_s: float | None = None) -> tuple[Argument, ...]:
    block_ms = 0 if timeout_s is None else max(1, round(timeout_s * 1000))
    return ("XREAD", "BLOCK", block_ms, "STREAMS", key, after)


def _xrevrange(key: Key) -> tuple[Argument, ...]:
    return ("XREVRANGE", key, "+", "-", "COUNT", 1)


def _in_time(reply: Any, key: Key, timeout_s: float | None) -> Any:
    if reply is None:
        raise TimeoutError(f"the stream {key!r} had no new entry for {timeout_s:g} s")
    return reply


class Entries:
    """Reads replies of XREAD: what is new, and how it ended."""

    def __init__(self) -> None:
        self.position = b"0"
        self.last: dict[str, Any] | None = None
        self.n_tokens = 0
        self.text_bytes = 0
        self.complete = True  # nothing was deleted before it was read
        self.tops: dict[str, bytearray] = collections.defaultdict(bytearray)
        """The alternatives of all tokens, as in the reply."""
        self._passing = False  # what comes may still be an earlier request's

    def start_after(self, newest: Any) -> None:
        """Passes over what a stream held before the request, and over the rest of an earlier one
        that is still ending; of XREVRANGE's reply."""
        if newest:
            self.position = newest[0][0]
            self._passing = "finish_reason" not in as_map(newest[0][1])

    def take(self, reply: Any) -> list[Piece]:
        """The pieces of a reply of either protocol, up to the end of the request."""
        ((_, entries),) = reply.items() if isinstance(reply, dict) else reply
        pieces = []
        for position, fields in entries:
            self.position = position
            entry = as_map(fields)
            if "i" not in entry or "text" not in entry:
                continue  # somebody else's
            if self._passing and entry.get("i") != b"0":
                continue
            self._passing = False
            if "finish_reason" in entry:
                self.last = entry
            piece = _piece(entry)
            self.complete = self.complete and piece.i == self.n_tokens
            self.n_tokens = piece.i + (piece.token is not None)
            self.text_bytes += len(entry["text"])
            for name in entry.keys() & {"top_ids", "top_logprobs"}:
                self.tops[name] += entry[name]
            if piece.token is not None or piece.text:
                pieces.append(piece)
            if self.last is not None:
                break
        return pieces

    def rest(self, result: Generation) -> list[Piece]:
        """What the entries lack of a result, because the stream was deleted."""
        text = result.text.encode()[self.text_bytes :].decode(errors="replace")
        return [Piece(result.output_tokens, None, text)] if text and self.complete else []


def _piece(entry: dict[str, Any]) -> Piece:
    token, logprob = entry.get("token"), entry.get("logprob")
    return Piece(
        i=int(entry["i"]),
        token=None if token is None else int(token),
        text=entry["text"].decode(),
        logprob=None if logprob is None else float(logprob),
    )


def _result(pieces: list[Piece], entries: Entries) -> Generation:
    """What the pieces and the last entry of a stream tell of a generation."""
    last = entries.last or {}
    if "error" in last:
        raise from_line(last["error"].decode(errors="replace"))
    tokens: TokenArray = np.array([p.token for p in pieces if p.token is not None], np.uint32)
    logprobs = [p.logprob for p in pieces if p.logprob is not None]
    top_ids, top_logprobs = parse_top(entries.tops, tokens.size)
    counts = ("prompt_tokens", "cached_tokens", "output_tokens")
    times = ("queue_us", "first_token_us", "total_us")
    numbers: dict[str, Any] = {name: int(last[name]) for name in (*counts, *times)}
    return Generation(
        text="".join(p.text for p in pieces),
        tokens=tokens,
        finish_reason=last["finish_reason"].decode(),
        admit_us=0,
        logprobs=np.array(logprobs, np.float32) if logprobs else None,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        **numbers,
    )


class Stream(Iterator[Piece], Generic[R]):
    """Pieces of a generation as they come.

        with infer.stream("smol", "Once upon a time") as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(stream.result.finish_reason)

    The request is sent when the first piece is asked for. Leaving the ``with`` block,
    :meth:`close`, or dropping the last reference to the stream cancels it.
    """

    result: R | None = None
    """The generation, once the iteration has come to its end."""

    def __init__(self, pieces: Generator[Piece, None, R]) -> None:
        self._pieces = pieces

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self.result = end.value
            raise StopIteration from None

    def close(self) -> None:
        """Cancels the request if it has not ended."""
        self._pieces.close()

    def __enter__(self) -> Stream[R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[Piece], Generic[R]):
    """:class:`Stream` for asyncio, with ``async for``, ``async with`` and :meth:`aclose`."""

    result: R | None = None
    """The whole generation, once the iteration has come to its end."""

    def __init__(self, pieces: AsyncGenerator[Piece | R, None]) -> None:
        self._pieces = pieces

    async def __anext__(self) -> Piece:
        item = await self._pieces.__anext__()
        if isinstance(item, Piece):
            return item
        self.result = item
        await self._pieces.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels the request if it has not ended."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncStream[R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


# ---- two connections, blocking ----


def _wait_readable(*connections: Any) -> None:
    """Waits until one of redis-py's connections has a reply, or has ended."""
    while not any(connection.can_read(0) for connection in connections):
        sockets = [connection._sock for connection in connections]
        if hasattr(select, "poll"):  # has no limit on the numbers of descriptors
            poll = select.poll()
            for sock in sockets:
                poll.register(sock, select.POLLIN)
            poll.poll()
        else:
            select.select(sockets, [], [])


@contextlib.contextmanager
def _raising_ours() -> Iterator[None]:
    """Errors of the server as the classes of :mod:`redis_infer.errors`."""
    try:
        yield
    except ResponseError as error:
        raise from_response(error) from None


Read = Callable[[Any], Any]
"""Reads one reply from a connection, undecoded and without a timeout."""


def run(
    pool: Any, request: Command[R], key: Key, own: bool, read: Read
) -> Generator[Piece, None, R]:
    """The pieces of a request whose stream is ``key``; returns its result."""
    entries = Entries()
    asking = pool.get_connection()
    try:
        following = pool.get_connection()
    except BaseException:
        pool.release(asking)
        raise
    busy = [asking, following]  # what they carry is not to be read by anybody else
    try:
        with _raising_ours():
            if not own:
                following.send_command(*_xrevrange(key))
                entries.start_after(read(following))
            asking.send_command(*request.args)
            result = None
            while entries.last is None:
                brings_the_rest = result is not None
                following.send_command(*_xread(key, entries.position))
                if result is None:
                    _wait_readable(*busy)
                    if not following.can_read(0):
                        result = request.parse(read(asking))
                        busy.remove(asking)
                if result is not None and not following.can_read(_GRACE_S):
                    break
                yield from entries.take(read(following))
                if brings_the_rest:
                    break
            if result is None:
                result = request.parse(read(asking))
                busy.remove(asking)
            if entries.last is None:
                yield from entries.rest(result)
            else:
                if own:
                    with contextlib.suppress(ResponseError):  # forbidden: then it expires
                        following.send_command("UNLINK", key)
                        read(following)
                busy.remove(following)
            return result
    finally:
        for connection in busy:
            connection.disconnect()
        pool.release(asking)
        pool.release(following)


def follow(
    pool: Any, key: Key, read: Read, timeout_s: float | None
) -> Generator[Piece, None, Generation]:
    """The pieces of a stream that some other request fills."""
    entries = Entries()
    pieces: list[Piece] = []
    connection = pool.get_connection()
    try:
        with _raising_ours():
            while entries.last is None:
                connection.send_command(*_xread(key, entries.position, timeout_s))
                new = entries.take(_in_time(read(connection), key, timeout_s))
                pieces += new
                yield from new
        return _result(pieces, entries)
    finally:
        if entries.last is None:
            connection.disconnect()
        pool.release(connection)


# ---- and for asyncio ----

AsyncRead = Callable[[Any], Awaitable[Any]]


async def acquire_async(pool: Any) -> Any:
    """A connection of the pool that is open, and on which nothing is left to be read.

    redis-py sees to that as well, but not where it listens to maintenance notifications: with
    RESP3 over TCP, by default, it gives connections away that the server has closed.
    """
    connection = await pool.get_connection()
    try:
        # Before redis-py 8 there are neither these notifications nor can_read.
        if hasattr(connection, "can_read") and await connection.can_read():
            await connection.disconnect()
            await connection.connect()
    except BaseException:
        await pool.release(connection)
        raise
    return connection


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and waits until they have ended; a cancellation of our own ends the wait."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, or asyncio logs it


async def send_async(connection: Any, *args: Any) -> None:
    """Sends a command, from a task of its own: before Python 3.12 ``asyncio.wait_for``, which
    redis-py sends with, forgets a cancellation that arrives when it is just done. Cancelled, it
    leaves the connection disconnected, so that nobody reads the reply.
    """
    sending = asyncio.ensure_future(connection.send_command(*args))
    try:
        await asyncio.wait([sending])
    except asyncio.CancelledError:
        try:
            await _cancel(sending)
        finally:
            await connection.disconnect(nowait=True)
        raise
    sending.result()


async def run_async(
    pool: Any, request: Command[R], key: Key, own: bool, read: AsyncRead
) -> AsyncGenerator[Piece | R, None]:
    """:func:`run` for asyncio; the result is the last item."""
    entries = Entries()
    asking = await acquire_async(pool)
    try:
        following = await acquire_async(pool)
    except BaseException:
        await pool.release(asking)
        raise
    busy = [asking, following]
    reply = news = None
    try:
        with _raising_ours():
            if not own:
                await send_async(following, *_xrevrange(key))
                entries.start_after(await read(following))
            await send_async(asking, *request.args)
            reply = asyncio.ensure_future(read(asking))
            while entries.last is None:
                brings_the_rest = reply.done()
                await send_async(following, *_xread(key, entries.position))
                news = asyncio.ensure_future(read(following))
                await asyncio.wait([reply, news], return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    reply.result()  # raises what was refused
                    await asyncio.wait([news], timeout=_GRACE_S)
                if not news.done():
                    break
                for piece in entries.take(news.result()):
                    yield piece
                if brings_the_rest:
                    break
            result = request.parse(await reply)
            busy.remove(asking)
            if entries.last is None:
                for piece in entries.rest(result):
                    yield piece
            else:
                if own:
                    with contextlib.suppress(ResponseError):
                        await send_async(following, "UNLINK", key)
                        await read(following)
                busy.remove(following)
            yield result
    finally:
        try:
            await _cancel(*(task for task in (reply, news) if task is not None))
        finally:
            for connection in busy:
                await connection.disconnect(nowait=True)
            await pool.release(asking)
            await pool.release(following)


async def follow_async(
    pool: Any, key: Key, read: AsyncRead, timeout_s: float | None
) -> AsyncGenerator[Piece | Generation, None]:
    """:func:`follow` for asyncio; the result is the last item."""
    entries = Entries()
    pieces: list[Piece] = []
    connection = await acquire_async(pool)
    try:
        with _raising_ours():
            while entries.last is None:
                await send_async(connection, *_xread(key, entries.position, timeout_s))
                new = entries.take(_in_time(await read(connection), key, timeout_s))
                pieces += new
                for piece in new:
                    yield piece
        yield _result(pieces, entries)
    finally:
        if entries.last is None:
            await connection.disconnect(nowait=True)
        await pool.release(connection)
