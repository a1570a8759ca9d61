"""Clients for the INFER commands: :class:`Infer`, and :class:`AsyncInfer` for asyncio.

Both wrap a redis-py client and take connections from its pool, but read replies
themselves, for three reasons. Token data is binary, so it must not be decoded even where
the client decodes replies. A generation takes as long as it takes, so redis-py's socket
timeout, five seconds by default since 8.0, must not end it: ``timeout_ms`` does that, in the
server. And a generation that failed must not be repeated by a retry policy made for cheap commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import redis
import redis.asyncio
from redis.exceptions import ResponseError

from . import commands, prompts, streaming
from .commands import (
    Argument,
    Command,
    GenerateOptions,
    Key,
    RagOptions,
    TokenBatch,
    Tokens,
    Vector,
)
from .errors import from_response
from .prompts import Inputs, Prompt
from .results import (
    FloatArray,
    Generation,
    ModelInfo,
    Piece,
    RagGeneration,
    RequestInfo,
    Score,
    TokenArray,
)
from .streaming import AsyncStream, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .tokenizer import Tokenizer

T = TypeVar("T")


class Infer:
    """Models inside a Redis server.

    Args:
        client: any ``redis.Redis``, with or without ``decode_responses``, RESP2 or RESP3, but
            without client-side caching.
        tokenizer: for text and chat prompts. Without it, the tokenizer is read from the loaded
            model's file, which must then be readable on this machine.

    Every method raises :class:`redis.exceptions.ResponseError` if the server refuses, as the
    subclass in :mod:`redis_infer.errors` that belongs to the error's code.
    """

    def __init__(self, client: redis.Redis, *, tokenizer: Tokenizer | None = None) -> None:
        _expect(client, redis.Redis, "Infer")
        self._client = client
        # redis-py 8, which has a default socket timeout, can leave it out for one read.
        # Before 8 there is only a timeout that the user chose, and it is obeyed.
        read_response = client.connection_pool.connection_class.read_response
        can_wait = "timeout" in inspect.signature(read_response).parameters
        self._no_timeout: dict[str, Any] = {"timeout": None} if can_wait else {}
        self._tokenizer = tokenizer

    # ---- models ----

    def load(
        self,
        name: str,
        path: str | bytes | os.PathLike[str],
        *,
        context: int | None = None,
        kv_memory: int | None = None,
    ) -> ModelInfo:
        """Loads a GGUF file; returns the model's properties when it can be used.

        Args:
            path: on the server, inside its ``infer.model-dir``; absolute, or relative to it.
            context: most tokens of one request; default: the model's own limit, less if the
                KV memory holds less.
            kv_memory: bytes for keys and values; default: the server's ``infer.kv-memory``.

        See ``docs/commands.md``, INFER.MODEL LOAD.
        """
        return self._run(commands.load(name, path, context=context, kv_memory=kv_memory))

    def unload(self, name: str) -> None:
        """Ends the model's requests and gives its memory back. INFER.MODEL UNLOAD."""
        self._run(commands.unload(name))

    def models(self) -> list[ModelInfo]:
        """All models; of one that is being loaded or unloaded name and state only.

        INFER.MODEL LIST.
        """
        return self._run(commands.models())

    def info(self, name: str) -> ModelInfo:
        """One model's properties and counts. INFER.MODEL INFO."""
        return self._run(commands.info(name))

    # ---- prompts ----

    def generate(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continues a prompt: the tokens of ``keys`` in their order, then ``prompt``.

        Args:
            prompt: text, chat messages, or token ids.
            keys: token keys, read inside the server. :meth:`store_tokens` writes them.
            options: see :class:`redis_infer.commands.GenerateOptions`.

        See ``docs/commands.md``, INFER.GENERATE.
        """
        keys = commands.key_list(keys)
        tokens = self._tokens(model, prompt, continues=bool(keys))
        return self._run(commands.generate(model, keys, tokens, **options))

    def stream(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> Stream[Generation]:
        """:meth:`generate`, read while it is made.

            for piece in infer.stream("smol", "Once upon a time", max_tokens=100):
                print(piece, end="", flush=True)

        Leaving the loop early cancels the request, and so does the end of this process. The
        pieces pass through a Redis stream that is removed afterwards; with ``stream`` they go
        to that key and stay there.

        A stream takes two of the client's connections, one after the other. A pool with a limit
        must have two for each stream that runs at a time: in a ``BlockingConnectionPool`` with
        fewer all of them may wait for their second one, until its timeout.
        """
        keys = commands.key_list(keys)
        tokens = self._tokens(model, prompt, continues=bool(keys))
        own = streaming.choose_key(options, keys)
        request = commands.generate(model, keys, tokens, **options)
        pool = self._client.connection_pool
        return Stream(streaming.run(pool, request, options["stream"], own, self._read))

    def submit(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> int:
        """Starts a generation and returns its id; ``stream``, ``store`` or both say where to.

        It runs to its end whether or not this client stays. :meth:`follow` reads its stream,
        from anywhere; :meth:`cancel` ends it.
        """
        keys = commands.key_list(keys)
        tokens = self._tokens(model, prompt, continues=bool(keys))
        return self._run(commands.submit(model, keys, tokens, **options))

    def follow(self, key: Key, *, timeout_s: float | None = None) -> Stream[Generation]:
        """Reads the stream of a request from its beginning, as it is filled.

        Args:
            timeout_s: most seconds from one entry to the next; then it raises TimeoutError.

        Leaving the loop early has no effect on the request. A key that holds several
        requests' entries is read up to the end of the first; others' entries are passed over.

        The result is made from the entries. It has no ``admit_us``, which none of them tells.
        Of a stream that was trimmed (``stream_maxlen``) or deleted meanwhile it has the text, the
        tokens and the log-probabilities that were still there: fewer than ``output_tokens``,
        which counts all.
        """
        return Stream(streaming.follow(self._client.connection_pool, key, self._read, timeout_s))

    def rag(
        self,
        model: str,
        vset: Key,
        prompt: Prompt | None = None,
        *,
        element: Key | None = None,
        vector: Vector | None = None,
        query: str | Tokens | None = None,
        embed_model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> RagGeneration:
        """Searches a vector set and continues the tokens of what it found, in one command.

        The prompt is: the key ``before``; the tokens of the nearest elements, best first, with
        the key ``between`` in between; the key ``after``; ``prompt``.

        Args:
            prompt: text or token ids. It continues what is before it, so it gets no token of
                its own at the beginning.
            element: the query is this element's vector.
            vector: [dimensions] The query.
            query: the query is the vector of this text, or of these token ids, which
                ``embed_model`` computes in the same command.
            options: see :class:`redis_infer.commands.RagOptions`.

        See ``docs/commands.md``, INFER.RAG.
        """
        tokens = self._tokens(model, prompt, continues=True)
        embed = self._query(query, embed_model)
        return self._run(
            commands.rag(
                model, vset, tokens, element=element, vector=vector, embed=embed, **options
            )
        )

    def stream_rag(
        self,
        model: str,
        vset: Key,
        prompt: Prompt | None = None,
        *,
        element: Key | None = None,
        vector: Vector | None = None,
        query: str | Tokens | None = None,
        embed_model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> Stream[RagGeneration]:
        """:meth:`rag`, read while it is made, as with :meth:`stream`; its result has the
        sources."""
        tokens = self._tokens(model, prompt, continues=True)
        embed = self._query(query, embed_model)
        own = streaming.choose_key(options, vset)
        request = commands.rag(
            model, vset, tokens, element=element, vector=vector, embed=embed, **options
        )
        pool = self._client.connection_pool
        return Stream(streaming.run(pool, request, options["stream"], own, self._read))

    def score(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        top: int | None = None,
    ) -> Score:
        """Log-probability of each token of a text after those before it.

        Args:
            top: also return this many of the likeliest tokens at each position.

        See ``docs/commands.md``, INFER.SCORE.
        """
        keys = commands.key_list(keys)
        tokens = self._tokens(model, prompt, continues=bool(keys))
        return self._run(commands.score(model, keys, tokens, top=top))

    def embed(
        self,
        model: str,
        inputs: Inputs = (),
        *,
        keys: Key | Iterable[Key] = (),
        truncate: bool = False,
        timeout_ms: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> FloatArray:
        """The vectors of token keys and of texts, [n, dimensions], each of length 1.

        Args:
            inputs: texts, or token ids of each text with the special tokens that the model's
                tokenizer adds.
            keys: token keys, read inside the server; their vectors come first.
            truncate: cut texts that are longer than the model's context; else they are an error.
            tokenizer: the model's, for texts; default: the one in the model's file, which must
                then be readable on this machine.

        See ``docs/commands.md``, INFER.EMBED.
        """
        keys = [keys] if isinstance(keys, (str, bytes)) else list(keys)
        encoded: TokenBatch = ()
        if prompts.are_texts(inputs):
            info = self.info(model)
            prompts.check_ready(info)
            tokenizer = tokenizer or prompts.tokenizer_of(info, can_be_given=True)
            context = info["context"] if truncate else None
            encoded = prompts.encode_inputs(tokenizer, inputs, context=context)
        else:
            encoded = inputs
        parts = []
        for command in commands.embed_batches(model, keys, encoded, timeout_ms=timeout_ms):
            parts.append(self._run(command))
        return np.concatenate(parts)

    def requests(self) -> list[RequestInfo]:
        """What the server works on, oldest first. INFER.REQUESTS."""
        return self._run(commands.requests())

    def cancel(self, request_id: int) -> bool:
        """Ends a request early; False if it is not (or no longer) there. INFER.CANCEL."""
        return self._run(commands.cancel(request_id))

    # ---- token keys ----

    def store_tokens(self, key: Key, tokens: Tokens, *, expire_s: int | None = None) -> None:
        """Stores token ids under a key, as packed little-endian uint32. SET."""
        self._run(commands.store_tokens(key, tokens, expire_s=expire_s))

    def load_tokens(self, key: Key) -> TokenArray | None:
        """The token ids under a key; None if there is no such key. GET."""
        return self._run(commands.load_tokens(key))

    def tokenizer(self, model: str) -> Tokenizer:
        """The tokenizer of a loaded model.

        Raises:
            TokenizerError: none was given and the model's file cannot be read here.
        """
        return self._tokenizer or prompts.tokenizer_of(self.info(model), can_be_given=True)

    # ---- inside ----

    def _tokens(self, model: str, prompt: Prompt | None, *, continues: bool) -> Tokens | None:
        if not prompts.needs_tokenizer(prompt):
            return prompt
        return prompts.encode(self.tokenizer(model), prompt, continues=continues)

    def _query(
        self, query: str | Tokens | None, embed_model: str | None
    ) -> tuple[str, Tokens] | None:
        prompts.check_query(query, embed_model)
        if query is None or embed_model is None:
            return None
        if isinstance(query, str):  # self.tokenizer may be the generating model's
            tokenizer = prompts.tokenizer_of(self.info(embed_model))
            (query,) = prompts.encode_inputs(tokenizer, query, context=None)
        return embed_model, query

    def _run(self, command: Command[T]) -> T:
        try:
            reply = self._call(command.args)
        except ResponseError as error:
            raise from_response(error) from None
        return command.parse(reply)

    def _call(self, args: tuple[Argument, ...]) -> Any:
        with contextlib.ExitStack() as stack:
            connection = self._client.connection
            if connection is None:
                pool = self._client.connection_pool
                connection = pool.get_connection()
                stack.callback(pool.release, connection)
            else:
                stack.enter_context(self._client.single_connection_lock)
            connection.send_command(*args)  # type: ignore[no-untyped-call]
            return self._read(connection)

    def _read(self, connection: Any) -> Any:
        # Sentinel's connections would keep a reply that is not read to its end.
        return connection.read_response(
            disable_decoding=True, disconnect_on_error=True, **self._no_timeout
        )


class AsyncInfer:
    """:class:`Infer` for asyncio: the same methods, to be awaited; streams with ``async for``."""

    def __init__(self, client: redis.asyncio.Redis, *, tokenizer: Tokenizer | None = None) -> None:
        _expect(client, redis.asyncio.Redis, "AsyncInfer")
        self._client = client
        self._tokenizer = tokenizer

    async def load(
        self,
        name: str,
        path: str | bytes | os.PathLike[str],
        *,
        context: int | None = None,
        kv_memory: int | None = None,
    ) -> ModelInfo:
        """See :meth:`Infer.load`."""
        return await self._run(commands.load(name, path, context=context, kv_memory=kv_memory))

    async def unload(self, name: str) -> None:
        """See :meth:`Infer.unload`."""
        await self._run(commands.unload(name))

    async def models(self) -> list[ModelInfo]:
        """See :meth:`Infer.models`."""
        return await self._run(commands.models())

    async def info(self, name: str) -> ModelInfo:
        """See :meth:`Infer.info`."""
        return await self._run(commands.info(name))

    async def generate(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """See :meth:`Infer.generate`. Cancelling the task cancels the request in the server."""
        keys = commands.key_list(keys)
        tokens = await self._tokens(model, prompt, continues=bool(keys))
        return await self._run(commands.generate(model, keys, tokens, **options))

    def stream(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> AsyncStream[Generation]:
        """See :meth:`Infer.stream`. Not awaited: ``async for piece in infer.stream(...)``."""
        return AsyncStream(self._stream(model, prompt, keys, options))

    async def submit(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        **options: Unpack[GenerateOptions],
    ) -> int:
        """See :meth:`Infer.submit`."""
        keys = commands.key_list(keys)
        tokens = await self._tokens(model, prompt, continues=bool(keys))
        return await self._run(commands.submit(model, keys, tokens, **options))

    def follow(self, key: Key, *, timeout_s: float | None = None) -> AsyncStream[Generation]:
        """See :meth:`Infer.follow`. Not awaited: ``async for piece in infer.follow(key)``."""
        return AsyncStream(self._follow(key, timeout_s))

    async def rag(
        self,
        model: str,
        vset: Key,
        prompt: Prompt | None = None,
        *,
        element: Key | None = None,
        vector: Vector | None = None,
        query: str | Tokens | None = None,
        embed_model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> RagGeneration:
        """See :meth:`Infer.rag`. Cancelling the task cancels the request in the server."""
        tokens = await self._tokens(model, prompt, continues=True)
        embed = await self._query(query, embed_model)
        return await self._run(
            commands.rag(
                model, vset, tokens, element=element, vector=vector, embed=embed, **options
            )
        )

    def stream_rag(
        self,
        model: str,
        vset: Key,
        prompt: Prompt | None = None,
        *,
        element: Key | None = None,
        vector: Vector | None = None,
        query: str | Tokens | None = None,
        embed_model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> AsyncStream[RagGeneration]:
        """See :meth:`Infer.stream_rag`. Not awaited."""

        async def pieces() -> AsyncGenerator[Piece | RagGeneration, None]:
            tokens = await self._tokens(model, prompt, continues=True)
            embed = await self._query(query, embed_model)
            own = streaming.choose_key(options, vset)
            request = commands.rag(
                model, vset, tokens, element=element, vector=vector, embed=embed, **options
            )
            pool = (await self._client.initialize()).connection_pool
            found = streaming.run_async(pool, request, options["stream"], own, self._read)
            async with contextlib.aclosing(found):
                async for piece in found:
                    yield piece

        return AsyncStream(pieces())

    async def score(
        self,
        model: str,
        prompt: Prompt | None = None,
        *,
        keys: Key | Iterable[Key] = (),
        top: int | None = None,
    ) -> Score:
        """See :meth:`Infer.score`."""
        keys = commands.key_list(keys)
        tokens = await self._tokens(model, prompt, continues=bool(keys))
        return await self._run(commands.score(model, keys, tokens, top=top))

    async def embed(
        self,
        model: str,
        inputs: Inputs = (),
        *,
        keys: Key | Iterable[Key] = (),
        truncate: bool = False,
        timeout_ms: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> FloatArray:
        """See :meth:`Infer.embed`."""
        keys = [keys] if isinstance(keys, (str, bytes)) else list(keys)
        encoded: TokenBatch = ()
        if prompts.are_texts(inputs):
            info = await self.info(model)
            prompts.check_ready(info)
            if tokenizer is None:
                tokenizer = await asyncio.to_thread(prompts.tokenizer_of, info, can_be_given=True)
            context = info["context"] if truncate else None
            encoded = await asyncio.to_thread(
                prompts.encode_inputs, tokenizer, inputs, context=context
            )
        else:
            encoded = inputs
        parts = []
        for command in commands.embed_batches(model, keys, encoded, timeout_ms=timeout_ms):
            parts.append(await self._run(command))
        return np.concatenate(parts)

    async def requests(self) -> list[RequestInfo]:
        """See :meth:`Infer.requests`."""
        return await self._run(commands.requests())

    async def cancel(self, request_id: int) -> bool:
        """See :meth:`Infer.cancel`."""
        return await self._run(commands.cancel(request_id))

    async def store_tokens(self, key: Key, tokens: Tokens, *, expire_s: int | None = None) -> None:
        """See :meth:`Infer.store_tokens`."""
        await self._run(commands.store_tokens(key, tokens, expire_s=expire_s))

    async def load_tokens(self, key: Key) -> TokenArray | None:
        """See :meth:`Infer.load_tokens`."""
        return await self._run(commands.load_tokens(key))

    async def tokenizer(self, model: str) -> Tokenizer:
        """See :meth:`Infer.tokenizer`."""
        if self._tokenizer is not None:
            return self._tokenizer
        info = await self.info(model)
        # It reads a file for up to a second.
        return await asyncio.to_thread(prompts.tokenizer_of, info, can_be_given=True)

    # ---- inside ----

    async def _tokens(self, model: str, prompt: Prompt | None, *, continues: bool) -> Tokens | None:
        if not prompts.needs_tokenizer(prompt):
            return prompt
        return prompts.encode(await self.tokenizer(model), prompt, continues=continues)

    async def _query(
        self, query: str | Tokens | None, embed_model: str | None
    ) -> tuple[str, Tokens] | None:
        prompts.check_query(query, embed_model)
        if query is None or embed_model is None:
            return None
        if isinstance(query, str):
            info = await self.info(embed_model)
            tokenizer = await asyncio.to_thread(prompts.tokenizer_of, info)
            (query,) = prompts.encode_inputs(tokenizer, query, context=None)
        return embed_model, query

    async def _run(self, command: Command[T]) -> T:
        try:
            reply = await self._call(command.args)
        except ResponseError as error:
            raise from_response(error) from None
        return command.parse(reply)

    async def _call(self, args: tuple[Argument, ...]) -> Any:
        client = await self._client.initialize()
        async with contextlib.AsyncExitStack() as stack:
            connection = client.connection
            if connection is None:
                pool = client.connection_pool
                connection = await streaming.acquire_async(pool)
                stack.push_async_callback(pool.release, connection)
            else:
                await stack.enter_async_context(client._single_conn_lock)
            await streaming.send_async(connection, *args)
            return await self._read(connection)

    async def _read(self, connection: Any) -> Any:
        # With a timeout of its own, even an endless one, read_response answers None where the
        # system gives a connection up (ETIMEDOUT).
        timeout_s, connection.socket_timeout = connection.socket_timeout, None
        try:
            return await connection.read_response(disable_decoding=True, disconnect_on_error=True)
        finally:
            if connection.socket_timeout is None:  # a maintenance notification may have set it
                connection.socket_timeout = timeout_s

    async def _stream(
        self,
        model: str,
        prompt: Prompt | None,
        keys: Key | Iterable[Key],
        options: GenerateOptions,
    ) -> AsyncGenerator[Piece | Generation, None]:
        keys = commands.key_list(keys)
        tokens = await self._tokens(model, prompt, continues=bool(keys))
        own = streaming.choose_key(options, keys)
        request = commands.generate(model, keys, tokens, **options)
        pool = (await self._client.initialize()).connection_pool
        pieces = streaming.run_async(pool, request, options["stream"], own, self._read)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _follow(
        self, key: Key, timeout_s: float | None
    ) -> AsyncGenerator[Piece | Generation, None]:
        pool = (await self._client.initialize()).connection_pool
        pieces = streaming.follow_async(pool, key, self._read, timeout_s)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece


def _expect(client: object, kind: type[redis.Redis] | type[redis.asyncio.Redis], name: str) -> None:
    if isinstance(client, kind):
        # The cache looks for invalidations on connections that are in use, and would take our
        # replies for such.
        if getattr(client.connection_pool, "cache", None) is not None:
            raise TypeError(
                f"{name} cannot share connections with client-side caching: give it a client "
                "without cache and cache_config"
            )
        return
    if isinstance(client, (redis.RedisCluster, redis.asyncio.RedisCluster)):
        own = "cluster.get_redis_connection(cluster.get_node_from_key(key))"
        if kind is not redis.Redis or not isinstance(client, redis.RedisCluster):
            of = "redis" if kind is redis.Redis else "redis.asyncio"
            own = (
                f"{of}.Redis(host=node.host, port=node.port) with the cluster client's options, "
                "where node is cluster.get_node_from_key(key)"
            )
        raise TypeError(f"{name} talks to one node: give it the node's own client, {own}")
    if isinstance(client, (redis.Redis, redis.asyncio.Redis)):
        other = "AsyncInfer" if name == "Infer" else "Infer"
        raise TypeError(f"{name} cannot use a {type(client).__module__} client: use {other}")
    raise TypeError(f"{name} wraps a redis-py client, not {type(client).__name__}")
