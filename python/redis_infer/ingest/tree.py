"""The files of a tree that are text and meant to be read, and their text.

What git would not track is left out: every ``.gitignore`` from the top of the repository down
to the file's own folder is obeyed, and ``.git/info/exclude``. Links are not followed, as git does
not: what they point to inside the tree is found under its own name, and there are no loops.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from .. import decoding

MAX_FILE_BYTES = 1 << 20
"""Larger files are data or generated."""

MAX_LINE_CHARS = 8192
"""A longer line means minified code or data: it can be neither read nor cut."""

_GONE = (FileNotFoundError, NotADirectoryError)

_CONTROL_FOLDERS = frozenset({".git", ".hg", ".svn", ".jj"})

OnError = Callable[[str, OSError], None]
"""Called with the path of what could not be looked at, and why."""


class SkippedError(Exception):
    """A file that is not ingested; the message says why."""


@dataclass(frozen=True)
class SourceFile:
    """A file of the tree.

    Attributes:
        path: relative to the root, with ``/`` between its parts.
        size: in bytes, when it was found.
    """

    root: Path
    path: str
    size: int

    def read(self, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The file's bytes.

        Raises:
            SkippedError: it is too large, or no longer a plain file.
            FileNotFoundError: it is gone.
            OSError: it cannot be read.
        """
        # A file may become a link or a pipe between the walk and here.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self.root / self.path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SkippedError("not a plain file")
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise SkippedError(f"larger than {max_bytes:,} bytes")
        return data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(root: Path, on_error: OnError = lambda _path, _error: None) -> Iterator[SourceFile]:
    """The plain files below ``root`` that git would not ignore, in a fixed order.

    A folder that cannot be listed is left out. A file whose name is not UTF-8 has no name
    in JSON, and is left out too.

    Args:
        on_error: called for each folder and file that is left out because of an error.

    Raises:
        NotADirectoryError: ``root`` is no folder.
        OSError: ``root`` cannot be listed.
    """
    root = root.resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder")
    above = list(_rules_above(root))
    if _ignored(above, root, True):
        above = []  # whoever names an ignored folder wants it
    # Not recursive: a tree may be deeper than Python's stack.
    waiting: list[tuple[str, list[_Rules]] | SourceFile] = [("", above)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, SourceFile):
            yield item
        else:
            waiting.extend(reversed(list(_listing(root, *item, on_error))))


@dataclass(frozen=True)
class _Rules:
    """One .gitignore.

    Attributes:
        folder: where it lies.
        spec: its patterns, for paths relative to that folder.
    """

    folder: Path
    spec: GitIgnoreSpec


def _listing(
    root: Path, folder: str, rules: list[_Rules], on_error: OnError
) -> Iterator[tuple[str, list[_Rules]] | SourceFile]:
    """The files of one folder, and its folders with the rules that hold in them."""
    here = root / folder
    own = _read_rules(here, here / ".gitignore")
    if own is not None:
        rules = [*rules, own]
    try:
        with os.scandir(here) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if not folder:
            raise
        if not isinstance(error, _GONE):
            on_error(folder, error)
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        try:
            path.encode("utf-8")
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _CONTROL_FOLDERS and not _ignored(rules, root / path, True):
                    yield path, rules
            elif entry.is_file(follow_symlinks=False) and not _ignored(rules, root / path, False):
                yield SourceFile(root, path, entry.stat(follow_symlinks=False).st_size)
        except (UnicodeEncodeError, *_GONE):
            continue
        except OSError as error:
            on_error(path, error)


def _ignored(rules: list[_Rules], path: Path, is_folder: bool) -> bool:
    """The nearest .gitignore that has something to say about a path decides."""
    slash = "/" if is_folder else ""
    for rule in reversed(rules):
        decision = rule.spec.check_file(path.relative_to(rule.folder).as_posix() + slash)
        if decision.include is not None:
            return decision.include
    return False


def _rules_above(root: Path) -> Iterator[_Rules]:
    """The rules of the repository that ``root`` is a part of, from its top down."""
    # Not exists(), which raises where a folder may be listed but not entered.
    top = next((p for p in (root, *root.parents) if os.access(p / ".git", os.F_OK)), None)
    if top is None:
        return
    exclude = _read_rules(top, top / ".git" / "info" / "exclude")
    if exclude is not None:
        yield exclude
    between = [p for p in root.parents if p == top or top in p.parents]
    for folder in reversed(between):
        found = _read_rules(folder, folder / ".gitignore")
        if found is not None:
            yield found


def _read_rules(folder: Path, file: Path) -> _Rules | None:
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError:
        return None
    valid = []
    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:  # git passes over a pattern that it cannot read
            continue
        valid.append(line)
    return _Rules(folder, GitIgnoreSpec.from_lines(valid)) if valid else None


def text_of(data: bytes) -> str:
    """The text of a file's bytes, as :func:`redis_infer.decoding.text_of` reads it.

    Raises:
        SkippedError: it is not text, or has lines that nobody wrote.
    """
    try:
        text = decoding.text_of(data)
    except decoding.NotTextError as error:
        raise SkippedError(str(error)) from None
    longest = max(map(len, text.split("\n")))
    if longest > MAX_LINE_CHARS:
        raise SkippedError(f"has a line of {longest:,} characters")
    return text
