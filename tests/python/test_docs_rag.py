"""The worked example of docs/rag.md does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from redis_infer import Infer
from redis_infer.server import Server

PAGE = (Path(__file__).parents[2] / "docs/rag.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
NAMES = {"gen": "smollm2-135m-instruct", "emb": "all-minilm-l6-v2"}


@pytest.fixture
def example(server: Server, client: redis.Redis, model_path: Path, embedder_path: Path) -> Server:
    """A server with the two models that the page begins with."""
    infer = Infer(client)
    for model in infer.models():
        infer.unload(model["name"])
    infer.load(NAMES["gen"], model_path)
    infer.load(NAMES["emb"], embedder_path)
    yield server
    for name in NAMES.values():
        infer.unload(name)


def test_the_worked_example_prints_what_the_page_shows(
    example: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = 0
    for language, text in BLOCKS:
        if language == "console":
            for command, expected in sessions(text):
                assert_matches(command, shell(command, tmp_path, example.url), expected)
                run += 1
        elif language == "python":
            code = text.replace("redis.Redis()", f"redis.Redis.from_url({example.url!r})")
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            first, *_ = done.stdout.splitlines()
            assert first.startswith("src/password.py:1-10 0.")
            assert "['README.md:1-5']" in done.stdout and "['README.md#0']" in done.stdout
            run += 1
    assert run >= 11


def sessions(text: str) -> list[tuple[str, str]]:
    """Commands and their output, from a block in which ``$`` and ``>`` begin what is typed."""
    found = []
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        n_typed = 1 + next((i for i, line in enumerate(lines[1:]) if line[:1] != ">"), len(lines))
        typed = [lines[0], *(line[2:] for line in lines[1:n_typed])]
        found.append(("\n".join(typed), "\n".join(lines[n_typed:])))
    return found


def shell(command: str, folder: Path, url: str) -> str:
    function = f'redis-infer() {{ {sys.executable} -m redis_infer.cli "$@"; }}'
    done = subprocess.run(
        ["bash", "-c", f"{function}\n{command}\n"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"REDIS_INFER_URL": url, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def assert_matches(command: str, output: str, expected: str) -> None:
    """``...`` in the page stands for anything."""
    parts = [re.escape(part) for part in expected.strip().split("...")]
    pattern = "(?s:.*?)".join(parts)
    assert re.fullmatch(pattern, output.strip()), f"$ {command}\n{output}\n-- expected:\n{expected}"
