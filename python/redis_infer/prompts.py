"""From what a person writes to token ids: text and chat messages need the model's tokenizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .commands import TokenBatch, Tokens
from .errors import NoModelError, TokenizerError
from .results import ModelInfo

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from .tokenizer import Tokenizer

Message = Mapping[str, Any]
"""One turn of a chat: {"role": "user", "content": "..."}."""

Prompt = str | Sequence[Message] | Tokens
"""Text, the messages of a chat, or token ids."""


def needs_tokenizer(prompt: Prompt | None) -> TypeIs[str | Sequence[Message]]:
    return isinstance(prompt, str) or _is_chat(prompt)


def encode(tokenizer: Tokenizer, prompt: str | Sequence[Message], *, continues: bool) -> Tokens:
    """Token ids of a text or a chat.

    A chat is rendered with the model's own template, which writes the beginning-of-text
    token itself. A text gets it if the model wants one, unless it ``continues`` other tokens.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special=not continues, continues=continues)
    return tokenizer.encode(tokenizer.render_chat(prompt, add_generation_prompt=True))


Inputs = str | Sequence[str] | TokenBatch
"""Texts or token ids to embed: one text, or several of either."""


def are_texts(inputs: Inputs) -> TypeIs[str | Sequence[str]]:
    if isinstance(inputs, str):
        return True
    texts = [isinstance(item, str) for item in inputs]
    if any(texts) and not all(texts):
        raise TypeError("the inputs are a mixture of texts and token ids: give one or the other")
    return any(texts)


def encode_inputs(
    tokenizer: Tokenizer, inputs: str | Sequence[str], *, context: int | None
) -> Sequence[Tokens]:
    """Token ids of each text with the special tokens that the model wants.

    Args:
        context: the most tokens of one text; a longer one loses its end, but not the token that
            the tokenizer puts there. None: nothing is cut.
    """
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    encoded = tokenizer.encode_batch(texts, add_special=True)
    if context is not None:
        for i, ids in enumerate(encoded):
            if len(ids) > context:
                end = ids[-1:] if tokenizer.add_eos else ids[:0]
                encoded[i] = np.concatenate([ids[: context - len(end)], end])
    return encoded


def check_query(query: str | Tokens | None, embed_model: str | None) -> None:
    """What is to be embedded and the model that does it come together, or not at all."""
    if query is not None and embed_model is None:
        raise ValueError("query needs embed_model, the model that made the vector set's vectors")
    if query is None and embed_model is not None:
        raise ValueError("embed_model needs a query to embed")


def check_ready(info: ModelInfo) -> None:
    """Raises NoModelError for a model that is being loaded or unloaded, as its commands do."""
    if info["state"] != "ready":
        raise NoModelError(f"NOMODEL model '{info['name']}' is not ready: it is {info['state']}")


def tokenizer_of(info: ModelInfo, *, can_be_given: bool = False) -> Tokenizer:
    """The tokenizer in the file of a loaded model, if that file can be read here.

    Args:
        can_be_given: who needs it would also take it as ``tokenizer``. Where a query is embedded
            that is not so.

    Raises:
        TokenizerError: it can't, because the server runs elsewhere or the file is private.
        NoModelError: the model is being loaded or unloaded.
    """
    check_ready(info)
    path = Path(info["path"])
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        remedy = (
            "pass tokenizer=Tokenizer.from_gguf(a copy of it), or give token ids or keys"
            if can_be_given
            else "give the query as token ids, made by Tokenizer.from_gguf(a copy of it), or as a "
            "vector; a Corpus takes embed="
        )
        raise TokenizerError(
            f"text needs the tokenizer of model '{info['name']}', whose file {path} cannot be read "
            f"here ({error.strerror}): {remedy}"
        ) from error
    return _read_tokenizer(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_tokenizer(path: Path, _size: int, _mtime_ns: int) -> Tokenizer:
    from .tokenizer import Tokenizer

    return Tokenizer.from_gguf(os.fspath(path))


def _is_chat(prompt: object) -> TypeIs[Sequence[Message]]:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, (str, bytes))
        and len(prompt) > 0
        and all(isinstance(message, Mapping) for message in prompt)
    )
