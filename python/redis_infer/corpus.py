"""A corpus in Redis: what is in it, what in it resembles a text, and its end.

    from redis_infer import Corpus, Infer

    corpus = Corpus(Infer(redis.Redis()), "my-code")
    for hit in corpus.search("where is the password checked?"):
        print(hit.where, hit.score)

:func:`redis_infer.ingest.ingest` fills it. :class:`AsyncCorpus` is the same for asyncio: both
carry out the plans below, which say what to ask the server and what the answers mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import layout
from .commands import Argument, Command, as_hash
from .errors import CorpusError
from .layout import Keys, Settings
from .results import FloatArray

if TYPE_CHECKING:
    from .client import AsyncInfer, Infer

T = TypeVar("T")

Plan = Generator[Command[Any], Any, T]
"""Yields commands, is sent what they return, and returns what the caller wants."""

Vector = Sequence[float] | npt.NDArray[np.floating[Any]]
"""[dimensions]"""

DEFAULT_HITS = 4

_SEARCH_EFFORT = 200
"""Candidates that a search of the vector set looks at, at least."""

_DROP_BATCH = 500


@dataclass(frozen=True)
class CorpusInfo:
    """What a corpus is made of."""

    name: str
    root: str
    """The folder it was made from."""
    files: int
    chunks: int
    dimensions: int
    """Of a vector."""
    model: str
    """The generation model whose tokens it holds."""
    tokenizer: str
    """The fingerprint of that model's tokenizer."""
    embed_model: str
    chunk_tokens: int
    """Most tokens of a chunk."""
    overlap: int
    """Most tokens of the lines that a chunk repeats."""
    created: int
    """Unix time in seconds."""


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found."""

    element: str
    """Its name in the vector set."""
    score: float
    """From 0 to 1: (1 + cosine) / 2."""
    path: str
    """Of the file, relative to the corpus' root."""
    start: int
    end: int
    """First and last line, counted from 1."""
    language: str
    tokens_key: str
    """Where its tokens lie."""

    @property
    def where(self) -> str:
        """``path:start-end``."""
        return f"{self.path}:{self.start}-{self.end}"


class Corpus:
    """A corpus by its name. Making this object asks the server nothing.

    Args:
        embed: computes the vectors of questions; from n texts to [n, dimensions].
    """

    def __init__(
        self, infer: Infer, name: str, *, embed: Callable[[Sequence[str]], FloatArray]
    ) -> None:
        self._infer = infer
        self._keys = Keys(name)
        self._embed = embed

    @property
    def name(self) -> str:
        return self._keys.name

    def info(self) -> CorpusInfo:
        """What it is made of.

        Raises:
            CorpusError: there is no such corpus.
        """
        return self._run(_info(self._keys))

    def files(self) -> list[str]:
        """The paths of the files in it, relative to its root, in order."""
        return self._run(_files(self._keys))

    def search(
        self, query: str | Vector, n: int = DEFAULT_HITS, *, where: str | None = None
    ) -> list[Hit]:
        """The n chunks that are nearest to a text or a vector, best first.

        Args:
            where: a FILTER expression of VSIM over path, n, start, end and lang, such as
                ``.lang == "python"``.

        Raises:
            CorpusError: there is no such corpus.
        """
        if isinstance(query, str):
            vector: Vector = self._embed([query])[0]
        else:
            vector = query
        return self._run(_search(self._keys, vector, n, where))

    def drop(self) -> int:
        """Removes it and everything in it; the number of files that were in it.

        Raises:
            CorpusError: there is no such corpus.
        """
        return self._run(_drop(self._keys))

    def _run(self, plan: Plan[T]) -> T:
        return run(self._infer, plan)


class AsyncCorpus:
    """:class:`Corpus` for asyncio: the same methods, to be awaited."""

    def __init__(
        self,
        infer: AsyncInfer,
        name: str,
        *,
        embed: Callable[[Sequence[str]], FloatArray],
    ) -> None:
        self._infer = infer
        self._keys = Keys(name)
        self._embed = embed

    @property
    def name(self) -> str:
        return self._keys.name

    async def info(self) -> CorpusInfo:
        """See :meth:`Corpus.info`."""
        return await self._run(_info(self._keys))

    async def files(self) -> list[str]:
        """See :meth:`Corpus.files`."""
        return await self._run(_files(self._keys))

    async def search(
        self, query: str | Vector, n: int = DEFAULT_HITS, *, where: str | None = None
    ) -> list[Hit]:
        """See :meth:`Corpus.search`."""
        if isinstance(query, str):
            vector: Vector = self._embed([query])[0]
        else:
            vector = query
        return await self._run(_search(self._keys, vector, n, where))

    async def drop(self) -> int:
        """See :meth:`Corpus.drop`."""
        return await self._run(_drop(self._keys))

    async def _run(self, plan: Plan[T]) -> T:
        return await run_async(self._infer, plan)


