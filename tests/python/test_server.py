"""The embedded server's life, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from module_support import wait_until
from redis_infer import Infer
from redis_infer import server as server_module
from redis_infer.server import Server, ServerError, find_redis_server


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_it_answers_on_socket_and_port_and_leaves_nothing(tmp_path: Path) -> None:
    with Server(model_dir=tmp_path) as server:
        directory = server.directory
        with server.client() as client:
            client.set("k", "v")
            pid = client.info("server")["process_id"]
            modules = {m[b"name"] for m in client.execute_command("MODULE LIST", NEVER_DECODE=True)}
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"GET k\r\n")
            assert connection.recv(64) == b"$1\r\nv\r\n"
        assert modules & {b"infer", b"redis_infer"}
        assert directory.stat().st_mode & 0o077 == 0
    assert not directory.exists()
    wait_until(lambda: not alive(pid), "the server has gone")


def test_a_stopped_server_can_be_started_again(tmp_path: Path) -> None:
    server = Server(model_dir=tmp_path)
    for _ in range(2):
        with server, server.client() as client:
            assert client.ping()
    server.stop()


def test_it_ends_with_a_parent_that_crashes(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from redis_infer.server import Server\n"
        "server = Server(model_dir=sys.argv[1]).start()\n"
        "print(server.client().info('server')['process_id'], server.directory, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None and parent.stdin is not None
    pid, directory = parent.stdout.readline().split()
    assert alive(int(pid))
    parent.kill()
    parent.wait()
    wait_until(
        lambda: not alive(int(pid)) and not Path(directory).exists(), "server and folder have gone"
    )
    parent.stdin.close()
    parent.stdout.close()


def test_a_server_that_refuses_a_directive_shows_its_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no-such-directive"):
        Server(model_dir=tmp_path, config={"no-such-directive": 1}).start()


def test_a_module_that_does_not_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"missing\.so"):
        Server(model_dir=tmp_path, module=tmp_path / "missing.so").start()


def test_a_failed_start_leaves_no_directory(tmp_path: Path, monkeypatch: object) -> None:
    made: list[Path] = []
    original = server_module.socket_directory

    def remember(*names: str) -> Path:
        made.append(original(*names))
        return made[-1]

    monkeypatch.setattr(server_module, "socket_directory", remember)  # type: ignore[attr-defined]
    with pytest.raises(ServerError):
        Server(model_dir=tmp_path, module=tmp_path / "missing.so").start()
    assert made and not made[0].exists()


def test_a_taken_port_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match="Address already in use"):
            Server(model_dir=tmp_path, port=port).start()


def test_a_free_port_is_looked_for_again_when_someone_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ports = iter([holder.getsockname()[1], server_module._free_port()])
        monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))
        with Server(model_dir=tmp_path) as server:
            assert server.client().ping()


def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    sleeper = executable(
        tmp_path / "redis-server",
        'case "$1" in --version) echo "Redis server v=7.2.4";; *) exec sleep 600;; esac',
    )
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"did not answer within 0\.3 s"):
        Server(model_dir=tmp_path, redis_server=sleeper, startup_timeout_s=0.3).start()
    assert time.monotonic() - began < 60


def test_a_stop_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(model_dir=tmp_path).start()
    directory = server.directory
    with server.client() as client:
        pid = client.info("server")["process_id"]
    process = server._process
    assert process is not None
    wait, waits = process.wait, 0

    def interrupted(timeout: float | None = None) -> int:
        nonlocal waits
        waits += 1
        if waits == 1:
            raise KeyboardInterrupt  # Ctrl-C while the server ends
        return wait(timeout)

    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert not directory.exists() and process.poll() is not None
    wait_until(lambda: not alive(pid), "the server has gone")


def test_a_model_directory_of_any_bytes_survives_the_configuration_file(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    options = {"decode_responses": True, "encoding_errors": "surrogateescape"}
    with Server(model_dir=odd) as server, server.client(**options) as client:
        assert client.config_get("infer.model-dir") == {"infer.model-dir": str(odd)}


def test_an_odd_model_directory_survives_the_configuration_file(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted"\tfolder \\ here'
    with Server(model_dir=odd) as server, server.client(decode_responses=True) as client:
        assert client.config_get("infer.model-dir") == {"infer.model-dir": str(odd)}


def test_a_linked_model_directory_has_both_its_names(model_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model_path.parent)
    with Server(model_dir=link, threads=1) as server, server.client() as client:
        assert server.model_dir == link
        for n, folder in enumerate((link, link.resolve())):
            Infer(client).load(f"m{n}", folder / model_path.name)
    above = Server(model_dir=tmp_path / "sub" / ".." / "link")
    assert ".." not in above.model_dir.parts, "which the module refuses"


async def test_a_password_is_passed_on(tmp_path: Path) -> None:
    password = "p@ss: /word"
    with Server(model_dir=tmp_path, config={"RequirePass": password}) as server:
        with server.client() as client, redis.from_url(server.url) as other:
            assert client.ping() and other.ping()
        async with server.async_client() as client:
            assert await client.ping()
        with server.client(password=None) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_password_that_is_unknown_is_no_reason_to_wait(tmp_path: Path) -> None:
    user = {"user": ["default", "on", ">secret", "~*", "+@all"]}
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"refuses a client .*required"):
        Server(model_dir=tmp_path, config=user).start()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", ["port", "unixsocket", "LogFile", "daemonize"])
def test_what_the_server_sets_itself_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServerError, match=f"^{name.lower()} cannot be configured"):
        Server(model_dir=tmp_path, config={name: "1"})


def test_another_module_in_the_place_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^loadmodule cannot .* is named with Server\(module="):
        Server(model_dir=tmp_path, config={"LoadModule": "/other.so"})


def test_a_directive_in_two_spellings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"^config has save twice"):
        Server(model_dir=tmp_path, config={"save": "1 1", "Save": "2 2"})


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('echo "Redis server v=6.2.7 sha=0"', "is Redis 6.2; 7.0 or newer"),
        ('echo "busybox"', "is no redis-server"),
        ("exit 3", "exit status 3"),
    ],
)
def test_an_unfit_executable_is_refused(tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(ServerError, match=says):
        find_redis_server(executable(tmp_path / "redis-server", script))


def test_no_executable_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_INFER_REDIS_SERVER", raising=False)
    monkeypatch.setattr(server_module, "_bundled_redis_server", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ServerError, match=r"redis-infer\[server\]"):
        find_redis_server()


def test_one_on_path_is_found_where_none_is_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = executable(tmp_path / "redis-server", 'echo "Redis server v=7.4.1"')
    monkeypatch.delenv("REDIS_INFER_REDIS_SERVER", raising=False)
    monkeypatch.setattr(server_module, "_bundled_redis_server", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert find_redis_server() == own


def test_one_named_by_a_relative_path_is_the_same_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = executable(tmp_path / "redis-server", 'echo "Redis server v=7.4.1"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")  # "./name" must not become one found on PATH
    assert find_redis_server("./redis-server") == own
    monkeypatch.setenv("REDIS_INFER_REDIS_SERVER", f"../{tmp_path.name}/redis-server")
    assert find_redis_server().samefile(own)
    assert find_redis_server().is_absolute()


def test_sigint_for_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    with Server(model_dir=tmp_path) as server, server.client() as client:
        pid = client.info("server")["process_id"]
        assert os.getpgid(pid) != os.getpgid(0)
        assert signal.getsignal(signal.SIGINT) is not None
        assert client.ping()
