"""INFER.MODEL: which files may be loaded, and what becomes of loaded models."""

from __future__ import annotations

import os
import random
import re
import struct
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
    load,
    long_generation,
    own_server,
    pack,
    wait_until,
)
from redis_infer import NoModelError, prompts
from redis_infer.server import Server


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """A model directory of our own, with the model in it and things beside it."""
    base = tmp_path_factory.mktemp("models")
    inside = base / "inside"
    (inside / "sub").mkdir(parents=True)
    (base / "secret.gguf").write_bytes(b"GGUF")
    model = inside / "model.gguf"
    try:
        os.link(model_path, model)
    except OSError:
        model.write_bytes(model_path.read_bytes())
    (inside / "out.gguf").symlink_to(base / "secret.gguf")
    (inside / "sub" / "up").symlink_to(base)
    (inside / "alias.gguf").symlink_to("model.gguf")
    os.mkfifo(inside / "fifo.gguf")
    return inside


@pytest.fixture(scope="module")
def own(model_dir: Path) -> Iterator[Server]:
    with Server(model_dir=model_dir, threads=1) as server:
        yield server


@pytest.fixture
def other(own: Server) -> Iterator[redis.Redis]:
    """A client of the server with the model directory; no model is left when the test is over."""
    with own.client() as client:
        client.flushall()
        yield client
        for model in client.execute_command("INFER.MODEL LIST"):
            client.execute_command("INFER.MODEL UNLOAD", as_map(model)["name"])


def test_load_describes_the_model_when_it_can_be_used(other: redis.Redis) -> None:
    info = load(other, "model.gguf", "m.1-x_y")
    assert info["name"] == b"m.1-x_y"
    assert info["state"] == b"ready"
    assert info["architecture"] == b"llama"
    assert info["quantization"] == b"Q4_1"
    assert (info["layers"], info["heads"], info["kv_heads"]) == (30, 9, 3)
    assert (info["vocabulary"], info["embedding_size"]) == (49152, 576)
    assert info["context"] == info["trained_context"] == 8192
    assert 134_000_000 < info["parameters"] < 135_000_000
    assert (
        generate(other, "m.1-x_y", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 1)["output_tokens"] == 1
    )
    again = as_map(other.execute_command("INFER.MODEL INFO", "m.1-x_y"))
    assert list(again) == list(info)
    (listed,) = other.execute_command("INFER.MODEL LIST")
    assert list(as_map(listed)) == list(info)


