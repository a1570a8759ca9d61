"""What is run, in which order, and what becomes of it.

Every case is run both ways from the same keys, in turns, and the order of the turns rotates: what
disturbs the machine meanwhile disturbs both. The result is plain data, as the JSON file has it.

Assembly is everything between the client's decision to ask and its first token that is not the
model computing: the time until the first token is in the client's hands, less the time that the
server says its model took for it. For INFER.GENERATE that is ``first_token_us - queue_us``, for
llama-server ``timings.prompt_ms``. The two differ: llama-server's has the search for the known
prefix in it, which is to its favour. Both have the sampling of the first token in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import http.client
import itertools
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis

from .. import Infer, ModelInfo, __version__
from ..server import Server
from ..tokenizer import Tokenizer
from . import peers, synthetic
from .client import Client, Job, Turn

Result = dict[str, Any]
Say = Callable[[str], None]

Way = tuple[str, str]
"""How it is asked (``stream``, ``reply``, ``sidecar``, ``plain``), over ``unix`` or ``tcp``."""

WAYS: tuple[Way, ...] = (
    ("stream", "unix"),
    ("stream", "tcp"),
    ("reply", "unix"),
    ("sidecar", "unix"),
    ("sidecar", "tcp"),
    ("plain", "unix"),
)
"""In Redis (A) token by token or with the reply at the end, and beside it (B) with flash attention,
which is llama-server's default, or without: neither is the faster one everywhere."""
STREAMING = tuple(way for way in WAYS if way[0] != "reply")
BESIDE = ("sidecar", "plain")

TAIL_TOKENS = 16
"""New at the end of a prompt whose beginning is known."""
SETTLE_S = 0.02
"""Between two requests: llama-server's threads spin for some milliseconds after their last work."""
MIN_ROUNDS = 3
TEXT_BYTES = 300_000
MAX_BUSY = 0.3
"""Load average for a processor; above it figures are those of the neighbours."""
MODEL = "m"
HITS, CHUNK_TOKENS, DIMENSIONS = 16, 256, 384


