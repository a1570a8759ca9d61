"""From a folder to a corpus: walk, cut, tokenize, embed, store.

    from redis_infer import Infer
    from redis_infer.ingest import ingest

    report = ingest(infer, "src", "my-code", model="smol", embed_model="minilm")

Running it again brings the corpus up to date: a file whose SHA-256 is known costs reading it
and one hash field. Each file is one transaction, so that a reader sees all of its old chunks or
all of its new ones, an interrupted run goes on where it stopped, and of two runs at once each
file's later state stays.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import layout
from ..commands import Argument, Command, as_hash, pack_tokens
from ..errors import CorpusError, missing
from ..layout import Keys, Settings
from ..results import FloatArray, TokenArray
from ..retrieval import PROBE_TEXT, prefix_of

try:
    from . import tree
    from .chunking import Chunk, chunks
    from .structure import language_of
except ImportError as error:  # pathspec or tree_sitter
    raise missing(error.name) from error

if TYPE_CHECKING:
    from redis.client import Pipeline

    from ..client import Infer
    from ..tokenizer import Tokenizer

Embed = Callable[[Sequence[str]], FloatArray]
"""From n texts to their embeddings, [n, dimensions]."""

DEFAULT_CHUNK_TOKENS = 384
DEFAULT_OVERLAP = 32

_BATCH_BYTES = 256 << 10
"""Text that is prepared while the batch before it is embedded."""

_EMBED_BATCH = 64

_VECTOR_OPTIONS = ("Q8", "EF", 100)
"""Half of the default effort in building the graph: a third to a half less time, and searches
still found the four nearest of 6,000 vectors in clusters, for all of 150 queries."""

_MAX_ATTEMPTS = 6
"""How often a file is cut again because a chunk has more tokens than were estimated."""


@dataclass
class Report:
    """What a run did."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason."""
    chunks: int = 0
    tokens: int = 0
    text_bytes: int = 0
    """Of the files that were added or changed."""
    seconds: float = 0.0
    embed_seconds: float = 0.0
    """Of ``seconds``, those spent waiting for embeddings."""


@dataclass(frozen=True)
class Progress:
    """How far a run is; bytes are those of all files found, unchanged ones included."""

    files: int
    files_total: int
    bytes: int
    bytes_total: int
    chunks: int
    tokens: int