def test_paths_inside_the_directory_load_however_they_are_written(
    other: redis.Redis, model_dir: Path
) -> None:
    for i, path in enumerate(
        ["model.gguf", "./model.gguf", "sub/..gguf", "alias.gguf", model_dir / "model.gguf"]
    ):
        if path == "sub/..gguf":  # a name that begins with dots is a name
            (model_dir / path).symlink_to(model_dir / "model.gguf")
        assert load(other, path, f"m{i}", "CONTEXT", 64)["context"] == 64


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("../secret.gguf", "has a '..'"),
        ("sub/../model.gguf", "has a '..'"),
        ("..", "has a '..'"),
        ("{base}/secret.gguf", "outside infer.model-dir"),
        ("{base}/nothing.gguf", "outside infer.model-dir"),
        ("{base}/inside-not/model.gguf", "outside infer.model-dir"),
        ("/etc/passwd", "outside infer.model-dir"),
        ("out.gguf", "through a symbolic link"),
        ("sub/up/secret.gguf", "through a symbolic link"),
        ("nothing.gguf", "No such file"),
        ("sub", "no regular file"),
        (".", "no regular file"),
        ("fifo.gguf", "no regular file"),
        ("model.gguf/x", "Not a directory"),
        ("", "no path"),
        ("model.gguf\0x", "no path"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_other_paths_are_refused(
    other: redis.Redis, model_dir: Path, path: str, expected: str
) -> None:
    path = path.replace("{base}", str(model_dir.parent))
    assert expected in error_of(other, "INFER.MODEL LOAD", "m", path)
    assert other.execute_command("INFER.MODEL LIST") == []


def test_without_a_model_directory_nothing_loads(model_path: Path) -> None:
    with (
        Server(model_dir=model_path.parent, config={"infer.model-dir": ""}) as server,
        server.client() as client,
    ):
        assert "infer.model-dir is not set" in error_of(
            client, "INFER.MODEL LOAD", "m", str(model_path)
        )


@pytest.mark.parametrize("name", ["", "a b", "a\n", "ä", "x" * 65, "a:b", "a|b", "\0", "a\0b"])
def test_names_that_could_be_mistaken_are_refused(other: redis.Redis, name: str) -> None:
    assert "no model name" in error_of(other, "INFER.MODEL LOAD", name, "model.gguf")


def test_a_name_is_taken_once(other: redis.Redis) -> None:
    load(other, "model.gguf", "m")
    assert "there is a model 'm' already" in error_of(other, "INFER.MODEL LOAD", "m", "model.gguf")
    other.execute_command("INFER.MODEL UNLOAD", "m")
    load(other, "model.gguf", "m")


def test_info_tells_of_a_model_that_is_being_loaded(own: Server, other: redis.Redis) -> None:
    def info_during_a_load() -> dict[str, Any]:
        job = Background(own, "INFER.MODEL LOAD", "m", "model.gguf")
        while True:
            try:
                info = as_map(other.execute_command("INFER.MODEL INFO", "m"))
            except redis.ResponseError as error:
                assert "no model 'm'" in str(error)  # not begun yet
                continue
            job.result()
            other.execute_command("INFER.MODEL UNLOAD", "m")
            return info

    # A load may be over before it is asked for.
    found = wait_until(
        lambda: info if (info := info_during_a_load())["state"] != b"ready" else None,
        "a load is met",
    )
    assert found == {"name": b"m", "state": b"loading"}
    with pytest.raises(NoModelError, match="'m' is not ready: it is loading"):
        prompts.tokenizer_of({"name": "m", "state": "loading"})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("CONTEXT", 0), "CONTEXT is '0'"),
        (("CONTEXT", 8193), "8193"),
        (("KVMEMORY", 1), "CONTEXT|KV|memory|budget"),
        (("KVMEMORY", "1gb"), "KVMEMORY is '1gb'"),
        (("CONTEXT", 1, "CONTEXT", 1), "CONTEXT is given twice"),
        (("THREADS", 1), "unknown option 'THREADS'"),
    ],
)
def test_bad_load_options_are_refused(
    other: redis.Redis, options: tuple[object, ...], expected: str
) -> None:
    assert re.search(expected, error_of(other, "INFER.MODEL LOAD", "m", "model.gguf", *options))
    assert other.execute_command("INFER.MODEL LIST") == []


def test_a_small_budget_makes_the_context_smaller_and_says_so(other: redis.Redis) -> None:
    info = load(other, "model.gguf", "m", "KVMEMORY", 32 << 20)
    assert 64 <= info["context"] < 8192
    assert info["kv_bytes"] <= 32 << 20
    fits = info["context"] - len(PROMPT)
    assert "CONTEXT" in error_of(
        other, "INFER.GENERATE", "m", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", fits + 2
    )


# ---- broken files ----