@dataclass(frozen=True)
class Plan:
    runs: int = 20
    budget_s: float | None = None
    """For all measuring; a case that is out of time ends with fewer runs. None: no limit."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    output: int = 64
    contexts: tuple[tuple[int, int], ...] = (
        (256, 1),
        (1024, 4),
        (4096, 16),
        (10240, 40),
        (32768, 64),
    )
    """Tokens and keys of a prompt, for the synthetic model."""
    model_contexts: tuple[tuple[int, int], ...] = ((256, 1), (1024, 4), (4096, 16))
    """The same for the real model."""
    clients: tuple[int, ...] = (1, 4, 16)
    client_context: int = 1024
    client_keys: int = 4
    vectors: int = 5000
    tokenized: tuple[int, ...] = (256, 1024, 4096, 10240, 32768)


@dataclass
class Clock:
    """Divides the time that is left among the cases that are left, weighted."""

    budget_s: float | None
    weights: float
    spent_s: float = 0.0

    def share(self, weight: float) -> float:
        """Seconds for a case; cheap ones leave time for those after them."""
        if self.budget_s is None:
            return float("inf")
        return max(0.0, self.budget_s - self.spent_s) * weight / self.weights

    @contextlib.contextmanager
    def case(self, weight: float) -> Iterator[float]:
        share, began = self.share(weight), time.monotonic()
        yield began + share
        self.spent_s += time.monotonic() - began
        self.weights -= weight


# ---- the servers of both ways ----


@dataclass
class Pair:
    """Redis with the module, llama-server with the same model and threads, and the client."""

    redis: redis.Redis
    server: Server
    llama: peers.LlamaServer
    plain: peers.LlamaServer
    client: Client
    plain_client: Client
    redis_pid: int
    redis_rss_before: int
    info: Result

    def run(self, jobs: Sequence[Job]) -> Turn:
        """Jobs of one way."""
        if jobs[0].way != "plain":
            return self.client.run(jobs)
        return self.plain_client.run([dataclasses.replace(job, way="sidecar") for job in jobs])

    def options(self) -> list[str]:
        return [" ".join(llama.options) for llama in (self.llama, self.plain)]

    def memory(self) -> Result:
        return {
            "redis_without_model_bytes": self.redis_rss_before,
            "redis_with_model": _memory(self.redis_pid),
            "llama_server": _memory(self.llama.pid),
            "llama_server_plain": _memory(self.plain.pid),
            "client": _memory(self.client.pid),
        }


@contextlib.contextmanager
def _pair(
    llama_server: Path, program: Path, model: Path, threads: int, slots: int, context: int
) -> Iterator[Pair]:
    with (
        Server(model_dir=model.parent, threads=threads) as server,
        server.client(socket_timeout=None) as connection,
    ):
        pid = int(connection.info("server")["process_id"])
        before = _memory(pid)["rss_bytes"]
        info = _load(Infer(connection), model, slots, context)
        with contextlib.ExitStack() as stack:

            def beside(flash_attention: bool) -> tuple[peers.LlamaServer, Client]:
                llama = peers.LlamaServer(
                    llama_server,
                    model,
                    threads=threads,
                    slots=slots,
                    context=context,
                    flash_attention=flash_attention,
                )
                stack.enter_context(llama)
                arguments = [
                    *("--model", MODEL),
                    *("--redis-unix", str(server.unix_socket)),
                    *("--redis-tcp", f"127.0.0.1:{server.port}"),
                    *("--llama-unix", str(llama.unix_socket)),
                    *("--llama-tcp", f"127.0.0.1:{llama.port}"),
                    *("--process", str(pid), "--process", str(llama.pid)),
                ]
                return llama, stack.enter_context(Client(program, arguments))

            llama, client = beside(flash_attention=True)
            plain, plain_client = beside(flash_attention=False)
            yield Pair(
                connection, server, llama, plain, client, plain_client, pid, before, dict(info)
            )


def _load(infer: Infer, model: Path, slots: int, context: int) -> ModelInfo:
    """With room for what llama-server's slots hold, so that both know the same prompts.

    Twice that: of what was found once, no more than half of the cache stays.
    """
    info = infer.load(MODEL, model)
    pages = 2 * slots * -(-context // info["kv_page_tokens"])
    if pages <= info["kv_pages"]:
        return info
    infer.unload(MODEL)
    page_bytes = info["kv_bytes"] // info["kv_pages"]
    return infer.load(MODEL, model, kv_memory=pages * page_bytes)


def _memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process: all, and its own without what is mapped from files."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"^(VmRSS|RssAnon|RssFile|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return {
        "rss_bytes": int(found["VmRSS"]) * 1024,
        "anonymous_bytes": int(found["RssAnon"]) * 1024,
        "file_bytes": int(found["RssFile"]) * 1024,
    }


# ---- prompts ----


class Prompts:
    """Token keys of one length, whose beginning or end is made new before a request."""

    def __init__(
        self, pair: Pair, tokens: Sequence[int], n_keys: int, name: str, seed: int
    ) -> None:
        self._redis = pair.redis
        self._rng = random.Random(seed)
        self._vocabulary = int(pair.info["vocabulary"])
        self._tokens = np.asarray(tokens, "<u4")
        bounds = np.linspace(0, len(tokens), n_keys + 1).astype(int)
        self._parts = list(itertools.pairwise(bounds))
        self.keys = tuple(f"{name}:{i}" for i in range(n_keys))
        for i in range(n_keys):
            self._store(i)

    def _store(self, i: int) -> None:
        begin, end = self._parts[i]
        self._redis.set(self.keys[i], self._tokens[begin:end].tobytes())

    def _new(self, n: int) -> list[int]:
        # Past the first ids, which are special tokens and single bytes in many vocabularies.
        return [self._rng.randrange(self._vocabulary // 8, self._vocabulary) for _ in range(n)]

    def cold(self) -> None:
        """Nothing of the prompt is known any more: its first tokens are new."""
        self._tokens[:2] = self._new(2)
        self._store(0)

    def known(self) -> None:
        """All but the last tokens are as they were."""
        self._tokens[-TAIL_TOKENS:] = self._new(TAIL_TOKENS)
        self._store(len(self.keys) - 1)


def _random_tokens(pair: Pair, n: int, seed: int) -> list[int]:
    vocabulary = int(pair.info["vocabulary"])
    rng = random.Random(seed)
    return [rng.randrange(vocabulary // 8, vocabulary) for _ in range(n)]


# ---- what a request gave ----


def derived(request: Result, cpu_us: Sequence[float]) -> Result:
    """The figures of a request that count, from what the client printed."""
    figures = {
        "assembly_us": request.get("first_us", request["total_us"]) - request["model_us"],
        "total_us": request["total_us"],
        "cpu_us": sum(cpu_us),
        "cpu_redis_us": cpu_us[0],
        "cpu_llama_us": cpu_us[1],
        "cpu_client_us": cpu_us[2],
    }
    if "first_us" in request:
        figures["first_us"] = request["first_us"]
        n = len(request["tokens"])
        if n > 1 and request["total_us"] > request["first_us"]:
            span_us = request["total_us"] - request["first_us"]
            figures["tokens_per_s"] = (n - 1) / span_us * 1e6
    names = ("search_us", "get_us", "build_us", "send_us", "admit_us", "queue_us", "model_us")
    figures |= {name: request[name] for name in names if name in request}
    if request["way"] == "sidecar":
        client = sum(request.get(name, 0.0) for name in names[:4])
        figures["client_us"] = client
        figures["server_us"] = figures["assembly_us"] - client
    counts = ("prompt_tokens", "cached_tokens", "body_bytes")
    return figures | {name: request[name] for name in counts if name in request}


def summary(values: Sequence[float], *, keep: bool = False) -> Result:
    """Median and quartiles; with ``keep`` the values in the order they were measured."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return float(np.quantile(ordered, share))

    result: Result = {"median": at(0.5), "q1": at(0.25), "q3": at(0.75)}
    result |= {"p95": at(0.95), "p99": at(0.99), "min": ordered[0], "max": ordered[-1]}
    result = {name: _rounded(value) for name, value in result.items()}
    if keep:
        result["values"] = [_rounded(value) for value in values]
    return result


