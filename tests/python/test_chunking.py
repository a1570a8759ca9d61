"""Where texts are cut."""

from __future__ import annotations

import ast
import itertools
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from awkward_texts import awkward_texts
from redis_infer.ingest.chunking import Chunk, chunks, estimate_tokens
from redis_infer.ingest.structure import language_of, structure_of
from redis_infer.tokenizer import Tokenizer

PROJECT = Path(__file__).parents[2]
STDLIB = Path(sysconfig.get_paths()["stdlib"])


def cut(text: str, path: str, max_tokens: int = 128, overlap: int = 0) -> list[Chunk]:
    return chunks(text, path, language_of(path), max_tokens=max_tokens, overlap=overlap)


def covered(found: list[Chunk]) -> set[int]:
    return {line for chunk in found for line in range(chunk.start, chunk.end + 1)}


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(model_path)


TEXTS = {
    "decoder.py": (STDLIB / "json/decoder.py").read_text(),
    "README.md": (PROJECT / "README.md").read_text(),
    "rules.toml": (PROJECT / "pyproject.toml").read_text(),
    "prose.txt": (PROJECT / "tests/python/data/texts/prose.txt").read_text(),
    "c.c": (PROJECT / "tests/python/data/texts/c.txt").read_text(),
    "r.rs": (PROJECT / "tests/python/data/texts/rust.txt").read_text(),
    "noend.py": "a = 1\n\n\nb = 2",
    "unknown.xyz": "one\n  two\n\nthree\n" * 100,
    "broken.py": "def f(:\n  ((\n" * 200 + "'''",
    "data.json": json.dumps({str(i): list(range(i)) for i in range(40)}, indent=1),
    "blank.py": "\n\n  \n\n",
    "empty.py": "",
}


@pytest.mark.parametrize("overlap", [0, 24])
@pytest.mark.parametrize("path", TEXTS)
def test_chunks_are_whole_lines_and_cover_all_that_are_not_blank(path: str, overlap: int) -> None:
    text = TEXTS[path]
    lines = text.split("\n")
    found = cut(text, path, overlap=overlap)
    for chunk in found:
        assert chunk.text == "".join(line + "\n" for line in lines[chunk.start - 1 : chunk.end])
        assert chunk.text.strip()
    assert covered(found) >= {i for i, line in enumerate(lines, 1) if line.strip()}
    ends = [chunk.end for chunk in found]
    assert ends == sorted(set(ends))
    if overlap == 0:
        assert sum(c.end - c.start + 1 for c in found) == len(covered(found))


@pytest.mark.parametrize("path", ["a.py", "a.md", "a.ts", "a.unknown"])
def test_awkward_texts_are_cut_like_any_other(path: str) -> None:
    for text in awkward_texts(100):
        text = text.replace("\r\n", "\n").replace("\r", "\n") * 3
        lines = text.split("\n")
        found = cut(text, path, max_tokens=32)
        assert covered(found) >= {i for i, line in enumerate(lines, 1) if line.strip()}


def test_a_chunk_has_about_as_many_tokens_as_it_may(tokenizer: Tokenizer) -> None:
    found = cut(TEXTS["decoder.py"], "json/decoder.py", max_tokens=256, overlap=32)
    counts = [len(tokenizer.encode(chunk.document("json/decoder.py"))) for chunk in found]
    assert max(counts) < 1.2 * 256
    assert np.median(counts) > 0.4 * 256


def test_the_estimate_is_near_the_count(tokenizer: Tokenizer) -> None:
    for path in ("decoder.py", "README.md", "prose.txt", "c.c", "r.rs"):
        totals = estimate_tokens(TEXTS[path])
        assert len(totals) == len(TEXTS[path].splitlines()) + 1
        assert np.all(np.diff(totals) >= 0)
        assert totals[-1] == pytest.approx(len(tokenizer.encode(TEXTS[path])), rel=0.2)


def test_functions_are_not_cut_where_they_fit() -> None:
    text = TEXTS["decoder.py"]
    definitions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and len(ast.unparse(node)) < 500
    ]
    found = cut(text, "decoder.py", max_tokens=400)
    assert len(definitions) > 3 and len(found) > 5
    for node in definitions:
        assert node.end_lineno is not None
        around = [c for c in found if c.start <= node.lineno and c.end >= node.end_lineno]
        assert around, f"{node.name} is cut"


