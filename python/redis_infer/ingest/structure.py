"""Where a text may be cut: how deep in its structure each line begins.

A border before a line has a level: 0 between top-level definitions or before a chapter, more the
deeper it lies. Grammars of tree-sitter say so for programming languages; headings, fences and
blank lines for Markdown and its like; blank lines and indentation for everything else.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import tree_sitter

from ..errors import missing

# Suffix or whole name -> language.
_LANGUAGES = {
    suffix: language
    for language, suffixes in {
        "bash": ".sh .bash .bashrc .profile",
        "c": ".c .h",
        "c-sharp": ".cs",
        "cmake": ".cmake CMakeLists.txt",
        "cpp": ".cc .cpp .cxx .hh .hpp .hxx .ipp .cu",
        "css": ".css .scss .less",
        "go": ".go",
        "html": ".html .htm",
        "java": ".java",
        "javascript": ".js .jsx .mjs .cjs",
        "json": ".json",
        "kotlin": ".kt .kts",
        "lua": ".lua",
        "make": ".mk Makefile",
        "markdown": ".md .markdown .mdx",
        "perl": ".pl .pm",
        "php": ".php",
        "python": ".py .pyi .pyw",
        "rst": ".rst",
        "ruby": ".rb Rakefile Gemfile",
        "rust": ".rs",
        "sql": ".sql",
        "swift": ".swift",
        "text": ".txt",
        "toml": ".toml",
        "tsx": ".tsx",
        "typescript": ".ts .mts .cts",
        "xml": ".xml",
        "yaml": ".yaml .yml",
    }.items()
    for suffix in suffixes.split()
}

# Language -> the package of its grammar and the function in it.
_GRAMMARS = {
    "bash": ("tree_sitter_bash", "language"),
    "c": ("tree_sitter_c", "language"),
    "c-sharp": ("tree_sitter_c_sharp", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "python": ("tree_sitter_python", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}

_PROSE = frozenset({"markdown", "rst", "text"})

_INSIDE = 64
"""Levels from here on are those of borders inside what a grammar does not divide."""

# Parts of a grammar's names for what has a name that a reader looks for.
_DEFINITIONS = re.compile(
    "class|function|method|impl|interface|struct|enum|trait|mod_item|namespace|constructor|decorated"
)
# What stands before a definition and belongs to it.
_PREFACES = re.compile("comment|attribute_item|annotation")

_MAX_LABEL_CHARS = 80


@dataclass(frozen=True)
class Scope:
    """A definition or section that is larger than a chunk: lines [start, end) from 0."""

    start: int
    end: int
    label: str


@dataclass
class Structure:
    """Of a text of n lines.

    Attributes:
        levels: [n] the level of the border before each line; that before line 0 means nothing.
        scopes: what a border may lie inside, outer before inner.
        beginnings: lines with which a definition or section begins, comments on it included.
    """

    levels: list[int]
    scopes: list[Scope] = field(default_factory=list)
    beginnings: set[int] = field(default_factory=set)

    def cut(self, line: int, level: int) -> None:
        if line < len(self.levels):
            self.levels[line] = min(self.levels[line], level)


def language_of(path: str) -> str:
    """The language of a file by its name, such as "python"; else its suffix, or ""."""
    name = PurePosixPath(path).name
    suffix = PurePosixPath(path).suffix.lower()
    return _LANGUAGES.get(name) or _LANGUAGES.get(suffix) or suffix[1:]


def structure_of(
    lines: list[str], language: str, is_large: Callable[[int, int], bool]
) -> Structure:
    """The structure of a text.

    Args:
        is_large: whether lines [start, end) need a cut. What does not is not looked into.
    """
    if language in _GRAMMARS:
        return _by_grammar(lines, language, is_large)
    if language in _PROSE:
        return _by_headings(lines)
    return _by_indentation(lines)


# ---- programming languages ----


@functools.cache
def _grammar(language: str) -> tree_sitter.Language:
    package, function = _GRAMMARS[language]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise missing(package) from error
    return tree_sitter.Language(getattr(module, function)())


def _by_grammar(lines: list[str], language: str, is_large: Callable[[int, int], bool]) -> Structure:
    # Inside what the grammar cannot tell apart, a long string say, indentation helps.
    below = _by_indentation(lines).levels
    found = Structure([_INSIDE + level for level in below])
    source = "\n".join(lines).encode()
    root = tree_sitter.Parser(_grammar(language)).parse(source).root_node
    indents = [len(line) - len(line.lstrip()) for line in lines]
    waiting = [(root, 0)]
    while waiting:
        node, level = waiting.pop()
        preface: range | None = None  # rows of comments and the like right above
        for child in node.named_children:
            start, column = child.start_point
            end = _end_row(child)
            is_first_of_line = column == indents[start]
            continues = preface is not None and start <= preface.stop
            is_preface = is_first_of_line and _PREFACES.search(child.type) is not None
            is_definition = _DEFINITIONS.search(child.type) is not None
            if is_definition:
                found.beginnings.add(preface.start if continues and preface is not None else start)
            if is_first_of_line and not continues:
                found.cut(start, level)
            if is_preface:
                first = preface.start if continues and preface is not None else start
                preface = range(first, end)
            else:
                preface = None
            if end - start > 1 and is_large(start, end):
                waiting.append((child, min(level + 1, _INSIDE - 1)))
                if is_definition and child.child_by_field_name("body"):
                    found.scopes.append(Scope(start, end, _label(lines, child)))
    found.scopes.sort(key=lambda scope: (scope.start, -scope.end))
    return found


def _end_row(node: tree_sitter.Node) -> int:
    """The row after a node's last; some end at the beginning of the next row."""
    row, column = node.end_point
    return row + 1 if column else max(row, node.start_point[0] + 1)


