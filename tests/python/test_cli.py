"""The command redis-infer, run as a person would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from module_support import wait_until
from redis_infer import Infer, models
from redis_infer.cli_support import UsageError, file_for, only_model, shown_url
from redis_infer.server import Server
from small_vocab import NORMAL, UNKNOWN, Vocabulary

COMMAND = [sys.executable, "-m", "redis_infer.cli"]


def run(
    *args: str, stdin: str = "", timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"} | env,
        check=False,
    )


def ok(*args: str, **options: str) -> str:
    done = run(*args, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- help and errors ----

SUBCOMMANDS = ["demo", "serve", "generate", "chat", "tokenize"]


@pytest.mark.parametrize(
    "words",
    [
        *([c] for c in SUBCOMMANDS),
        *(["models", c] for c in ("list", "pull", "path")),
        ["bench", "sidecar"],
    ],
)
def test_every_commands_help_has_examples(words: list[str]) -> None:
    text = ok(*words, "--help")
    assert "Examples:" in text
    assert f"redis-infer {' '.join(words)}" in text or f"$(redis-infer {' '.join(words)}" in text


def test_without_a_command_it_shows_the_help() -> None:
    done = run()
    assert all(command in done.stdout + done.stderr for command in SUBCOMMANDS)


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["bogus"], 2, "bogus"),
        (["generate", "x", "--max-tokens", "many"], 2, "--max-tokens"),
        (["generate", "x", "--max-tokens", "0"], 2, "--max-tokens"),
        (["generate"], 2, "prompt"),
        (["generate", "x", "--model", "/no/such.gguf"], 2, "neither a file nor a known model"),
        (["models", "path", "nobody"], 1, "known are"),
        (["tokenize", "x", "--model", __file__], 1, "is not a GGUF file"),
        (["serve", "--config", "novalue"], 2, "NAME=VALUE"),
        (["serve", "--config", "port=7000"], 1, "port cannot be configured"),
        (["serve", __file__, __file__], 2, "the name 'test_cli'"),
        (["serve", "--redis-server", "/no/redis-server"], 1, "no executable"),
        (["generate", "x", "--url", "redis://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["generate", "x", "--url", "http://x"], 2, "redis://"),
        (["generate", "x", "--url", "redis://127.0.0.1?foo=1"], 2, "after its '?' is no option"),
        (["generate", "x", "--url", "redis://x", "--threads", "2"], 2, "leave one of them out"),
        (["chat", "--url", "redis://x", "--threads", "2"], 2, "leave one of them out"),
        (["generate", "x", "--top-p", "0"], 2, "--top-p"),
        (["generate", "x", "--model", "~nobody-of-that-name/x.gguf"], 2, "home directory"),
        (["serve", "--config", "loadmodule=/other.so"], 1, "loadmodule cannot be configured"),
        (["serve", "--config", "save=1 1", "--config", "Save=2 2"], 2, "has save twice"),
    ],
)
def test_what_goes_wrong_is_one_line_on_standard_error(
    model_path: Path, args: list[str], status: int, says: str
) -> None:
    done = run(*args)
    assert done.returncode == status
    assert done.stdout == ""
    assert re.fullmatch(r"redis-infer: [^\n]+\n", done.stderr), done.stderr
    assert says.lower() in done.stderr.lower()


def test_an_error_of_the_system_is_one_line() -> None:
    done = run("models", "pull", models.DEFAULT_MODEL, REDIS_INFER_HOME="/dev/null")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "redis-infer: [Errno 20] Not a directory: '/dev/null/models'"


def test_without_a_home_directory_one_line_says_what_to_do() -> None:
    done = run("models", "path", models.DEFAULT_MODEL, REDIS_INFER_HOME="~nobody-of-that-name/x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "name one with REDIS_INFER_HOME" in done.stderr and done.stderr.count("\n") == 1


def test_an_argument_that_is_not_utf8_is_one_line(server: Server, loaded: Infer) -> None:
    command = [*COMMAND, "generate", "x", "--url", server.url, "--stop", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"redis-infer: 'caf\\udce9' is not UTF-8\n"


def test_output_in_a_narrow_encoding_has_question_marks(tmp_path: Path) -> None:
    tokens = ["[UNK]", "\u2581\u65e5"]
    path = Vocabulary("bert", tokens, [UNKNOWN, NORMAL], unknown_id=0).write(tmp_path / "b.gguf")
    done = subprocess.run(
        [*COMMAND, "tokenize", "\u65e5", "--model", str(path)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"       1  ' ?'\n"


def test_a_path_of_any_bytes_is_printed_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / os.fsdecode(b"caf\xe9")
    file = home / "models" / models.KNOWN_MODELS[models.DEFAULT_MODEL].file_name
    try:
        file.parent.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    file.touch()
    done = subprocess.run(
        [*COMMAND, "models", "path", models.DEFAULT_MODEL],
        capture_output=True,
        env=os.environ | {"REDIS_INFER_HOME": str(home), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, os.fsencode(file) + b"\n"), done.stderr


def test_a_model_in_a_folder_of_any_bytes_is_loaded(model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    shutil.copy(model_path, folder)
    command = [*COMMAND, "generate", "The capital of France is", "-n", "5", "--model"]
    done = subprocess.run(
        [*command, folder / model_path.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:7000/2", "redis://127.0.0.1:7000/2"),
        ("redis://user:secret@[::1]:7000", "redis://[::1]:7000"),
        ("rediss://:secret@h?password=secret", "rediss://h"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("redis://user:sec/ret@h", "redis://..."),
        ("redis://:sec?ret@h", "redis://..."),
        ("redis://h?password=sec@ret", "redis://..."),
        ("redis://user:sec]ret[@h", "redis://..."),
        ("localhost:7000", "localhost:7000"),
        ("user:secret@localhost", "..."),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_a_server_that_wants_a_password_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    with Server(model_dir=tmp_path, config={"requirepass": "right"}) as server:
        for url in (f"redis://127.0.0.1:{server.port}", server.url.replace("right", "wrong")):
            for command in (["corpus", "list"], ["generate", "x"]):
                done = run(*command, "--url", url)
                assert (done.returncode, done.stdout) == (1, "")
                says = f"the server at redis://127.0.0.1:{server.port} wants a user or password ("
                assert says in done.stderr and done.stderr.count("\n") == 1
                assert "wrong" not in done.stderr
        assert ok("corpus", "list", "--url", server.url).startswith("NAME")
    done = run("corpus", "list", "--url", "redis://user:sec/ret@h")
    assert (done.returncode, "sec" in done.stderr) == (2, False)


def test_a_refusal_of_the_server_keeps_its_code(server: Server, loaded: Infer) -> None:
    done = run("generate", "x", "--url", server.url, "--key", "missing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("redis-infer: NOKEY ") and done.stderr.count("\n") == 1


def test_only_a_model_that_is_ready_is_the_only_one() -> None:
    def only(*models: dict[str, str], embedder: bool = False) -> str:
        server: Any = SimpleNamespace(models=lambda: models)
        return only_model(server, embedder=embedder)

    ready = {"name": "g", "state": "ready", "architecture": "llama"}
    embedder = {"name": "e", "state": "ready", "architecture": "bert"}
    coming, going = {"name": "x", "state": "loading"}, {"name": "y", "state": "unloading"}
    assert only(coming, ready, embedder, going) == "g"
    assert only(coming, ready, embedder, going, embedder=True) == "e"
    with pytest.raises(UsageError, match="no model is loaded"):
        only(coming, embedder)


# ---- generate, chat, tokenize ----


def test_generate_prints_what_the_client_would_get(server: Server, loaded: Infer) -> None:
    text = "The capital of France is"
    expected = loaded.generate("smol", text, max_tokens=10).text
    args = ("--url", server.url, "--max-tokens", "10")
    assert ok("generate", text, *args) == expected + "\n"
    assert ok("generate", "-", *args, stdin=text) == expected + "\n"
    assert ok("generate", text, "-n", "10", REDIS_INFER_URL=server.url) == expected + "\n"


def test_generate_starts_a_server_where_none_is_named(model_path: Path) -> None:
    done = run("generate", "The capital of France is", "-m", str(model_path), "-n", "5", "--stats")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "first token" in done.stderr and "tokens/s" in done.stderr


def test_generate_puts_keys_before_the_text(server: Server, loaded: Infer) -> None:
    tokenizer = loaded.tokenizer("smol")
    loaded.store_tokens("a", tokenizer.encode("The capital of"))
    expected = loaded.generate("smol", " France is", keys="a", max_tokens=6).text
    args = ("--url", server.url, "--key", "a", "-n", "6", "--model", "smol")
    assert ok("generate", " France is", *args) == expected + "\n"


def test_markup_in_an_answer_is_printed_as_it_is(server: Server, loaded: Infer) -> None:
    text = "[bold]one[/bold] [bold]two[/bold] [bold]three"
    expected = loaded.generate("smol", text, max_tokens=12).text
    assert "[" in expected
    assert ok("generate", text, "--url", server.url, "-n", "12") == expected + "\n"


def test_chat_remembers_what_was_said(server: Server, loaded: Infer) -> None:
    messages, answers = [], []
    for question in ("My name is Grace.", "What is my name?"):
        messages.append({"role": "user", "content": question})
        answer = loaded.generate("smol", messages, max_tokens=20).text
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer.strip())
    said = "".join(m["content"] + "\n" for m in messages if m["role"] == "user") + "\n"
    text = ok("chat", "--url", server.url, "--max-tokens", "20", stdin=said)
    assert text == "".join(f"> {answer}\n" for answer in answers) + "> "


def test_tokenize_shows_ids_and_their_texts(loaded: Infer) -> None:
    ids = loaded.tokenizer("smol").encode("Hello, wörld<|im_end|>").tolist()
    assert ok("tokenize", "--ids", "Hello, wörld<|im_end|>").split() == [str(i) for i in ids]
    lines = ok("tokenize", "Hello, world").splitlines()
    assert "'Hello'" in lines[0]
    plain = ok("tokenize", "--ids", "--no-special", "Hello, wörld<|im_end|>").split()
    assert len(plain) > len(ids)


def test_tokenize_shows_where_words_begin(tmp_path: Path) -> None:
    tokens = ["[UNK]", "\u2581hello", "\u2581world", "s"]
    types = [UNKNOWN, NORMAL, NORMAL, NORMAL]
    path = Vocabulary("bert", tokens, types, unknown_id=0).write(tmp_path / "bert.gguf")
    shown = ok("tokenize", "Hello worlds", "--model", str(path)).splitlines()
    assert [line.split(maxsplit=1) for line in shown] == [
        ["1", "' hello'"],
        ["2", "' world'"],
        ["3", "'s'"],
    ]


def test_bytes_of_another_encoding_are_replaced(loaded: Infer) -> None:
    shown = subprocess.run([*COMMAND, "tokenize", b"caf\xe9!"], capture_output=True, check=False)
    assert shown.returncode == 0
    ids = loaded.tokenizer("smol").encode("caf\ufffd!").tolist()
    made = subprocess.run(
        [*COMMAND, "tokenize", "--ids", "-"],
        input=b"caf\xe9!",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=True,
    )
    assert made.stdout.split() == [str(i).encode() for i in ids]


def test_the_readme_packs_ids_into_a_pipe() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"python -c '([^']+)'", readme)
    command = [sys.executable, "-c", program]
    made = subprocess.run(
        command,
        input=b"1 2 70000\n",
        capture_output=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        check=True,
    )
    assert made.stdout == struct.pack("<3I", 1, 2, 70000)


# ---- serve, demo ----


def test_serve_runs_until_it_is_told_to_end(model_path: Path) -> None:
    server = subprocess.Popen(
        [*COMMAND, "serve", str(model_path), "--port", "0", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        found = re.search(r"127\.0\.0\.1:(\d+) and (\S+)", first)
        assert found, first
        assert model_path.stem in server.stderr.readline()
        with redis.Redis(port=int(found[1])) as client:
            assert [m["name"] for m in Infer(client).models()] == [model_path.stem]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert not Path(found[2]).parent.exists()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def test_a_known_model_loads_from_a_linked_cache(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(models.home())
    command = ("generate", "The capital of France is", "-n", "5")
    assert "Paris" in ok(*command, REDIS_INFER_HOME=str(tmp_path / "link"))


def test_known_models_and_files_lie_in_one_folder_if_the_cache_is_linked(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(models.home())
    monkeypatch.setenv("REDIS_INFER_HOME", str(tmp_path / "link"))
    assert file_for(models.DEFAULT_MODEL) == file_for(str(model_path))


def test_serve_on_a_port_in_use_says_so(server: Server, model_path: Path) -> None:
    done = run("serve", "--port", str(server.port))
    assert done.returncode == 1
    assert done.stderr == (
        f"redis-infer: port {server.port} is in use: choose another with --port (0: any free one)\n"
    )


def test_serve_ends_when_its_server_dies(model_path: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "serve", str(model_path), "--port", "0", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    lines = [running.stderr.readline() for _ in range(4)]
    found = re.search(r"127\.0\.0\.1:(\d+)", lines[0])
    assert found
    with redis.Redis(port=int(found[1])) as client:
        client.shutdown(nosave=True)
    rest = running.stderr.read()
    assert running.wait(60) == 1
    assert rest.startswith("redis-infer: the server ended")
    running.stderr.close()


def test_demo_answers_and_says_where_the_time_went(loaded: Infer) -> None:
    question = "What is the capital of France?"
    expected = loaded.generate("smol", [{"role": "user", "content": question}], max_tokens=20)
    done = run("demo", question, "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"> {question}\n\n{expected.text.strip()}\n\n"
    for row in ("admit", "queue", "first token", "total", "tokens/s"):
        assert row in done.stderr


# ---- models ----


def test_models_list_says_which_are_here(model_path: Path, tmp_path: Path) -> None:
    assert re.search(rf"{models.DEFAULT_MODEL} +98 MB +yes", ok("models", "list"))
    elsewhere = ok("models", "list", REDIS_INFER_HOME=str(tmp_path))
    assert re.search(rf"{models.DEFAULT_MODEL} +98 MB +no", elsewhere)


def test_models_pull_and_path_print_the_file(model_path: Path) -> None:
    assert ok("models", "path", models.DEFAULT_MODEL) == f"{model_path}\n"
    assert ok("models", "pull", models.DEFAULT_MODEL) == f"{model_path}\n"


@pytest.fixture
def heeded_sigint() -> Iterator[None]:
    """Children have SIGINT's default, also where the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_generate_prints_as_it_comes_and_ctrl_c_ends_the_request(
    server: Server, loaded: Infer, client: redis.Redis, heeded_sigint: None
) -> None:
    command = [*COMMAND, "generate", "Once upon a time", "--url", server.url, "-n", "4000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert client.execute_command("INFER.REQUESTS"), "there is output before the end"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130
    wait_until(lambda: not client.execute_command("INFER.REQUESTS"), "the request ends")
