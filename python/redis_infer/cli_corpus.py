"""The commands that make and use a corpus: ``ingest``, ``corpus``, ``ask``, ``complete``.

They work in a server that runs already, since a corpus lies in it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .cli_support import (
    PROGRAM,
    MaxTokensOption,
    MinPOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    UsageError,
    connected,
    err,
    only_model,
    out,
    print_pieces,
    sampling,
)
from .client import Infer
from .corpus import Corpus, CorpusInfo, Hit, infos
from .decoding import NotTextError, text_of
from .errors import CorpusError
from .retrieval import Gap

if TYPE_CHECKING:
    from .commands import RagOptions
    from .ingest import Progress as Done
    from .ingest import Report

DEFAULT_URL = "redis://127.0.0.1:6379"

_MAX_SKIPPED_SHOWN = 5

corpus_app = typer.Typer(help="The corpora in a server.", no_args_is_help=True)

UrlOption = Annotated[
    str,
    typer.Option(metavar="URL", envvar="REDIS_INFER_URL", help="The server that has the corpus."),
]
NameArgument = Annotated[str, typer.Argument(metavar="CORPUS", help="The name of a corpus.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME", help="A loaded model with the corpus' tokenizer."
    ),
]
HitsOption = Annotated[int, typer.Option("--hits", min=1, max=1000, help="Chunks to retrieve.")]
BudgetOption = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of chunks in the prompt.")
]


def add_to(app: typer.Typer) -> None:
    """Makes the commands of this file commands of ``app``."""
    for command in (ingest, ask, complete):
        app.command()(command)
    app.add_typer(corpus_app, name="corpus")


# ---- making ----


def ingest(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder to read.")],
    corpus: Annotated[str, typer.Option(metavar="NAME", help="The corpus to make or update.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="The loaded model that will read the text."
        ),
    ] = None,
    embed_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The loaded model that computes vectors.")
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(min=32, help="Most tokens of a chunk (384 for a new corpus).")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Most tokens that a chunk repeats (32 for a new corpus)."),
    ] = None,
    max_file_bytes: Annotated[int, typer.Option(min=1, help="Larger files are left out.")] = 1
    << 20,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Make a corpus of the text files in a folder, or bring it up to date.

    What git ignores is left out, as are binary files. Files that have not changed since the
    last time are not read by any model again; those that are gone leave the corpus.

    \b
    Examples:
      redis-infer serve smollm2-135m-instruct all-minilm-l6-v2 &
      redis-infer ingest ~/src/project --corpus project
      redis-infer ingest . --corpus project --url redis://localhost:7000 --chunk-tokens 256
    """
    try:
        from . import ingest as ingesting
    except ImportError as error:
        raise UsageError(str(error)) from error
    if not path.is_dir():
        raise UsageError(f"{path} is no folder")
    with _server(url) as infer:
        made_with: tuple[str | None, str | None] = (None, None)
        target = Corpus(infer, corpus)
        with contextlib.suppress(CorpusError):  # a new one
            info = target.info()
            made_with = info.model, info.embed_model
        model = model or _known_or_only(infer, made_with[0], embedder=False)
        embed_model = embed_model or _known_or_only(infer, made_with[1], embedder=True)
        try:
            with _progress() as show:
                report = ingesting.ingest(
                    infer,
                    path,
                    corpus,
                    model=model,
                    embed_model=embed_model,
                    chunk_tokens=chunk_tokens,
                    overlap=overlap,
                    max_file_bytes=max_file_bytes,
                    on_progress=show,
                )
        except ImportError as error:  # of a grammar, when the first file needs it
            raise UsageError(str(error)) from error
    _print_report(corpus, report)


