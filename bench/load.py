"""Clients that generate all the time, for measuring what a busy server does beside them.

They live in a process of their own. Each has a thread that asks for one generation after
another and waits for the reply, so that they cost next to nothing themselves; every
generation also writes its tokens to a stream.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

import redis

from redis_infer import Infer
from redis_infer.server import Server

PROMPT_TOKENS = 64


def _generate(socket: str, model: str, seed: int, stop: Event) -> None:
    infer = Infer(redis.Redis(unix_socket_path=socket))
    prompt = [1000 + (seed * 7919 + i * 104729) % 30000 for i in range(PROMPT_TOKENS)]
    while not stop.is_set():
        with contextlib.suppress(redis.RedisError):
            infer.generate(
                model,
                prompt,
                max_tokens=400,
                ignore_eos=True,
                stream=f"load:{seed}",
                stream_maxlen=100,
            )


def _process(socket: str, model: str, clients: int, stop: Event) -> None:
    threads = [
        threading.Thread(target=_generate, args=(socket, model, seed, stop), daemon=True)
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    stop.wait()


@contextlib.contextmanager
def generating(server: Server, model: str, clients: int) -> Iterator[None]:
    """While the block runs, ``clients`` generate at the same time."""
    context: Any = multiprocessing.get_context("spawn")
    stop = context.Event()
    arguments = (str(server.unix_socket), model, clients, stop)
    process = context.Process(target=_process, args=arguments, daemon=True)
    process.start()
    try:
        with server.client() as client:

            def running() -> int:
                info = client.info("infer")[f"infer_model_{model}"]
                requests = client.execute_command("INFER.REQUESTS")
                return info["running"] if requests else 0

            while running() < clients:
                time.sleep(0.05)
            time.sleep(0.5)  # past the prompts
        yield
    finally:
        stop.set()
        process.join(5)
        process.kill()
        with server.client() as client:
            while client.info("infer")[f"infer_model_{model}"]["running"]:
                time.sleep(0.05)
