"""The client in C, ``bench/sidecar`` in the source tree: builds it and talks to it.

The package carries the client's source only. It is compiled where it is first used, with the
system's compiler and hiredis, and kept beside the model files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import models
from . import BenchError

_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2")
_LIBRARIES = ("-lhiredis", "-lpthread")


def source_directory() -> Path:
    """Where the client's source lies: in the package, or in the tree that it is run from."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "client", here.parents[3] / "bench" / "sidecar"):
        if (folder / "client.c").is_file():
            return folder
    raise BenchError(f"the client's source is missing from {here.parent / 'client'}")


def build(compiler: str | None = None) -> Path:
    """The client's program, compiled if it is not there or its source has changed.

    Raises:
        BenchError: there is no compiler or no hiredis, or this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise BenchError("this measurement reads processes' times as Linux has them")
    compiler = compiler or os.environ.get("CC") or "cc"
    try:
        words = shlex.split(compiler) or ["cc"]  # as make takes CC="ccache gcc"
    except ValueError as error:
        raise BenchError(f"CC={compiler} is no command: {error}") from error
    if shutil.which(words[0]) is None:
        raise BenchError(f"no C compiler '{compiler}': install gcc or clang, or name one with CC=")
    folder = source_directory()
    sources = sorted(folder.glob("*.[ch]"))
    digest = hashlib.sha256(" ".join((compiler, *_FLAGS, *_LIBRARIES)).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    program = models.directory().parent / "bin" / f"sidecar-client-{digest.hexdigest()[:16]}"
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as work:
        made = Path(work) / "client"
        files = [str(source) for source in sources if source.suffix == ".c"]
        command = [*words, *_FLAGS, *files, "-o", str(made), *_LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            if "hiredis" in done.stderr:
                raise BenchError(
                    "no hiredis to build the client with: install it with its headers "
                    "(Debian, Ubuntu: libhiredis-dev; Fedora: hiredis-devel)"
                )
            raise BenchError(f"'{' '.join(command)}' failed: {done.stderr.strip()[-2000:]}")
        made.replace(program)
    return program


@dataclass(frozen=True)
class Job:
    """One request: see the head of ``client.c``."""

    way: str
    """reply | stream (in Redis), sidecar (beside it)."""
    transport: str
    """unix | tcp."""
    output: int
    keys: tuple[str, ...] = ()
    rag: tuple[str, str, int, str, str] | None = None
    """vector set, key of the query vector, hits, token keys before and after."""
    client: int = 0

    def line(self) -> str:
        what = ("keys", *self.keys) if self.rag is None else ("rag", *map(str, self.rag))
        return " ".join((str(self.client), self.way, self.transport, str(self.output), *what))


@dataclass(frozen=True)
class Turn:
    """What one "go" brought: a request each job, of each client in order."""

    requests: list[dict[str, Any]]
    wall_us: float
    cpu_us: list[float]
    """Of each process named to the client, and of the client itself."""


class Client:
    """The running program; ends with the ``with`` block."""

    def __init__(self, program: Path, arguments: Iterable[str]) -> None:
        self._process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, jobs: Sequence[Job]) -> Turn:
        """Runs the jobs: those of one client one after the other, all clients at once.

        Raises:
            BenchError: the client ended, or one of the requests failed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("".join(job.line() + "\n" for job in jobs) + "go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        requests: list[dict[str, Any]] = []
        failed: dict[str, Any] | None = None
        for line in self._process.stdout:
            result = json.loads(line)
            if "error" in result:
                failed = failed or result
            elif "wall_us" not in result:
                requests.append(result)
            elif failed is None:
                return Turn(requests, result["wall_us"], result["cpu_us"])
            else:
                raise BenchError(f"a request '{failed['way']}' failed: {failed['error']}")
        raise self._ended()

    def _ended(self) -> BenchError:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip()
        return BenchError(f"the client ended with status {self._process.wait()}: {said}")