class _progress:  # noqa: N801 - used as the context manager that it is
    """A line on the terminal: files, chunks, tokens a second, time left."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[files]}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, files="looking for files", counts="")
        self._begin = time.monotonic()

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: Done) -> None:
        seconds = max(time.monotonic() - self._begin, 1e-6)
        self._bar.update(
            self._task,
            # In bytes: files differ too much for a share of their number to say how long.
            completed=done.bytes,
            total=done.bytes_total,
            files=f"{done.files:,} of {done.files_total:,} files",
            counts=f"{done.chunks:,} chunks, {done.tokens / seconds:,.0f} tokens/s,",
        )


def _print_report(name: str, report: Report) -> None:
    files = ", ".join(
        f"{count:,} {what}"
        for count, what in (
            (report.added, "added"),
            (report.changed, "changed"),
            (report.deleted, "deleted"),
            (report.unchanged, "unchanged"),
            (len(report.skipped), "left out"),
        )
        if count or what == "added"
    )
    out.print(f"{name}: {files}", markup=False)
    if report.text_bytes:
        out.print(
            f"{report.chunks:,} chunks, {report.tokens:,} tokens, "
            f"{report.text_bytes / 1e6:.2f} MB of text in {report.seconds:.1f} s "
            f"({report.embed_seconds:.1f} s of them for vectors)"
        )
    worth_a_line = [(path, why) for path, why in report.skipped if why != "binary"]
    for path, why in worth_a_line[:_MAX_SKIPPED_SHOWN]:
        err.print(f"left out: {path}: {why}", markup=False, style="dim")
    more = len(worth_a_line) - _MAX_SKIPPED_SHOWN
    if more > 0:
        err.print(f"left out: {more:,} more", style="dim")


# ---- looking after ----


@corpus_app.command("list")
def corpus_list(url: UrlOption = DEFAULT_URL) -> None:
    """The corpora in a server.

    \b
    Examples:
      redis-infer corpus list
    """
    rows = [("NAME", "FILES", "CHUNKS", "MODEL", "EMBEDDING MODEL", "FOLDER")]
    with _server(url) as infer:
        for name, i in infos(infer):
            if isinstance(i, CorpusInfo):
                rows.append((name, f"{i.files}", f"{i.chunks}", i.model, i.embed_model, i.root))
            else:
                rows.append((name, "?", "?", "?", "?", str(i)))
    _print_columns(rows)


@corpus_app.command("info")
def corpus_info(name: NameArgument, url: UrlOption = DEFAULT_URL) -> None:
    """What a corpus is made of.

    \b
    Examples:
      redis-infer corpus info project
    """
    with _server(url) as infer:
        info = Corpus(infer, name).info()
    created = datetime.datetime.fromtimestamp(info.created).isoformat(" ", "minutes")
    _print_columns(
        [
            ("name", info.name),
            ("folder", info.root),
            ("created", created),
            ("files", f"{info.files:,}"),
            (
                "chunks",
                f"{info.chunks:,}, of at most {info.chunk_tokens} tokens, "
                f"{info.overlap} of them repeated",
            ),
            ("model", f"{info.model} (tokenizer {info.tokenizer[:12]})"),
            ("embedding model", f"{info.embed_model} ({info.dimensions} dimensions)"),
        ]
    )


@corpus_app.command("drop")
def corpus_drop(name: NameArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Remove a corpus. The files that it was made from stay where they are.

    \b
    Examples:
      redis-infer corpus drop project
    """
    with _server(url) as infer:
        files = Corpus(infer, name).drop()
    out.print(f"{name}: dropped, with {files:,} files", markup=False)


# ---- using ----


