"""The result of a measurement as a page of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .measure import BESIDE, Result, median

_NAMES = {
    ("stream", "unix"): "A unix",
    ("stream", "tcp"): "A TCP",
    ("reply", "unix"): "A, reply",
    ("sidecar", "unix"): "B unix",
    ("sidecar", "tcp"): "B TCP",
    ("plain", "unix"): "B unix, FA off",
}
_INTRODUCTION = """\
**A**: `INFER.GENERATE` in Redis. **B**: the same keys fetched with pipelined GETs, sent as JSON to
a llama-server with the same model file and as many threads, over unix sockets or TCP for both hops.
Both stream their tokens; "A, reply" waits for the whole reply instead. B has flash attention, which
is llama-server's default, or "FA off": what is compared with A is the better of the two.
**Assembly** is all of the time to the first token that is not the model computing. **Cold**:
nothing of the prompt is known. **Known**: all but its last 16 tokens. Figures are medians; brackets
have the quartiles.
"""
_STATIONS = """\
## Where assembly goes

Known prompts over unix sockets, microseconds. "A: admit" and "A: queue" are INFER.GENERATE's
`admit_us` and `queue_us`. "B: llama-server" is what is left of the time to its first event without
the client's parts and `timings.prompt_ms`: reading, parsing, queueing, writing. B is the
faster one of both, with flash attention or without.

"""
_CLIENTS = """\
## Clients at once

Each asks again and again: {tokens:,} known tokens of its own and 16 new ones.

"""
_TOKENIZATION = """\
## Tokenization, which both ways leave out

What a client pays that sends text instead of tokens: Hugging Face's tokenizers in the client, or
the server's own (a request over TCP; the last column is one without text).

"""
_MEMORY = """\
## Resident memory

MB at the end of a phase (own + mapped from files, which is shared page cache). B needs a Redis
without a model as well.

"""
_AGREEMENT = """\
## Do both generate the same?

Of {prompts} prompts of {prompt_tokens} tokens {whole} gave the same {output_tokens} tokens both
ways; the first difference came after {same} tokens. (Greedy decoding of quantized weights: two
engines round differently, and a near tie then goes the other way.)
"""


def markdown(result: Result) -> str:
    """The whole page."""
    parts = ["# In Redis or beside it\n", _about(result), _INTRODUCTION]
    parts.append(_assembly("Assembly, by length of the context", result["context"]))
    parts.append(_stations(result["context"]))
    if "rag" in result:
        parts.append(_assembly("Assembly with retrieval first", result["rag"]))
    parts.append(_generation("Whole requests, synthetic model", result["context"], result))
    parts.append(_generation("Whole requests, real model", result["first_token"], result))
    parts.append(_clients(result["clients"]))
    parts.append(_tokenization(result["tokenization"]))
    parts.append(_memory(result["memory"]))
    parts.append(_agreement(result["agreement"]))
    return "\n".join(parts)


def about_line(result: Result) -> str:
    """Machine and versions on one line, as it stands on the plots too."""
    machine, versions, options = result["machine"], result["versions"], result["options"]
    return (
        f"{machine['processors']} processors of {machine['cpu']}, {options['threads']} threads; "
        f"Redis {versions['redis']}, redis-infer {versions['redis_infer']} "
        f"(module {versions['module_sha256']}, {versions['kernels']}), "
        f"llama-server {versions['llama_server']} ({versions['llama_server_sha256']}); "
        f"{result['date']}"
    )


def _about(result: Result) -> str:
    options = result["options"]
    return (
        f"{about_line(result)}.\n\n"
        f"{options['runs']} runs of each case"
        + (
            f", fewer where {options['budget_s']:g} seconds for all of them were over"
            if options["budget_s"] is not None
            else ""
        )
        + f' (the column "runs" says how many). Took {result["seconds"]} s; load average before: '
        f"{result['machine']['load_before'][0]}. llama-server ran with "
        + ", ".join(f"`{o}`" for o in options["llama_server"])
        + (f"; {result['note']}" if result.get("note") else "")
        + ".\n"
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _figure(value: float) -> str:
    """Three digits are what such a measurement has."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _with_spread(row: Result, name: str, unit: float = 1.0) -> str:
    if name not in row:
        return ""
    m = row[name]
    return f"{_figure(m['median'] / unit)} [{_figure(m['q1'] / unit)} to {_figure(m['q3'] / unit)}]"


