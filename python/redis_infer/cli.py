"""The command ``redis-infer``."""

from __future__ import annotations

import codecs
import contextlib
import io
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import redis
import typer
from rich.table import Table

from . import __version__, cli_bench, cli_corpus, models
from .cli_support import (
    PROGRAM,
    FileOption,
    MaxTokensOption,
    MinPOption,
    ModelOption,
    SeedOption,
    ServerOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    UrlOption,
    UsageError,
    err,
    file_for,
    model_session,
    name_for,
    out,
    print_pieces,
    pull,
    sampling,
    starting,
)
from .client import Infer
from .errors import CorpusError, TokenizerError
from .gguf_metadata import GGUFError
from .module_path import ModuleNotBuiltError
from .server import Server, ServerError
from .sidecar import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from .results import Generation

DEFAULT_PORT = 6379

# Typer carries click inside itself since 0.2x and used the package before: its own name for
# the base of all usage errors is the one thing both have in common.
_ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name=PROGRAM,
    help="Language models inside Redis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The model files on this machine.", no_args_is_help=True)
app.add_typer(models_app, name="models")


_OUR_ERRORS = (
    BenchError,
    CorpusError,
    GGUFError,
    ModuleNotBuiltError,
    ServerError,
    TokenizerError,
    models.ModelError,
)


def main() -> NoReturn:
    """Runs the command; what goes wrong is one line on standard error."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is piped in may be in any encoding
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_OWN_BYTES, _own_bytes)
        sys.stdout.reconfigure(errors=_OWN_BYTES)  # and so may what it is piped to
    try:
        status = typer.main.get_command(app)(prog_name=PROGRAM, standalone_mode=False)
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        _fail(f"{error.format_message()} (see '{PROGRAM} --help')", 2)
    except UsageError as error:
        _fail(str(error), 2)
    except _OUR_ERRORS as error:
        _fail(str(error), 1)
    except UnicodeEncodeError as error:  # an argument that the server is to be sent
        near = error.object[max(0, error.start - 20) : error.end + 20]
        _fail(f"{near!r} is not UTF-8", 2)
    except UnicodeDecodeError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `head` does
        sys.exit(1)
    except (OSError, redis.RedisError) as error:
        _fail(str(error) or type(error).__name__, 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"{PROGRAM}: {message.splitlines()[0]}", file=sys.stderr)
    sys.exit(status)


_OWN_BYTES = "redis-infer.own-bytes"


def _own_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """For output: a path's bytes that are no text as they are, '?' for what the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = range(0xDC80, 0xDD00)  # how surrogateescape keeps a byte
    made = bytes(
        ord(char) - 0xDC00 if ord(char) in escaped else ord("?")
        for char in error.object[error.start : error.end]
    )
    return made, error.end


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


# ---- commands ----


@app.command()
def demo(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="A question.")
    ] = "Why is the sky blue?",
    model: FileOption = None,
    max_tokens: MaxTokensOption = 128,
    threads: ThreadsOption = None,
) -> None:
    """Show what it does: a server, a stored prompt, an answer, and where the time went.

    \b
    Examples:
      redis-infer demo
      redis-infer demo "Write a haiku about databases." --max-tokens 40
    """
    with model_session(model, None, threads) as session:
        infer, name = session.infer, session.model
        tokenizer = infer.tokenizer(name)
        chat = tokenizer.render_chat([{"role": "user", "content": prompt}])
        infer.store_tokens("demo:prompt", tokenizer.encode(chat))
        err.print(f"{session.where}; the prompt is stored as tokens in the key demo:prompt\n")
        out.print(f"> {prompt}\n", style="bold", markup=False)
        first = infer.generate(name, keys="demo:prompt", max_tokens=max_tokens)
        out.print(first.text.strip() + "\n", markup=False)
        again = infer.generate(name, keys="demo:prompt", max_tokens=max_tokens)
        _print_timings({"first time": first, "prompt known": again})