def ingest(
    infer: Infer,
    root: str | PathLike[str],
    corpus: str,
    *,
    model: str,
    embed_model: str,
    chunk_tokens: int | None = None,
    overlap: int | None = None,
    max_file_bytes: int = tree.MAX_FILE_BYTES,
    embed: Embed | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Makes a corpus of the files below ``root``, or brings it up to date.

    Args:
        corpus: its name; one corpus is one folder.
        model: the loaded model that will read the chunks; their sizes are in its tokens.
        embed_model: the loaded model whose vectors are searched.
        chunk_tokens: most tokens of a chunk, 384 for a new corpus.
        overlap: most tokens of the lines that a chunk repeats, 32 for a new corpus.
        max_file_bytes: larger files are left out.
        embed: computes embeddings in place of ``embed_model``, which is then only their name.
        on_progress: called after every file.

    Raises:
        CorpusError: the corpus was made from another folder, with another tokenizer,
            embedding model, chunk size or overlap; or was dropped meanwhile; or is new, and
            keys of others have the names of its keys.
        VectorSetsMissingError: the server is older than Redis 8.
        NotADirectoryError: ``root`` is no folder.
        OSError: ``root`` cannot be listed.
    """
    run = _Run(
        infer,
        Path(root).resolve(),
        Keys(corpus),
        tokenizer=infer.tokenizer(model),
        embed=embed or (lambda texts: infer.embed(embed_model, texts, truncate=True)),
        max_file_bytes=max_file_bytes,
        on_progress=on_progress or (lambda _progress: None),
    )
    run.open(model, embed_model, chunk_tokens, overlap)
    return run.run()


@dataclass
class _Prepared:
    """A file whose chunks are ready to be embedded and written."""

    file: tree.SourceFile
    known_sha256: str | None
    """What the corpus had when the run began; None: nothing."""
    sha256: str = ""
    size: int = 0
    text: str = ""
    language: str = ""
    chunks: list[Chunk] = field(default_factory=list)
    tokens: list[TokenArray] = field(default_factory=list)
    skipped: str | None = None
    gone: bool = False
    unreadable: bool = False

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def unchanged(self) -> bool:
        return self.sha256 == self.known_sha256


class _Run:
    def __init__(
        self,
        infer: Infer,
        root: Path,
        keys: Keys,
        *,
        tokenizer: Tokenizer,
        embed: Embed,
        max_file_bytes: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._infer = infer
        self._client = infer._client
        self._root = root
        self._keys = keys
        self._tokenizer = tokenizer
        self._embed = embed
        self._max_file_bytes = max_file_bytes
        self._on_progress = on_progress
        self._settings: Settings
        self._report = Report()
        self._found_later: frozenset[str] | None = None
        """What a second walk finds, made when a file that was missing may be back."""

    # ---- the corpus' settings ----

    def open(
        self, model: str, embed_model: str, chunk_tokens: int | None, overlap: int | None
    ) -> None:
        """Takes on the settings of the corpus, or makes it."""
        if not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is no folder")
        self._infer._run(Command(("VCARD", self._keys.vectors), lambda _reply: None))
        probe = self._vectors([PROBE_TEXT])[0]
        while True:
            found = self._read_settings()
            if found is not None:
                self._check(found, probe, embed_model, chunk_tokens, overlap)
                if found.embed_model != embed_model:
                    self._rename_embedder(found, embed_model)
                self._settings = replace(found, embed_model=embed_model)
                return
            # Not the argument: where another run is faster, what it chose holds.
            size = DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens
            made = Settings(
                id=uuid.uuid4().hex,
                root=str(self._root),
                model=model,
                tokenizer=self._tokenizer.fingerprint,
                embed_model=embed_model,
                probe=probe,
                chunk_tokens=size,
                overlap=min(DEFAULT_OVERLAP, size // 4) if overlap is None else overlap,
                created=int(time.time()),
            )
            if made.chunk_tokens < 32 or not 0 <= made.overlap <= made.chunk_tokens // 2:
                raise CorpusError(
                    f"chunks of {made.chunk_tokens} tokens with an overlap of {made.overlap}: take "
                    "at least 32 tokens, and an overlap of at most half of them"
                )
            self._create(made)

    def _read_settings(self) -> Settings | None:
        fields = self._infer._run(Command(("HGETALL", self._keys.meta), as_hash))
        return Settings.from_hash(self._keys.name, fields) if fields else None

    def _create(self, made: Settings) -> None:
        keys = self._keys

        def write(pipe: Pipeline) -> None:
            def is_left_over(key: str) -> bool:
                # Looked at in this order: another run makes its settings first, and may do so now.
                return bool(pipe.exists(key)) and not pipe.exists(keys.meta)

            if pipe.exists(keys.meta):
                return  # another run was faster
            if is_left_over(keys.files):
                raise CorpusError(
                    f"corpus '{keys.name}' was dropped, but not to the end: run "
                    f"'redis-infer corpus drop {keys.name}' again"
                )
            for key in (keys.vectors, keys.prefix):
                if is_left_over(key):
                    raise CorpusError(
                        f"the key '{key}' is there already, and no corpus '{keys.name}' that it "
                        "could belong to: take another name for the corpus, or rename the key"
                    )
            pipe.multi()
            pipe.hset(keys.meta, items=made.as_hash())
            pipe.set(keys.prefix, pack_tokens(prefix_of(self._tokenizer)))

        self._client.transaction(write, keys.meta, keys.files, keys.vectors, keys.prefix)

    def _rename_embedder(self, settings: Settings, embed_model: str) -> None:
        """The same model has another name now, which questions are to be embedded with."""

        def write(pipe: Pipeline) -> None:
            corpus_id: Any = pipe.hget(self._keys.meta, "id")
            if corpus_id is None or _text(corpus_id) != settings.id:
                return  # dropped meanwhile: the first file that is written will say so
            pipe.multi()
            pipe.hset(self._keys.meta, "embed_model", embed_model)

        self._client.transaction(write, self._keys.meta)

    def _check(
        self,
        settings: Settings,
        probe: FloatArray,
        embed_model: str,
        chunk_tokens: int | None,
        overlap: int | None,
    ) -> None:
        name = self._keys.name
        again = f"use another name, or 'redis-infer corpus drop {name}' and ingest again"
        if settings.tokenizer != self._tokenizer.fingerprint:
            raise CorpusError(
                f"corpus '{name}' holds tokens of model '{settings.model}', and this model has "
                f"another tokenizer: take a model with the same one; or {again}"
            )
        if not _same_model(settings.probe, probe):
            raise CorpusError(
                f"corpus '{name}' holds vectors of embedding model '{settings.embed_model}', and "
                f"'{embed_model}' gives others: take that one; or {again}"
            )
        if settings.root != str(self._root):
            raise CorpusError(
                f"corpus '{name}' was made from {settings.root}, not from {self._root}: {again}"
            )
        for what, wanted, has in (
            ("chunks of at most {} tokens", chunk_tokens, settings.chunk_tokens),
            ("an overlap of {} tokens", overlap, settings.overlap),
        ):
            if wanted is not None and wanted != has:
                raise CorpusError(
                    f"corpus '{name}' has {what.format(has)}, not {wanted}: leave the option out; "
                    f"or {again}"
                )

    # ---- all files ----

    def run(self) -> Report:
        begin = time.perf_counter()
        known = self._known_files()  # before the walk: what appears later is not missing in it
        unseen: list[str] = []

        def skip(path: str, error: OSError) -> None:
            unseen.append(path)
            self._report.skipped.append((path, f"cannot be read ({error.strerror})"))

        files = list(tree.files(self._root, skip))
        self._files_total = len(files)
        self._bytes_total = sum(file.size for file in files)
        self._files_done = self._bytes_done = 0
        present: set[str] = set()
        with ThreadPoolExecutor(1) as pool:
            # One batch is prepared while the one before it is embedded and written.
            batches = _batches(files)
            ahead = pool.submit(self._prepare, next(batches, []), known)
            while True:
                batch = next(batches, None)
                prepared = ahead.result()
                if batch is not None:
                    ahead = pool.submit(self._prepare, batch, known)
                present |= self._take(prepared)
                if batch is None:
                    break
        hidden = tuple(f"{path}/" for path in unseen)
        for path in sorted(known.keys() - present - set(unseen)):
            if not path.startswith(hidden):  # it may be there
                self._delete(path, known[path])
        self._report.seconds = time.perf_counter() - begin
        return self._report

    def _known_files(self) -> dict[str, str]:
        """Path to SHA-256 of all files in the corpus."""
        members = self._infer._run(Command(("SMEMBERS", self._keys.files), list))
        paths = [member.decode() for member in members]
        known: dict[str, str] = {}
        for start in range(0, len(paths), 1000):
            some = paths[start : start + 1000]
            with self._client.pipeline(transaction=False) as pipe:
                for path in some:
                    pipe.hget(self._keys.file(path), "sha256")
                for path, sha256 in zip(some, pipe.execute(), strict=True):
                    if sha256 is not None:  # another run may have deleted it just now
                        known[path] = _text(sha256)
        return known

    def _take(self, batch: list[_Prepared]) -> set[str]:
        """Embeds and writes a batch; the paths that stay in the corpus."""
        changed = [p for p in batch if not (p.unchanged or p.skipped or p.gone or p.unreadable)]
        documents = [c.for_search(p.path) for p in changed for c in p.chunks]
        vectors = iter(self._embed_all(documents))
        present = set()
        for prepared in batch:
            if prepared.skipped is not None:
                self._report.skipped.append((prepared.path, prepared.skipped))
            elif prepared.unreadable:
                present.add(prepared.path)  # what the corpus has may still be right
            elif prepared.unchanged:
                self._report.unchanged += 1
                present.add(prepared.path)
            elif not prepared.gone:
                if not self._write(prepared, [next(vectors) for _ in prepared.chunks]):
                    self._report.unchanged += 1
                present.add(prepared.path)
            self._files_done += 1
            self._bytes_done += prepared.file.size
            self._on_progress(
                Progress(
                    files=self._files_done,
                    files_total=self._files_total,
                    bytes=self._bytes_done,
                    bytes_total=self._bytes_total,
                    chunks=self._report.chunks,
                    tokens=self._report.tokens,
                )
            )
        return present

    # ---- preparing: no Redis here ----

    def _prepare(self, batch: list[tree.SourceFile], known: dict[str, str]) -> list[_Prepared]:
        """Reads, cuts and tokenizes; runs beside the main thread."""
        result = [self._read(file, known.get(file.path)) for file in batch]
        waiting = [p for p in result if p.text]
        scales = dict.fromkeys((p.path for p in waiting), 1.0)
        for _ in range(_MAX_ATTEMPTS):
            for p in waiting:
                p.chunks = chunks(
                    p.text,
                    p.path,
                    p.language,
                    max_tokens=self._settings.chunk_tokens,
                    overlap=self._settings.overlap,
                    tokens_per_estimate=scales[p.path],
                )
            documents = [c.document(p.path) for p in waiting for c in p.chunks]
            tokens = iter(self._tokenizer.encode_batch(documents, parse_special=False))
            again = []
            for p in waiting:
                p.tokens = [next(tokens) for _ in p.chunks]
                largest = max(
                    (len(t) for c, t in zip(p.chunks, p.tokens, strict=True) if c.start < c.end),
                    default=0,
                )
                if largest > self._settings.chunk_tokens:
                    scales[p.path] *= 1.02 * largest / self._settings.chunk_tokens
                    again.append(p)
            waiting = again
            if not waiting:
                break
        return result

    def _read(self, file: tree.SourceFile, known_sha256: str | None) -> _Prepared:
        prepared = _Prepared(file, known_sha256)
        try:
            data = file.read(self._max_file_bytes)
            prepared.sha256, prepared.size = tree.sha256(data), len(data)
            if not prepared.unchanged:
                prepared.text = tree.text_of(data)
                prepared.language = language_of(file.path)
        except tree.SkippedError as reason:
            prepared.skipped = str(reason)
        except FileNotFoundError:
            prepared.gone = True
        except OSError as error:
            prepared.unreadable = True
            self._report.skipped.append((file.path, f"cannot be read ({error.strerror})"))
        return prepared

    # ---- embedding ----

    def _embed_all(self, texts: list[str]) -> Iterator[FloatArray]:
        for start in range(0, len(texts), _EMBED_BATCH):
            yield from self._vectors(texts[start : start + _EMBED_BATCH])

    def _vectors(self, texts: list[str]) -> FloatArray:
        begin = time.perf_counter()
        vectors = np.asarray(self._embed(texts), np.float32)
        self._report.embed_seconds += time.perf_counter() - begin
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"embed returned the shape {vectors.shape} for {len(texts)} texts: "
                "return one row for each"
            )
        return vectors

    # ---- writing: one transaction a file ----

    def _write(self, new: _Prepared, vectors: list[FloatArray]) -> bool:
        """Whether it was written: another run may have seen to the file."""
        keys, path = self._keys, new.path
        values = [
            (
                keys.tokens(path, n),
                pack_tokens(tokens),
                vector.astype("<f4").tobytes(),
                layout.element(path, n),
                layout.dump_attributes(
                    layout.attributes(
                        keys, path, n, start=c.start, end=c.end, language=new.language
                    )
                ),
            )
            for n, (c, tokens, vector) in enumerate(
                zip(new.chunks, new.tokens, vectors, strict=True)
            )
        ]

        def write(pipe: Pipeline) -> bool:
            old_sha256, old_chunks = self._look(pipe, path)
            if old_sha256 == new.sha256:
                return False  # another run wrote the same meanwhile
            now = self._sha256_now(new.file)
            if now != new.sha256 and (now in (None, old_sha256) or old_sha256 != new.known_sha256):
                # The file is gone, or is again as the corpus has it, or another run wrote it and
                # read it later than this one. One that has just changed once more is written.
                return False
            pipe.multi()
            for key, tokens, vector, element, attributes in values:
                pipe.set(key, tokens)
                _queue(
                    *(pipe, "VADD", keys.vectors, "FP32", vector, element, *_VECTOR_OPTIONS),
                    *("SETATTR", attributes),
                )
            self._remove_chunks(pipe, path, range(len(values), old_chunks))
            pipe.hset(
                keys.file(path),
                mapping={
                    "sha256": new.sha256,
                    "size": new.size,
                    "chunks": len(values),
                    "tokenizer": self._settings.tokenizer,
                },
            )
            pipe.sadd(keys.files, path)
            return True

        if not self._transaction(write, path):
            return False
        self._report.added += new.known_sha256 is None
        self._report.changed += new.known_sha256 is not None
        self._report.chunks += len(values)
        self._report.tokens += sum(len(tokens) for tokens in new.tokens)
        self._report.text_bytes += new.size
        return True

    def _delete(self, path: str, known_sha256: str) -> None:
        keys = self._keys

        def write(pipe: Pipeline) -> bool:
            old_sha256, old_chunks = self._look(pipe, path)
            if old_sha256 != known_sha256:
                return False  # another run has seen to it
            if self._is_back(path, known_sha256):
                return False  # as it was: for another run, that has seen it, it is unchanged
            pipe.multi()
            self._remove_chunks(pipe, path, range(old_chunks))
            pipe.delete(keys.file(path))
            pipe.srem(keys.files, path)
            return True

        self._report.deleted += self._transaction(write, path)

    def _transaction(self, write: Callable[[Pipeline], bool], path: str) -> bool:
        """Runs ``write`` while nobody changes the corpus' settings or this file; what it says."""
        keys = (self._keys.meta, self._keys.file(path))
        return bool(self._client.transaction(write, *keys, value_from_callable=True))  # type: ignore[arg-type]

    def _look(self, pipe: Pipeline, path: str) -> tuple[str | None, int]:
        """SHA-256 and number of chunks of a file in the corpus, once that is known to be ours."""
        corpus_id: Any = pipe.hget(self._keys.meta, "id")
        sha256: Any
        count: Any
        sha256, count = pipe.hmget(self._keys.file(path), "sha256", "chunks")
        if corpus_id is None or _text(corpus_id) != self._settings.id:
            raise CorpusError(
                f"corpus '{self._keys.name}' was dropped while it was being filled: "
                "run ingest again if you want it"
            )
        return None if sha256 is None else _text(sha256), int(count or 0)

    def _remove_chunks(self, pipe: Pipeline, path: str, numbers: range) -> None:
        for n in numbers:
            pipe.delete(self._keys.tokens(path, n))
            _queue(pipe, "VREM", self._keys.vectors, layout.element(path, n))

    def _is_back(self, path: str, known_sha256: str) -> bool:
        """Whether a file that the walk did not find, or that was no text, is as the corpus has it.

        One that is ignored by now is not, although it is there.
        """
        if self._sha256_now(tree.SourceFile(self._root, path, 0)) != known_sha256:
            return False
        if self._found_later is None:
            self._found_later = frozenset(file.path for file in tree.files(self._root))
        return path in self._found_later

    def _sha256_now(self, file: tree.SourceFile) -> str | None:
        try:
            return tree.sha256(file.read(self._max_file_bytes))
        except (OSError, tree.SkippedError):
            return None


def _batches(files: Sequence[tree.SourceFile]) -> Iterator[list[tree.SourceFile]]:
    batch: list[tree.SourceFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size
        if size >= _BATCH_BYTES or len(batch) >= 256:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _same_model(a: FloatArray, b: FloatArray) -> bool:
    """Whether two embeddings of one text come from the same weights, quantized or not."""
    if a.shape != b.shape:
        return False
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return norms > 0 and float(a @ b) / norms > 0.98


def _queue(pipe: Pipeline, *args: Argument) -> None:
    pipe.execute_command(*args)  # type: ignore[no-untyped-call]


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


__all__ = ["Embed", "Progress", "Report", "ingest"]
