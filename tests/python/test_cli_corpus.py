"""The commands ingest, corpus, ask and complete, run as a person would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import hashing_embedder
from redis_infer import AsyncCorpus, AsyncInfer, Corpus, Infer
from redis_infer.ingest import ingest
from redis_infer.server import Server
from test_cli import COMMAND, ok, run

FILES = {
    "src/password.py": '"""Passwords."""\n\n\ndef check_password(user, password):\n'
    '    """Whether the password is the user\'s."""\n    return user.hash == digest(password)\n',
    "src/invoice.py": '"""Invoices."""\n\n\ndef total(invoice):\n'
    '    """The sum of all lines, with tax."""\n    return sum(invoice.lines) * 1.2\n',
    "README.md": "# Shop\n\nSells books and toys.\n",
    "logo.png": "\0",
}


@pytest.fixture
def shop(tmp_path: Path, embedding: Infer, server: Server) -> Path:
    """A folder with its corpus "shop"."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ingest(embedding, tmp_path, "shop", model="smol", embed_model="minilm")
    return tmp_path


@pytest.mark.parametrize(
    "words", [["ingest"], ["ask"], ["complete"], *(["corpus", c] for c in ("list", "info", "drop"))]
)
def test_every_commands_help_has_examples(words: list[str]) -> None:
    text = ok(*words, "--help")
    assert "Examples:" in text and f"redis-infer {' '.join(words)}" in text


def test_a_folder_becomes_a_corpus_and_is_kept_up_to_date(shop: Path, server: Server) -> None:
    ok("corpus", "drop", "shop", "--url", server.url)
    made = ok("ingest", str(shop), "--corpus", "shop", "--url", server.url)
    assert made.startswith("shop: 3 added, 1 left out\n3 chunks, ")
    (shop / "src/invoice.py").write_text("total = 3\n")
    (shop / "README.md").unlink()
    (shop / "min.js").write_text("x" * 9000)
    done = run("ingest", str(shop), "--corpus", "shop", "--url", server.url)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "shop: 0 added, 1 changed, 1 deleted, 1 unchanged, 2 left out"
    assert re.fullmatch(
        r"1 chunks, \d+ tokens, 0.00 MB of text in [\d.]+ s \([\d.]+ s of them for vectors\)",
        second,
    )
    assert "left out: min.js: has a line of 9,000 characters" in done.stderr
    assert "logo.png" not in done.stderr  # nobody wants to hear of every image


def test_corpora_are_listed_described_and_dropped(shop: Path, server: Server) -> None:
    heading, row = ok("corpus", "list", "--url", server.url).splitlines()
    assert heading.split()[:3] == ["NAME", "FILES", "CHUNKS"]
    assert row.split() == ["shop", "3", "3", "smol", "minilm", str(shop.resolve())]
    info = ok("corpus", "info", "shop", "--url", server.url)
    assert re.search(r"^folder +" + re.escape(str(shop.resolve())), info, re.M)
    assert re.search(r"^embedding model +minilm \(384 dimensions\)", info, re.M)
    assert ok("corpus", "drop", "shop", "--url", server.url) == "shop: dropped, with 3 files\n"
    assert ok("corpus", "list", "--url", server.url).count("\n") == 1


def test_ask_prints_the_answer_and_then_where_it_is_from(
    shop: Path, server: Server, loaded: Infer
) -> None:
    question = "Where is the password of a user checked?"
    expected = Corpus(loaded, "shop").ask(question, max_tokens=10, top_n=2)
    done = run("ask", "shop", question, "-n", "10", "--hits", "2", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.text.strip() + "\n"
    assert f"{expected.sources[0].score:.3f}  src/password.py:1-6\n" in done.stderr
    only = ok("ask", "shop", question, "-n", "1", "--where", '.path == "x"', "--url", server.url)
    assert only.count("\n") >= 1


def test_a_question_longer_than_the_embedding_models_context_is_answered(
    shop: Path, loaded: Infer
) -> None:
    question = "Where is the password of a user checked? " * 200
    answer = Corpus(loaded, "shop").ask(question, max_tokens=1, top_n=1)
    assert answer.sources[0].path == "src/password.py"


async def test_the_async_corpus_embeds_questions_as_well(
    shop: Path, server: Server, loaded: Infer
) -> None:
    question = "Where is the password of a user checked?"
    expected = Corpus(loaded, "shop")
    async with server.async_client() as client:
        corpus = AsyncCorpus(AsyncInfer(client), "shop")
        assert await corpus.search(question) == expected.search(question)
        answer = await corpus.ask(question, max_tokens=8)
        assert answer.text == expected.ask(question, max_tokens=8).text


def test_complete_finds_the_corpus_of_the_file(shop: Path, server: Server, loaded: Infer) -> None:
    path = shop / "src/invoice.py"
    text = path.read_text()
    expected = Corpus(loaded, "shop").complete(
        "src/invoice.py", text, 5, max_tokens=12, budget=1024
    )
    done = run("complete", str(path), "--line", "5", "-n", "12", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == expected.text.rstrip("\n")
    assert "src/password.py:1-6" in done.stderr and "src/invoice.py" not in done.stderr


def test_what_is_no_corpus_of_this_version_breaks_no_command(
    shop: Path, server: Server, client: redis.Redis
) -> None:
    settings = client.hgetall("{shop}:meta")
    client.hset("{app}:meta", "version", "1")
    client.hset(b"{\xe9}:meta", mapping=settings)
    client.hset("{later}:meta", mapping={**settings, b"version": b"2"})
    _, later, row = ok("corpus", "list", "--url", server.url).splitlines()
    assert later.startswith("later ") and "has format 2, and this is for format 1" in later
    assert row.startswith("shop ")
    ok("complete", str(shop / "src/invoice.py"), "--line", "5", "-n", "1", "--url", server.url)


def test_a_folder_of_any_bytes_is_printed_as_it_is(
    tmp_path: Path, loaded: Infer, server: Server
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (folder / "a.txt").write_text("a")
    ingest(loaded, folder, "odd", model="smol", embed_model="e", embed=hashing_embedder.embed)
    for words in (["list"], ["info", "odd"]):
        done = subprocess.run(
            [*COMMAND, "corpus", *words, "--url", server.url],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert os.fsencode(folder.resolve()) + b"\n" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_complete_reads_a_file_as_ingest_does(
    shop: Path, server: Server, loaded: Infer, encoding: str
) -> None:
    text = "# grün\ndef total(invoice):\n    return 1\n"
    (shop / "src/odd.py").write_bytes(text.encode(encoding))
    expected = Corpus(loaded, "shop").complete("src/odd.py", text, 2, max_tokens=12, budget=1024)
    shown = ok("complete", str(shop / "src/odd.py"), "--line", "2", "-n", "12", "--url", server.url)
    assert shown.rstrip("\n") == expected.text.rstrip("\n")
    done = run("complete", str(shop / "logo.png"), "--line", "0", "--url", server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "logo.png is no text but binary" in done.stderr


def test_a_file_outside_the_corpus_does_not_pass_for_one_inside(
    shop: Path, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "README.md"
    outside.write_text(FILES["README.md"])
    args = ("--line", "1", "-n", "1", "--corpus", "shop", "--url", server.url)
    done = run("complete", str(outside), *args)
    assert done.returncode == 0, done.stderr
    assert "  README.md:1-3" in done.stderr
    inside = run("complete", str(shop / "README.md"), *args)
    assert inside.returncode == 0 and "README.md" not in inside.stderr


def test_what_the_tokenizer_lacks_is_not_blamed_on_the_line(shop: Path, server: Server) -> None:
    program = (
        "import sys; from redis_infer import Corpus, TokenizerError; "
        "from redis_infer.cli import main\n"
        "def complete(*_, **__): raise TokenizerError('no tokenizer here')\n"
        "Corpus.complete = complete; "
        f"sys.argv = ['redis-infer', 'complete', {str(shop / 'README.md')!r}, '--line', '1', "
        f"'--url', {server.url!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "redis-infer: no tokenizer here\n")


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["ingest", "/no/such/folder", "--corpus", "x"], 2, "is no folder"),
        (["ingest", "."], 2, "--corpus"),
        (["ingest", ".", "--corpus", "a b"], 1, "can't be the name of a corpus"),
        (["ask", "nothing", "why?"], 1, "there is no corpus 'nothing'"),
        (["corpus", "drop", "nothing"], 1, "there is no corpus 'nothing'"),
        (["complete", "/no/such/file", "--line", "1"], 2, "cannot be read"),
        (["complete", __file__, "--line", "1"], 1, "no corpus was made from a folder around"),
        (["corpus", "list", "--url", "redis://127.0.0.1:1"], 1, "redis-infer serve"),
        (["corpus", "list", "--url", "http://x"], 2, "redis://"),
        (["corpus", "list", "--url", "redis://127.0.0.1?foo=1"], 2, "is no option of a connection"),
        (
            ["corpus", "info", os.fsdecode(b"caf\xe9")],
            1,
            "'caf\\udce9' can't be the name of a corpus",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_that_says_what_to_do(
    server: Server, loaded: Infer, args: list[str], status: int, says: str
) -> None:
    done = run(*args, REDIS_INFER_URL=server.url)
    assert done.returncode == status
    assert done.stdout == ""
    assert re.fullmatch(r"redis-infer: [^\n]+\n", done.stderr), done.stderr
    assert says in done.stderr


def test_complete_refuses_a_line_that_is_not_there(shop: Path, server: Server) -> None:
    done = run("complete", str(shop / "README.md"), "--line", "9", "--url", server.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 9 of README.md: it has lines 1 to 3" in done.stderr


def test_without_an_embedding_model_ingest_says_what_is_missing(
    server: Server, loaded: Infer, tmp_path: Path
) -> None:
    done = run("ingest", str(tmp_path), "--corpus", "x", "--url", server.url)
    assert done.returncode == 2
    assert "no embedding model is loaded in that server: load one with" in done.stderr


@pytest.mark.parametrize("package", ["pathspec", "tree_sitter", "tree_sitter_python"])
def test_without_the_extra_ingest_says_what_to_install(
    shop: Path, server: Server, package: str
) -> None:
    (shop / "src/new.py").write_text("new = 1\n")
    program = (
        f"import sys; sys.modules[{package!r}] = None; from redis_infer.cli import main; "
        f"sys.argv = ['redis-infer', 'ingest', {str(shop)!r}, '--corpus', 'shop', "
        f"'--url', {server.url!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"redis-infer: ingest needs the package {package}: run "
        "\"pip install 'redis-infer[ingest]'\"\n"
    )
