"""A corpus in Redis: what is in it, what in it answers a question, and its end.

    from redis_infer import Corpus, Infer

    corpus = Corpus(Infer(redis.Redis()), "my-code")
    answer = corpus.ask("Where is the password checked?")
    print(answer.text, *(source.where for source in answer.sources))

:func:`redis_infer.ingest.ingest` fills it. :class:`AsyncCorpus` is the same for asyncio: both
carry out the plans below, which say what to ask the server and what the answers mean.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import layout, prompts, retrieval
from .commands import Argument, Command, RagOptions, as_hash, pack_tokens
from .errors import CorpusError
from .layout import Keys, Settings
from .results import FloatArray, ModelInfo, RagGeneration, TokenArray
from .retrieval import Gap

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .client import AsyncInfer, Infer
    from .streaming import AsyncStream, Stream
    from .tokenizer import Tokenizer

T = TypeVar("T")

Plan = Generator[Command[Any], Any, T]
"""Yields commands, is sent what they return, and returns what the caller wants."""

Vector = Sequence[float] | npt.NDArray[np.floating[Any]]
"""[dimensions]"""

Embed = Callable[[Sequence[str]], FloatArray]
"""From n texts to their embeddings, [n, dimensions]."""

Query = dict[str, Any]
"""Either of the ways in which :meth:`Infer.rag` takes a query."""

Request = dict[str, Any]
"""The arguments of :meth:`Infer.rag`."""

DEFAULT_HITS = 4

_SEARCH_EFFORT = 200
"""Candidates that a search of the vector set looks at, at least."""

_DROP_BATCH = 500

_PREFIX_TTL_S = 3600
"""How long a prefix that is not the corpus' own is kept after its last use."""


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
    tokens_used: int | None = None
    """Its tokens in the prompt, 0: it did not fit any more; None: there was only a search."""

    @property
    def where(self) -> str:
        """``path:start-end``."""
        return f"{self.path}:{self.start}-{self.end}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What was generated for a question, and what it was made from."""

    generation: RagGeneration
    sources: list[Hit]
    """Best first."""

    @property
    def text(self) -> str:
        return self.generation.text


