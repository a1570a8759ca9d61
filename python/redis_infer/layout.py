"""How a corpus lies in Redis: its keys, its elements, and the attributes of an element.

A corpus ``name`` is, in one hash slot:

    {name}:meta           hash    settings, see :class:`Settings`
    {name}:files          set     the paths of the files in it
    {name}:file:<path>    hash    sha256, size, chunks, tokenizer (fingerprint)
    {name}:tok:<path>#<n> string  tokens of chunk n, packed uint32
    {name}:vec            vector set of the elements <path>#<n>, with attributes
    {name}:prefix         string  tokens that every question about the corpus begins with
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CorpusError
from .results import FloatArray

VERSION = 1

_NAME = re.compile(r"[^\s{}*?\[\]\\\ud800-\udfff]{1,128}")  # no surrogates: they have no UTF-8


@dataclass(frozen=True)
class Keys:
    """The names of a corpus' keys.

    Raises:
        CorpusError: the name would not work as a hash tag or in a pattern.
    """

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CorpusError(
                f"'{self.name}' can't be the name of a corpus: take up to 128 characters of UTF-8 "
                "without blanks, braces, brackets, '*', '?' and '\\'"
            )

    @property
    def meta(self) -> str:
        return f"{{{self.name}}}:meta"

    @property
    def files(self) -> str:
        return f"{{{self.name}}}:files"

    @property
    def vectors(self) -> str:
        return f"{{{self.name}}}:vec"

    @property
    def prefix(self) -> str:
        return f"{{{self.name}}}:prefix"

    def file(self, path: str) -> str:
        return f"{{{self.name}}}:file:{path}"

    def tokens(self, path: str, n: int) -> str:
        return f"{{{self.name}}}:tok:{element(path, n)}"


META_PATTERN = "{*}:meta"

CORPUS_FIELDS = ("version", "tokenizer", "probe")
"""What every corpus has in ``{name}:meta``, whichever version of this program made it: a hash
without them is somebody else's."""


def name_of_meta(key: bytes) -> str | None:
    """The corpus whose settings lie under a key that fits META_PATTERN; None: it names none."""
    try:
        return Keys(key[1 : -len("}:meta")].decode()).name
    except (UnicodeDecodeError, CorpusError):
        return None


def element(path: str, n: int) -> str:
    """The element of the vector set for chunk n of a file."""
    return f"{path}#{n}"


def attributes(
    keys: Keys, path: str, n: int, *, start: int, end: int, language: str
) -> dict[str, Any]:
    """What the vector set knows about an element; FILTER expressions can use all of it."""
    return {
        "path": path,
        "n": n,
        "start": start,
        "end": end,
        "lang": language,
        "tokens": keys.tokens(path, n),
    }


def dump_attributes(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Settings:
    """What holds for the whole corpus: the hash ``{name}:meta``.

    Attributes:
        id: another one for each corpus that ever had the name.
        root: the folder it was made from.
        model: the generation model's name in the server, and ``tokenizer`` its fingerprint.
        embed_model: the embedding model's name.
        probe: [dimensions] its embedding of a fixed text, by which another model is recognized.
        chunk_tokens: most tokens of a chunk; ``overlap``: of the lines it repeats.
        created: Unix time in seconds.
    """

    id: str
    root: str
    model: str
    tokenizer: str
    embed_model: str
    probe: FloatArray
    chunk_tokens: int
    overlap: int
    created: int

    @property
    def dimensions(self) -> int:
        return int(self.probe.size)

    def as_hash(self) -> list[str | bytes | int]:
        """Fields and values in turn."""
        values: dict[str, str | bytes | int] = {
            "version": VERSION,
            "id": self.id,
            "root": os.fsencode(self.root),
            "model": self.model,
            "tokenizer": self.tokenizer,
            "embed_model": self.embed_model,
            "probe": self.probe.astype("<f4").tobytes(),
            "chunk_tokens": self.chunk_tokens,
            "overlap": self.overlap,
            "created": self.created,
        }
        return [item for pair in values.items() for item in pair]

    @classmethod
    def from_hash(cls, name: str, fields: Mapping[bytes, bytes]) -> Settings:
        """From what HGETALL returns.

        Raises:
            CorpusError: there is none, another version of this program made it, or the hash is
                no corpus' at all.
        """
        if not fields:
            raise CorpusError(
                f"there is no corpus '{name}': make one with 'redis-infer ingest PATH "
                f"--corpus {name}'"
            )
        if any(field.encode() not in fields for field in CORPUS_FIELDS):
            raise CorpusError(
                f"there is no corpus '{name}', and the hash '{Keys(name).meta}' is something "
                "else: take another name"
            )
        version = fields[b"version"].decode(errors="replace")
        if version != str(VERSION):
            raise CorpusError(
                f"corpus '{name}' has format {version or 'unknown'}, and this is for format "
                f"{VERSION}: drop it with 'redis-infer corpus drop {name}' and ingest again"
            )

        def text(field: str) -> str:
            return fields[field.encode()].decode("utf-8", "surrogateescape")

        try:
            return cls(
                id=text("id"),
                root=text("root"),
                model=text("model"),
                tokenizer=text("tokenizer"),
                embed_model=text("embed_model"),
                probe=np.frombuffer(fields[b"probe"], "<f4").astype(np.float32),
                chunk_tokens=int(text("chunk_tokens")),
                overlap=int(text("overlap")),
                created=int(text("created")),
            )
        except (KeyError, ValueError) as error:
            raise CorpusError(
                f"the settings of corpus '{name}' are damaged ({error!r} in '{Keys(name).meta}'): "
                f"drop it with 'redis-infer corpus drop {name}' and ingest again"
            ) from error