def test_a_comment_stays_with_the_function_below_it() -> None:
    filler = "".join(f"    value_{i} = compute({i}, {i + 1})\n" for i in range(12))
    text = "".join(
        f"# What f{k} is for,\n# in two lines.\n@decorated\ndef f{k}():\n{filler}\n\n"
        for k in range(6)
    )
    for chunk in cut(text, "a.py", max_tokens=300):
        assert chunk.text.startswith("# What")


def test_a_comment_at_the_end_of_a_line_belongs_to_that_line() -> None:
    lines = ["a = [", "    1,", "]  # that is all", "b = [", "    2,", "]", "# on c", "c = 3"]
    levels = structure_of(lines, "python", lambda _start, _end: True).levels
    assert [i for i, level in enumerate(levels) if level == 0] == [0, 3, 6]


def test_a_long_definition_says_in_each_part_what_it_is() -> None:
    body = "".join(f"        self.value_{i} = compute({i}, {i + 1})\n" for i in range(60))
    text = f"class Outer:\n    x = 1\n\n    def method(self, a):\n{body}"
    found = cut(text, "pkg/a.py", max_tokens=256, overlap=24)
    assert len(found) > 2
    assert found[-1].scope == "class Outer > def method(self, a)"
    header, first = found[-1].document("pkg/a.py").split("\n")[:2]
    assert header == f"pkg/a.py:{found[-1].start}-{found[-1].end} {found[-1].scope}"
    assert first == text.split("\n")[found[-1].start - 1]


def test_a_chunk_inside_a_definition_repeats_the_lines_before_it() -> None:
    body = "".join(f"    value_{i} = compute({i}, {i + 1})\n" for i in range(60))
    plain = cut(f"def f():\n{body}", "a.py", max_tokens=256)
    lapped = cut(f"def f():\n{body}", "a.py", max_tokens=256, overlap=40)
    assert all(b.start == a.end + 1 for a, b in itertools.pairwise(plain))
    assert all(b.start <= a.end for a, b in itertools.pairwise(lapped))


def test_markdown_is_cut_at_headings_and_never_before_in_code() -> None:
    section = "Some words about this. " * 12 + "\n\n```sh\n# not a heading\nrun it\n```\n\n"
    text = "# Title\n\n" + "".join(f"## Part {k}\n\n{section}" for k in range(6))
    found = cut(text, "a.md", max_tokens=160)
    assert len(found) >= 6
    for chunk in found:
        assert chunk.text.startswith(("# Title", "## Part"))
    assert found[-1].scope == "Title"


def test_a_line_longer_than_a_chunk_is_a_chunk_of_its_own() -> None:
    long = "x = [" + "1234, " * 400 + "]"
    found = cut(f"a = 1\n\n{long}\n\nb = 2\n", "a.py", max_tokens=64)
    assert [c.text for c in found] == ["a = 1\n", long + "\n", "b = 2\n"]


@pytest.mark.parametrize("path", ["a.py", "a.md", "a.unknown"])
@pytest.mark.parametrize(
    "before", ["", "a = 1\n", "def f():\n    a = 1\n", "# Title\n\n## Notes\n\n"]
)
def test_a_line_longer_than_a_chunk_repeats_no_other(path: str, before: str) -> None:
    indent = "    " if before.startswith("def") else ""
    long = f"{indent}x = [" + "1234, " * 400 + "]\n"
    found = cut(f"{before}{long}{indent}b = 2\n", path, max_tokens=128, overlap=32)
    assert long in [c.text for c in found]


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "python"),
        ("B.RS", "rust"),
        ("x.tsx", "tsx"),
        ("CMakeLists.txt", "cmake"),
        ("notes.txt", "text"),
        ("what.zig", "zig"),
        ("LICENSE", ""),
        (".bashrc", "bash"),
    ],
)
def test_the_language_is_known_by_the_name(path: str, language: str) -> None:
    assert language_of(path) == language


@pytest.mark.parametrize(
    "suffix", [*"c", "sh", "cs", "cpp", "go", "java", "js", "py", "rb", "rs", "tsx", "ts"]
)
def test_every_grammar_can_be_loaded(suffix: str) -> None:
    text = "x = 1\n" * 200
    assert len(cut(text, f"a.{suffix}", max_tokens=64)) > 3