def corpora(infer: Infer) -> list[str]:
    """The names of the corpora in a server, in order. Looks at every key, in small steps."""
    return run(infer, _corpora())


async def corpora_async(infer: AsyncInfer) -> list[str]:
    """See :func:`corpora`."""
    return await run_async(infer, _corpora())


# ---- carrying out a plan ----


def run(infer: Infer, plan: Plan[T]) -> T:
    reply = None
    while True:
        try:
            command = plan.send(reply)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        reply = infer._run(command)


async def run_async(infer: AsyncInfer, plan: Plan[T]) -> T:
    reply = None
    while True:
        try:
            command = plan.send(reply)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        reply = await infer._run(command)


# ---- plans ----


def _settings(keys: Keys) -> Plan[Settings]:
    found = yield Command(("HGETALL", keys.meta), as_hash)
    return Settings.from_hash(keys.name, found)


def _info(keys: Keys) -> Plan[CorpusInfo]:
    settings = yield from _settings(keys)
    files = yield Command(("SCARD", keys.files), int)
    chunks = yield Command(("VCARD", keys.vectors), int)
    of_settings = {
        field.name: getattr(settings, field.name)
        for field in fields(CorpusInfo)
        if hasattr(settings, field.name)
    }
    return CorpusInfo(name=keys.name, files=files, chunks=chunks, **of_settings)


def _files(keys: Keys) -> Plan[list[str]]:
    yield from _settings(keys)
    members = yield Command(("SMEMBERS", keys.files), list)
    return sorted(member.decode() for member in members)


def _search(keys: Keys, query: Vector, n: int, where: str | None) -> Plan[list[Hit]]:
    settings = yield from _settings(keys)
    vector = np.asarray(query, np.float32)
    if vector.shape != (settings.dimensions,):
        raise CorpusError(
            f"corpus '{keys.name}' has vectors of {settings.dimensions} dimensions, and the query "
            f"has the shape {vector.shape}: embed it with '{settings.embed_model}'"
        )
    args: list[Argument] = ["VSIM", keys.vectors, "FP32", vector.astype("<f4").tobytes()]
    args += ["WITHSCORES", "WITHATTRIBS", "COUNT", n, "EF", max(_SEARCH_EFFORT, 2 * n)]
    if where is not None:
        args += ["FILTER", where]
    hits = yield Command(tuple(args), _parse_hits)
    return list(hits)


def _parse_hits(reply: Any) -> list[Hit]:
    """VSIM with scores and attributes: element to [score, attributes], or the three in turn."""
    rows: Iterable[tuple[bytes, Any, bytes]]
    if isinstance(reply, dict):
        rows = ((element, score, text) for element, (score, text) in reply.items())
    else:
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    return [hit(element, float(score), text) for element, score, text in rows]


def hit(element: bytes, score: float, attributes: bytes) -> Hit:
    values = json.loads(attributes)
    return Hit(
        element=element.decode(),
        score=score,
        path=values["path"],
        start=values["start"],
        end=values["end"],
        language=values["lang"],
        tokens_key=values["tokens"],
    )


def _drop(keys: Keys) -> Plan[int]:
    # Without its settings and vectors a corpus is gone for everyone, and an ingest that runs ends.
    # The list of files goes last: until then an interrupted drop can be taken up again.
    found = yield Command(("UNLINK", keys.meta, keys.vectors, keys.prefix), int)
    members = yield Command(("SMEMBERS", keys.files), list)
    if not found and not members:
        yield from _settings(keys)
    paths = [member.decode() for member in members]
    for start in range(0, len(paths), _DROP_BATCH):
        some = paths[start : start + _DROP_BATCH]
        for path in some:
            chunks = yield Command(("HGET", keys.file(path), "chunks"), lambda r: int(r or 0))
            tokens = (keys.tokens(path, n) for n in range(chunks))
            yield Command(("UNLINK", keys.file(path), *tokens), int)
        yield Command(("SREM", keys.files, *some), int)
    return len(paths)


def _corpora() -> Plan[list[str]]:
    names: set[str] = set()
    cursor = b"0"
    while True:
        cursor, found = yield Command(
            ("SCAN", cursor, "MATCH", layout.META_PATTERN, "TYPE", "hash", "COUNT", 1000), tuple
        )
        for key in found:
            version = yield Command(("HGET", key, "version"), lambda reply: reply)
            if version is not None:
                names.add(layout.name_of_meta(key.decode()))
        if cursor == b"0":
            return sorted(names)