class Corpus:
    """A corpus by its name. Making this object asks the server nothing.

    Args:
        embed: computes the vectors of questions where those of the corpus came from
            outside; from n texts to [n, dimensions].

    Every method but :meth:`sources` raises :class:`CorpusError` if there is no such corpus.
    """

    def __init__(self, infer: Infer, name: str, *, embed: Embed | None = None) -> None:
        self._infer = infer
        self._keys = Keys(name)
        self._embed = embed

    @property
    def name(self) -> str:
        return self._keys.name

    def info(self) -> CorpusInfo:
        """What it is made of."""
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
        """
        settings = self._run(_settings(self._keys))
        if isinstance(query, str):
            embed = self._embed or (
                lambda texts: self._infer.embed(settings.embed_model, texts, truncate=True)
            )
            vector: Vector = embed([query])[0]
        else:
            vector = query
        return self._run(_search(self._keys, settings, vector, n, where))

    def ask(
        self,
        question: str,
        *,
        model: str | None = None,
        system: str = retrieval.SYSTEM,
        **options: Unpack[RagOptions],
    ) -> Answer:
        """Answers a question from the chunks that are nearest to it. INFER.RAG.

        Args:
            model: a loaded model with the corpus' tokenizer; default: the one it was made for.
            system: what the model is told about its task. Another text than the default is kept
                as a token key for an hour after its last use.
            options: of :meth:`redis_infer.Infer.rag`; ``top_n`` and ``budget`` say how much
                is retrieved.

        Raises:
            CorpusError: the model has another tokenizer.
        """
        request = self._question(question, model, system, options)
        generation = self._infer.rag(**request)
        return Answer(generation, self.sources(generation))

    def stream(
        self,
        question: str,
        *,
        model: str | None = None,
        system: str = retrieval.SYSTEM,
        **options: Unpack[RagOptions],
    ) -> Stream[RagGeneration]:
        """:meth:`ask`, read while it is made; pass the stream's result to :meth:`sources`."""
        return self._infer.stream_rag(**self._question(question, model, system, options))

    def complete(
        self,
        path: str,
        text: str,
        line: int,
        *,
        model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> Answer:
        """What may come after a line of a file, given similar code from other files.

        Args:
            path: of the file, relative to the corpus' root; its own chunks are not retrieved
                (but they may be where Redis' filter expressions cannot say the path: one that
                ends in a backslash, or has quotation marks of both kinds or control characters).
            text: of the file; what is after the line is used too if the model can fill gaps.
            line: the last one before the gap, counted from 1; 0: the gap is at the beginning.
            model, options: as in :meth:`ask`; a ``filter`` narrows the search further.
        """
        settings, tokenizer, model = self._model(model)
        gap = Gap(path, text, line)
        query = self._query(settings, gap.query)
        request = self._run(
            _completion(self._keys, settings, tokenizer, gap, model, query, options)
        )
        generation = self._infer.rag(**request)
        return Answer(generation, self.sources(generation))

    def sources(self, generation: RagGeneration) -> list[Hit]:
        """Where the sources of an answer lie, best first.

        One whose file has changed since is where it is now; one that is gone is left out.
        """
        return self._run(_sources(self._keys, generation))

    def drop(self) -> int:
        """Removes it and everything in it; the number of files that were in it."""
        return self._run(_drop(self._keys))

    # ---- inside ----

    def _run(self, plan: Plan[T]) -> T:
        return run(self._infer, plan)

    def _model(self, model: str | None) -> tuple[Settings, Tokenizer, str]:
        settings = self._run(_settings(self._keys))
        model = model or settings.model
        return settings, self._infer.tokenizer(model), model

    def _query(self, settings: Settings, text: str) -> Query:
        if self._embed is not None:
            return {"vector": self._embed([text])[0]}
        return _embedded_query(self._infer.info(settings.embed_model), settings, text)

    def _question(
        self, question: str, model: str | None, system: str, options: RagOptions
    ) -> Request:
        settings, tokenizer, model = self._model(model)
        query = self._query(settings, question)
        return self._run(
            _question(self._keys, settings, tokenizer, question, system, model, query, options)
        )


class AsyncCorpus:
    """:class:`Corpus` for asyncio: the same methods, to be awaited. ``embed`` runs in a thread."""

    def __init__(self, infer: AsyncInfer, name: str, *, embed: Embed | None = None) -> None:
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
        settings = await self._run(_settings(self._keys))
        if isinstance(query, str):
            if self._embed is not None:
                vectors = await asyncio.to_thread(self._embed, [query])
            else:
                vectors = await self._infer.embed(settings.embed_model, [query], truncate=True)
            vector: Vector = vectors[0]
        else:
            vector = query
        return await self._run(_search(self._keys, settings, vector, n, where))

    async def ask(
        self,
        question: str,
        *,
        model: str | None = None,
        system: str = retrieval.SYSTEM,
        **options: Unpack[RagOptions],
    ) -> Answer:
        """See :meth:`Corpus.ask`."""
        request = await self._question(question, model, system, options)
        generation = await self._infer.rag(**request)
        return Answer(generation, await self.sources(generation))

    async def stream(
        self,
        question: str,
        *,
        model: str | None = None,
        system: str = retrieval.SYSTEM,
        **options: Unpack[RagOptions],
    ) -> AsyncStream[RagGeneration]:
        """See :meth:`Corpus.stream`."""
        request = await self._question(question, model, system, options)
        return self._infer.stream_rag(**request)

    async def complete(
        self,
        path: str,
        text: str,
        line: int,
        *,
        model: str | None = None,
        **options: Unpack[RagOptions],
    ) -> Answer:
        """See :meth:`Corpus.complete`."""
        settings, tokenizer, model = await self._model(model)
        gap = Gap(path, text, line)
        query = await self._query(settings, gap.query)
        request = await self._run(
            _completion(self._keys, settings, tokenizer, gap, model, query, options)
        )
        generation = await self._infer.rag(**request)
        return Answer(generation, await self.sources(generation))

    async def sources(self, generation: RagGeneration) -> list[Hit]:
        """See :meth:`Corpus.sources`."""
        return await self._run(_sources(self._keys, generation))

    async def drop(self) -> int:
        """See :meth:`Corpus.drop`."""
        return await self._run(_drop(self._keys))

    # ---- inside ----

    async def _run(self, plan: Plan[T]) -> T:
        return await run_async(self._infer, plan)

    async def _model(self, model: str | None) -> tuple[Settings, Tokenizer, str]:
        settings = await self._run(_settings(self._keys))
        model = model or settings.model
        return settings, await self._infer.tokenizer(model), model

    async def _query(self, settings: Settings, text: str) -> Query:
        if self._embed is not None:
            return {"vector": (await asyncio.to_thread(self._embed, [text]))[0]}
        info = await self._infer.info(settings.embed_model)
        return await asyncio.to_thread(_embedded_query, info, settings, text)  # may read a file

    async def _question(
        self, question: str, model: str | None, system: str, options: RagOptions
    ) -> Request:
        settings, tokenizer, model = await self._model(model)
        query = await self._query(settings, question)
        return await self._run(
            _question(self._keys, settings, tokenizer, question, system, model, query, options)
        )


def corpora(infer: Infer) -> list[str]:
    """The names of the corpora in a server, in order. Looks at every key, in small steps."""
    return run(infer, _corpora())


async def corpora_async(infer: AsyncInfer) -> list[str]:
    """See :func:`corpora`."""
    return await run_async(infer, _corpora())


def infos(infer: Infer) -> list[tuple[str, CorpusInfo | CorpusError]]:
    """The corpora in a server, in order: what each is made of, or why that cannot be said."""
    return run(infer, _infos())


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
    return (yield from _info_of(keys, settings))


def _info_of(keys: Keys, settings: Settings) -> Plan[CorpusInfo]:
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


def _search(
    keys: Keys, settings: Settings, query: Vector, n: int, where: str | None
) -> Plan[list[Hit]]:
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


def _question(
    keys: Keys,
    settings: Settings,
    tokenizer: Tokenizer,
    question: str,
    system: str,
    model: str,
    query: Query,
    options: RagOptions,
) -> Plan[Request]:
    _check_tokenizer(keys, settings, tokenizer, model)
    before = yield from _prefix_key(keys, retrieval.prefix_of(tokenizer, system))
    prompt = retrieval.question_of(tokenizer, question, system)
    return {
        **query,
        "model": model,
        "vset": keys.vectors,
        "prompt": prompt,
        **({"before": before, "ef": _SEARCH_EFFORT} | options),
    }


def _embedded_query(embedder: ModelInfo, settings: Settings, text: str) -> Query:
    """The query as tokens for INFER.RAG to embed; of a text that is too long, the beginning."""
    tokenizer = prompts.tokenizer_of(embedder)
    (tokens,) = prompts.encode_inputs(tokenizer, text, context=embedder["context"])
    return {"query": tokens, "embed_model": settings.embed_model}


def _completion(
    keys: Keys,
    settings: Settings,
    tokenizer: Tokenizer,
    gap: Gap,
    model: str,
    query: Query,
    options: RagOptions,
) -> Plan[Request]:
    _check_tokenizer(keys, settings, tokenizer, model)
    first, prompt = retrieval.completion_of(tokenizer, gap)
    filters = [f for f in (_not_of(gap.path), options.get("filter")) if f]
    own: RagOptions = {"ef": _SEARCH_EFFORT}
    if first.size:
        own["before"] = yield from _prefix_key(keys, first)
    if not retrieval.fills_gaps(tokenizer):
        own["stop"] = "\n\n"  # without what comes after, a model goes on and on
    return {
        **query,
        "model": model,
        "vset": keys.vectors,
        "prompt": prompt,
        **(own | options),
        **({"filter": " and ".join(f"({f})" for f in filters)} if filters else {}),
    }


def _not_of(path: str) -> str | None:
    """The FILTER expression for chunks of other files; None: there is none for this path.

    In an expression a backslash keeps the character after it from ending the text, and both
    remain in it: Redis takes no escape out. So the path stands there as it is, in whichever
    quotation marks it does not end. In attributes Redis 8.2 knows the escapes of a tab, a
    newline and a return, but makes ``u0007`` of those in figures, which may be another file.
    """
    if any(char < " " and char not in "\t\n\r" for char in path):
        return None
    try:
        path.encode()
    except UnicodeEncodeError:
        return None  # no file of a corpus has such a name
    for quote in "\"'":
        if re.fullmatch(rf"(?:\\.|[^\\{quote}])*", path, re.DOTALL):
            return f".path != {quote}{path}{quote}"
    return None


def _check_tokenizer(keys: Keys, settings: Settings, tokenizer: Tokenizer, model: str) -> None:
    if tokenizer.fingerprint != settings.tokenizer:
        raise CorpusError(
            f"corpus '{keys.name}' holds tokens of model '{settings.model}', and '{model}' has "
            "another tokenizer: take a model with the same one, or make a corpus for this one"
        )


def _prefix_key(keys: Keys, tokens: TokenArray) -> Plan[str]:
    """A token key that holds these tokens: that of the corpus, or one for some time."""
    blob = pack_tokens(tokens)
    stored = yield Command(("GET", keys.prefix), lambda reply: reply)
    if stored == blob:
        return keys.prefix
    key = f"{keys.prefix}:{hashlib.sha256(blob).hexdigest()[:16]}"
    yield Command(("SET", key, blob, "EX", _PREFIX_TTL_S), lambda _reply: None)
    return key


def _sources(keys: Keys, generation: RagGeneration) -> Plan[list[Hit]]:
    found = []
    for source in generation.sources:
        name = source.element.encode("utf-8", "surrogateescape")
        attributes = yield Command(("VGETATTR", keys.vectors, name), lambda reply: reply)
        if attributes is not None:
            one = hit(name, source.score, attributes)
            found.append(replace(one, tokens_used=source.tokens_used))
    return found


def _drop(keys: Keys) -> Plan[int]:
    # Other keys may have the names of a corpus' keys: nothing goes before it is known to be one.
    is_corpus = yield from _is_corpus(keys.meta)
    has_meta = yield Command(("EXISTS", keys.meta), bool)
    is_half_dropped = not has_meta and (yield Command(("EXISTS", keys.files), bool))
    if not is_corpus and not is_half_dropped:
        yield from _settings(keys)  # which says that there is none
    # Without its settings and vectors a corpus is gone for everyone, and an ingest that runs ends.
    # The list of files goes last: until then an interrupted drop can be taken up again.
    yield Command(("UNLINK", keys.meta, keys.vectors, keys.prefix), int)
    members = yield Command(("SMEMBERS", keys.files), list)
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
            name = layout.name_of_meta(key)
            if name is not None and (yield from _is_corpus(key)):
                names.add(name)
        if cursor == b"0":
            return sorted(names)


def _is_corpus(meta: Argument) -> Plan[bool]:
    """Whether a hash is the settings of a corpus, of this version or another."""
    values = yield Command(("HMGET", meta, *layout.CORPUS_FIELDS), list)
    return None not in values


def _infos() -> Plan[list[tuple[str, CorpusInfo | CorpusError]]]:
    found: list[tuple[str, CorpusInfo | CorpusError]] = []
    for name in (yield from _corpora()):
        keys = Keys(name)
        stored = yield Command(("HGETALL", keys.meta), as_hash)
        if not stored:
            continue  # dropped just now
        try:
            settings = Settings.from_hash(name, stored)
        except CorpusError as error:
            found.append((name, error))
        else:
            found.append((name, (yield from _info_of(keys, settings))))
    return found
