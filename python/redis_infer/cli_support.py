"""What the commands of ``redis-infer`` share: options, output, and how to come by a model.

Every command works with a model by its known name or by the path of a GGUF file, in a server
that it starts for itself, or with ``--url`` in one that runs already.
"""

from __future__ import annotations

import contextlib
import re
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import redis
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from . import models
from .client import Infer
from .results import Generation
from .server import Server, ServerError

if TYPE_CHECKING:
    from .commands import GenerateOptions
    from .streaming import Stream

G = TypeVar("G", bound=Generation)

PROGRAM = "redis-infer"

# Results go to standard output, everything else to standard error.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class UsageError(Exception):
    """Something in the command line cannot be carried out."""


# ---- options that several commands have ----

_KNOWN = f"A known model (see '{PROGRAM} models list') or a GGUF file"
FileOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE",
        help=f"{_KNOWN}; default: {models.DEFAULT_MODEL}.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE",
        help=f"{_KNOWN}; default: {models.DEFAULT_MODEL}. With --url: the name that it has in that "
        "server; default: the only one that generates.",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="REDIS_INFER_URL",
        help="Use this server instead of starting one, for example redis://localhost:6379.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Compute threads of the started server; default: one for each processor."
    ),
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to generate.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", "-t", min=0, help="0: always the likeliest token.")
]
TopKOption = Annotated[int | None, typer.Option(min=0, help="Sample among the k likeliest.")]
TopPOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,  # the server's own bound
        max=1,
        help="Sample among the likeliest that have this probability together.",
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Leave out what is less likely than this share of the likeliest."
    ),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="The same seed, the same tokens.")]
ServerOption = Annotated[
    Path | None,
    typer.Option(
        "--redis-server",
        metavar="FILE",
        help="The redis-server to start; default: the one of the extra 'server', else the one on "
        "PATH.",
    ),
]


# ---- a model that is ready ----


@dataclass(frozen=True)
class Session:
    infer: Infer
    model: str
    where: str


@contextlib.contextmanager
def model_session(model: str | None, url: str | None, threads: int | None) -> Iterator[Session]:
    """A model that is ready: in the server at ``url``, or in one started for this command."""
    if url is not None:
        if threads is not None:
            raise UsageError(
                "--threads is for a server that this command starts, and --url (or "
                "REDIS_INFER_URL) names one that runs: leave one of them out"
            )
        with connected(url) as client:
            infer = Infer(client)
            yield Session(infer, model or only_model(infer), shown_url(url))
        return
    given = model or models.DEFAULT_MODEL
    name, path = name_for(given), file_for(given)
    server = Server(model_dir=path.parent, threads=threads)
    # A path of any bytes: those that are not UTF-8 go to the server as they are.
    with starting(server), server.client(encoding_errors="surrogateescape") as client:
        version = client.info("server")["redis_version"]
        infer = Infer(client)
        kernels = infer.load(name, path)["kernels"]
        yield Session(infer, name, f"Redis {version} with {name} on {kernels} kernels")


@contextlib.contextmanager
def connected(url: str) -> Iterator[redis.Redis]:
    """A client of the server at ``url``, which has answered a PING.

    Raises:
        UsageError: the URL says nothing that could be connected to.
        ServerError: no server is there, or it wants other credentials.
    """
    shown = shown_url(url)
    try:
        client = redis.from_url(url)
    except ValueError as error:
        why = str(error)
        if "@" in url and why.startswith(("Port", "netloc")):  # which quote parts of the password
            why = "write a character such as '/' in the password as %2F"
        raise UsageError(f"--url {shown}: {why}") from error
    with client:
        try:
            client.ping()
        except redis.AuthenticationError as error:
            raise ServerError(
                f"the server at {shown} wants a user or password ({error}): give it in the URL, "
                "redis://USER:PASSWORD@HOST:PORT"
            ) from error
        except redis.ConnectionError as error:
            raise ServerError(
                f"no server at {shown} ({error}): start one with '{PROGRAM} serve', or name it "
                "with --url"
            ) from error
        except TypeError as error:  # of the connection's class, which the query's names go to
            raise UsageError(
                f"--url {shown}: something after its '?' is no option of a connection"
            ) from error
        yield client


def shown_url(url: str) -> str:
    """The URL for a message: without user, password, and the query, which may hold them too."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "..." if "@" in url else url
    try:
        parts = urllib.parse.urlsplit(url)
        is_clear = parts.port is None or parts.port >= 0  # the port is looked at only here
    except ValueError:
        is_clear = False
    # With an '@' after the host, what looks like the host may be a part of the password.
    if not is_clear or "@" in rest[len(parts.netloc) :]:
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextlib.contextmanager
def starting(server: Server) -> Iterator[Server]:
    try:
        server.start()
    except ServerError as error:
        if "Address already in use" in str(error):
            raise ServerError(
                f"port {server.port} is in use: choose another with --port (0: any free one)"
            ) from error
        raise
    with server:
        yield server


EMBEDDERS = frozenset({"bert"})
"""Architectures that give vectors and no text."""


def only_model(infer: Infer, *, embedder: bool = False, option: str = "--model") -> str:
    """The one loaded model that can generate, or of those that only embed.

    Raises:
        UsageError: there is none, or several and the user has to choose.
    """
    names = [
        str(model["name"])
        for model in infer.models()
        if model["state"] == "ready"  # one that is not has no architecture yet
        and (model["architecture"] in EMBEDDERS) == embedder
    ]
    if len(names) == 1:
        return names[0]
    kind = "embedding model" if embedder else "model"
    if not names:
        raise UsageError(f"no {kind} is loaded in that server: load one with INFER.MODEL LOAD")
    raise UsageError(f"choose one of the server's {kind}s with {option}: {', '.join(names)}")


def file_for(given: str) -> Path:
    """The file of a known model, fetched if it is missing, or a file given by its path."""
    if given in models.KNOWN_MODELS:
        path = models.KNOWN_MODELS[given].path
        path = path if path.is_file() else pull(given)
    else:
        try:
            path = Path(given).expanduser()
        except RuntimeError as error:  # there is no such user
            raise UsageError(f"'{given}': {error}") from error
        if not path.is_file():
            raise UsageError(
                f"'{given}' is neither a file nor a known model ({', '.join(models.KNOWN_MODELS)})"
            )
    return path.resolve()


def name_for(given: str) -> str:
    """The model's name in the server: the known one, or what is allowed of the file's."""
    if given in models.KNOWN_MODELS:
        return given
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(given).stem)[:64]


def pull(name: str) -> Path:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
    ) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{what} {name}", total=None)
            progress.update(tasks[what], completed=done, total=total or None)

        return models.pull(name, report)


def sampling(
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
) -> GenerateOptions:
    options: GenerateOptions = {"max_tokens": max_tokens, "temperature": temperature}
    if top_k is not None:
        options["top_k"] = top_k
    if top_p is not None:
        options["top_p"] = top_p
    if min_p is not None:
        options["min_p"] = min_p
    if seed is not None:
        options["seed"] = seed
    return options


# ---- output ----


def print_pieces(stream: Stream[G], *, strip: bool = False) -> G:
    """Prints a generation as it comes, and a line break after it.

    Not with rich, which would take ``:smile:`` for an emoji and a piece for a whole text.
    """
    with stream:
        held = "" if strip else None  # space at the end so far; None: nothing is held back
        begun = False
        for piece in stream:
            text = piece.text
            if held is not None:
                text = held + text if begun else text.lstrip()
                shown = text.rstrip()
                held, text = text[len(shown) :], shown
            begun = begun or bool(text)
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        assert stream.result is not None
        return stream.result