def _groups(rows: Iterable[Result], *by: str) -> list[tuple[tuple[Any, ...], list[Result]]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return list(groups.items())


def _way(rows: Iterable[Result], way: str, transport: str = "unix") -> Result | None:
    return next((r for r in rows if (r["way"], r["transport"]) == (way, transport)), None)


def _ratio(rows: Sequence[Result], name: str, *, more_is_better: bool = False) -> str:
    """How much better A is than the better B, over unix sockets."""
    a = _way(rows, "stream")
    found = [_way(rows, way) for way in BESIDE]
    medians = [value for row in found if row and (value := median(row, name))]
    mine = median(a, name) if a else None
    if not mine or not medians:
        return ""
    return f"{mine / max(medians) if more_is_better else min(medians) / mine:.2f}x"


def _assembly(title: str, rows: list[Result]) -> str:
    ways = list(dict.fromkeys((row["way"], row["transport"]) for row in rows))
    table = []
    for (tokens, keys, state), group in _groups(rows, "tokens", "keys", "state"):
        by_way = {(row["way"], row["transport"]): row for row in group}
        cells = [_with_spread(by_way[way], "assembly_us") for way in ways]
        runs = str(min(row["runs"] for row in group))
        table.append([f"{tokens:,}", str(keys), state, *cells, _ratio(group, "assembly_us"), runs])
    headings = ["tokens", "keys", "prompt", *(_NAMES[way] for way in ways), "B/A", "runs"]
    return f"## {title}\n\nMicroseconds; B/A over unix sockets.\n\n{_table(headings, table)}"


def _stations(rows: list[Result]) -> str:
    """Where the time goes, of requests over unix sockets whose prompt is known."""
    table = []
    for (tokens, keys), group in _groups(
        [r for r in rows if r["state"] == "known"], "tokens", "keys"
    ):
        a = _way(group, "reply")
        beside = [row for way in BESIDE if (row := _way(group, way))]
        assert a is not None and beside
        b = min(beside, key=lambda row: median(row, "assembly_us") or 0.0)
        admit, queue = median(a, "admit_us") or 0.0, median(a, "queue_us") or 0.0
        rest = (median(a, "assembly_us") or 0.0) - admit - queue
        names = ("get_us", "build_us", "send_us", "server_us")
        cells = [_figure(median(b, name) or 0.0) for name in names]
        size = f"{(median(b, 'body_bytes') or 0.0) / 1000:.1f}"
        table.append(
            [f"{tokens:,}", str(keys), _figure(admit), _figure(queue), _figure(rest), *cells, size]
        )
    headings = [
        *("tokens", "keys", "A: admit", "A: queue", "A: client and reply"),
        *("B: GETs", "B: JSON", "B: send", "B: llama-server", "B: body, kB"),
    ]
    return _STATIONS + _table(headings, table)


def _generation(title: str, rows: list[Result], result: Result) -> str:
    table = []
    shown = [r for r in rows if r["transport"] == "unix" and r["way"] != "reply"]
    for (tokens, state), group in _groups(shown, "tokens", "state"):
        for row in group:
            last = row is group[-1]
            table.append(
                [
                    f"{tokens:,}",
                    state,
                    row["side"] + (", FA off" if row["way"] == "plain" else ""),
                    _with_spread(row, "first_us", 1000),
                    _ratio(group, "first_us") if last else "",
                    _with_spread(row, "tokens_per_s"),
                    _ratio(group, "tokens_per_s", more_is_better=True) if last else "",
                    _with_spread(row, "total_us", 1000),
                    _ratio(group, "total_us") if last else "",
                    _figure((median(row, "cpu_us") or 0) / 1e6),
                    str(row["runs"]),
                ]
            )
    n = result["options"]["output_tokens"]
    headings = [
        *("tokens", "prompt", "", "first token, ms", "A faster by", "tokens/s", "A faster by"),
        *(f"{n} tokens, ms", "A faster by", "CPU, s", "runs"),
    ]
    which = "context" if rows is result["context"] else "other"
    return (
        f"## {title}\n\n`{result['options']['models'][which]}`, over unix sockets. "
        "CPU: of Redis, llama-server and the client together, for one request.\n\n"
        + _table(headings, table)
    )


def _clients(rows: list[Result]) -> str:
    table = []
    for (n,), group in _groups(rows, "clients"):
        for row in group:

            def points(name: str, row: Result = row) -> str:
                m = row[name]
                return " / ".join(_figure(m[p] / 1000) for p in ("median", "p95", "p99"))

            table.append(
                [
                    str(n),
                    _NAMES[row["way"], row["transport"]],
                    _with_spread(row, "all_tokens_per_s"),
                    points("first_us") if "first_us" in row else "",
                    points("total_us"),
                    _figure((median(row, "cpu_us") or 0) / 1e6),
                    str(row["runs"]),
                ]
            )
    headings = [
        *("clients", "", "tokens/s of all", "first token, ms: p50 / p95 / p99"),
        *("64 tokens, ms: p50 / p95 / p99", "CPU a request, s", "requests"),
    ]
    return _CLIENTS.format(tokens=rows[0]["tokens"]) + _table(headings, table)


def _tokenization(rows: list[Result]) -> str:
    headings = ["tokens", "text, kB", "tokenizers, ms", "llama-server /tokenize, ms", "of it empty"]
    table = [
        [
            f"{row['tokens']:,}",
            f"{row['bytes'] / 1000:.1f}",
            _with_spread(row, "tokenizers_us", 1000),
            _with_spread(row, "llama_server_us", 1000),
            _figure(row["llama_server_empty_us"]["median"] / 1000),
        ]
        for row in rows
    ]
    return _TOKENIZATION + _table(headings, table)


def _memory(memory: Result) -> str:
    def mb(what: Result) -> str:
        mapped, own = what["file_bytes"] / 1e6, what["anonymous_bytes"] / 1e6
        return f"{what['rss_bytes'] / 1e6:,.0f} ({own:,.0f} + {mapped:,.0f})"

    table = [
        [
            phase,
            f"{m['redis_without_model_bytes'] / 1e6:,.0f}",
            mb(m["redis_with_model"]),
            mb(m["llama_server"]),
            mb(m["llama_server_plain"]),
            mb(m["client"]),
        ]
        for phase, m in memory.items()
    ]
    headings = ["", "Redis without a model", "A: Redis", "B: llama-server", "B, FA off", "client"]
    return _MEMORY + _table(headings, table)


def _agreement(a: Result) -> str:
    same = a["same_tokens_before_the_first_difference"]
    whole = sum(n == a["output_tokens"] for n in same)
    return _AGREEMENT.format(**a | {"whole": whole, "same": ", ".join(map(str, same))})
