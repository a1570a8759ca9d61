"""What the commands return. Field names are those of the replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.uint32]
FloatArray = npt.NDArray[np.float32]

FinishReason = Literal["stop", "length", "timeout", "cancelled"]

ModelInfo = dict[str, Any]
"""A model's properties, by the names that INFER.MODEL INFO gives them. In ``path`` bytes that are
no UTF-8 are lone surrogates, as :func:`os.fsdecode` makes them."""


RequestInfo = dict[str, Any]
"""A request under way, by the names that INFER.REQUESTS gives its properties."""


@dataclass(frozen=True, eq=False)
class Generation:
    """The reply of INFER.GENERATE."""

    text: str
    tokens: TokenArray
    """[output_tokens] What was generated, an end-of-text token and a stop text's included."""
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were still there from an earlier request."""
    output_tokens: int
    admit_us: int
    """Microseconds to admission, on Redis' main thread: parsing, searching, reading the keys."""
    queue_us: int
    """Microseconds between admission and the first step that worked on the prompt."""
    first_token_us: int
    """Microseconds from admission to the first generated token."""
    total_us: int
    """Microseconds from admission to the end."""
    logprobs: FloatArray | None = None
    """[output_tokens] Log-probability of each generated token; only with ``logprobs``."""
    top_ids: TokenArray | None = None
    """[output_tokens, logprobs] The likeliest tokens at each position, best first."""
    top_logprobs: FloatArray | None = None
    """[output_tokens, logprobs] Their log-probabilities."""

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Speed after the first token; None if there was no second one."""
        elapsed_us = self.total_us - self.first_token_us
        if self.output_tokens < 2 or elapsed_us <= 0:
            return None
        return (self.output_tokens - 1) / elapsed_us * 1e6


@dataclass(frozen=True)
class Piece:
    """What one token added to a generation. ``str(piece)`` is its text."""

    i: int
    """The token's place in the output, from 0."""
    token: int | None
    """Its id; None: a rest of the text that no token is behind."""
    text: str
    """Whole characters; may be empty."""
    logprob: float | None = None
    """The token's log-probability; only with ``logprobs``."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Source:
    """An element that a search found, in the reply of INFER.RAG."""

    element: str
    """Its name in the vector set; bytes that are no UTF-8 as lone surrogates."""
    score: float
    """As of VSIM: 1 is the query's own direction, 0 the opposite one."""
    tokens_used: int
    """Its tokens in the prompt; 0: it did not fit any more."""


@dataclass(frozen=True)
class SkippedSource:
    """An element that a search found and whose tokens could not be read."""

    element: str
    error: str
    """Begins with the error's code."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RagGeneration(Generation):
    """The reply of INFER.RAG: a generation, and what it was made from."""

    sources: list[Source]
    """Best first."""
    skipped: list[SkippedSource]
    """Left out; only with ``skip_bad``."""
    search_us: int
    """Microseconds of the search, on Redis' main thread."""
    gather_us: int
    """Microseconds to read attributes and tokens of the hits, on Redis' main thread."""
    embed_us: int | None = None
    """Microseconds until the query's vector was there; only where the command computed it."""


@dataclass(frozen=True, eq=False)
class Score:
    """The reply of INFER.SCORE for a text of n tokens."""

    logprobs: FloatArray
    """[n-1] Element i is log p(token[i+1] | token[0..i])."""
    top_ids: TokenArray | None = None
    """[n-1, top] The likeliest next tokens at each position, best first; only with ``top``."""
    top_logprobs: FloatArray | None = None
    """[n-1, top] Their log-probabilities."""

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood in nats; its exponential is the perplexity."""
        return -float(self.logprobs.mean(dtype=np.float64))