def broken_files(model: bytes) -> dict[str, bytes]:
    rng = random.Random(5)
    head = model[: 4 << 20]
    n_tensors, n_metadata = struct.unpack_from("<QQ", model, 8)
    files = {
        "empty": b"",
        "magic only": b"GGUF",
        "no gguf": b"#!/bin/sh\nexit 0\n" * 100,
        "other version": model[:4] + struct.pack("<I", 9) + model[8:4096],
        "cut in the header": model[:17],
        "cut in the metadata": model[:5000],
        "cut in the tensors": model[:-1],
        "cut in half": model[: len(model) // 2],
        "too many tensors": model[:8] + struct.pack("<Q", 1 << 60) + head[16:],
        "too many metadata": model[:16] + struct.pack("<Q", 1 << 61) + head[24:],
        "one tensor more": model[:8] + struct.pack("<QQ", n_tensors + 1, n_metadata) + head[24:],
        "first key too long": model[:24] + struct.pack("<Q", 1 << 63) + head[32:],
        "zeros": bytes(1 << 20),
    }
    for i in range(40):
        flipped = bytearray(head[: 2 << 20])
        for _ in range(rng.randrange(1, 4)):
            flipped[rng.randrange(len(flipped) if i % 2 else 2000)] ^= 1 << rng.randrange(8)
        files[f"flipped bits {i}"] = bytes(flipped)  # and cut: never a whole model
    return files


def test_broken_files_are_refused_and_leave_nothing(
    other: redis.Redis, own: Server, model_dir: Path
) -> None:
    model = (model_dir / "model.gguf").read_bytes()
    path = model_dir / "broken.gguf"
    load(other, "model.gguf", "sound")
    before_tokens = generate(other, "sound", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 4)["tokens"]
    process = other.info("server")["process_id"]
    descriptors = Path(f"/proc/{process}/fd")
    open_files = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    for what, content in broken_files(model).items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        message = error_of(other, "INFER.MODEL LOAD", "broken", "broken.gguf")
        assert message.strip(), what
    assert [as_map(m)["name"] for m in other.execute_command("INFER.MODEL LIST")] == [b"sound"]
    assert (
        generate(other, "sound", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 4)["tokens"]
        == before_tokens
    )
    if open_files:
        wait_until(
            lambda: len(list(descriptors.iterdir())) == open_files, "every file is closed again"
        )


def test_a_files_own_text_cannot_end_the_error_line(other: redis.Redis, model_dir: Path) -> None:
    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    architecture = string(b"general.architecture") + struct.pack("<I", 8) + string(b"x\r\n+OK")
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    (model_dir / "evil.gguf").write_bytes(header + architecture + bytes(64))
    message = error_of(other, "INFER.MODEL LOAD", "evil", "evil.gguf")
    assert "architecture" in message and "x??+OK" in message
    assert other.echo("still in step") == b"still in step"


# ---- unloading ----


def test_unload_of_an_unknown_model_says_so(other: redis.Redis) -> None:
    assert error_of(other, "INFER.MODEL UNLOAD", "none").startswith("NOMODEL ")
    assert error_of(other, "INFER.MODEL INFO", "none").startswith("NOMODEL ")


def test_unload_ends_running_requests_and_gives_the_memory_back(model_path: Path) -> None:
    with own_server(model_path) as server, server.client() as client:
        jobs = [long_generation(server) for _ in range(3)]
        client.execute_command("INFER.MODEL UNLOAD", MODEL)
        for job in jobs:
            assert job.failure().startswith("NOMODEL ")
        assert client.execute_command("INFER.MODEL LIST") == []
        assert_idle(client)
        assert client.info("infer")["infer_memory_kv_bytes"] == 0
        load(client, model_path.name)
        assert (
            generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2)["output_tokens"] == 2
        )


def test_loading_and_unloading_again_and_again_keeps_memory_flat(
    other: redis.Redis, own: Server
) -> None:
    process = other.info("server")["process_id"]

    def cycle() -> int:
        load(other, "model.gguf", "m")
        generate(other, "m", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2)
        other.execute_command("INFER.MODEL UNLOAD", "m")
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])  # KiB

    if not Path("/proc/self/status").is_file():
        pytest.skip("needs /proc")
    cycle()
    first = cycle()
    for _ in range(6):
        last = cycle()
    assert last - first < 8 * 1024


def test_a_model_stays_when_the_client_that_loads_it_goes_away(
    own: Server, other: redis.Redis
) -> None:
    job = Background(own, "INFER.MODEL LOAD", "m", "model.gguf")
    other.execute_command("CLIENT KILL", "ID", job.client_id)
    job.join()
    wait_until(
        lambda: (
            [as_map(m)["state"] for m in other.execute_command("INFER.MODEL LIST")] == [b"ready"]
            or not other.execute_command("INFER.MODEL LIST")
        ),
        "loaded, or never begun",
    )


def test_a_model_can_be_loaded_under_two_names(other: redis.Redis) -> None:
    load(other, "model.gguf", "a")
    load(other, "model.gguf", "b")
    first = generate(other, "a", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 4)
    other.execute_command("INFER.MODEL UNLOAD", "a")
    second = generate(other, "b", 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 4)
    assert first["tokens"] == second["tokens"]
