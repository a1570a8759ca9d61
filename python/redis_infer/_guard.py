"""Runs a command and ends it when the process that asked for it is gone.

    python -I -S _guard.py DIRECTORY COMMAND [ARG ...]

The parent holds the writing end of this process's standard input. It closes with the
parent however that ends, a crash included: then the command gets SIGTERM, and SIGKILL
if it does not obey, and DIRECTORY is removed. Works where PR_SET_PDEATHSIG does not
exist, and unlike it does not fire when only the thread that started the command ends.

start() and stop() are the parent's side.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE_S = 10.0


def start(
    directory: Path,
    command: Sequence[str | os.PathLike[str]],
    *,
    output: Path,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Runs ``command`` in ``directory`` under a guard. What both print goes to ``output``."""
    with output.open("wb") as printed:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, directory, *command],
            stdin=subprocess.PIPE,  # closes with this process, however it ends
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=env,
        )


def stop(guard: subprocess.Popen[bytes]) -> None:
    """Ends a guard and its command and waits for them. The directory stays.

    Who does not want to wait (an exception such as KeyboardInterrupt) ends them at once.
    """
    assert guard.stdin is not None
    try:
        guard.terminate()  # which passes it on
        guard.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _kill(guard)
    except BaseException:
        _kill(guard)
        raise
    finally:
        guard.stdin.close()


def _kill(guard: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guard.pid, signal.SIGKILL)  # guard and command have a group of their own
    guard.kill()  # where it has just begun, and has no command yet
    guard.wait()


def main() -> int:
    directory, *arguments = sys.argv[1:]
    # Ctrl-C is for the parent, which then stops the command. Not a session of its own: Linux
    # divides processors among sessions first (autogroup), and the server's compute threads would
    # take from its main thread's share what their lower priority should leave to others.
    os.setpgid(0, 0)
    command: subprocess.Popen[bytes] | None = None
    asked_to_stop = False

    def stop(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if command is not None:
            command.terminate()

    # Before the command exists, so that no signal can end this process and leave the command.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    command = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
    if asked_to_stop:
        command.terminate()

    parent_gone = threading.Event()

    def watch(running: subprocess.Popen[bytes]) -> None:
        while os.read(0, 4096):
            pass
        parent_gone.set()
        running.terminate()
        try:
            running.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        shutil.rmtree(directory, ignore_errors=True)

    watcher = threading.Thread(target=watch, args=(command,), daemon=True)
    watcher.start()
    status = command.wait()
    if parent_gone.is_set():
        watcher.join()  # it still has to remove the directory
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