def _rounded(value: float) -> float:
    """To a tenth, or from 1000 on to a whole number: more is not in a measurement."""
    return round(value) if abs(value) >= 1000 else round(value, 1)


_KEPT = ("assembly_us", "first_us")


def _row(what: Result, way: Way, runs: list[Result]) -> Result:
    names = dict.fromkeys(name for run in runs for name in run)
    metrics = {
        name: summary([run[name] for run in runs if name in run], keep=name in _KEPT)
        for name in names
    }
    side = "B" if way[0] in BESIDE else "A"
    return what | {
        "side": side,
        "way": way[0],
        "transport": way[1],
        "runs": len(runs),
        **metrics,
    }


def _output(plan: Plan, transport: str) -> int:
    """Tokens to generate: over TCP only the way to the first one counts."""
    return plan.output if transport == "unix" else 2


def _in_turns(
    ways: Sequence[Way], plan: Plan, deadline: float, once: Callable[[str, str], Result]
) -> dict[Way, list[Result]]:
    """Rounds in which each way has a turn, until there are enough or the time is over.

    There are three at least, unless they take more than three times as long as there is.
    """
    runs: dict[Way, list[Result]] = {way: [] for way in ways}
    began = time.monotonic()
    for i in range(plan.runs):
        late = time.monotonic() - deadline
        if late > 0 and (i >= MIN_ROUNDS or (i > 0 and late > 2 * (deadline - began))):
            break
        for k in range(len(ways)):
            way = ways[(i + k) % len(ways)]
            time.sleep(SETTLE_S)
            runs[way].append(once(*way))
    return runs


# ---- phases ----


