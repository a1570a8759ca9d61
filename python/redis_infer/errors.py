"""The module's error codes as exception classes.

All are :class:`redis.ResponseError`; an error whose code is not listed here stays the class
that redis-py gives it (``ERR`` a plain ``ResponseError``, ``NOPERM`` a ``NoPermissionError``).
"""

from __future__ import annotations

import re
from typing import ClassVar

from redis.connection import DefaultParser
from redis.exceptions import ResponseError


class InferError(ResponseError):
    """An INFER command was refused or ended early."""

    code: ClassVar[str] = "ERR"


class ModuleMissingError(InferError):
    """The server does not know the INFER commands: the module is not loaded."""


class NoModelError(InferError):
    """No model of that name is ready, or it was unloaded meanwhile."""

    code = "NOMODEL"


class NoKeyError(InferError):
    """A key of the prompt, or the vector set, does not exist."""

    code = "NOKEY"


class WrongTypeError(InferError):
    """A key of the prompt holds no string, or the key of ``stream`` no stream."""

    code = "WRONGTYPE"


class BadTokensError(InferError):
    """A length that is no multiple of 4, an id outside the vocabulary, or no tokens at all."""

    code = "BADTOKENS"


class ContextError(InferError):
    """Prompt and output, or a text to embed, do not fit the model's context.

    Or a model is to be loaded with more context than it was made for, or than fits its KV memory.
    """

    code = "CONTEXT"


class BusyError(InferError):
    """The model's queue is full, or texts to embed take too much memory."""

    code = "BUSY"


class RequestCancelledError(InferError):
    """The request was cancelled, or ran out of time, before it had a result."""

    code = "CANCELLED"


class VectorSetsMissingError(InferError):
    """The server has no Vector Sets: it is older than Redis 8."""


class CorpusError(RuntimeError):
    """A corpus is missing, or does not fit what is asked of it."""


class TokenizerError(ValueError):
    """Text was given where the model's tokenizer cannot be had on this machine."""


def missing(package: str | None) -> ImportError:
    """A package of the extra ``ingest`` is not installed."""
    return ImportError(
        f"ingest needs the package {package}: run \"pip install 'redis-infer[ingest]'\"",
        name=package,
    )


_NO_VECTOR_SETS = re.compile(
    r"unknown command '?V[A-Z]+\b|this server has no Vector Sets", re.IGNORECASE
)

_BY_CODE: dict[str, type[InferError]] = {
    kind.code: kind
    for kind in (
        NoModelError,
        NoKeyError,
        WrongTypeError,
        BadTokensError,
        ContextError,
        BusyError,
        RequestCancelledError,
    )
}


def from_line(line: str) -> Exception:
    """The exception for an error with its code, as a stream's last entry has it: the same one as
    for that error as a reply."""
    error: Exception = DefaultParser.parse_error(line)  # type: ignore[no-untyped-call]
    return from_response(error) if isinstance(error, ResponseError) else error


def from_response(error: ResponseError) -> ResponseError:
    """The exception that an error reply to one of our commands should raise."""
    message = str(error)
    if _NO_VECTOR_SETS.match(message):
        return VectorSetsMissingError(
            "the server has no Vector Sets, which corpora and INFER.RAG need: use Redis 8 or newer"
        )
    if message.startswith("unknown command"):
        return ModuleMissingError(
            "the server has no INFER commands: start it with "
            '--loadmodule "$(python -m redis_infer.module_path)"'
        )
    kind = _BY_CODE.get(message.partition(" ")[0])
    return kind(message) if kind is not None else error
