"""The result of a measurement as pictures: PNG and SVG. Needs matplotlib (the extra ``bench``)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import BenchError
from .measure import Result
from .report import about_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_A, _B, _PLAIN = "#c2410c", "#1d4ed8", "#0891b2"
_SIDES = (
    ("stream", _A, "A in Redis"),
    ("sidecar", _B, "B beside"),
    ("plain", _PLAIN, "B, no flash attention"),
)
_PNG_DPI = 110
_PNG_COLOURS = 96

Style = dict[str, Any]


def check() -> None:
    """Raises:
    BenchError: there is no matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError(
            "plots need matplotlib: pip install 'redis-infer[bench]', or --no-plots"
        ) from error


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the plots; their files."""
    check()
    import matplotlib

    # Text stays text in SVG (small, searchable), and equal data gives equal files.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "redis-infer", "font.size": 10}
    files = []
    with matplotlib.rc_context(settings):
        figures = {
            "assembly": _assembly(result),
            "first_token": _first_token(result),
            "clients": _clients(result),
        }
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                if kind == "svg":
                    figure.savefig(path, metadata={"Date": None})
                else:
                    _save_png(figure, path)
                files.append(path)
    return files


def _save_png(figure: Figure, path: Path) -> None:
    """With a palette: a third of the size, and nothing that one could see."""
    from PIL import Image  # matplotlib's own dependency

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_PNG_DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_PNG_COLOURS).save(path, optimize=True)


def _figure(result: Result, title: str, *, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Two pairs of axes under a title, above a line that says what it was measured on."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(rect=(0, 0.085, 1, 0.75))
    figure = Figure(figsize=(9.6, 5.0), layout=layout)
    axes = figure.subplots(1, 2, sharey=share_y).tolist()
    figure.text(0.5, 0.985, title, fontsize=12, fontweight="bold", ha="center", va="top")
    note = "\n".join(textwrap.wrap(about_line(result), 175))
    figure.text(0.01, 0.012, note, fontsize=6.5, color="0.35", va="bottom")
    return figure, axes


def _points(
    rows: Sequence[Result], x: str, metric: str, unit: float, **where: str
) -> tuple[list[float], list[float], list[list[float]]]:
    """Abscissas, medians, and how far the quartiles are below and above them."""
    chosen = [r for r in rows if all(r[k] == v for k, v in where.items()) and metric in r]
    medians = [r[metric]["median"] / unit for r in chosen]
    below = [(r[metric]["median"] - r[metric]["q1"]) / unit for r in chosen]
    above = [(r[metric]["q3"] - r[metric]["median"]) / unit for r in chosen]
    return [r[x] for r in chosen], medians, [below, above]


def _line(
    axes: Axes, rows: Sequence[Result], metric: str, unit: float, style: Style, **where: str
) -> None:
    x, y, spread = _points(rows, "tokens", metric, unit, **where)
    if x:
        axes.errorbar(x, y, yerr=spread, capsize=2.5, markersize=4.5, linewidth=1.6, **style)


def _log_axes(axes: Axes, rows: Sequence[Result], unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({r["tokens"] for r in rows})
    labels = [f"{t // 1024}k" if t >= 1024 else str(t) for t in ticks]
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(unit)
    axes.grid(True, which="major", color="0.9")
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above all axes, where no line can cross it."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.945), ncols=3, frameon=False
    )
    legend.set_in_layout(False)  # its place is kept free by the layout's rectangle


def _assembly(result: Result) -> Figure:
    figure, panels = _figure(
        result, "Context assembly: time to first token without the model", share_y=True
    )
    lines: tuple[tuple[str, str, Style], ...] = (
        ("sidecar", "tcp", {"color": _B, "marker": "s", "ls": "--", "label": "B beside, TCP"}),
        ("sidecar", "unix", {"color": _B, "marker": "o", "label": "B beside, unix sockets"}),
        ("plain", "unix", {"color": _PLAIN, "marker": "^", "label": "B, no flash attention"}),
        ("stream", "tcp", {"color": _A, "marker": "s", "ls": "--", "label": "A in Redis, TCP"}),
        ("stream", "unix", {"color": _A, "marker": "o", "label": "A in Redis, unix socket"}),
    )
    rows = result["context"]
    for axes, state in zip(panels, ("known", "cold"), strict=True):
        chosen = [r for r in rows if r["state"] == state]
        for way, transport, style in lines:
            _line(axes, chosen, "assembly_us", 1000.0, style, way=way, transport=transport)
        _log_axes(axes, chosen, "milliseconds (median, quartiles)")
        axes.set_title("prompt known but for 16 tokens" if state == "known" else "prompt new")
    panels[1].set_ylabel("")
    _legend(figure, panels[0])
    return figure


def _first_token(result: Result) -> Figure:
    figure, panels = _figure(result, "Time to the first token, in the client's hands")
    models = result["options"]["models"]
    for axes, key, which in zip(
        panels, ("first_token", "context"), ("other", "context"), strict=True
    ):
        rows = [r for r in result[key] if r["transport"] == "unix" and r["way"] != "reply"]
        for way, colour, name in _SIDES:
            for state, marker, dash in (("cold", "o", "-"), ("known", "D", ":")):
                style = {"color": colour, "marker": marker, "ls": dash, "label": f"{name}, {state}"}
                _line(axes, rows, "first_us", 1000.0, style, way=way, state=state)
        _log_axes(axes, rows, "milliseconds (median, quartiles)")
        axes.set_title(models[which].removesuffix(".gguf"))
    panels[1].set_ylabel("")
    _legend(figure, panels[0])
    return figure


def _clients(result: Result) -> Figure:
    figure, (left, right) = _figure(result, "Clients at once, each with a known context of its own")
    rows = result["clients"]
    counts = sorted({r["clients"] for r in rows})
    width = 0.27
    for i, (way, colour, name) in enumerate(_SIDES):
        offset = (i - 1) * width
        _, y, spread = _points(rows, "clients", "all_tokens_per_s", 1.0, way=way)
        at = [place + offset for place in range(len(y))]
        bars = left.bar(at, y, width, yerr=spread, capsize=3, color=colour, label=name)
        left.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        chosen = [r["first_us"] for r in rows if r["way"] == way]
        right.bar(at, [m["median"] / 1000 for m in chosen], width, color=colour, label=name)
        for x, m in zip(at, chosen, strict=True):
            right.vlines(x, m["median"] / 1000, m["p99"] / 1000, color="0.25", linewidth=1.2)
            right.plot([x], [m["p95"] / 1000], "_", color="0.25", markersize=9)
            right.plot([x], [m["p99"] / 1000], "_", color="0.25", markersize=5)
    for axes in (left, right):
        axes.set_xticks(range(len(counts)), [str(n) for n in counts])
        axes.set_xlabel("clients")
        axes.grid(True, axis="y", color="0.9")
        axes.set_axisbelow(True)
    left.set_ylabel("tokens per second of all clients")
    left.margins(y=0.12)
    left.set_title(result["options"]["models"]["other"].removesuffix(".gguf"))
    right.set_ylabel("first token, ms")
    right.set_title("bar: p50; wide tick: p95; narrow: p99")
    _legend(figure, left)
    return figure
