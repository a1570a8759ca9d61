"""Prompts around retrieved text: a question about a corpus, and the completion of a file.

Both have the shape that a prefix cache wants: what is the same for all requests first, then what
was found, then what this request asks.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import TokenizerError

if TYPE_CHECKING:
    from .results import TokenArray
    from .tokenizer import Tokenizer

PROBE_TEXT = "The same model gives this sentence the same vector."
"""Its embedding is kept with a corpus: another model is recognized by another one."""

SYSTEM = (
    "You answer questions about a collection of files. Excerpts from it are given, each below a "
    "line with its path and lines. Answer briefly, from the excerpts alone, and name the files "
    "that you rely on. If the excerpts do not answer the question, say so."
)

_EXCERPTS = "@@ excerpts @@"
_QUESTION = "@@ question @@"
_USER = f"Excerpts:\n\n{_EXCERPTS}\nQuestion: {_QUESTION}"


def _turn(tokenizer: Tokenizer, system: str) -> list[str]:
    """The text before the excerpts, between them and the question, and after the question."""
    if tokenizer.chat_template is None:
        text = f"{system}\n\n{_USER}\nAnswer:"
    else:
        user = {"role": "user", "content": _USER}
        try:
            text = tokenizer.render_chat([{"role": "system", "content": system}, user])
        except TokenizerError:  # some templates know no system turn
            text = tokenizer.render_chat([{"role": "user", "content": f"{system}\n\n{_USER}"}])
    before, _, rest = text.partition(_EXCERPTS)
    between, _, after = rest.partition(_QUESTION)
    return [before, between, after]


def prefix_of(tokenizer: Tokenizer, system: str = SYSTEM) -> TokenArray:
    """The tokens that come before the excerpts, the same for every question."""
    add_special = tokenizer.chat_template is None
    return tokenizer.encode(_turn(tokenizer, system)[0], add_special=add_special)


def question_of(tokenizer: Tokenizer, question: str, system: str = SYSTEM) -> TokenArray:
    """The tokens that come after the excerpts. The question cannot forge the end of its turn."""
    _, between, after = _turn(tokenizer, system)
    return np.concatenate(
        [
            tokenizer.encode(between, continues=True),
            tokenizer.encode(question, parse_special=False, continues=True),
            tokenizer.encode(after, continues=True),
        ]
    )


# ---- completion of code ----


@dataclass(frozen=True)
class FillIn:
    """Tokens with which a model was trained to fill a gap, by their texts in the vocabulary."""

    prefix: str
    suffix: str
    middle: str


_FILL_INS = (
    FillIn("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    FillIn("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    FillIn("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FillIn("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    FillIn("<PRE>", "<SUF>", "<MID>"),
    FillIn("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  DeepSeek-Coder
)


def fill_in_of(tokenizer: Tokenizer) -> FillIn | None:
    """The fill-in-the-middle tokens of a vocabulary, if it has them."""
    for fill_in in _FILL_INS:
        names = (fill_in.prefix, fill_in.suffix, fill_in.middle)
        if all(tokenizer.token_id(name) is not None for name in names):
            return fill_in
    return None


def fills_gaps(tokenizer: Tokenizer) -> bool:
    return fill_in_of(tokenizer) is not None


@dataclass(frozen=True)
class Gap:
    r"""The place in a file where text is wanted.

    Attributes:
        path: named to the model as the paths of the similar code are.
        text: of the file, as a corpus reads it: line ends of every system become ``\n``.
        line: the last one before the gap, counted from 1; 0: the gap is at the beginning.

    Raises:
        ValueError: the text has no such line.
    """

    path: str
    text: str
    line: int

    def __post_init__(self) -> None:
        n_lines = len(self._lines)
        if not 0 <= self.line <= n_lines:
            raise ValueError(f"line {self.line} of {self.path}: it has lines 1 to {n_lines}")

    @property
    def _lines(self) -> list[str]:
        return io.StringIO(self.text, newline=None).readlines()

    @property
    def before(self) -> str:
        return "".join(self._lines[: self.line])

    @property
    def after(self) -> str:
        return "".join(self._lines[self.line :])

    @property
    def query(self) -> str:
        """What similar code is like: the text around the gap, most of it from before it.

        Below the path at most QUERY_CHARS characters, of them QUERY_CHARS_AFTER from after the gap.
        """
        lines, first = self._lines, max(0, self.line - QUERY_LINES_BEFORE)
        after = "".join(lines[self.line : self.line + QUERY_LINES_AFTER])[:QUERY_CHARS_AFTER]
        before = "".join(lines[first : self.line])[-(QUERY_CHARS - len(after)) :]
        return f"{self.path} \n{before}{after}"


QUERY_LINES_BEFORE, QUERY_LINES_AFTER = 16, 4
QUERY_CHARS, QUERY_CHARS_AFTER = 1200, 300

MAX_TOKENS_BEFORE, MAX_TOKENS_AFTER = 1024, 512
"""Of the file itself; what is farther from the gap says less than similar code does."""


def completion_of(tokenizer: Tokenizer, gap: Gap) -> tuple[TokenArray, TokenArray]:
    """The tokens before and after the similar code that a completion is given.

    With fill-in-the-middle tokens the model sees what follows the gap; without them it
    continues the text before it, as at the end of a file.
    """
    first = np.array([tokenizer.bos_id] if tokenizer.add_bos else [], np.uint32)
    before = tokenizer.encode(gap.before, parse_special=False, continues=True)[-MAX_TOKENS_BEFORE:]
    before = np.concatenate([tokenizer.encode(f"{gap.path}\n", parse_special=False), before])
    fill_in = fill_in_of(tokenizer)
    if fill_in is None:
        return first, before
    # The similar code is inside the prefix, which is where training puts other files.
    prefix, suffix, middle = (
        np.array([tokenizer.token_id(name)], np.uint32)
        for name in (fill_in.prefix, fill_in.suffix, fill_in.middle)
    )
    after = tokenizer.encode(gap.after, parse_special=False, continues=True)[:MAX_TOKENS_AFTER]
    return np.concatenate([first, prefix]), np.concatenate([before, suffix, after, middle])
