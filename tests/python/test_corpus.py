"""The corpus as an object: what it says about itself, what it finds, how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

import hashing_embedder
from redis_infer import AsyncCorpus, AsyncInfer, Corpus, CorpusError, Infer
from redis_infer.corpus import corpora, corpora_async
from redis_infer.ingest import ingest
from redis_infer.server import Server

TEXTS = {
    "animals/cat.py": "def feed_cat(bowl):\n    bowl.fill('fish')\n",
    "animals/dog.py": "def walk_dog(leash):\n    leash.attach()\n",
    "money.md": "# Money\n\nHow invoices are paid by bank transfer.\n",
    "time.rs": "fn clock_ticks() -> u64 { 60 }\n",
}
KINDS = [(protocol, decode) for protocol in (2, 3) for decode in (False, True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(params=KINDS, ids=lambda p: f"resp{p[0]}-{'text' if p[1] else 'bytes'}")
def corpus(request: Any, server: Server, loaded: Infer, folder: Path) -> Iterator[Corpus]:
    make(loaded, folder)
    protocol, decode = request.param
    with server.client(protocol=protocol, decode_responses=decode) as client:
        yield of(Infer(client), "animals")


def make(infer: Infer, folder: Path, name: str = "animals") -> None:
    ingest(infer, folder, name, model="smol", embed_model="hashing", embed=hashing_embedder.embed)


def of(infer: Infer, name: str) -> Corpus:
    return Corpus(infer, name, embed=hashing_embedder.embed)


def test_it_says_what_it_is_made_of(corpus: Corpus, loaded: Infer, folder: Path) -> None:
    info = corpus.info()
    assert (info.name, info.root) == ("animals", str(folder.resolve()))
    assert (info.files, info.chunks, info.dimensions) == (4, 4, hashing_embedder.DIMENSIONS)
    assert (info.model, info.embed_model) == ("smol", "hashing")
    assert info.tokenizer == loaded.tokenizer("smol").fingerprint
    assert corpus.files() == sorted(TEXTS)


def test_it_finds_what_resembles_a_text(corpus: Corpus) -> None:
    hits = corpus.search("feed cat with fish", 2)
    assert len(hits) == 2 and hits[0].score > hits[1].score
    best = hits[0]
    assert (best.path, best.start, best.end) == ("animals/cat.py", 1, 2)
    assert (best.where, best.language) == ("animals/cat.py:1-2", "python")
    assert (best.element, best.tokens_key) == ("animals/cat.py#0", "{animals}:tok:animals/cat.py#0")


def test_it_finds_what_resembles_a_vector(corpus: Corpus) -> None:
    vector = hashing_embedder.embed(["walk dog on the leash"])[0]
    expected = corpus.search("walk dog on the leash")
    assert corpus.search(vector) == corpus.search(vector.tolist()) == expected
    assert expected[0].path == "animals/dog.py"


def test_a_score_is_half_of_one_plus_the_cosine(corpus: Corpus, loaded: Infer) -> None:
    text = "money.md Money\n# Money\n\nHow invoices are paid by bank transfer.\n"
    query = hashing_embedder.embed([text])[0]
    for hit in corpus.search(query):
        stored = np.array(loaded._client.execute_command("VEMB", "{animals}:vec", hit.element))
        cosine = float(stored.astype(np.float32) @ query) / float(np.linalg.norm(stored))
        assert hit.score == pytest.approx((1 + cosine) / 2, abs=0.01)


def test_a_search_can_be_narrowed(corpus: Corpus) -> None:
    hits = corpus.search("feed cat with fish", where='.lang == "rust" or .path == "money.md"')
    assert {hit.path for hit in hits} == {"money.md", "time.rs"}


def test_a_vector_of_another_size_is_refused(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match=r"64 dimensions, and the query has the shape \(3,\)"):
        corpus.search([1.0, 2.0, 3.0])


async def test_the_async_corpus_does_the_same(server: Server, loaded: Infer, folder: Path) -> None:
    make(loaded, folder)
    expected = of(loaded, "animals")
    async with server.async_client() as client:
        infer = AsyncInfer(client)
        corpus = AsyncCorpus(infer, "animals", embed=hashing_embedder.embed)
        assert corpus.name == "animals"
        assert await corpus.info() == expected.info()
        assert await corpus.files() == expected.files()
        assert await corpus.search("walk dog", 2) == expected.search("walk dog", 2)
        assert await corpora_async(infer) == ["animals"]
        assert await corpus.drop() == 4
        assert await corpora_async(infer) == []


def test_corpora_are_listed_by_name(loaded: Infer, client: redis.Redis, folder: Path) -> None:
    client.hset("{not}:meta", "made", "by someone else")
    client.set("{nor this}:meta", "x")
    for name in ("b", "a.1"):
        make(loaded, folder, name)
    assert corpora(loaded) == ["a.1", "b"]


def test_a_dropped_corpus_leaves_nothing_behind_and_others_alone(
    loaded: Infer, client: redis.Redis, folder: Path
) -> None:
    make(loaded, folder, "kept")
    keys = set(client.keys())
    make(loaded, folder, "gone")
    assert of(loaded, "gone").drop() == len(TEXTS)
    assert set(client.keys()) == keys


def test_a_drop_that_was_cut_short_can_be_ended(
    loaded: Infer, client: redis.Redis, folder: Path
) -> None:
    make(loaded, folder)
    client.delete("{animals}:meta", "{animals}:vec")
    with pytest.raises(CorpusError, match="was dropped, but not to the end"):
        make(loaded, folder)
    assert of(loaded, "animals").drop() == len(TEXTS)
    assert client.dbsize() == 0
    make(loaded, folder)


@pytest.mark.parametrize("call", ["info", "files", "drop"])
def test_a_corpus_that_is_not_there_is_an_error_that_says_how_to_make_it(
    loaded: Infer, call: str
) -> None:
    with pytest.raises(CorpusError, match=r"no corpus 'none': make one with 'redis-infer ingest"):
        getattr(of(loaded, "none"), call)()
    with pytest.raises(CorpusError, match="no corpus 'none'"):
        of(loaded, "none").search("x")


def test_a_corpus_of_another_format_is_refused(
    loaded: Infer, client: redis.Redis, folder: Path
) -> None:
    make(loaded, folder)
    client.hset("{animals}:meta", "version", "99")
    with pytest.raises(CorpusError, match="has format 99, and this is for format 1: drop it"):
        of(loaded, "animals").info()
