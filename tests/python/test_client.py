"""The clients against a real server: every protocol, decoding or not, sync and async."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio
import redis.sentinel
from redis.cache import CacheConfig

from module_support import assert_idle, own_cluster, wait_until
from redis_infer import (
    AsyncInfer,
    BadTokensError,
    ContextError,
    Infer,
    ModuleMissingError,
    NoKeyError,
    NoModelError,
    TokenizerError,
    WrongTypeError,
    prompts,
)
from redis_infer.server import Server, find_redis_server

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


ELSEWHERE = {"name": "m", "state": "ready", "path": "/nowhere/model.gguf"}


@pytest.fixture
def prompt(loaded: Infer) -> np.ndarray:
    return loaded.tokenizer("smol").encode("The capital of France is")


# ---- the same answers whatever the client ----


def test_tokens_come_back_as_they_were_stored(any_infer: Infer) -> None:
    tokens = np.array([0x80, 0, 0xFFFFFFFF, 0xD8, 0x0D0A], np.uint32)
    any_infer.store_tokens("k", tokens)
    stored = any_infer.load_tokens("k")
    assert stored is not None and stored.tolist() == tokens.tolist()
    assert any_infer.load_tokens("nothing") is None


def test_stored_tokens_can_expire(infer: Infer, client: redis.Redis) -> None:
    infer.store_tokens("k", [1], expire_s=100)
    assert 0 < client.ttl("k") <= 100


def test_every_kind_of_client_gets_the_same_generation(
    any_infer: Infer, loaded: Infer, prompt: np.ndarray
) -> None:
    expected = loaded.generate("smol", prompt, max_tokens=12)
    result = any_infer.generate("smol", prompt, max_tokens=12)
    assert "Paris" in result.text
    assert result.text == expected.text
    assert result.tokens.tolist() == expected.tokens.tolist()
    assert result.finish_reason == expected.finish_reason
    assert result.prompt_tokens == prompt.size
    assert result.output_tokens == result.tokens.size
    assert 0 <= result.queue_us <= result.first_token_us <= result.total_us


async def test_the_async_client_gets_the_same_generation(
    any_async: AsyncInfer, loaded: Infer, prompt: np.ndarray
) -> None:
    result = await any_async.generate("smol", prompt, max_tokens=12)
    expected = loaded.generate("smol", prompt, max_tokens=12)
    assert (result.text, result.tokens.tolist()) == (expected.text, expected.tokens.tolist())
    await any_async.store_tokens("k", prompt)
    stored = await any_async.load_tokens("k")
    assert stored is not None and stored.tolist() == prompt.tolist()


def test_models_are_described_alike_in_every_protocol(any_infer: Infer, loaded: Infer) -> None:
    expected = loaded.info("smol")
    assert any_infer.info("smol") == expected
    assert [m["name"] for m in any_infer.models()] == ["smol"]
    assert {"architecture", "context", "vocabulary"} <= expected.keys()
    assert expected["architecture"] == "llama"


# ---- prompts ----


def test_text_tokens_and_keys_are_the_same_prompt(loaded: Infer) -> None:
    text = "The capital of France is"
    tokens = loaded.tokenizer("smol").encode(text)
    loaded.store_tokens("a", tokens[:2])
    loaded.store_tokens("b", tokens[2:])
    results = [
        loaded.generate("smol", text, max_tokens=8),
        loaded.generate("smol", tokens, max_tokens=8),
        loaded.generate("smol", tokens.tolist(), max_tokens=8),
        loaded.generate("smol", keys=["a", "b"], max_tokens=8),
        loaded.generate("smol", tokens[2:], keys="a", max_tokens=8),
    ]
    assert len({r.text for r in results}) == 1
    assert {r.prompt_tokens for r in results} == {tokens.size}


def test_messages_are_rendered_with_the_models_template(loaded: Infer) -> None:
    tokenizer = loaded.tokenizer("smol")
    rendered = tokenizer.encode(tokenizer.render_chat(QUESTION))
    answer = loaded.generate("smol", QUESTION, max_tokens=20)
    assert answer.prompt_tokens == rendered.size
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_a_tokenizer_can_be_given(server: Server, loaded: Infer) -> None:
    class Fixed:
        def encode(self, text: str, **_: object) -> np.ndarray:
            return np.full(len(text), 5, np.uint32)

    with server.client() as client:
        own = Infer(client, tokenizer=Fixed())  # type: ignore[arg-type]
        assert own.generate("smol", "four", max_tokens=1).prompt_tokens == 4


def test_a_model_file_that_is_not_here_needs_a_tokenizer() -> None:
    with pytest.raises(TokenizerError, match=r"from_gguf.*or give token ids or keys"):
        prompts.tokenizer_of(ELSEWHERE, can_be_given=True)


def test_a_query_for_a_model_file_that_is_not_here_may_be_tokens_or_a_vector() -> None:
    with pytest.raises(TokenizerError, match=r"token ids, made by Tokenizer.*a vector") as caught:
        prompts.tokenizer_of(ELSEWHERE)
    assert "tokenizer=" not in str(caught.value), "rag has no such parameter"


class Noting:
    """A tokenizer that notes which texts are said to continue other tokens."""

    def __init__(self) -> None:
        self.continues: list[bool] = []

    def encode(self, _text: str, *, add_special: bool, continues: bool) -> np.ndarray:
        assert add_special is not continues
        self.continues.append(continues)
        return np.array([5], np.uint32)


@pytest.mark.parametrize("keys", ["", b"", [""]])
def test_text_continues_the_key_with_the_empty_name(
    loaded: Infer, client: redis.Redis, keys: Any
) -> None:
    loaded.store_tokens("", [1])
    noting = Noting()
    infer = Infer(client, tokenizer=noting)  # type: ignore[arg-type]
    infer.generate("smol", "x", keys=keys, max_tokens=1)
    infer.submit("smol", "x", keys=keys, max_tokens=1, store="out")
    infer.score("smol", "x", keys=keys)
    list(infer.stream("smol", "x", keys=keys, max_tokens=1))
    assert noting.continues == [True] * 4
    assert_idle(client)


async def test_text_continues_the_key_with_the_empty_name_in_asyncio(
    server: Server, loaded: Infer, client: redis.Redis
) -> None:
    loaded.store_tokens("", [1])
    noting = Noting()
    async with server.async_client() as connected:
        infer = AsyncInfer(connected, tokenizer=noting)  # type: ignore[arg-type]
        await infer.generate("smol", "x", keys="", max_tokens=1)
        await infer.submit("smol", "x", keys="", max_tokens=1, store="out")
        await infer.score("smol", "x", keys="")
        async for _ in infer.stream("smol", "x", keys="", max_tokens=1):
            pass
    assert noting.continues == [True] * 4
    await asyncio.to_thread(assert_idle, client)


def test_no_keys_at_all_are_not_continued(loaded: Infer, client: redis.Redis) -> None:
    noting = Noting()
    infer = Infer(client, tokenizer=noting)  # type: ignore[arg-type]
    infer.generate("smol", "x", keys=(key for key in ()), max_tokens=1)
    assert noting.continues == [False]


# ---- options ----


def test_options_reach_the_server(loaded: Infer, prompt: np.ndarray) -> None:
    plain = loaded.generate("smol", prompt, max_tokens=16, ignore_eos=True)
    assert (plain.output_tokens, plain.finish_reason) == (16, "length")
    word = plain.text.split()[1]
    stopped = loaded.generate("smol", prompt, max_tokens=16, stop=word)
    assert stopped.finish_reason == "stop"
    assert word not in stopped.text and plain.text.startswith(stopped.text)


def test_a_seed_repeats_and_another_one_differs(loaded: Infer, prompt: np.ndarray) -> None:
    def sample(seed: int) -> list[int]:
        options: Any = {"temperature": 1.5, "top_k": 200, "top_p": 0.99, "min_p": 0.0001}
        result = loaded.generate("smol", prompt, max_tokens=24, seed=seed, **options)
        return result.tokens.tolist()

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) > 1


def test_logprobs_have_a_row_for_each_token(loaded: Infer, prompt: np.ndarray) -> None:
    result = loaded.generate("smol", prompt, max_tokens=6, logprobs=3)
    assert result.logprobs is not None and result.logprobs.shape == (result.output_tokens,)
    assert result.top_ids is not None and result.top_logprobs is not None
    assert result.top_ids.shape == result.top_logprobs.shape == (result.output_tokens, 3)
    assert result.top_ids[:, 0].tolist() == result.tokens.tolist()  # greedy
    assert np.all(np.diff(result.top_logprobs, axis=1) <= 0)


def test_a_timeout_ends_with_what_there_is(loaded: Infer, prompt: np.ndarray) -> None:
    for timeout_ms in (500, 5_000, 50_000):  # a busy machine may need long for a first token
        options: Any = {"max_tokens": 4000, "ignore_eos": True, "timeout_ms": timeout_ms}
        result = loaded.generate("smol", prompt, **options)
        if result.output_tokens:
            break
    assert result.finish_reason == "timeout"
    assert 0 < result.output_tokens < 4000
    assert result.total_us >= 1000 * timeout_ms


def test_the_output_can_be_stored(loaded: Infer, prompt: np.ndarray) -> None:
    result = loaded.generate("smol", prompt, max_tokens=5, store="out")
    stored = loaded.load_tokens("out")
    assert stored is not None and stored.tolist() == result.tokens.tolist()


# ---- score ----


def test_a_score_agrees_with_the_generation_of_the_same_tokens(
    any_infer: Infer, prompt: np.ndarray
) -> None:
    generated = any_infer.generate("smol", prompt, max_tokens=8, logprobs=0)
    scored = any_infer.score("smol", np.concatenate([prompt, generated.tokens]), top=2)
    tail = slice(prompt.size - 1, None)
    assert generated.logprobs is not None and scored.top_ids is not None
    np.testing.assert_allclose(scored.logprobs[tail], generated.logprobs, atol=0.02)
    assert scored.top_ids[tail, 0].tolist() == generated.tokens.tolist()


def test_likely_text_scores_better_than_unlikely_text(loaded: Infer) -> None:
    likely = loaded.score("smol", "The capital of France is Paris.")
    unlikely = loaded.score("smol", "The capital of France is teapot.")
    assert likely.mean_nll < unlikely.mean_nll


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda i: i.generate("nobody", [1]), NoModelError),
        (lambda i: i.info("nobody"), NoModelError),
        (lambda i: i.generate("smol", keys="missing"), NoKeyError),
        (lambda i: i.generate("smol", keys="list"), WrongTypeError),
        (lambda i: i.generate("smol", keys="odd"), BadTokensError),
        (lambda i: i.generate("smol", [0xFFFFFFFF]), BadTokensError),
        (lambda i: i.generate("smol", [1], max_tokens=10_000_000), ContextError),
        (lambda i: i.score("nobody", [1, 2]), NoModelError),
        (lambda i: i.generate("smol", [1], temperature=-1.0), redis.ResponseError),
        (lambda i: i.load("x", "/etc/hostname"), redis.ResponseError),
    ],
)
def test_each_refusal_has_its_class_and_harms_nothing(
    loaded: Infer, client: redis.Redis, call: Any, error: type[Exception]
) -> None:
    client.rpush("list", "x")
    client.set("odd", b"12345")
    with pytest.raises(error) as caught:
        call(loaded)
    assert "\n" not in str(caught.value)
    assert loaded.generate("smol", [1], max_tokens=1).output_tokens == 1


def test_a_server_without_the_module_is_explained(tmp_path: Path) -> None:
    class Plain(Server):
        def _redis_conf(self) -> str:
            lines = super()._redis_conf().splitlines()
            keep = [n for n in lines if not n.startswith(("loadmodule", "infer."))]
            return "\n".join(keep) + "\n"

    with (
        Plain(model_dir=tmp_path) as server,
        server.client() as client,
        pytest.raises(ModuleMissingError, match=r"redis_infer\.module_path"),
    ):
        Infer(client).models()


def test_the_wrong_kind_of_client_is_named(server: Server) -> None:
    with pytest.raises(TypeError, match="AsyncInfer"):
        Infer(server.async_client())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="use Infer"):
        AsyncInfer(server.client())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        Infer("redis://localhost")  # type: ignore[arg-type]


def test_a_client_with_a_cache_is_refused(server: Server) -> None:
    client = redis.Redis(port=server.port, protocol=3, cache_config=CacheConfig())
    with pytest.raises(TypeError, match="without cache and cache_config"):
        Infer(client)


async def test_a_cluster_client_is_told_where_to_get_its_nodes_client(model_path: Path) -> None:
    with own_cluster(model_path) as server:
        cluster = redis.asyncio.RedisCluster(host="127.0.0.1", port=server.port)
        await cluster.initialize()
        with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis\(host=node\.host"):
            AsyncInfer(cluster)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r" redis\.Redis\(host=node\.host"):
            Infer(cluster)  # type: ignore[arg-type]
        node = cluster.get_node_from_key("k")
        assert node is not None
        async with redis.asyncio.Redis(host=node.host, port=node.port) as client:
            assert [m["name"] for m in await AsyncInfer(client).models()] == ["smol"]
        await cluster.aclose()


# ---- connections ----


def test_a_long_generation_outlives_the_clients_socket_timeout(
    server: Server, loaded: Infer, prompt: np.ndarray
) -> None:
    with server.client(socket_timeout=0.3) as client:
        infer = Infer(client)
        before = time.monotonic()
        result = infer.generate("smol", prompt, max_tokens=4000, ignore_eos=True, timeout_ms=600)
        assert result.finish_reason == "timeout"
        assert time.monotonic() - before > 0.5
        assert client.ping()


async def test_a_long_async_generation_outlives_it_too(
    server: Server, loaded: Infer, prompt: np.ndarray
) -> None:
    async with server.async_client(socket_timeout=0.3) as client:
        infer = AsyncInfer(client)
        result = await infer.generate(
            "smol", prompt, max_tokens=4000, ignore_eos=True, timeout_ms=600
        )
        assert result.finish_reason == "timeout"
        assert await client.ping()


async def test_other_commands_have_their_socket_timeout_afterwards(
    server: Server, loaded: Infer
) -> None:
    async with server.async_client(socket_timeout=7) as client:
        await AsyncInfer(client).info("smol")
        connection = await client.connection_pool.get_connection()
        assert connection.socket_timeout == 7
        await client.connection_pool.release(connection)


async def test_a_host_that_is_gone_is_an_error_and_no_reply(
    server: Server, loaded: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.store_tokens("k", [1])
    async with server.async_client() as client:
        infer = AsyncInfer(client)
        assert await infer.load_tokens("k") is not None
        connection = await client.connection_pool.get_connection()
        await client.connection_pool.release(connection)

        async def gone(*_: Any, **__: Any) -> None:
            raise OSError(errno.ETIMEDOUT, "Connection timed out")

        with monkeypatch.context() as patch:
            patch.setattr(type(connection._parser), "read_response", gone)
            with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
                await infer.load_tokens("k")
        assert await infer.load_tokens("k") is not None


def test_an_interrupted_read_leaves_no_reply_behind(
    server: Server, loaded: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Sentinel's connections, which are not closed by errors unless told so."""

    class Manager:
        def discover_master(self, _service: str) -> tuple[str, int]:
            return "127.0.0.1", server.port

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    pool = redis.sentinel.SentinelConnectionPool("service", Manager())
    client = redis.Redis(connection_pool=pool)
    connection = pool.get_connection()
    pool.release(connection)
    with monkeypatch.context() as patch:
        patch.setattr(type(connection._parser), "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Infer(client).info("smol")
    assert connection._sock is None
    assert client.ping() is True
    pool.disconnect()


def test_connections_go_back_to_the_pool(server: Server, loaded: Infer) -> None:
    with server.client(max_connections=1) as client:
        infer = Infer(client)
        for _ in range(3):
            with pytest.raises(NoModelError):
                infer.info("nobody")
        assert infer.info("smol")["name"] == "smol"
        assert client.ping()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_client_with_a_single_connection_works(
    server: Server, loaded: Infer, asynchronous: bool
) -> None:
    if asynchronous:
        async with server.async_client(single_connection_client=True) as client:
            assert (await AsyncInfer(client).info("smol"))["name"] == "smol"
            assert await client.ping()
    else:
        with server.client(single_connection_client=True) as single:
            assert Infer(single).info("smol")["name"] == "smol"
            assert single.ping()


async def test_cancelling_the_task_cancels_the_request(
    server: Server, loaded: Infer, prompt: np.ndarray
) -> None:
    async with server.async_client() as client:
        infer = AsyncInfer(client)
        options: Any = {"max_tokens": 4000, "ignore_eos": True, "timeout_ms": 120_000}
        task = asyncio.create_task(infer.generate("smol", prompt, **options))

        async def requests_are(there: bool) -> None:
            while bool(await infer.requests()) != there:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(requests_are(True), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(requests_are(False), 60)
        assert await client.ping()


def test_a_request_can_be_cancelled_by_another_client(
    server: Server, loaded: Infer, prompt: np.ndarray
) -> None:
    results = []

    def work() -> None:
        with server.client() as client:
            options: Any = {"max_tokens": 4000, "ignore_eos": True, "timeout_ms": 120_000}
            results.append(Infer(client).generate("smol", prompt, **options))

    thread = threading.Thread(target=work)
    thread.start()
    (running,) = wait_until(
        lambda: [entry for entry in loaded.requests() if entry["output_tokens"]], "it generates"
    )
    assert running["model"] == "smol"
    assert loaded.cancel(running["id"])
    thread.join(60)
    assert results and results[0].finish_reason == "cancelled"
    assert results[0].output_tokens > 0
    assert not loaded.cancel(running["id"])


async def test_many_generations_at_once_answer_as_one_by_one(server: Server, loaded: Infer) -> None:
    texts = [f"Number {n} is followed by" for n in range(6)]
    alone = [loaded.generate("smol", text, max_tokens=8).text for text in texts]
    async with server.async_client() as client:
        infer = AsyncInfer(client)
        together = await asyncio.gather(
            *(infer.generate("smol", text, max_tokens=8) for text in texts)
        )
    assert [r.text for r in together] == alone


# ---- models ----


def test_a_model_is_loaded_listed_and_unloaded(infer: Infer, model_path: Path) -> None:
    info = infer.load("second", model_path.name, context=512)
    try:
        assert info["name"] == "second" and info["context"] == 512
        assert "second" in {m["name"] for m in infer.models()}
    finally:
        infer.unload("second")
    assert "second" not in {m["name"] for m in infer.models()}


def test_an_old_redis_will_do(model_path: Path) -> None:
    """The distribution's redis-server, where PATH has another than the bundled one."""
    other = shutil.which("redis-server")
    if other is None or Path(other) == find_redis_server():
        pytest.skip("there is only one redis-server on this machine")
    with Server(model_dir=model_path.parent, redis_server=other, threads=1) as server:
        infer = Infer(server.client())
        infer.load("smol", model_path)
        assert "Paris" in infer.generate("smol", QUESTION, max_tokens=10).text


def test_a_models_path_may_have_any_bytes(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.gguf")
    try:
        shutil.copyfile(model_path, path)
    except OSError:
        pytest.skip("file names are UTF-8 here")
    with Server(model_dir=tmp_path, threads=1) as server, server.client() as client:
        infer = Infer(client)
        for given in (path, os.fsencode(path), b"m\xff.gguf"):
            info = infer.load("m", given)
            assert os.fsencode(info["path"]).endswith(b"/m\xff.gguf")
            assert infer.tokenizer("m").encode("abc").size
            infer.unload("m")


# ---- one definition ----


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_")
        }

    assert public(Infer) == public(AsyncInfer)
    methods = {n: method for n, method in vars(AsyncInfer).items() if not n.startswith("_")}
    iterated = {n for n, method in methods.items() if not inspect.iscoroutinefunction(method)}
    assert iterated == {"stream", "stream_rag", "follow"}
    assert all(method.__doc__ for n, method in vars(Infer).items() if not n.startswith("_"))