def ask(
    name: NameArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")],
    model: ModelOption = None,
    hits: HitsOption = 4,
    budget: BudgetOption = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Only chunks whose attributes fit, as of VSIM."),
    ] = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Answer a question from a corpus, and say from where.

    \b
    Examples:
      redis-infer ask project "Where is the password checked?"
      redis-infer ask project "How are errors reported?" --hits 8 --budget 2000
      redis-infer ask project "What does main do?" --where '.lang == "rust"'
    """
    options = cast("RagOptions", sampling(max_tokens, temperature, top_k, top_p, min_p, seed))
    options["top_n"] = hits
    if budget is not None:
        options["budget"] = budget
    if where is not None:
        options["filter"] = where
    with _server(url) as infer:
        corpus = Corpus(infer, name)
        model = model or _known_or_only(infer, corpus.info().model, embedder=False)
        answer = print_pieces(corpus.stream(question, model=model, **options), strip=True)
        _print_sources(corpus.sources(answer))
        err.print(
            f"{answer.output_tokens} tokens, first after {answer.first_token_us / 1000:.0f} ms, "
            f"all after {answer.total_us / 1000:.0f} ms; {answer.cached_tokens} of "
            f"{answer.prompt_tokens} prompt tokens known",
            style="dim",
        )


def complete(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to complete.")],
    line: Annotated[
        int, typer.Option(min=0, help="The last line before the gap; 0: it is at the beginning.")
    ],
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where similar code is; default: the corpus of FILE's folder."
        ),
    ] = None,
    model: ModelOption = None,
    hits: HitsOption = 4,
    budget: BudgetOption = 1024,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text that ends it; may be repeated.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Suggest what comes after a line of a file, given similar code from a corpus.

    Models with fill-in-the-middle tokens, such as Qwen2.5-Coder, also see what follows.

    \b
    Examples:
      redis-infer complete src/main.py --line 41
      redis-infer complete src/main.py --line 41 --corpus project --max-tokens 120
    """
    try:
        text = text_of(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error
    except NotTextError as error:
        raise UsageError(f"{file} is no text but {error}") from error
    options: RagOptions = {"max_tokens": max_tokens, "temperature": temperature, "top_n": hits}
    if budget is not None:
        options["budget"] = budget
    if stop:
        options["stop"] = stop
    with _server(url) as infer:
        info = Corpus(infer, corpus).info() if corpus else _corpus_around(infer, file.resolve())
        model = model or _known_or_only(infer, info.model, embedder=False)
        path = _path_in(info, file.resolve())
        try:
            Gap(path, text, line)
        except ValueError as error:
            raise UsageError(f"--line {line}: {error}") from error
        answer = Corpus(infer, info.name).complete(path, text, line, model=model, **options)
        out.print(answer.text, markup=False, end="" if answer.text.endswith("\n") else "\n")
        _print_sources(answer.sources)


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Not as a rich table, which cuts cells where the terminal, or a pipe, is narrow."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.print(line.rstrip(), markup=False)


def _print_sources(sources: Iterable[Hit]) -> None:
    err.print()
    for source in sources:
        unused = "" if source.tokens_used else "  (did not fit)"
        err.print(f"{source.score:.3f}  {source.where}{unused}", markup=False, style="dim")


# ---- inside ----


@contextlib.contextmanager
def _server(url: str) -> Iterator[Infer]:
    with connected(url) as client:
        yield Infer(client)


def _known_or_only(infer: Infer, known: str | None, *, embedder: bool) -> str:
    """The model that the corpus was made with if it is loaded, else the only one there is."""
    if known in {model["name"] for model in infer.models()}:
        assert known is not None
        return known
    return only_model(infer, embedder=embedder, option="--embed-model" if embedder else "--model")


def _corpus_around(infer: Infer, file: Path) -> CorpusInfo:
    around = [
        info
        for _, info in infos(infer)
        if isinstance(info, CorpusInfo) and Path(info.root) in file.parents
    ]
    if len(around) == 1:
        return around[0]
    if around:
        names = ", ".join(info.name for info in around)
        raise UsageError(f"choose one of the corpora with --corpus: {names}")
    raise CorpusError(
        f"no corpus was made from a folder around {file}: name one with --corpus, or make one "
        f"with '{PROGRAM} ingest'"
    )


def _path_in(info: CorpusInfo, file: Path) -> str:
    """Relative to the corpus' root; of a file outside it begins with ``..``, as none inside does,
    so that the file does not pass for one of the corpus."""
    return Path(os.path.relpath(file, info.root)).as_posix()
