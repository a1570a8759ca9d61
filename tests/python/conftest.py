"""Fixtures shared by all tests.

Every pytest-xdist worker has a server of its own, so tests that change the server's
state need not fear each other across workers. Within a worker the server lives for the
whole session: a test that loads a model unloads it, and ``client`` begins with an empty keyspace.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_infer import AsyncInfer, Infer, models
from redis_infer.server import Server, find_redis_server

# What compares with transformers needs torch, of which there is none for macOS on x86-64.
if sys.platform == "darwin" and platform.machine() == "x86_64":
    collect_ignore = ["test_embed.py", "test_golden.py", "test_tokenizer.py"]

LOADED_NAME = "smol"
EMBEDDER_NAME = "minilm"


@functools.cache
def redis_version() -> tuple[int, int]:
    """Of the server that the tests run."""
    shown = subprocess.run(
        [find_redis_server(), "--version"], capture_output=True, text=True, check=True
    )
    # Valkey's number is its own; of Redis it has what 7.2 had, from which it came.
    if shown.stdout.startswith("Valkey"):
        return (7, 2)
    found = re.search(r"v=(\d+)\.(\d+)", shown.stdout)
    assert found, shown.stdout
    return int(found[1]), int(found[2])


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs_redis"):
        if redis_version() < mark.args:
            needed, is_there = (".".join(map(str, v)) for v in (mark.args, redis_version()))
            pytest.skip(f"needs Redis {needed}; this is (like) {is_there}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file; fetched if this machine does not have it."""
    return models.pull(models.DEFAULT_MODEL)


@pytest.fixture(scope="session")
def server(model_path: Path) -> Iterator[Server]:
    """A server with the module; the folder of the default model is its model directory."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, (os.cpu_count() or 1) // workers)
    with Server(model_dir=model_path.parent, threads=threads) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    """A client with an empty keyspace."""
    with server.client(socket_timeout=None) as connected:  # a generation may take long
        connected.flushall()
        yield connected


@pytest.fixture
def infer(client: redis.Redis) -> Infer:
    return Infer(client)


@pytest.fixture
def loaded(infer: Infer, model_path: Path) -> Iterator[Infer]:
    """``infer`` with the default model loaded as "smol". The model stays loaded for later tests."""
    if LOADED_NAME not in {model["name"] for model in infer.models()}:
        infer.load(LOADED_NAME, model_path)
    yield infer


KINDS = [(protocol, decode) for protocol in (2, 3) for decode in (False, True)]


@pytest.fixture(params=KINDS, ids=lambda p: f"resp{p[0]}-{'text' if p[1] else 'bytes'}")
def client_kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of redis-py that decide what replies look like; a test runs with each kind."""
    protocol, decode = request.param
    return {"protocol": protocol, "decode_responses": decode}


@pytest.fixture
def any_infer(client_kind: dict[str, Any], server: Server, loaded: Infer) -> Iterator[Infer]:
    with server.client(**client_kind) as connected:
        yield Infer(connected)


@pytest.fixture
async def any_async(
    client_kind: dict[str, Any], server: Server, loaded: Infer
) -> AsyncIterator[AsyncInfer]:
    async with server.async_client(**client_kind) as connected:
        yield AsyncInfer(connected)


@pytest.fixture(scope="session")
def embedder_path() -> Path:
    """The embedding model's file; fetched and converted if this machine does not have it."""
    return models.pull("all-minilm-l6-v2")


@pytest.fixture
def embedding(loaded: Infer, embedder_path: Path) -> Iterator[Infer]:
    """``loaded``, with all-MiniLM-L6-v2 as "minilm" beside it until the test ends."""
    loaded.load(EMBEDDER_NAME, embedder_path)
    yield loaded
    if EMBEDDER_NAME in {model["name"] for model in loaded.models()}:
        loaded.unload(EMBEDDER_NAME)
