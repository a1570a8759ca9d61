"""Cuts a text into chunks of whole lines, along its structure.

A chunk is as many neighbouring functions, sections or paragraphs as fit; one that does not fit is
cut inside, at its own parts, and so on down to single lines. Never through a line: a line
longer than a chunk is a chunk of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .structure import Structure, structure_of

_SMALL_SHARE = 0.35
"""A chunk below this share of the limit goes to a neighbour that has room."""

_MAX_SCOPE_CHARS = 100
_MAX_SCOPE_TOKENS = 32
"""Of the line that names the definitions around a chunk; the tokens are what is set aside."""


@dataclass(frozen=True)
class Chunk:
    """Some lines of a file.

    Attributes:
        start, end: first and last line, counted from 1, both included.
        scope: the definitions or headings that the chunk lies in, outermost first.
        text: the lines, each ended by a newline.
    """

    start: int
    end: int
    scope: str
    text: str

    def document(self, path: str) -> str:
        """What a model reads: the chunk below a line that says where it comes from."""
        return f"{path}:{self.start}-{self.end}{' ' if self.scope else ''}{self.scope}\n{self.text}"

    def for_search(self, path: str) -> str:
        """What is embedded: no line numbers, which mean nothing to a question."""
        return f"{path} {self.scope}\n{self.text}"


def chunks(
    text: str,
    path: str,
    language: str,
    *,
    max_tokens: int,
    overlap: int,
    tokens_per_estimate: float = 1.0,
) -> list[Chunk]:
    """The chunks of a text, in order; together they cover every line that is not blank.

    Sizes are estimates (see :func:`estimate_tokens`): the caller counts the tokens and, where
    a chunk came out too large, asks again with a larger ``tokens_per_estimate``.

    Args:
        max_tokens: of a chunk's :meth:`Chunk.document`.
        overlap: most tokens of the lines before that a chunk repeats, where it begins inside
            a definition or section. A single line repeats none: it may be as large as it is, and
            a chunk of several lines is one that a larger ``tokens_per_estimate`` can cut.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return []
    totals = estimate_tokens(text) * tokens_per_estimate
    header = float(estimate_tokens(f"{path}:1000-1000\n")[-1]) + _MAX_SCOPE_TOKENS
    limit = max(max_tokens - overlap - header, max_tokens / 4)

    def is_large(start: int, end: int) -> bool:
        return bool(totals[end] - totals[start] > limit)

    structure = structure_of(lines, language, is_large)
    spans = _merge_small(list(_cut(structure.levels, totals, 0, len(lines), limit)), totals, limit)
    found = []
    for start, end in spans:
        while end > start and not lines[end - 1].strip():
            end -= 1
        while start < end and not lines[start].strip():
            start += 1
        if start == end:
            continue
        first = start
        inside = start and structure.levels[start] and start not in structure.beginnings
        if inside and end - start > 1:
            while first and totals[start] - totals[first - 1] <= overlap:
                first -= 1
            while not lines[first].strip():
                first += 1
        body = "".join(f"{line}\n" for line in lines[first:end])
        found.append(Chunk(first + 1, end, _scope(structure, first), body))
    return found


def _cut(
    levels: list[int], totals: npt.NDArray[np.float64], start: int, end: int, limit: float
) -> Iterator[tuple[int, int]]:
    """Spans of lines [start, end), at the best borders: neighbours together while they fit."""
    total = totals[end] - totals[start]
    if total <= limit or end - start == 1:
        yield start, end
        return
    best = min(levels[start + 1 : end])
    borders = [i for i in range(start + 1, end) if levels[i] == best]
    # Two halves read better than a whole and a scrap.
    fill = min(limit, 1.2 * total / math.ceil(total / limit))
    first = start
    for piece, next_piece in zip([start, *borders], [*borders, end], strict=True):
        if piece > first and totals[next_piece] - totals[first] > fill:
            yield from _cut(levels, totals, first, piece, limit)
            first = piece
    yield from _cut(levels, totals, first, end, limit)


def _merge_small(
    spans: list[tuple[int, int]], totals: npt.NDArray[np.float64], limit: float
) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged:
            before = merged[-1]
            sizes = (totals[before[1]] - totals[before[0]], totals[end] - totals[start])
            if min(sizes) < _SMALL_SHARE * limit and sum(sizes) <= limit:
                merged[-1] = (before[0], end)
                continue
        merged.append((start, end))
    return merged


def _scope(structure: Structure, line: int) -> str:
    """The innermost definitions or headings around a line, as many as fit."""
    around = [s.label for s in structure.scopes if s.start < line < s.end]
    while around and len(" > ".join(around)) > _MAX_SCOPE_CHARS:
        around.pop(0)
    return " > ".join(around)


# ---- how many tokens a text will have ----

_BLANK, _NEWLINE, _UPPER, _LOWER, _DIGIT, _OTHER, _HIGH = range(7)


def _classes() -> npt.NDArray[np.uint8]:
    table = np.full(256, _OTHER, np.uint8)
    table[128:] = _HIGH
    for byte in range(128):
        char = chr(byte)
        if char == "\n":
            table[byte] = _NEWLINE
        elif char.isspace():
            table[byte] = _BLANK
        elif char.isdigit():
            table[byte] = _DIGIT
        elif char.isalpha():
            table[byte] = _UPPER if char.isupper() else _LOWER
    return table


_CLASS_OF = _classes()


def estimate_tokens(text: str) -> npt.NDArray[np.float64]:
    """About how many tokens of a byte-pair vocabulary lie before each line: [lines + 1].

    Element i counts lines 0 to i-1. Tokenizing takes a hundred times as long. Words, camel
    case humps, digits and runs of signs and of blanks are a token each, long words more; the
    weights are a round fit to SmolLM2's tokens of C, Python, Rust and prose, which differ from the
    estimate by 8 % (standard deviation over pieces of 900 characters; bytes: 24 %).
    """
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    if not data.size:
        return np.zeros(1)
    kind = _CLASS_OF[data]
    before = np.concatenate([[np.uint8(_NEWLINE)], kind[:-1]])
    is_letter = (kind == _UPPER) | (kind == _LOWER)
    is_blank = kind <= _NEWLINE
    was_blank = before <= _NEWLINE
    stays_blank = np.concatenate([is_blank[1:], [False]])
    word = is_letter & (before != _UPPER) & (before != _LOWER)
    word |= (kind == _UPPER) & (before == _LOWER)
    index = np.arange(data.size)
    letter_of_word = index - np.maximum.accumulate(np.where(~is_letter | word, index, 0))
    weight = word.astype(np.float64)
    weight += 0.3 * (is_letter & np.isin(letter_of_word, (6, 9, 13)))
    weight += kind == _DIGIT
    weight += np.where(kind == _OTHER, np.where(before == _OTHER, 0.4, 1.0), 0.0)
    weight += is_blank & ~was_blank & (stays_blank | (kind == _NEWLINE))
    weight += 0.5 * (kind == _HIGH)
    totals = np.concatenate([[0.0], np.cumsum(weight)])
    ends = np.flatnonzero(data == ord("\n")) + 1
    if not ends.size or ends[-1] != data.size:
        ends = np.append(ends, data.size)
    return np.concatenate([[0.0], totals[ends]])
