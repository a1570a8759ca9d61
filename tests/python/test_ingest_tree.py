"""Which files of a tree are taken, and what text they hold."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_infer.ingest import tree


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def names(root: Path) -> list[str]:
    return [file.path for file in tree.files(root)]


IGNORING = {
    ".gitignore": "*.log\n!keep.log\nbuild/\n/only-top.txt\n\\#odd\ndoc/**/*.tmp\n\\!bang\n  \n#\n",
    "a.py": "",
    "a.log": "",
    "keep.log": "",
    "only-top.txt": "",
    "#odd": "",
    "!bang": "",
    "build/inside.py": "",
    "sub/build": "a file of that name",
    "sub/only-top.txt": "",
    "sub/.gitignore": "!a.log\nkeep.log\n*.py\n!/main.py\nskipped/*\n!skipped/back.txt\n",
    "sub/a.log": "",
    "sub/b.log": "",
    "sub/keep.log": "",
    "sub/main.py": "",
    "sub/deep/main.py": "",
    "sub/skipped/gone.txt": "",
    "sub/skipped/back.txt": "",
    "doc/a/b/c.tmp": "",
    "doc/a/b/c.txt": "",
    "space name/ü.txt": "",
}


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")
def test_what_git_ignores_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, IGNORING)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git/info").mkdir(exist_ok=True)
    (tmp_path / ".git/info/exclude").write_text("c.txt\n")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        env=os.environ | {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert sorted(names(tmp_path)) == sorted(listed.stdout.decode().strip("\0").split("\0"))


def test_rules_hold_without_a_repository_too(tmp_path: Path) -> None:
    write(tmp_path, IGNORING)
    found = names(tmp_path)
    assert "keep.log" in found and "sub/a.log" in found and "sub/main.py" in found
    assert not {"a.log", "sub/keep.log", "build/inside.py", "sub/deep/main.py"} & set(found)


def test_rules_above_the_folder_hold_as_well(tmp_path: Path) -> None:
    write(tmp_path, {**IGNORING, ".git/HEAD": ""})
    assert names(tmp_path / "sub" / "skipped") == ["back.txt"]
    # Whoever names an ignored folder wants what is in it.
    assert names(tmp_path / "build") == ["inside.py"]


def test_a_pattern_that_means_nothing_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "!\n[\n/\n*.log\n", "a.log": "", "a.txt": ""})
    assert names(tmp_path) == [".gitignore", "a.txt"]


def test_a_byte_order_mark_is_no_part_of_the_first_pattern(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "\ufeff*.log\n*.tmp\n", "a.log": "", "a.tmp": "", "a.txt": ""})
    assert names(tmp_path) == [".gitignore", "a.txt"]


@contextlib.contextmanager
def permissions() -> Iterator[None]:
    """They count here, also where the tests run as root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def partly_closed() -> Iterator[Path]:
    """A tree that others than root may reach, with a folder that may not be listed and one that
    may be listed but not entered."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        write(root, {"a.txt": "", "closed/b.txt": "", "listed/c.txt": "", "listed/sub/d.txt": ""})
        (root / "closed").chmod(0)
        (root / "listed").chmod(0o444)
        yield root
        for path in (root, root / "closed", root / "listed"):
            path.chmod(0o755)


def test_what_cannot_be_looked_at_is_reported(partly_closed: Path) -> None:
    errors: dict[str, int | None] = {}
    with permissions():
        found = list(tree.files(partly_closed, lambda path, e: errors.update({path: e.errno})))
    assert [file.path for file in found] == ["a.txt"]
    assert errors == dict.fromkeys(["closed", "listed/c.txt", "listed/sub"], errno.EACCES)


def test_a_root_that_cannot_be_listed_is_an_error(partly_closed: Path) -> None:
    with permissions(), pytest.raises(PermissionError, match="closed"):
        list(tree.files(partly_closed / "closed"))
    with permissions():  # whether there is a .git in it cannot be seen
        assert names(partly_closed / "listed") == []


def test_a_folder_that_goes_during_the_walk_is_gone(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "", "b/c.txt": ""})
    errors: list[str] = []
    found = tree.files(tmp_path, lambda path, _: errors.append(path))
    assert next(found).path == "a.txt"
    shutil.rmtree(tmp_path / "b")
    assert (list(found), errors) == ([], [])


def test_links_pipes_and_loops_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"real/a.txt": "a"})
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "b.txt").symlink_to(tmp_path / "real/a.txt")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ["real/a.txt"]


def test_a_link_to_the_folder_itself_is_followed(tmp_path: Path) -> None:
    write(tmp_path, {"real/a.txt": "a"})
    (tmp_path / "link").symlink_to("real")
    assert names(tmp_path / "link") == ["a.txt"]


def test_a_tree_deeper_than_pythons_stack_is_no_problem(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)  # by steps: the whole path may be too long for one call
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        write(tmp_path, {"a.txt": ""})
        assert names(tmp_path) == ["a.txt"]
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree would recurse


def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    write(tmp_path, {"b.txt": ""})
    assert names(tmp_path) == ["b.txt"]


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": ""})
    with pytest.raises(NotADirectoryError, match=r"a\.txt is no folder"):
        list(tree.files(tmp_path / "a.txt"))


def test_a_file_that_became_a_link_or_too_large_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "0123456789"})
    (file,) = tree.files(tmp_path)
    assert file.read(10) == b"0123456789"
    with pytest.raises(tree.SkippedError, match="larger than 9 bytes"):
        file.read(9)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    (tmp_path / "a.txt").symlink_to("b.txt")
    with pytest.raises(OSError, match="symbolic links"):
        file.read()


# ---- bytes to text ----


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        ("grün ✓\n".encode(), "grün ✓\n"),
        ("\ufeffgrün".encode(), "grün"),
        ("grün ✓".encode("utf-16"), "grün ✓"),
        ("\ufeffgrün".encode("utf-16-be"), "grün"),
        ("\ufeffgrün".encode("utf-32-le"), "grün"),
        ("grün, no sign of UTF-8".encode("latin-1"), "grün, no sign of UTF-8"),
        (b"\x93quoted\x94 as Windows does", "“quoted” as Windows does"),
        (b"\x81 means nothing there, \xe9 does", "\x81 means nothing there, é does"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"page\x0cbreak and \x1b[1mbold\x1b[0m", "page\x0cbreak and \x1b[1mbold\x1b[0m"),
    ],
)
def test_text_in_any_encoding_is_read(data: bytes, text: str) -> None:
    assert tree.text_of(data) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7fELF\x02\x01\x01\0\0", "binary"),
        (b"\xff\xfe\x00\xd8", "binary"),  # half a surrogate pair in UTF-16
        (bytes(range(1, 256)) * 4, "binary"),
        (b"x" * 10_000, "line of 10,000 characters"),
    ],
)
def test_what_is_not_text_is_left_out_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(tree.SkippedError, match=reason):
        tree.text_of(data)


def test_any_bytes_at_all_give_text_or_a_reason() -> None:
    for seed in range(300):
        data = os.urandom(seed * 7)
        with contextlib.suppress(tree.SkippedError):
            assert "\r" not in tree.text_of(data)
