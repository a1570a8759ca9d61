"""What docs/install.md says about configuration and memory holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

from module_support import as_map
from redis_infer import Infer
from redis_infer.gguf_metadata import read_metadata
from redis_infer.module_path import module_path
from redis_infer.server import find_redis_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")


def block(with_line: str) -> str:
    """The one code block that has a line which begins so."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [b for b in blocks if re.search(f"^{re.escape(with_line)}", b, re.MULTILINE)]
    return found


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # not yet there, or not yet ready
        return False


def number(text: str) -> int:
    return int(text.replace(" ", ""))


def test_the_lines_for_redis_conf_start_a_server(model_path: Path) -> None:
    lines = block("loadmodule ")
    lines = re.sub(r"(?<=^loadmodule ).*", str(module_path()), lines)
    lines = re.sub(r"(?<=infer.model-dir ).*", str(model_path.parent), lines)
    with tempfile.TemporaryDirectory(prefix="conf-") as folder:
        conf, socket = Path(folder) / "redis.conf", Path(folder) / "s"
        conf.write_text(f"{lines}\nport 0\nunixsocket {socket}\ndir {folder}\nsave ''\n")
        process = subprocess.Popen([find_redis_server(), conf], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=str(socket), socket_timeout=None) as client:
                while not answers(client):
                    assert process.poll() is None
                    time.sleep(0.02)
                loaded = as_map(client.execute_command("INFER.MODEL LOAD", "m", model_path.name))
                assert loaded["state"] == b"ready"
                assert client.config_get("infer.kv-memory") == {"infer.kv-memory": str(1 << 30)}
        finally:
            process.terminate()
            process.wait()


def kv_bytes_of_a_token(layers: int, heads: int, key_and_value: int) -> int:
    """The page's formula, of 64 tokens rounded up to 4 KB."""
    of_a_page = 64 * layers * heads * (key_and_value * 2 + 4)
    return -(-of_a_page // 4096) * 4096 // 64


def test_memory_of_a_token_is_the_formulas(
    loaded: Infer, client: redis.Redis, model_path: Path
) -> None:
    metadata = read_metadata(model_path)
    key_and_value = 2 * metadata["llama.embedding_length"] // metadata["llama.attention.head_count"]
    of_a_token = kv_bytes_of_a_token(
        metadata["llama.block_count"], metadata["llama.attention.head_count_kv"], key_and_value
    )
    info = as_map(client.execute_command("INFER.MODEL INFO", "smol"))
    assert info["kv_bytes"] == info["kv_pages"] * info["kv_page_tokens"] * of_a_token
    row = re.search(r"^\| SmolLM2-135M: .* \| ([\d ]+) \| (\d+) MB \| ([\d ]+) tokens", PAGE, re.M)
    assert row
    assert number(row[1]) == of_a_token
    assert number(row[2]) == of_a_token * 8192 >> 20
    page = of_a_token * info["kv_page_tokens"]
    assert number(row[3]) == (1 << 30) // page * info["kv_page_tokens"]
    memory = client.info("infer")
    assert memory["infer_memory_kv_bytes"] == info["kv_bytes"]
    # The file holds the metadata besides: the vocabulary for the most part.
    assert memory["infer_memory_weights_bytes"] == pytest.approx(
        model_path.stat().st_size, rel=0.05
    )


def test_the_table_of_memory_adds_up() -> None:
    shape = r"(\d+) \S (\d+) \S \((\d+) \S 2 \+ 4\)"
    rows = re.findall(rf"^\| [^|]*: {shape} \| ([\d ]+) \| (\d+) MB \| ([\d ]+) tokens", PAGE, re.M)
    assert len(rows) == 4
    for layers, heads, key_and_value, of_a_token, megabytes, held in rows:
        expected = kv_bytes_of_a_token(int(layers), int(heads), int(key_and_value))
        assert number(of_a_token) == expected
        assert number(megabytes) == expected * 8192 >> 20
        assert number(held) == (1 << 30) // (expected * 64) * 64


def test_files_that_the_page_names_are_there() -> None:
    named = re.findall(r"\]\(\.\./([^)]+)\)", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_what_the_dockerfile_copies_is_enough_to_configure_the_build(tmp_path: Path) -> None:
    if not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs cmake and ninja")
    dockerfile = (ROOT / "packaging/Dockerfile").read_text(encoding="utf-8")
    copied = [
        name for line in re.findall(r"^COPY (\w.*) \S+$", dockerfile, re.M) for name in line.split()
    ]
    ignored = (ROOT / "packaging/Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert sorted(copied) == sorted(re.findall(r"^!(.+)$", ignored, re.M))
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path)
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