def _contexts(
    pair: Pair,
    plan: Plan,
    clock: Clock,
    say: Say,
    contexts: Iterable[tuple[int, int]],
    ways: Sequence[Way],
    tokens_for: Callable[[int], Sequence[int]],
) -> list[Result]:
    rows = []
    for n_tokens, n_keys in contexts:
        prompts = Prompts(pair, tokens_for(n_tokens), n_keys, f"context:{n_tokens}", n_tokens)
        for state in ("known", "cold"):
            renew = prompts.cold if state == "cold" else prompts.known
            if state == "known":
                for way in ways:  # the prefix gets known
                    pair.run([Job(*way, 1, prompts.keys)])

            def once(
                way: str,
                transport: str,
                renew: Callable[[], None] = renew,
                keys: tuple[str, ...] = prompts.keys,
            ) -> Result:
                renew()
                turn = pair.run([Job(way, transport, _output(plan, transport), keys)])
                return derived(turn.requests[0], turn.cpu_us)

            with clock.case(_weight(n_tokens, state)) as deadline:
                runs = _in_turns(ways, plan, deadline, once)
            what = {"tokens": n_tokens, "keys": n_keys, "state": state}
            rows += [_row(what, way, runs[way]) for way in ways]
            say(f"{n_tokens} tokens in {n_keys} keys, {state}: {len(runs[ways[0]])} runs")
    return rows


def _weight(n_tokens: int, state: str) -> float:
    """Roughly what a case costs: a cold prompt has to be computed."""
    return 1.0 + (n_tokens / 2048 if state == "cold" else n_tokens / 8192)


def _weights(contexts: Iterable[tuple[int, int]]) -> float:
    return sum(_weight(n, state) for n, _ in contexts for state in ("known", "cold"))