def _label(lines: list[str], node: tree_sitter.Node) -> str:
    label = lines[node.start_point[0]].strip().rstrip("{:").rstrip()
    return label[:_MAX_LABEL_CHARS]


# ---- prose ----

_HEADING = re.compile(r"(#{1,6})\s+(.*)")
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_UNDERLINE = re.compile(r"(=+|-+|~+|\^+|\*+|\++|#+|\"+|'+)\s*$")
_UNDERLINE_DEPTH = {"=": 1, "-": 2, "~": 3, "^": 4}
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s")

_PARAGRAPH, _LIST_ITEM, _FENCED_PARAGRAPH, _LINE = 8, 9, 10, 12


def _by_headings(lines: list[str]) -> Structure:
    found = Structure([_LINE] * len(lines))
    headings: list[tuple[int, int, str]] = []  # line, depth from 1, label
    fence = ""
    for i, line in enumerate(lines):
        after_blank = i == 0 or not lines[i - 1].strip()
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence):
                fence = ""
            found.cut(i, _FENCED_PARAGRAPH if after_blank and line.strip() else _LINE)
            continue
        if mark:
            fence = mark[1]
        depth, label = _heading(lines, i)
        if depth:
            headings.append((i, depth, label))
            found.beginnings.add(i)
            found.cut(i, depth - 1)
        elif line.strip() and after_blank:
            found.cut(i, _PARAGRAPH)
        elif _ITEM.match(line):
            found.cut(i, _LIST_ITEM)
    for k, (start, depth, label) in enumerate(headings):
        end = next((line for line, d, _ in headings[k + 1 :] if d <= depth), len(lines))
        found.scopes.append(Scope(start, end, label))
    return found


def _heading(lines: list[str], i: int) -> tuple[int, str]:
    """Depth from 1 and text of a heading that begins at line i; 0 where there is none."""
    marked = _HEADING.match(lines[i])
    if marked:
        return len(marked[1]), marked[2].strip(" #")[:_MAX_LABEL_CHARS]
    title = lines[i].strip()
    if i + 1 < len(lines) and len(title) > 2 and not _UNDERLINE.match(title):
        line = lines[i + 1]
        if _UNDERLINE.match(line) and len(line.rstrip()) >= max(3, len(title) - 2):
            return _UNDERLINE_DEPTH.get(line[0], 5), title[:_MAX_LABEL_CHARS]
    return 0, ""


# ---- everything else ----

_MAX_INDENT_LEVEL = 8


def _by_indentation(lines: list[str]) -> Structure:
    """After a blank line, the less indented the better; without one, only as a last resort."""
    levels = []
    after_blank = True
    for line in lines:
        text = line.lstrip()
        if not text:
            levels.append(2 * _MAX_INDENT_LEVEL + 1)
        else:
            indent = min((len(line) - len(text) + 1) // 2, _MAX_INDENT_LEVEL - 1)
            levels.append(indent + (0 if after_blank else _MAX_INDENT_LEVEL))
        after_blank = not text
    return Structure(levels)
