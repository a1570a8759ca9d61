"""What the tests of the module's commands share: plain RESP, no client of ours in between."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_infer.server import Server

MODEL = "smol"
VOCABULARY = 49152

# Any ids do; these are a few common words.
PROMPT = [504, 3575, 282, 4649, 314, 260, 2443, 30, 657, 314]


def pack(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def unpack(blob: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(blob) // 4}I", blob))


def floats(blob: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(blob) // 4}f", blob))


def as_map(reply: Any) -> dict[str, Any]:
    """A map reply of either protocol."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value for name, value in pairs}


def generate(client: redis.Redis, *args: Any) -> dict[str, Any]:
    return as_map(client.execute_command("INFER.GENERATE", *args))


def error_of(client: redis.Redis, *args: Any) -> str:
    """The whole error line; redis-py takes an 'ERR ' away."""
    with pytest.raises(redis.RedisError) as caught:
        client.execute_command(*args)
    return str(caught.value)


def load(client: redis.Redis, path: Any, name: str = MODEL, *options: Any) -> dict[str, Any]:
    return as_map(client.execute_command("INFER.MODEL LOAD", name, str(path), *options))


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 180.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


def threads_of(pid: int) -> list[str]:
    """The names of a process' threads, in order; needs /proc."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append((task / "comm").read_text().strip())
    return sorted(names)


def requests(client: redis.Redis) -> list[dict[str, Any]]:
    return [as_map(entry) for entry in client.execute_command("INFER.REQUESTS")]


def assert_idle(client: redis.Redis) -> None:
    """No request is left anywhere."""
    wait_until(lambda: not requests(client), "the list of requests is empty")
    info = client.info("infer")
    assert (info["infer_requests_running"], info["infer_requests_queued"]) == (0, 0)


def wait_until_admitted(client: redis.Redis, n_before: int) -> None:
    """After so many requests there is one more. It may have ended since, unlike a listed one."""
    wait_until(
        lambda: client.info("infer")["infer_requests_total"] > n_before, "a request is admitted"
    )


class Background:
    """One command on a connection of its own, in a thread: its reply or its error."""

    def __init__(self, server: Server, *args: Any, **options: Any) -> None:
        self.client = server.client(socket_timeout=None, **options)
        # This one for everything: a pool would connect anew where the server has hung up, and a
        # retry would repeat the command.
        self._connection = self.client.connection_pool.get_connection()
        self.client_id: int = self._ask("CLIENT ID")
        self.reply: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(args,), daemon=True)
        self._thread.start()

    def _run(self, args: tuple[Any, ...]) -> None:
        try:
            self.reply = self._ask(*args)
        except Exception as error:
            self.error = error

    def _ask(self, *args: Any) -> Any:
        self._connection.send_command(*args)
        return self._connection.read_response()

    def join(self, timeout_s: float = 180.0) -> Background:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the command did not return"
        return self

    def result(self) -> dict[str, Any]:
        self.join()
        assert self.error is None, self.error
        return as_map(self.reply)

    def failure(self) -> str:
        self.join()
        assert self.error is not None, self.reply
        return str(self.error)


def long_generation(server: Server, *options: Any, model: str = MODEL) -> Background:
    """A generation that would run for a long time, and is running."""
    job = Background(
        server,
        "INFER.GENERATE",
        model,
        0,
        "TOKENS",
        pack(PROMPT),
        "MAXTOKENS",
        8000,
        "IGNOREEOS",
        *options,
    )
    with server.client() as client:
        wait_until(
            lambda: any(
                r["client"] == job.client_id and r["state"] == b"running" for r in requests(client)
            ),
            "the generation runs",
        )
    return job


@contextlib.contextmanager
def own_server(model_path: Any, **options: Any) -> Iterator[Server]:
    """A server for a test that ends it or sets it up in its own way; the model is loaded."""
    with Server(model_dir=model_path.parent, threads=1, **options) as server:
        with server.client(socket_timeout=None) as client:
            load(client, model_path.name)
        yield server


@contextlib.contextmanager
def server_with_plain_call(model_path: Path, folder: Path) -> Iterator[Server]:
    """Like own_server, with PLAIN.CALL: a module that runs commands for no user."""
    here = Path(__file__).resolve().parent
    module = here.parents[1] / "native" / "module"
    sources = (here / "data" / "plain_call.c", module / "redis_api.c")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    built = folder / "plain_call.so"
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{module}", "-o", built, *sources], check=True)
    with (
        own_server(model_path, config={"enable-module-command": "yes"}) as server,
        server.client() as client,
    ):
        client.execute_command("MODULE LOAD", str(built))
        yield server


@contextlib.contextmanager
def own_cluster(model_path: Any) -> Iterator[Server]:
    """Like own_server, as a cluster of one node that has all slots."""
    with socket.socket() as probe:  # Redis' own choice, port + 10000, may not exist
        probe.bind(("127.0.0.1", 0))
        bus_port = probe.getsockname()[1]
    # On a busy machine the node may be without a processor for a while.
    config = {"cluster-enabled": "yes", "cluster-port": bus_port, "cluster-node-timeout": 600000}
    with Server(model_dir=model_path.parent, threads=1, config=config) as server:
        with server.client(socket_timeout=None) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            # Before anything waits: Redis turns waiting clients away while the cluster is down.
            wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
                "the cluster is up",
            )
            load(client, model_path.name)
        yield server