def _rag(pair: Pair, plan: Plan, clock: Clock, say: Say) -> list[Result]:
    """Search and generation: INFER.RAG, and VSIM with attributes before the GETs."""
    rng = np.random.default_rng(0)
    vocabulary = int(pair.info["vocabulary"])
    with pair.redis.pipeline(transaction=False) as pipeline:
        for i in range(plan.vectors):
            vector = rng.standard_normal(DIMENSIONS).astype("<f4").tobytes()
            attributes = json.dumps({"path": f"file{i}.py", "n": i, "tokens": f"chunk:{i}"})
            chunk = rng.integers(vocabulary // 8, vocabulary, CHUNK_TOKENS).astype("<u4")
            pipeline.set(f"chunk:{i}", chunk.tobytes())
            pipeline.execute_command(  # type: ignore[no-untyped-call]
                "VADD", "vectors", "FP32", vector, f"element{i}", "SETATTR", attributes
            )
            if i % 500 == 499:
                pipeline.execute()
        pipeline.execute()

    def ask(*, query: bool, before: bool) -> None:
        if query:
            pair.redis.set("query", rng.standard_normal(DIMENSIONS).astype("<f4").tobytes())
        if before:
            fresh = rng.integers(vocabulary // 8, vocabulary, TAIL_TOKENS).astype("<u4")
            pair.redis.set("before", fresh.tobytes())
        fresh = rng.integers(vocabulary // 8, vocabulary, TAIL_TOKENS).astype("<u4")
        pair.redis.set("after", fresh.tobytes())

    rows = []
    rag = ("vectors", "query", HITS, "before", "after")
    for state in ("known", "cold"):
        cold = state == "cold"
        ask(query=True, before=True)
        for way in STREAMING:
            pair.run([Job(*way, 1, rag=rag)])

        def once(way: str, transport: str, cold: bool = cold) -> Result:
            ask(query=cold, before=cold)
            turn = pair.run([Job(way, transport, _output(plan, transport), rag=rag)])
            return derived(turn.requests[0], turn.cpu_us)

        with clock.case(_weight(HITS * CHUNK_TOKENS, state)) as deadline:
            runs = _in_turns(STREAMING, plan, deadline, once)
        what = {"tokens": HITS * CHUNK_TOKENS + 2 * TAIL_TOKENS, "keys": HITS + 2, "state": state}
        rows += [_row(what, way, runs[way]) for way in STREAMING]
        say(f"retrieval of {HITS} chunks, {state}: {len(runs[STREAMING[0]])} runs")
    return rows


def _clients(pair: Pair, plan: Plan, clock: Clock, say: Say) -> list[Result]:
    """Clients at once: each asks again and again about a context of its own that is known."""
    ways = [way for way in WAYS if way[1] == "unix"]
    most = max(plan.clients)
    prompts = [
        Prompts(
            pair,
            _random_tokens(pair, plan.client_context, 1000 + i),
            plan.client_keys,
            f"client:{i}",
            i,
        )
        for i in range(most)
    ]
    rng = random.Random(5)
    rows = []
    for n in plan.clients:
        # The requests of the case before may have driven out the contexts of who did not ask.
        for way in ways:
            pair.run([Job(*way, 1, p.keys, client=i) for i, p in enumerate(prompts[:n])])
        with clock.case(float(n)) as deadline:
            rows += _at_once(pair, plan, deadline, ways, prompts[:n], rng)
        say(f"{n} clients: {rows[-1]['runs']} requests each way")
    return rows


def _at_once(
    pair: Pair,
    plan: Plan,
    deadline: float,
    ways: Sequence[Way],
    prompts: Sequence[Prompts],
    rng: random.Random,
) -> list[Result]:
    n = len(prompts)
    each = 4 if n == 1 else max(1, 4 // n)  # requests of a client in a turn
    vocabulary = int(pair.info["vocabulary"])
    speeds: dict[Way, list[float]] = {way: [] for way in ways}
    requests: dict[Way, list[Result]] = {way: [] for way in ways}

    def once(way: str, transport: str) -> Result:
        jobs = []
        for i in range(n):
            for k in range(each):
                question = f"question:{i}:{k}"
                ids = [rng.randrange(vocabulary // 8, vocabulary) for _ in range(TAIL_TOKENS)]
                pair.redis.set(question, np.asarray(ids, "<u4").tobytes())
                keys = (*prompts[i].keys, question)
                jobs.append(Job(way, transport, plan.output, keys, client=i))
        turn = pair.run(jobs)
        cpu = [us / len(jobs) for us in turn.cpu_us]
        requests[way, transport] += [derived(request, cpu) for request in turn.requests]
        made = sum(len(request["tokens"]) for request in turn.requests)
        speeds[way, transport].append(made / turn.wall_us * 1e6)
        return {}

    _in_turns(ways, plan, deadline, once)
    rows = []
    for way in ways:
        row = _row({"clients": n, "tokens": plan.client_context}, way, requests[way])
        row.pop("tokens_per_s", None)  # of one request in a batch: no speed of its own
        row["all_tokens_per_s"] = summary(speeds[way], keep=True)
        rows.append(row)
    return rows


def _agreement(pair: Pair, plan: Plan, ids: Sequence[int]) -> Result:
    """The same prompts both ways: how many tokens of the greedy continuations agree."""
    same = []
    n_prompts, n_tokens = 8, 200
    for i in range(n_prompts):
        tokens = np.asarray(ids[i * n_tokens : (i + 1) * n_tokens], "<u4")
        pair.redis.set("agreement", tokens.tobytes())
        made = [
            pair.run([Job(way, "unix", plan.output, ("agreement",))]).requests[0]["tokens"]
            for way in ("reply", "sidecar")
        ]
        pairs = zip(*made, strict=False)
        same.append(next((k for k, (a, b) in enumerate(pairs) if a != b), plan.output))
    return {
        "prompts": n_prompts,
        "prompt_tokens": n_tokens,
        "output_tokens": plan.output,
        "same_tokens_before_the_first_difference": same,
    }


def _tokenization(pair: Pair, plan: Plan, tokenizer: Tokenizer, ids: Sequence[int]) -> list[Result]:
    """What turning text into tokens costs, which neither way pays here: prompts are tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", pair.llama.port)

    def llama(body: bytes) -> float:
        began = time.perf_counter()
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        return (time.perf_counter() - began) * 1e6

    rows = []
    empty = json.dumps({"content": ""}).encode()
    for n in plan.tokenized:
        text = tokenizer.decode(ids[:n])
        body = json.dumps({"content": text}).encode()
        library, server, idle = [], [], []
        for _ in range(plan.runs):
            began = time.perf_counter()
            made = len(tokenizer.encode(text))
            library.append((time.perf_counter() - began) * 1e6)
            server.append(llama(body))
            idle.append(llama(empty))
        rows.append(
            {
                "tokens": made,
                "bytes": len(text.encode()),
                "runs": plan.runs,
                "tokenizers_us": summary(library),
                "llama_server_us": summary(server),
                "llama_server_empty_us": summary(idle),
            }
        )
    connection.close()
    return rows


# ---- all of it ----

_SHARES = {"context": 0.47, "rag": 0.08, "first_token": 0.25, "clients": 0.2}


def run(llama_server: Path, program: Path, model: Path, plan: Plan, say: Say) -> Result:
    """Measures everything. ``model`` is the real model, of at least 8k tokens of context."""
    began = time.monotonic()

    def clock(phase: str, weights: float) -> Clock:
        share = None if plan.budget_s is None else plan.budget_s * _SHARES[phase]
        return Clock(share, weights)

    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if busy > MAX_BUSY:
        say(f"other processes keep {busy:.0%} of the processors busy: wait until they have ended")
    small = synthetic.model_file()
    result: Result = {"date": datetime.date.today().isoformat(), "machine": machine()}
    longest = max(HITS * CHUNK_TOKENS + 2 * TAIL_TOKENS, *(n for n, _ in plan.contexts))
    with _pair(llama_server, program, small, plan.threads, 1, longest + 2 * plan.output) as pair:
        info = pair.redis.info("server")
        result["versions"] = {
            "redis": info["redis_version"],
            "redis_infer": __version__,
            "module_sha256": hashlib.sha256(pair.server.module.read_bytes()).hexdigest()[:12],
            "kernels": pair.info["kernels"],
            "llama_server": peers.version(llama_server),
            "llama_server_sha256": hashlib.sha256(llama_server.read_bytes()).hexdigest()[:12],
        }
        result["options"] = {
            "runs": plan.runs,
            "budget_s": plan.budget_s,
            "threads": plan.threads,
            "output_tokens": plan.output,
            "models": {"context": small.name, "rag": small.name, "other": model.name},
            "llama_server": pair.options(),
        }
        say(f"with {small.name}")
        result["context"] = _contexts(
            pair,
            plan,
            clock("context", _weights(plan.contexts)),
            say,
            plan.contexts,
            WAYS,
            lambda n: _random_tokens(pair, n, n),
        )
        if _has_vector_sets(pair.redis):
            weights = sum(_weight(HITS * CHUNK_TOKENS, state) for state in ("known", "cold"))
            result["rag"] = _rag(pair, plan, clock("rag", weights), say)
        else:
            say("no retrieval: VSIM with attributes needs Redis 8.2 or newer")
        result["memory"] = {"synthetic": pair.memory()}

    tokenizer = Tokenizer.from_gguf(model)
    ids = tokenizer.encode(synthetic.text(TEXT_BYTES)).tolist()
    say(f"with {model.name}")
    longest = max(n for n, _ in plan.model_contexts)
    with _pair(llama_server, program, model, plan.threads, 1, longest + 2 * plan.output) as pair:
        result["options"]["llama_server"] += pair.options()
        result["agreement"] = _agreement(pair, plan, ids)
        result["tokenization"] = _tokenization(pair, plan, tokenizer, ids)
        result["first_token"] = _contexts(
            pair,
            plan,
            clock("first_token", _weights(plan.model_contexts)),
            say,
            plan.model_contexts,
            [way for way in STREAMING if way[1] == "unix"],
            lambda n: ids[:n],
        )
        result["memory"]["one client"] = pair.memory()
    context = plan.client_context + TAIL_TOKENS + 2 * plan.output
    context += -context % 256
    slots = max(plan.clients)
    with _pair(llama_server, program, model, plan.threads, slots, context) as pair:
        result["options"]["llama_server"] += pair.options()
        weights = float(sum(plan.clients))
        result["clients"] = _clients(pair, plan, clock("clients", weights), say)
        result["memory"]["clients"] = pair.memory()
    result["seconds"] = round(time.monotonic() - began)
    return result


def _has_vector_sets(connection: redis.Redis) -> bool:
    major, minor = map(int, connection.info("server")["redis_version"].split(".")[:2])
    return (major, minor) >= (8, 2)


def machine() -> Result:
    """What it was measured on; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "processors": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def median(row: Result, name: str) -> float | None:
    """A metric's median, or None where the way has no such thing."""
    return float(row[name]["median"]) if name in row else None


__all__ = ["Plan", "Result", "derived", "machine", "median", "run", "summary"]