@app.command()
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Known models or GGUF files to load, all of one folder; "
            f"default: {models.DEFAULT_MODEL}.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0: any free one.")
    ] = DEFAULT_PORT,
    threads: ThreadsOption = None,
    redis_server: ServerOption = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A redis.conf directive or a setting of the module (infer.kv-memory=2gb); "
            "may be repeated.",
        ),
    ] = None,
) -> None:
    """Run a Redis server with the module in the foreground. It keeps nothing on disk.

    \b
    Examples:
      redis-infer serve
      redis-infer serve smollm2-135m-instruct --port 7000 --threads 4
      redis-infer serve ./model.gguf --config maxmemory=2gb
    """
    directives: dict[str, str] = {}
    for item in config or []:
        directive, value = _directive(item)
        if directive in directives:
            raise UsageError(f"--config has {directive} twice: which of them holds?")
        directives[directive] = value
    files: dict[str, Path] = {}
    for given in names or [models.DEFAULT_MODEL]:
        name = name_for(given)
        if name in files:
            raise UsageError(f"two of the models would have the name '{name}': rename a file")
        files[name] = file_for(given)
    folders = {path.parent for path in files.values()}
    if len(folders) > 1:
        raise UsageError(
            "a server loads models from one folder, and these lie in several: "
            + ", ".join(sorted(map(str, folders)))
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with starting(
        Server(
            model_dir=folders.pop(),
            threads=threads,
            port=port,
            redis_server=redis_server,
            config=directives,
        )
    ) as server:
        # A path of any bytes: those that are not UTF-8 go to the server as they are.
        with server.client(encoding_errors="surrogateescape") as client:
            infer = Infer(client)
            for name, path in files.items():
                infer.load(name, path)
        with contextlib.suppress(KeyboardInterrupt):
            for line in (
                f"Redis listens on 127.0.0.1:{server.port} and {server.unix_socket}",
                f"models: {', '.join(files)}",
                f"try:    {PROGRAM} chat --url {server.url}",
            ):
                err.print(line, markup=False)
            err.print("Ctrl-C ends it.")
            status = server.wait()
            raise ServerError(f"the server ended with status {status}: {server.log(last_lines=1)}")


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to continue; '-' reads standard input.")
    ],
    model: ModelOption = None,
    url: UrlOption = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="A token key that comes before the text; may be repeated."
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The text is a question to a chat model.")
    ] = False,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text that ends it; may be repeated.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Also print where the time went.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Continue a text.

    \b
    Examples:
      redis-infer generate "The capital of France is"
      redis-infer generate "def fibonacci(n):" --max-tokens 60 --stop $'\\n\\n'
      redis-infer generate --chat "Why is the sky blue?" --temperature 0.7 --seed 1
      git diff | redis-infer generate - --url redis://localhost:6379 --key style-guide
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    options = sampling(max_tokens, temperature, top_k, top_p, min_p, seed)
    if stop:
        options["stop"] = stop
    with model_session(model, url, threads) as session:
        stream = session.infer.stream(
            session.model,
            [{"role": "user", "content": prompt}] if chat else prompt,
            keys=key or (),
            **options,
        )
        result = print_pieces(stream)
        if stats:
            _print_timings({"time": result})


