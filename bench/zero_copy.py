"""Who touches a prompt's bytes: INFER.GENERATE beside GET, watched by the debug registers.

    python bench/zero_copy.py

The server logs where a key's tokens lie (infer.trace-admission). gdb then sets hardware
watchpoints on four words of them, which no access of the process escapes, and each access is
printed with the functions that made it. INFER.GENERATE should touch each word in core's append
only, which takes the ids over and checks them there. GET shows what a copy looks like. Fails if
anything else touches the words.

Needs gdb and the right to trace other processes (root, or kernel.yama.ptrace_scope 0); Linux.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from redis_infer import Infer
from redis_infer.server import Server
from redis_infer.sidecar import synthetic

N_WORDS = 4  # the debug registers of a processor
KEY, MODEL = "prompt", "m"
APPEND = "llm_request_append"

Access = tuple[str, ...]  # functions, innermost first


def logged_pointer(server: Server) -> tuple[int, str]:
    """Where Redis keeps the key's bytes, and the line of the log that says so."""
    lines = [line for line in server.log().splitlines() if f"key '{KEY}'" in line]
    found = re.search(r"dma=(0x[0-9a-f]+) bytes=\d+ core=(0x[0-9a-f]+)", lines[-1])
    assert found, lines
    if found[1] != found[2]:
        sys.exit(f"core read {found[2]}, not {found[1]}, which Redis gave: {lines[-1]}")
    return int(found[1], 16), lines[-1].split("> ", 1)[1]


class Watch:
    """gdb on the server, with watchpoints on words of memory."""

    def __init__(self, pid: int, words: list[int], folder: Path) -> None:
        self._log = folder / "gdb.log"
        script = folder / "watch.gdb"
        lines = ["set pagination off", "set confirm off", "set breakpoint pending off"]
        for word in words:
            lines += [f"awatch *(int*){word:#x}", "commands", "silent"]
            lines += [r'printf "ACCESS\n"', "backtrace 8", "continue", "end"]
        script.write_text("\n".join([*lines, r'printf "READY\n"', "continue", ""]))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["gdb", "-q", "-nx", "-p", str(pid), "-x", str(script)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while "READY" not in self._read():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"gdb did not get ready: {self._read()[-1000:]}")
            time.sleep(0.05)
        hardware = self._read().count("Hardware access (read/write) watchpoint")
        if hardware != len(words):
            sys.exit(f"only {hardware} of {len(words)} watchpoints are in hardware")
        self._seen = len(self._read())

    def _read(self) -> str:
        return self._log.read_text(errors="replace")

    def accesses(self) -> list[Access]:
        """Those since the last call."""
        time.sleep(1)  # gdb has answered the server's stop, but not written yet
        new, self._seen = self._read()[self._seen :], len(self._read())
        parts = new.split("ACCESS\n")[1:]
        name = re.compile(r"^#\d+\s+(?:0x[0-9a-f]+ in )?([\w.]+)", re.MULTILINE)
        return [tuple(name.findall(part)) for part in parts]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def show(what: str, accesses: list[Access]) -> None:
    print(f"\n{what}: {len(accesses)} accesses to {N_WORDS} words")
    for functions, n in collections.Counter(accesses).items():
        print(f"  {n} x {' < '.join(functions[:5])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt")
    n_tokens: int = parser.parse_args().tokens
    if shutil.which("gdb") is None:
        sys.exit("no gdb on PATH")
    model = synthetic.model_file()
    config = {"infer.trace-admission": "yes"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(model_dir=model.parent, config=config) as server,
        server.client(socket_timeout=None) as client,
    ):
        Infer(client).load(MODEL, model)
        tokens = [1000 + i % 7000 for i in range(n_tokens)]
        Infer(client).store_tokens(KEY, tokens)
        generate = ("INFER.GENERATE", MODEL, 1, KEY, "MAXTOKENS", 8)
        client.execute_command(*generate)
        pointer, line = logged_pointer(server)
        print(line)
        words = [pointer + 4 * int((n_tokens - 2) * i / (N_WORDS - 1)) for i in range(N_WORDS)]
        words = [word + -word % 4 for word in words]  # registers watch aligned words
        watch = Watch(client.info("server")["process_id"], words, Path(folder))
        try:
            client.execute_command(*generate, "NOCACHE")
            cold = watch.accesses()
            client.execute_command(*generate)
            known = watch.accesses()
            client.get(KEY)
            get = watch.accesses()
        finally:
            watch.close()
        assert logged_pointer(server)[0] == pointer, "the value moved meanwhile"
    show("INFER.GENERATE, prompt new", cold)
    show("INFER.GENERATE, prompt known", known)
    show("GET, for comparison", get)
    others = [access for access in cold + known if access[0] != APPEND]
    if others or not cold or not known or not get:
        sys.exit(f"\nnot only {APPEND} touched the prompt: {others}")
    print(f"\nnothing but {APPEND} touched the prompt where it lies in Redis")


if __name__ == "__main__":
    main()