@app.command()
def chat(
    model: ModelOption = None,
    url: UrlOption = None,
    system: Annotated[
        str | None, typer.Option(help="Instructions that stand before the conversation.")
    ] = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Talk to a model; an empty line or Ctrl-D ends it.

    \b
    Examples:
      redis-infer chat
      redis-infer chat --system "Answer in one sentence." --temperature 0.7
      redis-infer chat --url redis://localhost:6379 --model smol
    """
    options = sampling(max_tokens, temperature, top_k, top_p, min_p, seed)
    messages = [{"role": "system", "content": system}] if system else []
    with model_session(model, url, threads) as session:
        while question := _ask():
            messages.append({"role": "user", "content": question})
            stream = session.infer.stream(session.model, messages, **options)
            result = print_pieces(stream, strip=True)
            messages.append({"role": "assistant", "content": result.text})
            err.print(_summary(result), style="dim")


@app.command()
def tokenize(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text; '-' reads standard input.")
    ],
    model: FileOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print only the ids, on one line.")] = False,
    special: Annotated[
        bool, typer.Option(help="Read texts such as <|im_end|> as the special tokens they name.")
    ] = True,
) -> None:
    """Show the tokens of a text.

    \b
    Examples:
      redis-infer tokenize "Hello, world"
      redis-infer tokenize --ids "fn add(a: i32) -> i32 {"
      redis-infer tokenize --no-special "the text <|im_end|>" --model ./model.gguf
    """
    from .tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(file_for(model or models.DEFAULT_MODEL))
    content = sys.stdin.read() if text == "-" else text
    tokens = tokenizer.encode(content, parse_special=special).tolist()
    if ids:
        print(*tokens)
        return
    for token in tokens:
        text = tokenizer.decode_bytes([token]).decode("utf-8", "replace")  # keeps a first space
        print(f"{token:>8}  {text!r}")
    err.print(f"{len(tokens)} tokens, {len(content.encode(errors='replace'))} bytes", style="dim")


@models_app.command("list")
def models_list() -> None:
    """The known models, and which of them are on this machine.

    \b
    Examples:
      redis-infer models list
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("NAME", "SIZE", "HERE", "DESCRIPTION"):
        table.add_column(heading, justify="right" if heading == "SIZE" else "left")
    for name, model in models.KNOWN_MODELS.items():
        here = "yes" if model.path.is_file() else "no"
        table.add_row(name, f"{model.size_bytes / 1e6:,.0f} MB", here, model.description)
    out.print(table)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of 'redis-infer models list'.")],
) -> None:
    """Fetch a model file, check it, and print where it is.

    \b
    Examples:
      redis-infer models pull smollm2-135m-instruct
    """
    print(pull(name))


@models_app.command("path")
def models_path(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of 'redis-infer models list'.")],
) -> None:
    """Print where a model file is.

    \b
    Examples:
      redis-cli INFER.MODEL LOAD smol "$(redis-infer models path smollm2-135m-instruct)"
    """
    print(models.path(name))


# Last, so that the help begins with what a newcomer tries first.
cli_corpus.add_to(app)
cli_bench.add_to(app)


# ---- inside ----


def _directive(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise UsageError(f"--config takes NAME=VALUE, not '{item}'")
    return name.lower(), value


def _ask() -> str:
    try:
        return out.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _summary(result: Generation) -> str:
    speed = result.decode_tokens_per_s
    return (
        f"{result.output_tokens} tokens"
        + (f", {speed:.1f} tokens/s" if speed else "")
        + f", first after {_ms(result.first_token_us)}"
        + f", {result.cached_tokens} of {result.prompt_tokens} prompt tokens known"
    )


def _print_timings(results: dict[str, Generation]) -> None:
    """One column a result, one row a station on the way of the request."""
    table = Table(box=None, pad_edge=False)
    table.add_column("where the time went")
    for heading in results:
        table.add_column(heading, justify="right")
    rows: dict[str, list[str]] = {
        "admit (read keys, check tokens)": [_ms(r.admit_us) for r in results.values()],
        "queue (wait for a step)": [_ms(r.queue_us) for r in results.values()],
        "first token": [_ms(r.first_token_us) for r in results.values()],
        "total": [_ms(r.total_us) for r in results.values()],
        "prompt tokens (known before)": [
            f"{r.prompt_tokens} ({r.cached_tokens})" for r in results.values()
        ],
        "output tokens": [str(r.output_tokens) for r in results.values()],
        "tokens/s after the first": [
            f"{r.decode_tokens_per_s:.1f}" if r.decode_tokens_per_s else "-"
            for r in results.values()
        ],
    }
    for title, cells in rows.items():
        table.add_row(title, *cells)
    err.print(table)


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.2f} ms"


if __name__ == "__main__":
    main()
